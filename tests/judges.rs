//! What the judges say of histories made by hand: above all what they must not say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use queueproof::{
    conformance::{judge, property},
    history::{
        End, Halt, Header, History, How, Op, Publish, Published, Receive, SCHEMA, Settle,
        SettleOutcome, Subscription, Topic, What,
    },
    message::{Identity, Seen},
    plan::Suite,
    results::{PropertyResult, Verdict},
};
use queueproof_backends::{
    Connector,
    memory::{MemoryConnector, MemorySettings},
};

/// A millisecond of a history.
const MS: u64 = 1_000_000;

/// A history of one topic, one subscription with an ack timeout of a second, two consumers.
struct Story(Vec<Op>);

impl Story {
    fn new() -> Self {
        let mut story = Story(Vec::new());
        story.tell(0, What::Connect { link: false });
        let topic =
            Topic { topic: 0, name: "t".into(), dedup_window: Some(2000 * MS), max_messages: None };
        story.tell(0, What::Topic(topic));
        story.tell(0, What::Publisher { publisher: 0, topic: 0, name: Some("n".into()) });
        let subscription = Subscription {
            subscription: 0,
            topic: 0,
            earliest: true,
            ack_timeout: 1000 * MS,
            dead_letter: None,
        };
        story.tell(0, What::Subscription(subscription));
        for consumer in 0..2 {
            story.tell(0, What::Consumer { consumer, subscription: 0, prefetch: 1 });
        }
        story
    }

    fn tell(&mut self, at: u64, what: What) {
        self.0.push(Op { at: (at * MS, at * MS), by: 1, what });
    }

    fn publish(self, at: u64, number: u32, key: Option<u32>, outcome: Published) -> Self {
        self.publish_as(at, number, outcome, |publish| publish.key = key)
    }

    /// A publish with a number under the publisher's name.
    fn numbered(self, at: u64, number: u32, outcome: Published) -> Self {
        self.publish_as(at, number, outcome, |publish| publish.sequence = Some(number.into()))
    }

    fn publish_as(
        mut self,
        at: u64,
        number: u32,
        outcome: Published,
        change: impl FnOnce(&mut Publish),
    ) -> Self {
        let mut publish = Publish {
            publisher: 0,
            number,
            copy: number as u16,
            topic: 0,
            key: None,
            sequence: None,
            delay: None,
            route: None,
            len: 100,
            body: number,
            extra: 0,
            illegal: false,
            outcome,
        };
        change(&mut publish);
        self.tell(at, What::Publish(Box::new(publish)));
        self
    }

    fn stored(self, at: u64, number: u32) -> Self {
        let outcome =
            Published::Confirmed { duplicate: Some(false), position: Some(number.into()) };
        self.publish(at, number, None, outcome)
    }

    fn receive(mut self, at: u64, number: u32, consumer: u16, attempt: u32) -> Self {
        let received = self.0.iter().filter(|op| matches!(op.what, What::Receive(_))).count();
        let identity = Identity { topic: 0, publisher: 0, number, copy: number as u16 };
        let receive = Receive {
            subscription: 0,
            consumer,
            delivery: received as u32,
            seen: Seen::Known(identity),
            attempt: Some(attempt),
            position: Some(number.into()),
            len: 100,
            body: number,
            extra: 0,
        };
        self.tell(at, What::Receive(Box::new(receive)));
        self
    }

    fn settle(mut self, at: u64, delivery: u32, how: How, outcome: SettleOutcome) -> Self {
        self.tell(at, What::Settle(Box::new(Settle { delivery, how, outcome })));
        self
    }

    fn ack(self, at: u64, delivery: u32) -> Self {
        self.settle(at, delivery, How::Ack, SettleOutcome::Confirmed)
    }

    fn drained(mut self, at: u64) -> Self {
        self.tell(at, What::Drained { subscription: 0 });
        self
    }

    fn mark(mut self, at: u64, name: &str, value: i64) -> Self {
        self.tell(at, What::Mark { name: name.into(), value });
        self
    }

    /// What the judges say of it.
    fn judged(self, halt: Option<Halt>) -> PropertyResult {
        self.judged_as("work-queue/once-each", halt)
    }

    /// What the judges say of it as a history of this property.
    fn judged_as(self, id: &str, halt: Option<Halt>) -> PropertyResult {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let connector = MemoryConnector::new(MemorySettings::default());
        let connection = runtime.block_on(connector.connect(None)).unwrap();
        let at = self.0.last().map_or(0, |op| op.at.1);
        let history = History {
            header: Header {
                schema: SCHEMA.into(),
                target: "story".into(),
                property: id.into(),
                seed: 0,
                suite: Suite { tolerance: Duration::from_millis(500), ..Suite::quick() },
                capabilities: connection.capabilities(),
                virtual_time: false,
                flaw: None,
            },
            ops: self.0,
            end: Some(End { at, halt }),
        };
        judge(property(id).unwrap(), &history).unwrap()
    }

    fn kinds(self) -> Vec<String> {
        kinds(&self.judged(None))
    }
}

fn kinds(result: &PropertyResult) -> Vec<String> {
    result.anomalies.iter().map(|a| a.kind.clone()).collect()
}

#[test]
fn an_uneventful_history_passes() {
    let story = Story::new().stored(1, 1).receive(2, 1, 0, 1).ack(3, 0).drained(2000);
    assert_eq!(story.judged(None).verdict, Verdict::Pass);
}

#[test]
fn what_never_came_is_lost_only_after_a_drain() {
    let story = || Story::new().stored(1, 1).stored(1, 2).receive(2, 1, 0, 1).ack(3, 0);
    assert_eq!(story().drained(2000).kinds(), ["lost"]);
    assert!(story().kinds().is_empty());
}

#[test]
fn a_publish_without_a_confirmation_is_neither_lost_nor_a_duplicate() {
    let unknown = || Published::Indeterminate("no answer".into());
    let absent =
        Story::new().stored(1, 1).publish(1, 2, Some(1), unknown()).receive(2, 1, 0, 1).ack(3, 0);
    let result = absent.drained(2000).judged(None);
    assert_eq!((result.verdict, result.anomalies.len()), (Verdict::Unknown, 0));
    // It was stored late, after the window of the other copy.
    let late = Story::new()
        .publish(1, 1, Some(1), Published::Confirmed { duplicate: Some(false), position: Some(1) })
        .publish(2, 2, Some(1), unknown())
        .receive(3, 1, 0, 1)
        .ack(4, 0)
        .receive(2100, 2, 0, 1)
        .ack(2101, 1)
        .drained(4000);
    assert!(late.kinds().is_empty());
}

#[test]
fn two_copies_of_a_key_within_the_window_are_stored_twice() {
    let stored =
        |position| Published::Confirmed { duplicate: Some(false), position: Some(position) };
    let story = Story::new()
        .publish(1, 1, Some(7), stored(1))
        .publish(2, 2, Some(7), stored(2))
        .receive(3, 1, 0, 1)
        .receive(3, 2, 0, 1)
        .ack(4, 0)
        .ack(4, 1)
        .drained(2000);
    assert_eq!(story.kinds(), ["duplicate-stored"]);
}

#[test]
fn a_redelivery_after_the_ack_timeout_has_a_cause_and_one_before_has_none() {
    let story = |again| {
        Story::new()
            .stored(1, 1)
            .receive(2, 1, 0, 1)
            .receive(again, 1, 1, 2)
            .ack(again + 1, 1)
            .drained(4000)
    };
    assert!(story(1002).kinds().is_empty());
    assert_eq!(story(900).kinds(), ["early-redelivery"]);
}

#[test]
fn an_ack_that_came_when_the_lock_may_have_passed_allows_a_redelivery() {
    let story = |ack| {
        Story::new()
            .stored(1, 1)
            .receive(2, 1, 0, 1)
            .ack(ack, 0)
            .receive(1500, 1, 1, 2)
            .ack(1501, 1)
            .drained(4000)
    };
    assert_eq!(story(900).kinds(), ["redelivered-after-ack"]);
    assert!(story(1100).kinds().is_empty());
}

#[test]
fn a_delivery_that_waited_in_a_prefetch_is_put_in_its_place_by_its_attempt() {
    // Consumer 0 is handed its copy only after consumer 1 got the message by the ack timeout.
    let story = Story::new()
        .stored(1, 1)
        .receive(1050, 1, 1, 2)
        .ack(1051, 0)
        .receive(1060, 1, 0, 1)
        .drained(4000);
    assert!(story.kinds().is_empty());
}

#[test]
fn a_stale_nack_that_the_broker_takes_explains_a_redelivery() {
    let story = Story::new()
        .stored(1, 1)
        .receive(2, 1, 0, 1)
        .receive(1010, 1, 1, 2)
        .settle(1020, 0, How::Nack(0), SettleOutcome::Confirmed)
        .receive(1021, 1, 0, 3)
        .ack(1022, 2)
        .drained(4000);
    assert!(story.kinds().is_empty());
}

#[test]
fn a_lost_connection_makes_everything_broken_but_what_it_does_not_explain() {
    let gone = || Some(Halt::Broken("the broker is gone".into()));
    let lost = Story::new().stored(1, 1).drained(2000).judged(gone());
    assert_eq!(lost.verdict, Verdict::Broken);
    let mut phantom = Story::new().stored(1, 1).receive(2, 9, 0, 1);
    phantom.tell(3, What::Close { disconnects: 1 });
    assert_eq!(phantom.judged(None).verdict, Verdict::Fail);
    let mut disturbed = Story::new().stored(1, 1).receive(2, 1, 0, 1).ack(3, 0).drained(2000);
    disturbed.tell(2001, What::Close { disconnects: 1 });
    assert_eq!(disturbed.judged(None).verdict, Verdict::Broken);
}

#[test]
fn a_check_of_nothing_is_no_pass() {
    assert_eq!(Story::new().drained(2000).judged(None).verdict, Verdict::Unknown);
}

fn stored(position: u64) -> Published {
    Published::Confirmed { duplicate: Some(false), position: Some(position) }
}

fn dropped() -> Published {
    Published::Confirmed { duplicate: Some(true), position: None }
}

#[test]
fn a_number_below_one_that_was_stored_before_must_not_be_stored() {
    let story = |higher| {
        Story::new()
            .numbered(1, 5, higher)
            .numbered(2, 3, stored(3))
            .receive(3, 5, 0, 1)
            .receive(3, 3, 0, 1)
            .ack(4, 0)
            .ack(4, 1)
            .drained(2000)
    };
    assert_eq!(story(stored(5)).kinds(), ["sequence-regressed"]);
    // Nobody knows when the higher one was stored.
    assert!(story(Published::Indeterminate("no answer".into())).kinds().is_empty());
}

#[test]
fn a_number_is_rightly_dropped_when_a_higher_one_of_its_name_may_be_stored() {
    let story = |outcome| {
        Story::new().numbered(1, 5, outcome).numbered(2, 3, dropped()).numbered(3, 6, stored(6))
    };
    let came = |story: Story| story.receive(4, 6, 0, 1).ack(5, 0);
    assert!(came(story(Published::Indeterminate("no answer".into()))).kinds().is_empty());
    let refused = Published::NotSent("the connection is down".into());
    assert_eq!(came(story(refused)).kinds(), ["false-duplicate"]);
}

#[test]
fn a_number_that_is_confirmed_and_neither_comes_nor_is_told_to_be_dropped_is_unreported_or_lost() {
    let story = |number| {
        Story::new()
            .numbered(1, 5, stored(5))
            .numbered(2, number, stored(7))
            .receive(3, 5, 0, 1)
            .ack(4, 0)
            .drained(2000)
    };
    assert_eq!(story(3).kinds(), ["unreported-duplicate"]);
    assert_eq!(story(7).kinds(), ["lost"]);
}

#[test]
fn a_delayed_message_is_early_only_before_its_delay_has_passed_since_the_publish() {
    let story = |came| {
        Story::new()
            .publish_as(10, 1, stored(1), |publish| publish.delay = Some(500 * MS))
            .receive(came, 1, 0, 1)
            .ack(came + 1, 0)
            .drained(2000)
    };
    assert_eq!(story(400).kinds(), ["early-delivery"]);
    assert!(story(511).kinds().is_empty());
}

#[test]
fn a_delayed_message_is_lost_only_when_the_drain_outlasted_its_delay() {
    let story = |drained| {
        Story::new()
            .publish_as(10, 1, stored(1), |publish| publish.delay = Some(2000 * MS))
            .stored(11, 2)
            .receive(12, 2, 0, 1)
            .ack(13, 0)
            .drained(drained)
            .judged(None)
    };
    let too_soon = story(2400);
    assert_eq!((too_soon.verdict, too_soon.anomalies.len()), (Verdict::Unknown, 0));
    assert_eq!(kinds(&story(2600)), ["lost"]);
}

/// A message of a key, the same for all.
fn of_a_key(story: Story, at: u64, number: u32) -> Story {
    story.publish_as(at, number, stored(number.into()), |publish| publish.route = Some(1))
}

#[test]
fn a_key_is_shared_only_while_an_earlier_message_of_it_is_held_for_certain() {
    let story = |second| {
        let story = (1..=3).fold(Story::new(), |story, n| of_a_key(story, 1, n));
        let story = story.receive(10, 1, 0, 1).receive(10, 2, 0, 1).ack(20, 1).ack(40, 0);
        let story = story.receive(second, 3, 1, 1).ack(second + 1, 2);
        story.drained(4000).judged_as("work-queue/key-order", None)
    };
    // The second was let go of, and the first was not.
    assert_eq!(kinds(&story(30)), ["key-shared"]);
    let passes = story(50);
    assert_eq!((passes.verdict, passes.anomalies.len()), (Verdict::Pass, 0), "{passes:#?}");
}

#[test]
fn a_lock_that_may_have_passed_in_a_prefetch_shares_no_key() {
    // Locked for a second from its publish at the earliest; its consumer asked much later.
    let story = (1..=3).fold(Story::new(), |story, n| of_a_key(story, 1, n));
    let story = story.receive(900, 1, 0, 1).receive(1010, 2, 1, 1).receive(1011, 3, 1, 1);
    let story = story.ack(1100, 0).ack(1100, 1).ack(1100, 2).drained(4000);
    assert!(!kinds(&story.judged_as("work-queue/key-order", None)).contains(&"key-shared".into()));
}

#[test]
fn a_key_is_out_of_order_only_where_no_lock_can_have_passed() {
    let story = |late| {
        let story = (1..=3).fold(Story::new(), |story, n| of_a_key(story, 1, n));
        let story = story.receive(10, 2, 0, 1).ack(20, 0).receive(late, 1, 1, 1).ack(late + 1, 1);
        let story = story.receive(late + 2, 3, 0, 1).ack(late + 3, 2);
        story.drained(4000).judged_as("work-queue/key-order", None)
    };
    assert_eq!(kinds(&story(900)), ["reordered"]);
    let lapsed = story(1010);
    assert_eq!((lapsed.verdict, lapsed.anomalies.len()), (Verdict::Unknown, 0), "{lapsed:#?}");
}

#[test]
fn keys_that_were_never_held_while_more_of_them_was_there_prove_no_order() {
    let mut story = Story::new();
    for n in 1..=6_u32 {
        let at = u64::from(n) * 10;
        story = of_a_key(story, at, n).receive(at + 1, n, (n % 2) as u16, 1).ack(at + 2, n - 1);
    }
    let result = story.drained(4000).judged_as("work-queue/key-order", None);
    assert_eq!((result.verdict, result.anomalies.len()), (Verdict::Unknown, 0), "{result:#?}");
}

#[test]
fn a_newcomer_starves_only_beside_enough_messages() {
    let story = |messages: u32| {
        let mut story = Story::new().mark(0, "newcomer", 1);
        for n in 1..=messages {
            story = story.stored(n.into(), n).receive(n.into(), n, 0, 1).ack(n.into(), n - 1);
        }
        story.drained(4000).judged_as("work-queue/join", None)
    };
    assert_eq!(kinds(&story(30)), ["starved"]);
    let few = story(5);
    assert_eq!((few.verdict, few.anomalies.len()), (Verdict::Unknown, 0));
}

#[test]
fn numbers_of_which_nothing_is_known_prove_no_deduplication() {
    let unknown = || Published::Indeterminate("no answer".into());
    let story = Story::new()
        .numbered(1, 1, unknown())
        .numbered(2, 2, unknown())
        .receive(3, 1, 0, 1)
        .receive(3, 2, 0, 1)
        .ack(4, 0)
        .ack(4, 1);
    for id in ["dedup/sequence-repeat", "dedup/sequence-gap", "dedup/sequence-regression"] {
        let result = Story(story.0.clone()).drained(4000).judged_as(id, None);
        assert_eq!((result.verdict, result.anomalies.len()), (Verdict::Unknown, 0), "{id}");
    }
}

#[test]
fn numbers_that_all_were_stored_once_prove_no_deduplication() {
    let story = Story::new()
        .numbered(1, 1, stored(1))
        .numbered(2, 2, stored(2))
        .receive(3, 1, 0, 1)
        .receive(3, 2, 0, 1)
        .ack(4, 0)
        .ack(4, 1)
        .drained(4000);
    assert_eq!(story.judged_as("dedup/sequence-repeat", None).verdict, Verdict::Unknown);
}

#[test]
fn what_nobody_asked_for_proves_nothing() {
    for id in [
        "dedup/taken-name",
        "pubsub/exclusive-publisher",
        "pubsub/names",
        "pubsub/delayed",
        "work-queue/backlog",
    ] {
        let result = Story::new().drained(4000).judged_as(id, None);
        assert_eq!((result.verdict, result.anomalies.len()), (Verdict::Unknown, 0), "{id}");
    }
}

#[test]
fn acknowledgements_that_may_all_have_come_too_late_prove_nothing() {
    let mut story = Story::new().stored(1, 1).receive(1500, 1, 0, 1).ack(1501, 0).drained(4000);
    story.tell(1600, What::Cut);
    let result = story.judged_as("redelivery/never-after-ack", None);
    assert_eq!((result.verdict, result.anomalies.len()), (Verdict::Unknown, 0));
}

/// A message that comes again after a cut, where a publish was confirmed after `took`.
fn after_a_cut(took: u64, opened: u64, again: u64) -> PropertyResult {
    let mut story = Story::new().stored(1, 1).receive(2, 1, 0, 1);
    story.tell(10, What::Cut);
    // On a connection of its own.
    story.0.push(Op { at: (10 * MS, 10 * MS), by: 1, what: What::Connect { link: false } });
    let consumer = What::Consumer { consumer: 2, subscription: 0, prefetch: 1 };
    story.0.push(Op { at: (11 * MS, opened * MS), by: 2, what: consumer });
    story = story.receive(again, 1, 2, 2).ack(again + 1, 1);
    story = story.stored(again + 2, 2);
    if let Some(op) = story.0.last_mut() {
        (op.by, op.at.1) = (2, op.at.0 + took * MS);
    }
    story = story.receive(again + 1000, 2, 2, 1).ack(again + 1001, 2);
    story.drained(9000).judged_as("redelivery/disconnect", None)
}

#[test]
fn what_had_nobody_to_come_to_is_not_late_after_a_cut() {
    // The embedded broker declares that what a cut consumer held comes back at once.
    assert_eq!(kinds(&after_a_cut(1, 20, 2000)), ["late-redelivery"]);
    assert_eq!(after_a_cut(1, 1900, 2000).verdict, Verdict::Pass);
}

#[test]
fn what_comes_late_by_no_more_than_the_broker_takes_to_answer_decides_nothing() {
    let slow = after_a_cut(300, 20, 700);
    assert_eq!((slow.verdict, slow.anomalies.len()), (Verdict::Unknown, 0));
    assert_eq!(kinds(&after_a_cut(100, 20, 700)), ["late-redelivery"]);
}
