//! What is locked for whom.

use std::collections::HashMap;

use tokio::time::Instant;

use super::subscription::Queued;

/// Leases by their tokens: a place in a table and how often that place was used, so that an old
/// token never means a new lease.
#[derive(Debug, Default)]
pub(super) struct Leases {
    places: Vec<(u32, Option<Lease>)>,
    free: Vec<u32>,
}

/// A message that is locked for a consumer.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) queued: Queued,
    pub(super) consumer: u64,
    pub(super) expires: Instant,
    /// Whether the consumer was handed it, or it waits in the prefetch buffer.
    pub(super) handed: bool,
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, lease: Lease) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.0 = place.0.wrapping_add(1);
        place.1 = Some(lease);
        u64::from(place.0) << 32 | u64::from(index)
    }

    fn place(&mut self, token: u64) -> Option<&mut Option<Lease>> {
        let (used, index) = ((token >> 32) as u32, token as u32);
        self.places.get_mut(index as usize).filter(|p| p.0 == used).map(|p| &mut p.1)
    }

    pub(super) fn get(&self, token: u64) -> Option<&Lease> {
        let (used, index) = ((token >> 32) as u32, token as u32);
        self.places.get(index as usize).filter(|p| p.0 == used).and_then(|p| p.1.as_ref())
    }

    pub(super) fn get_mut(&mut self, token: u64) -> Option<&mut Lease> {
        self.place(token)?.as_mut()
    }

    pub(super) fn remove(&mut self, token: u64) -> Option<Lease> {
        let lease = self.place(token)?.take()?;
        self.free.push(token as u32);
        Some(lease)
    }

    /// Whose each key is: the consumer's that holds a message of it.
    pub(super) fn owners(&self) -> HashMap<Option<&str>, u64> {
        let leases = self.places.iter().filter_map(|(_, lease)| lease.as_ref());
        leases.map(|lease| (lease.queued.message.key.as_deref(), lease.consumer)).collect()
    }
}
