//! What can go wrong between backy and Ceph. Every variant names the image or the command.

use std::io;

use super::diff::DiffError;

/// What went wrong with Ceph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RbdError {
    /// The pool, the image or the snapshot is not there.
    #[error("the RBD image {image} does not exist")]
    Missing {
        /// Pool and image, with the snapshot if it is one.
        image: String,
        /// What `rbd` said.
        said: String,
    },
    /// There is no such pool.
    #[error("there is no pool {pool} in the cluster")]
    PoolMissing {
        /// The pool, with its namespace if it has one.
        pool: String,
    },
    /// A program cannot be started.
    #[error("cannot start the program {program}")]
    ProgramUnusable {
        /// Its name or path.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program ended badly.
    #[error("{command} failed with {status}{}", of_stderr(said))]
    CommandFailed {
        /// What was run.
        command: String,
        /// Its exit status or signal.
        status: String,
        /// The end of its standard error.
        said: String,
    },
    /// A program took too long and was killed.
    #[error("{command} did nothing for {secs} s and was killed: does the cluster answer?")]
    TimeOut {
        /// What was run.
        command: String,
        /// The time limit.
        secs: u64,
    },
    /// The answer of a program makes no sense.
    #[error("{command} printed something that cannot be understood: {problem}")]
    Garbage {
        /// What was run.
        command: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Talking to a program failed.
    #[error("cannot exchange data with {command}")]
    Pipe {
        /// What was run.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stream of changes is cut or makes no sense.
    #[error("the stream of {command} cannot be used")]
    Stream {
        /// What was run.
        command: String,
        /// What is wrong with it.
        #[source]
        source: DiffError,
    },
    /// The stream is of other snapshots than those asked for.
    #[error("the stream of {command} is of something else: {problem}")]
    StreamOfOther {
        /// What was run.
        command: String,
        /// What it says and what it should.
        problem: String,
    },
    /// A call of Ceph's libraries failed.
    #[error("cannot {doing} the RBD image {image}")]
    Library {
        /// What was being done: `read`, `list the changes of`.
        doing: &'static str,
        /// Pool and image, with the snapshot if it is one.
        image: String,
        /// Which call, and why.
        #[source]
        source: backy_librbd::CephError,
    },
    /// The snapshot is not there after it was made, or is another one.
    #[error("the snapshot {snapshot} went away while it was read")]
    SnapshotGone {
        /// Pool, image and snapshot.
        snapshot: String,
    },
    /// A command of the job's configuration failed.
    #[error("the {hook} command of the job failed: {problem}")]
    Hook {
        /// `pre-snapshot` or `post-snapshot`.
        hook: &'static str,
        /// Exit status, or that it took too long, and what it said.
        problem: String,
    },
    /// The image to restore to exists.
    #[error("the RBD image {image} exists already")]
    Exists {
        /// Pool and image.
        image: String,
    },
    /// The image is open somewhere.
    #[error("the RBD image {image} is in use")]
    Busy {
        /// Pool and image.
        image: String,
        /// What `rbd` said.
        said: String,
    },
    /// The image to restore to has another size or snapshots.
    #[error("the RBD image {image} cannot be overwritten: {problem}")]
    Unfit {
        /// Pool and image.
        image: String,
        /// Why not.
        problem: String,
    },
    /// A name that `rbd` would read as something else.
    #[error("{name:?} cannot be an RBD image: write POOL/IMAGE")]
    Name {
        /// The name.
        name: String,
    },
}

/// What a program said, for the end of a message.
fn of_stderr(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}
