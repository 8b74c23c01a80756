//! Against a small real HTTP server that speaks the four calls.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

const TOKEN: &str = "5b1c";

/// A key-value store behind HTTP; its thread ends with the process.
struct Server {
    address: String,
    keys: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let keys = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = Arc::clone(&keys);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(&stream, &shared);
            }
        });
        Self { address, keys }
    }

    fn consul(&self, token: &str) -> Consul {
        Consul::new(&self.address, Some(Secret::new(token.to_owned())))
    }

    fn put(&self, key: &str, value: &str) {
        self.keys.lock().unwrap().insert(key.to_owned(), value.to_owned());
    }

    fn values(&self) -> Vec<String> {
        self.keys.lock().unwrap().values().cloned().collect()
    }
}

fn serve(mut stream: &TcpStream, keys: &Mutex<BTreeMap<String, String>>) {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    while head.last().is_none_or(|line: &String| !line.is_empty()) {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        head.push(line.trim_end().to_owned());
    }
    let header = |name: &str| head.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = vec![0; header("content-length:").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let words: Vec<&str> = head[0].split(' ').collect();
    let path = words[1].strip_prefix("/v1/kv/").unwrap();
    let (key, query) = path.split_once('?').unwrap_or((path, ""));
    let mut keys = keys.lock().unwrap();
    let answer = match (words[0], query) {
        _ if header("x-consul-token:") != Some(TOKEN) => (403, "no".to_owned()),
        ("PUT", "") => {
            keys.insert(key.to_owned(), String::from_utf8(body).unwrap());
            (200, "true".to_owned())
        }
        ("GET", "keys") => {
            let found: Vec<&String> = keys.keys().filter(|found| found.starts_with(key)).collect();
            if found.is_empty() {
                (404, String::new())
            } else {
                (200, serde_json::to_string(&found).unwrap())
            }
        }
        ("GET", "raw") => keys.get(key).map_or((404, String::new()), |value| (200, value.clone())),
        ("DELETE", "") => {
            keys.remove(key);
            (200, "true".to_owned())
        }
        other => panic!("unexpected call {other:?}"),
    };
    let (status, text) = answer;
    let length = text.len();
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}")
        .unwrap();
}

#[test]
fn a_request_is_put_and_withdrawn() {
    let server = Server::start();
    let consul = server.consul(TOKEN);
    consul.withdraw("test01").unwrap();
    consul.request("test01", "backy-abc").unwrap();
    let (key, value) =
        server.keys.lock().unwrap().first_key_value().map(|(k, v)| (k.clone(), v.clone())).unwrap();
    assert!(is_request(&key) && key.len() == PREFIX.len() + 36, "{key}");
    let value: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value, json!({"vm": "test01", "snapshot": "backy-abc"}));
    consul.withdraw("test01").unwrap();
    assert!(server.values().is_empty());
}

#[test]
fn requests_of_others_stay_and_unreadable_ones_go() {
    let server = Server::start();
    let kept =
        [r#"{"vm": "test02", "snapshot": "backy-x"}"#, r#"{"vm": "test01", "snapshot": "before-upgrade"}"#];
    let gone = [r#"{"vm": "test01", "snapshot": "backy-y"}"#, "nonsense", r#"{"vm": 7}"#, "[]"];
    for (number, value) in kept.iter().chain(&gone).enumerate() {
        server.put(&format!("snapshot/{number}"), value);
    }
    server.put("other/key", "nonsense");
    server.consul(TOKEN).withdraw("test01").unwrap();
    assert_eq!(server.values(), ["nonsense", kept[0], kept[1]]);
}

#[test]
fn a_wrong_key_and_a_server_that_is_away_are_errors_without_the_key() {
    let server = Server::start();
    let error = server.consul("wrong").request("test01", "backy-a").unwrap_err().to_string();
    assert!(error.contains("status 403") && !error.contains("wrong"), "{error}");
    assert!(server.consul("wrong").withdraw("test01").is_err());
    let away = Consul::new("http://127.0.0.1:1/", None);
    assert!(matches!(away.request("test01", "backy-a"), Err(ConsulError::Call { .. })));
    // Answers without a sensible end.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let odd = Consul::new(&listener.local_addr().unwrap().to_string(), None);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"");
        }
    });
    assert!(odd.withdraw("test01").is_err());
}
