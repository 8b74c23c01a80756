//! Few threads and processes: work takes longer or fails with an error, and nothing panics.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use backy_testkit::Run;
use nix::unistd::{Gid, Uid, chown};

use super::server::{Server, until};
use super::{BINARY, write_image};

/// A user who owns nothing else on this machine: the limit counts all of a user's processes.
fn user() -> u32 {
    1_000_000 + std::process::id()
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
fn a_lack_of_threads_is_an_error_or_takes_longer() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: another user's limits need root");
        return;
    }
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    write_image(&server.world, "image.img", 2);
    server.configure(&[("vm1", "image1", "quick")]);
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
    // The service needs some: with fewer it says so.
    let words = ["-l", "scheduler.log", "scheduler", "-c", "backy.conf"];
    let run = Run::of(&mut limited(&server, &program, 1, &words)).expect(1);
    assert!(run.stderr.contains("hint: raise the limit of processes and threads"), "{run}");
    for limit in [4, 7] {
        server.launch(&mut limited(&server, &program, limit, &words));
        std::thread::sleep(std::time::Duration::from_millis(300));
        // It may have ended with an error; `wait` looks for a panic.
        let _ = nix::sys::signal::kill(server.pid(), nix::sys::signal::Signal::SIGTERM);
        let status = server.wait();
        assert!(matches!(status, Some(0 | 1)) || status.is_none(), "{limit}: {status:?}");
    }
    fs::remove_file(server.world.path("scheduler.log")).expect("it is there");
    server.launch(&mut limited(&server, &program, 60, &words));
    until("a backup", || server.log().contains("backup-done"));
    assert_eq!(server.stop(), Some(0));
}
