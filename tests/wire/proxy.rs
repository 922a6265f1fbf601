//! A proxy that reads NATS's protocol frame by frame, and lets a lie change them.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// One frame of the protocol.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The verb and its arguments, without the sizes.
    words: Vec<String>,
    /// For those that carry one: headers and payload.
    body: Option<(Vec<u8>, Vec<u8>)>,
    /// How much later it is sent, milliseconds.
    after: u64,
    /// Whether it goes back where the frame came from.
    turned: bool,
}

/// What is made of a frame; with it the number of such frames so far.
type Change = Box<dyn FnMut(Frame, u64) -> Vec<Frame> + Send>;

/// A way of lying.
pub struct Lie {
    to_server: Change,
    to_client: Change,
}

impl Lie {
    /// Changes what clients say.
    pub fn to_server(change: impl FnMut(Frame, u64) -> Vec<Frame> + Send + 'static) -> Self {
        Lie { to_server: Box::new(change), to_client: Box::new(|frame, _| frame.pass()) }
    }

    /// Changes what the server says.
    pub fn to_client(change: impl FnMut(Frame, u64) -> Vec<Frame> + Send + 'static) -> Self {
        Lie { to_server: Box::new(|frame, _| frame.pass()), to_client: Box::new(change) }
    }
}

impl Frame {
    fn verb(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The frame as it is.
    pub fn pass(self) -> Vec<Frame> {
        vec![self]
    }

    /// The subject of a message.
    pub fn subject(&self) -> &str {
        self.words.get(1).map_or("", String::as_str)
    }

    /// Where a message wants its answer.
    pub fn reply(&self) -> Option<String> {
        match (self.verb(), self.words.len()) {
            ("PUB" | "HPUB", 3) => self.words.get(2).cloned(),
            ("MSG" | "HMSG", 4) => self.words.get(3).cloned(),
            _ => None,
        }
    }

    /// A publish to a stream of the suite.
    pub fn is_publish(&self) -> bool {
        matches!(self.verb(), "PUB" | "HPUB") && self.subject().starts_with("qp-")
    }

    /// A delivery of a stream of the suite.
    pub fn is_delivery(&self) -> bool {
        matches!(self.verb(), "MSG" | "HMSG")
            && self.reply().is_some_and(|reply| reply.starts_with("$JS.ACK.qp-"))
    }

    /// The payload, empty for a frame without one.
    pub fn payload(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], |(_, payload)| payload)
    }

    /// The same with another payload.
    pub fn with_payload(mut self, payload: &[u8]) -> Self {
        if let Some((_, old)) = &mut self.body {
            *old = payload.to_vec();
        }
        self
    }

    pub fn change_last_byte(&mut self) {
        if let Some(last) = self.body.as_mut().and_then(|(_, payload)| payload.last_mut()) {
            *last ^= 1;
        }
    }

    pub fn take_payload_of(&mut self, other: &Frame) {
        self.body.clone_from(&other.body);
    }

    /// The same without headers, as long as it is a message of the suite.
    pub fn without_headers(mut self) -> Self {
        let of_suite = self.is_publish() || self.is_delivery();
        if let (true, Some((headers, _))) = (of_suite, &mut self.body) {
            headers.clear();
            if let Some(verb) = self.words.first_mut() {
                *verb = verb.trim_start_matches('H').to_string();
            }
        }
        self
    }

    /// The same without a wish for an answer.
    pub fn without_reply(mut self) -> Self {
        if matches!(self.verb(), "PUB" | "HPUB") {
            self.words.truncate(2);
        }
        self
    }

    /// The same, later.
    pub fn after(mut self, millis: u64) -> Self {
        self.after = millis;
        self
    }

    /// The same, sent back where it came from.
    pub fn turned(mut self) -> Self {
        self.turned = true;
        self
    }

    /// Which delivery of its message it says it is.
    pub fn attempt(&self) -> Option<u64> {
        let reply = self.reply().filter(|_| self.is_delivery())?;
        reply.split('.').nth(4)?.parse().ok()
    }

    /// The same, saying that it is another delivery of its message.
    pub fn with_attempt(mut self, attempt: u64) -> Self {
        if let (true, Some(reply)) = (self.is_delivery(), self.words.get_mut(3)) {
            let mut tokens: Vec<_> = reply.split('.').map(String::from).collect();
            tokens[4] = attempt.to_string();
            *reply = tokens.join(".");
        }
        self
    }

    /// The same, as the next delivery of its message.
    pub fn recounted(self) -> Self {
        let attempt = self.attempt().unwrap_or(1);
        self.with_attempt(attempt + 1)
    }

    /// A client's message.
    pub fn publish(subject: &str, payload: &[u8]) -> Frame {
        Frame {
            words: vec!["PUB".into(), subject.into()],
            body: Some((Vec::new(), payload.to_vec())),
            after: 0,
            turned: false,
        }
    }

    /// Instead of a client's message: an answer to it, as if from the server. It goes to the
    /// server as a publish to the reply's subject, which the server delivers.
    pub fn answer(reply: &str, payload: &[u8]) -> Vec<Frame> {
        vec![Frame::publish(reply, payload)]
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut line = self.words.join(" ").into_bytes();
        if let Some((headers, payload)) = &self.body {
            if self.verb().starts_with('H') {
                line.extend(format!(" {}", headers.len()).bytes());
            }
            line.extend(format!(" {}\r\n", headers.len() + payload.len()).bytes());
            line.extend(headers);
            line.extend(payload);
        }
        line.extend(b"\r\n");
        to.write_all(&line)
    }

    fn read(from: &mut impl BufRead) -> io::Result<Option<Frame>> {
        let mut line = Vec::new();
        if from.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_string();
        let verb = text.split(' ').next().unwrap_or("").to_uppercase();
        let plain = |words| Frame { words, body: None, after: 0, turned: false };
        if !matches!(verb.as_str(), "PUB" | "HPUB" | "MSG" | "HMSG") {
            return Ok(Some(plain(vec![text])));
        }
        let mut words: Vec<String> = text.split_whitespace().map(String::from).collect();
        words[0] = verb.clone();
        let size = |words: &mut Vec<String>| words.pop().and_then(|n| n.parse().ok()).unwrap_or(0);
        let total: usize = size(&mut words);
        let headers: usize = if verb.starts_with('H') { size(&mut words) } else { 0 };
        let mut body = vec![0; total + 2];
        from.read_exact(&mut body)?;
        body.truncate(total);
        let payload = body.split_off(headers);
        Ok(Some(Frame { body: Some((body, payload)), ..plain(words) }))
    }
}

/// The proxy. Its threads end with their connections, or when it is dropped.
pub struct Proxy {
    port: u16,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

type Shared<T> = Arc<Mutex<T>>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    pub fn start(upstream: String, lie: Lie) -> io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let open: Shared<Vec<TcpStream>> = Arc::default();
        let to_server: Shared<(Change, u64)> = Arc::new(Mutex::new((lie.to_server, 0)));
        let to_client: Shared<(Change, u64)> = Arc::new(Mutex::new((lie.to_client, 0)));
        let (stopped, opened) = (Arc::clone(&stop), Arc::clone(&open));
        thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                let Ok(server) = TcpStream::connect(&upstream) else { continue };
                let clones = (client.try_clone(), server.try_clone());
                let (Ok(client_too), Ok(server_too)) = clones else { continue };
                let both = [client_too, server_too];
                lock(&opened).extend(both.iter().filter_map(|s| s.try_clone().ok()));
                let [client_too, server_too] = both;
                let to_server_end = Arc::new(Mutex::new(server_too));
                let to_client_end = Arc::new(Mutex::new(client_too));
                let ends = (Arc::clone(&to_server_end), Arc::clone(&to_client_end));
                let change = Arc::clone(&to_server);
                thread::spawn(move || carry(client, &ends.0, &ends.1, &change));
                let change = Arc::clone(&to_client);
                thread::spawn(move || carry(server, &to_client_end, &to_server_end, &change));
            }
        });
        Ok(Proxy { port, stop, open })
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for socket in lock(&self.open).drain(..) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        // Wakes the one who accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Carries one way until its end.
fn carry(
    from: TcpStream,
    to: &Shared<TcpStream>,
    back: &Shared<TcpStream>,
    change: &Shared<(Change, u64)>,
) {
    let mut from = BufReader::new(from);
    while let Ok(Some(frame)) = Frame::read(&mut from) {
        let frames = {
            let mut change = lock(change);
            change.1 += u64::from(frame.is_publish() || frame.is_delivery() || is_reply(&frame));
            let turn = change.1;
            (change.0)(frame, turn)
        };
        for frame in frames {
            let end = Arc::clone(if frame.turned { back } else { to });
            if frame.after > 0 {
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(frame.after));
                    let _ = frame.write(&mut *lock(&end));
                });
            } else if frame.write(&mut *lock(&end)).is_err() {
                return;
            }
        }
    }
    let _ = lock(to).shutdown(std::net::Shutdown::Both);
}

/// A confirmation of a publish.
fn is_reply(frame: &Frame) -> bool {
    frame.verb() == "MSG" && frame.payload().starts_with(b"{\"stream\":")
}
