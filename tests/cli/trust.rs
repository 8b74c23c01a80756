//! Whose files are believed, what peers may bring about, and what hostile files may cost. Needs root for other owners.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use backy_testkit::{Peer, Run, World};

use crate::{BINARY, world};

/// A user who owns nothing here.
const OTHER: u32 = 4242;
/// A hundredth of what these files took before they had a bound, and far more than they take now.
const PATIENCE: Duration = Duration::from_secs(60);

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("set a mode");
}

fn give(path: &Path, user: u32) {
    chown(path, Some(user), None).expect("give a file away");
}

#[test]
fn root_runs_nothing_that_another_user_may_have_written() {
    let (world, _) = world();
    if fs::metadata(world.store()).expect("examine").uid() != 0 {
        return;
    }
    let (job, config) = (world.job(), world.job().join("config"));
    let refused = |reason: &str, remedy: &str| {
        let run = world.run(&["backup", "daily"]).expect(1).says(reason).says(remedy);
        assert!(!run.stderr.contains("panicked"), "{run}");
    };
    give(&config, OTHER);
    refused("belongs to the user 4242, not to root", "chown root");
    give(&config, 0);
    set_mode(&config, 0o666);
    refused("config can be written by others (mode 0666)", "chmod go-w");
    set_mode(&config, 0o600);
    give(&job, OTHER);
    refused("web01 belongs to the user 4242, not to root", "chown root -R");
    world.run(&["forget", "-r", "first"]).expect(1).says("belongs to the user 4242");
    // Nothing of it is taken for deleted.
    let chunks = world.chunks().len();
    world.on_store(&["purge", "--now"]);
    assert_eq!(world.chunks().len(), chunks);
    give(&job, 0);
    set_mode(&job, 0o777);
    refused("web01 can be written by others (mode 0777)", "chmod go-w");
    set_mode(&job, 0o700);
    give(&world.store(), OTHER);
    refused("srv belongs to the user 4242, not to root", "chown root -R");
    world.on_store(&["purge"]).expect(1).says("belongs to the user 4242");
    // In an emergency it can be read.
    world.ok(&["restore", "restored.img"]);
    world.ok(&["status"]);
    let doctor = world.run(&["doctor"]).expect(0);
    assert!(doctor.text().contains("owners   no") && doctor.text().contains("chown root"), "{doctor}");
    give(&world.store(), 0);
    world.ok(&["backup", "daily"]);
}

#[test]
fn links_that_were_planted_in_a_store_are_not_followed() {
    let (world, _) = world();
    let victim = world.path("victim");
    fs::create_dir(&victim).expect("make a directory");
    for suffix in ["", "-wal", "-shm"] {
        let path = world.store().join(format!("index.sqlite{suffix}"));
        drop(fs::remove_file(&path));
        symlink(victim.join("database"), &path).expect("plant a link");
    }
    assert_eq!(world.ok(&["find", "-r", "all", "--uuid"]).text().lines().count(), 3);
    world.ok(&["status"]);
    // Damage would be marked and kept where these links lead.
    fs::remove_dir_all(world.store().join("damaged")).expect("remove");
    symlink(&victim, world.store().join("damaged")).expect("plant a link");
    symlink(&victim, world.job().join("quarantine")).expect("plant a link");
    let chunk = world.chunks().remove(0);
    fs::write(chunk, b"rot").expect("damage a chunk");
    let run = world.run(&["verify", "-r", "all"]);
    assert_ne!(run.code(), 0, "{run}");
    assert_eq!(fs::read_dir(&victim).expect("list").count(), 0, "{run}");
}

#[test]
fn invented_revisions_of_a_peer_take_nothing_away_and_prove_nothing() {
    let world = World::new(BINARY);
    for day in 1..=9 {
        // As the original wrote them: local, complete and trusted, older than anything that the peer lists.
        let text = format!(
            "{{uuid: local{day}, timestamp: '2020-01-0{day} 02:00:00+00:00', stats: {{bytes_written: 5, duration: 1.0}}, \
             tags: [daily], orig_tags: [], backend_type: chunked, parent: '', server: '', trust: trusted}}\n"
        );
        fs::write(world.job().join(format!("local{day}.rev")), text).expect("write a manifest");
    }
    let schedule = "daily: {interval: 1d, keep: 3}";
    world.configure("web01", &format!("source: {{type: file, filename: /x}}\nschedule: {{{schedule}}}\n"));
    let peer = Peer::start();
    for number in 0..40 {
        peer.put(&format!("invented{number}"), &["daily"]);
    }
    peer.configure(&world);
    world.run(&["pull", "-c", "backy.conf"]).expect(0);
    // Forty notes do not raise the number that one run may forget, and with force as many stay as without them.
    world.ok(&["expire"]);
    let left = || world.ok(&["find", "-r", "local", "--uuid"]).text().lines().count();
    assert_eq!(left(), 7);
    world.ok(&["expire", "--force"]);
    assert_eq!(left(), 3);
    let config = fs::read_to_string(world.path("backy.conf")).expect("read");
    let job = "jobs: {web01: {schedule: default, source: {type: file, filename: /x}}}";
    let config = config.replace("schedules: {}", &format!("schedules: {{default: {{{schedule}}}}}"));
    fs::write(world.path("backy.conf"), config.replace("jobs: {}", job)).expect("write");
    let run = Run::of(&mut world.bare(&["check", "--without-service", "-c", "backy.conf"])).expect(2);
    assert!(run.text().contains("overdue: the newest good revision is"), "{run}");
    assert!(
        run.text().contains("a peer lists one that is") && run.text().contains("does not count"),
        "{run}"
    );
}

#[test]
fn hostile_files_cost_little() {
    let (world, _) = world();
    let begun = Instant::now();
    for text in ["[".repeat(600_000), "{a: ".repeat(150_000), "- [\n".repeat(150_000)] {
        world.configure("web01", &text);
        world.run(&["backup", "daily"]).expect(1).says("config");
        fs::write(world.job().join("zzz.rev"), &text).expect("write");
        let run = world.run(&["status"]);
        assert!(run.stderr.contains("zzz") && run.text().contains("3 revisions"), "{run}");
    }
    let tokens = format!("{}: a\n", "[".repeat(600_000));
    fs::write(world.path("tokens"), tokens).expect("write");
    set_mode(&world.path("tokens"), 0o600);
    for text in [
        "global: {base-dir: /x}\napi: {tokens-file: tokens}\nschedules: {}\njobs: {}\n".to_owned(),
        "[".repeat(3_000_000),
    ] {
        fs::write(world.path("backy.conf"), text).expect("write");
        Run::of(&mut world.bare(&["config", "check", "-c", "backy.conf"])).expect(1);
    }
    fs::write(world.store().join("backy.store"), "[".repeat(600_000)).expect("write");
    world.run(&["status"]).expect(1).says("backy.store");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn configurations_that_others_may_write_are_refused_by_check_and_service() {
    let world = World::new(BINARY);
    let (config, tokens) = (world.path("backy.conf"), world.path("tokens"));
    let text = format!(
        "global: {{base-dir: {}}}\napi: {{tokens-file: tokens}}\nschedules: {{}}\njobs: {{}}\n",
        world.store().display()
    );
    fs::write(&config, text).expect("write");
    fs::write(&tokens, "T0ken: {name: prometheus, rights: [metrics], jobs: [web*]}\n").expect("write");
    let check = || Run::of(&mut world.bare(&["config", "check", "-c", "backy.conf"]));
    let service = || Run::of(&mut world.bare(&["scheduler", "-c", "backy.conf"]));
    set_mode(&tokens, 0o644);
    let run = check().expect(1);
    assert!(run.text().contains("tokens holds secrets and can be read by others (mode 0644)"), "{run}");
    service().expect(1).says("can be read by others");
    set_mode(&tokens, 0o600);
    check().expect(0);
    set_mode(&config, 0o666);
    let run = check().expect(1);
    assert!(run.text().contains("chmod go-w") && !run.text().contains("T0ken"), "{run}");
    service().expect(1).says("can be written by others (mode 0666)");
}
