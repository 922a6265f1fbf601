//! Connecting: nsqd must answer on both its interfaces, or words say which does not, and why.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    NsqSettings,
    address::Address,
    admin::{Admin, Info, Takes},
    connection::Node,
    dial::{Dialer, Greeting},
};
use crate::{BackendError, ErrorKind};

/// What is known once nsqd has answered on both interfaces.
pub(super) struct Met {
    pub(super) node: Node,
    pub(super) info: Info,
    pub(super) greeting: Greeting,
}

/// What nsqd says of itself that does not change while a connector lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) takes: Takes,
    /// How late what is due may be noticed.
    pub(super) resolution: Duration,
}

/// Meets the nsqd of the settings. Its TCP interface is spoken to `through` a link, if there is
/// one; its HTTP interface never is.
pub(super) async fn meet(
    settings: &NsqSettings,
    address: &Address,
    tls: Option<Arc<rustls::ClientConfig>>,
    through: Option<SocketAddr>,
) -> Result<Met, BackendError> {
    let limit = settings.connect_timeout;
    let http = settings.http_url.clone().unwrap_or_else(|| address.http());
    let admin =
        Admin::new(&http, "nsqd's HTTP interface", &settings.tls, limit, settings.request_timeout)?;
    let dialer =
        Dialer { address: address.clone(), through, tls, auth: settings.auth.clone(), limit };
    let info = async {
        timeout(limit, admin.info()).await.unwrap_or_else(|_| {
            let problem = format!("{} gives no answer within {limit:?}", admin.at());
            Err(BackendError::new(ErrorKind::Timeout, problem))
        })
    };
    let (info, opened) = futures::join!(info, dialer.open(None));
    let at = dialer.at();
    match (info, opened) {
        (Ok(info), Ok((_, greeting))) => Ok(Met { node: Node { dialer, admin }, info, greeting }),
        (Err(http), Ok((_, greeting))) => Err(BackendError::new(
            http.kind,
            format!(
                "{at} is nsqd {}, but its HTTP interface, which topics are created through, is \
                 not at {}: {http}; see nsq.http_url",
                greeting.version,
                admin.at()
            ),
        )),
        (Ok(info), Err(tcp)) => Err(BackendError::new(
            tcp.kind,
            format!("{} is the HTTP interface of nsqd {}, but: {tcp}", admin.at(), info.version),
        )),
        (Err(http), Err(tcp)) => {
            Err(BackendError::new(tcp.kind, format!("{tcp} (and of its HTTP interface: {http})")))
        }
    }
}

/// Asks what nsqd takes.
pub(super) async fn terms(met: &Met, settings: &NsqSettings) -> Result<Terms, BackendError> {
    let asking = async { futures::try_join!(met.node.admin.takes(), met.node.admin.topics()) };
    let asked = timeout(settings.connect_timeout, asking).await.unwrap_or_else(|_| {
        let at = met.node.admin.at();
        let problem =
            format!("{at} does not tell its settings within {:?}", settings.connect_timeout);
        Err(BackendError::new(ErrorKind::Timeout, problem))
    });
    let (takes, topics) = asked?;
    if takes.tls_required && met.node.dialer.tls.is_none() {
        let problem = format!(
            "nsqd at {} demands TLS (-tls-required): use nsqs:// instead of nsq://",
            met.node.dialer.at()
        );
        return Err(BackendError::new(ErrorKind::Unsupported, problem));
    }
    let channels: usize = topics.iter().map(|topic| topic.channels.len()).sum();
    Ok(Terms { takes, resolution: resolution(takes.scanned, channels as u64) })
}

/// How often nsqd looks for what is due.
const SCAN: Duration = Duration::from_millis(100);

/// How many channels there may be beside those that were there at first: a run of the suite has
/// about a dozen scenarios at a time, and channels that were deleted count for up to 5 s more.
const OTHERS: u64 = 40;

/// How likely something due may be noticed later than declared.
const UNLIKELY: f64 = 1e-6;

/// How late nsqd may notice that something is due. It looks every 100 ms, at so many channels of
/// all that there are, chosen at random (`-queue-scan-selection-count`); while a quarter of them
/// had something due it looks again at once.
fn resolution(scanned: u64, channels: u64) -> Duration {
    let all = channels + OTHERS;
    if scanned >= all {
        // One look, and the time that it takes.
        return SCAN + SCAN / 2;
    }
    let missed = 1.0 - scanned.max(1) as f64 / all as f64;
    let looks = UNLIKELY.log(missed).ceil().clamp(1.0, 36_000.0);
    SCAN.mul_f64(looks) + SCAN / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_channels_there_are_the_later_what_is_due_may_be_noticed() {
        assert_eq!(resolution(1000, 0), Duration::from_millis(150));
        assert_eq!(resolution(1000, 960), Duration::from_millis(150));
        // Half of them at a time: twenty looks miss with a probability of one in a million.
        assert_eq!(resolution(20, 0), Duration::from_millis(2050));
        let few = resolution(20, 20);
        assert!(Duration::from_secs(3) < few && few < Duration::from_secs(4), "{few:?}");
        assert!(resolution(20, 1_000_000) <= Duration::from_secs(3601));
        assert!(resolution(0, 0) > Duration::from_secs(1));
    }
}
