use super::*;
use libtest_mimic::Trial;
use queueproof_backends::{DedupKey, Message, PublisherOptions};

pub fn add(trials: &mut Vec<Trial>, place: &'static Place) {
    case(trials, "smoke", place, smoke);
    case(trials, "sequence", place, sequence);
}

async fn smoke(place: &'static Place) {
    let t0 = std::time::Instant::now();
    let c = place.connect().await;
    eprintln!("connect {:?} version {}", t0.elapsed(), c.broker_version());
    let t = work_queue(&c).await;
    let mut p = c.publisher(&t, PublisherOptions::default()).await.unwrap();
    eprintln!("pub open {:?}", t0.elapsed());
    for n in 0..5 {
        let r = p
            .publish(Message {
                key: Some("k".into()),
                headers: vec![("a".into(), "b".into())],
                ..Message::new(format!("m{n}"))
            })
            .await
            .unwrap()
            .await;
        eprintln!("{r:?} {:?}", t0.elapsed());
    }
    let mut k = c.consumer(&t, "s", OPTIONS).await.unwrap();
    let mut n = 0;
    while n < 5 {
        let d = k.receive(10, SOON).await.unwrap();
        for d in &d {
            eprintln!("{:?} {:?} {:?} {:?}", d.message, d.attempt, d.position, t0.elapsed());
        }
        n += d.len();
        eprintln!("depth {:?}", c.depth(&t, "s").await);
        for d in &d {
            eprintln!("ack {:?}", d.ack().await);
        }
    }
    eprintln!("depth {:?}", c.depth(&t, "s").await);
    let t1 = std::time::Instant::now();
    let r = p.publish_batch(vec![Message::new(vec![0; 256]); 20000]).await;
    eprintln!("20000 in {:?}, {} ok", t1.elapsed(), r.iter().filter(|r| r.is_ok()).count());
    let t1 = std::time::Instant::now();
    let mut n = 0;
    while n < 20000 {
        let d = k.receive(1000, SOON).await.unwrap();
        n += d.len();
        let a = queueproof_backends::settle_all(&d, queueproof_backends::Settlement::Ack).await;
        assert!(a.iter().all(|a| a.is_ok()));
    }
    eprintln!("consumed in {:?}", t1.elapsed());
    let t1 = std::time::Instant::now();
    k.close(SOON).await.unwrap();
    p.close().await;
    c.delete_topic(&t).await.unwrap();
    c.close().await;
    eprintln!("closed in {:?}", t1.elapsed());
}

async fn sequence(place: &'static Place) {
    let c = place.connect().await;
    let t = work_queue(&c).await;
    let o = || PublisherOptions { name: Some("n".into()), ..Default::default() };
    let mut p = c.publisher(&t, o()).await.unwrap();
    let m = |n: u64, s: &str| Message {
        dedup: Some(DedupKey::Sequence(n)),
        ..Message::new(s.to_string())
    };
    for (n, s) in [(5, "a"), (5, "b"), (9, "gap"), (7, "regress"), (10, "c"), (0, "zero")] {
        let r = p.publish(m(n, s)).await.unwrap().await;
        eprintln!("{n} {s}: {r:?}");
    }
    // repeat in flight
    let r = p.publish_batch(vec![m(11, "d"), m(11, "e"), m(12, "f"), m(11, "g"), m(12, "h")]).await;
    for r in r {
        eprintln!("in flight: {r:?}");
    }
    let busy = c.publisher(&t, o()).await.map(drop);
    eprintln!("taken: {busy:?}");
    let c2 = place.connect().await;
    let busy = c2.publisher(&t, o()).await.map(drop);
    eprintln!("taken from another: {busy:?}");
    p.close().await;
    let mut p = c2.publisher(&t, o()).await.unwrap();
    eprintln!("reopened unkeyed {:?}", p.publish(Message::new("u")).await.unwrap().await);
    eprintln!("reopened 12 {:?}", p.publish(m(12, "again")).await.unwrap().await);
    drop(p);
    let p = c2.publisher(&t, o()).await.map(drop);
    eprintln!("after drop: {p:?}");
    let mut k = c.consumer(&t, "s", OPTIONS).await.unwrap();
    loop {
        let d = k.receive(10, Duration::from_secs(1)).await.unwrap();
        if d.is_empty() {
            break;
        }
        for d in d {
            eprint!("{:?} ", d.message.payload);
        }
    }
    eprintln!();
}
