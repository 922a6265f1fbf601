//! Mistakes that schedulers and agents make, to prove that a property can see them.

/// Makes the enum, its list, names and docs from one table.
macro_rules! flaws {
    ($($variant:ident $name:literal $doc:literal,)*) => {
        /// A deliberate mistake of a scheduler or an agent.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Flaw {
            $(#[doc = $doc] $variant,)*
        }

        impl Flaw {
            /// All of them, in the order of the tables.
            pub const ALL: &'static [Flaw] = &[$(Flaw::$variant,)*];

            /// Its name on the command line and in tables.
            pub fn name(self) -> &'static str {
                match self { $(Flaw::$variant => $name,)* }
            }

            /// What it does, in one sentence.
            pub fn doc(self) -> &'static str {
                match self { $(Flaw::$variant => $doc,)* }
            }
        }
    };
}

flaws! {
    SkipTick "skip-tick" "One tick in some is published by no scheduler.",
    PublishTwice "publish-twice" "Schedulers publish one tick in some a second time, under another key.",
    OwnKeys "own-keys" "Each scheduler uses deduplication keys of its own.",
    Drift "drift" "Schedulers count an interval from their last publish, not from the clock.",
    EarlyTick "early-tick" "Schedulers publish before the tick is due.",
    StopWithFirst "stop-with-first" "When a scheduler dies the others stop too.",
    AckFirst "ack-first" "Agents acknowledge before they execute.",
    AckWithoutExecuting "ack-without-executing" "Agents acknowledge one request in some and do not execute it.",
    ExecuteExpired "execute-expired" "Agents execute requests whose time has passed.",
    DropFresh "drop-fresh" "Agents drop one request in some as expired that is not.",
    ExecuteTwice "execute-twice" "Agents execute one request in some twice.",
    DeafAgent "deaf-agent" "One agent takes no broadcast.",
    IdleAgent "idle-agent" "One agent of the pool takes nothing.",
}
