//! Another server, as far as `pull` and `push` see one: a directory of revisions behind a small HTTP. It is written
//! after `docs/api.md` and shares nothing with the real service.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::World;

/// The name under which the worlds know it.
const NAME: &str = "backup2";

/// The server. It goes on until the test ends.
#[derive(Clone, Debug)]
pub struct Peer {
    url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Tags by revision.
    revisions: BTreeMap<String, BTreeSet<String>>,
    requests: Vec<String>,
}

impl Default for Peer {
    fn default() -> Self {
        Self::start()
    }
}

impl Peer {
    /// Starts one without revisions.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let peer = Self { url, state: Arc::default() };
        let serving = peer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serving.serve(stream);
            }
        });
        peer
    }

    /// Gives it a revision, or the revision other tags.
    pub fn put(&self, id: &str, tags: &[&str]) {
        self.state().revisions.insert(id.to_owned(), tags.iter().map(|&tag| tag.to_owned()).collect());
    }

    /// Takes a revision away from it.
    pub fn remove(&self, id: &str) {
        self.state().revisions.remove(id);
    }

    /// The revisions with their tags: `id: a,b`.
    pub fn revisions(&self) -> Vec<String> {
        let line = |(id, tags): (&String, &BTreeSet<String>)| {
            format!("{id}: {}", tags.iter().map(String::as_str).collect::<Vec<_>>().join(","))
        };
        self.state().revisions.iter().map(line).collect()
    }

    /// What it was asked since the last call: method, path and body.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// Writes a world's main configuration, `backy.conf`, which names it as the only peer.
    pub fn configure(&self, world: &World) {
        let text = format!(
            "global: {{base-dir: {}}}\nschedules: {{}}\njobs: {{}}\npeers: {{{NAME}: {{url: '{}', token: t0ken}}}}\n",
            world.store().display(),
            self.url
        );
        fs::write(world.path("backy.conf"), text).expect("write the configuration");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the state of the peer")
    }

    fn serve(&self, mut stream: TcpStream) {
        let Some((line, body)) = read_request(&mut stream) else { return };
        let mut state = self.state();
        state.requests.push(format!("{line} {body}").trim_end().to_owned());
        let (status, body) = state.answer(&line, &body);
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        // Who asked may be dead by now.
        let _ = stream.write_all(answer.as_bytes());
    }
}

impl State {
    fn answer(&mut self, line: &str, body: &str) -> (&'static str, String) {
        let (method, path) = line.split_once(' ').unwrap_or_default();
        match (method, path.split('/').nth(5)) {
            ("POST", _) => ("202 Accepted", String::new()),
            ("GET", _) => {
                let entry = |(id, tags): (&String, &BTreeSet<String>)| {
                    json!({ "uuid": id, "timestamp": "2024-03-01T02:00:00+00:00", "tags": tags,
                            "stats": { "bytes_written": 5, "duration": 1.5 }, "server": "" })
                };
                ("200 OK", Value::from_iter(self.revisions.iter().map(entry)).to_string())
            }
            ("PUT", Some(id)) => self.set_tags(id, body),
            _ => ("400 Bad Request", "400: Bad Request".to_owned()),
        }
    }

    fn set_tags(&mut self, id: &str, body: &str) -> (&'static str, String) {
        let body: Value = serde_json::from_str(body).expect("JSON");
        let tags = |field: &str| -> BTreeSet<String> {
            let list = body[field].as_array().expect("a list of tags");
            list.iter().map(|tag| tag.as_str().expect("a tag").to_owned()).collect()
        };
        match self.revisions.get_mut(id) {
            None => return ("404 Not Found", "404: Not Found".to_owned()),
            Some(present) if *present != tags("old_tags") => {
                return ("412 Precondition Failed", "412: Precondition Failed".to_owned());
            }
            Some(present) => *present = tags("new_tags"),
        }
        self.revisions.retain(|_, tags| !tags.is_empty());
        ("204 No Content", String::new())
    }
}

/// Returns method and path, and the body.
fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    let (mut request, mut piece) = (Vec::new(), [0; 8192]);
    loop {
        let length = stream.read(&mut piece).ok().filter(|&length| length > 0)?;
        request.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let announced =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= announced.unwrap_or(0) {
            let line = head.lines().next()?.replace(" HTTP/1.1", "");
            return Some((line, body.to_owned()));
        }
    }
}
