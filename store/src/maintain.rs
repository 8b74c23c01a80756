//! Keeps a store in order: purges, verifies, records damage, measures space, finds lost revisions again.

pub mod damage;
pub mod recover;
pub mod space;
pub mod sweep;
pub mod verify;
