//! Every route with its statuses.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::*;
use crate::service::rights::{ApiToken, Pattern, Right, Rights};
use crate::source::Secret;

#[test]
fn every_route_has_its_statuses() {
    let (fake, server) = Fake::new().serve();
    let tags = |old: &[&str]| json!({ "old_tags": old, "new_tags": ["manual:x"] }).to_string();
    let (good, other) = (tags(&["daily", "weekly"]), tags(&["daily"]));
    for (method, path, body, status) in [
        ("GET", "/v1/status", "", 200),
        ("GET", "/v1/status?filter=%28", "", 400),
        ("POST", "/v1/status", "", 405),
        ("GET", "/v1/check", "", 200),
        ("GET", "/v1/jobs", "", 200),
        ("POST", "/v1/jobs/web01/run", "", 202),
        ("POST", "/v1/jobs/old/run", "", 404),
        ("POST", "/v1/jobs/..%2fweb01/run", "", 404),
        ("POST", "/v1/runall", "", 202),
        ("GET", "/v1/runall", "", 405),
        ("POST", "/v1/reload", "", 204),
        ("GET", "/v1/backups", "", 200),
        ("POST", "/v1/backups/old/purge", "", 202),
        ("POST", "/v1/backups/web01/purge", "", 403),
        ("POST", "/v1/backups/none/purge", "", 404),
        ("POST", "/v1/backups/..%2f..%2fetc/purge", "", 404),
        ("POST", "/v1/backups/old/touch", "", 204),
        ("POST", "/v1/backups/none/touch", "", 404),
        ("GET", "/v1/backups/old/revs", "", 200),
        ("GET", "/v1/backups/old/revs?only_clean=yes", "", 400),
        ("GET", "/v1/backups/none/revs", "", 404),
        ("PUT", "/v1/backups/web01/revs/aaa/tags", good.as_str(), 403),
        ("PUT", "/v1/backups/none/revs/aaa/tags", &good, 404),
        ("PUT", "/v1/backups/old/revs/zzz/tags", &good, 404),
        ("PUT", "/v1/backups/old/revs/%28/tags", &good, 404),
        ("PUT", "/v1/backups/old/revs/aaa/tags", "", 400),
        ("PUT", "/v1/backups/old/revs/aaa/tags", "{\"old_tags\": []}", 400),
        ("PUT", "/v1/backups/old/revs/aaa/tags", "{\"old_tags\": [], \"new_tags\": [\"a/b\"]}", 400),
        (
            "PUT",
            "/v1/backups/old/revs/aaa/tags",
            "{\"old_tags\": [\"daily\", \"weekly\"], \"new_tags\": [\"last\"]}",
            400,
        ),
        ("PUT", "/v1/backups/old/revs/aaa/tags", "[[\"daily\", \"weekly\"], [\"manual:x\"]]", 400),
        ("PUT", "/v1/backups/old/revs/aaa/tags", &"[".repeat(60_000), 400),
        ("PUT", "/v1/backups/old/revs/aaa/tags", &other, 412),
        ("PUT", "/v1/backups/old/revs/aaa/tags?autoremove=2", &good, 400),
        ("PUT", "/v1/backups/old/revs/aaa/tags", &good, 204),
        ("PUT", "/v1/backups/old/revs/aaa/tags", &good, 412),
        ("POST", "/v1/backups/old/revs/aaa/tags", &good, 405),
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/", "", 404),
        ("GET", "/metrics", "", 200),
    ] {
        let (found, text) = ask(addr(&server), method, path, body);
        assert_eq!(found, status, "{method} {path}: {text}");
        assert!(status < 400 || text.starts_with(&format!("{status}: ")), "{text}");
        assert!(!text.contains(TOKEN) && !text.contains(ACL_TOKEN), "{text}");
    }
    assert_eq!(*fake.started.lock().unwrap(), ["web01", "web01"]);
    assert_eq!(fake.purges.load(Ordering::SeqCst), 1);
}

fn json(server: &Server, path: &str) -> Value {
    let (status, text) = ask(addr(server), "GET", path, "");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn listings_have_the_fields_of_the_original() {
    let (_fake, server) = Fake::new().serve();
    let status = json(&server, "/v1/status");
    assert_eq!(status.as_array().unwrap().len(), 2);
    let fields: Vec<&str> = status[0].as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "job",
        "sla",
        "sla_overdue",
        "status",
        "last_time",
        "last_tags",
        "last_duration",
        "next_time",
        "next_tags",
        "manual_tags",
        "quarantine_reports",
        "unsynced_revs",
        "local_revs",
    ];
    expected.sort_unstable();
    assert_eq!(fields, expected);
    let filtered = json(&server, "/v1/status?filter=%5Eo");
    assert_eq!((filtered.as_array().unwrap().len(), &filtered[0]["job"]), (1, &json!("old")));
    assert_eq!(json(&server, "/v1/backups"), json!(["old"]));
    assert_eq!(json(&server, "/v1/jobs")[0]["source"]["consul_acl_token"], "***");
    let check = json(&server, "/v1/check");
    assert_eq!((&check["jobs"], &check["problems"][0]["kind"]), (&json!(1), &json!("never-ran")));
}

#[test]
fn revisions_travel_with_the_keys_of_their_manifests() {
    let (fake, server) = Fake::new().serve();
    let incomplete = "uuid: ccc\ntimestamp: 2024-03-02 02:00:00.500000+00:00\nstats: {bytes_written: 0}\n";
    std::fs::write(fake.dir.path().join("store/old/ccc.rev"), incomplete).unwrap();
    let all = json(&server, "/v1/backups/old/revs");
    let expected = json!({
        "uuid": "aaa", "timestamp": "2024-03-01T02:00:00+00:00", "parent": "",
        "stats": { "bytes_written": 5, "duration": 1.5 }, "tags": ["daily", "weekly"],
        "backend_type": "chunked", "trust": "trusted", "orig_tags": [], "server": "",
    });
    assert_eq!(all[0], expected);
    assert_eq!(all[1]["timestamp"], "2024-03-02T02:00:00.500000+00:00");
    assert_eq!(all.as_array().unwrap().len(), 2, "revisions of other servers stay at home");
    assert_eq!(json(&server, "/v1/backups/old/revs?only_clean=1"), json!([expected]));
}

#[test]
fn tags_are_changed_durably_and_a_bare_revision_goes_only_when_asked() {
    let (fake, server) = Fake::new().serve();
    let job = fake.repository().unwrap().job(&name("old")).unwrap();
    let put = |path: &str, old: &[&str], new: &[&str]| {
        let body = json!({ "old_tags": old, "new_tags": new }).to_string();
        ask(addr(&server), "PUT", &format!("/v1/backups/old/revs/{path}"), &body).0
    };
    crate::service::peers::testing::add(&job, "ddd", "monthly");
    let tags = || -> Vec<Vec<String>> {
        let revisions = job.revisions().unwrap().revisions;
        revisions.iter().map(|one| one.tags.iter().map(ToString::to_string).collect()).collect()
    };
    assert_eq!(put("server%3Abackup2%26daily/tags", &["daily"], &[]), 412);
    assert_eq!(put("aaa/tags", &["weekly", "daily"], &["manual:a b"]), 204);
    assert_eq!(tags(), [vec!["manual:a b"], vec!["daily", "weekly"], vec!["monthly"]]);
    assert_eq!(put("aaa/tags", &["manual:a b"], &[]), 204);
    assert_eq!(tags()[0].len(), 0);
    assert_eq!(put("aaa/tags?autoremove=1", &[], &[]), 204);
    assert_eq!(tags().len(), 2);
    assert_eq!(job.forgotten().unwrap().len(), 1, "it can be brought back");
}

#[test]
fn the_last_trusted_revision_stays_whatever_the_token_may_do() {
    let (fake, server) = Fake::new().serve();
    let job = fake.repository().unwrap().job(&name("old")).unwrap();
    let put = |spec: &str, new: &[&str]| {
        let body = json!({ "old_tags": ["daily", "weekly"], "new_tags": new }).to_string();
        ask(addr(&server), "PUT", &format!("/v1/backups/old/revs/{spec}/tags?autoremove=1"), &body)
    };
    let local = || job.revisions().unwrap().revisions.iter().filter(|one| one.is_local()).count();
    for id in ["ccc", "ddd"] {
        crate::service::peers::testing::add(&job, id, "daily, weekly");
    }
    let distrust = |id: &str| {
        let guard = job.lock_manifests().unwrap();
        let id = backy_store::RevisionId::parse(id).unwrap();
        job.set_trust(&guard, &id, backy_store::Trust::Distrusted).unwrap();
    };
    // One call for all of them changes nothing; neither the note of another server's revision nor a distrusted one counts.
    let (status, text) = put("local", &[]);
    assert!(status == 409 && text.contains("last trusted revision"), "{text}");
    assert_eq!((put("aaa", &[]).0, local()), (204, 2));
    distrust("ddd");
    assert_eq!((put("ccc", &[]).0, local()), (409, 2));
    assert_eq!((put("ddd", &[]).0, local()), (204, 1));
    distrust("ccc");
    assert_eq!((put("ccc", &[]).0, local()), (409, 1), "a job without a trusted revision loses none");
    assert_eq!((put("ccc", &["manual:x"]).0, local()), (204, 1), "its tags can be changed");
}

/// Who may ask what: the right that each request needs, and what each token gets.
#[test]
fn every_route_needs_its_right_and_no_other_will_do() {
    let needed = |uri: &str| match uri {
        "/metrics" => Right::Metrics,
        "/v1/status" | "/v1/check" | "/v1/jobs" | "/v1/backups" | "/v1/backups/old/revs" => Right::Read,
        "/v1/jobs/web01/run" | "/v1/runall" => Right::Run,
        "/v1/reload"
        | "/v1/backups/old/purge"
        | "/v1/backups/old/touch"
        | "/v1/backups/old/revs/aaa/tags" => Right::Admin,
        other => panic!("{other} has no rule in this test"),
    };
    let token = |right: Right, jobs: Option<&str>| ApiToken {
        token: Secret::new(format!("{right}{}", jobs.unwrap_or_default())),
        name: format!("client-{right}"),
        rights: Rights::new([right].into(), jobs.map(|pattern| vec![Pattern::parse(pattern).unwrap()])),
    };
    let tokens = Right::ALL.into_iter().flat_map(|right| [token(right, None), token(right, Some("x*"))]);
    let (_fake, server) = Fake { tokens: tokens.collect(), ..Fake::new() }.serve();
    let body = json!({ "old_tags": ["daily", "weekly"], "new_tags": ["daily", "weekly"] }).to_string();
    for (method, uri) in super::super::route::tests::EACH {
        let body = if method == "PUT" { &body } else { "" };
        for right in Right::ALL {
            let (status, answer) = ask_as(addr(&server), right.as_str(), method, uri, body);
            let needed = needed(uri);
            if right == needed || right == Right::Admin {
                assert!((200..300).contains(&status), "{right} {uri}: {answer}");
                assert!(!answer.contains("missing-right"), "{answer}");
            } else {
                assert_eq!(status, 403, "{right} {uri}: {answer}");
                assert!(answer.contains(&format!("\r\nmissing-right: {needed}\r\n")), "{answer}");
                let text = format!("403: Forbidden: the token of client-{right} lacks the right {needed};");
                assert!(answer.contains(&text), "{answer}");
            }
            // The same right on other jobs: lists are empty, jobs are refused.
            let (status, answer) = ask_as(addr(&server), &format!("{right}x*"), method, uri, body);
            let about_one = uri.contains("/web01/") || uri.contains("/old/") || uri == "/v1/reload";
            let is_refused = about_one || (right != needed && right != Right::Admin);
            assert_eq!(status == 403, is_refused, "{right} {uri}: {answer}");
            let shows = answer.contains("web01") || answer.contains("\"old\"");
            assert!(is_refused || !shows, "{right} {uri}: {answer}");
        }
    }
}

#[test]
fn a_token_for_some_jobs_sees_and_starts_only_these() {
    let rights = Rights::new([Right::Read, Right::Run].into(), Some(vec![Pattern::parse("web*").unwrap()]));
    let token = ApiToken { token: Secret::new("w3b".to_owned()), name: "web".to_owned(), rights };
    let fake = Fake { tokens: vec![token], active: [name("web01"), name("db01")].into(), ..Fake::new() };
    let (fake, server) = fake.serve();
    let ask = |method: &str, uri: &str| ask_as(addr(&server), "w3b", method, uri, "").1;
    for uri in ["/v1/status", "/v1/check", "/v1/jobs"] {
        let answer = ask("GET", uri);
        assert!(
            answer.contains("web01") && !answer.contains("db01") && !answer.contains("\"old\""),
            "{answer}"
        );
    }
    assert!(ask("POST", "/v1/runall").ends_with("{\"jobs\":1}"));
    assert_eq!(*fake.started.lock().unwrap(), ["web01"]);
    let refused = ask("POST", "/v1/jobs/db01/run");
    let text = "lacks the right run on the job db01; `jobs` in the service's configuration limits it to web*";
    assert!(refused.contains(text), "{refused}");
}

#[test]
fn the_rights_are_documented_for_every_route() {
    let documented = include_str!("../../../../../docs/api.md");
    for (method, uri) in super::super::route::tests::EACH {
        let uri = uri.replace("web01", "NAME").replace("/old/", "/NAME/").replace("aaa", "SPEC");
        let line = documented.lines().find(|line| {
            let request = line.split('`').nth(1).unwrap_or_default();
            line.starts_with("| `") && request.split('?').next() == Some(&format!("{method} {uri}"))
        });
        let line = line.unwrap_or_else(|| panic!("docs/api.md has no row for {method} {uri}"));
        let right = line.split('|').nth(2).unwrap().trim().trim_matches('`');
        assert!(Right::parse(right).is_some(), "{line}");
    }
}

#[test]
fn of_several_who_change_the_same_tags_one_wins_and_the_others_know() {
    let (fake, server) = Fake::new().serve();
    let addr = addr(&server);
    let asking: Vec<_> = (0..8)
        .map(|number| {
            let body = json!({ "old_tags": ["weekly", "daily"], "new_tags": [format!("manual:{number}")] });
            let ask = move || ask(addr, "PUT", "/v1/backups/old/revs/aaa/tags", &body.to_string()).0;
            std::thread::spawn(ask)
        })
        .collect();
    let mut statuses: Vec<u16> = asking.into_iter().map(|thread| thread.join().unwrap()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 412, 412, 412, 412, 412, 412, 412]);
    let revisions = fake.repository().unwrap().job(&name("old")).unwrap().revisions().unwrap().revisions;
    assert_eq!(revisions[0].tags.len(), 1);
}

#[test]
fn a_head_has_no_body_and_old_clients_are_answered() {
    let (_fake, server) = Fake::new().serve();
    let request = format!("HEAD /v1/backups HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    let answer = exchange(addr(&server), request.as_bytes());
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("\r\ncontent-length: 7\r\n"), "{answer}");
    assert_eq!(ask(addr(&server), "HEAD", "/v1/runall", "").0, 405);
}

#[test]
fn a_locked_job_is_told_and_left_alone() {
    let (fake, server) = Fake::new().serve();
    let job = fake.repository().unwrap().job(&name("old")).unwrap();
    let guard = job.lock_manifests().unwrap();
    let body = json!({ "old_tags": ["daily", "weekly"], "new_tags": [] }).to_string();
    let put = || ask(addr(&server), "PUT", "/v1/backups/old/revs/aaa/tags", &body).0;
    assert_eq!(put(), 503);
    drop(guard);
    assert_eq!(put(), 204);
}

#[test]
fn touching_changes_the_time_of_the_directory() {
    let (fake, server) = Fake::new().serve();
    let job = fake.repository().unwrap().job(&name("old")).unwrap();
    job.touch(now()).unwrap();
    let modified = || std::fs::metadata(job.dir()).unwrap().modified().unwrap();
    let before = modified();
    assert_eq!(ask(addr(&server), "POST", "/v1/backups/old/touch", "").0, 204);
    assert!(modified() > before);
}

#[test]
fn a_configuration_that_is_refused_is_told_with_all_problems() {
    let (_fake, server) = Fake { refuses_reload: true, ..Fake::new() }.serve();
    let (status, text) = ask(addr(&server), "POST", "/v1/reload", "");
    let expected = "409: Conflict: /etc/backy.conf cannot be used\n\
        /etc/backy.conf: jobs.web01: no `source`\n/etc/backy.conf: jobs.web01: no `schedule`";
    assert_eq!((status, text.as_str()), (409, expected));
}

#[test]
fn a_store_that_is_gone_is_named() {
    let (fake, server) = Fake::new().serve();
    std::fs::remove_dir_all(fake.dir.path().join("store")).unwrap();
    let (status, text) = ask(addr(&server), "GET", "/v1/backups/old/revs", "");
    assert_eq!(status, 500);
    assert!(text.starts_with("500: Internal Server Error: ") && text.contains("/store"), "{text}");
}

#[test]
fn metrics_are_whole_families_with_an_end() {
    let (_fake, server) = Fake::new().serve();
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n");
    let plain = exchange(addr(&server), format!("{request}\r\n").as_bytes());
    assert!(plain.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{plain}");
    assert!(plain.contains("\n# TYPE backy_rounds_total counter\n") && !plain.contains("# EOF"), "{plain}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.2\r\n\r\n";
    let answer = exchange(addr(&server), format!("{request}{accept}").as_bytes());
    assert!(
        answer.contains("\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
    );
    let (_, text) = split(&answer);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    for line in [
        "backy_jobs{state=\"running (slow)\"} 1",
        "backy_jobs{state=\"Dead\"} 1",
        "backy_job_overdue{job=\"web01\"} 1",
        "backy_job_quarantine_reports{job=\"web01\"} 1",
        "backy_job_last_duration_seconds{job=\"web01\"} 2.5",
        "backy_problems{kind=\"never-ran\",severity=\"critical\"} 1",
        "backy_problems{kind=\"overdue\",severity=\"critical\"} 0",
        "backy_rounds_total{result=\"failed\"} 0",
        "backy_workers 3",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let mut family = "";
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
            assert!(seen.insert(family), "{family} comes twice");
        }
        assert!(line.starts_with('#') || line.starts_with(family), "{line} is not of {family}");
    }
    let documented = include_str!("../../../../../docs/api.md");
    for name in seen {
        assert!(documented.contains(&format!("`{name}")), "docs/api.md does not name {name}");
    }
}
