//! What the service and those who look at it stand on: the main configuration, and the lock by which a running
//! service is known.

pub mod api;
pub mod client;
pub mod config;
pub mod control;
mod lock;
pub mod peers;
pub mod scheduler;
pub mod simulation;

pub use config::ServiceConfig;
pub use lock::{ServiceGuard, is_running};
