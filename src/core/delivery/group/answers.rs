//! What members say of the events that they were given.
//!
//! Always holds: whoever does not hold an event changes nothing of it, but for an ack that is late: it counts from
//! the member whose time is over as long as no other was given the event. Whatever is not taken is answered with why.
//! Pure. Owner: the session of the member.

use super::members::MemberId;
use super::progress::Cause;
use super::{Event, Group, Place};
use crate::core::delivery::redelivery::Delay;
use std::time::Duration;

/// What an ack is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// These events.
    Seqs(Vec<u64>),
    /// Everything that the member holds through this seq.
    Through(u64),
}

/// Why an answer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Everything that is to be said of it was said; or it was never the group's.
    AlreadyDone,
    /// It is on its way to the dead letters.
    GivenUp,
    /// Another member holds it, or it waits for one.
    NotHeld,
    /// It was not delivered since the broker started.
    NotDelivered,
    /// No event of this seq was looked at yet.
    Unknown,
}

/// What came of an answer to several events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// What it was taken for.
    pub taken: Vec<u64>,
    /// What it was refused for, and why; nothing changed there.
    pub refused: Vec<(u64, Refused)>,
}

/// What becomes of a nacked event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is delivered again.
    Again {
        /// After so long.
        after: Duration,
    },
    /// That was the last attempt: it goes to the dead letters.
    Dead,
}

impl Group {
    /// Events are done. With [`Which::Through`], when the member holds nothing there, that seq is refused.
    pub fn ack(&mut self, member: MemberId, which: Which, now: Duration) -> Answered {
        self.clock(now);
        let seqs = match which {
            Which::Seqs(seqs) => seqs,
            Which::Through(seq) => {
                let held = self.members.held_through(member, seq);
                if held.is_empty() { vec![seq] } else { held }
            }
        };
        let mut answered = Answered::default();
        for seq in seqs {
            match self.judge(member, seq) {
                Ok(held) => {
                    let number = held.and(self.events.get(&seq)).map(|event| event.number);
                    self.finish(seq);
                    self.goes_on(member, number);
                    answered.taken.push(seq);
                }
                Err(refused) => answered.refused.push((seq, refused)),
            }
        }
        answered
    }

    /// What the member holds through this seq.
    pub fn held_through(&self, member: MemberId, seq: u64) -> Vec<u64> {
        self.members.held_through(member, seq)
    }

    /// A delivery was in vain; the event waits as `delay` says. `wall_ms` is the wall clock, by which the rest of the
    /// delay is known after a restart.
    ///
    /// # Errors
    /// The member does not hold it.
    pub fn nack(
        &mut self,
        member: MemberId,
        seq: u64,
        reason: &str,
        delay: &Delay,
        (now, wall_ms): (Duration, u64),
    ) -> Result<Fate, Refused> {
        self.clock(now);
        let attempt = self.let_go(member, seq)?;
        let after = delay.after(attempt);
        self.fail(seq, Cause::Nack, reason, after, wall_ms);
        let dead = matches!(self.events.get(&seq), Some(Event { place: Place::Dead, .. }));
        Ok(if dead { Fate::Dead } else { Fate::Again { after } })
    }

    /// The event is hopeless: it goes to the dead letters at once.
    ///
    /// # Errors
    /// The member does not hold it.
    pub fn term(&mut self, member: MemberId, seq: u64, reason: &str, now: Duration) -> Result<(), Refused> {
        self.clock(now);
        self.let_go(member, seq)?;
        self.fail(seq, Cause::Term, reason, Duration::ZERO, 0);
        Ok(())
    }

    /// The member has these begun, and each is an attempt from now on: the deadlines begin anew.
    pub fn begin(&mut self, member: MemberId, seqs: &[u64], now: Duration) -> Answered {
        let answered = self.in_progress(member, seqs, now);
        for seq in &answered.taken {
            self.events.get_mut(seq).into_iter().for_each(|event| event.is_begun = true);
        }
        answered
    }

    /// The member is still at it: the deadlines begin anew.
    pub fn in_progress(&mut self, member: MemberId, seqs: &[u64], now: Duration) -> Answered {
        self.clock(now);
        let mut answered = Answered::default();
        for &seq in seqs {
            match self.holds(member, seq) {
                Ok(until) => {
                    let anew = self.now.saturating_add(self.options.ack_timeout);
                    self.timers.clear(until, seq);
                    self.timers.set(anew, seq);
                    if let Some(event) = self.events.get_mut(&seq) {
                        event.place = Place::Held { member, until: anew };
                        // What was delivered behind it is not begun yet.
                        self.members.restart(member, event.number, self.now);
                    }
                    answered.taken.push(seq);
                }
                Err(refused) => answered.refused.push((seq, refused)),
            }
        }
        answered
    }

    /// The member is done with a delivery, and begins one behind it. Without a number it had timed out, and what it holds
    /// was delivered later.
    fn goes_on(&mut self, member: MemberId, number: Option<u64>) {
        let next = number.map_or(0, |number| number.saturating_add(1));
        self.members.restart(member, next, self.now);
    }

    /// Takes `seq` from the member that holds it. Which attempt that was.
    fn let_go(&mut self, member: MemberId, seq: u64) -> Result<u32, Refused> {
        let until = self.holds(member, seq)?;
        let event = self.events.get(&seq).ok_or(Refused::AlreadyDone)?;
        let (number, attempt) = (event.number, event.failed.saturating_add(1));
        self.timers.clear(until, seq);
        self.members.release(member, (seq, number), event.bytes);
        self.goes_on(member, Some(number));
        Ok(attempt)
    }

    /// Until when the member holds it.
    fn holds(&self, member: MemberId, seq: u64) -> Result<Duration, Refused> {
        self.judge(member, seq)?.ok_or(Refused::NotHeld)
    }

    /// Whether an ack of the member counts; until when it holds the event, if it still does.
    fn judge(&self, member: MemberId, seq: u64) -> Result<Option<Duration>, Refused> {
        let Some(event) = self.events.get(&seq) else {
            let done = seq <= self.looked || self.progress.saved().done().contains(seq);
            return Err(if done { Refused::AlreadyDone } else { Refused::Unknown });
        };
        match event.place {
            Place::Held { member: holder, until } if holder == member => Ok(Some(until)),
            Place::Waiting { late: Some(last) } if last == member => Ok(None),
            Place::Dead => Err(Refused::GivenUp),
            Place::Waiting { late: None } | Place::Behind if event.failed == 0 => Err(Refused::NotDelivered),
            _ => Err(Refused::NotHeld),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::tests::{MS, WALL, ack, delivered, group};
    use super::*;

    #[test]
    fn an_answer_that_does_not_count_says_why() {
        let mut group = group(Options::default(), &[(1, 1), (2, 1)], 4);
        group.step(MS(0));
        assert_eq!(ack(&mut group, 2, 1), Err(Refused::NotHeld));
        assert_eq!(ack(&mut group, 7, 1), Err(Refused::NotHeld));
        assert_eq!(ack(&mut group, 1, 3), Err(Refused::NotDelivered));
        assert_eq!(ack(&mut group, 1, 5), Err(Refused::Unknown));
        assert_eq!(ack(&mut group, 1, u64::MAX), Err(Refused::Unknown));
        assert_eq!(ack(&mut group, 1, 1), Ok(()));
        assert_eq!(ack(&mut group, 1, 1), Err(Refused::AlreadyDone));
        assert_eq!(ack(&mut group, 1, 0), Err(Refused::AlreadyDone));
        assert_eq!(group.nack(1, 1, "", &Delay::Doubling, (MS(0), WALL)), Err(Refused::AlreadyDone));
        assert_eq!(group.term(1, 2, "", MS(0)), Err(Refused::NotHeld));
        assert_eq!(group.term(2, 2, "broken", MS(0)), Ok(()));
        assert_eq!(ack(&mut group, 2, 2), Err(Refused::GivenUp));
        assert_eq!(group.ack(1, Which::Through(2), MS(0)).refused, [(2, Refused::GivenUp)]);
        assert_eq!(group.in_progress(1, &[3], MS(0)).refused, [(3, Refused::NotDelivered)]);
    }

    #[test]
    fn a_late_ack_counts_until_another_is_given_the_event() {
        let mut group = group(Options::default(), &[(1, 3)], 3);
        group.step(MS(0));
        group.in_progress(1, &[3], MS(10));
        assert_eq!(group.next(), Some(MS(30_000)));
        group.join(1, 1, 0);
        let effects = group.step(MS(30_000));
        assert_eq!(delivered(&effects), [], "it still holds the third");
        assert_eq!(group.in_progress(1, &[1], MS(30_000)).refused, [(1, Refused::NotHeld)]);
        assert_eq!(ack(&mut group, 2, 1), Err(Refused::NotHeld));
        assert_eq!(ack(&mut group, 1, 1), Ok(()));
        group.join(2, 1, 0);
        assert_eq!(delivered(&group.step(MS(30_001))), [(2, 2, 1)], "it was behind the first");
        assert_eq!(ack(&mut group, 1, 2), Err(Refused::NotHeld));
    }

    #[test]
    fn through_is_all_that_was_given_late_or_not() {
        let mut group = group(Options::default(), &[(1, 4)], 4);
        group.step(MS(0));
        group.join(1, 1, 0);
        assert_eq!(delivered(&group.step(MS(30_000))), [(1, 1, 2)]);
        let answered = group.ack(1, Which::Through(3), MS(30_000));
        assert_eq!(answered, Answered { taken: vec![1, 2, 3], refused: vec![] });
        assert_eq!(delivered(&group.step(MS(30_000))), [(1, 4, 1)]);
        let answered = group.ack(1, Which::Through(3), MS(30_000));
        assert_eq!(answered.refused, [(3, Refused::AlreadyDone)]);
    }
}
