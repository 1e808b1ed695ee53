//! The deliveries of one member that it did not answer, in their order: which one it is taken to have begun, and since
//! when it may hold each.
//!
//! ```text
//! number:   4        5        6        7        8
//!           oldest   └── behind it: taken to be in the member's buffer ──┘
//!           begun    an answer about 5 restarts the time of 6, 7 and 8
//! ```
//!
//! A member that handles events in the order of delivery has begun the oldest one, and cannot have begun another before
//! it answered. Always holds: a delivery is restarted by answers about those before it only; behind one that timed out
//! nothing is taken to be begun that was delivered before that, unless the member answers; after an answer there are no
//! more restarts than deliveries and one, for what goes without an answer goes oldest first. Every operation costs a
//! logarithm. Pure. Owner: `members.rs`.

use super::ranges::Ranges;
use std::collections::VecDeque;
use std::time::Duration;

/// The deliveries of one member.
#[derive(Debug, Default)]
pub struct Deliveries {
    next: u64,
    open: Ranges,
    /// From which number on the time was restarted, and when. Both ascend.
    restarts: VecDeque<(u64, Duration)>,
    /// Deliveries before this one are behind one that timed out.
    spared: u64,
}

impl Deliveries {
    /// Adds a delivery, and returns its number.
    pub fn add(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, number);
        number
    }

    /// Takes a delivery out.
    pub fn remove(&mut self, number: u64) {
        self.open.remove(number);
        if self.open.is_empty() {
            self.restarts.clear();
        }
    }

    /// Returns the delivery that the member is taken to have begun.
    pub fn begun(&self) -> Option<u64> {
        self.open.first().filter(|first| *first >= self.spared)
    }

    /// The member said something: it can have begun none of the deliveries from `from` on before `now`.
    pub fn restart(&mut self, from: u64, now: Duration) {
        self.spared = 0;
        let Some(oldest) = self.open.first() else { return };
        while self.restarts.back().is_some_and(|(first, _)| *first >= from) {
            self.restarts.pop_back();
        }
        // What is of no use to any delivery goes.
        while self.restarts.get(1).is_some_and(|(first, _)| *first <= oldest) {
            self.restarts.pop_front();
        }
        match self.restarts.back() {
            Some((_, since)) if *since == now => return,
            Some((first, _)) if self.open.next(*first).is_none_or(|open| open >= from) => {
                self.restarts.pop_back();
            }
            _ => {}
        }
        self.restarts.push_back((from, now));
    }

    /// Returns when the time of a delivery was restarted last, if it was.
    pub fn restarted(&self, number: u64) -> Option<Duration> {
        let behind = self.restarts.partition_point(|(first, _)| *first <= number);
        self.restarts.get(behind.checked_sub(1)?).map(|(_, since)| *since)
    }

    /// What the member is taken to have begun timed out: it has begun none of the others.
    pub fn spare(&mut self) {
        self.spared = self.next;
    }

    /// Forgets all deliveries; their numbers are not used again.
    pub fn clear(&mut self) {
        *self = Deliveries { next: self.next, ..Deliveries::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn behind_one_that_timed_out_nothing_is_begun_until_the_member_answers() {
        let mut deliveries = Deliveries::default();
        (0..4).for_each(|number| assert_eq!(deliveries.add(), number));
        assert_eq!(deliveries.begun(), Some(0));
        deliveries.remove(0);
        deliveries.spare();
        assert_eq!(deliveries.begun(), None);
        deliveries.restart(2, MS(1));
        assert_eq!(deliveries.begun(), Some(1));
        deliveries.spare();
        (1..4).for_each(|number| deliveries.remove(number));
        assert_eq!((deliveries.add(), deliveries.begun()), (4, Some(4)), "it was delivered later");
    }

    proptest! {
        /// The same as a time for each delivery, which is set for each restart.
        #[test]
        fn a_restart_is_of_all_from_there_on(steps in prop::collection::vec((0usize..6, any::<prop::sample::Index>(), 0u64..2), 0..200)) {
            let (mut deliveries, mut model, mut now) = (Deliveries::default(), BTreeMap::new(), 0);
            for (what, which, ms) in steps {
                now += ms;
                let numbers: Vec<u64> = model.keys().copied().collect();
                let number = if numbers.is_empty() { 0 } else { *which.get(&numbers) };
                match what {
                    0..3 => _ = model.insert(deliveries.add(), (MS(now), MS(now))),
                    // The oldest goes without an answer; another is answered, or is still under way.
                    3 => {
                        let Some((oldest, _)) = model.pop_first() else { continue };
                        deliveries.remove(oldest);
                    }
                    _ => {
                        let from = number + (what % 2) as u64;
                        if from > number && model.remove(&number).is_some() {
                            deliveries.remove(number);
                        }
                        deliveries.restart(from, MS(now));
                        model.range_mut(from..).for_each(|(_, (_, since))| *since = MS(now));
                        prop_assert!(deliveries.restarts.len() <= model.len() + 1);
                    }
                }
                // What was said before it was delivered is no matter.
                for (number, (delivered, since)) in &model {
                    prop_assert_eq!(deliveries.restarted(*number).unwrap_or_default().max(*delivered), *since);
                }
                prop_assert_eq!(deliveries.begun(), model.keys().next().copied());
            }
        }
    }
}
