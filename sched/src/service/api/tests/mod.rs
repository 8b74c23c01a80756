//! The API over real connections: routes, tokens, and what hostile requests meet.

mod limits;
mod logged;
mod routes;

use super::testing::{ACL_TOKEN, Fake, TOKEN, ask, ask_as, connect, exchange, name, now, rest, split};
use super::*;

/// The address of a server.
fn addr(server: &Server) -> SocketAddr {
    server.local_addrs()[0]
}

#[test]
fn the_token_comes_before_the_path() {
    let (_fake, server) = Fake::new().serve();
    let near = [&TOKEN[1..], &TOKEN[..TOKEN.len() - 1], &format!("{TOKEN}x"), &TOKEN.to_lowercase()]
        .map(|token| format!("Authorization: Bearer {token}\r\n"));
    let basic = format!("Authorization: Basic {TOKEN}\r\n");
    let twice = format!("Authorization: Bearer {TOKEN}\r\n").repeat(2);
    for header in near.iter().map(String::as_str).chain(["", &basic, &twice, "Authorization: \r\n"]) {
        for path in ["/v1/status", "/v1/jobs/web01/run", "/metrics", "/nothing", "/healthz/"] {
            let request = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n");
            // The server closes: there is no end to wait for otherwise.
            let answer = exchange(addr(&server), request.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 401 "), "{header}{path}: {answer}");
            assert!(answer.contains("\r\nwww-authenticate: Bearer\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\n401: Unauthorized"), "{answer}");
        }
    }
    server.stop();
}

#[test]
fn health_needs_no_token_and_tells_nothing_else() {
    let ask = |fake: Fake, method: &str| {
        let (_fake, server) = fake.serve();
        let request = format!("{method} /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        split(&exchange(addr(&server), request.as_bytes()))
    };
    assert_eq!(ask(Fake::new(), "GET"), (200, "ok\n".to_owned()));
    assert_eq!(ask(Fake::new(), "HEAD"), (200, String::new()));
    assert_eq!(ask(Fake::new(), "POST").0, 405);
    let stuck = Fake { silence: Duration::from_secs(121), ..Fake::new() };
    assert_eq!(ask(stuck, "GET"), (503, "not ok\n".to_owned()));
}

#[test]
fn a_server_that_stops_lets_answers_end_and_takes_no_more() {
    let (fake, server) = Fake::new().serve();
    let addr = addr(&server);
    fake.set_open(false);
    let mut idle = connect(addr);
    let waiting = std::thread::spawn(move || ask(addr, "GET", "/v1/status", ""));
    // The handler is at work when nobody can take its place any more; here it is enough that it has been asked.
    while std::sync::Arc::strong_count(&fake) < 3 {
        std::thread::yield_now();
    }
    let stopping = std::thread::spawn(move || server.stop());
    assert_eq!(rest(&mut idle), "");
    fake.set_open(true);
    assert_eq!(waiting.join().unwrap().0, 200);
    stopping.join().unwrap();
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn a_handler_that_hangs_does_not_keep_the_server_from_ending() {
    let limits = Limits { stop_time: Duration::from_millis(50), ..Limits::default() };
    let (fake, server) = Fake::new().serve_within(limits);
    let addr = addr(&server);
    fake.set_open(false);
    let waiting = std::thread::spawn(move || ask(addr, "GET", "/v1/status", ""));
    while std::sync::Arc::strong_count(&fake) < 3 {
        std::thread::yield_now();
    }
    server.stop();
    assert_eq!(waiting.join().unwrap().0, 0);
    fake.set_open(true);
}
