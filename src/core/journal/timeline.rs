//! How old events are, by evidence: the time that passed while a broker ran on this journal.
//!
//! ```text
//! running ──(no broker ran, or the machine slept)──▶ grace ──4 h of running──▶ running
//!    events age by the monotonic clock      the pause does not count      the pause counts, by the wall clock of now
//!                                           for retention
//! ```
//!
//! A *mark* says that the events through a seq were there at a time of the timeline; an event has the age of the first
//! mark at or behind it. The timeline counts milliseconds of CLOCK_BOOTTIME; a step of the wall clock does not move it.
//! A *pause* is time without a running broker. Within one run of the machine its length is measured; otherwise the wall
//! clock says it, at the start for `ttl_ms` and once more at the end of the grace period for all. Always holds: no
//! event is taken to be older than there is evidence for; the number of marks is bounded, and they are off by at most
//! [`AGE_STEP`] or the 64th of an age. Pure. Owner: `timekeeper.rs`.

use super::ages::Ages;
use crate::core::limits::{AGE_GRACE, AGE_MARKS, AGE_PAUSES, AGE_STEADY, AGE_STEP, PAUSE_FREE};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// An age may be off by this part of it.
const PART: i64 = 64;
/// 2025-01-01.
const OLDEST_WALL_MS: u64 = 1_735_689_600_000;
/// The wall clock is steady as long as it agrees with the monotonic one up to so many milliseconds.
const AGREES: i64 = 30_000;
/// Marks are thinned out when so many came since the last time.
const THIN_EVERY: usize = 128;

/// The clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    /// CLOCK_BOOTTIME, in milliseconds.
    pub boot_ms: i64,
    /// Which run of the machine that is.
    pub boot_id: &'a str,
    /// Wall time in milliseconds.
    pub wall_ms: u64,
}

/// The events through `seq` were there at the time `at`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Mark {
    pub seq: u64,
    pub at: i64,
    /// They were there earlier, and only their `ts` says when; this is the newest of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ts: Option<u64>,
    /// But not before this time, if there is a `ts`.
    #[serde(skip_serializing_if = "is_ever", default = "ever")]
    pub after: i64,
}

/// Before all times.
pub(super) fn ever() -> i64 {
    -(1 << 53)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_ever(after: &i64) -> bool {
    *after == ever()
}

/// Pauses do not count for retention yet.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Grace {
    /// The last event before the last of them.
    pub seq: u64,
    /// When that ended.
    pub since: i64,
    /// Oldest first.
    pauses: Vec<Pause>,
    /// The wall clock says how long some were.
    unproven: Option<Unproven>,
}

/// What the timeline has of a pause.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Pause {
    from: i64,
    ms: i64,
}

/// A pause whose length the wall clock says.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Unproven {
    /// The last mark before it.
    seq: u64,
    /// When it began …
    from: i64,
    /// … by the wall clock.
    wall_ms: u64,
    /// What the timeline has of it, and of all pauses since.
    ms: i64,
}

/// What outlives the process.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Saved {
    now: i64,
    boot_ms: i64,
    boot_id: String,
    wall_ms: u64,
    marks: Vec<Mark>,
    grace: Option<Grace>,
}

/// The timeline of a journal.
#[derive(Debug)]
pub(super) struct Timeline {
    now: i64,
    boot_ms: i64,
    marks: Arc<Vec<Mark>>,
    /// The newest mark, which still moves on, and when it began.
    open: Option<(Mark, i64)>,
    grace: Option<Arc<Grace>>,
    /// A wall time that is trusted for `ts`, and when it was.
    wall: (i64, i64),
    /// Since when, and from which wall time, the wall clock has been steady.
    steady: (i64, i64),
    thin_at: usize,
}

/// A grace period that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// The last event before the pause.
    pub through: u64,
    /// How long the pause was, in milliseconds.
    pub pause_ms: u64,
}

/// Whether a clock that says so may be right: castra is younger than the time that machines without a clock begin with.
pub(super) fn is_plausible(wall_ms: u64) -> bool {
    wall_ms >= OLDEST_WALL_MS
}

pub(super) fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn wall(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Grace {
    fn of(seq: u64, since: i64) -> Self {
        Grace { seq, since, pauses: Vec::new(), unproven: None }
    }

    /// How long the pauses took together that began at `at` or later.
    pub fn behind(&self, at: i64) -> i64 {
        self.pauses.iter().filter(|pause| pause.from >= at).map(|pause| pause.ms).sum()
    }
}

impl Saved {
    /// Whether it can be what [`Timeline::save`] made.
    pub fn is_sane(&self) -> bool {
        let is_time = |at: i64| at.unsigned_abs() < u64::MAX / 1024;
        let pauses =
            self.grace.iter().flat_map(|grace| &grace.pauses).flat_map(|pause| [pause.from, pause.ms]);
        let times = pauses.chain(self.grace.as_ref().map(|grace| grace.since));
        let unproven = self.grace.as_ref().and_then(|grace| grace.unproven);
        let unproven = unproven.map(|one| [one.from, one.ms, wall(one.wall_ms)]);
        let marks = self.marks.iter().flat_map(|mark| [mark.at, mark.after, wall(mark.ts.unwrap_or(0))]);
        [self.now, self.boot_ms, wall(self.wall_ms)]
            .into_iter()
            .chain(times)
            .chain(unproven.into_iter().flatten())
            .chain(marks)
            .all(is_time)
            && self.marks.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].at <= pair[1].at)
            && self.marks.last().is_none_or(|mark| mark.at <= self.now)
    }
}

impl Timeline {
    /// That of a journal whose newest event is `head`. Without `saved` only `claims` say how old events are: seqs in
    /// order, and the newest `ts` through each.
    pub fn begin(saved: Option<Saved>, claims: Vec<(u64, u64)>, head: u64, moment: &Moment<'_>) -> Self {
        let newest_ts = claims.last().map_or(0, |(_, ts)| *ts);
        let began = (0, wall(moment.wall_ms));
        let mut line = Timeline {
            now: 0,
            boot_ms: moment.boot_ms,
            marks: Arc::default(),
            open: None,
            grace: None,
            wall: (began.1, began.0),
            steady: began,
            thin_at: 0,
        };
        // What was not saved came later.
        let behind = saved.as_ref().map_or(ever(), |saved| saved.now);
        match saved {
            Some(saved) => line.resume(saved, (head, newest_ts), moment),
            None => {
                let mark = |(seq, ts): (u64, u64)| Mark { seq, at: 0, ts: Some(ts), after: ever() };
                line.marks = Arc::new(claims.into_iter().map(mark).filter(|mark| mark.seq <= head).collect());
                line.grace = (head > 0).then(|| Arc::new(Grace::of(head, 0)));
            }
        }
        let marked = line.marks.last().map_or(0, |mark| mark.seq);
        if marked < head {
            // They came behind what was saved.
            let (at, ts) = (line.now, Some(newest_ts));
            Arc::make_mut(&mut line.marks).push(Mark { seq: head, at, ts, after: behind });
        }
        line.thin();
        (line.wall.1, line.steady.0) = (line.now, line.now);
        line
    }

    fn resume(&mut self, saved: Saved, (head, newest_ts): (u64, u64), moment: &Moment<'_>) {
        let Saved { now, boot_ms, boot_id, wall_ms, mut marks, grace } = saved;
        // A copy of a journal may end earlier than when this was saved.
        let whole = marks.partition_point(|mark| mark.seq < head);
        marks.truncate(whole + 1);
        marks.iter_mut().skip(whole).for_each(|mark| mark.seq = head);
        marks.retain(|mark| mark.seq > 0);
        (self.now, self.marks, self.grace) = (now, Arc::new(marks), grace.map(Arc::new));
        let is_measured = !boot_id.is_empty() && boot_id == moment.boot_id && moment.boot_ms >= boot_ms;
        // One that is behind the newest event is known to be wrong.
        let is_trusted = is_plausible(wall_ms) && wall(newest_ts) - wall(wall_ms) <= AGREES;
        if is_measured {
            self.pause(moment.boot_ms - boot_ms, None, head);
        } else if is_trusted {
            self.pause((wall(moment.wall_ms) - wall(wall_ms)).max(0), Some(wall_ms), head);
        }
    }

    /// So many milliseconds passed without a running broker, behind the event `seq`; `wall_ms` is when it began, where
    /// only the wall clock says how long it was.
    fn pause(&mut self, ms: i64, wall_ms: Option<u64>, seq: u64) {
        let from = self.now;
        self.now = from.saturating_add(ms);
        if seq == 0 || (wall_ms.is_none() && ms <= self::ms(PAUSE_FREE)) {
            return;
        }
        let grace = Arc::make_mut(self.grace.get_or_insert_with(|| Arc::new(Grace::of(seq, from))));
        (grace.seq, grace.since) = (seq, self.now);
        let is_full = grace.pauses.len() >= AGE_PAUSES;
        match grace.pauses.last_mut().filter(|_| is_full) {
            // Events between the two are younger so than they are.
            Some(last) => *last = Pause { from, ms: last.ms.saturating_add(ms) },
            None => grace.pauses.push(Pause { from, ms }),
        }
        let marked = self.marks.last().map_or(0, |mark| mark.seq);
        match &mut grace.unproven {
            Some(unproven) => unproven.ms = unproven.ms.saturating_add(ms),
            None => grace.unproven = wall_ms.map(|wall_ms| Unproven { seq: marked, from, wall_ms, ms }),
        }
    }

    /// Moves on to this time of the machine.
    pub fn tick(&mut self, boot_ms: i64) {
        let passed = (boot_ms - self.boot_ms).max(0);
        self.boot_ms = self.boot_ms.max(boot_ms);
        if passed <= ms(PAUSE_FREE) {
            self.now = self.now.saturating_add(passed);
        } else {
            // The machine slept.
            let seq =
                self.open.map(|(mark, _)| mark).or(self.marks.last().copied()).map_or(0, |mark| mark.seq);
            self.close();
            self.pause(passed, None, seq);
        }
    }

    /// The event `seq` and those before it are durable now.
    pub fn committed(&mut self, seq: u64) {
        let mark = Mark { seq, at: self.now, ts: None, after: ever() };
        match &mut self.open {
            Some((open, began)) if self.now - *began < ms(AGE_STEP) => *open = mark,
            _ => {
                self.close();
                self.open = Some((mark, self.now));
            }
        }
    }

    fn close(&mut self) {
        if let Some((mark, _)) = self.open.take() {
            Arc::make_mut(&mut self.marks).push(mark);
            if self.marks.len() >= self.thin_at {
                self.thin();
            }
        }
    }

    /// Leaves out what says little: the events of a mark that goes have the next one's age.
    fn thin(&mut self) {
        let (now, old) = (self.now, &self.marks);
        let ran = |at: i64| (now - at - self.grace.as_ref().map_or(0, |grace| grace.behind(at))).max(0);
        let mut kept: Vec<Mark> = Vec::with_capacity(old.len());
        for (i, mark) in old.iter().enumerate() {
            let next = old.get(i + 1).filter(|next| next.ts.is_none() && mark.ts.is_none());
            let is_near =
                |next: &Mark| kept.last().is_some_and(|before| next.at - before.at <= ran(next.at) / PART);
            if !next.is_some_and(is_near) {
                kept.push(*mark);
            }
        }
        if kept.len() > AGE_MARKS {
            // Not by itself: a journal of a broker that was killed time and again.
            let newest = kept.len() / 2;
            let mut i = 0;
            kept.retain(|_| {
                i += 1;
                i > newest || i % 2 == 0
            });
        }
        self.thin_at = kept.len() + THIN_EVERY;
        self.marks = Arc::new(kept);
    }

    /// The journal begins with the event `first` now.
    pub fn forget(&mut self, first: u64) {
        let gone = self.marks.partition_point(|mark| mark.seq < first);
        if gone > 0 {
            Arc::make_mut(&mut self.marks).drain(..gone);
        }
    }

    /// Ends the grace period when its time has come and the wall clock has not been set for a while. Call it after
    /// [`Timeline::tick`].
    pub fn count(&mut self, wall_ms: u64) -> Option<Counted> {
        let wall_now = wall(wall_ms);
        if (wall_now - self.steady.1 - (self.now - self.steady.0)).abs() > AGREES {
            self.steady = (self.now, wall_now);
        }
        if self.now - self.steady.0 < ms(AGE_STEADY) {
            return None;
        }
        let grace = self.grace.take_if(|grace| self.now - grace.since >= ms(AGE_GRACE))?;
        self.close();
        let more = grace.unproven.map_or(0, |unproven| {
            let ran = self.now - unproven.from - unproven.ms;
            (wall_now - wall(unproven.wall_ms) - ran).max(0) - unproven.ms
        });
        let marked = grace.unproven.map_or(0, |unproven| unproven.seq);
        let before = self.marks.partition_point(|mark| mark.seq <= grace.seq);
        let marks = Arc::make_mut(&mut self.marks);
        let mut next = marks.get(before).map_or(i64::MAX, |mark| mark.at);
        for mark in marks[..before].iter_mut().rev() {
            if mark.seq <= marked {
                mark.at -= more;
            } else if grace.unproven.is_some() {
                // How long each of several pauses was is not known: here only what was run counts.
                mark.at += grace.behind(mark.at);
            }
            if let Some(ts) = mark.ts.filter(|ts| is_plausible(*ts)) {
                mark.after = mark.after.saturating_sub(more.abs()).max(ever());
                mark.at = mark.at.min((self.now - (wall_now - wall(ts)).max(0)).max(mark.after));
            }
            mark.at = mark.at.min(next);
            next = mark.at;
        }
        self.wall = (wall_now, self.now);
        Some(Counted { through: grace.seq, pause_ms: (grace.behind(i64::MIN) + more).max(0) as u64 })
    }

    /// How old events are now.
    pub fn ages(&self) -> Ages {
        Ages {
            marks: self.marks.clone(),
            open: self.open.map(|(mark, _)| mark),
            now: self.now,
            wall: self.wall.0.saturating_add(self.now - self.wall.1),
            grace: self.grace.clone(),
        }
    }

    /// What is to outlive the process, at this moment; [`Timeline::tick`] before.
    pub fn save(&self, moment: &Moment<'_>) -> Saved {
        let open = self.open.map(|(mark, _)| mark);
        Saved {
            now: self.now,
            boot_ms: self.boot_ms,
            boot_id: moment.boot_id.to_owned(),
            wall_ms: moment.wall_ms,
            marks: self.marks.iter().copied().chain(open).collect(),
            grace: self.grace.as_deref().cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1000;
    const HOUR: i64 = 3600 * SECOND;
    const DAY: i64 = 24 * HOUR;
    const NOW: u64 = 1_800_000_000_000;

    fn moment(boot_ms: i64, boot_id: &str, wall_ms: u64) -> Moment<'_> {
        Moment { boot_ms, boot_id, wall_ms }
    }

    /// A journal that begins, and has an event each second for so many.
    fn running(seconds: i64) -> Timeline {
        let mut line = Timeline::begin(None, Vec::new(), 0, &moment(0, "a", NOW));
        for second in 0..seconds {
            line.tick(second * SECOND);
            line.committed(second as u64 + 1);
        }
        line
    }

    /// Runs on for so long, as the keeper does.
    fn run(line: &mut Timeline, time: i64, wall: &mut u64) -> Option<Counted> {
        let (mut counted, until) = (None, line.boot_ms + time);
        while line.boot_ms < until {
            let step = (until - line.boot_ms).min(10 * SECOND);
            line.tick(line.boot_ms + step);
            *wall += step as u64;
            counted = line.count(*wall).or(counted);
        }
        counted
    }

    #[test]
    fn an_event_ages_while_it_is_run() {
        let mut line = running(3);
        line.tick(5 * SECOND);
        let ages = line.ages();
        assert_eq!(
            [5, 4, 3, 2].map(|age| ages.past(age * 1000)),
            [1, 2, 3, 3].map(|n: u64| n - u64::from(n == 0))
        );
        assert_eq!(ages.past(5001), 0);
        assert!(ages.is_over(1, 0, 5000) && !ages.is_over(1, 0, 5001) && !ages.is_over(4, 0, 0));
        // What the wall clock says is nothing to it.
        line.count(NOW + 30 * DAY as u64);
        assert_eq!((line.ages().past(5001), line.count(0)), (0, None));
    }

    #[test]
    fn a_short_pause_that_is_measured_counts_at_once_and_a_long_one_after_the_grace_period() {
        let saved = |line: &Timeline| line.save(&moment(0, "a", NOW));
        let begin =
            |boot_ms| Timeline::begin(Some(saved(&running(10))), Vec::new(), 10, &moment(boot_ms, "a", NOW));
        assert_eq!(
            (begin(100 * SECOND).ages().past(90_000), begin(100 * SECOND).ages().uncounted()),
            (10, None)
        );
        let mut line = begin(DAY);
        let ages = line.ages();
        assert!(ages.is_over(10, 0, DAY as u64 - 10_000), "a ttl is over");
        assert_eq!((ages.past(11_000), ages.past_with_pause(DAY as u64 / 2)), (0, 10));
        assert_eq!(ages.uncounted().map(|pause| (pause.through, pause.left_ms)), Some((10, 4 * HOUR as u64)));
        let mut wall = NOW;
        assert_eq!(run(&mut line, 3 * HOUR, &mut wall), None);
        assert_eq!(line.ages().past(3 * HOUR as u64), 10, "what ran since counts");
        assert_eq!(line.ages().past(4 * HOUR as u64), 0);
        let counted = run(&mut line, HOUR, &mut wall).unwrap();
        assert_eq!((counted.through, line.ages().past(DAY as u64)), (10, 10));
        // So it is for a machine that slept.
        let mut line = running(10);
        line.tick(DAY);
        assert_eq!((line.ages().past(11_000), line.ages().is_over(10, 0, 11_000)), (0, true));
    }

    #[test]
    fn a_clock_that_is_wrong_at_the_start_does_no_harm_once_it_is_set_right() {
        let saved = running(10).save(&moment(0, "a", NOW));
        for wrong in [1_000_000, NOW + 30 * DAY as u64] {
            let mut line = Timeline::begin(Some(saved.clone()), Vec::new(), 10, &moment(5, "b", wrong));
            let mut wall = wrong;
            assert_eq!(run(&mut line, HOUR, &mut wall), None);
            assert_eq!(line.ages().past(2 * HOUR as u64), 0);
            // It was off for an hour.
            wall = NOW + 2 * HOUR as u64;
            assert!(run(&mut line, 3 * HOUR, &mut wall).is_some());
            let ages = line.ages();
            let age = (NOW..wall).end - NOW;
            assert_eq!([ages.past(age - 1000), ages.past(age + 11_000)], [10, 0], "{wrong}");
        }
    }

    #[test]
    fn the_wall_clock_is_asked_only_when_it_was_not_set_lately() {
        let saved = running(10).save(&moment(0, "a", NOW));
        let mut line = Timeline::begin(Some(saved), Vec::new(), 10, &moment(5, "b", NOW));
        let mut wall = NOW;
        assert_eq!(run(&mut line, 4 * HOUR - 30 * SECOND, &mut wall), None);
        wall += 30 * DAY as u64;
        assert_eq!(run(&mut line, 60 * SECOND, &mut wall), None, "it leaps for a minute");
        wall -= 30 * DAY as u64;
        assert!(run(&mut line, HOUR, &mut wall).is_some());
        assert_eq!(line.ages().past(6 * HOUR as u64), 0);
    }

    #[test]
    fn without_the_file_events_begin_to_age_and_their_ts_counts_after_the_grace_period() {
        let claims = vec![(5, NOW - 20 * DAY as u64), (10, NOW - 10 * DAY as u64)];
        let mut line = Timeline::begin(None, claims, 12, &moment(77, "b", NOW));
        let ages = line.ages();
        assert_eq!((ages.past(1), ages.past_with_pause(15 * DAY as u64)), (0, 5));
        // The ttl goes by the ts.
        assert!(ages.is_over(3, NOW - 10_000, 10_000) && !ages.is_over(3, NOW - 10_000, 10_001));
        // A restart within the grace period forgets nothing.
        let mut wall = NOW;
        run(&mut line, HOUR, &mut wall);
        let saved = line.save(&moment(0, "b", wall));
        let mut line = Timeline::begin(Some(saved), Vec::new(), 12, &moment(line.boot_ms, "b", wall));
        assert_eq!((line.ages().past(HOUR as u64), line.ages().past(2 * HOUR as u64)), (12, 0));
        assert!(run(&mut line, 4 * HOUR, &mut wall).is_some());
        let past = [20, 10].map(|days| line.ages().past((days * DAY) as u64));
        assert_eq!(past, [5, 12]);
    }

    #[test]
    fn what_came_behind_the_file_is_as_old_as_this_start() {
        let mut line = running(10);
        let saved = line.save(&moment(0, "a", NOW));
        line.committed(20);
        let line = Timeline::begin(Some(saved), vec![(20, NOW)], 20, &moment(100 * SECOND, "a", NOW + 1_000));
        let ages = line.ages();
        assert_eq!((ages.past(1), ages.past(0)), (10, 20));
        // But not for a ttl.
        assert!(ages.is_over(15, NOW - 5_000, 6_000) && !ages.is_over(15, NOW - 5_000, 6_001));
        // And a copy of the journal may end before it.
        let saved = running(10).save(&moment(0, "a", NOW));
        let line = Timeline::begin(Some(saved), vec![(4, NOW)], 4, &moment(10 * SECOND, "a", NOW));
        assert_eq!(line.ages().past(7_000), 4);
    }

    #[test]
    fn a_year_takes_few_marks_which_are_off_by_little() {
        let (mut line, mut seq) = (running(1), 1);
        while line.boot_ms < 365 * DAY {
            line.tick(line.boot_ms + if seq % 4_000 == 0 { DAY } else { 70 });
            seq += 1;
            line.committed(seq);
            // A sleep is none.
            line.grace = None;
        }
        assert!(line.marks.len() < 3_000, "{}", line.marks.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Run(i64),
        Publish,
        Save,
        /// The wall clock is so far off.
        Set(i64),
        /// No broker runs for so long; in another run of the machine or not; orderly or not.
        Stop(i64, bool, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => Just(Step::Publish),
            4 => prop_oneof![0..500i64, 0..HOUR, 0..DAY].prop_map(Step::Run),
            1 => Just(Step::Save),
            1 => prop_oneof![Just(0), -50 * DAY..50 * DAY].prop_map(Step::Set),
            1 => (prop_oneof![0..HOUR, 0..20 * DAY], any::<bool>(), any::<bool>())
                .prop_map(|(time, reboots, orderly)| Step::Stop(time, reboots, orderly)),
        ]
    }

    proptest! {
        /// Retention takes no event to be older than it is, whatever the wall clock does, as long as it is right when
        /// a grace period ends; what was run since counts, but for what a kill forgot.
        #[test]
        fn no_event_is_older_than_it_is(steps in proptest::collection::vec(step(), 1..80)) {
            let (mut time, mut boot, mut run_of, mut off) = (0i64, 0i64, 0, 0i64);
            let wall = |time: i64, off: i64| (NOW as i64 + time + off) as u64;
            let mut line = Timeline::begin(None, Vec::new(), 0, &moment(0, "0", NOW));
            let mut saved = line.save(&moment(0, "0", NOW));
            // When each was published, and for how long a broker has surely counted it.
            let mut events: Vec<(i64, i64)> = Vec::new();
            let mut is_saved = 0;
            for step in steps {
                match step {
                    Step::Publish => {
                        events.push((time, 0));
                        line.committed(events.len() as u64);
                    }
                    Step::Run(most) => {
                        let mut left = most;
                        while left > 0 {
                            let part = left.min(300 * SECOND);
                            (time, boot, left) = (time + part, boot + part, left - part);
                            events.iter_mut().for_each(|event| event.1 += part);
                            line.tick(boot);
                            // Somebody sets the clock right in time.
                            let ends = line.grace.as_ref().is_some_and(|grace| line.now - grace.since > 3 * HOUR);
                            off = if ends { 0 } else { off };
                            line.count(wall(time, off));
                        }
                    }
                    Step::Save => {
                        saved = line.save(&moment(boot, &run_of.to_string(), wall(time, 0)));
                        is_saved = events.len();
                    }
                    Step::Set(to) => off = to,
                    Step::Stop(pause, reboots, orderly) => {
                        if orderly {
                            saved = line.save(&moment(boot, &run_of.to_string(), wall(time, 0)));
                            is_saved = events.len();
                        }
                        // It forgets when these came, and for how long it ran since it wrote the others down.
                        events.iter_mut().skip(is_saved).for_each(|event| event.1 = 0);
                        time += pause;
                        (boot, run_of) = if reboots { (SECOND, run_of + 1) } else { (boot + pause, run_of) };
                        let id = run_of.to_string();
                        prop_assert!(saved.is_sane());
                        let newest = wall(events.last().map_or(0, |event| event.0), 0);
                        let claims = vec![(events.len() as u64, newest)];
                        let at = moment(boot, &id, wall(time, off));
                        line = Timeline::begin(Some(saved.clone()), claims, events.len() as u64, &at);
                        if !orderly {
                            events.iter_mut().for_each(|event| event.1 = 0);
                        }
                        // It is written down again now and then.
                        saved = line.save(&moment(boot, &id, wall(time, 0)));
                        is_saved = events.len();
                    }
                }
                let ages = line.ages();
                for (seq, (at, ran)) in (1..).zip(&events) {
                    let age = time - at;
                    prop_assert!(!ages.is_past(seq, age as u64 + 1), "{} is no {}: {:?}", seq, age, line);
                    let least = ran - ran / PART - ms(AGE_STEP) - 1;
                    prop_assert!(least <= 0 || ages.is_past(seq, least as u64), "{} is {}: {:?}", seq, ran, line);
                }
                prop_assert!(line.save(&moment(boot, "x", NOW)).is_sane());
            }
        }
    }
}
