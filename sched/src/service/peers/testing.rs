//! Two servers for the tests: a job with a store here, and the same job in a store behind a real API.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use backy_store::{Job, Repository, Revision, RevisionId, Tag};
use tempfile::TempDir;

use crate::policy::testing::tags;
use crate::service::api::Server;
use crate::service::api::testing::{Fake, TOKEN, name, now};
use crate::service::config::PeerConfig;

/// The job of these tests; the fake service has a dead directory of this name, with the revision `aaa`.
pub(crate) const JOB: &str = "old";
/// The peer's name.
pub(crate) const PEER: &str = "backup2";

pub(crate) struct Here {
    _dir: TempDir,
    pub(crate) job: Job,
}

impl Here {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let repository = Repository::create(&dir.path().join("store"), now()).unwrap();
        let job = repository.create_job(&name(JOB), false, "source: {}\n", now()).unwrap();
        Self { _dir: dir, job }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        seen(&self.job)
    }

    pub(crate) fn set_tags(&self, id: &str, list: &str) {
        set_tags(&self.job, id, list);
    }
}

/// All revisions and notes: `id server tags orig_tags`.
pub(crate) fn seen(job: &Job) -> Vec<String> {
    let join = |tags: &BTreeSet<Tag>| tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(",");
    let line =
        |one: &Revision| format!("{} {} {} {}", one.id, one.server, join(&one.tags), join(&one.orig_tags));
    let mut lines: Vec<String> = job.revisions().unwrap().revisions.iter().map(line).collect();
    lines.sort();
    lines
}

pub(crate) fn set_tags(job: &Job, id: &str, list: &str) {
    let guard = job.lock_manifests().unwrap();
    job.set_tags(&guard, &RevisionId::parse(id).unwrap(), tags(list)).unwrap();
}

/// Writes the manifest of a complete revision by hand.
pub(crate) fn add(job: &Job, id: &str, list: &str) {
    let text = format!(
        "{{uuid: {id}, timestamp: 2024-03-01 02:00:00+00:00, stats: {{duration: 1.5}}, tags: [{list}], \
         backend_type: chunked}}\n"
    );
    std::fs::write(job.dir().join(format!("{id}.rev")), text).unwrap();
}

/// Removes a revision as nobody should.
#[expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]
pub(crate) fn delete(job: &Job, id: &str) {
    std::fs::remove_file(job.dir().join(format!("{id}.rev"))).unwrap();
}

/// Another server.
pub(crate) struct There {
    pub(crate) fake: Arc<Fake>,
    pub(crate) job: Job,
    pub(crate) server: Server,
}

impl There {
    pub(crate) fn new() -> Self {
        Self::of(Fake::new())
    }

    pub(crate) fn of(fake: Fake) -> Self {
        let job = Repository::open(&fake.dir.path().join("store")).unwrap().job(&name(JOB)).unwrap();
        let (fake, server) = fake.serve();
        Self { fake, job, server }
    }

    pub(crate) fn config(&self) -> PeerConfig {
        PeerConfig::new(&format!("http://{}", self.server.local_addrs()[0]), TOKEN).unwrap()
    }

    pub(crate) fn peers(&self) -> BTreeMap<String, PeerConfig> {
        BTreeMap::from([(PEER.to_owned(), self.config())])
    }

    /// The tags of a revision there, `None` when it is gone.
    pub(crate) fn tags_of(&self, id: &str) -> Option<BTreeSet<Tag>> {
        self.job.revision(&RevisionId::parse(id).unwrap()).ok().map(|revision| revision.tags)
    }
}

/// A peer where nobody listens.
pub(crate) fn nobody() -> PeerConfig {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    PeerConfig::new(&format!("http://{}", free.local_addr().unwrap()), TOKEN).unwrap()
}

/// A peer that answers as `answer` says to the first line of a request: a status line's rest and a body.
pub(crate) fn liar(answer: impl Fn(&str) -> (&'static str, String) + Send + 'static) -> PeerConfig {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = PeerConfig::new(&format!("http://{}", listener.local_addr().unwrap()), TOKEN).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 8192];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let (status, body) = answer(request.lines().next().unwrap_or_default());
            let head =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        }
    });
    config
}
