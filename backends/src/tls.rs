//! Transport security of the backends that speak their protocol themselves: rustls on ring.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{BackendError, ErrorKind};

/// Whom to trust, and who to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates to trust beside the system's (PEM).
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate and its key (PEM).
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The system's certificates. Reading them takes some 20 ms (unoptimised), and every connection
/// asks for them: so they are read once.
static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();

fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // One that is not understood is not trusted; that is all.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

impl Tls {
    /// The library's configuration.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a file that cannot be read or holds something else.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, BackendError> {
        let bad = |file: &PathBuf, error: &dyn std::fmt::Display| {
            let problem = format!("{}: {error}", file.display());
            BackendError::new(ErrorKind::InvalidArgument, problem)
        };
        let certificates = |file: &PathBuf| -> Result<Vec<_>, BackendError> {
            let all = CertificateDer::pem_file_iter(file).map_err(|e| bad(file, &e))?;
            let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|e| bad(file, &e))?;
            match all.is_empty() {
                true => Err(bad(file, &"there is no certificate in it")),
                false => Ok(all),
            }
        };
        let mut roots = SYSTEM.get_or_init(system).clone();
        if let Some(file) = &self.ca_file {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|e| bad(file, &e))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| BackendError::new(ErrorKind::Other, format!("TLS: {e}")))?
            .with_root_certificates(roots);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key_file)) => {
                let key = PrivateKeyDer::from_pem_file(key_file).map_err(|e| bad(key_file, &e))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, key)
                    .map_err(|e| bad(certificate, &e))?
            }
        };
        Ok(Arc::new(config))
    }
}
