//! What the broker writes into the status file, as a whole.
//!
//! Always holds: what an older broker did not say is as if there was none of it; ages are made by the reader, of the
//! stamps. Pure. Owner: `status_keeper.rs` writes it, `status_report.rs` reads it.

use super::{LatestStatus, VmRecord};
use crate::core::awake::Pauses;
use crate::core::counters::Counters;
use crate::core::delivery::groups::figures::Figures;
use serde::{Deserialize, Serialize};

/// The states that a broker says of itself.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Recovering; no door listens yet.
    Starting,
    /// All is well.
    Running,
    /// Publishers are refused until there is room.
    DiskFull,
    /// Ending.
    Draining,
    /// Holds its lock and has not refreshed for 5 s. Said by the reader only.
    Unresponsive,
    /// Nobody holds the lock. Said by the reader only.
    Offline,
}

impl State {
    /// As status says it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::DiskFull => "disk-full",
            State::Draining => "draining",
            State::Unresponsive => "unresponsive",
            State::Offline => "offline",
        }
    }
}

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
    /// VMs whose newest ids the newest segment has no room for.
    pub ids_left_out: usize,
    /// What retention has removed since the start, by reason, in seqs.
    pub removed: RemovedStatus,
    /// A pause that does not count as age yet.
    pub grace: Option<GraceStatus>,
    /// Ranges that were durable and cannot be read, for people; the broker's log has them all.
    pub damage: Vec<String>,
}

/// A reload of castra.toml that changed nothing.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ReloadRefused {
    /// When, RFC 3339.
    pub at: String,
    /// Why, the first of the lines.
    pub reason: String,
}

/// Seqs that retention has removed.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct RemovedStatus {
    /// The journal was larger than `retain_bytes`.
    pub size: u64,
    /// They were older than `retain_age`.
    pub age: u64,
    /// The retention of their topics had expired all that was with them.
    pub topics: u64,
}

/// No broker ran for a while, which does not count as age yet.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct GraceStatus {
    /// The newest event that this is about.
    pub through: u64,
    /// For how long no broker ran, in milliseconds; 0 when it is not known.
    pub pause_ms: u64,
    /// It counts after so many more milliseconds of running.
    pub left_ms: u64,
}

/// What the broker writes into the status file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Snapshot {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Which run of the machine the stamps are of.
    pub boot_id: String,
    /// When this was written, CLOCK_BOOTTIME milliseconds.
    pub boot_ms: i64,
    /// The same moment as wall time.
    pub wall_ms: u64,
    /// What the broker says of itself.
    pub state: State,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started, RFC 3339.
    pub started_at: String,
    /// The same as a stamp.
    pub started_boot_ms: i64,
    /// `tcp:ADDR`, `unix:PATH`.
    pub listeners: Vec<String>,
    /// The journal.
    pub journal: JournalStatus,
    /// Signals that were dropped because their queue was full.
    pub signals_dropped: u64,
    /// What it counted since it started. An older broker counted nothing.
    #[serde(default)]
    pub counters: Counters,
    /// The pauses of its process. An older broker noticed none.
    #[serde(default)]
    pub pauses: Pauses,
    /// Why the last reload was refused, if it was.
    #[serde(default)]
    pub reload_refused: Option<ReloadRefused>,
    /// Why the logs are not being written, if so.
    pub logs_stalled: Option<String>,
    /// The newest events per key, where they are kept.
    #[serde(default)]
    pub latest: Option<LatestStatus>,
    /// How many consumer groups there are.
    #[serde(default)]
    pub groups_count: u64,
    /// Those that are furthest behind.
    #[serde(default)]
    pub groups: Vec<Figures>,
    /// The VMs.
    pub vms: Vec<VmRecord>,
}

/// The reader's moment.
#[derive(Clone, Debug)]
pub struct Now {
    /// CLOCK_BOOTTIME milliseconds.
    pub boot_ms: i64,
    /// Wall time in milliseconds.
    pub wall_ms: u64,
    /// Which run of the machine.
    pub boot_id: String,
}

impl Snapshot {
    /// How long the broker was paused since a stamp; it heard nobody in that time. Of several pauses the last one.
    pub fn paused_since(&self, stamp: i64) -> i64 {
        if stamp < self.pauses.ended_boot_ms { self.pauses.last_ms } else { 0 }
    }

    /// How old a stamp of this snapshot is; by wall time when the machine was restarted since.
    pub fn age(&self, stamp: i64, now: &Now) -> i64 {
        let since = if self.boot_id == now.boot_id {
            now.boot_ms - self.boot_ms
        } else {
            i64::try_from(now.wall_ms.saturating_sub(self.wall_ms)).unwrap_or(i64::MAX)
        };
        since.saturating_add(self.boot_ms.saturating_sub(stamp)).max(0)
    }
}
