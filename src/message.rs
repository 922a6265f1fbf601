//! Payloads that say who they are.
//!
//! Layout, little endian, [`HEADER`] bytes before the filler: magic, run, topic, publisher, copy,
//! number, length, checksum of everything else. So a delivery can be told from any other without
//! help of headers, a foreign one is recognised, and a damaged one too.

use bytes::{BufMut, Bytes, BytesMut};
use queueproof_backends::Message;
use serde::{Deserialize, Serialize};

/// Bytes that the identity takes; no identified payload is smaller.
pub const HEADER: usize = 34;

const MAGIC: u32 = 0x3146_5051; // "QPF1"

/// Who a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The topic it was published on.
    pub topic: u16,
    /// Who published it.
    pub publisher: u16,
    /// Which message of the publisher.
    pub number: u32,
    /// Which attempt to publish it.
    pub copy: u16,
}

/// Who a delivered payload says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// A message of this run, undamaged.
    Known(Identity),
    /// A message of queueproof, changed.
    Damaged,
    /// Nothing that queueproof sends, or too small to say who it is.
    Nameless,
    /// A message of another run.
    Foreign,
}

/// Appends a payload of `len` bytes (at least [`HEADER`]) to `buffer`; the filler is repeated
/// from `filler`.
pub fn encode(buffer: &mut BytesMut, run: u64, id: Identity, len: usize, filler: &[u8]) -> Bytes {
    debug_assert!(len >= HEADER);
    buffer.reserve(len);
    buffer.put_u32_le(MAGIC);
    buffer.put_u64_le(run);
    buffer.put_u16_le(id.topic);
    buffer.put_u16_le(id.publisher);
    buffer.put_u16_le(id.copy);
    buffer.put_u32_le(id.number);
    buffer.put_u64_le(len as u64);
    let checksum_at = buffer.len();
    buffer.put_u32_le(0);
    let mut left = len.saturating_sub(HEADER);
    while left > 0 && !filler.is_empty() {
        let part = left.min(filler.len());
        buffer.put_slice(&filler[..part]);
        left -= part;
    }
    buffer.put_bytes(0, left);
    let checksum = checksum(buffer);
    buffer[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_le_bytes());
    buffer.split().freeze()
}

/// Reads back what [`encode`] made for this run.
pub fn decode(payload: &[u8], run: u64) -> Seen {
    let Some(header) = payload.first_chunk::<HEADER>() else { return Seen::Nameless };
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if u32_at(0) != MAGIC {
        return Seen::Nameless;
    }
    if u64_at(22) != payload.len() as u64 || u32_at(CHECKSUM_AT) != checksum(payload) {
        return Seen::Damaged;
    }
    if u64_at(4) != run {
        return Seen::Foreign;
    }
    Seen::Known(Identity {
        topic: u16_at(12),
        publisher: u16_at(14),
        copy: u16_at(16),
        number: u32_at(18),
    })
}

const CHECKSUM_AT: usize = 30;

/// The checksum of a payload, its own field left out.
fn checksum(payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&payload[..CHECKSUM_AT]);
    hasher.update(&payload[HEADER..]);
    hasher.finalize()
}

/// The checksum of any bytes.
pub fn fingerprint(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The checksum of what travels beside a payload: 0 for nothing. Headers count in any order,
/// since no broker promises to keep it.
pub fn extra_fingerprint(message: &Message) -> u32 {
    if message.key.is_none() && message.headers.is_empty() {
        return 0;
    }
    let mut headers: Vec<_> = message.headers.iter().collect();
    headers.sort();
    let mut hasher = crc32fast::Hasher::new();
    for text in message.key.iter().chain(headers.into_iter().flat_map(|(n, v)| [n, v])) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update(&[u8::from(message.key.is_some())]);
    hasher.finalize().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Identity = Identity { topic: 1, publisher: 2, number: 3, copy: 4 };

    #[test]
    fn a_payload_says_who_it_is_at_every_length() {
        for len in [HEADER, HEADER + 1, 128, 5000] {
            let payload = encode(&mut BytesMut::new(), 7, ID, len, b"filler");
            assert_eq!(payload.len(), len);
            assert_eq!(decode(&payload, 7), Seen::Known(ID));
        }
    }

    #[test]
    fn a_payload_of_another_run_is_foreign() {
        assert_eq!(decode(&encode(&mut BytesMut::new(), 7, ID, 64, b"x"), 8), Seen::Foreign);
    }

    #[test]
    fn any_flipped_bit_missing_or_added_byte_is_seen() {
        let payload = encode(&mut BytesMut::new(), 7, ID, 64, b"x");
        for bit in 0..64 * 8 {
            let mut damaged = payload.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let seen = decode(&damaged, 7);
            assert!(matches!(seen, Seen::Damaged | Seen::Nameless), "bit {bit}");
        }
        for len in 0..64 {
            let seen = decode(&payload[..len], 7);
            assert!(matches!(seen, Seen::Damaged | Seen::Nameless), "{len} bytes");
        }
        assert_eq!(decode(&[&payload[..], b"x"].concat(), 7), Seen::Damaged);
    }

    #[test]
    fn what_travels_beside_the_payload_has_a_fingerprint_of_its_own() {
        let plain = Message::new("x");
        let keyed = Message { key: Some(String::new()), ..plain.clone() };
        let header =
            |n: &str, v: &str| Message { headers: vec![(n.into(), v.into())], ..Message::new("x") };
        assert_eq!(extra_fingerprint(&plain), 0);
        let prints =
            [&plain, &keyed, &header("a", "bc"), &header("ab", "c")].map(extra_fingerprint);
        for (i, a) in prints.iter().enumerate() {
            assert!(prints[i + 1..].iter().all(|b| a != b));
        }
    }
}
