//! The manual's example, files that must not load and what is said about them.

use super::*;
use crate::service::rights::{Right, Rights};
use crate::source::SourceConfig;

const EXAMPLE: &str = include_str!("testdata/example.conf");

fn parse(text: &str) -> Result<ServiceConfig, Vec<String>> {
    let files = |path: &Path| match path.to_str() {
        Some("token") => Ok("s3cret-of-file\n".to_owned()),
        Some("tokens") => Ok("s3cret-1: backup3\ns3cret-2: metrics\n".to_owned()),
        Some("empty") => Ok(String::new()),
        Some("broken") => Ok("s3cret: [".to_owned()),
        Some("twice") => Ok("s3cret: a\ns3cret: b\n".to_owned()),
        Some("twice-below") => Ok("s3cret: {name: a, name: b}\n".to_owned()),
        Some("rights") => Ok("s3cret-3: {name: prometheus, rights: [metrics]}\n".to_owned()),
        _ => Err(format!("cannot read {}: no such file", path.display())),
    };
    ServiceConfig::parse(text, &files).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// The example with one text replaced.
fn with(old: &str, new: &str) -> Result<ServiceConfig, Vec<String>> {
    assert!(EXAMPLE.contains(old), "{old}");
    parse(&EXAMPLE.replacen(old, new, 1))
}

#[test]
fn the_example_of_the_manual_loads_unchanged() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!((config.base_dir.to_str(), config.worker_limit), (Some("/srv/backy"), 3));
    assert_eq!(config.completed_callback.as_deref(), Some(Path::new("/usr/local/bin/backup-completed")));
    let addrs: Vec<String> = config.api.addrs.iter().map(ToString::to_string).collect();
    assert_eq!((addrs, config.api.port), (vec!["127.0.0.1".to_owned(), "::1".to_owned()], 6023));
    let clients: Vec<&str> = config.api.tokens.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(clients, ["backup2", "cli"]);
    let cli = config.api.cli_default.unwrap();
    assert_eq!(
        (cli.url.as_str(), cli.token.expose()),
        ("http://127.0.0.1:6023", "41f09ac2-token-of-the-cli")
    );
    assert_eq!(config.peers["backup2"].url, "https://backup2.example.com:6023");
    assert_eq!(config.schedules.keys().collect::<Vec<_>>(), ["default", "frequent"]);
    let jobs: Vec<(&str, &str, &str)> = config
        .jobs
        .iter()
        .map(|(name, job)| (name.as_str(), job.schedule_name.as_str(), job.config.source.source_type()))
        .collect();
    assert_eq!(
        jobs,
        [
            ("test01", "default", "file"),
            ("test02", "default", "ceph-rbd"),
            ("test03", "frequent", "flyingcircus")
        ]
    );
    let third = &config.jobs[&JobName::parse("test03").unwrap()].config;
    assert_eq!(third.schedule.shortest_secs(), Some(3600));
    let SourceConfig::Rbd(rbd) = &third.source else { panic!() };
    assert_eq!(rbd.consul_acl_token.as_ref().unwrap().expose(), "5b1c2d3e-acl");
    assert!(config.notes.is_empty());
}

#[test]
fn what_a_job_has_is_what_its_own_file_says() {
    for job in parse(EXAMPLE).unwrap().jobs.values() {
        assert_eq!(JobConfig::parse(&job.config.to_yaml()).unwrap(), job.config);
    }
}

#[test]
fn defaults() {
    let config = parse("global: {base-dir: /srv/backy}\nschedules: {}\njobs: {}\n").unwrap();
    assert_eq!((config.worker_limit, config.completed_callback.is_none(), config.api.port), (1, true, 6023));
    assert_eq!(config.api, ApiConfig::default());
    assert_eq!(config.api.local_url(), "http://127.0.0.1:6023");
    assert!(config.peers.is_empty() && config.jobs.is_empty());
    // Keys without a value mean what they mean when they are left out.
    assert_eq!(
        parse("global: {base-dir: /srv/backy, worker-limit: }\napi:\npeers:\nschedules: {}\njobs: {}\n")
            .unwrap(),
        config
    );
}

#[test]
fn a_client_on_the_same_machine_finds_the_service() {
    for (addrs, url) in [
        ("'::1'", "http://[::1]:6023"),
        ("0.0.0.0", "http://127.0.0.1:6023"),
        ("'::'", "http://[::1]:6023"),
        ("[192.0.2.7, '::1']", "http://192.0.2.7:6023"),
        ("['::1', 127.0.0.1]", "http://127.0.0.1:6023"),
    ] {
        let config = with("addrs: \"127.0.0.1, ::1\"", &format!("addrs: {addrs}")).unwrap();
        assert_eq!(config.api.cli_default.unwrap().url, url);
    }
}

#[test]
fn files_hold_tokens_too() {
    let config = with(
        "        token: \"41f09ac2-token-of-the-cli\"",
        "        token-file: token\n        url: http://localhost:7000/\n    tokens-file: tokens",
    )
    .unwrap();
    let cli = config.api.cli_default.unwrap();
    assert_eq!((cli.token.expose(), cli.url.as_str()), ("s3cret-of-file", "http://localhost:7000"));
    let clients: Vec<&str> = config.api.tokens.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(clients, ["backup2", "cli", "backup3", "metrics"]);
}

#[test]
fn an_empty_file_or_one_that_lost_its_jobs_never_means_no_jobs() {
    let (head, _) = EXAMPLE.split_once("jobs:").unwrap();
    for (text, expected) in [
        ("", "the file: it is empty"),
        ("# nothing\n", "the file: it is empty"),
        (head, "line 2, the file: the key jobs is missing"),
        (&format!("{head}jobs:\n"), "line 27, jobs: nothing follows it; if nothing is meant, write {}"),
    ] {
        let problems = parse(text).unwrap_err();
        assert!(problems[0].ends_with(expected), "{problems:?}");
    }
    assert!(parse(&format!("{head}jobs: {{}}\n")).is_ok());
    for section in ["jobs", "schedules"] {
        let problems = parse(&EXAMPLE.replace(&format!("\n{section}:"), "\nformer:")).unwrap_err();
        assert!(
            problems.iter().any(|one| one.ends_with(&format!("the key {section} is missing"))),
            "{problems:?}"
        );
    }
}

#[test]
fn all_problems_are_told_at_once_with_place_and_nearest_key() {
    let text = "\
global:
    base-dir: srv/backy
    worker-limt: 3
    worker-limit: 0
    backup-completed-callback: bin/done
api:
    addrs: '127.0.0.1, localhost'
    port: 70000
    tokens: {s3cret one: a, 12345: b, s3cret: 7}
    cli-default: {token: ''}
peers:
    a: {url: 'ftp://x', token: 's3cret s3cret'}
    b: {token: s3cret, token-file: x}
    c: {url: 'http://root:s3cret@x', token-file: missing}
schedule: {}
schedules:
    default:
        daily: {interval: 1d, keep: 0}
    odd: {}
jobs:
    test01: {schedule: defalt, source: {type: file, filename: image}}
    test 02: {schedule: default, source: {type: file, filename: /image}}
    test03: {source: {type: file}, verfy: full}
    test04: 7
";
    let expected = "\
line 3, global.worker-limt: unknown key \"worker-limt\", did you mean worker-limit?
line 2, global.base-dir: it must be an absolute path, beginning with /
line 4, global.worker-limit: it must be a whole number from 1 to 1024
line 5, global.backup-completed-callback: it must be an absolute path or the name of a command
line 7, api.addrs: \"localhost\" is not an IP address; write addresses with commas between them, as in \"::1, 127.0.0.1\"
line 8, api.port: it must be a whole number from 1 to 65535
line 9, api.tokens: token 1 must be of printable ASCII characters, without blanks
line 9, api.tokens: token 2 must be a text; put it into quotes
line 9, api.tokens: what follows token 3 must be a name, or a mapping with `name` and `rights`
line 10, api.cli-default.token: it must be a text and not empty
line 12, peers.a.url: it must begin with http:// or https://
line 12, peers.a.token: the token must be of printable ASCII characters, without blanks
line 13, peers.b: the key url is missing
line 13, peers.b.token-file: there is a token already: keep one of the two
line 14, peers.c.url: it must not have a name or password in it; the token goes into `token`
line 14, peers.c.token-file: cannot read missing: no such file
line 18, schedules.default.daily.keep: it must be a whole number from 1 to 4294967295
line 19, schedules.odd: it has no tags: its jobs would never run
line 22, jobs.test 02: invalid job name \"test 02\": only letters, digits, '.', '_' and '-' are allowed
line 21, jobs.test01.source.filename: it must be an absolute path, beginning with /
line 21, jobs.test01.schedule: there is no schedule \"defalt\", did you mean default?
line 23, jobs.test03.verfy: unknown key \"verfy\", did you mean verify?
line 23, jobs.test03.source: the key filename is missing
line 23, jobs.test03: the key schedule is missing
line 24, jobs.test04: it must be a mapping of keys to values";
    let mut problems = parse(text).unwrap_err();
    assert_eq!(problems.remove(0), "line 15, schedule: unknown key \"schedule\", did you mean schedules?");
    assert_eq!(problems.join("\n"), expected);
    assert!(!problems.join("\n").contains("s3cret"));
}

#[test]
fn problems_have_columns_and_are_written_as_compilers_do() {
    let files = |_: &Path| Err(String::new());
    let problems =
        ServiceConfig::parse("global: {base-dir: x}\nschedules: {}\njobs: {}\n", &files).unwrap_err();
    assert_eq!(
        problems[0].in_file(Path::new("/etc/backy.conf")),
        "/etc/backy.conf:1:10: global.base-dir: it must be an absolute path, beginning with /"
    );
    let broken = ServiceConfig::parse("global: [\n", &files).unwrap_err();
    let text = broken[0].in_file(Path::new("/etc/backy.conf"));
    assert!(text.starts_with("/etc/backy.conf:2:1: "), "{text}");
    assert_eq!(Problem::of_file("it is wet").in_file(Path::new("/x")), "/x: it is wet");
}

#[test]
fn secrets_show_nowhere() {
    let shown = format!("{:?}", parse(EXAMPLE).unwrap());
    for secret in ["8d3c5b7e", "41f09ac2", "c77d21aa", "5b1c2d3e"] {
        assert!(EXAMPLE.contains(secret) && !shown.contains(secret), "{secret}");
    }
    for tokens in [
        "{s3cret: a, s3cret: b}",
        "s3cret",
        "[s3cret]",
        "{s3cret: {x: [}",
        "{? [s3cret] : a}",
        "{s3cret: a, s3cret",
        "!s3cret {a: b}",
        "&s3cret {a: *s3crex}",
        "{s3cret: {name: a, name: b}}",
        "{s3cret: {name: a, right: read}}",
    ] {
        let problems = parse(&format!("api:\n    tokens: {tokens}\n")).unwrap_err();
        assert!(!problems.join("\n").contains("s3cret"), "{tokens}: {problems:?}");
    }
    for file in ["broken", "token", "empty", "twice", "twice-below"] {
        let problems = parse(&format!("api:\n    tokens-file: {file}\n")).unwrap_err();
        assert!(problems.iter().any(|one| one.starts_with("line 2, api.tokens-file: ")), "{problems:?}");
        assert!(!problems.join("\n").contains("s3cret"), "{problems:?}");
    }
    let same = with("    cli-default:", "    tokens-file: tokens\n    cli-default:").unwrap();
    assert_eq!(same.api.tokens.len(), 4);
    let twice = EXAMPLE
        .replace("\"8d3c5b7e-token-of-a-peer\"", "s3cret-1")
        .replace("    cli-default:", "    tokens-file: tokens\n    cli-default:");
    let problems = parse(&twice);
    let problems = problems.unwrap_err();
    assert_eq!(problems, ["line 12, api.tokens-file: \"backup2\" and \"backup3\" have the same token"]);
}

#[test]
fn what_version_2_5_had_is_accepted_and_noted() {
    let config = with(
        "    worker-limit: 3",
        "    worker-limit: 3\n    status-file: /srv/backy/status\n    status-interval: 30\n    telnet-addrs: ::1\n    telnet-port: 6023",
    )
    .unwrap();
    let notes: Vec<String> = config.notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 4);
    assert!(notes[0].starts_with("line 5, global.status-file: it has no effect any more"), "{notes:?}");
}

#[test]
fn intervals_are_texts() {
    let problems = with("interval: 1w", "interval: 604800").unwrap_err();
    assert_eq!(
        problems,
        [
            "line 21, schedules.default.weekly.interval: an interval is a text: write 1d, 12h, or \"604800\" for seconds"
        ]
    );
    assert!(with("interval: 1w", "interval: '604800'").is_ok());
}

#[test]
fn keys_that_are_no_texts_are_named_as_they_are_written() {
    let text =
        "schedules:\n  d: {daily: {interval: 1d, keep: 7}}\njobs:\n  0x1F: {}\n  1234: {}\n  true: {}\n";
    assert_eq!(
        parse(text).unwrap_err(),
        [
            "line 4, jobs.0x1F: the key must be a text: write it in quotes, \"0x1F\"",
            "line 5, jobs.1234: the key must be a text: write it in quotes, \"1234\"",
            "line 6, jobs.true: the key must be a text: write it in quotes, \"true\"",
        ]
    );
}

#[test]
fn tags_of_a_schedule_can_be_selected() {
    for (tag, reason) in [
        ("' daily'", "it begins or ends with a blank"),
        ("last", "as a word of `-r` it selects revisions by itself"),
        ("a&b", "have a meaning where revisions are selected"),
        ("'2024-01-01'", "a date is the end of a range"),
    ] {
        let text = format!("schedules:\n  d:\n    {tag}: {{interval: 1d, keep: 7}}\njobs: {{}}\n");
        let problems = parse(&text).unwrap_err();
        assert!(
            problems[0].starts_with("line 3, schedules.d.") && problems[0].contains(reason),
            "{problems:?}"
        );
    }
}

#[test]
fn the_base_directory_has_a_default_and_the_callback_must_be_there() {
    let config = parse("schedules: {}\njobs: {}\n").unwrap();
    assert_eq!(config.base_dir, Path::new("/srv/backy"));
    assert!(config.doubts(OsStr::new("/usr/bin")).is_empty());
    for (callback, doubt) in [
        ("/bin/true", None),
        ("sh", None),
        ("/no/such/program", Some("there is no such program")),
        ("/etc/passwd", Some("may not be executed")),
        ("no-such-command", Some("no directory of PATH has this program")),
    ] {
        let text = format!("global:\n  backup-completed-callback: {callback}\nschedules: {{}}\njobs: {{}}\n");
        let doubts = parse(&text).unwrap().doubts(OsStr::new("/usr/bin:/bin"));
        assert_eq!(doubts.first().map(|doubt| doubt.mark.is_some()), doubt.map(|_| true), "{callback}");
        assert!(doubts.iter().all(|found| found.message.contains(doubt.unwrap_or("?"))), "{doubts:?}");
    }
}

#[test]
fn many_problems_are_told_up_to_a_bound() {
    let jobs: String = (0..200).map(|number| format!("    job{number}: 7\n")).collect();
    let problems = parse(&format!("global: {{base-dir: /x}}\nschedules: {{}}\njobs:\n{jobs}")).unwrap_err();
    assert_eq!(problems.len(), 51);
    assert_eq!(problems[50], "and 150 more problems");
}

#[test]
fn ten_thousand_jobs_are_no_burden() {
    let mut text =
        String::from("global: {base-dir: /x}\nschedules: {d: {daily: {interval: 1d, keep: 7}}}\njobs:\n");
    for number in 0..10_000 {
        text.push_str(&format!(
            "    vm{number}: {{schedule: d, source: {{type: file, filename: /images/{number}}}}}\n"
        ));
    }
    assert_eq!(parse(&text).unwrap().jobs.len(), 10_000);
}

#[test]
fn files_are_read_beside_the_configuration_and_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backy.conf");
    let text = "global: {base-dir: /x}\napi: {cli-default: {token-file: token}}\nschedules: {}\njobs: {}\n";
    std::fs::write(&path, text).unwrap();
    let Error::ConfigInvalid { problems, .. } = ServiceConfig::load(&path).unwrap_err() else { panic!() };
    assert!(problems[0].message.starts_with("cannot read token: No such file"), "{problems:?}");
    std::fs::write(dir.path().join("token"), "s3cret\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(dir.path().join("token"), mode).unwrap();
    assert_eq!(ServiceConfig::load(&path).unwrap().api.cli_default.unwrap().token.expose(), "s3cret");
    std::fs::write(dir.path().join("token"), vec![b'x'; 2 << 20]).unwrap();
    assert!(ServiceConfig::load(&path).is_err());
    std::fs::write(&path, vec![b'\n'; 5 << 20]).unwrap();
    assert!(matches!(ServiceConfig::load(&path).unwrap_err(), Error::ConfigInvalid { .. }));
    assert!(matches!(ServiceConfig::load(dir.path()).unwrap_err(), Error::ConfigUnreadable { .. }));
}

#[test]
fn no_cut_and_no_flipped_byte_makes_it_panic() {
    for end in (0..EXAMPLE.len()).filter(|end| EXAMPLE.is_char_boundary(*end)) {
        let _ = parse(&EXAMPLE[..end]);
        for byte in [b'\n', b'"', b'*'] {
            let mut text = EXAMPLE.as_bytes().to_vec();
            text[end] = byte;
            let _ = parse(&String::from_utf8(text).unwrap());
        }
    }
}

#[test]
fn tokens_have_the_rights_that_are_written_and_a_name_alone_means_all() {
    let tokens = |text: &str| {
        let config = with("    cli-default:", &format!("    tokens-file: {text}\n    cli-default:")).unwrap();
        config.api.tokens
    };
    let read = tokens("rights");
    assert!(read[0].rights == Rights::all() && read[2].name == "prometheus");
    assert!(read[2].rights.has(Right::Metrics) && !read[2].rights.has(Right::Read));
    let inline = |text: &str| {
        with("        \"41f09ac2-token-of-the-cli\": \"cli\"", &format!("        s3cret: {text}"))
    };
    let limited = inline("{name: web, rights: 'read, run', jobs: [web*, www]}").unwrap();
    let limited = &limited.api.tokens[1].rights;
    assert!(
        limited.has(Right::Run) && limited.covers("web01") && limited.covers("www") && !limited.covers("db")
    );
    for (text, expected) in [
        ("{name: a}", "the key rights is missing after token 2"),
        ("{rights: [read]}", "the key name is missing after token 2"),
        ("{name: a, rights: []}", "it must have at least one right"),
        (
            "{name: a, rights: [raed]}",
            "unknown right \"raed\", did you mean read?; there are metrics, read, run, admin",
        ),
        ("{name: a, rights: {}}", "it must be a list of texts"),
        ("{name: a, rights: [read], jobs: []}", "it must have at least one pattern of jobs"),
        ("{name: a, rights: [read], jobs: [a/b]}", "a pattern of jobs consists of"),
        ("{name: a, rights: [read], job: [a]}", "unknown key \"job\", did you mean jobs?"),
    ] {
        let problems = inline(text).unwrap_err();
        assert!(problems[0].contains(expected), "{text}: {problems:?}");
    }
}

#[test]
fn a_token_that_goes_over_the_network_in_plain_text_is_noted() {
    for (url, notes) in [
        ("http://backup2.example.com:6023", 1),
        ("http://192.0.2.1", 1),
        ("http://[2001:db8::1]:6023", 1),
        ("http://localhost.example.com", 1),
        ("http://127.0.0.1:6023", 0),
        ("http://[::1]:6023", 0),
        ("http://localhost/backy", 0),
        ("https://backup2.example.com", 0),
    ] {
        let config = with("https://backup2.example.com:6023", url).unwrap();
        assert_eq!(config.notes.len(), notes, "{url}");
        assert!(notes == 0 || config.notes[0].place == "peers.backup2.url", "{:?}", config.notes);
    }
}

#[test]
fn files_that_others_may_have_written_or_read_are_refused_with_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (path, tokens) = (dir.path().join("backy.conf"), dir.path().join("tokens"));
    let text = "global: {base-dir: /srv/backy}\napi: {tokens-file: tokens}\nschedules: {}\njobs: {}\n";
    std::fs::write(&path, text).unwrap();
    std::fs::write(&tokens, "s3cret: a\n").unwrap();
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let problem = || match ServiceConfig::load(&path) {
        Ok(_) => String::new(),
        Err(Error::ConfigInvalid { problems, .. }) => problems[0].to_string(),
        Err(other) => panic!("{other}"),
    };
    for (config, secret, above, expected) in [
        (0o644, 0o640, 0o755, ""),
        (
            0o666,
            0o600,
            0o755,
            "/backy.conf can be written by others (mode 0666); if it can be trusted: `chmod go-w /",
        ),
        (0o664, 0o600, 0o755, "/backy.conf can be written by others (mode 0664)"),
        (
            0o644,
            0o644,
            0o755,
            "/tokens holds secrets and can be read by others (mode 0644); if it can be trusted: `chmod o-rwx /",
        ),
        (0o644, 0o620, 0o755, "/tokens can be written by others (mode 0620)"),
        (0o644, 0o600, 0o777, " can be written by others (mode 0777); if it can be trusted: `chmod go-w /"),
        (0o644, 0o600, 0o1777, ""),
    ] {
        set(&path, config);
        set(&tokens, secret);
        set(dir.path(), above);
        let said = problem();
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{expected}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}
