//! A check request on its way: JSON, as an agent would be sent it, with a checksum.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Request;

/// A check request. Times are nanoseconds since the epoch of the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<'a> {
    /// Tells the requests of this run from those of any other.
    pub run: u64,
    /// The check's namespace.
    pub namespace: &'a str,
    /// The check's name.
    pub check: &'a str,
    /// Which request it is.
    pub request: Request,
    /// When it was published.
    pub issued_at: u64,
    /// When it is not worth executing any more.
    pub expires_at: u64,
    /// The checksum of all the above.
    sum: u32,
}

/// What an agent needs of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Which request it is.
    pub request: Request,
    /// When it is not worth executing any more.
    pub expires_at: u64,
}

impl<'a> Envelope<'a> {
    /// A request with its checksum.
    pub fn new(
        run: u64,
        (namespace, check): (&'a str, &'a str),
        request: Request,
        (issued_at, expires_at): (u64, u64),
    ) -> Self {
        let envelope = Envelope { run, namespace, check, request, issued_at, expires_at, sum: 0 };
        Envelope { sum: envelope.checksum(), ..envelope }
    }

    /// The payload.
    pub fn encode(&self) -> Bytes {
        // Numbers and texts: there is nothing in it that JSON does not take.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Reads a payload of this run.
    ///
    /// # Errors
    /// What it is instead.
    pub fn decode(payload: &[u8], run: u64) -> Result<Order, String> {
        let envelope: Envelope<'_> =
            serde_json::from_slice(payload).map_err(|error| format!("not a request: {error}"))?;
        if envelope.sum != envelope.checksum() {
            return Err("damaged: its checksum is wrong".into());
        }
        if envelope.run != run {
            return Err("a request of another run".into());
        }
        Ok(Order { request: envelope.request, expires_at: envelope.expires_at })
    }

    fn checksum(&self) -> u32 {
        let Request { check, tick, scheduler, copy } = self.request;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.namespace.as_bytes());
        hasher.update(&[0]);
        hasher.update(self.check.as_bytes());
        for number in [
            self.run,
            u64::from(check),
            tick,
            u64::from(scheduler),
            u64::from(copy),
            self.issued_at,
            self.expires_at,
        ] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request { check: 3, tick: 17, scheduler: 1, copy: 0 };

    fn payload() -> Bytes {
        Envelope::new(7, ("default", "disk-3"), REQUEST, (1_000, 9_000)).encode()
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let order = Envelope::decode(&payload(), 7);
        assert_eq!(order, Ok(Order { request: REQUEST, expires_at: 9_000 }));
        assert!(Envelope::decode(&payload(), 8).is_err_and(|e| e.contains("another run")));
    }

    #[test]
    fn a_changed_byte_never_makes_another_request() {
        let whole = payload();
        for place in 0..whole.len() {
            for flip in [1, 4, 128] {
                let mut changed = whole.to_vec();
                changed[place] ^= flip;
                assert!(Envelope::decode(&changed, 7).is_err(), "{place}: {changed:?}");
            }
        }
        assert!(Envelope::decode(&whole[..whole.len() / 2], 7).is_err());
    }
}
