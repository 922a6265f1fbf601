//! A real NATS server behind a proxy that speaks its protocol and lies: what the suite must not
//! let pass, whatever the flaws it was written for.

mod proxy;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use proxy::{Frame, Lie, Proxy};
use queueproof::{
    conformance::property,
    results::{PropertyResult, Verdict},
};

/// What a lie must lead to: one of these kinds of anomaly, or, with none, any verdict but a pass.
type Expected = &'static [&'static str];

/// A lie, the property that must not believe it, and what that must say.
struct Case {
    name: &'static str,
    property: &'static str,
    expected: Expected,
    lie: fn() -> Lie,
}

static CASES: &[Case] = &[
    Case {
        name: "one publish in three is confirmed and dropped",
        property: "work-queue/once-each",
        expected: &["lost"],
        lie: || {
            let mut forged = 1_000_000_u64;
            Lie::to_server(move |frame, turn| {
                let Some(reply) = frame.reply().filter(|_| frame.is_publish() && turn % 3 == 0)
                else {
                    return frame.pass();
                };
                forged += 1;
                let stream = frame.subject();
                let ack = format!(r#"{{"stream":"{stream}","seq":{forged}}}"#);
                Frame::answer(&reply, ack.as_bytes())
            })
        },
    },
    Case {
        name: "publishes are confirmed 300 ms before they are stored",
        property: "pubsub/late-subscriber",
        expected: &["before-start", "receipt-contradicted"],
        lie: || {
            let mut forged = 1_000_000_u64;
            Lie::to_server(move |frame, _| {
                let Some(reply) = frame.reply().filter(|_| frame.is_publish()) else {
                    return frame.pass();
                };
                forged += 1;
                let stream = frame.subject();
                let ack = format!(r#"{{"stream":"{stream}","seq":{forged}}}"#);
                let mut frames = Frame::answer(&reply, ack.as_bytes());
                frames.push(frame.without_reply().after(300));
                frames
            })
        },
    },
    Case {
        name: "one delivery in three is made twice",
        property: "work-queue/once-each",
        expected: &["duplicate-delivery", "redelivered-after-ack"],
        lie: || {
            Lie::to_client(|frame, turn| {
                let twice = frame.is_delivery() && turn % 3 == 0;
                if twice { vec![frame.clone(), frame] } else { frame.pass() }
            })
        },
    },
    Case {
        name: "one delivery in five is made again after it was acknowledged",
        property: "work-queue/once-each",
        expected: &["duplicate-delivery", "redelivered-after-ack"],
        lie: || {
            Lie::to_client(|frame, turn| {
                let again = frame.is_delivery() && turn % 5 == 0;
                if again { vec![frame.clone(), frame.recounted().after(900)] } else { frame.pass() }
            })
        },
    },
    Case {
        name: "a byte of one payload in three is changed",
        property: "pubsub/fan-out",
        expected: &["corrupt"],
        lie: || {
            Lie::to_client(|mut frame, turn| {
                if frame.is_delivery() && turn % 3 == 0 {
                    frame.change_last_byte();
                }
                frame.pass()
            })
        },
    },
    Case {
        name: "payloads are exchanged between deliveries",
        property: "work-queue/once-each",
        expected: &["receipt-contradicted", "duplicate-stored", "lost"],
        lie: || {
            let mut before: Option<Frame> = None;
            Lie::to_client(move |mut frame, _| {
                if !frame.is_delivery() {
                    return frame.pass();
                }
                match before.take() {
                    None => {
                        before = Some(frame.clone());
                        frame.pass()
                    }
                    Some(other) => {
                        frame.take_payload_of(&other);
                        frame.pass()
                    }
                }
            })
        },
    },
    Case {
        name: "headers are dropped",
        property: "pubsub/payload-integrity",
        expected: &["corrupt"],
        lie: || Lie::to_client(|frame, _| frame.without_headers().pass()),
    },
    Case {
        name: "neighbouring deliveries change places",
        property: "pubsub/order",
        expected: &["reordered"],
        lie: || {
            let mut before: Option<Frame> = None;
            Lie::to_client(move |frame, turn| {
                if !frame.is_delivery() {
                    return frame.pass();
                }
                match before.take() {
                    Some(other) => vec![frame, other],
                    None if turn % 4 == 0 => {
                        before = Some(frame);
                        Vec::new()
                    }
                    None => frame.pass(),
                }
            })
        },
    },
    Case {
        name: "one acknowledgement in three is confirmed and dropped",
        property: "work-queue/once-each",
        expected: &["redelivered-after-ack"],
        lie: || confirm_and_drop("+ACK", 3),
    },
    Case {
        name: "one acknowledgement in three is confirmed and dropped before a reconnect",
        property: "redelivery/never-after-ack",
        expected: &["redelivered-after-ack"],
        lie: || confirm_and_drop("+ACK", 3),
    },
    Case {
        name: "nacks are confirmed and dropped",
        property: "redelivery/nack",
        expected: &["late-redelivery", "not-redelivered"],
        lie: || confirm_and_drop("-NAK", 1),
    },
    Case {
        name: "the delay of a nack is dropped",
        property: "redelivery/nack-delay",
        expected: &["early-redelivery"],
        lie: || {
            Lie::to_server(|frame, _| match frame.reply() {
                Some(_) if frame.payload().starts_with(b"-NAK") => {
                    frame.with_payload(b"-NAK").pass()
                }
                _ => frame.pass(),
            })
        },
    },
    Case {
        name: "touches are confirmed and dropped",
        property: "redelivery/touch",
        expected: &["early-redelivery"],
        lie: || confirm_and_drop("+WPI", 1),
    },
    Case {
        name: "deduplication ids are dropped",
        property: "dedup/across-publishers",
        expected: &["duplicate-stored"],
        lie: || Lie::to_server(|frame, _| frame.without_headers().pass()),
    },
    Case {
        name: "the receipt of a duplicate says that it was stored",
        property: "dedup/reported",
        expected: &["unreported-duplicate", "receipt-contradicted"],
        lie: || {
            Lie::to_client(|frame, _| {
                let text = String::from_utf8_lossy(frame.payload()).into_owned();
                match text.contains("\"duplicate\":") {
                    true => {
                        let text = text.replace("\"duplicate\": true", "\"duplicate\":false");
                        let text = text.replace("\"duplicate\":true", "\"duplicate\":false");
                        frame.with_payload(text.as_bytes()).pass()
                    }
                    false => frame.pass(),
                }
            })
        },
    },
    Case {
        name: "the receipt of one stored message in three says duplicate",
        property: "dedup/distinct-kept",
        expected: &["false-duplicate", "receipt-contradicted"],
        lie: || {
            Lie::to_client(|frame, turn| {
                let text = String::from_utf8_lossy(frame.payload()).into_owned();
                let ack = text.starts_with("{\"stream\"") && text.contains("\"seq\":");
                match ack && turn % 3 == 0 {
                    true => {
                        let text = text.replacen('{', "{\"duplicate\":true,", 1);
                        frame.with_payload(text.as_bytes()).pass()
                    }
                    false => frame.pass(),
                }
            })
        },
    },
    Case {
        name: "every delivery says that it is the first",
        property: "redelivery/attempt-count",
        expected: &["wrong-attempt"],
        lie: || Lie::to_client(|frame, _| frame.with_attempt(1).pass()),
    },
    Case {
        name: "confirmations name another stream",
        property: "work-queue/once-each",
        expected: &[],
        lie: || replace_in_confirmations("{\"stream\":\"", "{\"stream\":\"x"),
    },
    Case {
        name: "confirmations are not JSON",
        property: "pubsub/order",
        expected: &[],
        lie: || replace_in_confirmations("{\"stream\":\"", "OK {\"stream\":\""),
    },
    Case {
        name: "confirmations have no sequence number",
        property: "pubsub/order",
        expected: &[],
        lie: || replace_in_confirmations("\"seq\":", "\"sq\":"),
    },
    Case {
        name: "one confirmation in ten does not come",
        property: "work-queue/once-each",
        expected: &[],
        lie: || {
            Lie::to_client(|frame, turn| {
                let ack = frame.payload().starts_with(b"{\"stream\":");
                if ack && turn % 10 == 0 { Vec::new() } else { frame.pass() }
            })
        },
    },
    Case {
        name: "acknowledgements are not answered",
        property: "redelivery/never-after-ack",
        expected: &[],
        lie: || {
            Lie::to_server(|frame, _| match frame.payload().starts_with(b"+ACK") {
                true => frame.without_reply().pass(),
                false => frame.pass(),
            })
        },
    },
    Case {
        name: "one delivery in three comes to nobody and is deleted",
        property: "work-queue/once-each",
        expected: &["lost"],
        lie: || {
            Lie::to_client(|frame, turn| match frame.reply() {
                Some(reply) if frame.is_delivery() && turn % 3 == 0 => {
                    vec![Frame::publish(&reply, b"+ACK").turned()]
                }
                _ => frame.pass(),
            })
        },
    },
    Case {
        name: "deliveries come with a message of nobody",
        property: "pubsub/fan-out",
        expected: &["phantom"],
        lie: || {
            Lie::to_client(|frame, turn| match frame.is_delivery() && turn % 3 == 0 {
                true => vec![frame.clone().with_payload(b"nobody published this"), frame],
                false => frame.pass(),
            })
        },
    },
    Case {
        name: "redeliveries come 800 ms too late",
        property: "redelivery/ack-timeout",
        expected: &["late-redelivery"],
        lie: || {
            Lie::to_client(|frame, _| match frame.attempt() > Some(1) {
                true => vec![frame.after(800)],
                false => frame.pass(),
            })
        },
    },
    Case {
        name: "the server's counts never reach zero",
        property: "work-queue/ack-deletes",
        expected: &["not-deleted"],
        lie: || {
            Lie::to_client(|frame, _| {
                let text = String::from_utf8_lossy(frame.payload()).into_owned();
                match text.contains("\"num_pending\":0") {
                    true => {
                        let text = text.replace("\"num_pending\":0", "\"num_pending\":1");
                        frame.with_payload(text.as_bytes()).pass()
                    }
                    false => frame.pass(),
                }
            })
        },
    },
];

/// Confirms one settlement of a kind in some, and does not hand it on.
fn confirm_and_drop(kind: &'static str, one_in: u64) -> Lie {
    let mut seen = 0_u64;
    Lie::to_server(move |frame, _| {
        let Some(reply) = frame.reply().filter(|_| frame.payload().starts_with(kind.as_bytes()))
        else {
            return frame.pass();
        };
        seen += 1;
        if seen.is_multiple_of(one_in) { Frame::answer(&reply, b"") } else { frame.pass() }
    })
}

fn replace_in_confirmations(from: &'static str, to: &'static str) -> Lie {
    Lie::to_client(move |frame, _| {
        let text = String::from_utf8_lossy(frame.payload()).into_owned();
        match text.starts_with("{\"stream\":") && text.contains("\"seq\":") {
            true => frame.with_payload(text.replace(from, to).as_bytes()).pass(),
            false => frame.pass(),
        }
    })
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(8);
    let server = support::broker("nats", "the suite against a lying NATS server");
    let mut trials = Vec::new();
    if let Some(server) = &server {
        let upstream = format!("127.0.0.1:{}", server.port());
        for case in CASES {
            let upstream = upstream.clone();
            let name = format!("{} does not pass when {}", case.property, case.name);
            trials.push(Trial::test(name, move || refuted(&upstream, case)));
        }
        let honest = upstream.clone();
        trials.push(Trial::test("a proxy that does not lie changes nothing", move || {
            for id in ["work-queue/once-each", "pubsub/payload-integrity", "redelivery/nack"] {
                let result = play(&honest, id, Lie::to_client(|frame, _| frame.pass()))?;
                if result.verdict != Verdict::Pass {
                    return Err(format!("{result:#?}").into());
                }
            }
            Ok(())
        }));
    }
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    drop(server);
    code
}

fn refuted(upstream: &str, case: &'static Case) -> Result<(), Failed> {
    let result = play(upstream, case.property, (case.lie)())?;
    let caught = match case.expected {
        [] => result.verdict != Verdict::Pass,
        kinds => {
            result.verdict == Verdict::Fail
                && result.anomalies.iter().any(|a| kinds.contains(&a.kind.as_str()))
        }
    };
    if caught { Ok(()) } else { Err(format!("{result:#?}").into()) }
}

fn play(upstream: &str, id: &str, lie: Lie) -> Result<PropertyResult, Failed> {
    let proxy = Proxy::start(upstream.to_string(), lie).map_err(|e| Failed::from(e.to_string()))?;
    let property = property(id).ok_or_else(|| Failed::from(format!("there is no {id}")))?;
    support::play(support::nats_at(proxy.url()), property, None)
}
