//! Which events a subscriber saw: each once, in order, or not.
//!
//! Always holds: memory is bounded, however much is missing. Pure. Owner: a bench's subscriber.

use std::ops::Range;

/// So many ranges of missing events are remembered; one that comes later than that counts as repeated.
const HOLES: usize = 4096;

/// What one subscriber saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Different events.
    pub events: u64,
    /// Events that came again.
    pub repeated: u64,
    /// Events that came behind a later one.
    pub out_of_order: u64,
    next: u64,
    holes: Vec<Range<u64>>,
}

impl Seen {
    /// Event `number` came; the first one is 0.
    pub fn take(&mut self, number: u64) {
        if number >= self.next {
            if number > self.next && self.holes.len() < HOLES {
                self.holes.push(self.next..number);
            }
            self.next = number + 1;
            self.events += 1;
            return;
        }
        let Some(at) = self.holes.iter().position(|hole| hole.contains(&number)) else {
            self.repeated += 1;
            return;
        };
        let hole = self.holes.swap_remove(at);
        let parts = [hole.start..number, number + 1..hole.end];
        self.holes.extend(parts.into_iter().filter(|part| !part.is_empty()));
        self.events += 1;
        self.out_of_order += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_counts_as_a_set_does(numbers in proptest::collection::vec(0u64..60, 0..120)) {
            let (mut seen, mut set, mut late, mut again) = (Seen::default(), BTreeSet::new(), 0, 0);
            for number in numbers {
                let is_late = set.last().is_some_and(|last| number < *last);
                match set.insert(number) {
                    false => again += 1,
                    true => late += u64::from(is_late),
                }
                seen.take(number);
            }
            prop_assert_eq!((seen.events, seen.repeated, seen.out_of_order), (set.len() as u64, again, late));
        }
    }

    #[test]
    fn every_second_event_missing_takes_no_more_memory_than_a_few() {
        let mut seen = Seen::default();
        (0..100_000).for_each(|n| seen.take(2 * n));
        assert_eq!((seen.events, seen.holes.len()), (100_000, HOLES));
    }
}
