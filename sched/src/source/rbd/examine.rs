//! What a machine has that backups of RBD images need; for `backy doctor`.

use std::ffi::OsStr;
use std::time::Duration;

use backy_librbd::{Access, Cluster};
use backy_store::Silent;

use super::Environment;
use super::command::Program;
use crate::source::causes;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Most bytes of a version.
const VERSION_BYTES_MAX: usize = 4096;

/// Returns facts with their names: what can be used, or why it cannot.
pub fn examine(environment: &Environment) -> Vec<(&'static str, Result<String, String>)> {
    let library = backy_librbd::available().map_err(|error| causes(&error));
    let cluster = match &library {
        Ok(_) => cluster(environment),
        Err(_) => Err("not asked, for there is no librbd".to_owned()),
    };
    vec![("rbd", program(environment)), ("librbd", library), ("cluster", cluster)]
}

/// Returns the user that the text of `CEPH_ARGS` names.
pub fn user_of(arguments: &str) -> Option<String> {
    Access::default().or_arguments(arguments).user
}

fn program(environment: &Environment) -> Result<String, String> {
    let program = Program { path: environment.rbd(), arguments: Vec::new(), limit: LIMIT };
    let done = program.run(&[OsStr::new("--version")], VERSION_BYTES_MAX, &Silent);
    let done = done.and_then(super::command::Finished::success).map_err(|error| causes(&error))?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn cluster(environment: &Environment) -> Result<String, String> {
    let access = Access { cluster: environment.cluster.clone(), ..Access::default() };
    let access = access.or_arguments(environment.ceph_args.as_deref().unwrap_or_default());
    match Cluster::connect(&access, LIMIT) {
        Ok(_) => Ok(format!("it answers client.{}", access.user.as_deref().unwrap_or("admin"))),
        Err(error) => Err(causes(&error)),
    }
}
