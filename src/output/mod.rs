//! What a person or a program gets to see. Data goes to standard output, all else to standard error.

pub(crate) mod interrupt;
pub(crate) mod json;
pub(crate) mod nagios;
pub(crate) mod progress;
pub(crate) mod size;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod text;
