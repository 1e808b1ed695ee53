//! Retention: which of the oldest segments go.
//!
//! Always holds: whole segments only, never the newest, never one with an event beyond `floor` (what the
//! views have not reached), nor with notes that the next start needs. Pure, but for `apply`. Owner: the journal's keeper thread.

use super::disk::Disk;
use super::index::index_name;
use super::segment::{Map, Segment, segment_name};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What retention may not pass: the last seq that a view has.
pub trait Floor: Send + Sync {
    /// It.
    fn seq(&self) -> u64;
}

impl Floor for AtomicU64 {
    fn seq(&self) -> u64 {
        self.load(Relaxed)
    }
}

/// What others say of the events in the journal.
pub struct Reached {
    /// Every view has what is up to this seq.
    pub views: Arc<dyn Floor>,
    /// Of what is up to this seq, segments hold nothing that is of use.
    pub useless: Arc<AtomicU64>,
}

// There is no floor that would be the natural one: clippy takes the two for their types.
#[allow(clippy::derivable_impls, reason = "a `dyn Floor` has no default")]
impl Default for Reached {
    fn default() -> Self {
        Reached { views: Arc::<AtomicU64>::default(), useless: Arc::default() }
    }
}

/// How many of the oldest segments may go. `now` and the ages are milliseconds; `floor` is the last seq
/// that every view has, `useless` the last one of segments that nobody needs however young they are; the replay of notes begins at the lsn `notes`, 0 when there are none.
pub fn expired(
    segments: &[Segment],
    now: u64,
    max_bytes: u64,
    max_age: u64,
    (floor, useless): (u64, u64),
    notes: u64,
) -> usize {
    let mut bytes: u64 = segments.iter().map(|s| s.end).sum();
    segments
        .windows(2)
        .take_while(|pair| {
            let (segment, next) = (pair[0], pair[1]);
            let old = next.ts.saturating_add(max_age) < now && next.ts > 0;
            let last = next.first_seq.saturating_sub(1);
            let free = last <= floor && (notes == 0 || next.first_lsn <= notes);
            let gone = free && (bytes > max_bytes || old || (useless > 0 && last <= useless));
            bytes -= segment.end;
            gone
        })
        .count()
}

/// Removes them, one by one, oldest first: no crash and no failure may leave a hole between those that stay.
///
/// # Errors
/// A file that could not be removed; it and those after it stay part of the journal.
pub fn apply(disk: &dyn Disk, map: &Map, count: usize) -> io::Result<()> {
    for segment in map.segments().iter().take(count) {
        map.forget_oldest();
        let removed = match disk.remove(&segment_name(segment.first_lsn)) {
            // An earlier attempt did this much.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        // Of use to nobody, and few have one.
        let _ = disk.remove(&index_name(segment.first_lsn));
        if let Err(error) = removed.and_then(|()| disk.sync_dir()) {
            map.remember_oldest(*segment);
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segments(ends: &[u64]) -> Vec<Segment> {
        let segment = |(i, end): (usize, &u64)| Segment {
            first_lsn: 1 + 10 * i as u64,
            first_seq: 1 + 10 * i as u64,
            end: *end,
            ts: 1000 * i as u64,
        };
        ends.iter().enumerate().map(segment).collect()
    }

    #[test]
    fn by_size_by_age_and_never_past_the_floor() {
        let four = segments(&[100, 100, 100, 100]);
        assert_eq!(expired(&four, 0, 400, u64::MAX, (99, 0), 0), 0);
        assert_eq!(expired(&four, 0, 399, u64::MAX, (99, 0), 0), 1);
        assert_eq!(expired(&four, 0, 0, u64::MAX, (99, 0), 0), 3);
        assert_eq!(expired(&four, 0, 0, u64::MAX, (19, 0), 0), 1);
        assert_eq!(expired(&four, 2501, u64::MAX, 500, (99, 0), 0), 2);
        // What nobody needs goes however young it is, but not before the views have it.
        assert_eq!(expired(&four, 0, u64::MAX, u64::MAX, (99, 20), 0), 2);
        assert_eq!(expired(&four, 0, u64::MAX, u64::MAX, (19, 20), 0), 1);
        assert_eq!(expired(&[], 0, 0, 0, (0, 0), 0), 0);
        // The first record of a segment, the last of the one before it, and the first of all.
        assert_eq!([21, 20, 1].map(|notes| expired(&four, 0, 0, u64::MAX, (99, 0), notes)), [2, 1, 0]);
    }

    proptest! {
        #[test]
        fn what_is_kept_fits_or_is_needed(ends in proptest::collection::vec(1u64..100, 1..9), max in 0u64..500, floor in 0u64..99, notes in 0u64..99) {
            let all = segments(&ends);
            let gone = expired(&all, 0, max, u64::MAX, (floor, 0), notes);
            let kept: u64 = all[gone..].iter().map(|s| s.end).sum();
            prop_assert!(gone < all.len());
            let needed = |next: &Segment| next.first_seq > floor + 1 || (notes > 0 && next.first_lsn > notes);
            prop_assert!(kept <= max || gone + 1 == all.len() || needed(&all[gone + 1]));
            prop_assert!(gone == 0 || !needed(&all[gone]));
        }
    }
}
