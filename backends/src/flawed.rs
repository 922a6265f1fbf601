//! A wrapper that breaks one promise of any backend, to prove that a property can see it.

/// A deliberate breach of one promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// One message in some is confirmed and never stored.
    LoseOneInN,
}

impl Flaw {
    /// All of them, in the order of the tables.
    pub const ALL: &'static [Flaw] = &[Flaw::LoseOneInN];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Flaw::LoseOneInN => "lose-one-in-n",
        }
    }

    /// What it does, in one sentence.
    pub fn doc(self) -> &'static str {
        match self {
            Flaw::LoseOneInN => "One message in some is confirmed and never stored.",
        }
    }
}
