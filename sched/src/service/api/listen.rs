//! The sockets of the API.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

use crate::error::{Error, Result};

/// Connections that wait until they are accepted.
const BACKLOG: i32 = 128;

/// Listens on every address that this machine has. Returns the sockets, at least one, and where they listen.
pub(super) fn bind(addrs: &[IpAddr], port: u16) -> Result<(Vec<TcpListener>, Vec<SocketAddr>)> {
    let mut listeners = Vec::new();
    let mut bound = Vec::new();
    let mut missing = None;
    for (place, &ip) in addrs.iter().enumerate() {
        if addrs[..place].contains(&ip) {
            continue;
        }
        let addr = SocketAddr::new(ip, port);
        match listen(addr) {
            Ok((listener, addr)) => {
                listeners.push(listener);
                bound.push(addr);
            }
            Err(source) if is_missing(&source) => {
                tracing::warn!(%addr, error = crate::error::in_full(&source), "leaving out an address this machine lacks");
                missing = Some(Error::ApiAddressUnusable { addr, source });
            }
            Err(source) => return Err(Error::ApiAddressUnusable { addr, source }),
        }
    }
    match missing {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok((listeners, bound)),
    }
}

fn listen(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if addr.is_ipv6() {
        // `::` and `0.0.0.0` are two addresses and can both be listed.
        socket.set_only_v6(true)?;
    }
    // A service that is started again need not wait until the kernel has forgotten its old connections.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from(socket);
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

/// Whether the machine has no such address, or no addresses of this kind.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_is_not_here_is_left_out_unless_it_is_the_only_one() {
        // An address for documents: no machine has it.
        let (listeners, addrs) = bind(&[ip("192.0.2.1"), ip("127.0.0.1"), ip("127.0.0.1")], 0).unwrap();
        assert_eq!((listeners.len(), addrs[0].ip()), (1, ip("127.0.0.1")));
        assert!(matches!(bind(&[ip("192.0.2.1")], 0), Err(Error::ApiAddressUnusable { .. })));
    }

    #[test]
    fn an_address_that_is_taken_is_an_error() {
        let (_listeners, addrs) = bind(&[ip("127.0.0.1")], 0).unwrap();
        let error = bind(&[ip("192.0.2.1"), ip("127.0.0.1")], addrs[0].port()).unwrap_err();
        assert_eq!(error.to_string(), format!("the API cannot listen on {}", addrs[0]));
    }

    #[test]
    fn both_unspecified_addresses_can_be_listed() {
        let (_listeners, addrs) = bind(&[ip("0.0.0.0")], 0).unwrap();
        if let Err(error) = bind(&[ip("::")], addrs[0].port()) {
            let Error::ApiAddressUnusable { source, .. } = error else { panic!("{error}") };
            assert!(is_missing(&source), "{source}");
        }
    }
}
