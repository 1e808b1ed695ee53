//! How the journal stands, as the status file has it.
//!
//! Always holds: what an older broker did not write is nothing. Pure. Owner: `status.rs`.

use serde::{Deserialize, Serialize};

/// The journal in numbers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct JournalStatus {
    /// The oldest event that can be read.
    pub first_seq: u64,
    /// The newest durable event.
    pub head_seq: u64,
    /// How far the logs have come.
    pub logs_seq: u64,
    /// How many segments.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How far the newest event's `ts` is ahead of the clock, in milliseconds: it stands still until the clock
    /// gets there. 0 unless the clock was set back.
    pub ts_ahead_ms: u64,
    /// Ranges that were durable and cannot be read, for people; the broker's log has them all.
    pub damage: Vec<String>,
}
