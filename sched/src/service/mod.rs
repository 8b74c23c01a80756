//! The scheduler service: its configuration, the machine that decides, the process that does, its API and client.
//!
//! Data flows one way. `config` is what is wanted; `scheduler` decides from it, from histories and from the time;
//! `run` does what it says with `child` processes in `round`s; `desk` shows all of it to the `api`, which knows the
//! service only as `control`. `simulation` puts another world around the same scheduler.

pub mod api;
mod child;
pub mod client;
mod clock;
pub mod config;
pub mod control;
mod core;
mod desk;
mod heartbeat;
mod limits;
mod lock;
mod offload;
mod overdue;
pub mod peers;
mod pulse;
mod purge;
mod reaper;
mod reload;
pub mod rights;
mod round;
pub mod run;
pub mod scheduler;
pub mod simulation;
mod supervisor;

pub use config::ServiceConfig;
pub use heartbeat::SILENCE_MAX;
pub use lock::{ServiceGuard, is_running};
pub use pulse::{Pulse, pulse};
