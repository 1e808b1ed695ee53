//! How far retention may go for the logs and the view together.
//!
//! ```text
//! segments  │ in the view │ only the view needs them │ the logs or notes need them, or the newest │
//!           │   may go    │   stay, up to a bound    │                   stay                     │
//! ```
//!
//! Always holds: what the logs need stays; what only the view needs stays until it takes [`LATEST_HOLDS`] times what the
//! journal may, and where the journal is being read from further back (a start, a lost file), until it takes what
//! there was then and once what the journal may. That it goes is said, once each time. Owner: the journal's keeper thread asks.

use super::Latest;
use crate::core::journal::retain::Floor;
use crate::core::journal::segment::{Map, Segment};
use crate::core::limits::LATEST_HOLDS;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// The two of them.
struct Floors {
    logs: Arc<AtomicU64>,
    latest: Arc<Latest>,
    let_go: AtomicBool,
}

impl Latest {
    /// What retention may not pass: neither the last seq that the logs have, nor what this view has, as long as that
    /// is bounded.
    pub fn floor(self: &Arc<Self>, logs: Arc<AtomicU64>) -> Arc<dyn Floor> {
        Arc::new(Floors { logs, latest: self.clone(), let_go: AtomicBool::new(false) })
    }
}

impl Floor for Floors {
    fn seq(&self) -> u64 {
        let (logs, latest) = (self.logs.load(Relaxed), &*self.latest);
        if !latest.is_running.load(Relaxed) {
            return logs;
        }
        let seq = latest.shared.floor.load(Relaxed);
        let Needed { bytes, last } = needed(&latest.map, seq, logs);
        let reading = latest.shared.reading.load(Relaxed);
        let most = most(latest.retain_bytes, reading);
        let lets_go = bytes > most;
        if lets_go && !self.let_go.swap(lets_go, Relaxed) {
            // Without compacted topics there are dead letters only.
            let what = if latest.compaction().is_configured() { "keys" } else { "dead letters" };
            tracing::error!(
                seq,
                through = last,
                bytes,
                "latest: the journal is larger than it may be, as the newest events per key are written only up to this \
                 seq; older events are removed now, and {what} whose newest event is among them are lost"
            );
        }
        self.let_go.store(lets_go, Relaxed);
        if lets_go { logs } else { seq.min(logs) }
    }
}

/// What only the view needs may take so many bytes, where `reading` is what the journal had when it began to be read.
fn most(retain_bytes: u64, reading: u64) -> u64 {
    let read = if reading > 0 { reading.saturating_add(retain_bytes) } else { 0 };
    retain_bytes.saturating_mul(LATEST_HOLDS).max(read)
}

/// Segments that only the view needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needed {
    bytes: u64,
    /// The last seq in them.
    last: u64,
}

fn needed(map: &Map, view: u64, logs: u64) -> Needed {
    // The notes first: what is not needed then is in these segments.
    let notes = map.needed();
    only(&map.segments(), view, logs, notes)
}

/// Those with an event behind `view` and none behind `logs`, that the replay of notes, from the lsn `notes` on, does not read.
fn only(segments: &[Segment], view: u64, logs: u64, notes: u64) -> Needed {
    let mut needed = Needed::default();
    for pair in segments.windows(2) {
        let (segment, next) = (pair[0], pair[1]);
        let last = next.first_seq.saturating_sub(1);
        if last > view && last <= logs && (notes == 0 || next.first_lsn <= notes) {
            needed = Needed { bytes: needed.bytes + segment.end, last };
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_need_as_well_is_not_counted() {
        let segments: Vec<Segment> = (0..4)
            .map(|i| Segment { first_lsn: 1 + 10 * i, first_seq: 1 + 10 * i, end: 100, ts: 0 })
            .collect();
        for (view, logs, notes, want) in [
            // All but the newest, whose end nothing says.
            (0, 99, 0, (300, 30)),
            (9, 99, 0, (300, 30)),
            (10, 99, 0, (200, 30)),
            (30, 99, 0, (0, 0)),
            (0, 29, 0, (200, 20)),
            (10, 29, 0, (100, 20)),
            (0, 99, 21, (200, 20)),
            (0, 99, 1, (0, 0)),
        ] {
            let got = only(&segments, view, logs, notes);
            assert_eq!((got.bytes, got.last), want, "{view} {logs} {notes}");
        }
        assert_eq!(only(&[], 0, 0, 0), Needed::default());
    }

    #[test]
    fn a_reading_may_keep_what_there_was_and_once_the_size() {
        assert_eq!((most(10, 0), most(10, 5), most(10, 50), most(u64::MAX, 1)), (20, 20, 60, u64::MAX));
    }
}
