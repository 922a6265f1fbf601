//! Deliberate breaches of one promise, to prove that a property can see it.

use std::fmt;

use queueproof_backends::flawed::Flaw as BackendFlaw;

use crate::scheduler::Flaw as SchedulerFlaw;

/// A deliberate breach: in the broker, or in those who use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// The broker breaks a promise.
    Backend(BackendFlaw),
    /// A scheduler or an agent does.
    Scheduler(SchedulerFlaw),
}

impl Flaw {
    /// All of them, in the order of the tables.
    pub fn all() -> impl Iterator<Item = Flaw> + Clone {
        let backend = BackendFlaw::ALL.iter().copied().map(Flaw::Backend);
        backend.chain(SchedulerFlaw::ALL.iter().copied().map(Flaw::Scheduler))
    }

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Flaw::Backend(flaw) => flaw.name(),
            Flaw::Scheduler(flaw) => flaw.name(),
        }
    }

    /// What it does, in one sentence.
    pub fn doc(self) -> &'static str {
        match self {
            Flaw::Backend(flaw) => flaw.doc(),
            Flaw::Scheduler(flaw) => flaw.doc(),
        }
    }

    /// The broker's, if it is one of those.
    pub fn backend(self) -> Option<BackendFlaw> {
        match self {
            Flaw::Backend(flaw) => Some(flaw),
            Flaw::Scheduler(_) => None,
        }
    }

    /// The scheduler's or agent's, if it is one of those.
    pub fn scheduler(self) -> Option<SchedulerFlaw> {
        match self {
            Flaw::Backend(_) => None,
            Flaw::Scheduler(flaw) => Some(flaw),
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
