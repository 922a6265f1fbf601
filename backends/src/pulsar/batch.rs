//! Several messages in one entry: `[u32 size][SingleMessageMetadata][payload]`, one after the
//! other.

use bytes::{Buf, Bytes};
use prost::Message as _;
use pulsar::message::proto::{CompressionType, KeyValue, MessageMetadata, SingleMessageMetadata};

use super::producer::properties;
use crate::Message;

/// Messages that go together.
pub(super) enum Group {
    /// One that has to have an entry to itself.
    Alone(Message),
    /// Those that share an entry.
    Packed(Vec<Message>),
}

/// The most messages in one entry, as Pulsar's own clients have it.
const MOST: usize = 1000;

/// The most bytes in one entry. Pulsar's own clients stop at 128 KiB.
const BYTES: usize = 128 << 10;

/// Divides messages into entries, in their order. The broker reads delay, key and number of an
/// entry and not of the messages in it, so one that has any of them goes alone.
pub(super) fn groups(messages: Vec<Message>, max_message: usize) -> Vec<Group> {
    let limit = BYTES.min(max_message);
    let mut groups = Vec::new();
    let mut packed = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let size = size(&message);
        let alone = message.delay.is_some()
            || message.key.is_some()
            || message.dedup.is_some()
            || size > limit;
        if !packed.is_empty() && (alone || packed.len() == MOST || bytes + size > limit) {
            groups.push(Group::Packed(std::mem::take(&mut packed)));
            bytes = 0;
        }
        if alone {
            groups.push(Group::Alone(message));
        } else {
            bytes += size;
            packed.push(message);
        }
    }
    if !packed.is_empty() {
        groups.push(Group::Packed(packed));
    }
    groups
}

/// How much a message takes in an entry.
fn size(message: &Message) -> usize {
    4 + single(message).encoded_len() + message.payload.len()
}

fn single(message: &Message) -> SingleMessageMetadata {
    SingleMessageMetadata {
        properties: properties(message),
        payload_size: i32::try_from(message.payload.len()).unwrap_or(i32::MAX),
        ..SingleMessageMetadata::default()
    }
}

/// The metadata and the payload of an entry of these messages.
pub(super) fn pack(messages: &[Message]) -> (MessageMetadata, Vec<u8>) {
    let mut payload = Vec::with_capacity(messages.iter().map(size).sum());
    for message in messages {
        let metadata = single(message).encode_to_vec();
        payload.extend_from_slice(&u32::try_from(metadata.len()).unwrap_or(u32::MAX).to_be_bytes());
        payload.extend_from_slice(&metadata);
        payload.extend_from_slice(&message.payload);
    }
    let count = i32::try_from(messages.len()).unwrap_or(i32::MAX);
    let metadata =
        MessageMetadata { num_messages_in_batch: Some(count), ..MessageMetadata::default() };
    (metadata, payload)
}

/// The messages of an entry, or why they cannot be read. An entry without a count of its messages
/// is one message.
pub(super) fn unpack(metadata: MessageMetadata, data: Vec<u8>) -> Result<Vec<Message>, String> {
    let compression = metadata.compression.unwrap_or(0);
    if compression != CompressionType::None as i32 {
        let name = CompressionType::try_from(compression).map_or("unknown", |c| c.as_str_name());
        return Err(format!("it is compressed ({name})"));
    }
    if !metadata.encryption_keys.is_empty() {
        return Err("it is encrypted".into());
    }
    if metadata.num_chunks_from_msg.is_some_and(|chunks| chunks > 1) {
        return Err("it is a part of a message in several".into());
    }
    let mut data = Bytes::from(data);
    let Some(count) = metadata.num_messages_in_batch else {
        return Ok(vec![Message {
            payload: data,
            key: metadata.partition_key,
            headers: headers(metadata.properties),
            ..Message::default()
        }]);
    };
    let mut messages = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(MOST));
    for index in 0..count {
        let short = || format!("message {index} of {count} in it is cut short");
        let size = data.try_get_u32().map_err(|_| short())?;
        let size = usize::try_from(size).ok().filter(|&size| size <= data.len());
        let single = data.split_to(size.ok_or_else(short)?);
        let single = SingleMessageMetadata::decode(single)
            .map_err(|error| format!("message {index} of {count} in it: {error}"))?;
        let size = usize::try_from(single.payload_size).ok().filter(|&size| size <= data.len());
        let payload = data.split_to(size.ok_or_else(short)?);
        messages.push(Message {
            payload,
            key: single.partition_key,
            headers: headers(single.properties),
            ..Message::default()
        });
    }
    Ok(messages)
}

fn headers(properties: Vec<KeyValue>) -> Vec<(String, String)> {
    properties.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::time::Duration;

    use super::*;
    use crate::DedupKey;

    #[test]
    fn what_is_packed_is_unpacked() {
        let messages: Vec<_> = (0..5)
            .map(|n| Message {
                headers: vec![("h".into(), n.to_string()); n],
                ..Message::new(vec![n as u8; n * 100])
            })
            .collect();
        let (metadata, payload) = pack(&messages);
        assert_eq!(unpack(metadata, payload).unwrap(), messages);
    }

    #[test]
    fn what_is_cut_short_or_not_understood_is_told() {
        let (metadata, payload) = pack(&[Message::new("abc"), Message::new("def")]);
        for end in 0..payload.len() {
            assert!(unpack(metadata.clone(), payload[..end].to_vec()).is_err(), "{end}");
        }
        let compressed =
            MessageMetadata { compression: Some(CompressionType::Lz4 as i32), ..metadata };
        assert!(unpack(compressed, payload).unwrap_err().contains("LZ4"));
    }

    #[test]
    fn what_the_broker_reads_of_an_entry_has_one_to_itself() {
        let plain = || Message::new("x");
        let messages = vec![
            plain(),
            plain(),
            Message { key: Some("k".into()), ..plain() },
            plain(),
            Message { delay: Some(Duration::from_secs(1)), ..plain() },
            Message { dedup: Some(DedupKey::Sequence(1)), ..plain() },
            Message::new(vec![0; BYTES]),
        ];
        let sizes = |group: &Group| match group {
            Group::Alone(_) => 0,
            Group::Packed(messages) => messages.len(),
        };
        let found: Vec<_> = groups(messages, 5 << 20).iter().map(sizes).collect();
        assert_eq!(found, [2, 0, 1, 0, 0, 0]);
        let many: Vec<_> = groups(vec![plain(); 2500], 5 << 20).iter().map(sizes).collect();
        assert_eq!(many, [1000, 1000, 500]);
    }
}
