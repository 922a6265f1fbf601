//! A path between one client and the broker that can be broken on purpose.

use std::{fmt, net::SocketAddr};

mod tcp;

pub use tcp::TcpLink;

/// One of the two ways of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the broker: publishes, acknowledgements.
    ToBroker,
    /// From the broker to the client: confirmations, deliveries.
    ToClient,
}

/// A breakable path. One state for all connections that pass through it; the calls return when
/// the new state is in force for every byte or message not yet forwarded.
pub trait Link: Send + Sync + fmt::Debug {
    /// Where a client connects instead of to the broker; `None` for an embedded broker.
    fn address(&self) -> Option<SocketAddr>;

    /// Breaks every connection at once (both ends see it) and refuses new ones until
    /// [`heal`](Self::heal). What was held is lost.
    fn cut(&self);

    /// Holds everything that flows in this direction (nothing is lost) until
    /// [`heal`](Self::heal) lets it go, or [`cut`](Self::cut) loses it.
    fn hold(&self, direction: Direction);

    /// Lets everything flow again, first what was held; new connections are accepted.
    fn heal(&self);

    /// The embedded backend's own link behind this one, to know its links again.
    fn as_any(&self) -> &dyn std::any::Any;
}
