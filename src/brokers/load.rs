//! What a broker's process costs: from the operating system, and from the broker's own monitoring.
//!
//! A sample takes some milliseconds and never fails: what cannot be told is `None`.

use std::{fs, path::PathBuf, time::Duration};

use super::http;
use crate::scheduler::Load;

/// A broker's process, and how to ask it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The broker's kind.
    pub kind: &'a str,
    pub pid: u32,
    /// The port of its monitoring, if it has one.
    pub monitoring: Option<u16>,
}

/// What adds up over the lives of a broker that is restarted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    pid: u32,
    before: Load,
    last: Load,
}

impl Sum {
    /// The load of all lives so far.
    pub fn with(&mut self, pid: u32, now: Load) -> Load {
        let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        let sum = |before: &Load, now: &Load| Load {
            cpu: add(before.cpu, now.cpu),
            written: add(before.written, now.written),
            messages_in: add(before.messages_in, now.messages_in),
            messages_out: add(before.messages_out, now.messages_out),
            ..*now
        };
        if self.pid != pid {
            self.before = sum(&self.before, &self.last);
            self.pid = pid;
        }
        self.last = now;
        sum(&self.before, &now)
    }
}

/// Samples it.
pub(super) fn sample(asked: Asked<'_>) -> Load {
    let proc = PathBuf::from(format!("/proc/{}", asked.pid));
    let read = |name: &str| fs::read_to_string(proc.join(name)).ok();
    let system = Load {
        cpu: read("stat").and_then(|stat| cpu(&stat)),
        resident: read("status").and_then(|status| field(&status, "VmRSS:")).map(|kb| kb * 1024),
        written: read("io").and_then(|io| field(&io, "write_bytes:")),
        ..Load::default()
    };
    let Some(port) = asked.monitoring else { return system };
    let ask = |path: &str| match http::get(port, path, PATIENCE) {
        Ok((200, body)) => Some(body),
        _ => None,
    };
    let told = match asked.kind {
        "nats" => ask("/varz").and_then(|varz| nats(&varz)),
        "nsq" => ask("/stats?format=json&include_clients=false").and_then(|stats| nsq(&stats)),
        "pulsar" => ask("/metrics/").map(|metrics| pulsar(&metrics)),
        "etcd" => ask("/metrics").map(|metrics| etcd(&metrics)),
        _ => None,
    };
    let told = told.unwrap_or_default();
    Load { cpu: system.cpu, resident: system.resident, written: system.written, ..told }
}

const PATIENCE: Duration = Duration::from_millis(800);

/// The processor time in a `/proc/PID/stat`, that of ended children included, nanoseconds.
fn cpu(stat: &str) -> Option<u64> {
    // The name may hold anything; it ends with the last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    // The 14th to 17th of the whole, of which two are before.
    let ticks: u64 = fields.get(11..15)?.iter().map(|n| n.parse::<u64>().unwrap_or(0)).sum();
    Some(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1))
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn nats(varz: &str) -> Option<Load> {
    let varz: serde_json::Value = serde_json::from_str(varz).ok()?;
    Some(Load {
        connections: varz["connections"].as_u64(),
        messages_in: varz["in_msgs"].as_u64(),
        messages_out: varz["out_msgs"].as_u64(),
        ..Load::default()
    })
}

fn nsq(stats: &str) -> Option<Load> {
    let stats: serde_json::Value = serde_json::from_str(stats).ok()?;
    let topics = stats["topics"].as_array()?;
    let channels = || topics.iter().filter_map(|topic| topic["channels"].as_array()).flatten();
    let clients: u64 = channels().filter_map(|channel| channel["client_count"].as_u64()).sum();
    let producers = stats["producers"].as_array().map_or(0, Vec::len) as u64;
    Some(Load {
        connections: Some(clients + producers),
        messages_in: Some(topics.iter().filter_map(|topic| topic["message_count"].as_u64()).sum()),
        ..Load::default()
    })
}

fn pulsar(metrics: &str) -> Load {
    Load {
        connections: total(metrics, "pulsar_active_connections"),
        messages_in: total(metrics, "pulsar_in_messages_total"),
        messages_out: total(metrics, "pulsar_out_messages_total"),
        ..Load::default()
    }
}

fn etcd(metrics: &str) -> Load {
    let leases = |what: &str| total(metrics, &format!("etcd_debugging_lease_{what}_total"));
    // One that expires is revoked, too.
    let ended = leases("revoked").unwrap_or(0);
    Load {
        messages_in: total(metrics, "etcd_debugging_mvcc_put_total")
            .or_else(|| total(metrics, "etcd_mvcc_put_total")),
        messages_out: total(metrics, "etcd_debugging_mvcc_events_total"),
        leases: leases("granted").map(|granted| granted.saturating_sub(ended)),
        watchers: total(metrics, "etcd_debugging_mvcc_watcher_total"),
        ..Load::default()
    }
}

/// The sum of a metric in the text format of Prometheus, over all its labels.
fn total(metrics: &str, name: &str) -> Option<u64> {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    let values: Vec<_> = values.filter(|value| *value >= 0.0).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_process_is_called() {
        let stat = "42 (na) ts (x) S 1 42 42 0 -1 4194560 900 0 0 0 150 50 3 7 20 0 9 0 1";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu(stat), Some(210 * 1_000_000_000 / ticks));
        assert_eq!(cpu("42 (nats"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let asked = Asked { kind: "none", pid: std::process::id(), monitoring: None };
        let load = sample(asked);
        assert!(load.cpu.is_some() && load.written.is_some(), "{load:?}");
        assert!(load.resident.is_some_and(|bytes| bytes > 1_000_000), "{load:?}");
    }

    #[test]
    fn metrics_are_added_up_over_their_labels() {
        let metrics = "# HELP pulsar_in_messages_total x\n\
            pulsar_in_messages_total{cluster=\"a\",topic=\"b}\"} 5.0 1700\n\
            pulsar_in_messages_total{cluster=\"a\",topic=\"c\"} 7.0 1700\n\
            pulsar_in_messages_total_created 9.0\n\
            pulsar_active_connections 3\n";
        assert_eq!(total(metrics, "pulsar_in_messages_total"), Some(12));
        assert_eq!(pulsar(metrics).connections, Some(3));
        assert_eq!(total(metrics, "pulsar_in"), None);
    }

    #[test]
    fn leases_that_live_are_those_granted_less_those_ended() {
        let metrics = "etcd_debugging_lease_granted_total 10\n\
            etcd_debugging_lease_revoked_total 4\netcd_debugging_mvcc_watcher_total 2\n";
        let load = etcd(metrics);
        assert_eq!((load.leases, load.watchers), (Some(6), Some(2)));
    }

    #[test]
    fn the_load_of_a_broker_that_was_restarted_adds_up() {
        let load =
            |cpu, resident| Load { cpu: Some(cpu), resident: Some(resident), ..Load::default() };
        let mut sum = Sum::default();
        assert_eq!(sum.with(1, load(5, 100)), load(5, 100));
        assert_eq!(sum.with(1, load(9, 120)), load(9, 120));
        assert_eq!(sum.with(2, load(1, 80)), load(10, 80), "memory is that of the one that lives");
        assert_eq!(sum.with(2, load(2, 90)), load(11, 90));
    }
}
