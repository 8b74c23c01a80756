//! The mount as the system sees it: called by `mount` and from a table like `/etc/fstab`, told to systemd, made by an
//! ordinary user, refused where something is missing, in use when it should end, ten at once, killed under load.
//!
//! Needs root and `/dev/fuse`; where the kernel has no FUSE the tests say so and pass. What changes the system (links
//! in `/sbin`, a missing `/dev/fuse`) is done in a mount namespace of its own.

#![expect(clippy::print_stdout, reason = "tests tell what they skip")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use backy_testkit::Random;

const BACKY: &str = env!("CARGO_BIN_EXE_backy");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A store with the jobs `web01` and `db01`, and mount points; what is still mounted at the end is taken away.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// `None` where nothing can be mounted.
    fn new() -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            println!("skipped: the kernel has no /dev/fuse");
            return None;
        }
        let this = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir(this.at("mnt")).expect("a mount point is made");
        let mut data = vec![0; 9 << 20];
        Random::new(1).fill(&mut data[..6 << 20]);
        fs::write(this.at("disk.img"), &data).expect("an image is written");
        for job in ["srv/web01", "srv/db01"] {
            let source = format!("filename={}", this.at("disk.img").display());
            this.ok(job, &["init", "file", &source]);
            this.ok(job, &["backup", "--force", "daily"]);
        }
        Some(this)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mnt(&self) -> PathBuf {
        self.at("mnt")
    }

    fn command(&self, dir: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(BACKY);
        command.arg("-b").arg(self.at(dir)).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, dir: &str, arguments: &[&str]) -> Output {
        self.command(dir, arguments).output().expect("the program starts")
    }

    fn ok(&self, dir: &str, arguments: &[&str]) -> String {
        let output = self.run(dir, arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    fn mount(&self, arguments: &[&str]) {
        let mountpoint = self.mnt();
        let mountpoint = mountpoint.to_str().expect("paths of the tests are text");
        self.ok("srv", &[&["mount", "--background"], arguments, &[mountpoint]].concat());
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mounts").expect("the mount table is readable");
        table.contains(self.mnt().to_str().expect("paths of the tests are text"))
    }

    /// Runs a script in a mount namespace of its own; it must succeed. It finds `$BACKY`, `$DIR`, `$STORE`, `$MNT`.
    fn script(&self, script: &str) -> String {
        let output = Command::new("timeout")
            .args([
                "120",
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "bash",
                "-euxo",
                "pipefail",
                "-c",
            ])
            .arg(format!("{PRELUDE}\n{script}"))
            .env("BACKY", BACKY)
            .env("DIR", self.dir.path())
            .env("STORE", self.at("srv"))
            .env("MNT", self.mnt())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .expect("unshare starts");
        assert!(
            output.status.success(),
            "{}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let all = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = all.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| Path::new(point).starts_with(self.dir.path())) {
            drop(Command::new("umount").args(["-l", point]).stderr(Stdio::null()).output());
        }
        // Whoever is left is in a namespace that is gone for us.
        drop(Command::new("pkill").args(["-KILL", "-f"]).arg(self.dir.path()).output());
    }
}

/// A process that has a file open until it is dropped.
struct Reader(Child);

impl Reader {
    fn of(file: &Path) -> Self {
        let file = fs::File::open(file).expect("the file opens");
        Self(Command::new("sleep").arg("300").stdin(file).spawn().expect("sleep starts"))
    }

    fn name(&self) -> String {
        format!("sleep ({})", self.0.id())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        backy_testkit::end(&mut self.0);
    }
}

/// A command that fails does not end a script when `!` stands before it, whether it should or not.
const PRELUDE: &str = r#"fails() { if "$@"; then echo "this must fail: $*" >&2; exit 1; fi; }"#;

/// The device as it is on an ordinary system, where everybody may use it; visible only here.
const DEVICE: &str = r#"
    rm -f "$DIR/fuse"; mknod "$DIR/fuse" c 10 229; chmod 666 "$DIR/fuse"; mount --bind "$DIR/fuse" /dev/fuse
"#;

/// What `scripts/install` links in `/sbin`, visible only here.
const HELPERS: &str = r#"
    mkdir -p "$DIR/sbin"
    for name in mount.backy mount.fuse.backy; do ln -sf "$BACKY" "$DIR/sbin/$name"; done
    mount --bind "$DIR/sbin" "$(readlink -f /sbin)"
"#;

#[test]
fn mount_calls_us() {
    let Some(place) = Place::new() else { return };
    let said = place.script(&format!(
        r#"{HELPERS}
        mount -t fuse.backy "$STORE" "$MNT" -o cache=8M,threads=2,allow_other
        [[ $(ls "$MNT" | tr '\n' ' ') == 'db01 web01 ' ]]
        [[ $(stat -c %a "$MNT/web01/last/image") == 444 ]]
        cmp "$DIR/disk.img" "$MNT/web01/last/image"
        exec 7< "$MNT/web01/last/image"
        fails umount "$MNT"
        fails "$BACKY" unmount "$MNT" 2> "$DIR/said"
        cat "$DIR/said"
        grep -q "in use: bash ($$) uses $MNT/web01/.*/image" "$DIR/said"
        mountpoint -q "$MNT"
        exec 7<&-
        umount "$MNT"
        fails mountpoint -q "$MNT"

        # The other type, without options, and a store's job.
        mount -t backy "$STORE/web01" "$MNT"
        [[ $(ls "$MNT") == web01 ]]
        umount "$MNT"
        # A rehearsal mounts nothing.
        mount -f -t backy "$STORE" "$MNT"
        fails mountpoint -q "$MNT"
        fails mount -t fuse.backy "$STORE" "$MNT" -o cahce=8M 2> "$DIR/said"
        grep -q 'unknown mount option "cahce=8M", did you mean cache?' "$DIR/said"
        mount -s -t fuse.backy "$STORE" "$MNT" -o some_future_option
        umount "$MNT"
        fails mount -t fuse.backy "$DIR/nothing" "$MNT" 2> "$DIR/said"
        grep -q 'no backy store' "$DIR/said"
        "#
    ));
    assert!(said.contains("hint: `--wait` waits for them"), "{said}");
}

#[test]
fn a_line_of_fstab_is_all_that_is_needed() {
    let Some(place) = Place::new() else { return };
    place.script(&format!(
        r#"{HELPERS}
        options=noauto,x-systemd.automount,x-systemd.idle-timeout=10min,_netdev,nofail,allow_other,uid=nobody,gid=65534,umask=227,job=web*
        echo "$STORE $MNT fuse.backy $options 0 0" > "$DIR/fstab"
        mount -a -T "$DIR/fstab"
        fails mountpoint -q "$MNT"
        mount -T "$DIR/fstab" "$MNT"
        [[ $(ls "$MNT") == web01 ]]
        [[ $(stat -c '%a %U %g' "$MNT/web01/last/image") == '440 nobody 65534' ]]
        [[ $(stat -c '%a %U %g' "$MNT/web01") == '550 nobody 65534' ]]
        [[ ! -e $MNT/db01 ]]
        setpriv --reuid=65534 --regid=65534 --clear-groups cmp "$DIR/disk.img" "$MNT/web01/last/image"
        fails setpriv --reuid=12345 --regid=12345 --clear-groups head -c 1 "$MNT/web01/last/image"
        umount "$MNT"
        sed -i 's/noauto/defaults,ro/' "$DIR/fstab"
        mount -a -T "$DIR/fstab"
        mountpoint -q "$MNT"
        findmnt -no OPTIONS "$MNT" | grep -q '^ro,nosuid,nodev,noexec'
        [[ $(findmnt -no SOURCE "$MNT") == "$STORE" ]]
        # What is mounted already is no error, as at every boot with an automount.
        mount -a -T "$DIR/fstab"
        umount "$MNT"
        "#
    ).replace("$DIR/disk.img", "$DIR/open.img").replacen("mount --bind", "chmod 755 \"$DIR\"; install -m 644 \"$DIR/disk.img\" \"$DIR/open.img\"; mount --bind", 1));
}

#[test]
fn what_is_missing_is_named() {
    let Some(place) = Place::new() else { return };
    let said = |script: &str| {
        place.script(&format!(
            r#"chmod 755 "$DIR"; chown -R nobody "$STORE" "$MNT"
            nobody() {{ HOME=/ setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }}
            cp "$BACKY" "$DIR/backy"
            {DEVICE}
            {script}"#
        ))
    };
    let without_rights = r#"chmod 600 "$DIR/fuse"; fails nobody "$DIR/backy" -b "$STORE" mount "$MNT" 2>&1"#;
    assert!(said(without_rights).contains("/dev/fuse cannot be opened"));
    let without_device = r#"mount -t tmpfs none /dev; fails "$BACKY" -b "$STORE" mount "$MNT" 2>&1"#;
    assert!(said(without_device).contains("/dev/fuse is missing"));
    let without_helper = r#"
        mount --bind /dev/null "$(readlink -f "$(command -v fusermount3)")"
        fails nobody "$DIR/backy" -b "$STORE" mount "$MNT" 2>&1"#;
    assert!(said(without_helper).contains("fusermount3 is missing"));
    let without_consent = r#"
        echo > "$DIR/fuse.conf"; mount --bind "$DIR/fuse.conf" /etc/fuse.conf
        fails nobody "$DIR/backy" -b "$STORE" mount -o allow_other "$MNT" 2>&1"#;
    let text = said(without_consent);
    assert!(text.contains("user_allow_other") && text.contains("/etc/fuse.conf"), "{text}");
}

#[test]
fn an_ordinary_user_mounts_and_unmounts() {
    let Some(place) = Place::new() else { return };
    place.script(&format!(
        r#"{DEVICE}
        chmod 755 "$DIR"; chown -R nobody "$STORE" "$MNT"; chmod 644 "$DIR/disk.img"
        cp "$BACKY" "$DIR/backy"
        nobody() {{ HOME=/ setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }}
        nobody "$DIR/backy" -b "$STORE" mount --background "$MNT"
        nobody cmp "$DIR/disk.img" "$MNT/web01/last/image"
        # Nobody else sees anything, not even root.
        fails ls "$MNT" 2> /dev/null
        HOME=/ setpriv --reuid=65534 --regid=65534 --clear-groups \
            bash -c 'exec 7< "$0"; exec sleep 60' "$MNT/web01/last/image" & reader=$!
        for _ in {{1..200}}; do [[ -e /proc/$reader/fd/7 ]] && break; sleep 0.05; done
        fails nobody "$DIR/backy" unmount "$MNT" 2> "$DIR/said"
        grep -q "($reader) uses" "$DIR/said"
        kill $reader
        nobody "$DIR/backy" unmount --wait "$MNT"
        fails mountpoint -q "$MNT"
        "#
    ));
}

#[test]
fn an_automount_is_let_through_and_stays_below() {
    let Some(place) = Place::new() else { return };
    // systemd lets through to the mount point who is in its own group of processes, so that must not be left before.
    // Whatever lies below the mount, its automount for instance, is there again at the end.
    let trace = place.script(
        r#"
        mount -t tmpfs below "$MNT"
        strace -f -e trace=mount,setsid -o "$DIR/trace" "$BACKY" -b "$STORE" mount --background "$MNT" & tracer=$!
        for _ in {1..200}; do grep -q setsid "$DIR/trace" && [[ -e $MNT/web01 ]] && break; sleep 0.05; done
        cmp "$DIR/disk.img" "$MNT/web01/last/image"
        umount "$MNT"
        wait $tracer
        [[ $(findmnt -n -o SOURCE "$MNT") == below ]]
        cat "$DIR/trace"
        "#,
    );
    let place_of = |call: &str| trace.find(call).unwrap_or_else(|| panic!("no {call}: {trace}"));
    assert!(place_of("mount(") < place_of("setsid("), "{trace}");
}

#[test]
fn unmounting_waits_or_says_who_reads() {
    let Some(place) = Place::new() else { return };
    let mnt = place.mnt();
    let unmount = |more: &[&str]| {
        let mut command = place.command("srv", &["unmount"]);
        command.args(more).arg(&mnt);
        command
    };
    assert!(text(&unmount(&[]).output().expect("it starts").stderr).contains("is not a mount of backy"));

    place.mount(&[]);
    let reader = Reader::of(&mnt.join("web01/last/image"));
    let refused = unmount(&[]).output().expect("it starts");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains(&reader.name()), "{}", text(&refused.stderr));
    let mut waiting = unmount(&["--wait"]).stderr(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.try_wait().expect("it can be asked").is_none(), "it waits");
    drop(reader);
    assert!(backy_testkit::ended(&mut waiting).success());
    assert!(!place.is_mounted());

    // SIGTERM: nobody can enter any more, who is inside reads on, and is named.
    place.mount(&[]);
    let reader = Reader::of(&mnt.join("web01/last/image"));
    let open = fs::File::open(mnt.join("db01/last/image")).expect("the image opens");
    drop(
        Command::new("pkill")
            .args(["-TERM", "-f"])
            .arg(format!("mount --background {}", mnt.display()))
            .status(),
    );
    eventually("it is out of sight", || !place.is_mounted());
    let log = || fs::read_to_string(place.at("srv/backy.log")).unwrap_or_default();
    eventually("the reader is named", || log().contains(&reader.name()));
    use std::io::Read;
    let mut read = Vec::new();
    (&open).read_to_end(&mut read).expect("it reads on");
    assert!(read == fs::read(place.at("disk.img")).expect("the image is readable"));
    drop((open, reader));
    eventually("the process ends", || !is_running(&mnt));

    place.mount(&[]);
    let open = fs::File::open(mnt.join("web01/last/image")).expect("the image opens");
    assert!(unmount(&["--lazy"]).status().expect("it starts").success());
    assert!(!place.is_mounted());
    assert_eq!((&open).read(&mut read[..10]).expect("it reads on"), 10);
    drop(open);
    eventually("the process ends", || !is_running(&mnt));
}

/// Whether a mount in the background serves this place.
fn is_running(mnt: &Path) -> bool {
    let pattern = format!("mount --background {}", mnt.display());
    Command::new("pgrep").args(["-f", &pattern]).output().is_ok_and(|output| output.status.success())
}

#[test]
fn systemd_is_told_when_the_mount_is_ready_and_when_it_ends() {
    let Some(place) = Place::new() else { return };
    let socket = place.at("notify");
    let told = UnixDatagram::bind(&socket).expect("a socket is made");
    told.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit is set");
    let next = || {
        let mut buffer = [0; 4096];
        let length = told.recv(&mut buffer).expect("systemd is told something");
        text(&buffer[..length])
    };
    let mnt = place.mnt();
    let mut process = place
        .command("srv", &["mount"])
        .arg(&mnt)
        .env("NOTIFY_SOCKET", &socket)
        .spawn()
        .expect("the program starts");
    let ready = next();
    assert!(ready.contains("READY=1") && ready.contains("STATUS=serving "), "{ready}");
    assert!(mnt.join("web01/last/image").exists(), "ready means that it answers");
    let reader = Reader::of(&mnt.join("web01/last/image"));
    drop(Command::new("kill").arg(process.id().to_string()).status());
    assert!(next().contains("STOPPING=1"));
    let status = next();
    assert!(status.contains("STATUS=waiting: ") && status.contains(&reader.name()), "{status}");
    drop(reader);
    assert!(backy_testkit::ended(&mut process).success());
}

#[test]
fn the_installed_files_are_where_the_system_looks() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let install = |argument: &str| {
        let output = Command::new(scripts.join("install"))
            .arg(argument)
            .env("DESTDIR", dir.path())
            .env("PREFIX", "/opt/backy")
            .output()
            .expect("the script starts");
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    install(BACKY);
    let link = fs::read_link(dir.path().join("sbin/mount.fuse.backy")).expect("the link is there");
    assert_eq!(link, Path::new("/opt/backy/bin/backy"));
    let unit = dir.path().join("opt/backy/lib/systemd/system/backy-mount@.service");
    let content = fs::read_to_string(&unit).expect("the unit is there");
    assert!(content.contains("ExecStart=/opt/backy/bin/backy -b "), "{content}");
    if Path::new("/usr/bin/systemd-analyze").exists() {
        let local = dir.path().join("backy-mount@mnt.service");
        let content = content.replace("/opt/backy", &dir.path().join("opt/backy").display().to_string());
        fs::write(&local, content).expect("a copy is written");
        let output = Command::new("systemd-analyze")
            .args(["verify", "--recursive-errors=no", "--man=no"])
            .arg(&local)
            .output()
            .expect("systemd-analyze starts");
        let said = text(&output.stderr);
        assert!(!said.contains("backy-mount"), "{said}");
    } else {
        println!("skipped: systemd-analyze is not installed");
    }
    install("--remove");
    assert!(fs::read_dir(dir.path().join("sbin")).expect("it is listed").next().is_none());
}

#[test]
fn ten_mounts_serve_one_store_at_once() {
    let Some(place) = Place::new() else { return };
    let wanted = fs::read(place.at("disk.img")).expect("the image is readable");
    let points: Vec<PathBuf> = (0..10).map(|number| place.at(&format!("mnt{number}"))).collect();
    for point in &points {
        fs::create_dir(point).expect("a mount point is made");
        place.ok("srv", &["mount", "--background", "-o", "cache=4M", point.to_str().expect("it is text")]);
    }
    std::thread::scope(|scope| {
        for point in &points {
            scope.spawn(|| {
                for job in ["web01", "db01"] {
                    let read = fs::read(point.join(job).join("last/image")).expect("the image is readable");
                    assert!(read == wanted, "{}", point.display());
                }
            });
        }
    });
    for point in &points {
        place.ok("srv", &["unmount", "--wait", point.to_str().expect("it is text")]);
    }
}

#[test]
fn a_mount_killed_under_load_is_replaced_by_the_next() {
    let Some(place) = Place::new() else { return };
    let wanted = fs::read(place.at("disk.img")).expect("the image is readable");
    let mnt = place.mnt();
    for round in 0..5 {
        // The mount point is dead from the second round on.
        place.mount(&["-o", "cache=4M"]);
        let image = mnt.join("web01/last/image");
        assert!(fs::read(&image).expect("the image is readable") == wanted, "round {round}");
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (image, wanted) = (image.clone(), wanted.clone());
                std::thread::spawn(move || {
                    let mut whole = 0;
                    // Until the mount dies; what is read before that is right.
                    while let Ok(read) = fs::read(&image) {
                        assert!(read == wanted);
                        whole += 1;
                        drop(Command::new("sh").args(["-c", "echo 3 > /proc/sys/vm/drop_caches"]).status());
                    }
                    whole
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100 + 50 * round));
        let pattern = format!("mount --background -o cache=4M {}", mnt.display());
        drop(Command::new("pkill").args(["-KILL", "-f", &pattern]).status());
        for reader in readers {
            reader.join().expect("nothing wrong was read, and nobody hangs");
        }
    }
    place.mount(&[]);
    assert!(fs::read(mnt.join("db01/last/image")).expect("the image is readable") == wanted);
    place.ok("srv/web01", &["verify", "-r", "all"]);
}
