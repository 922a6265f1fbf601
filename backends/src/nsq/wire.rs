//! Frames and commands of NSQ's protocol, version 2: bytes to values and back, no I/O.
//!
//! Source: <https://nsq.io/clients/tcp_protocol_spec.html>, and what nsqd 1.3.0 answers.

use std::{fmt, fmt::Write, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a connection begins with.
pub(super) const MAGIC: &[u8] = b"  V2";

/// The response that wants a `NOP`.
pub(super) const HEARTBEAT: &[u8] = b"_heartbeat_";

/// What nsqd sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// An answer to a command, or a heartbeat.
    Response(Bytes),
    /// A refusal. All but those of `FIN`, `REQ` and `TOUCH` end the connection.
    Error(String),
    /// A delivery.
    Message(Delivered),
}

/// A delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivered {
    /// 1 for the first delivery in a channel.
    pub(super) attempt: u16,
    pub(super) id: Id,
    pub(super) body: Bytes,
}

/// A message's id: 16 characters, hexadecimal where nsqd made it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(pub(super) [u8; 16]);

/// The commands that settle a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Fin,
    Req,
    Touch,
}

/// An error frame that settles what becomes of one command and leaves the connection alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) verb: Verb,
    pub(super) id: Id,
    pub(super) reason: String,
}

/// Bytes that are no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Garbage(pub(super) String);

/// The largest frame that is believed, bytes: far beyond what any `-max-msg-size` is set to.
const LARGEST: usize = 512 << 20;

/// Timestamp, attempts and id, before the body of a message.
const MESSAGE_HEAD: usize = 8 + 2 + 16;

/// Takes the next frame from what was received; `None` while it is not all there.
pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, Garbage> {
    let Some(head) = buffer.first_chunk::<8>() else { return Ok(None) };
    let [a, b, c, d, kind @ ..] = *head;
    let size = u32::from_be_bytes([a, b, c, d]) as usize;
    let kind = u32::from_be_bytes(kind);
    if !(4..=LARGEST).contains(&size) || kind > 2 {
        return Err(Garbage(shown(buffer)));
    }
    if buffer.len() < 4 + size {
        buffer.reserve(4 + size - buffer.len());
        return Ok(None);
    }
    buffer.advance(8);
    let mut body = buffer.split_to(size - 4).freeze();
    Ok(Some(match kind {
        0 => Frame::Response(body),
        1 => Frame::Error(String::from_utf8_lossy(&body).into_owned()),
        _ if body.len() < MESSAGE_HEAD => return Err(Garbage(shown(&body))),
        _ => {
            let _timestamp = body.get_u64();
            let attempt = body.get_u16();
            let mut id = Id([0; 16]);
            body.copy_to_slice(&mut id.0);
            Frame::Message(Delivered { attempt, id, body })
        }
    }))
}

/// The beginning of something, to show to a person.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).escape_debug().to_string()
}

impl Refusal {
    /// Reads `E_FIN_FAILED FIN 18a82e5de9269000 failed ID not in flight`, as nsqd words it.
    pub(super) fn parse(error: &str) -> Option<Refusal> {
        let mut words = error.splitn(5, ' ');
        let verb = match (words.next()?, words.next()?) {
            ("E_FIN_FAILED", "FIN") => Verb::Fin,
            ("E_REQ_FAILED", "REQ") => Verb::Req,
            ("E_TOUCH_FAILED", "TOUCH") => Verb::Touch,
            _ => return None,
        };
        let id = Id(words.next()?.as_bytes().try_into().ok()?);
        (words.next()? == "failed").then_some(())?;
        Some(Refusal { verb, id, reason: words.next()?.into() })
    }

    /// Whether it says that the lock was lost: nsqd had timed the delivery out, and may have given
    /// it to somebody else.
    pub(super) fn lock_lost(&self) -> bool {
        matches!(self.reason.as_str(), "ID not in flight" | "client does not own message")
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| f.write_char(char::from(byte)))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

/// Whole milliseconds, which is what the protocol counts in, rounded up: never earlier.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A command with a body.
fn with_body(out: &mut BytesMut, command: fmt::Arguments<'_>, body: &[u8]) {
    line(out, command);
    out.put_u32(body.len() as u32);
    out.put_slice(body);
}

/// A command of one line.
fn line(out: &mut BytesMut, command: fmt::Arguments<'_>) {
    // Writing to memory that grows does not fail.
    let _ = out.write_fmt(command);
    out.put_u8(b'\n');
}

/// What the client wants of its connection, as JSON.
pub(super) fn identify(out: &mut BytesMut, wishes: &[u8]) {
    with_body(out, format_args!("IDENTIFY"), wishes);
}

pub(super) fn auth(out: &mut BytesMut, secret: &str) {
    with_body(out, format_args!("AUTH"), secret.as_bytes());
}

pub(super) fn subscribe(out: &mut BytesMut, topic: &str, channel: &str) {
    line(out, format_args!("SUB {topic} {channel}"));
}

/// How many deliveries may be unsettled.
pub(super) fn ready(out: &mut BytesMut, count: u32) {
    line(out, format_args!("RDY {count}"));
}

pub(super) fn nop(out: &mut BytesMut) {
    line(out, format_args!("NOP"));
}

/// No more deliveries; nsqd answers `CLOSE_WAIT`.
pub(super) fn close(out: &mut BytesMut) {
    line(out, format_args!("CLS"));
}

pub(super) fn finish(out: &mut BytesMut, id: Id) {
    line(out, format_args!("FIN {id}"));
}

/// Hands back, to be delivered again after so many milliseconds.
pub(super) fn requeue(out: &mut BytesMut, id: Id, delay_ms: u64) {
    line(out, format_args!("REQ {id} {delay_ms}"));
}

pub(super) fn touch(out: &mut BytesMut, id: Id) {
    line(out, format_args!("TOUCH {id}"));
}

pub(super) fn publish(out: &mut BytesMut, topic: &str, body: &[u8]) {
    with_body(out, format_args!("PUB {topic}"), body);
}

/// Publishes what is delivered after so many milliseconds.
pub(super) fn publish_deferred(out: &mut BytesMut, topic: &str, delay_ms: u64, body: &[u8]) {
    with_body(out, format_args!("DPUB {topic} {delay_ms}"), body);
}

/// Publishes many, with one answer for all.
pub(super) fn publish_many(out: &mut BytesMut, topic: &str, bodies: &[Bytes]) {
    line(out, format_args!("MPUB {topic}"));
    out.put_u32(many_size(bodies.iter().map(Bytes::len)) as u32);
    out.put_u32(bodies.len() as u32);
    for body in bodies {
        out.put_u32(body.len() as u32);
        out.put_slice(body);
    }
}

/// How large the body of an `MPUB` is with messages of these sizes, which `-max-body-size` limits.
pub(super) fn many_size(sizes: impl Iterator<Item = usize>) -> usize {
    4 + sizes.map(|size| 4 + size).sum::<usize>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(kind: u32, body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.put_u32(4 + body.len() as u32);
        bytes.put_u32(kind);
        bytes.put_slice(body);
        bytes
    }

    fn message(id: &[u8; 16], attempt: u16, body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.put_u64(7);
        bytes.put_u16(attempt);
        bytes.put_slice(id);
        bytes.put_slice(body);
        frame(2, &bytes)
    }

    #[test]
    fn frames_are_read_however_they_are_cut_into_pieces() {
        let mut all = frame(0, b"OK");
        all.unsplit(frame(1, b"E_BAD_TOPIC PUB topic name \"x y\" is not valid"));
        all.unsplit(message(b"18a82e5de9269000", 3, b"\n\0body"));
        all.unsplit(message(b"18a82e5de9269001", 1, b""));
        for piece in [1, 3, 7, 1000] {
            let mut buffer = BytesMut::new();
            let mut frames = Vec::new();
            for piece in all.chunks(piece) {
                buffer.put_slice(piece);
                while let Some(frame) = decode(&mut buffer).unwrap() {
                    frames.push(frame);
                }
            }
            assert!(buffer.is_empty());
            assert_eq!(frames[0], Frame::Response("OK".into()));
            assert!(matches!(&frames[1], Frame::Error(words) if words.starts_with("E_BAD_TOPIC")));
            let Frame::Message(first) = &frames[2] else { unreachable!("{frames:?}") };
            assert_eq!((first.attempt, &first.body[..]), (3, &b"\n\0body"[..]));
            assert_eq!(first.id, Id(*b"18a82e5de9269000"));
            let Frame::Message(second) = &frames[3] else { unreachable!("{frames:?}") };
            assert!(second.body.is_empty());
            assert_eq!(frames.len(), 4);
        }
    }

    #[test]
    fn what_is_not_this_protocol_is_seen_at_once() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"SSH-2.0-OpenSSH_9.2\r\n",
            &frame(3, b"x"),
            &[0, 0, 0, 3, 0, 0, 0, 0],
            &frame(2, b"too short for a message"),
        ] {
            assert!(decode(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn refusals_of_one_command_are_told_from_those_that_end_the_connection() {
        let refusal =
            Refusal::parse("E_FIN_FAILED FIN 18a82e5de9269000 failed ID not in flight").unwrap();
        assert_eq!(refusal.verb, Verb::Fin);
        assert_eq!(refusal.id, Id(*b"18a82e5de9269000"));
        assert!(refusal.lock_lost());
        let other = Refusal::parse("E_REQ_FAILED REQ 18a82e5de9269000 failed exiting").unwrap();
        assert!(!other.lock_lost());
        for fatal in [
            "E_INVALID cannot FIN in current state",
            "E_BAD_MESSAGE PUB invalid message body size 0",
            "E_FIN_FAILED",
            "E_FIN_FAILED FIN short failed ID not in flight",
            "E_TOUCH_FAILED FIN 18a82e5de9269000 failed ID not in flight",
        ] {
            assert_eq!(Refusal::parse(fatal), None, "{fatal}");
        }
    }

    #[test]
    fn commands_are_written_as_the_protocol_has_them() {
        let mut out = BytesMut::new();
        let id = Id(*b"18a82e5de9269000");
        subscribe(&mut out, "t", "c#ephemeral");
        ready(&mut out, 5);
        finish(&mut out, id);
        requeue(&mut out, id, 1500);
        touch(&mut out, id);
        close(&mut out);
        nop(&mut out);
        let lines = "SUB t c#ephemeral\nRDY 5\nFIN 18a82e5de9269000\nREQ 18a82e5de9269000 1500\n\
                     TOUCH 18a82e5de9269000\nCLS\nNOP\n";
        assert_eq!(out, lines.as_bytes());
        let mut out = BytesMut::new();
        publish(&mut out, "t", b"ab");
        publish_deferred(&mut out, "t", 20, b"c");
        assert_eq!(&out[..], b"PUB t\n\0\0\0\x02abDPUB t 20\n\0\0\0\x01c");
        let mut out = BytesMut::new();
        publish_many(&mut out, "t", &["ab".into(), "c".into()]);
        assert_eq!(&out[..], b"MPUB t\n\0\0\0\x0f\0\0\0\x02\0\0\0\x02ab\0\0\0\x01c");
    }

    #[test]
    fn durations_are_never_shortened_to_milliseconds() {
        assert_eq!(millis(Duration::from_micros(1)), 1);
        assert_eq!(millis(Duration::from_millis(20)), 20);
        assert_eq!(millis(Duration::from_micros(20_001)), 21);
        assert_eq!(millis(Duration::ZERO), 0);
    }
}
