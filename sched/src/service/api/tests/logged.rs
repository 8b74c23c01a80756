//! What the log tells of requests, and what it must not.

use std::fmt::Debug;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;

/// All events of this process, those of other tests too.
static LOGGED: Mutex<String> = Mutex::new(String::new());

struct Recorder;

impl Subscriber for Recorder {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _attributes: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                self.0.push_str(&format!(" {field}={value:?}"));
            }
        }
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        LOGGED.lock().unwrap().push_str(&format!("{}\n", line.0));
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

#[test]
fn the_log_names_the_client_and_no_token() {
    tracing::subscriber::set_global_default(Recorder).unwrap();
    let (_fake, server) = Fake::new().serve();
    let wrong = "a-t0ken-that-is-wrong";
    for (token, path) in [(TOKEN, "/v1/jobs/web01/run"), (wrong, "/v1/reload"), (TOKEN, "/v1/jobs")] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\ntaskid: {path}-mark\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        exchange(addr(&server), request.as_bytes());
    }
    ask(addr(&server), "PUT", "/v1/backups/old/revs/aaa/tags", &"x".repeat(1000));
    let logged = LOGGED.lock().unwrap().clone();
    let line = |mark: &str| logged.lines().find(|line| line.contains(mark)).unwrap_or_default().to_owned();
    let order = line("sub_task=\"/v1/jobs/web01/run-mark\"");
    for part in ["INFO ", "client=\"tests\"", "method=POST", "status=202", "path=\"/v1/jobs/web01/run\""] {
        assert!(order.contains(part), "{part}: {order}");
    }
    let refused = line("sub_task=\"/v1/reload-mark\"");
    assert!(refused.contains("without a token") && refused.contains("status=401"), "{refused}");
    for secret in [TOKEN, wrong, ACL_TOKEN] {
        assert!(!logged.contains(secret), "{secret}");
    }
}
