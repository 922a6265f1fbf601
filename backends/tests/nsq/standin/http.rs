//! As much of nsqd's HTTP interface as the client uses.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{Manner, Shared, queue::Topic};

/// Takes questions.
pub(super) async fn serve(listener: TcpListener, shared: &Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let _ = question(socket, &shared).await;
        });
    }
}

/// Answers one question. None of those that are asked has a body.
async fn question(socket: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    let mut first = String::new();
    socket.read_line(&mut first).await?;
    if !first.contains(" HTTP/1.") {
        return socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    }
    let mut header = String::from("x");
    while !header.trim().is_empty() {
        header.clear();
        if socket.read_line(&mut header).await? == 0 {
            return Ok(());
        }
    }
    if shared.options.manner == Manner::Mute {
        std::future::pending::<()>().await;
    }
    let mut words = first.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.into_iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.replace("%23", "#")).unwrap_or_default()
    };
    let (status, body) = answer(shared, method, path, &value("topic"), &value("channel"));
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    socket.shutdown().await
}

fn answer(
    shared: &Shared,
    method: &str,
    path: &str,
    topic: &str,
    channel: &str,
) -> (&'static str, String) {
    let ok = |body: String| ("200 OK", body);
    let not_found = |what: &str| ("404 Not Found", json!({ "message": what }).to_string());
    let mut state = shared.state();
    let broker = &mut state.broker;
    match (method, path) {
        ("GET", "/ping") => ok("OK".into()),
        ("GET", "/info") => ok(json!({
            "version": "stand-in",
            "broadcast_address": "127.0.0.1",
            "hostname": "stand-in",
            "http_port": shared.http.port(),
            "tcp_port": shared.tcp.port(),
        })
        .to_string()),
        ("GET", "/stats") => {
            let wanted = broker.topics.iter().filter(|(n, _)| topic.is_empty() || *n == topic);
            let topics: Vec<_> = wanted.map(|(name, topic)| stats(name, topic)).collect();
            // As Go writes an empty list.
            let topics = if topics.is_empty() { Value::Null } else { topics.into() };
            ok(json!({ "version": "stand-in", "topics": topics }).to_string())
        }
        ("GET", _) if let Some(name) = path.strip_prefix("/config/") => {
            match config(shared, name) {
                Some(value) => ok(value.to_string()),
                None => ("400 Bad Request", json!({ "message": "INVALID_OPTION" }).to_string()),
            }
        }
        ("POST", "/topic/create") => {
            broker.topics.entry(topic.into()).or_default();
            ok(String::new())
        }
        ("POST", "/channel/create") if broker.topics.contains_key(topic) => {
            broker.channel(topic, channel);
            ok(String::new())
        }
        ("POST", "/topic/delete") if broker.topics.remove(topic).is_some() => {
            if let Some(deleted) = &state.deleted {
                deleted.send_replace(topic.into());
            }
            ok(String::new())
        }
        ("POST", "/channel/create" | "/topic/delete") => not_found("TOPIC_NOT_FOUND"),
        _ => not_found("NOT_FOUND"),
    }
}

fn stats(name: &str, topic: &Topic) -> Value {
    let channels = topic.channels.iter().map(|(name, channel)| {
        json!({
            "channel_name": name,
            "depth": channel.waiting.len(),
            "in_flight_count": channel.in_flight.len(),
            "deferred_count": channel.deferred.len(),
            "client_count": channel.clients.len(),
        })
    });
    json!({
        "topic_name": name,
        "depth": topic.held.len(),
        "message_count": topic.published,
        "channels": channels.collect::<Vec<_>>(),
    })
}

fn config(shared: &Shared, name: &str) -> Option<u64> {
    let options = &shared.options;
    Some(match name {
        "max_msg_size" => options.max_msg_size as u64,
        "max_body_size" => options.max_body_size as u64,
        "mem_queue_size" => 10_000,
        "max_req_timeout" => options.max_req_timeout.as_nanos() as u64,
        "max_msg_timeout" => options.max_msg_timeout.as_nanos() as u64,
        // It looks through all.
        "queue_scan_selection_count" => 1_000_000,
        "tls_required" => 0,
        _ => return None,
    })
}
