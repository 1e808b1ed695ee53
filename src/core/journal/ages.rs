//! How old the events of a journal are at one moment: a copy that costs no more than two counters.
//!
//! Always holds: no event is taken to be older than the timeline has evidence for. Pure. Owner: `timeline.rs` makes it;
//! delivery, groups and retention ask.

use super::timeline::{Grace, Mark, is_plausible, ms, wall};
use crate::core::limits::AGE_GRACE;
use std::sync::Arc;

/// How old the events of a journal are at one moment.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    pub(super) marks: Arc<Vec<Mark>>,
    pub(super) open: Option<Mark>,
    pub(super) now: i64,
    /// The wall time that the `ts` of events is compared with where nothing else says how old they are.
    pub(super) wall: i64,
    pub(super) grace: Option<Arc<Grace>>,
}

/// A pause that does not count for retention yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncounted {
    /// The last event before it.
    pub through: u64,
    /// How long it was as far as that is known now, in milliseconds; 0: not known.
    pub pause_ms: u64,
    /// It counts after so many more milliseconds of running.
    pub left_ms: u64,
}

impl Ages {
    /// All events are so old.
    #[cfg(test)]
    pub fn all_of(age_ms: i64) -> Self {
        let open = Some(Mark { seq: u64::MAX, at: 0, ts: None, after: super::timeline::ever() });
        Ages { open, now: age_ms, ..Ages::default() }
    }

    fn mark(&self, seq: u64) -> Option<Mark> {
        let at = self.marks.partition_point(|mark| mark.seq < seq);
        self.marks.get(at).copied().or(self.open).filter(|mark| mark.seq >= seq)
    }

    /// Whether the `ttl_ms` of the event `seq` of the time `ts` is over.
    pub fn is_over(&self, seq: u64, ts: u64, ttl_ms: u64) -> bool {
        let (Some(mark), ttl) = (self.mark(seq), wall(ttl_ms)) else { return false };
        let by_ts = || mark.ts.is_some() && is_plausible(ts) && self.wall - wall(ts) >= ttl;
        self.now - mark.at >= ttl || (self.now - mark.after >= ttl && by_ts())
    }

    /// Whether retention takes the event `seq` to be of that age, in milliseconds, or older.
    pub fn is_past(&self, seq: u64, age_ms: u64) -> bool {
        self.mark(seq).is_some_and(|mark| self.kept_for(&mark) >= wall(age_ms))
    }

    fn kept_for(&self, mark: &Mark) -> i64 {
        self.now - mark.at - self.grace.as_ref().map_or(0, |grace| grace.behind(mark.at))
    }

    /// The newest event that retention takes to be of that age or older; 0 when there is none.
    pub fn past(&self, age_ms: u64) -> u64 {
        self.newest(|mark| self.kept_for(mark) >= wall(age_ms))
    }

    /// The same as it would be if the pause counted already.
    pub fn past_with_pause(&self, age_ms: u64) -> u64 {
        let claimed =
            |mark: &Mark| mark.ts.filter(|ts| is_plausible(*ts)).map_or(0, |ts| self.wall - wall(ts));
        self.newest(|mark| (self.now - mark.at).max(claimed(mark)) >= wall(age_ms))
    }

    fn newest(&self, is: impl Fn(&Mark) -> bool) -> u64 {
        let mut newest_first = self.open.iter().chain(self.marks.iter().rev());
        newest_first.find(|mark| is(mark)).map_or(0, |mark| mark.seq)
    }

    /// The pause that does not count yet, if there is one.
    pub fn uncounted(&self) -> Option<Uncounted> {
        self.grace.as_ref().map(|grace| Uncounted {
            through: grace.seq,
            pause_ms: grace.behind(i64::MIN).max(0) as u64,
            left_ms: (grace.since.saturating_add(ms(AGE_GRACE)) - self.now).max(0) as u64,
        })
    }
}
