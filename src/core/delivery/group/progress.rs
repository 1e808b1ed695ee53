//! How far a group has come, and what of that is to be written: the cursor, what is done beyond it, what failed.
//!
//! ```text
//! group ─ finish, advance, fail ─▶ Progress ─ take ─▶ Change ─ a note in the journal ─▶ apply ─▶ Saved
//!                                     └────────────── saved() is the same ──────────────────────┘
//! ```
//!
//! Always holds: [`Saved`] after all changes that were taken is what the group has, but for a cursor that moved over
//! events which are not the group's; a change is about [`CHANGE_BYTES`] of JSON at the most; changes apply in the
//! order in which they were taken, and one that is applied twice in a row changes nothing. Pure. Owner: `group.rs`.

use super::ranges::Ranges;
use crate::core::limits::{GROUP_FAILURES, NACK_DELAY_SET, REASON_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

/// A change stops growing at about so much JSON, in bytes; a note of the journal has room for it.
pub const CHANGE_BYTES: usize = 32 * 1024;

/// Why a delivery was in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing was heard before its deadline.
    Timeout,
    /// The member said so.
    Nack,
    /// The member went.
    Gone,
    /// The member gave it up for all.
    Term,
}

/// A delivery that was in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which one it was, from 1.
    pub attempt: u32,
    /// Why.
    pub cause: Cause,
    /// What the member said: one line of at most [`REASON_BYTES`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When the event is delivered again; only the last failure of an event has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Due>,
}

/// The end of a delay, as it outlives the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// The end by the wall clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The whole delay, in milliseconds.
    pub after_ms: u64,
}

impl Due {
    /// Returns the end of a delay that begins at `wall_ms`; `None` when there is no delay.
    pub fn new(wall_ms: u64, delay: Duration) -> Option<Self> {
        let after_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        (!delay.is_zero()).then(|| Due { at_ms: wall_ms.saturating_add(after_ms), after_ms })
    }

    /// Returns what is left of the delay at `wall_ms`. It is never longer than the delay, whatever the clock did.
    pub fn rest(&self, wall_ms: u64) -> Duration {
        let rest = self.at_ms.saturating_sub(wall_ms).min(self.after_ms);
        Duration::from_millis(rest).min(NACK_DELAY_SET)
    }
}

/// What changed: a note's body, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Everything through this seq is done.
    pub cursor: u64,
    /// What was there before is void: somebody moved the cursor, or a snapshot begins.
    #[serde(default, skip_serializing_if = "is_false")]
    pub anew: bool,
    /// What else is done, as first and last seqs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<(u64, u64)>,
    /// The deliveries in vain of events that are not done; all that are known of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<(u64, Vec<Failure>)>,
}

/// What outlives the broker of a group. Its JSON is that of one [`Change`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Change", into = "Change")]
pub struct Saved {
    cursor: u64,
    done: Ranges,
    failed: BTreeMap<u64, Vec<Failure>>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Saved {
    /// Nothing is done but what is at `cursor` or before.
    pub fn new(cursor: u64) -> Self {
        Saved { cursor, ..Saved::default() }
    }

    /// Everything through this seq is done.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// What is done beyond the cursor.
    pub fn done(&self) -> &Ranges {
        &self.done
    }

    /// The last deliveries in vain of the event `seq`, which is not done.
    pub fn failures(&self, seq: u64) -> &[Failure] {
        self.failed.get(&seq).map_or(&[], Vec::as_slice)
    }

    /// Returns when the event `seq`, which is not done, is to be delivered again.
    pub fn again(&self, seq: u64) -> Option<Due> {
        self.failures(seq).last().and_then(|last| last.again)
    }

    /// What was written later. Whatever it says, the cursor only goes back when it begins anew.
    pub fn apply(&mut self, change: Change) {
        if change.anew {
            *self = Saved::new(change.cursor);
        }
        for (seq, mut failures) in change.failed {
            if seq > self.cursor && !self.done.contains(seq) && !failures.is_empty() {
                let surplus = failures.len().saturating_sub(GROUP_FAILURES);
                failures.drain(..surplus);
                for failure in &mut failures {
                    failure.reason = one_line(&failure.reason);
                }
                self.failed.insert(seq, failures);
            }
        }
        for (from, to) in change.done {
            self.finish(from, to);
        }
        self.advance(change.cursor);
    }

    /// The changes that make this of nothing, each of a note's size; the first one begins anew.
    pub fn changes(&self) -> Vec<Change> {
        let all = BTreeSet::from_iter(self.failed.keys().copied());
        let mut rest = Unwritten { anew: true, done: self.done.clone(), failed: all };
        let mut changes = Vec::new();
        while !rest.is_empty() {
            changes.push(rest.take(self));
        }
        changes
    }

    fn finish(&mut self, from: u64, to: u64) {
        if from <= to && to > self.cursor {
            self.done.insert(from.max(self.cursor.saturating_add(1)), to);
            while let Some((&seq, _)) = self.failed.range(from..=to).next() {
                self.failed.remove(&seq);
            }
        }
    }

    fn advance(&mut self, cursor: u64) {
        self.cursor = self.done.trim(cursor.max(self.cursor));
        while let Some(first) = self.failed.first_entry()
            && *first.key() <= self.cursor
        {
            first.remove();
        }
    }
}

impl From<Change> for Saved {
    fn from(change: Change) -> Self {
        let mut saved = Saved::default();
        saved.apply(change);
        saved
    }
}

impl From<Saved> for Change {
    fn from(saved: Saved) -> Self {
        let done = saved.done.iter().collect();
        Change { cursor: saved.cursor, anew: true, done, failed: saved.failed.into_iter().collect() }
    }
}

/// What a group has, and what of it is not written.
#[derive(Debug, Default)]
pub struct Progress {
    saved: Saved,
    unwritten: Unwritten,
    /// The cursor moved because something was done.
    moved: bool,
    /// The cursor that was written.
    written: u64,
}

#[derive(Debug, Default)]
struct Unwritten {
    anew: bool,
    done: Ranges,
    failed: BTreeSet<u64>,
}

impl Progress {
    /// Goes on from `saved`, which is written.
    pub fn new(saved: Saved) -> Self {
        Progress { written: saved.cursor, saved, ..Progress::default() }
    }

    /// What is there now.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Everything from `from` through `to`, beyond the cursor, is done.
    pub fn finish(&mut self, from: u64, to: u64) {
        self.saved.finish(from, to);
        self.unwritten.done.insert(from, to);
        while let Some(&seq) = self.unwritten.failed.range(from..=to).next() {
            self.unwritten.failed.remove(&seq);
        }
    }

    /// Everything through `cursor` is done; `owed` when that is to be written soon.
    pub fn advance(&mut self, cursor: u64, owed: bool) {
        if cursor > self.saved.cursor {
            self.saved.advance(cursor);
            self.unwritten.done.trim(self.saved.cursor);
            while self.unwritten.failed.first().is_some_and(|seq| *seq <= self.saved.cursor) {
                self.unwritten.failed.pop_first();
            }
            self.moved |= owed;
        }
    }

    /// A delivery of `seq` was in vain; it is delivered again when `again` says, or at once. How many were in vain.
    pub fn fail(&mut self, seq: u64, cause: Cause, reason: &str, again: Option<Due>) -> u32 {
        let failures = self.saved.failed.entry(seq).or_default();
        failures.iter_mut().for_each(|failure| failure.again = None);
        let attempt = failures.last().map_or(0, |last| last.attempt).saturating_add(1);
        if failures.len() >= GROUP_FAILURES {
            failures.remove(0);
        }
        failures.push(Failure { attempt, cause, reason: one_line(reason), again });
        self.unwritten.failed.insert(seq);
        attempt
    }

    /// Somebody moved the cursor; nothing beyond it is done.
    pub fn reset(&mut self, cursor: u64) {
        self.saved = Saved::new(cursor);
        self.unwritten = Unwritten { anew: true, ..Unwritten::default() };
    }

    /// Seqs that the cursor came on since it was written.
    pub fn unwritten_cursor(&self) -> u64 {
        self.saved.cursor.saturating_sub(self.written)
    }

    /// Whether there is something to write.
    pub fn is_changed(&self) -> bool {
        self.moved || !self.unwritten.is_empty()
    }

    /// What is to be written, as much as goes into a note; with `cursor` also when only the cursor moved.
    pub fn take(&mut self, cursor: bool) -> Option<Change> {
        let lazily = cursor && self.saved.cursor != self.written;
        if !self.moved && !lazily && self.unwritten.is_empty() {
            return None;
        }
        self.moved = false;
        self.written = self.saved.cursor;
        Some(self.unwritten.take(&self.saved))
    }
}

impl Unwritten {
    fn is_empty(&self) -> bool {
        !self.anew && self.done.is_empty() && self.failed.is_empty()
    }

    fn take(&mut self, saved: &Saved) -> Change {
        let anew = std::mem::take(&mut self.anew);
        let mut change = Change { cursor: saved.cursor, anew, ..Change::default() };
        let mut bytes = 0;
        while bytes < CHANGE_BYTES
            && let Some(range) = self.done.pop()
        {
            change.done.push(range);
            bytes += 48;
        }
        while bytes < CHANGE_BYTES
            && let Some(seq) = self.failed.pop_first()
        {
            // What is done since needs no reasons.
            if let Some(failures) = saved.failed.get(&seq) {
                // The end of a delay is another 64.
                bytes += 96 + failures.iter().map(|failure| 64 + 2 * failure.reason.len()).sum::<usize>();
                change.failed.push((seq, failures.clone()));
            }
        }
        change
    }
}

/// The beginning of a reason, on one line.
fn one_line(reason: &str) -> String {
    let cut = &reason[..reason.floor_char_boundary(REASON_BYTES)];
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::tests::{MS, WALL, ack, group};
    use super::*;
    use crate::core::delivery::redelivery::Delay;

    const CHANGE_LIMIT: usize = 48 * 1024;

    #[test]
    fn much_that_changed_is_written_in_parts() {
        let mut group = group(Options { batch: 10_000, ..Options::default() }, &[(1, 4000)], 4000);
        let mut disk = Saved::default();
        group.step(MS(0));
        for seq in 1..=2000 {
            assert_eq!(ack(&mut group, 1, 2 * seq), Ok(()));
            let reason = "\"".repeat(300);
            assert!(group.nack(1, 2 * seq - 1, &reason, &Delay::One(60_000), (MS(0), WALL)).is_ok());
        }
        let mut notes = 0;
        while let Some(change) = group.take_changes() {
            let note = serde_json::to_vec(&change).unwrap();
            assert!(note.len() < CHANGE_LIMIT, "{}", note.len());
            disk.apply(serde_json::from_slice(&note).unwrap());
            notes += 1;
        }
        assert!(notes > 20);
        assert_eq!(disk, *group.saved());
        let mut again = Saved::default();
        for change in disk.changes() {
            assert!(serde_json::to_vec(&change).unwrap().len() < CHANGE_LIMIT);
            again.apply(change.clone());
            again.apply(Change { anew: false, ..change });
        }
        assert_eq!(again, disk);
        let json = serde_json::to_string(&disk).unwrap();
        assert_eq!(serde_json::from_str::<Saved>(&json).unwrap(), disk);
    }

    #[test]
    fn what_is_done_has_no_failures_whatever_a_note_says() {
        let mut saved = Saved::new(3);
        saved.apply(Change { cursor: 3, done: vec![(5, 6)], ..Change::default() });
        let failures =
            vec![Failure { attempt: 1, cause: Cause::Timeout, reason: String::new(), again: None }];
        let failed = [3, 4, 5].map(|seq| (seq, failures.clone())).to_vec();
        saved.apply(Change { cursor: 2, failed, ..Change::default() });
        assert_eq!([3, 4, 5].map(|seq| saved.failures(seq).len()), [0, 1, 0]);
        saved.apply(Change { cursor: 4, ..Change::default() });
        assert_eq!((saved, saved_json()), (Saved::new(6), r#"{"cursor":6,"anew":true}"#.to_owned()));
    }

    #[test]
    fn a_note_of_an_older_broker_has_no_due_time() {
        let note = r#"{"cursor":4,"failed":[[7,[{"attempt":2,"cause":"nack","reason":"no"}]]]}"#;
        let saved = Saved::from(serde_json::from_str::<Change>(note).unwrap());
        assert_eq!((saved.failures(7).len(), saved.again(7)), (1, None));
    }

    proptest::proptest! {
        /// A step of the wall clock makes no delay longer, and only time ends it early.
        #[test]
        fn what_is_left_of_a_delay(wall: u64, ms in 1u64..2_000_000_000, now: u64) {
            let due = Due::new(wall, MS(ms)).unwrap();
            assert!(due.rest(now) <= MS(ms).min(NACK_DELAY_SET));
            assert_eq!(due.rest(due.at_ms), MS(0));
            if now <= wall {
                assert_eq!(due.rest(now), MS(due.at_ms - wall).min(due.rest(0)));
            }
        }
    }

    fn saved_json() -> String {
        serde_json::to_string(&Saved::new(6)).unwrap()
    }
}
