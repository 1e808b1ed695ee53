//! When an event of a group is delivered again: the delays after a nack, and the times that something is due at.
//!
//! Always holds: a delay is known from the attempt alone; what is due is found in order of its time, and taken out at
//! the cost of a logarithm. Pure: times are arguments, monotonic, since some start. Owner: `group.rs`.

use super::group::ranges::Ranges;
use crate::core::limits::{NACK_DELAY, NACK_DELAY_LONGEST, NACK_DELAY_SET};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a nacked event waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Delay {
    /// [`NACK_DELAY`], twice as long at each attempt, up to [`NACK_DELAY_LONGEST`].
    #[default]
    Doubling,
    /// So many milliseconds.
    One(u64),
    /// So many milliseconds after the first attempt, the second …; the last one counts for all further ones.
    List(Vec<u64>),
}

impl Delay {
    /// The wait after attempt `attempt` (the first is 1) was nacked; [`NACK_DELAY_SET`] at the most.
    pub fn after(&self, attempt: u32) -> Duration {
        let before = attempt.saturating_sub(1);
        let set = match self {
            Delay::Doubling => None,
            Delay::One(ms) => Some(*ms),
            Delay::List(list) => list.get(before as usize).or(list.last()).copied(),
        };
        match set {
            Some(ms) => Duration::from_millis(ms).min(NACK_DELAY_SET),
            None => {
                let times = 1u32.checked_shl(before).unwrap_or(u32::MAX);
                NACK_DELAY.saturating_mul(times).min(NACK_DELAY_LONGEST)
            }
        }
    }
}

/// Deadlines of deliveries and ends of delays, each of one event: many have the same, for they were handed out together.
#[derive(Debug, Default)]
pub struct Timers(BTreeMap<Duration, Ranges>);

impl Timers {
    /// Something happens to `seq` at `at`.
    pub fn set(&mut self, at: Duration, seq: u64) {
        self.0.entry(at).or_default().insert(seq, seq);
    }

    /// It does not.
    pub fn clear(&mut self, at: Duration, seq: u64) {
        let Some(due) = self.0.get_mut(&at) else { return };
        due.remove(seq);
        if due.is_empty() {
            self.0.remove(&at);
        }
    }

    /// The time of the first.
    pub fn next(&self) -> Option<Duration> {
        self.0.first_key_value().map(|(at, _)| *at)
    }

    /// Takes the first out that is due.
    pub fn due(&mut self, now: Duration) -> Option<u64> {
        let mut first = self.0.first_entry().filter(|first| *first.key() <= now)?;
        let seq = first.get_mut().pop_seq();
        if first.get().is_empty() {
            first.remove();
        }
        seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_or_is_what_was_named() {
        let ms = |delay: &Delay| -> Vec<u128> { (1..=9).map(|n| delay.after(n).as_millis()).collect() };
        let doubling = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000];
        assert_eq!(ms(&Delay::Doubling), doubling);
        assert_eq!(ms(&Delay::List(Vec::new())), doubling, "an empty list names none");
        assert_eq!(ms(&Delay::One(7)), [7; 9]);
        assert_eq!(ms(&Delay::List(vec![10, 0, 30])), [10, 0, 30, 30, 30, 30, 30, 30, 30]);
        assert_eq!(Delay::One(u64::MAX).after(1), NACK_DELAY_SET);
        assert_eq!(Delay::Doubling.after(u32::MAX), NACK_DELAY_LONGEST);
        assert_eq!(Delay::Doubling.after(0), NACK_DELAY);
    }

    #[test]
    fn what_is_due_comes_in_order_of_its_time() {
        let mut timers = Timers::default();
        let at = Duration::from_millis;
        for (ms, seq) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
            timers.set(at(ms), seq);
        }
        timers.clear(at(20), 3);
        assert_eq!((timers.next(), timers.due(at(9))), (Some(at(10)), None));
        assert_eq!([timers.due(at(30)), timers.due(at(30)), timers.due(at(30))], [Some(2), Some(4), Some(1)]);
        assert_eq!((timers.next(), timers.due(at(99))), (None, None));
    }
}
