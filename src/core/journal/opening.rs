//! What the first write of a segment begins with: a snapshot of the ids that were seen (`snapshot.rs`).
//!
//! Always holds: it has all that was durable when it was made, as far as the eighth part of the segment has room for it;
//! what is not written is made anew for the next segment. Owner: `writer.rs`.

use super::look::Next;
use super::record::{Head, Kind, encode};
use super::seen::Seen;
use super::segment::Map;
use super::snapshot;
use super::spare::Spare;
use crate::core::event::Layout;
use crate::core::limits::SEEN_SHARE;

/// Records on their way into a segment, before all others.
#[derive(Debug, Default)]
pub(super) struct Opening {
    pub bytes: Vec<u8>,
    /// It was said that it lacks so many VMs.
    said: usize,
}

impl Opening {
    /// What it may take of this one, in bytes.
    pub fn most(spare: &Spare) -> u64 {
        spare.bytes / SEEN_SHARE
    }

    /// Makes it of `seen`, with that salt; `next` goes behind it. Nothing may be pushed and not committed. How many VMs
    /// it lacks is in `map` from then on.
    pub fn make(&mut self, seen: &Seen, map: &Map, next: &mut Next, salt: u32, most: u64) {
        let (bytes, synced) = (&mut self.bytes, next.lsn - 1);
        let left_out = snapshot::write(seen, most, &mut |class, body| {
            let head = Head { synced, ..head(next, Kind::Ids(class)) };
            encode(bytes, salt, &head, [body, b""]);
            *next = next.behind(&head);
        });
        map.leaves_out(left_out);
        if left_out > 0 && left_out >= 2 * self.said {
            self.said = left_out;
            tracing::warn!(
                vms = left_out,
                "journal: the snapshot of ids has no room for those of all VMs in a segment of this size; after a restart \
                 repeats of those that were silent longest may be stored again"
            );
        }
    }

    /// It is written, or not needed. It may be large, and is made once in a segment.
    pub fn clear(&mut self) {
        self.bytes = Vec::new();
    }
}

/// The head of a record that is no event, and comes next.
pub(super) fn head(next: &Next, kind: Kind) -> Head {
    let (lsn, seq, ts) = (next.lsn, next.seq - 1, next.ts);
    Head { lsn, seq, ts, synced: 0, kind, joined: false, layout: Layout::default() }
}
