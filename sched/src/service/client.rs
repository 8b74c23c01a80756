//! The client of the API: what [`api`](super::api) offers, from the other side. Blocks.
//!
//! A server may be slow, broken or somebody else's: every call has a time in which it ends and a size beyond which an
//! answer is not read, and what comes is data, never believed to be harmless. The token goes to the server that was
//! named and nowhere else: no proxy of the environment, no redirect.

mod backups;

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::config::PeerConfig;
use super::control::{JobEntry, StatusEntry};
use crate::error::{Error, Result};
use crate::http;
use crate::policy::health::Report;
use crate::service::rights::{MISSING_RIGHT, Right};

pub use backups::{RemoteList, RemoteRevision, RemoteStats, Reply};

/// The longest answer that is read: states of some 100,000 jobs.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// The longest text of a refusal that is kept.
const MESSAGE_CHARS_MAX: usize = 64 << 10;

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    connect: Duration,
    total: Duration,
    answer_bytes: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            total: Duration::from_secs(30),
            answer_bytes: ANSWER_BYTES_MAX,
        }
    }
}

/// A service that can be asked.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    peer: PeerConfig,
    task_id: Option<String>,
    answer_bytes: u64,
}

/// How an order to read the configuration again ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// It is in force.
    Done,
    /// It was refused, and the old one stays: one problem on each line, the first sums them up.
    Refused(Vec<String>),
}

impl Client {
    /// Makes a client; nothing is sent yet. `task_id` marks its requests in the log of the service.
    pub fn new(peer: PeerConfig, task_id: Option<&str>) -> Self {
        Self::with_patience(peer, task_id, Patience::default())
    }

    /// As [`Client::new`], for one small question on the way to a backup, which must not wait long for its answer.
    pub(super) fn in_a_hurry(peer: PeerConfig, task_id: Option<&str>) -> Self {
        let (connect, total) = (Duration::from_secs(3), Duration::from_secs(10));
        Self::with_patience(peer, task_id, Patience { connect, total, answer_bytes: 1 << 20 })
    }

    fn with_patience(peer: PeerConfig, task_id: Option<&str>, patience: Patience) -> Self {
        let agent = http::agent(patience.connect, patience.total);
        // What HTTP does not take in a header is not worth a failure.
        let harmless = |id: &&str| id.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        let task_id = task_id.filter(harmless).map(str::to_owned);
        Self { agent, peer, task_id, answer_bytes: patience.answer_bytes }
    }

    /// Returns the address that is asked.
    pub fn url(&self) -> &str {
        &self.peer.url
    }

    /// Returns the states of the jobs whose names match the regular expression, and of dead directories.
    pub fn status(&self, filter: &str) -> Result<Vec<StatusEntry>> {
        self.get(&format!("/v1/status?filter={}", encode(filter)))
    }

    /// Returns what is configured.
    pub fn jobs(&self) -> Result<Vec<JobEntry>> {
        self.get("/v1/jobs")
    }

    /// Returns the verdicts on all jobs.
    pub fn check(&self) -> Result<Report> {
        self.get("/v1/check")
    }

    /// Lets a job run; `false` when the service has no such job.
    pub fn run(&self, job: &str) -> Result<bool> {
        let (status, text) = self.post(&format!("/v1/jobs/{}/run", encode(job)))?;
        match status {
            200..300 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refused(status, &text)),
        }
    }

    /// Lets all jobs run; returns how many.
    pub fn run_all(&self) -> Result<usize> {
        #[derive(Deserialize)]
        struct Started {
            jobs: usize,
        }
        match self.post("/v1/runall")? {
            (200..300, text) => Ok(self.parse::<Started>(&text)?.jobs),
            (status, text) => Err(self.refused(status, &text)),
        }
    }

    /// Lets the service read its configuration again.
    pub fn reload(&self) -> Result<Reloaded> {
        match self.post("/v1/reload")? {
            (200..300, _) => Ok(Reloaded::Done),
            (409, text) => {
                let text = String::from_utf8_lossy(&text);
                let text = text.strip_prefix("409: Conflict: ").unwrap_or(&text);
                Ok(Reloaded::Refused(text.lines().map(str::to_owned).collect()))
            }
            (status, text) => Err(self.refused(status, &text)),
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.agent.get(format!("{}{path}", self.peer.url));
        let answer = self.with_headers(request).call();
        match self.read(answer)? {
            (200, text) => self.parse(&text),
            (status, text) => Err(self.refused(status, &text)),
        }
    }

    fn post(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        let request = self.agent.post(format!("{}{path}", self.peer.url));
        let answer = self.with_headers(request).send_empty();
        self.read(answer)
    }

    fn with_headers<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        let request = request.header("Authorization", format!("Bearer {}", self.peer.token.expose()));
        match &self.task_id {
            Some(task_id) => request.header("taskid", task_id),
            None => request,
        }
    }

    /// Returns status and body. A token that is not known is an error whatever was asked.
    fn read(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<(u16, Vec<u8>)> {
        self.read_within(answer, self.answer_bytes)
    }

    fn read_within(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
        bytes_max: u64,
    ) -> Result<(u16, Vec<u8>)> {
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let status = answer.status().as_u16();
        if status == 401 {
            return Err(Error::TokenRefused { url: self.peer.url.clone() });
        }
        let right = answer.headers().get(MISSING_RIGHT).and_then(|right| right.to_str().ok());
        let right = right.and_then(Right::parse).filter(|_| status == 403);
        match answer.body_mut().with_config().limit(bytes_max).read_to_vec() {
            Ok(text) => match right {
                Some(right) => Err(Error::RightMissing { right, source: self.refused(status, &text).into() }),
                None => Ok((status, text)),
            },
            Err(ureq::Error::BodyExceedsLimit(_)) => {
                Err(self.invalid(format!("it is longer than {bytes_max} bytes")))
            }
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    fn parse<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T> {
        serde_json::from_slice(text).map_err(|error| self.invalid(error.to_string()))
    }

    fn unreachable(&self, error: &ureq::Error) -> Error {
        let url = self.peer.url.clone();
        let reason = match error {
            ureq::Error::Io(error) => error.to_string(),
            ureq::Error::Timeout(timeout) => format!("it takes too long ({timeout})"),
            ureq::Error::HostNotFound => "its name is not known".to_owned(),
            ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::LargeResponseHeader(..) => {
                return self.invalid(error.to_string());
            }
            other => other.to_string(),
        };
        Error::ServiceUnreachable { url, reason }
    }

    fn refused(&self, status: u16, text: &[u8]) -> Error {
        let text = String::from_utf8_lossy(text);
        let text: String = text.trim().chars().take(MESSAGE_CHARS_MAX).collect();
        let own_words = text.starts_with(&format!("{status}: "));
        let message = if own_words { text } else { status.to_string() };
        Error::ServiceRefused { url: self.peer.url.clone(), status, message }
    }

    fn invalid(&self, reason: String) -> Error {
        Error::AnswerInvalid { url: self.peer.url.clone(), reason }
    }
}

/// Percent-encodes one part of a path or a value of a query.
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests;
