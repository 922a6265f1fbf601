//! The task that owns a connection's socket: it reads, writes, and dials again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use pulsar::message::proto::BaseCommand;
use tokio::{
    io::{AsyncWriteExt, BufWriter},
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    connection::{CLOSING, Kind, Shared, lock},
    dial::{Dialed, challenged},
    wire::{self, Frame},
};

/// After how long without a word from the broker it is asked whether it is there. (A broker asks
/// every 30 s by itself.)
const QUIET: Duration = Duration::from_secs(10);

/// How long it may take to answer before it is taken for lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest pause between two attempts to connect again.
const BACK_OFF: Duration = Duration::from_secs(1);

impl Shared {
    /// Keeps the connection up until it is closed.
    pub(super) async fn supervise(
        self: Arc<Self>,
        first: Dialed,
        queue: mpsc::UnboundedReceiver<Bytes>,
    ) {
        let mut generation = 1;
        let mut socket = Some((first, queue));
        let mut pause = Duration::ZERO;
        loop {
            if let Some((dialed, queue)) = socket.take() {
                let why = self.drive(dialed, queue).await;
                self.fall();
                if self.status.borrow().closed {
                    return;
                }
                tracing::debug!(at = self.dialer.address.at(), why, "a Pulsar connection is lost");
                pause = Duration::ZERO;
            }
            tokio::select! {
                () = self.closing.notified() => return self.fall(),
                () = sleep(pause) => {}
            }
            let dialed = tokio::select! {
                () = self.closing.notified() => return self.fall(),
                dialed = self.dialer.dial() => dialed,
            };
            match dialed {
                Ok(dialed) => {
                    generation += 1;
                    let queue = self.rise(generation, dialed.max_message);
                    socket = Some((dialed, queue));
                }
                Err(error) => {
                    tracing::debug!(%error, "connecting to Pulsar again");
                    pause = (pause * 2).clamp(Duration::from_millis(50), BACK_OFF);
                }
            }
        }
    }

    /// Reads and writes until the socket is lost or the connection closed; returns why.
    async fn drive(&self, dialed: Dialed, mut queue: mpsc::UnboundedReceiver<Bytes>) -> String {
        let Dialed { mut reader, writer, .. } = dialed;
        let (challenge, mut challenges) = mpsc::unbounded_channel();
        let reading = async {
            let mut heard = Instant::now();
            let mut asked: Option<Instant> = None;
            let mut look = tokio::time::interval(Duration::from_secs(1));
            loop {
                tokio::select! {
                    biased;
                    frame = reader.next() => match frame {
                        Some(Ok(frame)) => {
                            (heard, asked) = (Instant::now(), None);
                            self.hear(frame, &challenge);
                        }
                        Some(Err(error)) => return error.to_string(),
                        None => return "the broker closed it".into(),
                    },
                    _ = look.tick() => match asked {
                        Some(asked) if asked.elapsed() >= PATIENCE => {
                            return format!("the broker was silent for {:?}", heard.elapsed());
                        }
                        None if heard.elapsed() >= QUIET => {
                            asked = Some(Instant::now());
                            self.ping();
                        }
                        _ => {}
                    },
                }
            }
        };
        let writing = async {
            let mut writer = BufWriter::with_capacity(128 << 10, writer);
            while let Some(bytes) = queue.recv().await {
                writer.write_all(&bytes).await?;
                // Whatever else waits goes in the same write.
                while let Ok(bytes) = queue.try_recv() {
                    writer.write_all(&bytes).await?;
                }
                writer.flush().await?;
            }
            writer.shutdown().await
        };
        let authenticating = async {
            while challenges.recv().await.is_some() {
                let limit = self.dialer.connect_timeout;
                match challenged(&self.dialer.credentials, limit).await {
                    Ok(answer) => self.say(answer),
                    Err(error) => return format!("no new credentials for the broker: {error}"),
                }
            }
            std::future::pending().await
        };
        let closing = async {
            self.closing.notified().await;
            // Without a sender the writer ends when the queue is empty.
            lock(&self.state).up = None;
            sleep(CLOSING).await;
        };
        tokio::select! {
            why = reading => why,
            why = authenticating => why,
            written = writing => match written {
                Ok(()) => "closed".into(),
                Err(error) => error.to_string(),
            },
            () = closing => "closed".into(),
        }
    }

    /// Says something on the present socket, if there is one.
    fn say(&self, frame: Frame) {
        let state = lock(&self.state);
        if let (Some(up), Ok(bytes)) = (&state.up, wire::encode(frame)) {
            // One that is being lost needs no answer.
            let _ = up.outgoing.send(bytes);
        }
    }

    /// Asks whether the broker is there.
    fn ping(&self) {
        let mut state = lock(&self.state);
        if let (Some(up), Ok(bytes)) = (&state.up, wire::encode(wire::ping()))
            && up.outgoing.send(bytes).is_ok()
        {
            state.pings.push_back(None);
        }
    }

    /// Takes in what the broker says.
    fn hear(&self, frame: Frame, challenge: &mpsc::UnboundedSender<()>) {
        let command = &frame.command;
        if command.ping.is_some() {
            return self.say(wire::pong());
        }
        if command.pong.is_some() {
            let waiting = lock(&self.state).pings.pop_front();
            if let Some(Some(waiting)) = waiting {
                // Nobody may wait for it any more.
                let _ = waiting.send(());
            }
            return;
        }
        if command.auth_challenge.is_some() {
            // The receiver lives as long as the socket.
            let _ = challenge.send(());
            return;
        }
        if let Some(id) = owner_of(command) {
            let owner = lock(&self.state).owners.get(&id).cloned();
            match owner {
                Some(owner) => owner.told(frame),
                None => tracing::debug!(?id, "something for nobody"),
            }
            return;
        }
        let (id, last) = match command {
            BaseCommand { success: Some(c), .. } => (Some(c.request_id), true),
            BaseCommand { error: Some(c), .. } => (Some(c.request_id), true),
            BaseCommand { producer_success: Some(c), .. } => {
                (Some(c.request_id), c.producer_ready.unwrap_or(true))
            }
            BaseCommand { lookup_topic_response: Some(c), .. } => (Some(c.request_id), true),
            BaseCommand { ack_response: Some(c), .. } => (c.request_id, true),
            _ => (None, true),
        };
        match id {
            Some(id) => {
                let forgotten = lock(&self.state).answer(id, frame.command, last);
                drop(forgotten);
            }
            None => tracing::debug!(kind = command.r#type, "a command that is not expected"),
        }
    }
}

/// The producer or consumer that a command is for.
fn owner_of(command: &BaseCommand) -> Option<(Kind, u64)> {
    Some(match command {
        BaseCommand { send_receipt: Some(c), .. } => (Kind::Producer, c.producer_id),
        BaseCommand { message: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        BaseCommand { send_error: Some(c), .. } => (Kind::Producer, c.producer_id),
        BaseCommand { close_producer: Some(c), .. } => (Kind::Producer, c.producer_id),
        BaseCommand { close_consumer: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        BaseCommand { active_consumer_change: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        BaseCommand { reached_end_of_topic: Some(c), .. } => (Kind::Consumer, c.consumer_id),
        _ => return None,
    })
}
