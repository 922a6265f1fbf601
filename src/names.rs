//! The names of topics at a broker, which tell whose they are.
//!
//! `PREFIX-SECONDS-PID-HOST-PROPERTY-TOPIC`, numbers in hexadecimal: so that `queueproof clean` can
//! tell what a dead run left from what a living one uses, also on a broker that many machines
//! share.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What a topic's name says about its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// When the run began.
    pub started: SystemTime,
    /// The process.
    pub pid: u32,
    /// The machine, a short fingerprint of its name.
    host: u16,
}

/// What the names of one property's topics begin with: another one each time, in this process and
/// in any other.
pub fn topic_prefix(prefix: &str) -> String {
    static STARTED: OnceLock<u64> = OnceLock::new();
    static PROPERTIES: AtomicU32 = AtomicU32::new(0);
    let property = PROPERTIES.fetch_add(1, Ordering::Relaxed);
    let started = STARTED
        .get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    format!("{prefix}-{started:x}-{:x}-{:04x}-{property:x}", std::process::id(), host())
}

/// Reads a topic's name back; `None` if it is not one of queueproof's with that prefix.
pub fn owner(prefix: &str, topic: &str) -> Option<Owner> {
    let rest = topic.strip_prefix(prefix)?.strip_prefix('-')?;
    let mut parts = rest.split('-');
    let seconds = u64::from_str_radix(parts.next()?, 16).ok()?;
    let pid = u32::from_str_radix(parts.next()?, 16).ok()?;
    let host = u16::from_str_radix(parts.next()?, 16).ok()?;
    parts.next()?;
    let started = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    Some(Owner { started, pid, host })
}

impl Owner {
    /// Whether its run is over for certain, or is as old as `limit`: on this machine a process
    /// that does not live; on another one nobody can tell but by age.
    pub fn is_dead(&self, limit: Duration, alive: impl FnOnce(u32) -> bool) -> bool {
        let old = self.started.elapsed().is_ok_and(|age| age >= limit);
        old || self.host == host() && self.pid != std::process::id() && !alive(self.pid)
    }
}

fn host() -> u16 {
    let name = rustix::system::uname();
    crc32fast::hash(name.nodename().to_bytes()) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        let name = format!("{}-3", topic_prefix("qp"));
        assert!(name.len() <= 60, "{name}");
        let owner = owner("qp", &name);
        assert_eq!(owner.map(|o| (o.pid, o.host)), Some((std::process::id(), host())));
    }

    #[test]
    fn names_of_others_have_no_owner() {
        for name in ["orders", "qp", "qp-", "qp-orders-1-2-3-4", "qp-1-2", "qpx-1-2-3-4-5"] {
            assert_eq!(owner("qp", name), None, "{name}");
        }
    }

    #[test]
    fn a_run_is_dead_when_its_process_is_or_when_it_is_old() {
        let day = Duration::from_secs(86_400);
        let now = SystemTime::now();
        let other_pid = std::process::id().wrapping_add(1);
        let here = Owner { started: now, pid: other_pid, host: host() };
        assert!(here.is_dead(day, |_| false));
        assert!(!here.is_dead(day, |_| true));
        let elsewhere = Owner { host: host().wrapping_add(1), ..here };
        assert!(!elsewhere.is_dead(day, |_| false));
        assert!(Owner { started: now - day * 2, ..elsewhere }.is_dead(day, |_| true));
        let own = Owner { pid: std::process::id(), ..here };
        assert!(!own.is_dead(day, |_| false), "this very run lives");
    }
}
