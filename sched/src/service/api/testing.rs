//! A service without a service, and requests byte by byte, for the tests of the API and of its client.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use backy_store::{JobName, Repository, Timestamp};
use serde_json::json;
use tempfile::TempDir;

use super::{Limits, Server};
use crate::config::Problem;
use crate::error::{Error, Result};
use crate::policy::Schedule;
use crate::policy::health::JobFacts;
use crate::service::control::{Control, JobEntry, Silence, StatusEntry, Vitals};
use crate::service::rights::ApiToken;
use crate::source::Secret;

/// The token of these tests, and what else must never be seen.
pub(crate) const TOKEN: &str = "T0ken-of-the-tests";
pub(crate) const ACL_TOKEN: &str = "Acl-t0ken-of-a-job";

/// The manifest of a complete revision in the original's form.
const MANIFEST: &str = "backend_type: chunked\norig_tags: []\nparent: ''\nserver: ''\nstats:\n  bytes_written: 5\n  duration: 1.5\ntags:\n- daily\n- weekly\ntimestamp: 2024-03-01 02:00:00+00:00\ntrust: trusted\nuuid: ";

/// What the API sees of a service, as the test wants it.
pub(crate) struct Fake {
    pub(crate) dir: TempDir,
    /// Tokens beside the one of the tests, which may do everything.
    pub(crate) tokens: Vec<ApiToken>,
    pub(crate) active: BTreeSet<JobName>,
    pub(crate) entries: Vec<StatusEntry>,
    pub(crate) vitals: Vitals,
    /// How long the main loop has been away.
    pub(crate) silence: Duration,
    pub(crate) refuses_reload: bool,
    pub(crate) started: Mutex<Vec<String>>,
    pub(crate) purges: AtomicUsize,
    /// While it is false, `status` does not return.
    pub(crate) open: (Mutex<bool>, Condvar),
}

impl Fake {
    /// One configured job `web01` without a directory, one dead directory `old` with two revisions.
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let repository = Repository::create(&dir.path().join("store"), now()).unwrap();
        let job = repository.create_job(&name("old"), false, "source: {}\n", now()).unwrap();
        for (id, replaced, by) in [("aaa", "", ""), ("bbb", "server: ''", "server: backup2")] {
            let text = format!("{MANIFEST}{id}\n").replace(replaced, by);
            let text = if replaced.is_empty() { format!("{MANIFEST}{id}\n") } else { text };
            std::fs::write(job.dir().join(format!("{id}.rev")), text).unwrap();
        }
        let entry = |job: &str, sla: Option<&str>, status: &str| StatusEntry {
            job: job.to_owned(),
            sla: sla.map(str::to_owned),
            status: status.to_owned(),
            last_duration: Some(2.5),
            ..StatusEntry::default()
        };
        Self {
            dir,
            tokens: Vec::new(),
            active: BTreeSet::from([name("web01")]),
            entries: vec![entry("web01", Some("OK"), "running (slow)"), entry("old", None, "Dead")],
            vitals: Vitals { seen_at: Some(Timestamp::now()), workers: 3, ..Vitals::default() },
            silence: Duration::ZERO,
            refuses_reload: false,
            started: Mutex::default(),
            purges: AtomicUsize::new(0),
            open: (Mutex::new(true), Condvar::new()),
        }
    }

    /// Lets `status` return or not.
    pub(crate) fn set_open(&self, open: bool) {
        *self.open.0.lock().unwrap() = open;
        self.open.1.notify_all();
    }

    pub(crate) fn serve(self) -> (Arc<Self>, Server) {
        self.serve_within(Limits::default())
    }

    pub(crate) fn serve_within(self, limits: Limits) -> (Arc<Self>, Server) {
        let fake = Arc::new(self);
        let addrs = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let server = Server::start_within(&addrs, 0, Arc::clone(&fake) as Arc<dyn Control>, limits).unwrap();
        (fake, server)
    }
}

impl Control for Fake {
    fn tokens(&self) -> Arc<Vec<ApiToken>> {
        let mut tokens = vec![ApiToken::of_admin(Secret::new(TOKEN.to_owned()), "tests")];
        tokens.extend(self.tokens.iter().cloned());
        Arc::new(tokens)
    }

    fn status(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<StatusEntry> {
        let open = self.open.0.lock().unwrap();
        drop(self.open.1.wait_while(open, |open| !*open).unwrap());
        self.entries.iter().filter(|entry| wanted(&entry.job)).cloned().collect()
    }

    fn jobs(&self) -> Vec<JobEntry> {
        let job = |job: &JobName| JobEntry {
            name: job.to_string(),
            status: "running (slow)".to_owned(),
            // A service that forgot to hide a secret.
            source: json!({ "type": "flyingcircus", "consul_acl_token": ACL_TOKEN }),
            schedule: json!({ "daily": { "interval": "1d", "keep": 7 } }),
        };
        self.active.iter().map(job).collect()
    }

    fn silence(&self) -> Silence {
        Silence { lasted: self.silence, max: Duration::from_secs(120) }
    }

    fn facts(&self, now: Timestamp) -> Vec<JobFacts> {
        let facts = |job: &JobName| JobFacts {
            since: Some(now.plus_secs(-10 * 86_400)),
            quarantine_reports: 1,
            ..JobFacts::new(job.clone(), &Schedule::usual())
        };
        self.active.iter().map(facts).collect()
    }

    fn run(&self, job: &JobName) -> bool {
        let active = self.is_active(job);
        if active {
            self.started.lock().unwrap().push(job.to_string());
        }
        active
    }

    fn reload(&self) -> Result<()> {
        let problem = |message: &str| Problem {
            mark: None,
            place: "jobs.web01".to_owned(),
            message: message.to_owned(),
        };
        match self.refuses_reload {
            false => Ok(()),
            true => Err(Error::ConfigInvalid {
                path: "/etc/backy.conf".into(),
                problems: vec![problem("no `source`"), problem("no `schedule`")],
            }),
        }
    }

    fn is_active(&self, job: &JobName) -> bool {
        self.active.contains(job)
    }

    fn dead_jobs(&self) -> Result<Vec<JobName>> {
        Ok(vec![name("old")])
    }

    fn repository(&self) -> Result<Repository> {
        Ok(Repository::open(&self.dir.path().join("store"))?)
    }

    fn request_purge(&self) {
        self.purges.fetch_add(1, Ordering::SeqCst);
    }

    fn vitals(&self) -> Vitals {
        self.vitals.clone()
    }
}

pub(crate) fn name(name: &str) -> JobName {
    JobName::parse(name).unwrap()
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_secs(1_709_294_400).unwrap()
}

/// Connects; a test that would wait for ever fails instead.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Sends bytes and returns all that comes until the server closes.
pub(crate) fn exchange(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(addr);
    // The server may refuse before it has read everything.
    let _ = stream.write_all(bytes);
    rest(&mut stream)
}

/// Returns all that still comes until the server closes.
pub(crate) fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    // A reset after the answer is an end too.
    while let Ok(number @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..number]);
    }
    String::from_utf8(answer).unwrap()
}

/// Sends one request with the token.
pub(crate) fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    split(&exchange(addr, request.as_bytes()))
}

/// Sends one request with a token of its own; returns the status and the whole answer.
pub(crate) fn ask_as(addr: SocketAddr, token: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    let answer = exchange(addr, request.as_bytes());
    (split(&answer).0, answer)
}

/// Returns status and body of an answer; status 0 when there was none.
pub(crate) fn split(answer: &str) -> (u16, String) {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}
