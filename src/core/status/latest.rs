//! How the view of the newest event per key stands, as the status file has it.
//!
//! Always holds: what an older broker did not write is nothing. Pure. Owner: `status.rs`.

use serde::{Deserialize, Serialize};

/// The view of the newest event per key.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct LatestStatus {
    /// How far it has come.
    pub seq: u64,
    /// Events that were gone before it had them.
    pub lost: u64,
    /// Dead letters that are kept, …
    pub letters: u64,
    /// … what their events take, in bytes, …
    pub letters_bytes: u64,
    /// … and how many were dropped since the broker started, as there were too many.
    pub letters_dropped: u64,
    /// Why it is not being written, if so.
    pub stalled: Option<String>,
}
