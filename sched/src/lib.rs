//! The write side of backy: what happens when. Depends on the store, and on nothing that reads revisions.
//!
//! # The life of one job's backup
//!
//! 1. A job is a directory with a `config` file ([`JobConfig`]): a source, a schedule, how to compare.
//!    Nothing else decides.
//! 2. [`backup::run`] takes the job's lock, clears away what a dead run left, and opens the [`source`]. A
//!    source that is away fails here, before any revision exists.
//! 3. The source takes a snapshot and copies what changed since the *base*, the newest revision that can be
//!    relied on, into the store's `RevisionWriter`, chunk by chunk on all cores. Holes are not read.
//! 4. The source is read a second time and compared with the recorded hashes, and asked whether it was
//!    changed meanwhile. A difference goes to the job's quarantine, and nothing is committed.
//! 5. The writer makes chunks, map and manifest durable, in this order: the revision exists. Only now the
//!    snapshots of older revisions are released. If revisions are distrusted, the newest of them is
//!    verified again: the backup may have healed it.
//! 6. [`expire::expire`] takes away tags and forgets revisions as the schedule says, by a plan
//!    ([`policy::retention::plan`]) that gives its reasons and never takes the last trusted revision. What
//!    is forgotten can be brought back until a sweep past the hold time.
//!
//! When that happens, [`policy::next_run`] says; [`service`] is what the scheduler service stands on, and [`check`]
//! looks at what has come of it.
//!
//! Decisions are pure functions of data and a time in [`policy`]; doing is in `backup` and `expire`. The
//! clock is an argument. The crate prints nothing and reads no environment; it speaks through `Monitor`,
//! errors and `tracing` events, which have the names that the original gave them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accept;
pub mod backup;
pub mod check;
mod chunks;
mod compare;
pub mod config;
pub mod error;
pub mod expire;
pub mod histories;
mod http;
mod listing;
pub mod policy;
pub mod prepare;
pub mod release;
pub mod service;
pub mod source;
pub mod tags;

pub use config::{JobConfig, VerifyMode};
pub use error::{Error, Result};
pub use service::ServiceConfig;
