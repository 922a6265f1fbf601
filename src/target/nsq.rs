//! Reaching NSQ.

use std::sync::Arc;

use queueproof_backends::nsq::{NsqConnector, NsqSettings, Secret, Tls};

use super::{Reached, Unreached, Waiting, private::private};
use crate::{
    brokers::Wanted,
    config::{self, secret},
};

/// Reaches nsqd at a URL, or one that is started for it.
pub(super) fn reach(nsq: &config::Nsq, waiting: Waiting<'_>) -> Result<Reached, Unreached> {
    let broken = |error: &dyn ToString| Unreached::Broken(error.to_string());
    let auth = secret("nsq.auth", "secret", &nsq.auth.secret_file, &nsq.auth.secret_env)
        .map_err(|e| broken(&e))?;
    let (url, http_url, broker) = match &nsq.url {
        Some(url) => (url.clone(), nsq.http_url.clone(), None),
        None => {
            let wanted = Wanted { binary: nsq.server.binary.clone(), version: None };
            let size = nsq.server.mem_queue_size.map(|size| format!("-mem-queue-size={size}"));
            let broker = private("nsq", &wanted, waiting, |settings| settings.flags.extend(size))?;
            (broker.url().to_string(), broker.admin_url().map(String::from), Some(broker))
        }
    };
    let settings = NsqSettings {
        url,
        http_url,
        lookupd: nsq.lookupd.0.clone(),
        ephemeral: nsq.ephemeral,
        new_channel_wait: nsq.new_channel_wait,
        connect_timeout: nsq.connect_timeout,
        request_timeout: nsq.request_timeout,
        auth: auth.map(Secret),
        tls: Tls {
            ca_file: nsq.tls.ca_file.clone(),
            client: nsq.tls.cert_file.clone().zip(nsq.tls.key_file.clone()),
        },
    };
    let connector = NsqConnector::new(settings).map_err(|e| broken(&e))?;
    Ok(Reached { connector: Arc::new(connector), broker })
}
