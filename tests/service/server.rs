//! A real scheduler service in a world of its own.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backy_testkit::{Run, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long something may take that should happen within seconds; a slow machine is no failure.
const PATIENCE: Duration = Duration::from_secs(90);

/// A world with a main configuration, and the service that runs in it.
pub(crate) struct Server {
    pub(crate) world: World,
    pub(crate) port: u16,
    child: Option<Child>,
    stall_limit: &'static str,
    extra: String,
    peers: String,
}

/// Something that must become true.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it did not come about: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Server {
    /// A store, and a service that is not configured and does not run yet.
    pub(crate) fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let world = World::new(crate::BINARY);
        let port = free.expect("a free port").port();
        Self { world, port, child: None, stall_limit: "30m", extra: String::new(), peers: String::new() }
    }

    pub(crate) fn with_stall_limit(mut self, limit: &'static str) -> Self {
        self.stall_limit = limit;
        self
    }

    /// Adds a line to `global`.
    pub(crate) fn with_global(mut self, line: &str) -> Self {
        self.extra.push_str(&format!("  {line}\n"));
        self
    }

    /// Adds a peer.
    pub(crate) fn with_peer(mut self, name: &str, peer: &Server) -> Self {
        self.peers.push_str(&format!("  {name}: {{url: 'http://127.0.0.1:{}', token: T0ken}}\n", peer.port));
        self
    }

    /// Writes the main configuration: jobs, each with the name of its image and its schedule.
    pub(crate) fn configure(&self, jobs: &[(&str, &str, &str)]) {
        let (store, port) = (self.world.store(), self.port);
        let mut text = format!(
            "global:\n  base-dir: {}\n  worker-limit: 2\n  stall-limit: {}\n{}api:\n  addrs: 127.0.0.1\n  port: {port}\n  tokens: {{T0ken: tests}}\n  cli-default: {{token: T0ken}}\nschedules:\n  quick:\n    often: {{interval: 3s, keep: 2}}\n    rare: {{interval: 15s, keep: 2}}\n  default:\n    daily: {{interval: 1d, keep: 7}}\njobs:{}\n",
            store.display(),
            self.stall_limit,
            self.extra,
            if jobs.is_empty() { " {}" } else { "" }
        );
        if !self.peers.is_empty() {
            text = text.replace("jobs:", &format!("peers:\n{}jobs:", self.peers));
        }
        for (job, image, schedule) in jobs {
            let image = self.world.path(image);
            text.push_str(&format!(
                "  {job}: {{schedule: {schedule}, source: {{type: file, filename: {}}}}}\n",
                image.display()
            ));
        }
        fs::write(self.conf(), text).expect("write the configuration");
    }

    pub(crate) fn conf(&self) -> std::path::PathBuf {
        self.world.path("backy.conf")
    }

    /// Starts the service and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same with environment variables.
    #[track_caller]
    pub(crate) fn start_with(&mut self, environment: &[(&str, &Path)]) {
        let mut command = self.world.bare(&["-c", "backy.conf", "-l", "scheduler.log", "scheduler"]);
        command.envs(environment.iter().copied());
        self.launch(&mut command);
        self.answers();
    }

    /// Starts a service by a command of its own. Standard error goes to a file.
    pub(crate) fn launch(&mut self, command: &mut Command) {
        command.stderr(fs::File::create(self.world.path("scheduler.err")).expect("a file"));
        self.launch_as_it_is(command);
    }

    /// The same with standard error as it is set.
    pub(crate) fn launch_as_it_is(&mut self, command: &mut Command) {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.spawn().expect("the binary can be started"));
    }

    /// Waits until the service answers.
    #[track_caller]
    pub(crate) fn answers(&mut self) {
        let log_length = self.log().len();
        until("the service answers", || {
            assert!(!self.has_ended(), "it ended: {}", self.log().get(log_length..).unwrap_or_default());
            self.client(&["status"]).code() == 0
        });
    }

    pub(crate) fn client(&self, words: &[&str]) -> Run {
        let all: Vec<&str> = ["client", "-c", "backy.conf"].iter().chain(words).copied().collect();
        Run::of(&mut self.world.bare(&all))
    }

    pub(crate) fn check(&self) -> Run {
        Run::of(&mut self.world.bare(&["check", "-c", "backy.conf"]))
    }

    /// What the service has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.world.path("scheduler.log")).unwrap_or_default()
    }

    /// The ids of a job's revisions, oldest first; none when there is no such job yet.
    pub(crate) fn revisions(&self, job: &str) -> Vec<String> {
        let run = Run::of(&mut self.world.command_for(job, &["find", "-r", "all", "--uuid"]));
        run.text().lines().map(str::to_owned).collect()
    }

    /// What the client says of a job.
    pub(crate) fn entry(&self, job: &str) -> serde_json::Value {
        let jobs = self.client(&["--json", "jobs", &format!("^{job}$")]).expect(0).json();
        jobs["jobs"][0].clone()
    }

    /// Whether the service has ended, by itself or not.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("it runs").id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Ends the service as an init system does; returns its status.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Kills the service; its children live on.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let mut status = None;
        until("the service ends", || {
            status = child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        let errors = fs::read_to_string(self.world.path("scheduler.err")).unwrap_or_default();
        assert!(!errors.contains("panicked"), "{errors}");
        status.and_then(|status| status.code())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // A service that does not end must not keep a failed test from being reported.
        backy_testkit::end_gently(&mut child);
    }
}
