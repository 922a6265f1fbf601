//! Addresses and names: what a user writes, checked without connecting.

use crate::{BackendError, ErrorKind, check_name};

/// nsqd's TCP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Whether it demands TLS.
    pub(super) tls: bool,
    /// As one connects to it: an IPv6 address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// The port that nsqd listens on for clients, unless it is told otherwise.
const PORT: u16 = 4150;

/// NSQ's rule for names, in its own terms.
pub(super) const RULE: &str =
    "NSQ takes 1 to 64 characters of .a-zA-Z0-9_-, with #ephemeral at the end or without";

/// What makes a topic or channel live in memory alone.
const EPHEMERAL: &str = "#ephemeral";

fn invalid(problem: impl Into<String>) -> BackendError {
    BackendError::new(ErrorKind::InvalidArgument, problem)
}

impl Address {
    /// Reads `nsq://host:port` or `nsqs://host:port`. An error never repeats what may be a secret.
    pub(super) fn parse(url: &str) -> Result<Address, BackendError> {
        let (tls, rest) = match url.trim().split_once("://") {
            Some(("nsq", rest)) => (false, rest),
            Some(("nsqs", rest)) => (true, rest),
            _ => {
                return Err(invalid(
                    "an NSQ address begins with nsq:// or nsqs://, as nsq://127.0.0.1:4150",
                ));
            }
        };
        if rest.contains('@') {
            return Err(invalid("an address must not hold a secret; set nsq.auth instead"));
        }
        let rest = rest.trim_end_matches('/');
        // The last colon is a port's, unless it is within an IPv6 address's brackets.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().ok().filter(|&port: &u16| port > 0);
                (host, port.ok_or_else(|| invalid("the port of an NSQ address is 1 to 65535"))?)
            }
            _ => (rest, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(['/', '?', '#', ' ', ',', '[', ']']) {
            return Err(invalid("an NSQ address is nsq://HOST:PORT"));
        }
        Ok(Address { tls, host: host.into(), port })
    }

    /// `host:port`, as people and `TcpStream` read it.
    pub(super) fn at(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// nsqd's HTTP address where the settings name none: the next port.
    pub(super) fn http(&self) -> String {
        let port = self.port.checked_add(1).unwrap_or(self.port);
        format!("http://{}", Address { tls: false, host: self.host.clone(), port }.at())
    }
}

/// Checks the address of an HTTP interface, `http://host:port` or `https://host:port`.
pub(super) fn check_http(what: &str, url: &str) -> Result<(), BackendError> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.map(|rest| rest.trim_end_matches('/'));
    let plain = |rest: &str| !rest.is_empty() && !rest.contains(['/', '?', '#', ' ', ',', '@']);
    match rest {
        Some(rest) if plain(rest) => Ok(()),
        _ => Err(invalid(format!("{what} is http://HOST:PORT, as http://127.0.0.1:4151"))),
    }
}

/// The name of a topic or channel as nsqd knows it.
pub(super) fn on_the_wire(what: &str, name: &str, ephemeral: bool) -> Result<String, BackendError> {
    check_name(what, name, RULE)?;
    if !ephemeral {
        return Ok(name.into());
    }
    let wire = format!("{name}{EPHEMERAL}");
    if wire.len() > 64 {
        return Err(invalid(format!(
            "{name:?} is too long for an ephemeral {what}: with {EPHEMERAL} it has {} characters \
             ({RULE})",
            wire.len()
        )));
    }
    Ok(wire)
}

/// The name of a topic as the contract knows it.
pub(super) fn off_the_wire(name: &str) -> &str {
    name.strip_suffix(EPHEMERAL).unwrap_or(name)
}

/// A name in a query: nothing in it but the hash needs care.
pub(super) fn in_query(wire: &str) -> String {
    wire.replace('#', "%23")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_have_a_scheme_a_host_and_perhaps_a_port() {
        let at = |url: &str| Address::parse(url).unwrap().at();
        assert_eq!(at("nsq://localhost"), "localhost:4150");
        assert_eq!(at("nsqs://h:1/"), "h:1");
        assert_eq!(at("nsq://[::1]:5"), "[::1]:5");
        assert_eq!(at("nsq://[::1]"), "[::1]:4150");
        assert!(Address::parse("nsqs://h").unwrap().tls);
        assert_eq!(Address::parse("nsq://h:4150").unwrap().http(), "http://h:4151");
        assert_eq!(Address::parse("nsq://[::1]").unwrap().http(), "http://[::1]:4151");
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_a_secret() {
        for url in
            ["", "localhost:4150", "http://x", "nsq://", "nsq://h:0", "nsq://h:x", "nsq://h/x"]
        {
            assert_eq!(Address::parse(url).unwrap_err().kind, ErrorKind::InvalidArgument, "{url}");
        }
        let error = Address::parse("nsq://hunter2@host").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        for url in ["", "127.0.0.1:4151", "nsq://x:1", "http://", "http://a/b", "http://u@h"] {
            let error = check_http("nsq.http_url", url).unwrap_err().to_string();
            assert!(error.starts_with("nsq.http_url"), "{error}");
        }
        check_http("x", "https://[::1]:4152/").unwrap();
    }

    #[test]
    fn names_are_those_that_every_broker_takes_and_short_enough_to_be_ephemeral() {
        assert_eq!(on_the_wire("topic", "a-b_C9", false).unwrap(), "a-b_C9");
        assert_eq!(on_the_wire("topic", "a", true).unwrap(), "a#ephemeral");
        assert_eq!(off_the_wire("a#ephemeral"), "a");
        assert_eq!(off_the_wire("a"), "a");
        assert_eq!(in_query("a#ephemeral"), "a%23ephemeral");
        assert!(on_the_wire("topic", &"x".repeat(54), true).is_ok());
        for (name, ephemeral) in [("x".repeat(55), true), ("x".repeat(61), false)] {
            let error = on_the_wire("topic", &name, ephemeral).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
        }
        for name in ["", "a.b", "a b", "a#ephemeral", "ä"] {
            assert!(on_the_wire("topic", name, false).is_err(), "{name:?}");
        }
    }
}
