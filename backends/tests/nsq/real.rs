//! What only a real nsqd shows: TLS, authorization, and nsqlookupd.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use queueproof_backends::{
    Connector, ConsumerOptions, Direction, ErrorKind, Message, PublishError, PublisherOptions,
    Retention, SettleError, Settlement,
    nsq::{NsqConnector, NsqSettings, Tls},
    settle_all,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    connecting::{refusal, right_and_wrong_secrets},
    place::{
        OPTIONS, Place, SOON, consumer, linked, patient_queue, publish, publisher, subscription,
        take, topic, until, work_queue,
    },
    server::{Server, ask, is_there},
};

/// Makes a certificate for 127.0.0.1 and its key, or says that it cannot.
fn certificate(folder: &Path) -> bool {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("cert.pem"))
        .output();
    let made = made.is_ok_and(|made| made.status.success());
    if !made {
        eprintln!("NOT RUN: TLS: no openssl to make a certificate with");
    }
    made
}

#[tokio::test]
async fn tls_is_used_with_a_trusted_certificate_and_refused_without() {
    let folder = tempfile::tempdir().unwrap();
    if !is_there("TLS") || !certificate(folder.path()) {
        return;
    }
    let file = |name: &str| folder.path().join(name);
    let (cert, key) =
        (file("cert.pem").display().to_string(), file("key.pem").display().to_string());
    let flags = [format!("-tls-cert={cert}"), format!("-tls-key={key}")];
    let flags: Vec<&str> =
        flags.iter().map(String::as_str).chain(["-tls-required=tcp-https"]).collect();
    let place = Place::Real(Server::nsqd(&flags).await.unwrap());
    let trusting = Tls { ca_file: Some(file("cert.pem")), ..Tls::default() };
    let safe = format!("nsqs://{}", place.tcp());
    let settings = NsqSettings { url: safe.clone(), tls: trusting.clone(), ..place.settings() };
    let connector = NsqConnector::new(settings.clone()).unwrap();
    let connection = patient_queue(&connector).await;
    let mut publisher = publisher(&connection).await;
    let mut consumer = consumer(&connection, 100).await;
    let messages = vec![Message::new(vec![7; 10_000]); 300];
    assert!(publisher.publish_batch(messages).await.iter().all(Result::is_ok));
    let mut left = 300;
    while left > 0 {
        let taken = take(&mut consumer, left.min(50)).await;
        left -= taken.len();
        assert!(settle_all(&taken, Settlement::Ack).await.iter().all(Result::is_ok));
    }
    let stats = ask(place.http(), "GET", "/stats?format=json&include_mem=false").await;
    assert!(stats.contains("\"tls\":true") && !stats.contains("\"tls\":false"), "{stats}");
    // Through a link the certificate is still that of the broker's host.
    let (link, linked) = linked(&connector).await;
    let mut late = linked.publisher("t", PublisherOptions::default()).await.unwrap();
    link.cut();
    link.heal();
    until("it is connected again", async || match late.publish(Message::new("x")).await {
        Ok(confirmation) => confirmation.await.is_ok(),
        Err(_) => false,
    })
    .await;
    // With the settings alone nsqd's offer is taken.
    let offered = NsqSettings { tls: trusting, ..place.settings() };
    NsqConnector::new(offered).unwrap().connect(None).await.expect("TLS where it is offered");
    let (kind, words) = refusal(NsqSettings { tls: Tls::default(), ..settings }).await;
    assert_eq!(kind, ErrorKind::WrongServer, "{words}");
    assert!(words.contains("certificate") && words.contains("nsq.tls"), "{words}");
    let (kind, words) = refusal(place.settings()).await;
    assert_eq!(kind, ErrorKind::Unsupported, "{words}");
    assert!(words.contains("nsqs://"), "{words}");
}

/// An authorization server as nsqd asks one: it knows one secret.
async fn authorizer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut question = vec![0; 4096];
                let read = socket.read(&mut question).await.unwrap_or(0);
                let known = String::from_utf8_lossy(&question[..read]).contains("secret=right");
                let all =
                    r#"{"topic":".*","channels":[".*"],"permissions":["subscribe","publish"]}"#;
                let body = format!(
                    r#"{{"ttl":3600,"identity":"x","authorizations":[{}]}}"#,
                    if known { all } else { "" }
                );
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_wrong_secret_is_told_and_not_repeated_and_the_right_one_is_used() {
    if !is_there("authorization") {
        return;
    }
    let flag = format!("-auth-http-address={}", authorizer().await);
    let place = Place::Real(Server::nsqd(&[&flag]).await.unwrap());
    right_and_wrong_secrets(&place).await;
}

#[tokio::test]
async fn an_http_interface_where_the_protocol_is_expected_is_told() {
    if !is_there("what is no nsqd") {
        return;
    }
    let place = Place::Real(Server::nsqd(&[]).await.unwrap());
    let url = format!("nsq://{}", place.http());
    let (kind, words) = refusal(NsqSettings { url, ..place.settings() }).await;
    assert_eq!(kind, ErrorKind::WrongServer, "{words}");
    let http_url = Some(format!("http://{}", place.tcp()));
    let (_, words) = refusal(NsqSettings { http_url, ..place.settings() }).await;
    assert!(words.contains("see nsq.http_url"), "{words}");
}

#[tokio::test]
async fn consumers_find_every_nsqd_that_has_their_topic() {
    if !is_there("nsqlookupd") {
        return;
    }
    let Some(lookupd) = Server::nsqlookupd().await else {
        eprintln!("NOT RUN: nsqlookupd: none is on PATH, and QUEUEPROOF_NSQLOOKUPD names none");
        return;
    };
    let flag = format!("-lookupd-tcp-address={}", lookupd.tcp);
    let (here, there) =
        (Server::nsqd(&[&flag]).await.unwrap(), Server::nsqd(&[&flag]).await.unwrap());
    let (here, there) = (Place::Real(here), Place::Real(there));
    let finding = |place: &Place| {
        let lookupd = vec![format!("http://{}", lookupd.http)];
        NsqConnector::new(NsqSettings { lookupd, ..place.settings() }).unwrap()
    };
    // A topic on both, and its subscription on each that has it.
    let elsewhere = there.connector().connect(None).await.unwrap();
    elsewhere.create_topic(&topic("t", Retention::UntilAcked)).await.unwrap();
    let path = "/lookup?topic=t";
    until("it is registered", async || ask(lookupd.http, "GET", path).await.contains("tcp_port"))
        .await;
    let connection = finding(&here).connect(None).await.unwrap();
    connection.create_topic(&topic("t", Retention::UntilAcked)).await.unwrap();
    connection.create_subscription(&subscription("t", "s")).await.unwrap();
    elsewhere.depth("t", "s").await.expect("the subscription is there too");
    let mut near = publisher(&connection).await;
    let mut far = publisher(&elsewhere).await;
    for _ in 0..10 {
        publish(&mut near, "near").await;
        publish(&mut far, "far").await;
    }
    until("both are counted", async || connection.depth("t", "s").await.unwrap().waiting == 20)
        .await;
    // Also with fewer places than servers.
    for prefetch in [5, 1] {
        let options = ConsumerOptions { prefetch, ..OPTIONS };
        let mut consumer = connection.consumer("t", "s", options).await.unwrap();
        let (mut nears, mut fars) = (0, 0);
        while nears < 3 || fars < 3 {
            let taken = take(&mut consumer, 1).await;
            let count = match &taken[0].message.payload[..] {
                b"near" => &mut nears,
                _ => &mut fars,
            };
            *count += 1;
            // Acknowledged where it came from, or given back to there.
            let how = match *count <= 3 {
                true => Settlement::Ack,
                false => Settlement::Nack { delay: Some(Duration::from_millis(100)) },
            };
            let settled = settle_all(&taken, how).await;
            assert!(settled[0].is_ok(), "{settled:?}");
        }
        consumer.close(SOON).await.unwrap();
    }
    let left = connection.depth("t", "s").await.unwrap();
    assert_eq!((left.waiting, left.unsettled), (20 - 12, 0));
    assert_eq!(connection.disconnects(), 0);
    // One that is gone gets no share any more.
    let mut consumer = connection.consumer("t", "s", OPTIONS).await.unwrap();
    until("both have a share", async || elsewhere.depth("t", "s").await.unwrap().waiting == 0)
        .await;
    elsewhere.close().await;
    drop(there);
    for _ in 0..20 {
        publish(&mut near, "near").await;
    }
    until("the whole prefetch is that of the other", async || {
        let depth = connection.depth("t", "s").await;
        depth.is_ok_and(|depth| depth.unsettled == u64::from(OPTIONS.prefetch))
    })
    .await;
    take(&mut consumer, 16).await;
    connection.delete_topic("t").await.unwrap();
    assert!(connection.topics("t").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_new_channel_is_waited_for_until_its_timers_are_exact() {
    if !is_there("the waiting for a new channel") {
        return;
    }
    let place = Place::Real(Server::nsqd(&["-queue-scan-selection-count=1000"]).await.unwrap());
    let settings = NsqSettings {
        new_channel_wait: NsqSettings::default().new_channel_wait,
        ..place.settings()
    };
    let second = Duration::from_secs(1);
    let connection = work_queue(&NsqConnector::new(settings).unwrap(), second).await;
    let declared = connection.capabilities().limits;
    let mut publisher = publisher(&connection).await;
    let mut consumer = consumer(&connection, 1).await;
    publish(&mut publisher, "x").await;
    take(&mut consumer, 1).await;
    let began = std::time::Instant::now();
    let again = take(&mut consumer, 1).await;
    let took = began.elapsed();
    // On a slow day it is later: so only what shows that the channel was looked after is asked.
    eprintln!("came back after {took:?}; declared: {:?}", declared.ack_timeout_resolution);
    assert!(took < second * 4, "{took:?}");
    again[0].ack().await.unwrap();
}

#[tokio::test]
async fn a_held_link_delays_and_loses_nothing() {
    if !is_there("a held link") {
        return;
    }
    let place = Place::Real(Server::nsqd(&[]).await.unwrap());
    let connector = place.connector();
    let direct = patient_queue(&connector).await;
    let (link, linked) = linked(&connector).await;
    let mut publisher = publisher(&linked).await;
    let mut consumer = consumer(&linked, 16).await;
    for direction in [Direction::ToBroker, Direction::ToClient] {
        link.hold(direction);
        let confirmation = publisher.publish(Message::new("x")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        link.heal();
        confirmation.await.unwrap();
        take(&mut consumer, 1).await[0].ack().await.unwrap();
    }
    assert_eq!(linked.disconnects(), 0);
    assert_eq!(direct.depth("t", "s").await.unwrap().waiting, 0);
}

#[tokio::test]
async fn an_nsqd_that_was_killed_and_started_again_is_used_again() {
    if !is_there("a restart") {
        return;
    }
    let place = Place::Real(Server::nsqd(&[]).await.unwrap());
    let connection = patient_queue(&place.connector()).await;
    let mut publisher = publisher(&connection).await;
    let mut consumer = consumer(&connection, 4).await;
    publish(&mut publisher, "before").await;
    let held = take(&mut consumer, 1).await;
    let Place::Real(mut server) = place else { return };
    server.kill();
    until("it is seen", async || connection.disconnects() == 1).await;
    let down = publisher.publish(Message::new("x")).await.map(drop);
    assert!(matches!(down, Err(PublishError::NotSent(_))), "{down:?}");
    let lost = held[0].ack().await;
    assert!(matches!(lost, Err(SettleError::LeaseLost(_))), "{lost:?}");
    server.again().await;
    until("it works again", async || match publisher.publish(Message::new("after")).await {
        Ok(confirmation) => confirmation.await.is_ok(),
        Err(_) => false,
    })
    .await;
    until("it is consumed", async || {
        let taken = consumer.receive(4, SOON).await.unwrap();
        settle_all(&taken, Settlement::Ack).await;
        taken.iter().any(|delivery| delivery.message.payload == "after")
    })
    .await;
    assert_eq!(connection.disconnects(), 1);
}
