//! The peers on their way from the service to its children, by standard input: what counts is the configuration in
//! force, not the file as it may have been edited since; and tokens do not belong into arguments.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::service::config::PeerConfig;
use crate::source::Secret;

/// Writes the peers down.
pub fn to_json(peers: &BTreeMap<String, PeerConfig>) -> String {
    let peer = |peer: &PeerConfig| json!({ "url": peer.url, "token": peer.token.expose() });
    let peers: BTreeMap<&String, Value> = peers.iter().map(|(name, config)| (name, peer(config))).collect();
    json!(peers).to_string()
}

/// Reads what [`to_json`] has written; `None` for anything else.
pub fn from_json(text: &str) -> Option<BTreeMap<String, PeerConfig>> {
    let peers: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(text).ok()?;
    let peer = |(name, mut peer): (String, BTreeMap<String, String>)| {
        let config =
            PeerConfig { url: peer.remove("url")?, token: Secret::new(peer.remove("token")?), counts: false };
        Some((name, config))
    };
    peers.into_iter().map(peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_arrive_as_they_left() {
        let peer = PeerConfig {
            url: "https://b".to_owned(),
            token: Secret::new("s3cret".to_owned()),
            counts: false,
        };
        let peers = BTreeMap::from([("backup2".to_owned(), peer)]);
        assert_eq!(from_json(&to_json(&peers)), Some(peers));
        assert_eq!(from_json("{}"), Some(BTreeMap::new()));
        for text in ["", "{", "[]", "{\"a\": {}}", "{\"a\": {\"url\": \"x\"}}"] {
            assert_eq!(from_json(text), None, "{text}");
        }
    }
}
