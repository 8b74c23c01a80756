//! What hostile, broken and slow clients meet: a defined end, and a server that goes on.

use std::io::{Read as _, Write as _};

use super::*;
use crate::service::rights::{ApiToken, Right, Rights};
use crate::source::Secret;

const BRIEF: Duration = Duration::from_millis(100);

/// The head of a request that may have a body.
fn order(rest: &str) -> String {
    format!("POST /v1/runall HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{rest}")
}

fn head(rest: &str) -> String {
    format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{rest}")
}

fn assert_alive(server: &Server) {
    // Where a request may take only a moment, a slow machine may need more than one.
    let mut status = 503;
    while status == 503 {
        status = ask(addr(server), "GET", "/v1/status", "").0;
    }
    assert_eq!(status, 200);
}

#[test]
fn malformed_requests_are_refused() {
    let (_fake, server) = Fake::new().serve();
    let many = "X: y\r\n".repeat(100);
    let long = format!("X: {}\r\n", "y".repeat(64 << 10));
    let path = format!("/{}", "a".repeat(64 << 10));
    for (request, statuses) in [
        ("\0\u{1}\u{2}\r\n\r\n".to_owned(), &[400][..]),
        ("GET\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), &[400]),
        ("GET /a b HTTP/1.1\r\n\r\n".to_owned(), &[400]),
        // Closed without an answer: who speaks only HTTP/2 could not read it.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), &[0]),
        (head("bad header\r\n\r\n"), &[400]),
        (head("X: a\0b\r\n\r\n"), &[400]),
        (head("Content-Length: x\r\n\r\n"), &[400]),
        (head("Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), &[400]),
        (head("Transfer-Encoding: gzip\r\n\r\n"), &[400]),
        (head("Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n"), &[400]),
        (head(&format!("{many}\r\n")), &[431]),
        (head(&format!("{long}\r\n")), &[431]),
        (format!("GET {path} HTTP/1.1\r\n\r\n"), &[414, 431]),
        ("GET http://other/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), &[401]),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), &[401]),
    ] {
        let (status, _) = split(&exchange(addr(&server), request.as_bytes()));
        assert!(statuses.contains(&status), "{request:.80}: {status}");
    }
    assert_alive(&server);
}

#[test]
fn bodies_that_are_too_large_are_refused_announced_or_not() {
    let (_fake, server) = Fake::new().serve();
    let chunk = format!("1000\r\n{}\r\n", "a".repeat(4096)).repeat(20);
    for request in [
        order("Connection: close\r\nContent-Length: 65537\r\n\r\n"),
        order("Connection: close\r\nContent-Length: 99999999999999999\r\n\r\n"),
        order(&format!("Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}")),
    ] {
        assert_eq!(split(&exchange(addr(&server), request.as_bytes())).0, 413, "{request:.200}");
    }
    assert_alive(&server);
}

#[test]
fn half_requests_are_cut_off() {
    let limits = Limits { head_time: BRIEF, request_time: BRIEF, ..Limits::default() };
    let (_fake, server) = Fake::new().serve_within(limits);
    for (request, status) in [
        (String::new(), 0),
        ("GET /v1".to_owned(), 0),
        (head("X: "), 0),
        (order("Connection: close\r\nContent-Length: 10\r\n\r\nab"), 408),
        (order("Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), 408),
    ] {
        let (found, text) = split(&exchange(addr(&server), request.as_bytes()));
        assert!(found == status || (status == 0 && found == 408), "{request}: {found} {text}");
    }
    // A connection that is kept and then silent.
    let answer = exchange(addr(&server), head("\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // And one whose client goes away in the middle.
    connect(addr(&server)).write_all(order("Content-Length: 10\r\n\r\nab").as_bytes()).unwrap();
    assert_alive(&server);
}

#[test]
fn a_question_with_a_body_is_refused_at_once() {
    // Nobody waits for the body, nor for a place: another request of this token has the only one.
    let (fake, server) = with_two_tokens(Limits { connections: 1, ..Limits::default() });
    fake.set_open(false);
    let mut holds = connect(addr(&server));
    holds.write_all(head("\r\n").as_bytes()).unwrap();
    for method in ["GET", "HEAD"] {
        for body in ["Content-Length: 10\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"] {
            let request = head(body).replacen("GET", method, 1);
            let answer = exchange(addr(&server), request.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
            assert!(method == "HEAD" || answer.ends_with("a GET or HEAD request has no body"), "{answer}");
        }
    }
    fake.set_open(true);
}

/// A server with another token beside that of the tests, which may only run jobs and read.
fn with_two_tokens(limits: Limits) -> (Arc<Fake>, Server) {
    let rights = Rights::new([Right::Read, Right::Run].into(), None);
    let weak = ApiToken { rights, ..ApiToken::of_admin(Secret::new("weak".to_owned()), "weak") };
    Fake { tokens: vec![weak], ..Fake::new() }.serve_within(limits)
}

#[test]
fn one_token_cannot_shut_out_another() {
    let limits = Limits { connections: 4, handlers: 2, ..Limits::default() };
    let (fake, server) = with_two_tokens(limits);
    let addr = addr(&server);
    let weak = |request: String| {
        let mut stream = connect(addr);
        stream.write_all(request.replace(TOKEN, "weak").as_bytes()).unwrap();
        stream
    };
    // Bodies that do not come, answers that take long, connections that are kept.
    let slow: Vec<_> = (0..10).map(|_| weak(order("Content-Length: 10\r\n\r\nab"))).collect();
    for _ in 0..3 {
        assert_eq!(ask(addr, "GET", "/v1/check", "").0, 200);
        assert_eq!(ask(addr, "POST", "/v1/runall", "").0, 202);
    }
    drop(slow);
    fake.set_open(false);
    let slow: Vec<_> = (0..10).map(|_| weak(head("\r\n"))).collect();
    for _ in 0..3 {
        assert_eq!(ask(addr, "GET", "/v1/check", "").0, 200);
    }
    fake.set_open(true);
    drop(slow);
}

#[test]
fn who_does_not_fetch_the_answer_is_cut_off() {
    let limits = Limits { answer_time: BRIEF, connections: 1, ..Limits::default() };
    let entry = crate::service::control::StatusEntry { job: "a".repeat(32 << 20), ..Default::default() };
    let (_fake, server) = Fake { entries: vec![entry], ..Fake::new() }.serve_within(limits);
    let mut slow = connect(addr(&server));
    slow.write_all(head("\r\n").as_bytes()).unwrap();
    let mut first = [0; 16];
    slow.read_exact(&mut first).unwrap();
    // There is one connection: this answer comes when the slow reader has lost it.
    assert_eq!(ask(addr(&server), "GET", "/v1/backups", "").0, 200);
    assert!(rest(&mut slow).len() < 32 << 20);
}

#[test]
fn an_answer_that_takes_too_long_is_given_up() {
    let limits = Limits { request_time: BRIEF, handlers: 1, ..Limits::default() };
    let (fake, server) = Fake::new().serve_within(limits);
    fake.set_open(false);
    // The second finds no free thread.
    for path in ["/v1/status", "/v1/check"] {
        let (status, text) = ask(addr(&server), "GET", path, "");
        assert!(status == 503 && text.contains("takes too long"), "{status} {text}");
    }
    let health = exchange(addr(&server), b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(split(&health).0, 200);
    // What needs no disk is answered all the same.
    while ask(addr(&server), "GET", "/v1/jobs", "").0 == 503 {}
    assert_eq!(ask(addr(&server), "POST", "/v1/jobs/web01/run", "").0, 202);
    fake.set_open(true);
    while ask(addr(&server), "GET", "/v1/check", "").0 != 200 {}
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let limits = Limits { connections: 16, handlers: 2, ..Limits::default() };
    let (_fake, server) = Fake::new().serve_within(limits);
    let addr = addr(&server);
    let clients: Vec<_> =
        (0..200).map(|_| std::thread::spawn(move || ask(addr, "GET", "/v1/status", "").0)).collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), 200);
    }
}

#[test]
fn idle_connections_without_a_token_keep_nobody_out() {
    let (_fake, server) = Fake::new().serve();
    let addr = addr(&server);
    let healthz = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut idle: Vec<_> = (0..300)
        .map(|number| {
            let mut stream = connect(addr);
            // Some say nothing, some begin and never end.
            if number % 3 == 0 {
                stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n").unwrap();
            }
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(split(&exchange(addr, healthz)).0, 200);
        assert_eq!(ask(addr, "GET", "/v1/status", "").0, 200);
        idle.push(connect(addr));
    }
    // The oldest had to make room.
    assert_eq!(rest(&mut idle[0]), "");
}

#[test]
fn clients_with_a_token_have_places_of_their_own() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let (_fake, server) = Fake::new().serve_within(limits);
    let mut kept = connect(addr(&server));
    kept.write_all(head("\r\n").as_bytes()).unwrap();
    let mut first = [0; 64];
    kept.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200 "));
    let _idle: Vec<_> = (0..100).map(|_| connect(addr(&server))).collect();
    assert_alive(&server);
}

#[test]
fn requests_that_follow_each_other_are_answered_in_order() {
    let (_fake, server) = Fake::new().serve();
    let requests =
        format!("{}{}", head("\r\n"), head("Connection: close\r\n\r\n").replace("/v1/status", "/x"));
    let answer = exchange(addr(&server), requests.as_bytes());
    let statuses: Vec<&str> = answer.matches("HTTP/1.1 ").collect();
    assert_eq!(statuses.len(), 2, "{answer}");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("404: Not Found"), "{answer}");
}

#[test]
fn marks_of_a_request_cannot_be_long_or_forge_anything() {
    let (_fake, server) = Fake::new().serve();
    let mark = format!("taskid: {}\u{1b}[2J\r\n", "x".repeat(4000));
    let (status, _) = split(&exchange(addr(&server), head(&format!("{mark}\r\n")).as_bytes()));
    assert_eq!(status, 400, "control characters are none of a header");
    let mark = format!("taskid: {}\u{202e}\r\nConnection: close\r\n", "x".repeat(4000));
    assert_eq!(split(&exchange(addr(&server), head(&format!("{mark}\r\n")).as_bytes())).0, 200);
}

#[test]
fn a_handler_that_panics_ends_alone() {
    let (fake, server) = Fake::new().serve();
    let poisoning = Arc::clone(&fake);
    let panicked = std::thread::spawn(move || {
        let _guard = poisoning.open.0.lock().unwrap();
        panic!("so that `status` panics");
    });
    assert!(panicked.join().is_err());
    assert_eq!(ask(addr(&server), "GET", "/v1/status", ""), (500, "500: Internal Server Error".to_owned()));
    assert_eq!(ask(addr(&server), "GET", "/v1/backups", "").0, 200);
}

#[test]
fn an_address_of_the_other_kind_is_served_too() {
    let ip = "::1".parse().unwrap();
    // Not every machine has it.
    if std::net::TcpListener::bind((ip, 0)).is_err() {
        return;
    }
    let fake: Arc<dyn Control> = Arc::new(Fake::new());
    let both = [ip, "127.0.0.1".parse().unwrap()];
    let server = Server::start(&both, 0, fake).unwrap();
    assert_eq!(server.local_addrs().len(), 2);
    for &addr in server.local_addrs() {
        assert_eq!(ask(addr, "GET", "/v1/backups", "").0, 200);
    }
    server.stop();
}
