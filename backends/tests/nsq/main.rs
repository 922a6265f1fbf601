//! The NSQ backend against a stand-in and, wherever there is one, against a real nsqd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod library;
mod server;

use server::Server;

#[tokio::test]
async fn one_late_acknowledgement_through_tokio_nsq_ends_its_connection_and_gives_everything_it_held_to_others()
 {
    if server::is_there("what tokio-nsq does") {
        let server = Server::nsqd(&["-msg-timeout=1s"]).await.unwrap();
        library::one_late_acknowledgement_ends_the_connection(server.tcp, server.http).await;
    }
}
