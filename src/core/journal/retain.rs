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
    /// Who had not had all of these events, the first and the last; asked when they are removed.
    pub without: Box<dyn Fn(u64, u64) -> Without + Send>,
}

/// Who had not had all of some events that were removed.
#[derive(Clone, Debug, Default)]
pub struct Without {
    /// Consumer groups, and how many of the events each lacked at the most.
    pub groups: Vec<(String, u64)>,
    /// How many sessions read them for subscriptions that are behind.
    pub sessions: u64,
}

// There is no floor that would be the natural one: clippy takes the two for their types.
#[allow(clippy::derivable_impls, reason = "a `dyn Floor` has no default")]
impl Default for Reached {
    fn default() -> Self {
        Reached {
            views: Arc::<AtomicU64>::default(),
            useless: Arc::default(),
            without: Box::new(|_, _| Without::default()),
        }
    }
}

/// How far retention may and need go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// The journal takes so many bytes at the most.
    pub bytes: u64,
    /// The events through this seq are too old.
    pub aged: u64,
    /// Of what is up to this seq, segments hold nothing that is of use.
    pub useless: u64,
    /// The last seq that every view has.
    pub floor: u64,
    /// The replay of notes begins at this lsn; 0 when there are none.
    pub notes: u64,
}

/// Why a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The journal is larger than it may be.
    Size,
    /// All of its events are too old.
    Age,
    /// Rules of topics have expired all of its events.
    Topics,
}

/// Which of the oldest segments may go, and why.
pub fn expired(segments: &[Segment], bounds: &Bounds) -> Vec<Reason> {
    let mut bytes: u64 = segments.iter().map(|s| s.end).sum();
    let reason = |pair: &[Segment]| {
        let (segment, next) = (pair[0], pair[1]);
        let last = next.first_seq.saturating_sub(1);
        let free = last <= bounds.floor && (bounds.notes == 0 || next.first_lsn <= bounds.notes);
        let is_through = |seq: u64| seq > 0 && last <= seq;
        let reason = match () {
            () if !free => None,
            () if bytes > bounds.bytes => Some(Reason::Size),
            () if is_through(bounds.aged) => Some(Reason::Age),
            () if is_through(bounds.useless) => Some(Reason::Topics),
            () => None,
        };
        bytes -= segment.end;
        reason
    };
    segments.windows(2).map_while(reason).collect()
}

/// What was removed at one time, or since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seqs that went as the journal was too large …
    pub by_size: u64,
    /// … as they were too old …
    pub by_age: u64,
    /// … and as rules of topics had expired them.
    pub by_topics: u64,
}

impl Removed {
    /// Adds a segment; `next` is the one after it.
    fn add(&mut self, segment: &Segment, next: &Segment, reason: Reason) {
        let seqs = next.first_seq.saturating_sub(segment.first_seq);
        self.segments += 1;
        self.bytes += segment.end;
        match reason {
            Reason::Size => self.by_size += seqs,
            Reason::Age => self.by_age += seqs,
            Reason::Topics => self.by_topics += seqs,
        }
    }

    /// Of these segments, the oldest ones that have a reason and are older than the event `first`.
    pub fn of(segments: &[Segment], reasons: &[Reason], first: u64) -> Self {
        let mut removed = Removed::default();
        let gone = segments.windows(2).zip(reasons).take_while(|(pair, _)| pair[1].first_seq <= first);
        gone.for_each(|(pair, reason)| removed.add(&pair[0], &pair[1], *reason));
        removed
    }

    /// Both together.
    pub fn and(self, other: Removed) -> Self {
        Removed {
            segments: self.segments + other.segments,
            bytes: self.bytes + other.bytes,
            by_size: self.by_size + other.by_size,
            by_age: self.by_age + other.by_age,
            by_topics: self.by_topics + other.by_topics,
        }
    }

    /// Why, in a word for each reason.
    pub fn reasons(&self) -> String {
        let each = [("size", self.by_size), ("age", self.by_age), ("topic retention", self.by_topics)];
        let all: Vec<&str> = each.into_iter().filter(|(_, seqs)| *seqs > 0).map(|(word, _)| word).collect();
        all.join(", ")
    }
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

    /// All views have everything, and there are no notes.
    fn bounds(bytes: u64) -> Bounds {
        Bounds { bytes, floor: 99, ..Bounds::default() }
    }

    #[test]
    fn by_size_by_age_and_never_past_the_floor() {
        use Reason::{Age, Size, Topics};
        let four = segments(&[100, 100, 100, 100]);
        let all = u64::MAX;
        for (bounds, want) in [
            (bounds(400), vec![]),
            (bounds(399), vec![Size]),
            (bounds(0), vec![Size, Size, Size]),
            (Bounds { floor: 19, ..bounds(0) }, vec![Size]),
            (Bounds { aged: 20, ..bounds(all) }, vec![Age, Age]),
            (Bounds { aged: 19, ..bounds(all) }, vec![Age]),
            (Bounds { aged: 9, ..bounds(all) }, vec![]),
            // What nobody needs goes however young it is, but not before the views have it.
            (Bounds { useless: 20, ..bounds(all) }, vec![Topics, Topics]),
            (Bounds { useless: 20, floor: 19, ..bounds(all) }, vec![Topics]),
            (Bounds { useless: 20, aged: 10, ..bounds(399) }, vec![Size, Topics]),
            // The first record of a segment, the last of the one before it, and the first of all.
            (Bounds { notes: 21, ..bounds(0) }, vec![Size, Size]),
            (Bounds { notes: 20, ..bounds(0) }, vec![Size]),
            (Bounds { notes: 1, ..bounds(0) }, vec![]),
        ] {
            assert_eq!(expired(&four, &bounds), want, "{bounds:?}");
        }
        assert_eq!(expired(&[], &bounds(0)), []);
    }

    #[test]
    fn what_went_is_counted_by_its_reason() {
        let four = segments(&[100, 200, 300, 400]);
        let removed = Removed::of(&four, &[Reason::Size, Reason::Age, Reason::Topics], 21);
        let want = Removed { segments: 2, bytes: 300, by_size: 10, by_age: 10, by_topics: 0 };
        assert_eq!((removed, removed.reasons().as_str()), (want, "size, age"));
    }

    proptest! {
        #[test]
        fn what_is_kept_fits_or_is_needed(ends in proptest::collection::vec(1u64..100, 1..9), max in 0u64..500, floor in 0u64..99, notes in 0u64..99) {
            let all = segments(&ends);
            let gone = expired(&all, &Bounds { floor, notes, ..bounds(max) }).len();
            let kept: u64 = all[gone..].iter().map(|s| s.end).sum();
            prop_assert!(gone < all.len());
            let needed = |next: &Segment| next.first_seq > floor + 1 || (notes > 0 && next.first_lsn > notes);
            prop_assert!(kept <= max || gone + 1 == all.len() || needed(&all[gone + 1]));
            prop_assert!(gone == 0 || !needed(&all[gone]));
        }
    }
}
