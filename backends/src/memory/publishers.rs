//! Who may publish to a topic, and which numbers were stored under which name.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::Notify;

use crate::Access;

/// The publishers of a topic.
#[derive(Debug, Default)]
pub(super) struct Publishers {
    open: Vec<Who>,
    /// The highest number stored under each name; it outlives the publishers.
    highest: HashMap<String, u64>,
    /// Rung when somebody has left; it remembers that for who asks later.
    door: Arc<Notify>,
}

/// A publisher.
#[derive(Debug, Clone)]
pub(super) struct Who {
    /// Unique in the broker.
    pub(super) number: u64,
    pub(super) connection: u64,
    pub(super) name: Option<String>,
    pub(super) access: Access,
}

/// What became of a publisher that asked to be let in.
pub(super) enum Opened {
    In,
    /// It waits for its turn: this is rung when it is worth asking again.
    Wait(Arc<Notify>),
}

impl Publishers {
    /// Lets a publisher in; one that is in already stays.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn open(&mut self, who: &Who) -> Result<Opened, String> {
        let shared = who.access == Access::Shared;
        // The rule, and the only one that costs on the way of each message.
        if shared && who.name.is_none() && self.open.iter().all(|p| p.access == Access::Shared) {
            if !self.open.iter().any(|p| p.number == who.number) {
                self.open.push(who.clone());
            }
            return Ok(Opened::In);
        }
        if self.open.iter().any(|p| p.number == who.number) {
            return Ok(Opened::In);
        }
        if let Some(name) = who.name.as_ref()
            && self.open.iter().any(|p| p.name.as_ref() == Some(name))
        {
            return Err(format!("a publisher named {name} is open"));
        }
        let exclusive = self.open.iter().any(|p| p.access != Access::Shared);
        match who.access {
            Access::Shared if exclusive => Err("another publisher has the topic alone".into()),
            Access::Exclusive if !self.open.is_empty() => Err("others publish to the topic".into()),
            Access::WaitForExclusive if !self.open.is_empty() => {
                Ok(Opened::Wait(Arc::clone(&self.door)))
            }
            _ => {
                self.open.push(who.clone());
                Ok(Opened::In)
            }
        }
    }

    pub(super) fn close(&mut self, gone: impl Fn(&Who) -> bool) {
        let before = self.open.len();
        self.open.retain(|p| !gone(p));
        if self.open.len() < before {
            self.door.notify_one();
        }
    }

    /// Whether a number is not above the highest one stored under a name.
    pub(super) fn is_repeated(&self, name: &str, number: u64) -> bool {
        self.highest.get(name).is_some_and(|&highest| number <= highest)
    }

    pub(super) fn stored(&mut self, name: &str, number: u64) {
        self.highest.insert(name.into(), number);
    }
}
