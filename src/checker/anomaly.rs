//! What a breach is called.

use std::fmt;

/// Makes the enum, its list, names and docs from one table.
macro_rules! anomalies {
    ($($variant:ident $name:literal $stands:literal $doc:literal,)*) => {
        /// What a breach is called.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum AnomalyKind {
            $(#[doc = $doc] $variant,)*
        }

        impl AnomalyKind {
            /// All of them, in the order of the tables.
            pub const ALL: &'static [AnomalyKind] = &[$(AnomalyKind::$variant,)*];

            /// Its name in tables and JSON.
            pub fn name(self) -> &'static str {
                match self { $(AnomalyKind::$variant => $name,)* }
            }

            /// What it means, in one sentence.
            pub fn doc(self) -> &'static str {
                match self { $(AnomalyKind::$variant => $doc,)* }
            }

            /// Whether it counts even when the environment failed during the run: no lost
            /// connection and no dead broker explains a payload that was changed.
            pub fn stands_when_disturbed(self) -> bool {
                match self { $(AnomalyKind::$variant => $stands,)* }
            }
        }
    };
}

anomalies! {
    Corrupt "corrupt" true "A message was delivered with another payload, key or headers than it was published with.",
    Phantom "phantom" true "A message was delivered that was never published there.",
    RejectedDelivered "rejected-delivered" true "A message was delivered although its publish had been refused, or had not been sent.",
    ReceiptContradicted "receipt-contradicted" true "A receipt says something that deliveries or other receipts refute.",
    Lost "lost" false "A message that was stored for certain was never delivered.",
    DuplicateDelivery "duplicate-delivery" false "A message was delivered again while an earlier delivery of it was held, without a cause.",
    RedeliveredAfterAck "redelivered-after-ack" false "A message was delivered again after it had been acknowledged in time.",
    EarlyRedelivery "early-redelivery" false "A message returned before its delay or its ack timeout had passed.",
    LateRedelivery "late-redelivery" false "A message returned later than its delay or its ack timeout, and the tolerance, allow.",
    NotRedelivered "not-redelivered" false "A message that was not acknowledged did not return.",
    WrongAttempt "wrong-attempt" false "The count of deliveries is not the number of deliveries made.",
    FalseLeaseLost "false-lease-lost" false "A settlement was refused as too late while the lock lasted.",
    Refused "refused" false "A message that the backend declares to take was refused.",
    DuplicateStored "duplicate-stored" false "Two messages of one deduplication key were stored within the window.",
    FalseDuplicate "false-duplicate" false "A message was dropped as a duplicate that repeats nothing.",
    SequenceRegressed "sequence-regressed" false "A message was stored whose number is below one that was stored before it under its name.",
    NameTakenTwice "name-taken-twice" true "Two publishers were let in under one name at the same time.",
    TwoExclusive "two-exclusive" true "A publisher was let in while another one had the topic for itself.",
    NoHandOver "no-hand-over" false "A publisher that waited for exclusive access was not let in when its turn came.",
    UnreportedDuplicate "unreported-duplicate" false "A duplicate was dropped, and its receipt says that it was stored.",
    BeforeStart "before-start" false "A subscription that begins with the next message was given an older one.",
    Reordered "reordered" false "One publisher's messages reached the only consumer in another order.",
    KeyShared "key-shared" false "Two consumers held messages of one key at the same time.",
    EarlyDelivery "early-delivery" false "A delayed message was delivered before its delay had passed.",
    LateDelivery "late-delivery" false "A delayed message was delivered later than its delay and the tolerance allow.",
    Starved "starved" false "A consumer that was waiting was given nothing, or far less than its share.",
    Blocked "blocked" false "Messages were held back though a consumer was waiting for them.",
    NotDeleted "not-deleted" false "The broker still counts messages that all were acknowledged.",
    StuckToOne "stuck-to-one" false "A message that was handed back only ever returned to the consumer that had handed it back.",
    Unbounded "unbounded-redelivery" false "A message was delivered more often than its limit.",
    EarlyDeadLetter "early-dead-letter" false "A message was moved to the dead-letter topic before it had used up its deliveries.",
    NotDeadLettered "not-dead-lettered" false "A message that had used up its deliveries is not in the dead-letter topic.",
    TooLargeTaken "too-large-taken" true "A message over the declared limit was not refused.",
    ConnectionLost "connection-lost" true "A refusal took the connection down with it.",
    IllegalNameTaken "illegal-name-taken" true "A topic's name that no broker takes was not refused.",
    OverLimit "over-limit" false "A topic took more messages than its limit.",
    TickMissed "tick-missed" false "A tick was due, and nobody scheduled it.",
    TickLost "tick-lost" false "A tick was scheduled for certain, and nobody executed it.",
    ScheduledTwice "scheduled-twice" false "A tick was scheduled more than once.",
    DeliveredTwice "delivered-twice" false "A request was delivered again without a cause.",
    ExecutedTwice "executed-twice" false "An agent executed one delivery more than once.",
    EarlyTick "early-tick" false "A tick was scheduled before it was due.",
    LateTick "late-tick" false "A tick reached its agent later than tolerated.",
    ExecutedExpired "executed-expired" false "A request was executed although its time had passed.",
    DroppedFresh "dropped-fresh" false "A request was dropped as expired before its time had passed.",
    MissedBroadcast "missed-broadcast" false "An agent that was there was not given a broadcast.",
}

impl fmt::Display for AnomalyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
