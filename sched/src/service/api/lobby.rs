//! Connections whose client has not shown a token yet. Anybody can open them, so they are counted apart from those of
//! clients with a token, and bounded: in all, and from one address.
//!
//! A new connection for which there is no room replaces the oldest one. So idle connections, however many, keep nobody
//! out: a client that sends its request at once has its answer before it becomes the oldest. A connection is not
//! replaced in its first moments ([`Bounds::age_min`]), since a burst of clients is no attack; meanwhile the next ones
//! wait, some of them: further ones are closed at once. Whoever has room does not wait for them, so a crowd from one
//! address is in the way of nobody else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How many connections there may be without a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// In all.
    pub(super) all: usize,
    /// From one address.
    pub(super) per_address: usize,
    /// The age before which a connection is not replaced.
    pub(super) age_min: Duration,
}

/// All connections without a token.
#[derive(Debug)]
pub(super) struct Lobby {
    bounds: Bounds,
    state: Mutex<State>,
    /// Notified when a connection ends or its client has shown a token.
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By the order in which they came.
    guests: BTreeMap<u64, Guest>,
}

#[derive(Debug)]
struct Guest {
    address: IpAddr,
    since: Instant,
    leave: oneshot::Sender<()>,
}

/// A connection's registration, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    lobby: Arc<Lobby>,
    number: u64,
}

impl Lobby {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, state: Mutex::default(), freed: Notify::new() })
    }

    /// Registers a connection. The receiver fires when another connection replaces it.
    pub(super) async fn enter(self: &Arc<Self>, from: IpAddr) -> (Seat, oneshot::Receiver<()>) {
        loop {
            let freed = self.freed.notified();
            match self.try_enter(from) {
                Ok(entered) => return entered,
                // Until a connection ends, or the oldest one may be replaced.
                Err(wait) => drop(tokio::time::timeout(wait, freed).await),
            }
        }
    }

    /// The same for a connection that has room now; the error is the time after which that may be so.
    pub(super) fn try_enter(
        self: &Arc<Self>,
        from: IpAddr,
    ) -> Result<(Seat, oneshot::Receiver<()>), Duration> {
        let address = network_of(from);
        let mut state = self.state();
        if let Some(wait) = state.make_room(&self.bounds, address, Instant::now()) {
            return Err(wait);
        }
        let (leave, left) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.guests.insert(number, Guest { address, since: Instant::now(), leave });
        Ok((Seat { lobby: Arc::clone(self), number }, left))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes room for one more connection from this address; `Some` is the time after which that is possible.
    fn make_room(&mut self, bounds: &Bounds, address: IpAddr, now: Instant) -> Option<Duration> {
        let of_address = |guest: &&Guest| guest.address == address;
        let is_crowd = self.guests.values().filter(of_address).count() >= bounds.per_address;
        if !is_crowd && self.guests.len() < bounds.all {
            return None;
        }
        let goes = |(_, guest): &(&u64, &Guest)| !is_crowd || guest.address == address;
        let (&oldest, guest) = self.guests.iter().find(goes)?;
        let age = now.saturating_duration_since(guest.since);
        if age < bounds.age_min {
            return Some(bounds.age_min - age);
        }
        if let Some(guest) = self.guests.remove(&oldest) {
            // Its connection may have ended just now.
            let _ = guest.leave.send(());
        }
        None
    }
}

impl Seat {
    /// Takes the connection out: its client has shown a token, so it is not counted or replaced here any more.
    pub(super) fn leave(&self) {
        if self.lobby.state().guests.remove(&self.number).is_some() {
            self.lobby.freed.notify_waiters();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Returns the network that stands for an address: a client with one IPv6 address has the whole /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 3, per_address: 2, age_min: Duration::from_millis(100) };

    fn guest(lobby: &Lobby, address: &str, since: Instant) -> oneshot::Receiver<()> {
        let (leave, left) = oneshot::channel();
        let mut state = lobby.state();
        let number = state.next;
        state.next += 1;
        let address = network_of(address.parse().unwrap());
        state.guests.insert(number, Guest { address, since, leave });
        left
    }

    #[test]
    fn the_one_who_has_waited_longest_makes_room() {
        let lobby = Lobby::new(BOUNDS);
        let start = Instant::now();
        let room =
            |address: &str, now| lobby.state().make_room(&BOUNDS, network_of(address.parse().unwrap()), now);
        let mut first = guest(&lobby, "192.0.2.1", start);
        let mut second = guest(&lobby, "2001:db8::1", start);
        let mut third = guest(&lobby, "2001:db8::2", start);
        assert_eq!(room("192.0.2.9", start), Some(BOUNDS.age_min), "all are new");
        let later = start + BOUNDS.age_min;
        assert_eq!(room("2001:db8::3", later), None, "of a crowd one of its own goes");
        assert!(second.try_recv().is_ok() && first.try_recv().is_err() && third.try_recv().is_err());
        guest(&lobby, "2001:db8::3", later);
        assert_eq!(room("192.0.2.9", later), None);
        assert!(first.try_recv().is_ok() && third.try_recv().is_err());
    }

    #[test]
    fn a_crowd_from_one_address_is_in_nobody_elses_way() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let lobby = Lobby::new(Bounds { all: 3, per_address: 1, age_min: Duration::from_secs(3600) });
            let (crowd, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
            let _first = lobby.try_enter(crowd).unwrap();
            assert!(lobby.try_enter(crowd).is_err());
            let waits = tokio::spawn({
                let lobby = Arc::clone(&lobby);
                async move { lobby.enter(crowd).await }
            });
            tokio::task::yield_now().await;
            let _second = lobby.try_enter(other).unwrap();
            waits.abort();
        });
    }

    #[test]
    fn a_seat_is_free_when_the_client_has_a_token_or_goes() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let lobby = Lobby::new(Bounds { all: 1, per_address: 1, age_min: Duration::from_secs(3600) });
            let address = "192.0.2.1".parse().unwrap();
            let (seat, _left) = lobby.enter(address).await;
            seat.leave();
            let (second, _left) = lobby.enter(address).await;
            let waiting = tokio::spawn({
                let lobby = Arc::clone(&lobby);
                async move { lobby.enter(address).await.0.number }
            });
            tokio::task::yield_now().await;
            drop(second);
            assert_eq!(waiting.await.unwrap(), 2);
            assert!(lobby.state().guests.is_empty());
        });
    }
}
