//! A group in figures: how much it takes, how far it is, why it stands.
//!
//! Always holds: asking changes nothing, and costs the same however much there is. Pure. Owner: the task of the group.

use super::Group;
use crate::core::limits::GROUP_WAITING;

/// A group in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Members.
    pub members: usize,
    /// Events that members hold.
    pub in_flight: usize,
    /// Events that can go out as soon as somebody takes them.
    pub waiting: usize,
    /// Events that wait for another of their key.
    pub behind: usize,
    /// Events that wait for the end of a delay.
    pub delayed: usize,
    /// Events whose dead letter is not durable.
    pub dead: usize,
    /// Everything through this seq is done.
    pub cursor: u64,
    /// Everything through this seq was offered or passed.
    pub looked: u64,
    /// How many ranges beyond the cursor are done.
    pub done_ranges: usize,
}

/// Why nothing is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Nobody is there to take it.
    NoMembers,
    /// Every member holds as much as it takes.
    InFlightFull,
    /// As many as may wait do so for the end of a delay, for another of their key, or for their dead letter.
    WaitingFull,
}

impl Group {
    /// How many events may be offered now; none without members. It grows when [`Group::step`] delivers, when events
    /// are done, and when somebody joins.
    pub fn room(&self) -> usize {
        if self.members.is_empty() {
            return 0;
        }
        let all = GROUP_WAITING.saturating_sub(self.events.len().saturating_sub(self.members.in_flight()));
        if self.options.ordered_by_key {
            return all;
        }
        let ahead = (self.batch() * 2).saturating_add(self.members.places());
        all.min(ahead.saturating_sub(self.queue.len()))
    }

    /// The group in figures.
    pub fn counts(&self) -> Counts {
        let (in_flight, waiting) = (self.members.in_flight(), self.queue.len());
        let elsewhere = in_flight + waiting + self.delayed + self.dead;
        Counts {
            members: self.members.len(),
            in_flight,
            waiting,
            behind: self.events.len().saturating_sub(elsewhere),
            delayed: self.delayed,
            dead: self.dead,
            cursor: self.progress.saved().cursor(),
            looked: self.looked,
            done_ranges: self.progress.saved().done().len(),
        }
    }

    /// Why nothing more is delivered, whether there is more or not; none when nothing is in the way.
    pub fn stalled(&self) -> Option<Stall> {
        if self.members.is_empty() {
            return Some(Stall::NoMembers);
        }
        if !self.members.have_room() {
            return Some(Stall::InFlightFull);
        }
        (self.queue.is_empty() && self.room() == 0).then_some(Stall::WaitingFull)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::tests::{MS, WALL, delivered};
    use super::*;
    use crate::core::delivery::redelivery::Delay;
    use std::time::Duration;

    #[test]
    fn it_says_how_much_it_takes_and_why_it_stands() {
        let mut group = Group::new(Options { batch: 10, ..Options::default() }, 0);
        assert_eq!((group.room(), group.stalled()), (0, Some(Stall::NoMembers)));
        group.join(1, 5, usize::MAX);
        assert_eq!((group.room(), group.stalled()), (25, None));
        for seq in 1..=25 {
            group.offer(seq, None, 1);
        }
        assert_eq!((group.room(), group.next()), (0, Some(Duration::ZERO)));
        assert_eq!(delivered(&group.step(MS(0))).len(), 5);
        assert_eq!((group.room(), group.stalled()), (0, Some(Stall::InFlightFull)));
        let mut seq = 25;
        // Whoever nacks all has as many waiting as may.
        while group.stalled() != Some(Stall::WaitingFull) {
            for held in group.members.held_through(1, u64::MAX) {
                assert!(group.nack(1, held, "", &Delay::One(60_000), (MS(0), WALL)).is_ok());
            }
            for _ in 0..group.room() {
                seq += 1;
                group.offer(seq, None, 1);
            }
            group.step(MS(0));
            assert!(seq < 9000, "{:?}", group.counts());
        }
        assert_eq!((group.counts().delayed, group.room()), (GROUP_WAITING, 0));
        assert_eq!(delivered(&group.step(MS(60_000))).len(), 5);
    }
}
