//! Pulsar's commands on the wire, over the codec of the `pulsar` crate.

use bytes::{Bytes, BytesMut};
use pulsar::message::{Codec, proto::base_command::Type};
pub(super) use pulsar::message::{Message as Frame, Payload, proto};
use tokio_util::codec::{Decoder, Encoder};

use proto::{BaseCommand, MessageIdData, ServerError};

/// Reads frames. What does not begin as one is refused instead of waited for.
pub(super) struct Frames {
    codec: Codec,
    /// The largest frame that a broker may send, bytes.
    pub(super) largest: usize,
}

/// How much more than its largest message a broker takes and sends in one frame, bytes: room for
/// the command and the metadata (Pulsar's `MESSAGE_SIZE_FRAME_PADDING`).
pub(super) const PADDING: usize = 10 << 10;

/// The largest message of a broker that does not say, bytes.
pub(super) const DEFAULT_MAX_MESSAGE: usize = 5 << 20;

impl Frames {
    pub(super) fn new() -> Self {
        Frames { codec: Codec, largest: DEFAULT_MAX_MESSAGE + PADDING }
    }
}

/// Why nothing more can be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The socket.
    Io(std::io::Error),
    /// What came is no frame; it begins so.
    NotPulsar(String),
}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> Self {
        ReadError::Io(error)
    }
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReadError::Io(error) => error.fmt(f),
            ReadError::NotPulsar(begin) => write!(f, "what came is not Pulsar: {begin}"),
        }
    }
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = ReadError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, ReadError> {
        let Some(&length) = buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(length) as usize + 4;
        if length > self.largest {
            let begin = &buffer[..buffer.len().min(48)];
            let begin = String::from_utf8_lossy(begin).escape_debug().to_string();
            return Err(ReadError::NotPulsar(format!("it begins with \"{begin}\"")));
        }
        if buffer.len() < length {
            buffer.reserve(length - buffer.len());
            return Ok(None);
        }
        self.codec
            .decode(buffer)
            .map_err(|error| ReadError::NotPulsar(format!("a frame is not understood ({error})")))
    }
}

/// A frame as bytes.
pub(super) fn encode(frame: Frame) -> Result<Bytes, String> {
    let mut buffer = BytesMut::new();
    Codec.encode(frame, &mut buffer).map_err(|error| error.to_string())?;
    Ok(buffer.freeze())
}

/// A command of this type, filled.
pub(super) fn command(kind: Type, fill: impl FnOnce(&mut BaseCommand)) -> Frame {
    let mut command = BaseCommand { r#type: kind as i32, ..BaseCommand::default() };
    fill(&mut command);
    Frame { command, payload: None }
}

pub(super) fn ping() -> Frame {
    command(Type::Ping, |c| c.ping = Some(proto::CommandPing {}))
}

pub(super) fn pong() -> Frame {
    command(Type::Pong, |c| c.pong = Some(proto::CommandPong {}))
}

pub(super) fn close_producer(producer_id: u64, request_id: u64) -> Frame {
    command(Type::CloseProducer, |c| {
        c.close_producer = Some(proto::CommandCloseProducer { producer_id, request_id });
    })
}

pub(super) fn close_consumer(consumer_id: u64, request_id: u64) -> Frame {
    command(Type::CloseConsumer, |c| {
        c.close_consumer = Some(proto::CommandCloseConsumer { consumer_id, request_id });
    })
}

pub(super) fn flow(consumer_id: u64, message_permits: u32) -> Frame {
    command(Type::Flow, |c| c.flow = Some(proto::CommandFlow { consumer_id, message_permits }))
}

pub(super) fn redeliver(consumer_id: u64, message_ids: Vec<MessageIdData>) -> Frame {
    command(Type::RedeliverUnacknowledgedMessages, |c| {
        c.redeliver_unacknowledged_messages = Some(proto::CommandRedeliverUnacknowledgedMessages {
            consumer_id,
            message_ids,
            consumer_epoch: None,
        });
    })
}

/// Acknowledges; with a request id the broker confirms.
pub(super) fn ack(consumer_id: u64, ids: Vec<MessageIdData>, request_id: Option<u64>) -> Frame {
    command(Type::Ack, |c| {
        c.ack = Some(proto::CommandAck {
            consumer_id,
            ack_type: proto::command_ack::AckType::Individual as i32,
            message_id: ids,
            request_id,
            ..proto::CommandAck::default()
        });
    })
}

pub(super) fn lookup(topic: String, request_id: u64, authoritative: bool) -> Frame {
    command(Type::Lookup, |c| {
        c.lookup_topic = Some(proto::CommandLookupTopic {
            topic,
            request_id,
            authoritative: Some(authoritative),
            ..proto::CommandLookupTopic::default()
        });
    })
}

/// The name of an error's code, for messages: `ProducerBusy`.
pub(super) fn error_name(code: ServerError) -> &'static str {
    code.as_str_name()
}

/// A code of the broker; one that this program does not know is `UnknownError`.
pub(super) fn server_error(code: i32) -> ServerError {
    ServerError::try_from(code).unwrap_or(ServerError::UnknownError)
}

/// A message's position as one number that grows with it: ledger, entry, index in its batch.
/// `None` where one of them is too large for its share of the bits.
pub(super) fn position(ledger: u64, entry: u64, batch_index: i32) -> Option<u64> {
    let index = u64::try_from(batch_index.max(0)).ok()?;
    (ledger < 1 << 27 && entry < 1 << 26 && index < 1 << 11)
        .then_some((ledger << 37) | (entry << 11) | index)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_no_frame_is_refused_with_its_beginning() {
        let mut buffer = BytesMut::from(&b"SSH-2.0-OpenSSH_9.2\r\n"[..]);
        let error = Frames::new().decode(&mut buffer).unwrap_err().to_string();
        assert!(error.contains("SSH-2.0"), "{error}");
    }

    #[test]
    fn a_frame_comes_whole_or_not_yet() {
        let bytes = encode(ping()).unwrap();
        let mut frames = Frames::new();
        for end in 0..bytes.len() {
            assert!(frames.decode(&mut BytesMut::from(&bytes[..end])).unwrap().is_none());
        }
        let frame = frames.decode(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
        assert!(frame.command.ping.is_some());
    }

    #[test]
    fn positions_grow_with_ledger_entry_and_index() {
        let all = [(0, 0, -1), (0, 0, 1), (0, 1, 0), (0, (1 << 26) - 1, 2047), (1, 0, 0)];
        let all = all.map(|(l, e, b)| position(l, e, b).unwrap());
        assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
        assert_eq!(position(1 << 27, 0, 0), None);
        assert_eq!(position(0, 1 << 26, 0), None);
        assert_eq!(position(0, 0, 1 << 11), None);
    }
}
