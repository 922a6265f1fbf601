//! Why the backend does not use the crate tokio-nsq: what it does that cannot be contained.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_nsq::{
    NSQChannel, NSQConsumer, NSQConsumerConfig, NSQConsumerConfigSources, NSQEvent, NSQMessage,
    NSQProducerConfig, NSQTopic,
};

use super::server::{ask, consumers};

const SOON: Duration = Duration::from_secs(20);

/// A consumer of the library on channel `c` of topic `t`.
fn consumer(tcp: SocketAddr) -> NSQConsumer {
    let (topic, channel) = (NSQTopic::new("t").unwrap(), NSQChannel::new("c").unwrap());
    let sources = NSQConsumerConfigSources::Daemons(vec![tcp.to_string()]);
    NSQConsumerConfig::new(topic, channel)
        .set_max_in_flight(5)
        .set_sources(sources)
        .set_rebalance_interval(Duration::from_millis(100))
        .build()
}

/// The next deliveries, by their bodies.
async fn take(consumer: &mut NSQConsumer, count: usize) -> Vec<NSQMessage> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = timeout(SOON, consumer.consume_filtered()).await;
        taken.push(next.expect("a delivery in time").expect("a delivery"));
    }
    taken.sort_by(|a, b| a.body.cmp(&b.body));
    taken
}

/// nsqd answers a late `FIN` with `E_FIN_FAILED FIN <id> failed ID not in flight`, and goes on. The
/// library takes exactly `E_FIN_FAILED` for such an answer and anything longer for the end of the
/// connection: it closes the socket and its consumer ends. Rebuilding that saves nothing: whatever
/// else it held can be settled by nobody, goes to others when its time is up, and is worked on
/// twice. Acknowledgements of it are taken without a word.
///
/// The server at these addresses times deliveries out after a second.
pub async fn one_late_acknowledgement_ends_the_connection(tcp: SocketAddr, http: SocketAddr) {
    ask(http, "POST", "/topic/create?topic=t").await;
    ask(http, "POST", "/channel/create?topic=t&channel=c").await;
    let mut first = consumer(tcp);
    let mut producer = NSQProducerConfig::new(tcp.to_string()).build();
    assert!(matches!(producer.consume().await, Some(NSQEvent::Healthy())));
    for body in ["a", "b", "c"] {
        let topic = NSQTopic::new("t").unwrap();
        producer.publish(&topic, body.into()).await.unwrap();
        assert!(matches!(producer.consume().await, Some(NSQEvent::Ok())));
    }
    let late = take(&mut first, 3).await;
    assert!(late.iter().all(|message| message.attempt == 1));
    // All of them time out, and come again.
    let mut held = take(&mut first, 3).await;
    assert!(held.iter().all(|message| message.attempt == 2));
    // One is acknowledged in time, and once more: the delivery that was timed out.
    let [a, ..] = <[NSQMessage; 3]>::try_from(late).ok().unwrap();
    held.remove(0).finish().await;
    a.finish().await;
    let lost = async {
        while consumers(http, "t").await > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, lost).await.expect("the library closes its connection");
    // The acknowledgements of the others reach nobody.
    for message in held {
        message.finish().await;
    }
    let mut other = consumer(tcp);
    let again = take(&mut other, 2).await;
    let bodies: Vec<_> = again.iter().map(|message| message.body.as_slice()).collect();
    assert_eq!(bodies, [b"b", b"c"]);
    assert!(again.iter().all(|message| message.attempt == 3));
    // And the first consumer is at its end.
    drop(other);
    assert!(timeout(SOON, first.consume_filtered()).await.expect("in time").is_none());
    // Dropping it after its runtime is gone would panic.
    drop((first, again));
}
