//! How this crate speaks HTTP to others: the API of another server, and Consul. Owner of the crates `ureq` and `rustls`.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Most addresses of one name that are tried; the library has room for no more.
const ADDRS_MAX: usize = 16;

/// Returns an agent with these time-outs. It trusts the system's certificates, uses no proxy of the environment and
/// follows no redirect: a token goes to where it was meant to go, and nowhere else. No status is an error.
pub(crate) fn agent(connect: Duration, total: Duration) -> Agent {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_connect(Some(connect))
        .timeout_global(Some(total))
        .user_agent(concat!("backy/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    Agent::with_parts(config, DefaultConnector::default(), Names)
}

/// Looks names up in a thread that can be given up. The library's own panics where there is no thread; here the caller
/// then waits for the name server.
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let name = uri.scheme().zip(uri.authority());
        let name = name.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let name = name.ok_or_else(|| ureq::Error::BadUri(uri.to_string()))?;
        let found = match name.parse::<SocketAddr>() {
            Ok(addr) => vec![addr],
            Err(_) => look_up(name, *timeout.after).ok_or(ureq::Error::Timeout(timeout.reason))??,
        };
        let mut addrs = self.empty();
        found.into_iter().take(ADDRS_MAX).for_each(|addr| addrs.push(addr));
        if addrs.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addrs) }
    }
}

/// Returns the addresses of a name; `None` when that takes too long.
fn look_up(name: String, patience: Duration) -> Option<io::Result<Vec<SocketAddr>>> {
    let find = |name: String| name.to_socket_addrs().map(Iterator::collect);
    let (answer, answered) = sync_channel(1);
    let here = name.clone();
    // Nobody may wait for the answer any more.
    let ask = move || drop(answer.send(find(name)));
    match std::thread::Builder::new().name("names".to_owned()).spawn(ask) {
        Ok(_) => answered.recv_timeout(patience).ok(),
        Err(_) => Some(find(here)),
    }
}
