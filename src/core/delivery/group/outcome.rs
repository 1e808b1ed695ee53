//! What becomes of a delivery: the event is done, goes out again, or is dead.
//!
//! Always holds: an event leaves the group only when it is done, and takes all that is known of it along: its place with
//! a member or in the queue, its timer, its failures; the cursor stands before the oldest event that is there. Pure.
//! Owner: `group.rs`.

use super::members::MemberId;
use super::progress::{Cause, Due};
use super::{Event, Group, Place};
use std::time::Duration;

impl Group {
    /// The dead letter of `seq` is durable: it is done.
    pub fn buried(&mut self, seq: u64) {
        if let Some(Event { place: Place::Dead, .. }) = self.events.get(&seq) {
            self.finish(seq);
        }
    }

    /// What was to be delivered by the last step is of no use any more: it is done instead.
    pub fn lapse(&mut self, seq: u64) {
        self.finish(seq);
    }

    /// The events that wait for a member, for a delay, or for another of their key.
    pub fn waiting(&self) -> impl Iterator<Item = u64> + '_ {
        let waits = |event: &Event| !matches!(event.place, Place::Held { .. } | Place::Dead);
        self.events.iter().filter(move |(_, event)| waits(event)).map(|(seq, _)| *seq)
    }

    /// `seq`, which no timer and not this member has any more, waits for another member. Without a `cause` the delivery
    /// was not in vain: the member had not begun it.
    pub(super) fn let_wait(&mut self, seq: u64, member: MemberId, cause: Option<Cause>) {
        match (cause, self.events.get_mut(&seq)) {
            (Some(cause), _) => self.fail(seq, cause, "", Duration::ZERO, 0),
            (None, Some(event)) => {
                event.place = Place::Waiting { late: None };
                self.queue.again(seq);
            }
            (None, None) => {}
        }
        if let Some(Event { place: Place::Waiting { late }, .. }) = self.events.get_mut(&seq) {
            *late = Some(member);
            self.members.late(member, seq);
        }
    }

    /// A delivery of `seq`, which no timer and no member has any more, was in vain; it waits for `delay` from `wall_ms`
    /// on.
    pub(super) fn fail(&mut self, seq: u64, cause: Cause, reason: &str, delay: Duration, wall_ms: u64) {
        let Some(event) = self.events.get_mut(&seq) else { return };
        let is_last = event.failed.saturating_add(1) >= self.options.max_attempts.max(1);
        let is_dead = cause == Cause::Term || is_last;
        let again = Due::new(wall_ms, delay).filter(|_| !is_dead);
        event.failed = self.progress.fail(seq, cause, reason, again);
        if is_dead {
            event.place = Place::Dead;
            self.dead += 1;
            self.dying.push_back(seq);
        } else if delay.is_zero() {
            event.place = Place::Waiting { late: None };
            self.queue.again(seq);
        } else {
            let until = self.now.saturating_add(delay);
            event.place = Place::Delayed { until };
            self.delay(seq, until);
        }
    }

    /// Sets the timer of an event that waits until then.
    pub(super) fn delay(&mut self, seq: u64, until: Duration) {
        self.timers.set(until, seq);
        self.delayed += 1;
    }

    /// Returns the end of a delay that `seq` had when the group was restored. It may be past.
    pub(super) fn restored_delay(&self, seq: u64) -> Option<Duration> {
        self.progress.saved().again(seq).map(|due| due.rest(self.restored_ms))
    }

    /// `seq` is done.
    pub(super) fn finish(&mut self, seq: u64) {
        if self.detach(seq).is_none() {
            return;
        }
        let before = self.events.range(..seq).next_back();
        let Some((before, _)) = before else { return self.advance(true) };
        let after = self.events.range(seq..).next();
        let last = after.map_or(self.looked, |(after, _)| after.saturating_sub(1));
        self.progress.finish(before.saturating_add(1), last);
    }

    /// Takes `seq` out of wherever it is.
    pub(super) fn detach(&mut self, seq: u64) -> Option<Event> {
        let event = self.events.remove(&seq)?;
        match event.place {
            Place::Held { member, until } => {
                self.timers.clear(until, seq);
                self.members.release(member, (seq, event.number), event.bytes);
            }
            Place::Waiting { late } => {
                self.queue.remove(seq);
                if let Some(member) = late {
                    self.members.not_late(member, seq);
                }
            }
            Place::Delayed { until } => {
                self.timers.clear(until, seq);
                self.delayed = self.delayed.saturating_sub(1);
            }
            Place::Dead => self.dead = self.dead.saturating_sub(1),
            Place::Behind => {}
        }
        if let Some(key) = event.key
            && let Some(next) = self.queue.left(seq, key)
            && let Some(Event { place: Place::Behind, .. }) = self.events.get(&next)
        {
            let place = match self.restored_delay(next) {
                Some(until) => {
                    self.delay(next, until);
                    Place::Delayed { until }
                }
                None => {
                    self.queue.again(next);
                    Place::Waiting { late: None }
                }
            };
            self.events.get_mut(&next).into_iter().for_each(|behind| behind.place = place);
        }
        Some(event)
    }

    /// The cursor goes to the first event that is not done; `owed` when that is to be written soon.
    pub(super) fn advance(&mut self, owed: bool) {
        let first = self.events.first_key_value();
        let done = first.map_or(self.looked, |(first, _)| first.saturating_sub(1));
        self.progress.advance(done, owed);
        self.looked = self.looked.max(self.progress.saved().cursor());
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::{Fate, Refused, Which};
    use super::super::progress::Failure;
    use super::super::tests::{MS, WALL, ack, delivered, group};
    use super::super::{Effect, Options};
    use super::*;
    use crate::core::delivery::redelivery::Delay;

    #[test]
    fn an_event_is_dead_after_its_last_attempt_and_done_when_buried() {
        let options = Options { max_attempts: 3, ..Options::default() };
        let mut group = group(options, &[(1, 9)], 2);
        group.step(MS(0));
        let again = Ok(Fate::Again { after: MS(500) });
        assert_eq!(group.nack(1, 1, "no\nroom", &Delay::Doubling, (MS(0), WALL)), again);
        assert_eq!(ack(&mut group, 1, 1), Err(Refused::NotHeld));
        assert_eq!((group.step(MS(499)), group.next()), (vec![], Some(MS(500))));
        assert_eq!(delivered(&group.step(MS(500))), [(1, 1, 2)]);
        assert_eq!(ack(&mut group, 1, 2), Ok(()));
        assert!(group.offer(3, None, 10));
        group.join(2, 1, 0);
        group.leave(1, MS(600));
        assert_eq!(delivered(&group.step(MS(600))), [(2, 1, 3)], "what went out before goes first");
        let effects = group.step(MS(30_600));
        let attempts = [(1, Cause::Nack, "no room"), (2, Cause::Gone, ""), (3, Cause::Timeout, "")];
        let attempts = attempts.map(|(attempt, cause, reason)| Failure {
            attempt,
            cause,
            reason: reason.into(),
            again: None,
        });
        assert_eq!(effects[0], Effect::Dead { seq: 1, attempts: attempts.to_vec() });
        assert_eq!(delivered(&effects), [(2, 3, 1)]);
        assert_eq!((group.counts().cursor, group.counts().dead), (0, 1));
        group.buried(2);
        group.buried(1);
        group.buried(1);
        assert_eq!((group.counts().cursor, group.counts().dead), (2, 0));
    }

    #[test]
    fn what_was_given_up_is_asked_for_again_after_a_crash() {
        let mut group = group(Options::default(), &[(1, 9)], 3);
        group.step(MS(0));
        assert_eq!(group.term(1, 2, &"é".repeat(200), MS(0)), Ok(()));
        assert_eq!(ack(&mut group, 1, 3), Ok(()));
        let mut again = Group::restore(Options::default(), group.saved().clone(), WALL);
        again.join(1, 9, usize::MAX);
        assert_eq!([1, 2, 3].map(|seq| again.offer(seq, None, 10)), [true, true, false]);
        let effects = again.step(MS(0));
        let Effect::Dead { seq: 2, attempts } = &effects[0] else { panic!("{effects:?}") };
        assert_eq!((attempts[0].cause, attempts[0].reason.len()), (Cause::Term, 256));
        assert_eq!(delivered(&effects), [(1, 1, 1)]);
        again.buried(2);
        assert_eq!((ack(&mut again, 1, 1), again.counts().cursor), (Ok(()), 3));
    }

    /// Failures of each event that has some.
    fn failures(group: &Group) -> Vec<(u64, u32)> {
        let failed = |seq| Some((seq, group.saved().failures(seq).last()?.attempt));
        (1..=300).filter_map(failed).collect()
    }

    #[test]
    fn a_member_that_crashes_fails_at_what_it_began() {
        let mut group = group(Options::default(), &[], 300);
        for member in 1..=4 {
            group.join(member, 1000, usize::MAX);
            group.step(MS(member));
            // It has done with one of them, and dies of the next; another one said by itself that it began it.
            if member == 1 {
                assert_eq!(ack(&mut group, member, 1), Ok(()));
                group.begin(member, &[9], MS(member));
            }
            group.leave(member, MS(member));
        }
        assert_eq!(failures(&group), [(2, 4), (9, 1)]);
    }

    #[test]
    fn a_member_that_says_what_it_begins_fails_at_that_only() {
        let mut group = group(Options::default(), &[], 300);
        for member in 1..=4 {
            group.join(member, 1000, usize::MAX);
            group.tells(member);
            group.step(MS(member));
            group.begin(member, &[50 + member], MS(member));
            group.leave(member, MS(member));
        }
        assert_eq!(failures(&group), [(51, 1), (52, 1), (53, 1), (54, 1)]);
    }

    #[test]
    fn a_slow_member_that_answers_one_after_the_other_loses_nothing() {
        let mut group = group(Options::default(), &[(1, 1000)], 300);
        let given = delivered(&group.step(MS(0)));
        assert_eq!(given.len(), 100);
        for (at, (_, seq, _)) in (1..).zip(given) {
            let now = MS(29_000 * at);
            assert_eq!(delivered(&group.step(now)).iter().filter(|(_, _, attempt)| *attempt > 1).count(), 0);
            assert_eq!(group.ack(1, Which::Seqs(vec![seq]), now).taken, [seq]);
        }
        assert_eq!((group.counts().cursor, failures(&group)), (100, vec![]));
    }

    #[test]
    fn a_worker_that_hangs_fails_at_one_event_and_does_not_keep_the_others() {
        let mut group = group(Options { batch: 2, ..Options::default() }, &[(1, 1000)], 6);
        // They are not all delivered at the same time, so that their time is not over at the same time either.
        [0, 1, 2].into_iter().for_each(|ms| _ = group.step(MS(ms)));
        assert_eq!(ack(&mut group, 1, 2), Ok(()));
        let mut given = Vec::new();
        for ms in 30_000..30_004 {
            given.extend(delivered(&group.step(MS(ms))));
        }
        given.sort_unstable();
        assert_eq!(given, [(1, 1, 2), (1, 3, 1), (1, 4, 1), (1, 5, 1), (1, 6, 1)]);
        // Of what was delivered since then it is taken to have begun one again, until that is dead.
        let mut dead = Vec::new();
        for second in 31..=900 {
            let of = |effect| match effect {
                Effect::Dead { seq, .. } => Some(seq),
                Effect::Deliver { .. } => None,
            };
            dead.extend(group.step(MS(1000 * second)).into_iter().filter_map(of));
        }
        assert_eq!(dead, [1, 3, 4, 5, 6]);
    }
}
