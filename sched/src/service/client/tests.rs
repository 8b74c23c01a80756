//! The client against the real server, and against servers that are none.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;

use super::*;
use crate::policy::health::Kind;
use crate::service::api::Server;
use crate::service::api::testing::{Fake, TOKEN};

fn client(url: &str, token: &str) -> Client {
    Client::new(PeerConfig::new(url, token).unwrap(), Some("a1b2c3"))
}

fn client_of(server: &Server) -> Client {
    client(&format!("http://{}/", server.local_addrs()[0]), TOKEN)
}

/// Serves these bytes to whoever asks once, then waits until the client goes away or the test ends.
fn serve_once(answer: Vec<u8>, repeat: bool) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let length = stream.read(&mut request).unwrap_or(0);
        let _ = sender.send(String::from_utf8_lossy(&request[..length]).into_owned());
        while stream.write_all(&answer).is_ok() && repeat {}
        if answer.is_empty() {
            // Hangs until the client gives up.
            let _ = stream.read(&mut request);
        }
    });
    (url, received)
}

#[test]
fn every_call_is_understood_by_the_server() {
    let (fake, server) = Fake::new().serve();
    let client = client_of(&server);
    assert_eq!(client.status("").unwrap(), fake.entries);
    assert_eq!(client.status("^web0[1&+ ]$").unwrap().len(), 1);
    assert_eq!(client.jobs().unwrap()[0].name, "web01");
    assert_eq!(client.check().unwrap().problems[0].kind, Kind::NeverRan);
    assert!(client.run("web01").unwrap());
    assert!(!client.run("../web01").unwrap());
    assert_eq!(client.run_all().unwrap(), 1);
    assert_eq!(client.reload().unwrap(), Reloaded::Done);
    assert_eq!(fake.started.lock().unwrap().len(), 2);
}

#[test]
fn refusals_are_told_in_the_words_of_the_server() {
    let (_fake, server) = Fake { refuses_reload: true, ..Fake::new() }.serve();
    let client = client_of(&server);
    let Reloaded::Refused(lines) = client.reload().unwrap() else { panic!() };
    assert_eq!(lines[0], "/etc/backy.conf cannot be used");
    assert_eq!(lines.len(), 3);
    let error = client.status("(").unwrap_err();
    let Error::ServiceRefused { status: 400, message, .. } = error else { panic!("{error}") };
    assert!(message.ends_with("is not a regular expression: unclosed group"), "{message}");
    let wrong = super::tests::client(client.url(), "wrong").check().unwrap_err();
    assert!(matches!(wrong, Error::TokenRefused { .. }), "{wrong}");
    let answers = [format!("{wrong}"), format!("{wrong:?}"), format!("{client:?}")];
    assert!(answers.iter().all(|text| !text.contains(TOKEN)), "{answers:?}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let error = client(&url, TOKEN).check().unwrap_err();
    assert!(matches!(error, Error::ServiceUnreachable { .. }) && error.to_string().contains(&url), "{error}");
}

#[test]
fn what_is_no_service_is_told_apart() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: ";
    for (answer, reason) in [
        ("hello\r\n\r\n".to_owned(), "is not understood"),
        (format!("{ok}5\r\n\r\nhello"), "is not understood"),
        (format!("{ok}2\r\n\r\n{{}}"), "is not understood"),
        (format!("{ok}100\r\n\r\n{{"), "cannot reach"),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".into(),
            "answers 302",
        ),
        ("HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\n<a/>".to_owned(), "answers 500"),
        ("\0\u{1}\u{2}".to_owned(), ""),
    ] {
        let (url, _request) = serve_once(answer.clone().into_bytes(), false);
        let error = client(&url, TOKEN).check().unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&url), "{answer:?}: {error}");
        assert!(!error.contains(TOKEN), "{error}");
    }
}

#[test]
fn a_server_that_hangs_or_never_ends_is_left() {
    let patience = Patience {
        connect: Duration::from_secs(10),
        total: Duration::from_millis(200),
        answer_bytes: 1 << 20,
    };
    let ask = |url: &str, patience| {
        let peer = PeerConfig::new(url, TOKEN).unwrap();
        Client::with_patience(peer, None, patience).check().unwrap_err()
    };
    let (url, _request) = serve_once(Vec::new(), false);
    let error = ask(&url, patience);
    assert!(error.to_string().contains("takes too long"), "{error}");
    let patience = Patience { total: Duration::from_secs(60), ..patience };
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(1 << 16)).into_bytes();
    let (url, _request) = serve_once(endless, true);
    let error = ask(&url, patience);
    assert!(matches!(&error, Error::AnswerInvalid { reason, .. } if reason.contains("longer")), "{error}");
    let (url, _request) = serve_once(b"HTTP/1.1 200 OK\r\nX: y\r\n".repeat(100), true);
    assert!(matches!(ask(&url, patience), Error::AnswerInvalid { .. }));
}

#[test]
fn a_request_carries_token_and_mark_and_no_line_breaks() {
    let (url, request) = serve_once(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), false);
    let _ = client(&url, TOKEN).run("a b\r\nX: y");
    let request = request.recv().unwrap().to_lowercase();
    assert!(request.starts_with("post /v1/jobs/a%20b%0d%0ax%3a%20y/run http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\ntaskid: a1b2c3\r\n"), "{request}");
    assert!(
        request.contains(&format!("\r\nauthorization: bearer {}\r\n", TOKEN.to_lowercase())),
        "{request}"
    );
    let marked = Client::new(PeerConfig::new(&url, TOKEN).unwrap(), Some("a\r\nb"));
    assert_eq!(marked.task_id, None);
}
