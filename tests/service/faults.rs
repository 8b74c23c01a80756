//! Children that hang, crash and lie; a store that goes away; kills at random points.

use std::fs;
use std::time::Duration;

use backy_testkit::{Random, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::server::{Server, until};
use super::{BINARY, write_image, write_script};

/// A program that does `what` for the job `bad` when it is to be backed up, and is backy otherwise.
fn odd_program(server: &Server, what: &str) -> std::path::PathBuf {
    let script = format!("case \"$*\" in */bad*' backup '*) {what};; *) exec {BINARY} \"$@\";; esac");
    write_script(&server.world, "odd", &script)
}

#[test]
fn a_child_that_hangs_crashes_or_lies_fails_its_round_and_nothing_else() {
    for (what, why) in [
        ("trap '' TERM; sleep 600 & wait; sleep 600", "it hung and was ended"),
        ("kill -SEGV $$", "signal 11 ended it"),
        ("exit 0", "made no revision"),
        ("echo 7Qk2mXv9TzB4cDfGhJkLpN", "made no revision"),
        ("echo ../../etc/passwd", "made no revision"),
        ("yes | head -c 3000000; yes >&2 & sleep 1; kill $!; exit 5", "status 5"),
    ] {
        // A second is short for a healthy child on a slow machine.
        let limit = if what.contains("sleep 600") { "5s" } else { "30m" };
        let mut server = Server::new().with_stall_limit(limit);
        write_image(&server.world, "image1", 1);
        server.configure(&[("bad", "image1", "quick"), ("good", "image1", "quick")]);
        let program = odd_program(&server, what);
        server.start_with(&[("BACKY_CMD", &program)]);
        until(why, || server.log().lines().any(|line| line.contains(" bad ") && line.contains(why)));
        until("others go on", || server.revisions("good").len() > 1);
        assert_eq!(server.entry("bad")["status"], "failed");
        assert!(server.revisions("bad").is_empty());
        // A hung child has ignored the signal for a while; the service ends all the same.
        assert_eq!(server.stop(), Some(0), "{what}");
    }
}

#[test]
fn a_program_that_is_not_there_any_more_fails_the_rounds_and_not_the_service() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    server.start_with(&[("BACKY_CMD", &server.world.path("no-such-program"))]);
    until("it is told", || server.log().contains("could not be started"));
    assert_eq!(server.entry("vm1")["status"], "failed");
    server.check();
}

#[test]
fn a_store_that_is_unmounted_meanwhile_is_left_alone() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    server.start();
    until("a backup", || !server.revisions("vm1").is_empty());
    let (store, away) = (server.world.store(), server.world.path("away"));
    fs::rename(&store, &away).expect("take the store away");
    fs::create_dir(&store).expect("an empty mount point");
    until("the round fails", || server.log().contains("step-failed"));
    assert_eq!(fs::read_dir(&store).expect("list").count(), 0, "nothing is made there");
    server.client(&["run", "vm1"]).expect(0);
    until("the reason is told", || server.log().contains("no backy store"));
    assert_eq!(fs::read_dir(&store).expect("list").count(), 0, "nothing is made there");
    let table = server.client(&["jobs"]).expect(0);
    assert!(table.text().contains("UNKNOWN") && table.text().contains("cannot be read: "), "{table}");
    assert!(!table.text().contains(" OK "), "{table}");
    let entry = server.entry("vm1");
    assert_eq!(entry["sla"], "UNKNOWN", "{entry}");
    assert!(entry["failure"].as_str().is_some_and(|why| why.contains("no backy store")), "{entry}");
    server.client(&["check"]).expect(2);
    fs::remove_dir(&store).expect("remove the mount point");
    fs::rename(&away, &store).expect("bring it back");
    let before = server.revisions("vm1");
    server.client(&["run", "vm1"]).expect(0);
    until("it goes on", || server.revisions("vm1").last() != before.last());
    let entry = server.entry("vm1");
    assert!(entry["sla"] == "OK" && entry["failure"].is_null(), "{entry}");
}

#[test]
fn an_end_stops_running_children_and_leaves_a_whole_store() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    let slow = write_script(
        &server.world,
        "slow",
        &format!(
            "case \"$*\" in *' backup '*) touch {}; exec sleep 600;; *) exec {BINARY} \"$@\";; esac",
            server.world.path("begun").display()
        ),
    );
    server.start_with(&[("BACKY_CMD", &slow)]);
    until("a backup runs", || server.world.path("begun").exists());
    assert_eq!(server.entry("vm1")["status"], "running (slow)");
    assert_eq!(server.stop(), Some(0));
    server.start();
    until("the next service backs up", || !server.revisions("vm1").is_empty());
}

/// The processes whose parent or group is the service's, by their command lines.
fn children_of(server: &Server) -> Vec<Pid> {
    let marker = server.world.store().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("list /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&marker) && line.contains(" backup ") && line.contains("-t ") {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

#[test]
fn kills_of_the_service_and_of_children_leave_nothing_stuck() {
    let mut random = Random::from_env("SERVICE_SEED", 1);
    let mut server = Server::new();
    let image = write_image(&server.world, "image1", 1);
    let jobs = [("vm1", "image1", "quick"), ("vm2", "image1", "quick"), ("vm3", "image1", "quick")];
    server.configure(&jobs);
    server.start();
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(random.below(700)));
        if random.below(2) == 0 {
            for child in children_of(&server) {
                // It may have ended meanwhile.
                let _ = kill(child, Signal::SIGKILL);
            }
        } else {
            server.kill();
            server.start();
        }
    }
    for (job, ..) in jobs {
        let before = server.revisions(job);
        server.client(&["run", job]).expect(0);
        until("it goes on", || server.revisions(job).last().is_some_and(|last| Some(last) != before.last()));
    }
    until("it is green", || server.check().code() == 0);
    assert_eq!(server.stop(), Some(0));
    until("no child is left", || children_of(&server).is_empty());
    for (job, ..) in jobs {
        Run::of(&mut server.world.command_for(job, &["verify", "-r", "all"])).expect(0);
        let (run, restored) = server.world.restore_of(job, "last");
        assert_eq!((run.code(), restored.as_ref()), (0, Some(&*image)), "{run}");
    }
    Run::of(&mut server.world.bare(&["-b", "srv", "purge", "--now"])).expect(0);
    assert!(server.world.leftovers().is_empty(), "{:?}", server.world.leftovers());
}

/// A mount that was stopped. Dropping it kills it: then it ends for everybody, whoever else sees it.
pub(crate) struct HungMount(std::process::Child, std::path::PathBuf);

impl HungMount {
    /// A tree of the store at `mnt` of which no file can be opened any more.
    pub(crate) fn new(server: &Server) -> Self {
        let point = server.world.path("mnt");
        fs::create_dir(&point).expect("a directory");
        let mut command = server.world.bare(&["-b", "srv", "mount", "mnt"]);
        let mount = Self(command.spawn().expect("the binary can be started"), point.clone());
        until("it is mounted", || point.join("web01").exists());
        kill(Pid::from_raw(mount.0.id().cast_signed()), Signal::SIGSTOP).expect("it runs");
        mount
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        backy_testkit::end(&mut self.0);
        drop(std::process::Command::new("umount").arg("-l").arg(&self.1).status());
    }
}

/// One job's directory lies on a file system that has stopped answering: the other jobs go on, and after some seconds
/// the API does, too. Once, every round that ended waited for the hung one, and kept its worker.
#[test]
fn a_directory_that_hangs_holds_up_its_own_job_only() {
    if !std::path::Path::new("/dev/fuse").exists() || !nix::unistd::geteuid().is_root() {
        println!("skipped: a file system that hangs needs /dev/fuse and root");
        return;
    }
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[
        ("hung", "image1", "default"),
        ("vm1", "image1", "quick"),
        ("vm2", "image1", "quick"),
    ]);
    server.start();
    until("backups", || !server.revisions("vm1").is_empty() && !server.revisions("vm2").is_empty());
    let dir = server.world.store().join("hung");
    let mount = HungMount::new(&server);
    // The service has made the directory.
    fs::rename(&dir, server.world.path("away")).expect("take the directory away");
    std::os::unix::fs::symlink(&mount.1, &dir).expect("a link");

    // Somebody looks, and hangs.
    let mut command = server.world.bare(&["client", "-c", "backy.conf", "jobs"]);
    let mut looker = command.stdout(std::process::Stdio::null()).spawn().expect("the binary can be started");
    let before = [server.revisions("vm1"), server.revisions("vm2")];
    for (job, before) in ["vm1", "vm2"].into_iter().zip(before) {
        until("others go on", || server.revisions(job).iter().filter(|id| !before.contains(id)).count() >= 2);
    }
    until("the service answers again", || server.client(&["jobs"]).code() == 0);
    let told = "hung: cannot be looked at: its directory does not answer";
    until("the check tells of it", || server.client(&["check"]).text().contains(told));

    drop(mount);
    backy_testkit::ended(&mut looker);
    until("it is well again", || server.check().code() == 0);
    assert_eq!(server.stop(), Some(0));
}
