//! The messages that a broker sends to a consumer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use pulsar::message::proto::{CommandMessage, MessageIdData};

use super::{batch, wire::Payload};
use crate::Message;

/// Where a message is: its entry, and its place in it or -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    pub(super) ledger: u64,
    pub(super) entry: u64,
    pub(super) index: i32,
}

/// A message that the broker sent.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) spot: Spot,
    pub(super) message: Message,
    pub(super) attempt: u32,
    /// How many of its entry's messages are not acknowledged, where there are several.
    unacked: Option<Arc<AtomicUsize>>,
    acked: AtomicBool,
}

impl Spot {
    /// As the broker names its entry.
    pub(super) fn entry_id(&self) -> MessageIdData {
        MessageIdData { ledger_id: self.ledger, entry_id: self.entry, ..MessageIdData::default() }
    }
}

impl Given {
    /// The messages of an entry that are not acknowledged, and how many are; or why they cannot be
    /// read.
    pub(super) fn read(
        told: &CommandMessage,
        payload: Payload,
    ) -> Result<(Vec<Arc<Given>>, u32), String> {
        let batched = payload.metadata.num_messages_in_batch.is_some();
        let unacked = batched.then(|| Arc::new(AtomicUsize::new(0)));
        let messages = batch::unpack(payload.metadata, payload.data)?;
        let (mut given, mut acked) = (Vec::with_capacity(messages.len()), 0);
        for (index, message) in (0..).zip(messages) {
            if batched && is_acked(&told.ack_set, index) {
                acked += 1;
                continue;
            }
            if let Some(unacked) = &unacked {
                unacked.fetch_add(1, Ordering::AcqRel);
            }
            given.push(Arc::new(Given {
                spot: Spot {
                    ledger: told.message_id.ledger_id,
                    entry: told.message_id.entry_id,
                    index: if batched { index } else { -1 },
                },
                message,
                attempt: told.redelivery_count.unwrap_or(0).saturating_add(1),
                unacked: unacked.clone(),
                acked: AtomicBool::new(false),
            }));
        }
        Ok((given, acked))
    }

    /// Counts an acknowledgement; whether the entry as a whole is acknowledged now. Once is
    /// enough.
    pub(super) fn acknowledge(&self) -> bool {
        match &self.unacked {
            None => true,
            Some(unacked) => match self.acked.swap(true, Ordering::AcqRel) {
                false => unacked.fetch_sub(1, Ordering::AcqRel) == 1,
                true => unacked.load(Ordering::Acquire) == 0,
            },
        }
    }
}

/// Whether the broker says that the message at this place of an entry is acknowledged. It counts
/// those that are not, in words of 64 bits; without words all are unacknowledged.
fn is_acked(unacked: &[i64], index: i32) -> bool {
    let index = usize::try_from(index).unwrap_or(0);
    !unacked.is_empty() && unacked.get(index / 64).is_none_or(|word| word >> (index % 64) & 1 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_counts_what_is_not_acknowledged_from_the_lowest_bit() {
        assert!(!is_acked(&[], 5));
        assert!(is_acked(&[0b101], 1) && !is_acked(&[0b101], 0) && !is_acked(&[0b101], 2));
        assert!(!is_acked(&[0, i64::MIN], 127) && is_acked(&[0, i64::MIN], 63));
        assert!(is_acked(&[-1], 64));
    }
}
