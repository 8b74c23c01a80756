//! The commands around the moment of the snapshot: `pre-snapshot` may freeze a file system, `post-snapshot` thaws it.
//!
//! What thaws runs always, also when the first command failed or hung, when the snapshot failed, and when this
//! program is killed: before anything is frozen, a shell is started that waits for a pipe to be closed and then runs
//! the second command. The kernel closes the pipe, whatever becomes of us.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;

use backy_store::{Monitor, Silent};

use super::command::{Program, Running, status_text};
use super::error::RbdError;
use crate::error::{Error, Result};

/// Most bytes of a command's standard output, which nobody reads.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// The commands of a job and how long each may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hooks {
    pub(super) pre: Option<String>,
    pub(super) post: Option<String>,
    pub(super) limit: Duration,
}

impl Hooks {
    /// Runs `act` between both commands. The first error counts; an error of the second one does, too, for
    /// something may still be frozen.
    pub(super) fn around<T>(
        &self,
        spec: &str,
        monitor: &dyn Monitor,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let waiting = self.post.as_deref().map(|post| self.wait_to_run(post, spec)).transpose()?;
        let acted = self.run_first(spec, monitor).and_then(|()| act());
        let thawed = waiting.map_or(Ok(()), thaw);
        match (acted, thawed) {
            (Ok(made), thawed) => thawed.map(|()| made),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(also)) => {
                tracing::error!(image = spec, error = crate::error::in_full(&also), "post-snapshot-failed");
                Err(error)
            }
        }
    }

    fn run_first(&self, spec: &str, monitor: &dyn Monitor) -> Result<()> {
        let Some(pre) = &self.pre else { return Ok(()) };
        let done = self.shell(spec).run(&[OsStr::new(pre)], OUTPUT_BYTES_MAX, monitor);
        done.and_then(super::command::Finished::success)
            .map(drop)
            .map_err(|error| named("pre-snapshot", error))
    }

    /// Starts the shell that runs `post` when its standard input ends.
    fn wait_to_run(&self, post: &str, spec: &str) -> Result<Running<'static>> {
        // Signals meant for us must not keep it from its task.
        let script = format!("trap '' HUP INT TERM\nread -r _\ntrap - HUP INT TERM\n{post}");
        self.shell(spec).start(&[OsStr::new(&script)], Stdio::piped(), &Silent)
    }

    /// The commands know the image by `$BACKY_IMAGE`.
    fn shell(&self, spec: &str) -> Program {
        let image = OsString::from(format!("BACKY_IMAGE={spec}"));
        Program {
            path: "env".into(),
            arguments: vec![image, "/bin/sh".into(), "-c".into()],
            limit: self.limit,
        }
    }
}

fn thaw(waiting: Running<'_>) -> Result<()> {
    // Closes its standard input and waits for its end.
    waiting.finish().map_err(|error| named("post-snapshot", error)).and_then(|done| {
        if done.status.success() {
            return Ok(());
        }
        let mut problem = status_text(done.status);
        if !done.said.is_empty() {
            problem = format!("{problem}: {}", done.said);
        }
        Err(RbdError::Hook { hook: "post-snapshot", problem }.into())
    })
}

/// Names the hook in an error of its process.
fn named(hook: &'static str, error: Error) -> Error {
    let problem = match &error {
        Error::Rbd(RbdError::TimeOut { secs, .. }) => format!("it took longer than {secs} s and was killed"),
        Error::Rbd(RbdError::CommandFailed { status, said, .. }) => format!("{status}: {said}"),
        Error::Rbd(other) => other.to_string(),
        _ => return error,
    };
    RbdError::Hook { hook, problem }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case(tempfile::TempDir);

    impl Case {
        fn hooks(&self, pre: &str, post: &str) -> Hooks {
            let word =
                |text: &str| Some(text.replace("LOG", &self.0.path().join("log").display().to_string()));
            Hooks { pre: word(pre), post: word(post), limit: Duration::from_secs(2) }
        }

        fn log(&self) -> String {
            std::fs::read_to_string(self.0.path().join("log")).unwrap_or_default()
        }
    }

    #[test]
    fn both_run_around_the_act_and_know_the_image() {
        let case = Case(tempfile::tempdir().unwrap());
        let hooks = case.hooks("echo freeze $BACKY_IMAGE >> LOG", "echo thaw >> LOG");
        let act = || {
            assert_eq!(case.log(), "freeze rbd/x\n");
            Ok(7)
        };
        assert_eq!(hooks.around("rbd/x", &Silent, act).unwrap(), 7);
        assert_eq!(case.log(), "freeze rbd/x\nthaw\n");
    }

    #[test]
    fn what_thaws_runs_whatever_happens() {
        for pre in ["exit 3", "sleep 100", "kill -9 $$"] {
            let case = Case(tempfile::tempdir().unwrap());
            let error = case.hooks(pre, "echo thaw >> LOG").around("x", &Silent, || Ok(())).unwrap_err();
            assert!(error.to_string().starts_with("the pre-snapshot command of the job failed"), "{error}");
            assert_eq!(case.log(), "thaw\n", "{pre}");
        }
        let case = Case(tempfile::tempdir().unwrap());
        let missing = || Err::<(), _>(Error::SourceMissing { name: "x".to_owned() });
        let error = case.hooks("true", "echo thaw >> LOG").around("x", &Silent, missing).unwrap_err();
        assert!(matches!(error, Error::SourceMissing { .. }));
        assert_eq!(case.log(), "thaw\n");
    }

    #[test]
    fn a_thaw_that_fails_or_hangs_is_an_error() {
        let case = Case(tempfile::tempdir().unwrap());
        for (post, expected) in [("echo no >&2; exit 4", "status 4: no"), ("sleep 100", "longer than 2 s")] {
            let error = case.hooks("true", post).around("x", &Silent, || Ok(())).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
