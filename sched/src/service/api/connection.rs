//! From a socket to a route, and back: accepting, limits, tokens, the body, the log.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use super::answer::Answer;
use super::brake::Brake;
use super::lobby::{Lobby, Seat};
use super::patient::Patient;
use super::places::Places;
use super::route::Route;
use super::{Limits, auth, handler};
use crate::service::control::Control;
use crate::service::offload::{is_lack, offload_for_client};
use crate::service::rights::ApiToken;

/// How long to wait when the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Characters of a request's texts that go into the log.
const LOGGED_CHARS_MAX: usize = 200;

/// What all connections share.
pub(super) struct Shared {
    pub(super) control: Arc<dyn Control>,
    pub(super) limits: Limits,
    pub(super) stop: watch::Receiver<bool>,
    /// Connections of clients that have shown a token, for the end of the server.
    pub(super) open: Arc<Semaphore>,
    /// The same connections, by token.
    pub(super) connections: Places,
    /// Requests with a token that wait until their connection is one of those.
    pub(super) waiting: Places,
    /// Connections of the others.
    pub(super) lobby: Arc<Lobby>,
    /// Connections that wait to be among them.
    pub(super) waiting_strangers: Arc<Semaphore>,
    pub(super) handlers: Places,
    /// For those that need no disk: orders are taken also when the disk hangs.
    pub(super) quick_handlers: Places,
    pub(super) refusals: Brake,
}

/// Accepts connections until the server stops. New ones replace those whose clients show no token. One that has to wait
/// for that does so beside the loop, and is closed where too many wait.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::error!(error = crate::error::in_full(&error), "cannot use a socket of the API");
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stopped() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                receive(stream, peer, &shared);
                // Its request may be there already: read it before the next connection is accepted.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                tracing::warn!(error = crate::error::in_full(&error), "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Begins with a connection, now or when there is room for it.
fn receive(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let begin = move |(seat, left), shared| {
        let guest = Guest { peer, seat, place: OnceLock::new() };
        converse(stream, guest, left, shared)
    };
    let shared = Arc::clone(shared);
    if let Ok(entered) = shared.lobby.try_enter(peer.ip()) {
        tokio::spawn(begin(entered, shared));
    } else if let Ok(waiting) = Arc::clone(&shared.waiting_strangers).try_acquire_owned() {
        tokio::spawn(async move {
            let entered = tokio::select! {
                entered = shared.lobby.enter(peer.ip()) => entered,
                () = shared.stopped() => return,
            };
            drop(waiting);
            begin(entered, shared).await;
        });
    }
}

/// One connection's registrations.
struct Guest {
    peer: SocketAddr,
    /// Among the connections without a token.
    seat: Seat,
    /// Among those with one, once its client has shown it.
    place: OnceLock<Place>,
}

/// A place of a token, which ends when it is dropped.
struct Place {
    of_token: Arc<Semaphore>,
    _permits: [OwnedSemaphorePermit; 2],
}

/// The token that a request shows.
struct Shown<'t> {
    token: &'t ApiToken,
    /// How many tokens there are.
    tokens: usize,
}

impl Shown<'_> {
    fn places(&self, of: &Places) -> Arc<Semaphore> {
        of.of(&self.token.name, self.tokens)
    }
}

impl Guest {
    /// Makes the connection one of a client with a token; `false` when there are too many.
    async fn promote(&self, shared: &Shared, shown: &Shown<'_>) -> bool {
        self.seat.leave();
        if self.place.get().is_some() {
            return true;
        }
        let waiting = shown.places(&shared.waiting);
        let Ok(_waiting) = waiting.try_acquire() else { return false };
        let Ok(open) = Arc::clone(&shared.open).try_acquire_owned() else { return false };
        let of_token = shown.places(&shared.connections);
        match timeout(shared.limits.request_time, Arc::clone(&of_token).acquire_owned()).await {
            // Requests of one connection come one after the other: there is none yet.
            Ok(Ok(permit)) => self.place.set(Place { of_token, _permits: [permit, open] }).is_ok(),
            _ => false,
        }
    }

    /// Whether others with the same token may be waiting for its place.
    fn is_wanted(&self) -> bool {
        self.place.get().is_some_and(|place| place.of_token.available_permits() == 0)
    }
}

/// Answers the requests of one connection until it ends or is replaced.
async fn converse(stream: TcpStream, guest: Guest, left: oneshot::Receiver<()>, shared: Arc<Shared>) {
    let limits = shared.limits;
    let peer = guest.peer;
    let guest = Arc::new(guest);
    let io = TokioIo::new(Patient::new(stream, limits.answer_time));
    let answering = Arc::clone(&shared);
    let service = service_fn(move |request| {
        let (shared, guest) = (Arc::clone(&answering), Arc::clone(&guest));
        async move { Ok::<_, Infallible>(respond(&shared, &guest, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_headers(limits.headers)
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.head_bytes)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        // An error says that its client has shown a token.
        Ok(()) = left => return tracing::trace!(%peer, "a connection without a token made room"),
    };
    if let Err(error) = ended {
        // Anybody can cause this: not for the log.
        tracing::trace!(%peer, error = crate::error::in_full(&error), "a connection ended early");
    }
}

/// Answers one request and logs it.
async fn respond(shared: &Arc<Shared>, guest: &Guest, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let peer = guest.peer;
    let method = request.method().clone();
    let path = clip(request.uri().path());
    let sub_task = sub_task(request.headers());
    let Asked { answer, client, is_order } = answer(shared, guest, request).await;
    let status = answer.code();
    let is_uncounted = client.is_some() && guest.place.get().is_none();
    match client {
        Some(client) if is_order || status >= 400 => {
            tracing::info!(%peer, client, %method, path, status, sub_task, "request");
        }
        Some(client) => tracing::debug!(%peer, client, %method, path, status, sub_task, "request"),
        None if status < 400 => {}
        None => {
            if let Some(others) = shared.refusals.pass(Instant::now()) {
                tracing::info!(%peer, %method, path, status, sub_task, others, "request without a token");
            }
        }
    }
    let mut response = answer.into_response();
    // Nobody keeps a connection while others wait for one, or without a token.
    if status == StatusCode::UNAUTHORIZED || is_uncounted || guest.is_wanted() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer, and what the log says of it.
struct Asked {
    answer: Answer,
    /// Whose token was shown.
    client: Option<String>,
    is_order: bool,
}

async fn answer(shared: &Arc<Shared>, guest: &Guest, request: Request<Incoming>) -> Asked {
    let asked = |answer, client: Option<&ApiToken>| Asked {
        answer,
        client: client.map(|client| client.name.clone()),
        is_order: false,
    };
    if request.uri().path() == "/healthz" {
        return asked(health(shared, request.method()), None);
    }
    let tokens = shared.control.tokens();
    let Some(client) = auth::client(&tokens, request.headers()) else {
        return asked(Answer::status(StatusCode::UNAUTHORIZED), None);
    };
    let uri = request.uri();
    let route = Route::parse(request.method(), uri.path(), uri.query());
    let route = route.and_then(|route| route.authorize(client).map(|()| route));
    // What is refused takes no place, and its body is not read.
    let route = match route.and_then(|route| refuse_body(&request).map(|()| route)) {
        Ok(route) => route,
        Err(answer) => return asked(answer, Some(client)),
    };
    let shown = Shown { token: client, tokens: tokens.len() };
    if !guest.promote(shared, &shown).await {
        let answer = Answer::told(StatusCode::SERVICE_UNAVAILABLE, "too many clients at a time");
        return asked(answer, Some(client));
    }
    let is_order = route.is_order();
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let accept = accept.unwrap_or_default().to_owned();
    let answer = match read_body(request.into_body(), &shared.limits).await {
        Ok(body) => handle(shared, &shown, route, body).await,
        Err(answer) => answer,
    };
    let answer = answer.in_wanted_format(&accept);
    Asked { is_order, ..asked(answer, Some(client)) }
}

/// Needs no token and no thread: it must answer when nothing else does.
fn health(shared: &Shared, method: &Method) -> Answer {
    if method != Method::GET && method != Method::HEAD {
        return Answer::not_allowed("GET, HEAD");
    }
    match shared.control.silence().is_too_long() {
        false => Answer::text(StatusCode::OK, "ok\n"),
        true => Answer::text(StatusCode::SERVICE_UNAVAILABLE, "not ok\n"),
    }
}

/// Refuses a question that has a body: nothing needs it, and while it comes it would hold a place.
fn refuse_body(request: &Request<Incoming>) -> Result<(), Answer> {
    let is_question = matches!(*request.method(), Method::GET | Method::HEAD);
    match is_question && !request.body().is_end_stream() {
        true => Err(Answer::told(StatusCode::BAD_REQUEST, "a GET or HEAD request has no body")),
        false => Ok(()),
    }
}

async fn read_body(body: Incoming, limits: &Limits) -> Result<Bytes, Answer> {
    let too_large = || Answer::status(StatusCode::PAYLOAD_TOO_LARGE);
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(too_large());
    }
    match timeout(limits.request_time, Limited::new(body, limits.body_bytes).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Answer::status(StatusCode::BAD_REQUEST)),
        Err(_) => Err(Answer::status(StatusCode::REQUEST_TIMEOUT)),
    }
}

/// Runs the handler in a thread. One that takes too long goes on there, and counts among those at work, until it ends:
/// what it has begun is not left half done.
async fn handle(shared: &Arc<Shared>, shown: &Shown<'_>, route: Route, body: Bytes) -> Answer {
    let handled = async {
        let handlers = if route.needs_disk() { &shared.handlers } else { &shared.quick_handlers };
        let permit = shown.places(handlers).acquire_owned().await;
        let (control, rights) = (Arc::clone(&shared.control), shown.token.rights.clone());
        offload_for_client(move || {
            let answer = handler::handle(&*control, &rights, route, &body);
            drop(permit);
            answer
        })
        .await
    };
    match timeout(shared.limits.request_time, handled).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if is_lack(&error) => Answer::told(
            StatusCode::SERVICE_UNAVAILABLE,
            "the service gets no thread for the request: raise its limit of processes and threads (`ulimit -u`, or \
             TasksMax in systemd)",
        ),
        Ok(Err(error)) => {
            tracing::error!(error = crate::error::in_full(&error), "a request ended in a panic");
            Answer::status(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(_) => Answer::told(
            StatusCode::SERVICE_UNAVAILABLE,
            "the answer takes too long; what was ordered may still be done",
        ),
    }
}

/// The mark that the client gives its request.
fn sub_task(headers: &HeaderMap) -> String {
    headers.get("taskid").map_or_else(String::new, |value| clip(&String::from_utf8_lossy(value.as_bytes())))
}

fn clip(text: &str) -> String {
    text.chars().take(LOGGED_CHARS_MAX).collect()
}
