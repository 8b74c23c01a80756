//! The `rbd` program, one function for each thing it is asked. What it prints is bounded and checked; an exit
//! status other than 0 is an error even if the output looks complete.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;

use backy_librbd::Access;
use backy_store::Monitor;
use serde_json::Value;

use super::command::{Finished, Program, Running};
use super::error::RbdError;
use crate::error::Result;

/// Most bytes of JSON that are taken: many thousands of snapshots.
const JSON_BYTES_MAX: usize = 16 << 20;
/// How `rbd` ends when something is not there, as the C library numbers it.
const STATUS_MISSING: i32 = 2;
/// What it says when not the image is missing but the way to the cluster; the status can be the same.
const NO_CLUSTER: &str = "couldn't connect";
/// How `rbd` ends when an image is open elsewhere, or was until a moment ago.
const STATUS_BUSY: i32 = 16;
/// How `rbd` ends when something is there already.
const STATUS_EXISTS: i32 = 17;

/// What `rbd info` tells of an image or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageInfo {
    pub(super) size_bytes: u64,
    /// Which image this is, whatever its name; old formats have none.
    pub(super) id: Option<String>,
    /// Whether there is a list of changed objects that can be used.
    pub(super) has_fast_diff: bool,
}

/// A line of `rbd snap ls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotInfo {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) is_protected: bool,
}

/// The program for one image.
#[derive(Clone, Debug)]
pub(super) struct RbdTool {
    program: Program,
    pub(super) pool: String,
    pub(super) image: String,
}

impl RbdTool {
    pub(super) fn new(path: OsString, access: &Access, limit: Duration, pool: &str, image: &str) -> Self {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                arguments.extend([name.into(), value]);
            }
        };
        option("--conf", access.conf.clone().map(Into::into));
        option("--id", access.user.clone().map(Into::into));
        option("--cluster", access.cluster.clone().map(Into::into));
        let program = Program { path, arguments, limit };
        Self { program, pool: pool.to_owned(), image: image.to_owned() }
    }

    /// Returns the same for another image of the pool.
    pub(super) fn of_image(&self, image: String) -> Self {
        Self { image, ..self.clone() }
    }

    /// Returns the same with a time limit of at most `limit`.
    pub(super) fn with_limit(&self, limit: Duration) -> Self {
        let program = Program { limit: limit.min(self.program.limit), ..self.program.clone() };
        Self { program, ..self.clone() }
    }

    /// Returns `POOL/IMAGE` or `POOL/IMAGE@SNAPSHOT`.
    pub(super) fn spec(&self, snapshot: Option<&str>) -> String {
        match snapshot {
            Some(snapshot) => format!("{}/{}@{snapshot}", self.pool, self.image),
            None => format!("{}/{}", self.pool, self.image),
        }
    }

    /// Returns the words of a command for a person to type.
    pub(super) fn command(&self, words: &[&str]) -> Vec<String> {
        let program = [self.program.path.to_string_lossy().into_owned()];
        let own = self.program.arguments.iter().map(|word| word.to_string_lossy().into_owned());
        program.into_iter().chain(own).chain(words.iter().map(|&word| word.to_owned())).collect()
    }

    /// Runs to the end, whatever its status.
    fn run(&self, words: &[&str], monitor: &dyn Monitor) -> Result<Finished> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        self.program.run(&words, JSON_BYTES_MAX, monitor)
    }

    /// Runs to a good end. A status that says so becomes `Missing`.
    fn ask(&self, words: &[&str], spec: &str, monitor: &dyn Monitor) -> Result<Finished> {
        let done = self.run(words, monitor)?;
        if is_missing(&done) {
            return Err(RbdError::Missing { image: spec.to_owned(), said: done.said }.into());
        }
        done.success()
    }

    fn ask_json(&self, words: &[&str], spec: &str, monitor: &dyn Monitor) -> Result<(Value, String)> {
        let done = self.ask(words, spec, monitor)?;
        match serde_json::from_slice(&done.stdout) {
            Ok(value) => Ok((value, done.command)),
            Err(error) => Err(RbdError::Garbage { command: done.command, problem: error.to_string() }.into()),
        }
    }

    /// Looks at the image or a snapshot of it.
    pub(super) fn info(&self, snapshot: Option<&str>, monitor: &dyn Monitor) -> Result<ImageInfo> {
        let spec = self.spec(snapshot);
        let (value, command) = self.ask_json(&["info", &spec, "--format", "json"], &spec, monitor)?;
        parse_info(&value).ok_or_else(|| {
            RbdError::Garbage { command, problem: "it does not tell the image's size".to_owned() }.into()
        })
    }

    /// Lists the image's snapshots.
    pub(super) fn snapshots(&self, monitor: &dyn Monitor) -> Result<Vec<SnapshotInfo>> {
        let spec = self.spec(None);
        let (value, command) = self.ask_json(&["snap", "ls", &spec, "--format", "json"], &spec, monitor)?;
        parse_snapshots(&value).ok_or_else(|| {
            RbdError::Garbage { command, problem: "it is no list of snapshots".to_owned() }.into()
        })
    }

    /// Makes a snapshot. That it is there already is no error: its name belongs to one revision alone.
    pub(super) fn create_snapshot(&self, name: &str, monitor: &dyn Monitor) -> Result<()> {
        let spec = self.spec(Some(name));
        let done = self.run(&["snap", "create", "--no-progress", &spec], monitor)?;
        match done.status.code() {
            Some(STATUS_EXISTS) => Ok(()),
            _ if is_missing(&done) => {
                Err(RbdError::Missing { image: self.spec(None), said: done.said }.into())
            }
            // Before Octopus there was no progress to turn off.
            Some(1) if done.said.contains("no-progress") => {
                self.ask(&["snap", "create", &spec], &self.spec(None), monitor).map(drop)
            }
            _ => done.success().map(drop),
        }
    }

    /// Removes a snapshot, also a protected one. That it is gone is no error.
    pub(super) fn remove_snapshot(&self, snapshot: &SnapshotInfo, monitor: &dyn Monitor) -> Result<()> {
        let spec = self.spec(Some(&snapshot.name));
        if snapshot.is_protected {
            self.ask(&["snap", "unprotect", &spec], &spec, monitor)?;
        }
        match self.ask(&["snap", "rm", "--no-progress", &spec], &spec, monitor) {
            Err(crate::Error::Rbd(RbdError::Missing { .. })) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether this program can list changes by whole objects: asked of its own help, for versions tell little.
    pub(super) fn knows_whole_objects(&self, monitor: &dyn Monitor) -> bool {
        self.run(&["help", "export-diff"], monitor)
            .is_ok_and(|done| String::from_utf8_lossy(&done.stdout).contains("--whole-object"))
    }

    /// Starts the stream of changes.
    pub(super) fn start_diff<'m>(
        &self,
        from: Option<&str>,
        to: &str,
        whole_objects: bool,
        monitor: &'m dyn Monitor,
    ) -> Result<Running<'m>> {
        let spec = self.spec(Some(to));
        let mut words = vec!["export-diff", "--no-progress"];
        words.extend(from.iter().flat_map(|from| ["--from-snap", from]));
        words.extend(whole_objects.then_some("--whole-object"));
        words.extend([spec.as_str(), "-"]);
        let words: Vec<&OsStr> = words.into_iter().map(OsStr::new).collect();
        self.program.start(&words, Stdio::null(), monitor)
    }

    /// Makes an empty image.
    pub(super) fn create_image(&self, size_bytes: u64, monitor: &dyn Monitor) -> Result<()> {
        let (spec, size) = (self.spec(None), format!("{size_bytes}B"));
        let done = self.run(&["create", "--size", &size, &spec], monitor)?;
        if done.status.code() == Some(STATUS_EXISTS) {
            return Err(RbdError::Exists { image: spec }.into());
        }
        if is_missing(&done) {
            return Err(RbdError::PoolMissing { pool: self.pool.clone() }.into());
        }
        done.success().map(drop)
    }

    /// Removes an image. One that has snapshots or is open somewhere is refused by `rbd`.
    pub(super) fn remove_image(&self, monitor: &dyn Monitor) -> Result<()> {
        let spec = self.spec(None);
        let done = self.run(&["rm", "--no-progress", &spec], monitor)?;
        match done.status.code() {
            Some(STATUS_BUSY) => Err(RbdError::Busy { image: spec, said: done.said }.into()),
            _ if is_missing(&done) => Err(RbdError::Missing { image: spec, said: done.said }.into()),
            _ => done.success().map(drop),
        }
    }

    /// Lists the names of the pool's images.
    pub(super) fn images(&self, monitor: &dyn Monitor) -> Result<Vec<String>> {
        let (value, command) =
            match self.ask_json(&["ls", "--format", "json", &self.pool], &self.pool, monitor) {
                Err(crate::Error::Rbd(RbdError::Missing { .. })) => {
                    return Err(RbdError::PoolMissing { pool: self.pool.clone() }.into());
                }
                other => other?,
            };
        serde_json::from_value(value)
            .map_err(|_| RbdError::Garbage { command, problem: "it is no list of images".to_owned() }.into())
    }

    /// Gives the image another name in the same pool.
    pub(super) fn rename_image(&self, to: &Self, monitor: &dyn Monitor) -> Result<()> {
        let (from, to) = (self.spec(None), to.spec(None));
        let done = self.run(&["rename", &from, &to], monitor)?;
        if done.status.code() == Some(STATUS_EXISTS) {
            return Err(RbdError::Exists { image: to }.into());
        }
        done.success().map(drop)
    }

    /// Starts the program that writes a diff into the image.
    pub(super) fn start_import<'m>(&self, monitor: &'m dyn Monitor) -> Result<Running<'m>> {
        let spec = self.spec(None);
        let words = ["import-diff", "--no-progress", "-", &spec].map(OsStr::new);
        self.program.start(&words, Stdio::piped(), monitor)
    }
}

fn is_missing(done: &Finished) -> bool {
    done.status.code() == Some(STATUS_MISSING) && !done.said.contains(NO_CLUSTER)
}

fn parse_info(value: &Value) -> Option<ImageInfo> {
    let words = |key: &str| -> Vec<&str> {
        value[key]
            .as_array()
            .map(|words| words.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default()
    };
    let is_invalid = |flag: &&str| flag.contains("invalid");
    Some(ImageInfo {
        size_bytes: value["size"].as_u64()?,
        id: value["id"].as_str().filter(|id| !id.is_empty()).map(str::to_owned),
        has_fast_diff: words("features").contains(&"fast-diff") && !words("flags").iter().any(is_invalid),
    })
}

fn parse_snapshots(value: &Value) -> Option<Vec<SnapshotInfo>> {
    let one = |line: &Value| {
        Some(SnapshotInfo {
            id: line["id"].as_u64()?,
            name: line["name"].as_str()?.to_owned(),
            // A truth value or its name, depending on the version.
            is_protected: line["protected"] == "true" || line["protected"] == true,
        })
    };
    // Before Nautilus it was a mapping of ids to snapshots.
    match value {
        Value::Array(lines) => lines.iter().map(one).collect(),
        Value::Object(lines) => lines
            .iter()
            .map(|(id, line)| {
                let mut line = line.clone();
                line["id"] = id.parse::<u64>().ok()?.into();
                one(&line)
            })
            .collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_of_several_versions_are_understood() {
        let info = json!({"name": "t", "id": "10109c", "size": 1073741824_u64, "features": ["layering", "fast-diff"],
            "flags": []});
        let expected = ImageInfo { size_bytes: 1 << 30, id: Some("10109c".to_owned()), has_fast_diff: true };
        assert_eq!(parse_info(&info), Some(expected));
        let invalid = json!({"size": 1, "features": ["fast-diff"], "flags": ["object map invalid"]});
        assert_eq!(parse_info(&invalid).map(|info| (info.id, info.has_fast_diff)), Some((None, false)));
        let expected = [SnapshotInfo { id: 26, name: "a".to_owned(), is_protected: true }];
        for protected in [json!("true"), json!(true)] {
            let list = json!([{"id": 26, "name": "a", "size": 1, "protected": protected}]);
            assert_eq!(parse_snapshots(&list).unwrap(), expected);
        }
        let old = json!({"26": {"name": "a", "size": 1, "protected": "true"}});
        assert_eq!(parse_snapshots(&old).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_no_answer() {
        for value in [json!(null), json!({}), json!({"size": "big"}), json!([]), json!({"size": -1})] {
            assert_eq!(parse_info(&value), None);
        }
        for value in [
            json!(null),
            json!("x"),
            json!([{}]),
            json!([{"id": -1, "name": "a"}]),
            json!({"x": {"name": "a"}}),
        ] {
            assert_eq!(parse_snapshots(&value), None);
        }
    }
}
