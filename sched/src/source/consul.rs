//! Asks Consul for a consistent snapshot: a request is put under `snapshot/` in its key-value store, and whoever runs
//! the virtual machine takes the snapshot and thereby answers. Four calls, all with a time limit.
//!
//! What fails here never fails a backup: the caller then takes the snapshot by itself.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;

use super::Secret;
use crate::http;

/// Where requests are.
const PREFIX: &str = "snapshot/";
/// Most bytes of an answer.
const BODY_BYTES_MAX: u64 = 4 << 20;
/// The time limit of one call.
const CALL_SECS_MAX: u64 = 10;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsulError {
    #[error("cannot {call} {url}")]
    Call {
        call: &'static str,
        url: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("{url} answers with status {status}")]
    Status { url: String, status: u16 },
    #[error("the answer of {url} makes no sense")]
    Garbage { url: String },
}

type Result<T> = std::result::Result<T, ConsulError>;

/// A Consul server.
pub(crate) struct Consul {
    agent: Agent,
    base: String,
    token: Option<Secret>,
}

impl Consul {
    /// Takes the server's address, with or without `http://`.
    pub(crate) fn new(address: &str, token: Option<Secret>) -> Self {
        let patience = Duration::from_secs(CALL_SECS_MAX);
        let address = address.trim_end_matches('/');
        let base = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        Self { agent: http::agent(patience, patience), base, token }
    }

    /// Puts a request for a snapshot of a virtual machine.
    pub(crate) fn request(&self, vm: &str, snapshot: &str) -> Result<()> {
        // The kernel makes one for every reader.
        let unique = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
        let unique = unique.map_or_else(|_| snapshot.to_owned(), |text| text.trim().to_owned());
        let url = self.url(&format!("{PREFIX}{unique}"), "");
        let body = json!({ "vm": vm, "snapshot": snapshot }).to_string();
        let mut request = self.agent.put(&url);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token.expose());
        }
        let answer = request.send(body.as_str()).map_err(failed("put", &url))?;
        good(answer.status().as_u16(), &url)
    }

    /// Removes the requests of a virtual machine for snapshots of ours, and those that nobody can read.
    pub(crate) fn withdraw(&self, vm: &str) -> Result<()> {
        for key in self.keys()? {
            let url = self.url(&key, "raw");
            let (status, body) = self.get(&url)?;
            if status == 404 {
                continue;
            }
            good(status, &url)?;
            if is_ours_or_nobodys(&body, vm) {
                self.delete(&key)?;
            }
        }
        Ok(())
    }

    fn keys(&self) -> Result<Vec<String>> {
        let url = self.url(PREFIX, "keys");
        let (status, body) = self.get(&url)?;
        if status == 404 {
            return Ok(Vec::new());
        }
        good(status, &url)?;
        let keys: Vec<String> =
            serde_json::from_slice(&body).map_err(|_| ConsulError::Garbage { url: url.clone() })?;
        // Whatever a server says, nothing else is touched.
        Ok(keys.into_iter().filter(|key| is_request(key)).collect())
    }

    fn get(&self, url: &str) -> Result<(u16, Vec<u8>)> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token.expose());
        }
        let mut answer = request.call().map_err(failed("get", url))?;
        let body = answer.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_vec();
        Ok((answer.status().as_u16(), body.map_err(failed("get", url))?))
    }

    fn delete(&self, key: &str) -> Result<()> {
        let url = self.url(key, "");
        let mut request = self.agent.delete(&url);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token.expose());
        }
        let answer = request.call().map_err(failed("delete", &url))?;
        good(answer.status().as_u16(), &url)
    }

    fn url(&self, key: &str, query: &str) -> String {
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}/v1/kv/{key}{mark}{query}", self.base)
    }
}

fn failed(call: &'static str, url: &str) -> impl FnOnce(ureq::Error) -> ConsulError {
    let url = url.to_owned();
    move |source| ConsulError::Call { call, url, source: Box::new(source) }
}

fn good(status: u16, url: &str) -> Result<()> {
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(ConsulError::Status { url: url.to_owned(), status })
}

/// Whether a key is a request: the prefix and a name that needs no encoding in a URL.
fn is_request(key: &str) -> bool {
    let name = key.strip_prefix(PREFIX).unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_ours_or_nobodys(body: &[u8], vm: &str) -> bool {
    let Ok(Value::Object(request)) = serde_json::from_slice(body) else { return true };
    let text = |key: &str| request.get(key).and_then(Value::as_str);
    match (text("vm"), text("snapshot")) {
        (Some(of), Some(snapshot)) => of == vm && snapshot.starts_with(super::rbd::SNAPSHOT_PREFIX),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
