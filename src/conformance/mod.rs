//! The suite: the one list of properties, from which tables, documentation and tests are made.

use futures::future::LocalBoxFuture;
use queueproof_backends::Capability;

use crate::{
    checker::{AnomalyKind, Evidence, Findings},
    flaw::Flaw,
    history::Halt,
};

mod dedup;
mod demonstrated;
mod order;
mod publishing;
mod pubsub;
mod redelivery;
pub mod scheduling;
mod sequence;
pub mod stage;
mod verdict;
mod work_queue;

pub use demonstrated::{demonstrated, shows};
pub use stage::Stage;
pub use verdict::{BREAKS_OFF, broken, judge, skipped};

/// A promise that the suite can check.
pub struct Property {
    /// `group/name`.
    pub id: &'static str,
    /// The promise in one sentence, for lists and tables.
    pub title: &'static str,
    /// What is done and what is judged, in a few sentences, for `explain`.
    pub doc: &'static str,
    /// What a backend must have; without one of them the property is skipped.
    pub needs: &'static [Capability],
    /// The flaws it must catch, each with the anomaly it must report.
    pub catches: &'static [(Flaw, AnomalyKind)],
    /// The traffic.
    pub scenario: for<'s> fn(&'s Stage) -> LocalBoxFuture<'s, Result<(), Halt>>,
    /// What is judged beside what holds for every property, and the figures.
    pub judge: fn(&Evidence<'_>, &mut Findings),
}

impl std::fmt::Debug for Property {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Property({})", self.id)
    }
}

impl Property {
    /// The part of the id before the slash.
    pub fn group(&self) -> &'static str {
        self.id.split_once('/').map_or(self.id, |(group, _)| group)
    }
}

/// The groups, in the order of the tables.
static GROUPS: [&[Property]; 8] = [
    pubsub::PROPERTIES,
    publishing::PROPERTIES,
    work_queue::PROPERTIES,
    order::PROPERTIES,
    dedup::PROPERTIES,
    sequence::PROPERTIES,
    redelivery::PROPERTIES,
    scheduling::PROPERTIES,
];

/// All properties, in the order of the tables.
pub fn properties() -> impl Iterator<Item = &'static Property> + Clone {
    GROUPS.iter().flat_map(|group| group.iter())
}

/// The property of that id.
pub fn property(id: &str) -> Option<&'static Property> {
    properties().find(|p| p.id == id)
}
