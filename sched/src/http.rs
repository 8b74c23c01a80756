//! How this crate speaks HTTP to others: the API of another server, and Consul. Owner of the crates `ureq` and `rustls`.

use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

/// Returns an agent with these time-outs. It trusts the system's certificates, uses no proxy of the environment and
/// follows no redirect: a token goes to where it was meant to go, and nowhere else. No status is an error.
pub(crate) fn agent(connect: Duration, total: Duration) -> Agent {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_connect(Some(connect))
        .timeout_global(Some(total))
        .user_agent(concat!("backy/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .new_agent()
}
