//! Asking a broker on this machine over HTTP: whether it is ready, and for its figures.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// What `GET path` on a port of 127.0.0.1 answers: its status and its body. In the old version of
/// HTTP that ends with the connection, so that nothing of the newer one needs to be understood.
///
/// # Errors
/// Nobody answers within `patience`, what answers does not speak HTTP, or it answers more than
/// 8 MiB.
pub(super) fn get(port: u16, path: &str, patience: Duration) -> io::Result<(u16, String)> {
    const LONGEST: u64 = 8 * 1024 * 1024;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let question = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    if stream.take(LONGEST + 1).read_to_end(&mut answer)? as u64 > LONGEST {
        return Err(io::Error::other("the answer is too long"));
    }
    let answer = String::from_utf8_lossy(&answer);
    let parsed = || {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut words = head.split(' ');
        words.next().filter(|word| word.starts_with("HTTP/"))?;
        Some((words.next()?.parse().ok()?, body.to_owned()))
    };
    parsed().ok_or_else(|| io::Error::other("something that does not speak HTTP answers"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    fn answered(answer: &'static str) -> io::Result<(u16, String)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 100];
            let length = stream.read(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        let got = get(port, "/ping", Duration::from_secs(30));
        assert!(server.join().unwrap().starts_with("GET /ping HTTP/1.0\r\n"));
        got
    }

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        assert_eq!(answered("HTTP/1.0 200 OK\r\nA: b\r\n\r\nOK").unwrap(), (200, "OK".into()));
        assert_eq!(answered("HTTP/1.1 404 Not Found\r\n\r\n").unwrap(), (404, String::new()));
    }

    #[test]
    fn what_does_not_speak_http_is_an_error() {
        for answer in ["SSH-2.0-x\r\n", "", "HTTP/1.1 \r\n\r\n", "x 200 OK\r\n\r\n"] {
            assert!(answered(answer).is_err(), "{answer}");
        }
    }
}
