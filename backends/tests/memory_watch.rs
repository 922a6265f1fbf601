//! Who waits at the embedded broker is woken when something is due for it, and only then.
//!
//! All under paused time: what is late by a millisecond is seen, and a lost watch is a late message.
#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use proptest::prelude::*;
use queueproof_backends::{
    Connector, Consumer, ConsumerOptions, Delivery, Direction, Link, Message, Publisher,
    PublisherOptions, QueueBackend, Retention, Settlement, Start, SubscriptionSpec, TopicSpec,
    memory::{MemoryConnector, MemorySettings},
};
use tokio::{
    task::{JoinSet, LocalSet},
    time::{Instant, sleep, timeout},
};

const ACK_TIMEOUT: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);

/// A broker with a work queue `t/s`.
struct Scene {
    connector: MemoryConnector,
    connection: Arc<dyn QueueBackend>,
}

impl Scene {
    async fn new() -> Self {
        let connector = MemoryConnector::new(MemorySettings::default());
        let connection = connector.connect(None).await.unwrap();
        let topic = TopicSpec {
            name: "t".into(),
            retention: Retention::UntilAcked,
            dedup_window: None,
            max_messages: None,
        };
        connection.create_topic(&topic).await.unwrap();
        let subscription = SubscriptionSpec {
            topic: "t".into(),
            name: "s".into(),
            start: Start::Earliest,
            ack_timeout: ACK_TIMEOUT,
            dead_letter: None,
            ordered_by_key: false,
        };
        connection.create_subscription(&subscription).await.unwrap();
        Scene { connector, connection }
    }

    async fn consumer(&self, link: Option<&Arc<dyn Link>>) -> Box<dyn Consumer> {
        self.connect(link).await.unwrap()
    }

    /// A consumer, unless its link is cut.
    async fn connect(&self, link: Option<&Arc<dyn Link>>) -> Option<Box<dyn Consumer>> {
        let connection = match link {
            Some(link) => self.connector.connect(Some(Arc::clone(link))).await.ok()?,
            None => Arc::clone(&self.connection),
        };
        let options = ConsumerOptions { prefetch: 1, confirm_acks: true };
        Some(connection.consumer("t", "s", options).await.unwrap())
    }

    async fn publisher(&self) -> Box<dyn Publisher> {
        self.connection.publisher("t", PublisherOptions::default()).await.unwrap()
    }
}

async fn publish(publisher: &mut dyn Publisher, number: usize, delay: Option<Duration>) {
    let message = Message { delay, ..Message::new(number.to_string()) };
    publisher.publish(message).await.unwrap().await.unwrap();
}

async fn one(consumer: &mut dyn Consumer, linger: Duration) -> Option<Delivery> {
    consumer.receive(1, linger).await.unwrap().pop()
}

fn run<T>(scene: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, scene)
}

/// Counts how often a future is polled.
struct Counted<'a, F> {
    future: Pin<Box<F>>,
    polls: &'a Cell<u64>,
}

impl<F: Future> Future for Counted<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.set(self.polls.get() + 1);
        self.future.as_mut().poll(context)
    }
}

#[test]
fn of_many_who_wait_only_those_are_woken_whom_it_concerns() {
    const CONSUMERS: u64 = 500;
    const MESSAGES: u64 = 2000;
    run(async {
        let scene = Scene::new().await;
        let (polls, receives) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for _ in 0..CONSUMERS {
            let mut consumer = scene.consumer(None).await;
            let (polls, receives) = (Rc::clone(&polls), Rc::clone(&receives));
            tokio::task::spawn_local(async move {
                loop {
                    let future = Box::pin(one(&mut *consumer, 10 * HOUR));
                    let delivery = Counted { future, polls: &polls }.await.unwrap();
                    receives.set(receives.get() + 1);
                    sleep(Duration::from_millis(100)).await;
                    // Every tenth is handed on for later, and another is kept till its lock passes.
                    let attempt = delivery.attempt.unwrap();
                    let number = delivery.position.unwrap();
                    match (attempt, number % 10) {
                        (1, 0) => {
                            let delay = Some(Duration::from_secs(5));
                            delivery.settle(Settlement::Nack { delay }).await.map(drop).unwrap();
                        }
                        (1, 5) => drop(delivery),
                        _ => delivery.ack().await.map(drop).unwrap(),
                    }
                }
            });
        }
        let mut publisher = scene.publisher().await;
        for number in 0..MESSAGES as usize {
            sleep(Duration::from_millis(60)).await;
            publish(&mut *publisher, number, None).await;
        }
        sleep(2 * ACK_TIMEOUT).await;
        let depth = scene.connection.depth("t", "s").await.unwrap();
        assert_eq!((depth.waiting, depth.unsettled), (0, 0));
        // A fifth of them came twice.
        assert_eq!(receives.get(), MESSAGES + MESSAGES / 5);
        // To begin to wait and to receive is a poll each; what is left is the timekeepers'.
        let needed = CONSUMERS + 2 * receives.get();
        let more = polls.get() - needed;
        assert!(more < receives.get(), "{needed} polls needed, and {more} more");
    });
}

#[test]
fn one_that_waits_already_is_woken_for_what_is_delayed_later() {
    run(async {
        let scene = Scene::new().await;
        let (mut consumer, mut publisher) = (scene.consumer(None).await, scene.publisher().await);
        let mut waiter = pin!(one(&mut *consumer, HOUR));
        assert!(timeout(Duration::from_secs(1), &mut waiter).await.is_err());
        publish(&mut *publisher, 0, Some(Duration::from_secs(5))).await;
        let began = Instant::now();
        assert!(waiter.await.is_some());
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    });
}

#[test]
fn one_that_waits_already_is_woken_when_a_lock_passes_that_is_made_later() {
    run(async {
        let scene = Scene::new().await;
        // It is the first one's turn.
        let (mut first, mut second) = (scene.consumer(None).await, scene.consumer(None).await);
        let mut waiter = pin!(one(&mut *second, HOUR));
        assert!(timeout(Duration::from_secs(1), &mut waiter).await.is_err());
        publish(&mut *scene.publisher().await, 0, None).await;
        let began = Instant::now();
        let kept = one(&mut *first, Duration::ZERO).await;
        assert!(kept.is_some());
        assert_eq!(waiter.await.unwrap().attempt, Some(2));
        assert_eq!(began.elapsed(), ACK_TIMEOUT);
    });
}

#[test]
fn a_timekeeper_that_is_not_polled_is_replaced_when_anything_is_done() {
    run(async {
        let scene = Scene::new().await;
        let mut consumers = Vec::new();
        for _ in 0..4 {
            consumers.push(scene.consumer(None).await);
        }
        let mut publisher = scene.publisher().await;
        let mut others = consumers.split_off(1);
        // They wait, the last of them as the timekeeper, and are not polled any more.
        let mut stuck: Vec<_> = others.iter_mut().map(|c| Box::pin(one(&mut **c, HOUR))).collect();
        for future in stuck.iter_mut().rev() {
            assert!(timeout(Duration::ZERO, future).await.is_err());
        }
        let waiter = tokio::task::spawn_local(async move {
            one(&mut *consumers[0], HOUR).await.unwrap();
            Instant::now()
        });
        tokio::task::yield_now().await;
        // Something is due that nobody looks at but by way of what others do, every second.
        let began = Instant::now();
        for number in 0..4 {
            publish(&mut *publisher, number, Some(Duration::from_secs(60))).await;
        }
        for _ in 0..58 {
            sleep(Duration::from_secs(1)).await;
            scene.connection.depth("t", "s").await.unwrap();
        }
        // Three have had the watch in vain; it came round to the one that is awake.
        assert_eq!(waiter.await.unwrap() - began, Duration::from_secs(60));
    });
}

#[test]
fn turns_go_on_where_they_were_when_somebody_leaves() {
    run(async {
        let scene = Scene::new().await;
        let mut consumers = Vec::new();
        for _ in 0..12 {
            consumers.push(scene.consumer(None).await);
        }
        let mut publisher = scene.publisher().await;
        let mut received = [0; 6];
        for number in 0..received.len() {
            publish(&mut *publisher, number, None).await;
            for (count, consumer) in received.iter_mut().zip(&mut consumers) {
                if let Some(delivery) = one(&mut **consumer, Duration::ZERO).await {
                    delivery.ack().await.unwrap();
                    *count += 1;
                }
            }
            // One that has not had its turn.
            consumers.pop();
        }
        assert_eq!(received, [1; 6]);
    });
}

#[test]
fn a_timekeeper_whose_link_is_held_passes_the_watch_on() {
    run(async {
        let scene = Scene::new().await;
        let link = scene.connector.link().await.unwrap();
        let (mut held, mut other) = (scene.consumer(Some(&link)).await, scene.consumer(None).await);
        let held = tokio::task::spawn_local(async move { one(&mut *held, HOUR).await });
        tokio::task::yield_now().await;
        let other = tokio::task::spawn_local(async move { one(&mut *other, HOUR).await });
        tokio::task::yield_now().await;
        link.hold(Direction::ToClient);
        let began = Instant::now();
        // It is locked for the first, whose turn it is and who does not get to know of it.
        publish(&mut *scene.publisher().await, 0, Some(Duration::from_secs(5))).await;
        assert!(other.await.unwrap().is_some());
        assert_eq!(began.elapsed(), Duration::from_secs(5) + ACK_TIMEOUT);
        assert!(!held.is_finished());
    });
}

#[test]
fn the_watch_is_not_lost_when_its_heir_leaves_before_it_has_looked() {
    run(async {
        let scene = Scene::new().await;
        let (mut waiting, mut heir) = (scene.consumer(None).await, scene.consumer(None).await);
        let (mut keeper, mut publisher) = (scene.consumer(None).await, scene.publisher().await);
        let mut keeper = Box::pin(one(&mut *keeper, HOUR));
        assert!(timeout(Duration::ZERO, &mut keeper).await.is_err());
        let mut heir = Box::pin(one(&mut *heir, HOUR));
        assert!(timeout(Duration::ZERO, &mut heir).await.is_err());
        publish(&mut *publisher, 0, Some(Duration::from_secs(60))).await;
        let began = Instant::now();
        let waiter = tokio::task::spawn_local(async move { one(&mut *waiting, HOUR).await });
        sleep(Duration::from_secs(1)).await;
        drop(keeper);
        drop(heir);
        assert!(waiter.await.unwrap().is_some());
        assert_eq!(began.elapsed(), Duration::from_secs(60));
    });
}

/// How a timekeeper ends its watch, never to come back to it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Departure {
    Served,
    TimeIsOver,
    Cancelled,
    Dropped,
    Cut,
    Closed,
}

#[test]
fn when_a_timekeeper_departs_whoever_waits_takes_over() {
    use Departure::*;
    for departure in [Served, TimeIsOver, Cancelled, Dropped, Cut, Closed] {
        run(async {
            let scene = Scene::new().await;
            let link = scene.connector.link().await.unwrap();
            let connection = scene.connector.connect(Some(Arc::clone(&link))).await.unwrap();
            let options = ConsumerOptions { prefetch: 1, confirm_acks: true };
            let mut keeper = connection.consumer("t", "s", options).await.unwrap();
            let mut other = scene.consumer(None).await;
            let mut publisher = scene.publisher().await;
            // The keeper has had its turn: what comes is for the other.
            publish(&mut *publisher, 0, None).await;
            one(&mut *keeper, HOUR).await.unwrap().ack().await.unwrap();
            publish(&mut *publisher, 1, Some(Duration::from_secs(60))).await;
            let began = Instant::now();
            let kept = tokio::task::spawn_local(async move {
                let half = Duration::from_secs(30);
                match departure {
                    TimeIsOver => assert!(one(&mut *keeper, half).await.is_none()),
                    Served => assert!(one(&mut *keeper, HOUR).await.is_some()),
                    // It waits for the link to heal.
                    Cut => assert!(one(&mut *keeper, HOUR).await.is_none()),
                    Closed => assert!(keeper.receive(1, HOUR).await.is_err()),
                    Cancelled | Dropped => {
                        assert!(timeout(half, one(&mut *keeper, HOUR)).await.is_err());
                    }
                }
                (departure != Dropped).then_some(keeper)
            });
            tokio::task::yield_now().await;
            let waiter = tokio::task::spawn_local(async move {
                let served = departure == Served;
                for _ in 0..1 + usize::from(served) {
                    one(&mut *other, HOUR).await.unwrap().ack().await.unwrap();
                }
                Instant::now()
            });
            tokio::task::yield_now().await;
            sleep(Duration::from_secs(30)).await;
            match departure {
                Served => {
                    publish(&mut *publisher, 2, None).await;
                    publish(&mut *publisher, 3, None).await;
                }
                Cut => link.cut(),
                Closed => connection.close().await,
                TimeIsOver | Cancelled | Dropped => {}
            }
            assert_eq!(waiter.await.unwrap() - began, Duration::from_secs(60), "{departure:?}");
            // Idle, and attached unless it was dropped or cut off.
            let _keeper = kept.await.unwrap();
        });
    }
}

/// What a consumer does, in milliseconds.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Waits for so long, then begins anew.
    Linger(u64),
    /// Gives its receive up after so long: the future is dropped.
    Cancel(u64),
    /// Is gone after so long, and another comes in its place.
    Vanish(u64),
}

/// What it does with what it receives.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Ack,
    /// Hands it back for later, milliseconds.
    Nack(u64),
    /// Keeps it until its lock passes.
    Keep,
    /// Is gone with it.
    Crash,
}

#[derive(Debug, Clone)]
struct Play {
    /// For each consumer what it does, again and again, and how long it is idle after each,
    /// milliseconds. The first never is.
    acts: Vec<Vec<(Act, u64)>>,
    /// What becomes of the first deliveries; the others are acknowledged.
    fates: Vec<Fate>,
    /// The pause before each publish and its delay, milliseconds.
    publishes: Vec<(u64, u64)>,
    /// The pause before the link is cut each time, and for how long, milliseconds.
    cuts: Vec<(u64, u64)>,
}

fn play() -> impl Strategy<Value = Play> {
    use prop::collection::vec;
    let act = prop_oneof![
        3 => (500_u64..60_000).prop_map(Act::Linger),
        3 => (500_u64..30_000).prop_map(Act::Cancel),
        2 => (500_u64..30_000).prop_map(Act::Vanish),
    ];
    let fate = prop_oneof![
        2 => Just(Fate::Ack),
        2 => (0_u64..20_000).prop_map(Fate::Nack),
        2 => Just(Fate::Keep),
        2 => Just(Fate::Crash),
    ];
    let pause = prop_oneof![Just(0), 1_u64..40_000];
    let publish = (0_u64..10_000, prop_oneof![Just(0), 1_u64..40_000]);
    let cut = (1_u64..20_000, prop_oneof![Just(0), 1_u64..3000]);
    (vec(vec((act, pause), 1..6), 1..6), vec(fate, 0..40), vec(publish, 1..20), vec(cut, 0..10))
        .prop_map(|(acts, fates, publishes, cuts)| Play { acts, fates, publishes, cuts })
}

/// When each message that is not gone must come, to the millisecond.
#[derive(Default)]
struct Known {
    due: BTreeMap<usize, Due>,
    /// When somebody left: what was locked for it, unseen, became free.
    departures: Vec<Instant>,
    fates: std::vec::IntoIter<Fate>,
}

struct Due {
    at: Instant,
    /// Who keeps it until then.
    kept_by: Option<usize>,
}

impl Known {
    /// A delivery was made to one that has waited since: it must have become free just now. What
    /// is to become of it?
    fn deliver(&mut self, delivery: &Delivery, by: usize, since: Instant) -> Fate {
        let now = Instant::now();
        let number = std::str::from_utf8(&delivery.message.payload).unwrap().parse().unwrap();
        let due = self.due.remove(&number).unwrap();
        assert!(due.at <= now);
        let waited = since < now;
        let became_free = [due.at].into_iter().chain(self.departures.iter().copied());
        let on_time = became_free.filter(|free| (due.at..=now).contains(free)).any(|free| {
            let late = (now - free).as_millis();
            // It may have been locked, unseen, for one that was idle. Each step takes up to a
            // millisecond, which is the timers' resolution.
            let locks = late / ACK_TIMEOUT.as_millis();
            late % ACK_TIMEOUT.as_millis() <= 1 + locks
        });
        // Who was idle gets what was locked for it when it asks.
        assert!(!waited || on_time, "{number}: {:?} late", now - due.at);
        let fate = self.fates.next().unwrap_or(Fate::Ack);
        let again = match fate {
            Fate::Ack => return fate,
            // Since when it was locked is not known.
            Fate::Keep if !waited => return Fate::Ack,
            Fate::Nack(delay) => Due { at: now + Duration::from_millis(delay), kept_by: None },
            Fate::Keep => Due { at: now + ACK_TIMEOUT, kept_by: Some(by) },
            Fate::Crash => Due { at: now, kept_by: None },
        };
        self.due.insert(number, again);
        fate
    }

    /// What somebody keeps returns now.
    fn gone(&mut self, by: impl Fn(usize) -> bool) {
        self.departures.push(Instant::now());
        for due in self.due.values_mut().filter(|due| due.kept_by.is_some_and(&by)) {
            *due = Due { at: due.at.min(Instant::now()), kept_by: None };
        }
    }
}

/// Every other consumer is on the link, not the first: somebody must be there during a cut.
fn is_linked(who: usize) -> bool {
    who % 2 == 1
}

async fn consume(
    who: usize,
    acts: Vec<(Act, u64)>,
    scene: Rc<Scene>,
    link: Arc<dyn Link>,
    known: Rc<RefCell<Known>>,
) {
    let link = is_linked(who).then_some(&link);
    let mut consumer = scene.consumer(link).await;
    for (mut act, mut pause) in acts.into_iter().cycle() {
        // Somebody is always there.
        if who == 0 {
            pause = 0;
            if let Act::Vanish(millis) = act {
                act = Act::Cancel(millis);
            }
        }
        let began = Instant::now();
        let (linger, limit) = match act {
            Act::Linger(millis) => (Duration::from_millis(millis), HOUR),
            Act::Cancel(millis) | Act::Vanish(millis) => (HOUR, Duration::from_millis(millis)),
        };
        let crashed = match timeout(limit, consumer.receive(1, linger)).await {
            Err(_) => matches!(act, Act::Vanish(_)),
            // Its link is cut.
            Ok(Err(_)) => {
                sleep(Duration::from_millis(100)).await;
                false
            }
            Ok(Ok(mut deliveries)) => match deliveries.pop() {
                None => false,
                Some(delivery) => {
                    let fate = known.borrow_mut().deliver(&delivery, who, began);
                    match fate {
                        Fate::Ack => drop(delivery.ack().await.unwrap()),
                        Fate::Nack(delay) => {
                            let delay = Some(Duration::from_millis(delay));
                            delivery.settle(Settlement::Nack { delay }).await.map(drop).unwrap();
                        }
                        Fate::Keep | Fate::Crash => {}
                    }
                    matches!(fate, Fate::Crash)
                }
            },
        };
        if crashed {
            known.borrow_mut().gone(|by| by == who);
            drop(consumer);
            sleep(Duration::from_millis(pause)).await;
            consumer = loop {
                match scene.connect(link).await {
                    Some(consumer) => break consumer,
                    None => sleep(Duration::from_millis(100)).await,
                }
            };
        } else {
            sleep(Duration::from_millis(pause)).await;
        }
    }
}

async fn perform(play: Play) {
    let scene = Rc::new(Scene::new().await);
    let link = scene.connector.link().await.unwrap();
    let fates = play.fates.into_iter();
    let known = Rc::new(RefCell::new(Known { fates, ..Known::default() }));
    let mut tasks = JoinSet::new();
    for (who, acts) in play.acts.into_iter().enumerate() {
        let (scene, link, known) = (Rc::clone(&scene), Arc::clone(&link), Rc::clone(&known));
        tasks.spawn_local(consume(who, acts, scene, link, known));
    }
    tokio::task::yield_now().await;
    let cutting = async {
        for (pause, down) in play.cuts {
            sleep(Duration::from_millis(pause)).await;
            known.borrow_mut().gone(is_linked);
            link.cut();
            if down > 0 {
                sleep(Duration::from_millis(down)).await;
            }
            link.heal();
        }
    };
    let publishing = async {
        let mut publisher = scene.publisher().await;
        for (number, (pause, delay)) in play.publishes.into_iter().enumerate() {
            sleep(Duration::from_millis(pause)).await;
            let delay = (delay > 0).then(|| Duration::from_millis(delay));
            let at = Instant::now() + delay.unwrap_or_default();
            known.borrow_mut().due.insert(number, Due { at, kept_by: None });
            publish(&mut *publisher, number, delay).await;
        }
    };
    tokio::join!(cutting, publishing);
    // The longest way: all is kept, one after the other, each after a lock that nobody saw.
    sleep(100 * ACK_TIMEOUT).await;
    // The consumers go on for ever, unless something was not as it must be.
    if let Some(failed) = tasks.try_join_next() {
        failed.unwrap();
    }
    assert!(known.borrow().due.is_empty());
}

proptest! {
    #[test]
    fn whatever_happens_to_who_watches_the_time_nothing_comes_late(play in play()) {
        run(perform(play));
    }
}
