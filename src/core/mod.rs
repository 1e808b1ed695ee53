//! The broker as a library.

pub mod event;
pub mod identity;
pub mod journal;
pub mod limits;
pub mod topic;
pub mod wire;
