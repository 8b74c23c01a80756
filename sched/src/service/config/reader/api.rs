//! The sections that hold secrets: `api` and `peers`. No message has a token in it, nor a key of a mapping
//! whose keys are tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde_yaml::Value;

use super::super::{ApiConfig, PORT_DEFAULT, PeerConfig};
use super::ServiceReader;
use crate::config::document;
use crate::config::problem::clip;
use crate::config::reader::{Fields, hint};
use crate::service::rights::{ApiToken, Pattern, Right, Rights};
use crate::source::Secret;

const CLIENT_KEYS: [&str; 3] = ["url", "token", "token-file"];
const PEER_KEYS: [&str; 4] = ["url", "token", "token-file", "counts"];
const TOKEN_KEYS: [&str; 3] = ["name", "rights", "jobs"];

impl ServiceReader<'_> {
    /// Reads the section `api`.
    pub(super) fn api(&mut self, fields: &Fields<'_>) -> ApiConfig {
        let usual = ApiConfig::default();
        let addrs = fields.get("addrs").map(|value| self.addrs(value, &fields.path_to("addrs")));
        let port = self.number(fields, "port", i64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok());
        let mut api = ApiConfig {
            addrs: addrs.unwrap_or(usual.addrs),
            port: port.unwrap_or(PORT_DEFAULT),
            tokens: fields
                .get("tokens")
                .map_or_else(Vec::new, |value| self.tokens(value, &fields.path_to("tokens"))),
            cli_default: None,
        };
        if let Some(text) = self.file(fields, "tokens-file") {
            let path = fields.path_to("tokens-file");
            match document::parse_secrets(&text) {
                Ok((value, _)) => api.tokens.extend(self.tokens(&value, &path)),
                // The lines are those of the other file, which is named.
                Err(problems) => {
                    problems
                        .iter()
                        .for_each(|one| self.common.problem(&path, &format!("in that file: {one}")));
                }
            }
        }
        self.check_distinct(&api.tokens, fields);
        if let Some(value) = fields.get("cli-default") {
            let local_url = api.local_url();
            api.cli_default = self.peer(value, fields.path_to("cli-default"), Some(local_url));
        }
        api
    }

    /// Addresses come as one text with commas or as a list.
    fn addrs(&mut self, value: &Value, place: &[&str]) -> Vec<IpAddr> {
        let words: Vec<&str> = match value {
            Value::String(text) => text.split(',').map(str::trim).collect(),
            Value::Sequence(list) => list.iter().map(|item| item.as_str().unwrap_or_default()).collect(),
            _ => vec![""],
        };
        if words.is_empty() {
            self.common.problem(place, "there must be at least one address");
        }
        let mut addrs = Vec::new();
        for word in words {
            match word.parse::<IpAddr>() {
                Ok(addr) => addrs.push(addr),
                Err(_) => {
                    let message = format!(
                        "{:?} is not an IP address; write addresses with commas between them, as in \"::1, 127.0.0.1\"",
                        clip(word)
                    );
                    self.common.problem(place, &message);
                }
            }
        }
        addrs
    }

    /// Reads token -> name, or token -> name, rights and jobs. No message has a key of this mapping in it.
    fn tokens(&mut self, value: &Value, place: &[&str]) -> Vec<ApiToken> {
        let Value::Mapping(mapping) = value else {
            self.common.problem(place, "it must be a mapping of tokens to names");
            return Vec::new();
        };
        let mut tokens = Vec::new();
        for (number, (token, owner)) in mapping.iter().enumerate() {
            let number = number + 1;
            let owner = self.owner(owner, place, number);
            match token.as_str().map(check_token) {
                Some(Ok(())) => {}
                Some(Err(why)) => self.common.problem(place, &format!("token {number} {why}")),
                None => {
                    self.common.problem(place, &format!("token {number} must be a text; put it into quotes"))
                }
            }
            if let (Some(token), Some((name, rights))) = (token.as_str(), owner) {
                tokens.push(ApiToken { token: Secret::new(token.to_owned()), name, rights });
            }
        }
        tokens
    }

    /// Reads what follows a token: the name of who has it, which means all rights, or a mapping that says which.
    fn owner(&mut self, value: &Value, place: &[&str], number: usize) -> Option<(String, Rights)> {
        match value {
            Value::String(name) if !name.is_empty() => return Some((name.clone(), Rights::all())),
            Value::Mapping(_) => {}
            _ => {
                let message = format!(
                    "what follows token {number} must be a name, or a mapping with `name` and `rights`"
                );
                self.common.problem(place, &message);
                return None;
            }
        }
        let fields = self.common.fields(value, place.to_vec(), Some(&TOKEN_KEYS))?;
        let mut lacks = |key: &str| {
            self.common.problem(place, &format!("the key {key} is missing after token {number}"));
        };
        for key in ["name", "rights"].into_iter().filter(|key| fields.get(key).is_none()) {
            lacks(key);
        }
        let name = self.common.text(&fields, "name");
        let words = self.words(&fields, "rights").unwrap_or_default();
        let mut rights = BTreeSet::new();
        let known = Right::ALL.map(Right::as_str);
        for word in &words {
            match Right::parse(word) {
                Some(right) => drop(rights.insert(right)),
                None => {
                    let message = format!(
                        "unknown right {:?}{}; there are {}",
                        clip(word),
                        hint(word, &known),
                        known.join(", ")
                    );
                    self.common.problem(&fields.path_to("rights"), &message);
                }
            }
        }
        if words.is_empty() && fields.get("rights").is_some() {
            self.common.problem(&fields.path_to("rights"), "it must have at least one right");
        }
        let jobs = self.words(&fields, "jobs").map(|words| self.patterns(&fields, &words));
        if jobs.as_ref().is_some_and(Vec::is_empty) {
            self.common.problem(&fields.path_to("jobs"), "it must have at least one pattern of jobs");
        }
        Some((name?, Rights::new(rights, jobs)))
    }

    fn patterns(&mut self, fields: &Fields<'_>, words: &[String]) -> Vec<Pattern> {
        let mut patterns = Vec::new();
        for word in words {
            match Pattern::parse(word) {
                Ok(pattern) => patterns.push(pattern),
                Err(why) => {
                    self.common.problem(&fields.path_to("jobs"), &format!("{:?}: {why}", clip(word)));
                }
            }
        }
        patterns
    }

    /// A list of texts, or one text with commas; `None` when the key is missing.
    fn words(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<Vec<String>> {
        let value = fields.get(key)?;
        let words = match value {
            Value::String(text) => text.split(',').map(|word| word.trim().to_owned()).collect(),
            Value::Sequence(list) => {
                list.iter().map(|item| item.as_str().unwrap_or_default().to_owned()).collect()
            }
            _ => {
                self.common.problem(&fields.path_to(key), "it must be a list of texts");
                Vec::new()
            }
        };
        Some(words)
    }

    fn check_distinct(&mut self, tokens: &[ApiToken], fields: &Fields<'_>) {
        for (place, ApiToken { token, name, .. }) in tokens.iter().enumerate() {
            if let Some(first) = tokens[..place].iter().find(|other| other.token == *token) {
                let message = format!("{:?} and {:?} have the same token", clip(&first.name), clip(name));
                self.common.problem(&fields.path_to("tokens-file"), &message);
            }
        }
    }

    /// Reads the section `peers`.
    pub(super) fn peers(&mut self, fields: &Fields<'_>) -> BTreeMap<String, PeerConfig> {
        let mut peers = BTreeMap::new();
        for (&name, value) in &fields.entries {
            if let Some(peer) = self.peer(value, fields.path_to(name), None) {
                peers.insert(name.to_owned(), peer);
            }
        }
        peers
    }

    fn peer<'v>(
        &mut self,
        value: &'v Value,
        place: Vec<&'v str>,
        url_default: Option<String>,
    ) -> Option<PeerConfig> {
        let known: &[&str] = if url_default.is_some() { &CLIENT_KEYS } else { &PEER_KEYS };
        let fields = self.common.fields(value, place, Some(known))?;
        let url = match url_default {
            Some(usual) if fields.get("url").is_none() => Some(usual),
            _ => self.common.required(&fields, "url"),
        };
        let url = url.and_then(|url| match check_url(&url) {
            Ok(()) => Some(url.trim_end_matches('/').to_owned()),
            Err(why) => {
                self.common.problem(&fields.path_to("url"), why);
                None
            }
        });
        let token = self.token(&fields);
        let counts = self.common.flag(&fields, "counts").unwrap_or(false);
        let peer = PeerConfig { url: url?, token: token?, counts };
        if peer.sends_openly() {
            let message = "the token goes over the network in plain text: use https://, or a tunnel";
            self.notes.push(self.common.located(&fields.path_to("url"), message));
        }
        Some(peer)
    }

    fn token(&mut self, fields: &Fields<'_>) -> Option<Secret> {
        let (key, token) = match (fields.get("token").is_some(), fields.get("token-file").is_some()) {
            (true, true) => {
                self.common
                    .problem(&fields.path_to("token-file"), "there is a token already: keep one of the two");
                return None;
            }
            (false, false) => return self.common.missing(fields, "token"),
            (true, false) => ("token", self.common.text(fields, "token")?),
            (false, true) => ("token-file", self.file(fields, "token-file")?.trim().to_owned()),
        };
        match check_token(&token) {
            Ok(()) => Some(Secret::new(token)),
            Err(why) => {
                self.common.problem(&fields.path_to(key), &format!("the token {why}"));
                None
            }
        }
    }

    /// Returns the text of the file that a key names.
    fn file(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<String> {
        let path = PathBuf::from(self.common.text(fields, key)?);
        match (self.read_file)(&path) {
            Ok(text) => Some(text),
            Err(why) => {
                self.common.problem(&fields.path_to(key), &why);
                None
            }
        }
    }
}

/// A token goes into a header of HTTP.
pub(in crate::service::config) fn check_token(token: &str) -> Result<(), &'static str> {
    if token.is_empty() {
        Err("is empty")
    } else if token.len() > 1024 {
        Err("is longer than 1024 bytes")
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("must be of printable ASCII characters, without blanks")
    } else {
        Ok(())
    }
}

pub(in crate::service::config) fn check_url(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest else { return Err("it must begin with http:// or https://") };
    let host = rest.split('/').next().unwrap_or_default();
    if host.contains('@') {
        Err("it must not have a name or password in it; the token goes into `token`")
    } else if host.is_empty() || host.starts_with(':') {
        Err("it has no host")
    } else if host.matches(':').count() > 1 && !host.starts_with('[') {
        Err("an IPv6 address in it must be in brackets, as in http://[::1]:6023")
    } else if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("it must be of printable ASCII characters, without blanks")
    } else {
        Ok(())
    }
}
