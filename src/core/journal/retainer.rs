//! Has retention done, and says what it removed and from whom.
//!
//! Always holds: segments that go are named in the broker's log with their seqs, the reasons, and the groups and sessions
//! that had not had all of them; so is a pause that does not count as age yet. Owner: the journal's keeper thread.

use super::disk::Disk;
use super::retain::{self, Bounds, Reached, Removed, Without};
use super::segment::Map;
use super::timekeeper::Timekeeper;
use super::timeline::Counted;
use crate::core::limits::Limits;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// So many groups are named.
const NAMED: usize = 8;

/// What the keeper thread does beside making spares.
pub(super) struct Retainer {
    time: Arc<Timekeeper>,
    map: Arc<Map>,
    bytes: u64,
    age_ms: u64,
    kept: Mutex<Kept>,
    /// Since the start. A lock of its own: who looks does not wait for the disk.
    removed: Mutex<Removed>,
}

struct Kept {
    reached: Reached,
    /// What a pause holds was said.
    is_said: bool,
}

impl Retainer {
    pub fn new(time: &Arc<Timekeeper>, map: &Arc<Map>, limits: &Limits, reached: Reached) -> Self {
        let age_ms = u64::try_from(limits.retain_age.as_millis()).unwrap_or(u64::MAX);
        Retainer {
            time: time.clone(),
            map: map.clone(),
            bytes: limits.retain_bytes,
            age_ms,
            kept: Mutex::new(Kept { reached, is_said: false }),
            removed: Mutex::default(),
        }
    }

    /// Since the start.
    pub fn removed(&self) -> Removed {
        *self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called now and then.
    pub fn keep(&self, disk: &dyn Disk) {
        if let Some(Counted { through, pause_ms }) = self.time.keep(disk, &self.map) {
            let pause = text(pause_ms);
            tracing::info!(through, %pause, "journal: the grace period is over; the pause counts as age of these events");
        }
        let ages = self.time.ages();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let segments = self.map.segments();
        let bounds = Bounds {
            bytes: self.bytes,
            aged: ages.past(self.age_ms),
            useless: kept.reached.useless.load(Relaxed),
            floor: kept.reached.views.seq(),
            // Asked for later: what it does not need any more is in these segments, and the first note of all is
            // in none of them but the newest.
            notes: self.map.needed(),
        };
        if !std::mem::replace(&mut kept.is_said, true)
            && let Some(uncounted) = ages.uncounted()
        {
            let then =
                Bounds { aged: ages.past_with_pause(self.age_ms), floor: u64::MAX, notes: 0, ..bounds };
            let held = retain::expired(&segments, &then).len();
            let grace = text(uncounted.left_ms);
            let pause = if uncounted.pause_ms > 0 { text(uncounted.pause_ms) } else { "unknown".to_owned() };
            if held > 0 {
                let (first, through) = (segments[0].first_seq, segments[held].first_seq.saturating_sub(1));
                tracing::warn!(
                    %pause, %grace, first, through, segments = held,
                    "journal: no broker ran for a while; that does not count as age before this one has run for the grace \
                     period, then these events are removed; to keep them longer raise retain_age"
                );
            } else {
                let through = uncounted.through;
                tracing::info!(
                    %pause, %grace, through,
                    "journal: no broker ran for a while; that counts as age of these events after the grace period"
                );
            }
        }
        let reasons = retain::expired(&segments, &bounds);
        if reasons.is_empty() {
            return;
        }
        let first = segments[0].first_seq;
        let through = segments[reasons.len()].first_seq.saturating_sub(1);
        // Asked before: a group that hears of the gap goes on behind it.
        let without = (kept.reached.without)(first, through);
        if let Err(error) = retain::apply(disk, &self.map, reasons.len()) {
            tracing::warn!(%error, "journal: an expired segment could not be removed; it is tried again");
        }
        let removed = Removed::of(&segments, &reasons, self.map.first_seq());
        if removed.segments == 0 {
            return;
        }
        drop(kept);
        let mut all = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        *all = all.and(removed);
        drop(all);
        let Removed { segments, bytes, .. } = removed;
        let (through, reason) = (self.map.first_seq().saturating_sub(1), removed.reasons());
        match taken_from(&without) {
            None => tracing::info!(first, through, segments, bytes, %reason, "journal: segments removed"),
            Some(undelivered) => tracing::warn!(
                first, through, segments, bytes, %reason, %undelivered,
                "journal: segments removed with events that were not delivered to all"
            ),
        }
    }
}

fn text(ms: u64) -> String {
    // Below a second it does not matter.
    humantime::format_duration(Duration::from_secs(ms / 1000)).to_string()
}

/// From whom, in words; `None` when everybody had everything.
fn taken_from(without: &Without) -> Option<String> {
    let mut groups = without.groups.clone();
    groups.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let more = groups.len().saturating_sub(NAMED);
    let mut said: Vec<String> =
        groups.iter().take(NAMED).map(|(name, most)| format!("group {name} (at most {most})")).collect();
    if more > 0 {
        said.push(format!("{more} more groups"));
    }
    if without.sessions > 0 {
        said.push(format!("subscriptions of {} sessions", without.sessions));
    }
    (!said.is_empty()).then(|| said.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lost_something_is_said_on_one_line() {
        assert_eq!(taken_from(&Without::default()), None);
        let groups = (1..=10).map(|n| (format!("g{n:02}"), n)).collect();
        let said = taken_from(&Without { groups, sessions: 2 }).unwrap();
        assert!(said.starts_with("group g10 (at most 10), group g09 (at most 9), "), "{said}");
        assert!(
            said.ends_with("group g03 (at most 3), 2 more groups, subscriptions of 2 sessions"),
            "{said}"
        );
    }
}
