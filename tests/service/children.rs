//! What children get from the service, and what becomes of those that nobody waits for.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::server::{Server, until};
use super::{BINARY, write_image, write_script};

#[test]
fn children_start_in_a_state_of_their_own() {
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    let seen = server.world.path("seen");
    // The shell reads its own masks: it blocks all signals while it starts another program.
    let script = format!(
        "case \"$*\" in *' backup '*) {{ env; while read -r line; do case $line in Sig[BI]*) echo \"$line\";; esac; done < /proc/self/status; ls /proc/$$/fd; \
         cut -d' ' -f1,5 /proc/$$/stat; }} > {0}.new; mv {0}.new {0};; esac; exec {BINARY} \"$@\"",
        seen.display()
    );
    let program = write_script(&server.world, "program", &script);
    // Whoever starts the service has a file open, ignores hangups, and is a service manager.
    let mut command = Command::new("sh");
    let start = "exec 9< /dev/null; trap '' HUP PIPE; exec \"$@\"";
    command.args(["-c", start, "sh", BINARY, "-l", "scheduler.log", "scheduler", "-c", "backy.conf"]);
    command.current_dir(server.world.path(".")).env("BACKY_CMD", &program).env("CEPH_ARGS", "--passed-on");
    for (name, value) in [("NOTIFY_SOCKET", "@nobody"), ("WATCHDOG_USEC", "60000000"), ("LISTEN_FDS", "1")] {
        command.env(name, value);
    }
    server.launch(&mut command);
    server.answers();
    until("a child looks around", || seen.exists());
    let seen = fs::read_to_string(&seen).expect("it is there");
    let has_line = |line: &str| seen.lines().any(|seen| seen == line);
    for private in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"] {
        assert!(!seen.contains(private), "{seen}");
    }
    assert!(has_line("CEPH_ARGS=--passed-on"), "{seen}");
    assert!(has_line("0") && has_line("2") && !has_line("9"), "{seen}");
    assert!(has_no_signal(&seen, "SigBlk:") && has_no_signal(&seen, "SigIgn:"), "{seen}");
    let group = seen.lines().last().and_then(|line| line.split_once(' '));
    assert!(group.is_some_and(|(pid, group)| pid == group), "{seen}");
    assert_eq!(server.stop(), Some(0));
}

/// Whether a mask of proc(5) is empty, but for the two signals that belong to the C library.
fn has_no_signal(status: &str, mask: &str) -> bool {
    const INTERNAL: u64 = 0b11 << 31;
    let mask = status.lines().find_map(|line| line.strip_prefix(mask));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & !INTERNAL == 0))
}

/// The processes of which `parent` is the parent, with their states.
fn children(parent: Pid) -> Vec<(Pid, char)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("list /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if fields.get(1).is_some_and(|of| *of == parent.to_string()) {
            found.push((Pid::from_raw(pid), fields[0].chars().next().unwrap_or('?')));
        }
    }
    found
}

#[test]
fn the_first_process_of_a_container_fetches_orphans_and_ends_at_a_signal() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a namespace of processes needs root");
        return;
    }
    let mut server = Server::new();
    write_image(&server.world, "image1", 1);
    server.configure(&[("vm1", "image1", "quick")]);
    let marks = server.world.path("marks");
    let orphan =
        format!("(setsid sh -c 'sleep 0.2; echo x >> {}' < /dev/null > /dev/null 2>&1 &)", marks.display());
    let script = format!("case \"$*\" in *' backup '*) {orphan};; esac; exec {BINARY} \"$@\"");
    let program = write_script(&server.world, "program", &script);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", BINARY, "-l", "scheduler.log"]);
    command.args(["scheduler", "-c", "backy.conf"]);
    command.current_dir(server.world.path(".")).env("BACKY_CMD", &program);
    server.launch(&mut command);
    server.answers();
    until("orphans have ended", || fs::read_to_string(&marks).is_ok_and(|marks| marks.lines().count() >= 2));
    let first = children(server.pid())[0].0;
    until("nothing is left of them", || children(first).iter().all(|(_, state)| *state != 'Z'));
    // The own children's ends are not lost.
    until("rounds end well", || server.log().matches("ended=done").count() >= 2);
    assert!(!server.log().contains("step-failed"), "{}", server.log());
    kill(first, Signal::SIGTERM).expect("it runs");
    assert_eq!(server.wait(), Some(0));
}
