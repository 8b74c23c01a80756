//! `backy check` and `backy config check` with the built binary: every state a server can be in, as a monitoring
//! system sees it.

#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod config;

use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backy_sched::service::ServiceGuard;
use backy_store::{RevisionId, Timestamp};
use backy_testkit::{CHUNK, Image, Run, World};

const BINARY: &str = env!("CARGO_BIN_EXE_backy");
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A main configuration with these jobs; one revision a day is due.
fn configure(world: &World, jobs: &[&str]) {
    let image = world.path("image.img");
    let mut text = format!(
        "global: {{base-dir: {}}}\nschedules: {{default: {{daily: {{interval: 1d, keep: 7}}, weekly: {{interval: 1w, keep: 4}}}}}}\njobs:\n",
        world.store().display()
    );
    for job in jobs {
        text.push_str(&format!(
            "    {job}: {{schedule: default, source: {{type: file, filename: {}}}}}\n",
            image.display()
        ));
    }
    fs::write(world.path("backy.conf"), text).expect("write the configuration");
}

/// A server with one job, which has no revisions yet, and a running service.
fn world() -> (World, ServiceGuard) {
    let world = World::new(BINARY);
    configure(&world, &["web01"]);
    let service = ServiceGuard::take(&world.store()).expect("take the service's lock");
    (world, service)
}

fn check(world: &World) -> Run {
    Run::of(&mut world.bare(&["check", "-c", "backy.conf"]))
}

/// Runs the check, which must end with `code` and begin with `first`; returns the lines of problems.
#[track_caller]
fn expect(world: &World, code: i32, first: &str) -> Vec<String> {
    let run = check(world).expect(code);
    let mut lines = run.text().lines().map(str::to_owned);
    let head = lines.next().unwrap_or_default();
    assert!(head.starts_with(first), "{first:?}\n{run}");
    assert!(head.contains(" | jobs="), "{run}");
    lines.collect()
}

/// Writes a manifest as the original wrote them, made `ago_secs` ago.
fn add_revision(world: &World, job: &str, number: u128, ago_secs: i64, change: impl Fn(String) -> String) {
    let id = RevisionId::from_bits(number);
    let time = Timestamp::now().plus_secs(-ago_secs).to_rfc3339();
    let text = format!(
        "backend_type: chunked\norig_tags: []\nparent: ''\nserver: ''\nstats:\n  bytes_written: 7\n  duration: 0.25\n\
         tags:\n- daily\ntimestamp: {time}\ntrust: trusted\nuuid: {id}\n"
    );
    fs::write(world.store().join(job).join(format!("{id}.rev")), change(text)).expect("write a manifest");
}

fn same(text: String) -> String {
    text
}

#[test]
fn a_job_whose_directory_is_away_is_critical_until_it_is_back() {
    let (mut world, _service) = world();
    world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 1)), "daily,weekly");
    expect(&world, 0, "OK");
    let away = world.path("away");
    for below in [false, true] {
        fs::rename(world.job(), &away).expect("move the job away");
        if below {
            // What was made below a mount point, as an earlier program did.
            fs::create_dir(world.job()).expect("make the mount point");
            fs::copy(away.join("config"), world.job().join("config")).expect("copy the configuration");
        }
        let problems = expect(&world, 2, "CRITICAL").join("\n");
        assert!(problems.contains("its directory is away: 1 revision"), "{problems}");
        drop(fs::remove_dir_all(world.job()));
        fs::rename(&away, world.job()).expect("move the job back");
        expect(&world, 0, "OK");
    }
}

/// Makes a file look as if it was changed `days` days ago.
fn age(path: &std::path::Path, days: u64) {
    let time = SystemTime::now() - Duration::from_secs(days * 86_400);
    let file = File::options().append(true).open(path).expect("open a file");
    file.set_modified(time).expect("set the time of a file");
}

#[test]
fn a_job_that_was_just_backed_up_is_green() {
    let (mut world, _service) = world();
    world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 1)), "daily");
    let lines = expect(&world, 0, "OK: 1 job within SLA | jobs=1 overdue=0 never_ran=0 ");
    assert_eq!(lines, [""; 0]);
}

#[test]
fn without_a_service_it_warns_unless_nobody_expects_one() {
    let (mut world, service) = world();
    world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 1)), "daily");
    drop(service);
    let lines = expect(&world, 1, "WARNING: the scheduler service does not run | jobs=1 ");
    assert_eq!(lines.len(), 1);
    assert!(check(&world).text().lines().next().unwrap().ends_with(" service=0"));
    let run = Run::of(&mut world.bare(&["check", "-c", "backy.conf", "--without-service"])).expect(0);
    assert!(run.line().starts_with("OK: ") && !run.line().contains("service"), "{run}");
}

#[test]
fn an_old_newest_revision_is_overdue() {
    let (world, _service) = world();
    add_revision(&world, "web01", 1, 35 * HOUR, same);
    expect(&world, 0, "OK: ");
    add_revision(&world, "web01", 1, 37 * HOUR, same);
    let lines = expect(&world, 2, "CRITICAL: 1 of 1 jobs overdue | jobs=1 overdue=1 ");
    assert_eq!(
        lines,
        ["CRITICAL web01: overdue: the newest good revision is 1d 13h old, one is due every 1d"]
    );
}

#[test]
fn a_job_that_never_ran_is_critical_when_it_is_no_longer_new() {
    let (world, _service) = world();
    expect(&world, 0, "OK: ");
    age(&world.job().join("config"), 2);
    let lines = expect(&world, 2, "CRITICAL: 1 of 1 jobs without a backup | ");
    assert_eq!(lines, ["CRITICAL web01: never ran, but is there for 2d 0h, one is due every 1d"]);
}

#[test]
fn a_job_without_a_directory_counts_from_the_configuration() {
    let (mut world, _service) = world();
    world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 1)), "daily");
    configure(&world, &["web01", "web02"]);
    expect(&world, 0, "OK: 2 jobs ");
    age(&world.path("backy.conf"), 3);
    let lines = expect(&world, 2, "CRITICAL: 1 of 2 jobs without a backup | ");
    assert!(lines[0].starts_with("CRITICAL web02: never ran"), "{lines:?}");
}

#[test]
fn a_partial_revision_never_makes_a_job_green() {
    let (world, _service) = world();
    add_revision(&world, "web01", 1, 2 * DAY, same);
    add_revision(&world, "web01", 2, HOUR, |text| text.replace("  duration: 0.25\n", ""));
    expect(&world, 2, "CRITICAL: 1 of 1 jobs overdue | ");
}

#[test]
fn a_revision_of_another_server_does_not_count_but_is_mentioned() {
    let (world, _service) = world();
    add_revision(&world, "web01", 1, 2 * DAY, same);
    let remote = |text: String| text.replace("server: ''", "server: backup2").replace("chunked", "''");
    add_revision(&world, "web01", 2, HOUR, remote);
    let lines = expect(&world, 2, "CRITICAL: 1 of 1 jobs overdue | ");
    assert!(lines[0].contains("a peer lists one that is 1h 0m old, which does not count"), "{lines:?}");
}

#[test]
fn distrust_is_critical_for_the_newest_and_a_warning_for_the_others() {
    let (mut world, _service) = world();
    let image = Image::zeros(CHUNK).words(0, 1);
    world.backup(&Arc::new(image.clone()), "daily");
    world.ok(&["distrust"]);
    add_revision(&world, "web01", 1, HOUR, same);
    let lines = expect(&world, 2, "CRITICAL: 1 of 1 jobs with a distrusted newest revision | ");
    assert_eq!(lines, ["CRITICAL web01: the newest revision is distrusted, 1 of 2 are"]);
    world.backup(&Arc::new(image.words(0, 2)), "daily");
    world.ok(&["distrust", "-r", "first"]);
    let lines = expect(&world, 1, "WARNING: 1 of 1 jobs with distrusted revisions | ");
    assert_eq!(lines.len(), 1);
}

#[test]
fn a_source_that_changed_is_a_warning_until_it_is_accepted_or_back() {
    let (mut world, _service) = world();
    let image = Arc::new(Image::zeros(CHUNK).words(0, 1));
    let empty = Arc::new(Image(Vec::new()));
    world.backup(&image, "daily");
    let warns = |world: &World| {
        let lines = expect(world, 1, "WARNING: 1 of 1 jobs with a changed source | ");
        let said = "WARNING web01: its source is not as it was, and nobody has accepted that: it is empty and had 4194304 bytes";
        assert_eq!(lines, [said]);
        assert!(check(world).line().contains(" source_changed=1 "));
    };
    world.backup(&empty, "daily");
    warns(&world);
    world.backup(&image, "daily");
    expect(&world, 0, "OK: ");
    world.backup(&empty, "daily");
    warns(&world);
    world.ok(&["accept"]);
    expect(&world, 0, "OK: ");
}

#[test]
fn quarantine_unreadable_manifests_and_manual_tags_are_told() {
    let (mut world, _service) = world();
    world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 1)), "daily,manual:before upgrade");
    let lines = expect(&world, 0, "OK: ");
    assert_eq!(lines, ["INFO web01: kept by hand: manual:before upgrade"]);
    fs::create_dir_all(world.job().join("quarantine")).unwrap();
    fs::write(world.job().join("quarantine/x.report"), "uuid: x\n").unwrap();
    fs::write(world.job().join(format!("{}.rev", RevisionId::from_bits(9))), "{").unwrap();
    let lines = expect(
        &world,
        1,
        "WARNING: 1 of 1 jobs with unreadable manifests, 1 of 1 jobs with quarantine reports | ",
    );
    assert_eq!(
        lines,
        [
            "WARNING web01: 1 manifest cannot be read",
            "WARNING web01: 1 report in its quarantine",
            "INFO web01: kept by hand: manual:before upgrade"
        ]
    );
}

#[test]
fn what_cannot_be_found_out_is_unknown() {
    let (world, service) = world();
    let unknown = |part: &str| {
        let run = check(&world).expect(3);
        assert!(run.text().starts_with("UNKNOWN: ") && run.text().contains(part), "{part}\n{run}");
        let json = Run::of(&mut world.bare(&["check", "-c", "backy.conf", "--json"])).expect(3).json();
        assert_eq!(json["status"], "unknown", "{json}");
    };
    let text = fs::read_to_string(world.path("backy.conf")).unwrap();
    fs::write(world.path("backy.conf"), text.replace("interval: 1d", "interval: 1y")).unwrap();
    unknown("backy.conf:2:31: schedules.default.daily.interval: invalid interval \"1y\"");
    fs::write(world.path("backy.conf"), "").unwrap();
    unknown("it is empty");
    fs::remove_file(world.path("backy.conf")).unwrap();
    unknown("cannot read the configuration");
    fs::write(world.path("backy.conf"), &text).unwrap();
    drop(service);
    fs::rename(world.store(), world.path("away")).unwrap();
    unknown("srv");
    for words in [&["check", "--colour"][..], &["-b", "srv", "check", "-c", "backy.conf"]] {
        Run::of(&mut world.bare(words)).expect(3);
    }
}

#[test]
fn one_job_that_cannot_be_looked_at_does_not_hide_the_others() {
    let (mut world, _service) = world();
    world.backup(&Arc::new(Image::zeros(CHUNK).words(0, 1)), "daily");
    world.add_job("web02", "image.img");
    configure(&world, &["web01", "web02"]);
    fs::write(world.store().join("web02/backy.store"), "format: 99\n").unwrap();
    let lines = expect(&world, 2, "CRITICAL: 1 of 2 jobs unknown | ");
    assert!(lines[0].starts_with("CRITICAL web02: cannot be looked at: "), "{lines:?}");
    assert_eq!(lines.len(), 1);
}

#[test]
fn json_has_the_same_verdicts() {
    let (world, _service) = world();
    add_revision(&world, "web01", 1, 3 * DAY, same);
    let json = Run::of(&mut world.bare(&["check", "-c", "backy.conf", "--json"])).expect(2).json();
    assert_eq!(
        (&json["status"], &json["jobs"], &json["service_runs"]),
        (&"critical".into(), &1.into(), &true.into())
    );
    let problem = &json["problems"][0];
    assert_eq!((&problem["kind"], &problem["job"]), (&"overdue".into(), &"web01".into()), "{json}");
    let fields: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["jobs", "message", "problems", "revisions", "service_runs", "status"]);
    let manual = include_str!("../../docs/cli.md");
    let (_, section) = manual.split_once("\n## check\n").unwrap();
    for field in fields.into_iter().chain(problem.as_object().unwrap().keys()) {
        assert!(section.contains(&format!("| `{field}` |")), "{field} is not in the manual");
    }
}

#[test]
fn checking_changes_nothing_in_the_jobs() {
    let (world, _service) = world();
    add_revision(&world, "web01", 1, HOUR, same);
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(world.job()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    check(&world).expect(0);
    assert_eq!(names(), before);
}

#[test]
fn whatever_is_typed_a_check_has_a_verdict() {
    let (world, _service) = world();
    for (words, first) in [
        (&["check", "--frob"][..], "UNKNOWN: unexpected argument '--frob' found\n"),
        (&["client", "check", "--frob"], "UNKNOWN: unexpected argument '--frob' found\n"),
        (&["-c", "x", "check", "y"], "UNKNOWN: unexpected argument 'y' found\n"),
        (&["-l", "no/such/log", "check"], "UNKNOWN: cannot open the log file no/such/log"),
        (&["-l", "check"], "UNKNOWN: no command was given: `-l` takes a FILE, and took `check` for it\n"),
        (&["-b", "check"], "UNKNOWN: no command was given: `-b` takes a DIR, and took `check` for it\n"),
        (
            &["-v", "--config", "check", "--json"],
            "{\n  \"jobs\": null,\n  \"message\": \"no command was given: ",
        ),
        (
            &["client", "-c", "check"],
            "UNKNOWN: no command was given: `-c` takes a FILE, and took `check` for it\n",
        ),
        (&["-l", "no/such/log", "client", "check"], "UNKNOWN: cannot open the log file no/such/log"),
    ] {
        let run = Run::of(&mut world.bare(words)).expect(3);
        assert!(run.text().starts_with(first), "{run}");
    }
    let run = Run::of(&mut world.bare(&["check", "--frob", "--json"])).expect(3);
    assert_eq!(run.json()["status"], "unknown");
    // Others keep standard output clean.
    assert_eq!(Run::of(&mut world.bare(&["status", "--frob"])).expect(2).text(), "");
    assert!(!world.path("check").exists(), "nothing was logged to what was taken for a file");
}

#[test]
fn a_late_job_is_excused_while_its_backup_runs() {
    let (world, _service) = world();
    add_revision(&world, "web01", 1, 37 * HOUR, same);
    let lock = File::options().create(true).append(true).open(world.job().join(".backup")).expect("a file");
    lock.lock().expect("a lock");
    let lines = expect(&world, 0, "OK: 1 job within SLA | jobs=1 overdue=0 ");
    assert_eq!(
        lines,
        ["INFO web01: a backup runs: the newest good revision is 1d 13h old, one is due every 1d"]
    );
    lock.unlock().expect("a lock");
    expect(&world, 2, "CRITICAL: 1 of 1 jobs overdue | ");
}
