//! The protocol, version 2, in nsqd's own words.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, interval_at, timeout},
};

use super::{Manner, Shared, queue::Client};

/// Takes clients.
pub(super) async fn serve(listener: TcpListener, shared: &Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let _ = session(socket, &shared).await;
        });
    }
}

/// A frame: its type and its body.
type Frame = (u32, Vec<u8>);

struct Session<'s> {
    shared: &'s Shared,
    number: u64,
    lines: BufReader<OwnedReadHalf>,
    frames: UnboundedSender<Frame>,
    heartbeat: Duration,
    msg_timeout: Duration,
    authorized: bool,
    channel: Option<(String, String)>,
    published: u32,
    kept_back: Option<String>,
}

/// Why a connection ends: with these words in an error frame, or without any.
type Over = Option<String>;

async fn session(socket: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let manner = shared.options.manner;
    let _ = socket.set_nodelay(true);
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read);
    let mut magic = [0; 4];
    lines.read_exact(&mut magic).await?;
    if manner == Manner::Mute {
        std::future::pending::<()>().await;
    }
    if manner == Manner::Babbling {
        write.write_all(b"220 mail.example.org ESMTP\r\n").await?;
        std::future::pending::<()>().await;
    }
    if &magic != b"  V2" {
        return write_frame(&mut write, (1, b"E_BAD_PROTOCOL".to_vec())).await;
    }
    let number = {
        let mut state = shared.state();
        state.next_client += 1;
        state.next_client
    };
    let (frames, outgoing) = unbounded_channel();
    let mut session = Session {
        shared,
        number,
        lines,
        frames,
        heartbeat: Duration::from_secs(30),
        msg_timeout: shared.options.msg_timeout,
        authorized: false,
        channel: None,
        published: 0,
        kept_back: None,
    };
    // What is to be sent is sent also after the last command.
    let (heartbeat, beats) = tokio::sync::watch::channel(session.heartbeat);
    let writing = tokio::spawn(write_frames(write, outgoing, beats, manner == Manner::Stalling));
    let over = session.run(&heartbeat).await;
    if let Some((topic, channel)) = &session.channel {
        shared.state().broker.leave(topic, channel, number);
    }
    if let Some(words) = over {
        let _ = session.frames.send((1, words.into_bytes()));
    }
    drop(session);
    let _ = timeout(Duration::from_secs(1), writing).await;
    Ok(())
}

async fn write_frame(write: &mut OwnedWriteHalf, (kind, body): Frame) -> std::io::Result<()> {
    let mut bytes = (4 + body.len() as u32).to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(body);
    write.write_all(&bytes).await
}

async fn write_frames(
    mut write: OwnedWriteHalf,
    mut frames: UnboundedReceiver<Frame>,
    mut heartbeat: tokio::sync::watch::Receiver<Duration>,
    stalling: bool,
) {
    let mut beats = heartbeat_of(&heartbeat);
    let mut sent = 0;
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => frame,
                None => return,
            },
            Ok(()) = heartbeat.changed() => {
                beats = heartbeat_of(&heartbeat);
                continue;
            }
            _ = beats.tick() => (0, b"_heartbeat_".to_vec()),
        };
        // The greeting, and with a subscription its answer.
        if stalling && sent >= 2 {
            continue;
        }
        sent += 1;
        if write_frame(&mut write, frame).await.is_err() {
            return;
        }
    }
}

fn heartbeat_of(heartbeat: &tokio::sync::watch::Receiver<Duration>) -> tokio::time::Interval {
    let every = *heartbeat.borrow();
    interval_at(Instant::now() + every, every)
}

fn fatal(words: impl Into<String>) -> Over {
    Some(words.into())
}

impl Session<'_> {
    fn send(&self, kind: u32, body: impl Into<Vec<u8>>) {
        let _ = self.frames.send((kind, body.into()));
    }

    /// Carries out one command after the other.
    async fn run(&mut self, heartbeat: &tokio::sync::watch::Sender<Duration>) -> Over {
        let shared = self.shared;
        let mut deleted = shared.state().deleted.as_ref().unwrap().subscribe();
        let mut line = Vec::new();
        loop {
            let silence = self.heartbeat * 2;
            tokio::select! {
                read = timeout(silence, self.lines.read_until(b'\n', &mut line)) => match read {
                    Ok(Ok(n)) if n > 0 => {}
                    _ => return None,
                },
                Ok(()) = deleted.changed() => {
                    let topic = deleted.borrow_and_update().clone();
                    if self.channel.as_ref().is_some_and(|(t, _)| *t == topic) {
                        return None;
                    }
                    // What was read of a line stays.
                    continue;
                }
            }
            let command = String::from_utf8_lossy(&line).trim_end().to_string();
            line.clear();
            let words: Vec<&str> = command.split(' ').collect();
            if let Err(over) = self.obey(&words, heartbeat).await {
                return over;
            }
        }
    }

    async fn body(&mut self) -> Result<Vec<u8>, Over> {
        let size = self.lines.read_u32().await.map_err(|_| None)?;
        let mut body = vec![0; size as usize];
        self.lines.read_exact(&mut body).await.map_err(|_| None)?;
        Ok(body)
    }

    async fn obey(
        &mut self,
        words: &[&str],
        heartbeat: &tokio::sync::watch::Sender<Duration>,
    ) -> Result<(), Over> {
        match words {
            ["IDENTIFY"] => self.identify(heartbeat).await,
            ["AUTH"] => {
                let given = self.body().await?;
                if self.shared.options.secret.as_deref().map(str::as_bytes) != Some(&given) {
                    return Err(fatal("E_UNAUTHORIZED AUTH no authorizations found"));
                }
                self.authorized = true;
                self.send(0, r#"{"identity":"","identity_url":"","permission_count":1}"#);
                Ok(())
            }
            ["NOP"] => Ok(()),
            [command, ..] if self.shared.options.secret.is_some() && !self.authorized => {
                Err(fatal(format!("E_AUTH_FIRST AUTH required before {command}")))
            }
            ["PUB", topic] => self.publish(topic, "PUB", Duration::ZERO).await,
            ["DPUB", topic, delay] => {
                let delay = Duration::from_millis(delay.parse().unwrap());
                let longest = self.shared.options.max_req_timeout;
                if delay > longest {
                    let (given, longest) = (delay.as_millis(), longest.as_millis());
                    let words = format!("E_INVALID DPUB timeout {given} out of range 0-{longest}");
                    return Err(fatal(words));
                }
                self.publish(topic, "DPUB", delay).await
            }
            ["MPUB", topic] => self.publish_many(topic).await,
            ["SUB", topic, channel] => {
                if self.channel.is_some() {
                    return Err(fatal("E_INVALID cannot SUB in current state"));
                }
                let client = Client {
                    ready: 0,
                    in_flight: 0,
                    closing: false,
                    msg_timeout: self.msg_timeout,
                    frames: self.frames.clone(),
                };
                let mut state = self.shared.state();
                let found = state.broker.channel(topic, channel);
                found.clients.insert(self.number, client);
                self.channel = Some((topic.to_string(), channel.to_string()));
                self.send(0, "OK");
                Ok(())
            }
            [command, arguments @ ..] => self.settle(command, arguments),
            [] => Err(fatal("E_INVALID invalid command ")),
        }
    }

    async fn identify(
        &mut self,
        heartbeat: &tokio::sync::watch::Sender<Duration>,
    ) -> Result<(), Over> {
        let options = &self.shared.options;
        let wishes: Value = serde_json::from_slice(&self.body().await?)
            .map_err(|_| fatal("E_BAD_BODY IDENTIFY failed to decode JSON body"))?;
        let millis = |name: &str| Some(Duration::from_millis(wishes[name].as_u64()?));
        if let Some(every) = millis("heartbeat_interval").filter(|every| !every.is_zero()) {
            self.heartbeat = every;
            heartbeat.send_replace(every);
        }
        if let Some(asked) = millis("msg_timeout").filter(|asked| !asked.is_zero()) {
            if !(Duration::from_secs(1)..=options.max_msg_timeout).contains(&asked) {
                let words =
                    format!("E_BAD_BODY IDENTIFY msg timeout ({}) is invalid", asked.as_millis());
                return Err(fatal(words));
            }
            self.msg_timeout = asked;
        }
        let greeting = json!({
            "max_rdy_count": options.max_rdy_count,
            "version": "stand-in",
            "max_msg_timeout": options.max_msg_timeout.as_millis() as u64,
            "msg_timeout": self.msg_timeout.as_millis() as u64,
            "tls_v1": false,
            "deflate": false,
            "deflate_level": 6,
            "max_deflate_level": 6,
            "snappy": false,
            "sample_rate": 0,
            "auth_required": options.secret.is_some(),
            "output_buffer_size": 1,
            "output_buffer_timeout": 0,
        });
        self.send(0, greeting.to_string());
        Ok(())
    }

    async fn publish(&mut self, topic: &str, verb: &str, delay: Duration) -> Result<(), Over> {
        let body = self.body().await?;
        self.check(verb, &body)?;
        self.store(topic, vec![body], delay).await
    }

    fn check(&self, verb: &str, body: &[u8]) -> Result<(), Over> {
        let (size, max) = (body.len(), self.shared.options.max_msg_size);
        let bad = |words: String| Err(fatal(format!("E_BAD_MESSAGE {verb} {words}")));
        match size {
            0 => bad(format!("invalid message body size {size}")),
            _ if size > max => bad(format!("message too big {size} > {max}")),
            _ => Ok(()),
        }
    }

    async fn publish_many(&mut self, topic: &str) -> Result<(), Over> {
        let body = self.body().await?;
        let (size, max) = (body.len(), self.shared.options.max_body_size);
        if size > max {
            return Err(fatal(format!("E_BAD_BODY MPUB body too big {size} > {max}")));
        }
        let mut rest = &body[4..];
        let mut bodies = Vec::new();
        while let Some((size, after)) = rest.split_first_chunk::<4>() {
            let (body, after) = after.split_at(u32::from_be_bytes(*size) as usize);
            self.check("MPUB", body)?;
            bodies.push(body.to_vec());
            rest = after;
        }
        assert_eq!(body[..4], (bodies.len() as u32).to_be_bytes());
        self.store(topic, bodies, Duration::ZERO).await
    }

    /// Stores, and answers as its manner is.
    async fn store(
        &mut self,
        topic: &str,
        bodies: Vec<Vec<u8>>,
        delay: Duration,
    ) -> Result<(), Over> {
        self.published += 1;
        match self.shared.options.manner {
            Manner::Refusing(words) => return Err(fatal(words)),
            Manner::RefusingSecond(words) if self.published == 2 => return Err(fatal(words)),
            _ => {}
        }
        self.shared.state().broker.publish(topic, bodies, delay);
        match self.shared.options.manner {
            Manner::Unconfirming => {}
            Manner::ClosingUnconfirmed => return Err(None),
            Manner::ConfirmingTwice => {
                self.send(0, "OK");
                self.send(0, "OK");
            }
            _ => self.send(0, "OK"),
        }
        Ok(())
    }

    /// The commands of a subscribed connection.
    fn settle(&mut self, command: &str, arguments: &[&str]) -> Result<(), Over> {
        let cannot = || fatal(format!("E_INVALID cannot {command} in current state"));
        if !["RDY", "CLS", "FIN", "REQ", "TOUCH"].contains(&command) {
            return Err(fatal(format!("E_INVALID invalid command {command}")));
        }
        let (topic, name) = self.channel.clone().ok_or_else(cannot)?;
        let mut state = self.shared.state();
        let topic = state.broker.topics.get_mut(&topic).ok_or(None)?;
        let channel = topic.channels.get_mut(&name).ok_or(None)?;
        let client = channel.clients.get_mut(&self.number).ok_or(None)?;
        match (command, arguments) {
            ("RDY", [count]) => {
                let count = count.parse().map_err(|_| fatal("E_INVALID RDY could not parse"))?;
                let max = self.shared.options.max_rdy_count;
                if count > max {
                    let words = format!("E_INVALID RDY count {count} out of range 0-{max}");
                    return Err(fatal(words));
                }
                client.ready = count;
                channel.pump();
                return Ok(());
            }
            ("CLS", _) => {
                client.closing = true;
                self.send(0, "CLOSE_WAIT");
                return Ok(());
            }
            _ if self.shared.options.manner == Manner::ClosingUnsettled => return Err(None),
            _ => {}
        }
        let id = arguments.first().and_then(|id| id.as_bytes().try_into().ok());
        let id = id.ok_or_else(|| fatal("E_INVALID invalid message ID"))?;
        let settled = match (command, arguments) {
            ("FIN", _) => channel.finish(self.number, id),
            ("REQ", [_, delay]) => {
                let delay = Duration::from_millis(delay.parse().map_err(|_| {
                    fatal(format!("E_INVALID REQ could not parse timeout {delay}"))
                })?);
                channel.requeue(self.number, id, delay.min(self.shared.options.max_req_timeout))
            }
            ("TOUCH", _) => channel.touch(self.number, id, self.shared.options.max_msg_timeout),
            _ => return Err(fatal("E_INVALID REQ insufficient number of params")),
        };
        if let Err(why) = settled {
            let id = arguments[0];
            let words = format!("E_{command}_FAILED {command} {id} failed {why}");
            drop(state);
            let in_order = self.shared.options.manner != Manner::RefusingOutOfOrder;
            if !in_order && self.kept_back.is_none() {
                self.kept_back = Some(words);
                return Ok(());
            }
            self.send(1, words);
            if let Some(before) = self.kept_back.take() {
                self.send(1, before);
            }
        }
        Ok(())
    }
}
