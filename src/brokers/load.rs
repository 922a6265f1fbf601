//! What a private broker costs its machine: from the operating system, and from the broker's own
//! monitoring.
//!
//! A sample never fails: what cannot be told is `None`. It costs the broker one answer (measured,
//! once warm: 0.2 ms of a processor for NATS and nsqd, 2 ms for etcd, 5 ms for Pulsar), and this
//! process 6 ms of the kernel's for every thousand connections where the kernel counts them.

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{http, process::ProcessId};
use crate::scheduler::Load;

/// Adds up what the processes of one broker use, one after another.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Lives>);

/// Where a broker tells its own figures, over HTTP.
#[derive(Debug)]
pub(super) struct Monitoring {
    /// Which of its ports.
    pub port: usize,
    pub path: &'static str,
    /// Reads what it answers there; `None` if that is not what was expected.
    pub read: fn(&str) -> Option<Told>,
}

/// What a broker tells about the life of its process.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Told {
    /// `None` where it does not count them: the kernel does.
    pub connections: Option<u64>,
    pub messages_in: Option<u64>,
    pub messages_out: Option<u64>,
    /// Those granted less those ended, which an earlier life may have granted.
    pub leases: Option<i64>,
    pub watchers: Option<u64>,
}

#[derive(Debug, Default)]
struct Lives {
    /// The latest.
    process: Option<ProcessId>,
    /// Whether anybody wants to know.
    wanted: bool,
    before: Counts,
    latest: Counts,
}

/// What adds up; as it was told last.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    cpu: Option<u64>,
    written: Option<u64>,
    messages_in: Option<u64>,
    messages_out: Option<u64>,
    leases: Option<i64>,
}

impl Meter {
    /// The process that runs now; `None` if none does.
    pub fn runs(&self, process: Option<&ProcessId>) {
        let mut lives = self.lives();
        if process.is_some() && process != lives.process.as_ref() {
            *lives = Lives {
                process: process.cloned(),
                wanted: lives.wanted,
                before: lives.before.and(&lives.latest),
                latest: Counts::default(),
            };
        }
    }

    /// Whether the load was ever sampled.
    pub fn is_wanted(&self) -> bool {
        self.lives().wanted
    }

    /// What was used by now, and what is held.
    pub fn sample(&self, monitoring: &Monitoring, ports: &[u16]) -> Load {
        let process = self.lives().process.clone();
        let now = process.as_ref().and_then(|process| measure(process, monitoring, ports));
        let mut lives = self.lives();
        lives.wanted = true;
        let (resident, told) = match now {
            // It is about the latest life, unless another one began meanwhile.
            Some(now) if lives.process == process => {
                lives.latest = lives.latest.then(&now.counts);
                (now.resident, now.told)
            }
            _ => Default::default(),
        };
        let total = lives.before.and(&lives.latest);
        Load {
            cpu: total.cpu,
            resident,
            written: total.written,
            connections: told.connections,
            messages_in: total.messages_in,
            messages_out: total.messages_out,
            leases: told.leases.and(total.leases).and_then(|leases| leases.try_into().ok()),
            watchers: told.watchers,
        }
    }

    fn lives(&self) -> MutexGuard<'_, Lives> {
        // Nothing in it is ever half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Those of two lives.
    fn and(&self, later: &Counts) -> Counts {
        fn sum<T: std::ops::Add<Output = T>>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            }
        }
        Counts {
            cpu: sum(self.cpu, later.cpu),
            written: sum(self.written, later.written),
            messages_in: sum(self.messages_in, later.messages_in),
            messages_out: sum(self.messages_out, later.messages_out),
            leases: sum(self.leases, later.leases),
        }
    }

    /// Those of one life, later: what is not told then is as before, and so is what seems to have
    /// shrunk (a topic's messages are forgotten with the topic; an answer was cut off).
    fn then(&self, later: &Counts) -> Counts {
        Counts {
            cpu: self.cpu.max(later.cpu),
            written: self.written.max(later.written),
            messages_in: self.messages_in.max(later.messages_in),
            messages_out: self.messages_out.max(later.messages_out),
            leases: later.leases.or(self.leases),
        }
    }
}

struct Measured {
    resident: Option<u64>,
    counts: Counts,
    told: Told,
}

/// Looks at a process; `None` if it has ended, so that nothing is a stranger's.
fn measure(process: &ProcessId, monitoring: &Monitoring, ports: &[u16]) -> Option<Measured> {
    const PATIENCE: Duration = Duration::from_millis(500);
    // Only Linux has these files; of a process of the same user they can be read.
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", process.pid)).ok();
    let cpu = read("stat").and_then(|stat| cpu(&stat));
    let resident = read("status").and_then(|status| field(&status, "VmRSS:"));
    let written = read("io").and_then(|io| field(&io, "write_bytes:"));
    let tables = || Some([read("net/tcp")?, read("net/tcp6").unwrap_or_default()].concat());
    let port = ports.get(monitoring.port).copied();
    let answer = port.map(|port| http::get(port, monitoring.path, PATIENCE));
    let told = match answer {
        Some(Ok((200, body))) => (monitoring.read)(&body).unwrap_or_default(),
        _ => Told::default(),
    };
    let clients = ports.first().copied();
    let connections = told.connections.or_else(|| Some(connections(&tables()?, clients?)));
    process.is_running().then(|| Measured {
        resident: resident.map(|kibibytes| kibibytes * 1024),
        counts: Counts {
            cpu,
            written,
            messages_in: told.messages_in,
            messages_out: told.messages_out,
            leases: told.leases,
        },
        told: Told { connections, ..told },
    })
}

/// The processor time in a `/proc/PID/stat`, that of ended children included, nanoseconds.
fn cpu(stat: &str) -> Option<u64> {
    // The second field, the command's name in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    // utime, stime, cutime and cstime: the 14th to the 17th.
    let ticks =
        fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(ticks.saturating_mul(1_000_000_000) / rustix::param::clock_ticks_per_second().max(1))
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How many connections to this port the kernel's tables (`/proc/net/tcp`) have, at its end.
fn connections(tables: &str, port: u16) -> u64 {
    const ESTABLISHED: &str = "01";
    let local = format!(":{port:04X}");
    let of_port = |line: &&str| {
        let mut fields = line.split_whitespace();
        fields.nth(1).is_some_and(|address| address.ends_with(&local))
            && fields.nth(1) == Some(ESTABLISHED)
    };
    tables.lines().filter(of_port).count() as u64
}

/// The sum of a metric over all its labels, in the text format of Prometheus; `None` where there
/// is no such metric.
pub(super) fn total(metrics: &str, name: &str) -> Option<u64> {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value)).map(|sum| sum as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    const SILENT: Monitoring = Monitoring { port: 0, path: "/", read: |_| None };

    #[test]
    fn processor_time_is_read_whatever_the_process_is_called() {
        let stat = "42 (na) ts (x) S 1 42 42 0 -1 4194560 900 0 0 0 150 50 3 7 20 0 9 0 1";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu(stat), Some(210 * 1_000_000_000 / ticks));
        assert_eq!(cpu(&stat.replace(" 50 ", " x ")), None);
        assert_eq!(cpu("42 (nats"), None);
    }

    #[test]
    fn of_connections_those_that_stand_count_at_the_brokers_end() {
        // 127.0.0.1:4150 listens, has one connection, and another one that is over; then one of
        // version 6, and another server's.
        let tables = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
             0: 0100007F:1036 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0\n\
             1: 0100007F:1036 0100007F:E3C4 01 00000000:00000000 00:00000000 00000000 0\n\
             2: 0100007F:E3C4 0100007F:1036 01 00000000:00000000 00:00000000 00000000 0\n\
             3: 0100007F:1036 0100007F:E3C6 06 00000000:00000000 03:000017A5 00000000 0\n\
             0: 0000000000000000FFFF00000100007F:1036 0000000000000000FFFF00000100007F:E3C8 01 0\n\
             4: 0100007F:2036 0100007F:E3CA 01 00000000:00000000 00:00000000 00000000 0\n";
        assert_eq!(connections(tables, 4150), 2);
        assert_eq!(connections(tables, 4151), 0);
    }

    #[test]
    fn metrics_are_added_up_over_their_labels() {
        let metrics = "# HELP in_total x\n\
            in_total{cluster=\"a\",topic=\"b}\"} 5.0 1700\n\
            in_total{cluster=\"a\",topic=\"c\"} 7.0 1700\n\
            in_total_created 9.0\n\
            large 1.048576e+06\n\
            in_total_and_more{cluster=\"a\"} 11\n";
        assert_eq!(total(metrics, "in_total"), Some(12));
        assert_eq!(total(metrics, "large"), Some(1_048_576));
        assert_eq!(total(metrics, "in"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_used_something_though_it_tells_nothing() {
        let meter = Meter::default();
        meter.runs(ProcessId::of(std::process::id()).as_ref());
        let load = meter.sample(&SILENT, &[]);
        assert!(load.cpu.is_some() && load.written.is_some(), "{load:?}");
        assert!(load.resident.is_some_and(|bytes| bytes > 1_000_000), "{load:?}");
        assert_eq!((load.messages_in, load.leases), (None, None));
    }

    #[test]
    fn counts_add_up_over_lives_and_what_is_not_told_is_not_forgotten() {
        let counts = |cpu, leases| Counts { cpu, leases, ..Counts::default() };
        let first =
            counts(Some(5), Some(10)).then(&counts(Some(9), None)).then(&counts(None, None));
        let second = counts(Some(1), Some(-4));
        let total = first.and(&second);
        assert_eq!((total.cpu, total.leases), (Some(10), Some(6)));
        let nothing = Counts::default();
        assert_eq!(nothing.and(&nothing).cpu, None);
        assert_eq!(first.then(&counts(Some(2), Some(3))).cpu, Some(9), "it never shrinks");
    }

    #[test]
    fn of_a_process_that_has_ended_what_it_used_is_known_and_it_holds_nothing() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let meter = Meter::default();
        meter.runs(ProcessId::of(child.id()).as_ref());
        assert!(!meter.is_wanted());
        let alive = meter.sample(&SILENT, &[]);
        assert!(meter.is_wanted());
        child.kill().unwrap();
        child.wait().unwrap();
        meter.runs(None);
        let dead = meter.sample(&SILENT, &[]);
        assert_eq!(dead, Load { resident: None, connections: None, ..alive });
        // Its id may be somebody else's by now.
        let process = ProcessId::of(std::process::id()).unwrap();
        meter.runs(Some(&process));
        assert!(meter.sample(&SILENT, &[]).cpu >= dead.cpu);
    }
}
