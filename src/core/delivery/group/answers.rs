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
                Ok(_) => {
                    self.finish(seq);
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

    /// A delivery was in vain; the event waits as `delay` says.
    ///
    /// # Errors
    /// The member does not hold it.
    pub fn nack(
        &mut self,
        member: MemberId,
        seq: u64,
        reason: &str,
        delay: &Delay,
        now: Duration,
    ) -> Result<Fate, Refused> {
        self.clock(now);
        let attempt = self.let_go(member, seq)?;
        let after = delay.after(attempt);
        self.fail(seq, Cause::Nack, reason, after, None);
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
        self.fail(seq, Cause::Term, reason, Duration::ZERO, None);
        Ok(())
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
                    }
                    answered.taken.push(seq);
                }
                Err(refused) => answered.refused.push((seq, refused)),
            }
        }
        answered
    }

    /// Takes `seq` from the member that holds it. Which attempt that was.
    fn let_go(&mut self, member: MemberId, seq: u64) -> Result<u32, Refused> {
        let until = self.holds(member, seq)?;
        let event = self.events.get(&seq).ok_or(Refused::AlreadyDone)?;
        self.timers.clear(until, seq);
        self.members.release(member, seq, event.bytes);
        Ok(event.failed.saturating_add(1))
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
            Place::Waiting { .. } | Place::Behind if event.failed == 0 => Err(Refused::NotDelivered),
            _ => Err(Refused::NotHeld),
        }
    }
}
