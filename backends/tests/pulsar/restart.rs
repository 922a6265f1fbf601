//! What a broker knows after it was killed, on a broker of its own.

use queueproof_backends::{DedupKey, Settlement, settle_all};

use super::*;

pub fn add(cases: &mut Cases<'_>) {
    cases.add("a killed broker keeps numbers and messages, and is found again", killed);
    cases.add("a broker told to be strict delivers a delayed message no earlier", delayed);
}

fn numbered(number: u64) -> Message {
    Message { dedup: Some(DedupKey::Sequence(number)), ..Message::new(number.to_string()) }
}

async fn killed(shared: Arc<Broker>) {
    let mut broker = shared.another(Vec::new());
    let connection = connect(&broker).await;
    let topic = work_queue(&connection).await;
    let mut publisher = connection.publisher(&topic, named("n")).await.unwrap();
    let mut consumer = consumer(&connection, &topic, 4).await;
    for number in 0..10 {
        publish(&mut publisher, numbered(number)).await.unwrap();
    }
    let taken = take(&mut consumer, 4).await;
    let answers = settle_all(&taken, Settlement::Ack).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let counted = work_queue(&connection).await;
    publish(&mut plain(&connection, &counted).await, Message::new("x")).await.unwrap();
    let mut returner = super::consumer(&connection, &counted, 1).await;
    for attempt in 1..4 {
        let came = take(&mut returner, 1).await;
        assert_eq!(attempts(&came), [attempt]);
        came[0].nack(None).await.unwrap();
    }
    broker.kill_and_restart();
    assert_eq!(connection.disconnects(), 0, "nobody looked yet");
    // The same objects go on.
    let began = Instant::now();
    let repeated = loop {
        match publish(&mut publisher, numbered(9)).await {
            Ok(receipt) => break receipt,
            Err(_) => assert!(began.elapsed() < SOON * 2, "it does not publish again"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(repeated.duplicate, Some(true));
    assert_eq!(publish(&mut publisher, numbered(10)).await.unwrap().duplicate, Some(false));
    // It writes acknowledgements down at most once a second: what it confirmed just before it was
    // killed may come again (and did, measured; what was 3 s old did not).
    let mut came = Vec::new();
    while !came.iter().any(|body| body == "10") {
        let rest = take(&mut consumer, 1).await;
        settle_all(&rest, Settlement::Ack).await;
        came.append(&mut bodies(&rest));
    }
    nothing(&mut consumer).await;
    assert!(came.ends_with(&(4..11).map(|n| n.to_string()).collect::<Vec<_>>()), "{came:?}");
    assert_eq!(connection.disconnects(), 1);
    assert_eq!(attempts(&take(&mut returner, 1).await), [1], "counts are kept in memory");
    // And others find the same.
    let mut other = connect(&broker).await.publisher(&topic, named("m")).await.unwrap();
    publish(&mut other, Message::new("x")).await.unwrap();
}

async fn delayed(shared: Arc<Broker>) {
    let lines = ["isDelayedDeliveryDeliverAtTimeStrict=true", "delayedDeliveryTickTimeMillis=100"];
    let broker = shared.another(lines.map(String::from).to_vec());
    let connection = connect(&broker).await;
    let limits = connection.capabilities().limits;
    assert_eq!(limits.publish_delay_resolution, Duration::from_millis(100));
    let topic = work_queue(&connection).await;
    let mut publisher = plain(&connection, &topic).await;
    let mut consumer = consumer(&connection, &topic, 16).await;
    for millis in [50, 300, 800, 1500, 0] {
        let delay = Duration::from_millis(millis);
        let message = Message { delay: Some(delay), ..Message::new(millis.to_string()) };
        let began = Instant::now();
        publish(&mut publisher, message).await.unwrap();
        let came = take(&mut consumer, 1).await;
        let after = began.elapsed();
        // The clocks of the two programs differ by what they round.
        assert!(after + Duration::from_millis(1) >= delay, "{delay:?}: after {after:?}");
        came[0].ack().await.unwrap();
    }
}
