//! How settlements are confirmed.
//!
//! nsqd confirms no `FIN`, `REQ` or `TOUCH`; it answers only those that fail, with an error frame
//! that names the message. But it carries out the commands of a connection one after the other. So
//! what must be confirmed is followed by a command that fails for certain, a `TOUCH` of a message
//! that does not exist: when its error comes, everything before it that brought no error was done.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    consumer::{Given, How},
    wire::{Id, Refusal, Verb},
};
use crate::{SettleError, Settled};

/// Something that nsqd's answer to a barrier decides.
pub(super) struct Barrier {
    pub(super) nonce: Id,
    pub(super) what: Waits,
}

pub(super) enum Waits {
    Settlements(Batch),
    Probe(oneshot::Sender<()>),
    /// What was never handed out was given back.
    Returned,
}

/// Settlements that are confirmed together.
pub(super) struct Batch {
    pub(super) how: How,
    pub(super) items: Vec<Item>,
    pub(super) answer: oneshot::Sender<Vec<Result<Settled, SettleError>>>,
}

pub(super) struct Item {
    pub(super) given: Arc<Given>,
    pub(super) failed: Option<SettleError>,
}

/// How many barriers have an id of their own; then they repeat.
pub(super) const NUMBERS: u32 = 1_000_000;

impl Barrier {
    /// The barrier of this number. Its id is none that nsqd makes, and says in nsqd's log whose it
    /// is: `queueproof000001`.
    pub(super) fn new(number: u32, what: Waits) -> Self {
        let mut nonce = Id(*b"queueproof000000");
        let mut rest = number;
        for digit in nonce.0[10..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        Barrier { nonce, what }
    }
}

impl Batch {
    /// The last of them that this can be: where a message is settled twice, the first does it.
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        let verb = match self.how {
            How::Finish => Verb::Fin,
            How::Requeue(_) => Verb::Req,
            How::Touch => Verb::Touch,
        };
        let open = |item: &&mut Item| item.failed.is_none() && item.given.id == refusal.id;
        if let Some(item) = self.items.iter_mut().rev().find(open).filter(|_| verb == refusal.verb)
        {
            let why = format!("nsqd answered: {}", refusal.reason);
            item.failed = Some(match refusal.lock_lost() {
                true => SettleError::LeaseLost(why),
                false => SettleError::Indeterminate(why),
            });
        }
    }

    /// Answers: what failed has failed, and the others are so.
    pub(super) fn answer_all(self, others: Result<Settled, SettleError>) {
        let results = self.items.into_iter().map(|item| match item.failed {
            Some(error) => Err(error),
            None => others.clone(),
        });
        // Who has stopped waiting needs no answer.
        let _ = self.answer.send(results.collect());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::AtomicBool;

    use tokio::{sync::mpsc, time::Instant};

    use super::*;

    fn batch(
        how: How,
        ids: &[u8],
    ) -> (Batch, oneshot::Receiver<Vec<Result<Settled, SettleError>>>) {
        let item = |id: &u8| Item {
            given: Arc::new(Given {
                body: "x".into(),
                attempt: 1,
                id: Id([*id; 16]),
                session: 1,
                expires: Instant::now(),
                superseded: AtomicBool::new(false),
                line: mpsc::unbounded_channel().0,
            }),
            failed: None,
        };
        let (answer, answered) = oneshot::channel();
        (Batch { how, items: ids.iter().map(item).collect(), answer }, answered)
    }

    fn refusal(verb: Verb, id: u8, reason: &str) -> Refusal {
        Refusal { verb, id: Id([id; 16]), reason: reason.into() }
    }

    fn failures(batch: &Batch) -> Vec<bool> {
        batch.items.iter().map(|item| item.failed.is_some()).collect()
    }

    #[test]
    fn a_refusal_is_that_of_the_last_settlement_of_its_message() {
        let (mut batch, _answered) = batch(How::Finish, b"abac");
        batch.refused(&refusal(Verb::Fin, b'a', "ID not in flight"));
        assert_eq!(failures(&batch), [false, false, true, false]);
        batch.refused(&refusal(Verb::Fin, b'a', "ID not in flight"));
        assert_eq!(failures(&batch), [true, false, true, false]);
        // Not one of these.
        batch.refused(&refusal(Verb::Fin, b'z', "ID not in flight"));
        batch.refused(&refusal(Verb::Touch, b'b', "ID not in flight"));
        assert_eq!(failures(&batch), [true, false, true, false]);
    }

    #[test]
    fn what_is_not_a_lost_lock_is_not_said_to_be_one() {
        let (mut batch, mut answered) = batch(How::Requeue(0), b"abc");
        batch.refused(&refusal(Verb::Req, b'a', "client does not own message"));
        batch.refused(&refusal(Verb::Req, b'b', "exiting"));
        batch.answer_all(Ok(Settled::Confirmed));
        let results = answered.try_recv().unwrap();
        assert!(matches!(results[0], Err(SettleError::LeaseLost(_))), "{results:?}");
        assert!(matches!(results[1], Err(SettleError::Indeterminate(_))), "{results:?}");
        assert_eq!(results[2], Ok(Settled::Confirmed));
    }

    #[test]
    fn barriers_say_whose_they_are() {
        let (probe, _) = oneshot::channel();
        let barrier = Barrier::new(40_712, Waits::Probe(probe));
        assert_eq!(barrier.nonce.to_string(), "queueproof040712");
    }
}
