//! Few threads and processes: work takes longer or fails with an error, and nothing panics.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use backy_testkit::Run;
use nix::unistd::{Gid, Uid, chown};

use super::server::{Server, until};
use super::{BINARY, write_image};

/// A user who owns nothing else on this machine, one for each test: the limit counts all of a user's processes.
fn user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local!(static NUMBER: u32 = NEXT.fetch_add(1, Ordering::Relaxed));
    1_000_000 + std::process::id() * 8 + NUMBER.with(|number| *number)
}

/// Gives everything in a directory to the user.
fn give(path: &std::path::Path) {
    chown(path, Some(Uid::from_raw(user())), Some(Gid::from_raw(user()))).expect("change the owner");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("list").flatten() {
            give(&entry.path());
        }
    }
}

/// The binary at a path that everybody may use.
fn program(server: &Server) -> PathBuf {
    let copy = server.world.path("backy");
    fs::copy(BINARY, &copy).expect("copy the binary");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("let everybody run it");
    copy
}

/// The program as that user with at most so many processes and threads.
fn limited(server: &Server, program: &std::path::Path, limit: u32, words: &[&str]) -> Command {
    let id = user().to_string();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "prlimit",
        &format!("--nproc={limit}:{limit}"),
    ]);
    command.arg(program).args(words).current_dir(server.world.path("."));
    command.env_remove("RUST_BACKTRACE");
    command
}

#[test]
fn a_command_with_too_few_threads_takes_longer() {
    if !nix::unistd::geteuid().is_root() {
        return println!("{NOT_ROOT}");
    }
    let server = Server::new();
    write_image(&server.world, "image.img", 2);
    let program = program(&server);
    let dir = server.world.path(".");
    give(&dir);
    let image = fs::read(server.world.path("image.img")).expect("read the image");
    for limit in [1, 3] {
        for words in [
            &["-v", "-b", "srv/web01", "backup", "daily", "--threads", "4"][..],
            &["-b", "srv/web01", "status"],
            &["-b", "srv/web01", "verify", "-r", "all", "--threads", "4"],
            &["-b", "srv", "purge"],
            &["-b", "srv/web01", "restore", "-r", "last", "--force", "restored", "--threads", "4"],
        ] {
            Run::of(&mut limited(&server, &program, limit, words)).expect(0);
        }
        assert!(fs::read(server.world.path("restored")).expect("it is there") == image, "{limit}");
        let words = ["-b", "srv/web01", "restore", "-r", "last", "-", "--threads", "4"];
        let run = Run::of(&mut limited(&server, &program, limit, &words)).expect(0);
        assert!(run.stdout == image, "{limit}");
    }
}

const NOT_ROOT: &str = "skipped: another user's limits need root";
const SERVICE: [&str; 5] = ["-l", "scheduler.log", "scheduler", "-c", "backy.conf"];

/// A service with a job for a user of limits, and the program that this user may run; nothing without root.
fn configured() -> Option<(Server, PathBuf)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    let program = program(&server);
    give(&server.world.path("."));
    Some((server, program))
}

/// Whatever the limit: the service ends with an error, or it works.
#[test]
fn no_limit_leaves_a_service_that_does_nothing() {
    let Some((mut server, program)) = configured() else { return println!("{NOT_ROOT}") };
    let log = server.world.path("scheduler.log");
    let (mut refused, mut worked) = (0, 0);
    for limit in 1..60 {
        drop(fs::remove_file(&log));
        let before = server.revisions("vm1");
        server.launch(&mut limited(&server, &program, limit, &SERVICE));
        until("it ends, or backs up", || {
            server.has_ended() || server.revisions("vm1").last() != before.last()
        });
        if server.has_ended() {
            assert_eq!(server.wait(), Some(1), "{limit}");
            let said = fs::read_to_string(server.world.path("scheduler.err")).expect("it is there");
            assert!(said.contains("hint: raise the limit of processes and threads"), "{limit}: {said}");
            refused += 1;
        } else {
            assert_eq!(server.stop(), Some(0), "{limit}: {}", server.log());
            worked += 1;
        }
        // More is no harder than two limits that are just enough.
        if worked == 2 {
            break;
        }
    }
    assert!(refused > 2 && worked == 2, "{refused} {worked}");
}

/// The limit of a running service, as `prlimit` or a full cgroup changes it.
fn limit_of(server: &Server, limit: u32) {
    let words = [format!("--pid={}", server.pid()), format!("--nproc={limit}:")];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Run::of(&mut limited(server, "prlimit".as_ref(), 60, &words)).expect(0);
}

#[test]
fn a_service_that_can_start_nothing_any_more_is_seen_and_recovers() {
    let Some((mut server, program)) = configured() else { return println!("{NOT_ROOT}") };
    let silence = ("BACKY_TEST_SILENCE_MAX_SECS", "2");
    server.launch(limited(&server, &program, 60, &SERVICE).env(silence.0, silence.1));
    until("a backup", || server.revisions("vm1").len() == 1);
    // The configuration is the user's.
    let as_user = |server: &Server, words: &[&str]| {
        let words = [words, &["-c", "backy.conf"]].concat();
        Run::of(limited(server, &program, 60, &words).env(silence.0, silence.1))
    };
    until("it answers", || as_user(&server, &["client", "jobs"]).code() == 0);
    limit_of(&server, 1);
    let refused = as_user(&server, &["client", "jobs"]).expect(1);
    assert!(
        refused.stderr.contains("503") && refused.stderr.contains("limit of processes and threads"),
        "{refused}"
    );
    until("the check tells of it", || {
        let run = as_user(&server, &["check"]);
        run.code() == 2 && run.text().contains("the scheduler service hangs")
    });
    limit_of(&server, 60);
    until("it is green again", || as_user(&server, &["check"]).code() == 0);
    let before = server.revisions("vm1");
    until("it works again", || server.revisions("vm1").last() != before.last());
    as_user(&server, &["client", "jobs"]).expect(0);
    assert_eq!(server.stop(), Some(0));
}
