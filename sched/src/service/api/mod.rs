//! The HTTP API of the service: what is asked over the network, and who may ask. `docs/api.md` describes every
//! route; [`Control`] is all it sees of the service.
//!
//! - Who has no token learns nothing but whether the service is alive: the token is looked at before the path. Who has
//!   one may do what its rights say; which route needs which right is in `route.rs` alone.
//! - The server has a thread and a runtime of its own, so that it can still tell that the main loop hangs.
//! - Everything has a bound (`Limits`): connections, header, body, time, answers in the making. What blocks, runs
//!   in threads; at most so many at once, and who waits too long for one is told so.
//! - Each token has places of its own for all of these (`places.rs`), so the weakest one cannot shut out the others. A
//!   request that is refused, and one that has a body where none belongs, takes no place.
//! - Who has no token is not kept: the connection is closed, and the log tells of one such request a second. Until a
//!   token is shown, a connection is one of few that make room for newer ones (`lobby.rs`).
//! - A connection that is cut, an answer that cannot be sent, a handler that panics: each ends alone.

mod answer;
mod auth;
mod backups;
mod brake;
mod connection;
mod handler;
mod listen;
mod lobby;
mod metrics;
mod patient;
mod places;
mod route;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};

use self::brake::Brake;
use self::connection::Shared;
use self::lobby::{Bounds, Lobby};
use self::places::Places;
use super::config::ApiConfig;
use super::control::Control;
use crate::error::{Error, Result};

/// The bounds of the API.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections of clients with a token at a time, shared by the tokens; more wait.
    connections: usize,
    /// Connections of the others; the oldest make room.
    strangers: Bounds,
    /// Requests at a time that look at the store or ask the service, shared by the tokens; more wait.
    handlers: usize,
    /// Bytes of a request's first line and headers.
    head_bytes: usize,
    /// Headers of a request.
    headers: usize,
    /// Bytes of a request's body.
    body_bytes: usize,
    /// How long the first line and headers may take, and how long a connection may be silent between requests.
    head_time: Duration,
    /// How long the body may take, and then how long the answer may be in the making.
    request_time: Duration,
    /// How long an answer may take to be fetched.
    answer_time: Duration,
    /// How long answers that are under way when the server stops may still take.
    stop_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            strangers: Bounds { all: 256, per_address: 64, age_min: Duration::from_millis(100) },
            handlers: 8,
            head_bytes: 16 << 10,
            headers: 64,
            body_bytes: 64 << 10,
            head_time: Duration::from_secs(10),
            request_time: Duration::from_secs(30),
            answer_time: Duration::from_secs(30),
            stop_time: Duration::from_secs(5),
        }
    }
}

/// Clients with a token that wait for a connection of their own to be counted; connections without one that wait for room.
const WAITING_MAX: usize = 256;
/// More connections of clients with a token than there can be.
const CONNECTIONS_MAX: u32 = 1 << 20;
/// Requests at work that need no disk.
const QUICK_HANDLERS: usize = 2;

/// A running API. Dropping it ends it as [`Server::stop`] does, without waiting.
#[derive(Debug)]
pub struct Server {
    /// The addresses and the port that it was started with.
    wanted: (Vec<IpAddr>, u16),
    addrs: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Listens on all of `addrs` that this machine has, and answers from a thread of its own. An address that the
    /// machine does not have is left out with a warning as long as one remains; one that is taken is an error.
    /// Port 0 takes a free one. Nobody can ask without a token: with none configured do not start it.
    pub fn start(addrs: &[IpAddr], port: u16, control: Arc<dyn Control>) -> Result<Self> {
        Self::start_within(addrs, port, control, Limits::default())
    }

    pub(crate) fn start_within(
        addrs: &[IpAddr],
        port: u16,
        control: Arc<dyn Control>,
        limits: Limits,
    ) -> Result<Self> {
        let wanted = (addrs.to_vec(), port);
        let (listeners, addrs) = listen::bind(addrs, port)?;
        let failed = |source| Error::ApiNotStarted { source };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared::new(control, limits, stopped));
        let serve = move || serve(runtime, listeners, &shared);
        let thread = std::thread::Builder::new().name("api".to_owned()).spawn(serve).map_err(failed)?;
        for addr in &addrs {
            tracing::info!(%addr, "listening");
        }
        Ok(Self { wanted, addrs, stop, thread })
    }

    /// Tries whether a server could listen on these addresses, but for those in `taken`, which a running one will give
    /// back. The error is that of [`Server::start`].
    pub fn try_to_listen(addrs: &[IpAddr], port: u16, taken: &[SocketAddr]) -> Result<()> {
        let is_free = |addr: &&IpAddr| !taken.contains(&SocketAddr::new(**addr, port));
        let new: Vec<IpAddr> = addrs.iter().filter(is_free).copied().collect();
        if new.is_empty() { Ok(()) } else { listen::bind(&new, port).map(drop) }
    }

    /// Whether it was started with what the configuration wants.
    pub fn serves(&self, config: &ApiConfig) -> bool {
        !config.tokens.is_empty() && self.wanted == (config.addrs.clone(), config.port)
    }

    /// Whether it could listen on an address now that the machine did not have when it was started.
    pub fn could_listen_on_more(&self) -> bool {
        let (addrs, port) = &self.wanted;
        let missing =
            addrs.iter().map(|addr| SocketAddr::new(*addr, *port)).filter(|addr| !self.addrs.contains(addr));
        *port != 0 && missing.into_iter().any(|addr| std::net::TcpListener::bind(addr).is_ok())
    }

    /// The addresses it listens on.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Takes no more requests, lets the answers that are under way end for some seconds, then cuts the rest. Blocks.
    pub fn stop(self) {
        // The thread may be gone already.
        let _ = self.stop.send(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the API ended with a panic");
        }
    }
}

/// Runs the API until it is told to stop.
fn serve(runtime: Runtime, listeners: Vec<std::net::TcpListener>, shared: &Arc<Shared>) {
    runtime.block_on(async {
        for listener in listeners {
            tokio::spawn(connection::accept(listener, Arc::clone(shared)));
        }
        shared.stopped().await;
        // Every connection of a client with a token holds one.
        let all_ended = shared.open.acquire_many(CONNECTIONS_MAX);
        if tokio::time::timeout(shared.limits.stop_time, all_ended).await.is_err() {
            tracing::info!("cutting connections that did not end");
        }
    });
    // A handler that hangs in a file system must not keep the service from ending.
    runtime.shutdown_background();
}

impl Shared {
    fn new(control: Arc<dyn Control>, limits: Limits, stop: watch::Receiver<bool>) -> Self {
        Self {
            control,
            limits,
            stop,
            open: Arc::new(Semaphore::new(CONNECTIONS_MAX as usize)),
            connections: Places::new(limits.connections),
            waiting: Places::new(WAITING_MAX),
            lobby: Lobby::new(limits.strangers),
            waiting_strangers: Arc::new(Semaphore::new(WAITING_MAX)),
            handlers: Places::new(limits.handlers),
            quick_handlers: Places::new(QUICK_HANDLERS),
            refusals: Brake::default(),
        }
    }

    /// Returns when the server is to stop.
    async fn stopped(&self) {
        // An error says that the server was dropped.
        drop(self.stop.clone().wait_for(|stop| *stop).await);
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
