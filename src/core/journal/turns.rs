//! Fair turns: a queue with a lane for each session, taken round by round.
//!
//! ```text
//! lane 1  a a a a      round 0: a b c   one item of every lane that waits,
//! lane 2  b        ──▶ round 1: a   c   in the order in which they came
//! lane 3  c c          round 2: a …
//! ```
//!
//! An item is put into its round when it comes: the one behind the last item of its lane, or the next one that is
//! taken. So both ends cost the same for one lane as for a thousand. Always holds: a lane's items come out in
//! their order; a round has one item of every lane that waits when it is taken, so whatever the others push, an
//! item waits for as many rounds as its own lane has items before it. Pure. Owner: `inbox.rs`.

use std::collections::HashMap;
use std::collections::VecDeque;

/// Lanes that do not wait are remembered up to so many more than wait.
const IDLE_LANES: usize = 64;

/// The queue.
#[derive(Debug)]
pub struct Turns<T> {
    /// The rounds that wait, and none of them is empty.
    rounds: VecDeque<Vec<T>>,
    /// The number of the first of them.
    next: u64,
    /// For each lane the round behind its last item. Below `next` it says nothing.
    behind: HashMap<u64, u64>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns { rounds: VecDeque::new(), next: 0, behind: HashMap::new() }
    }
}

impl<T> Turns<T> {
    /// Puts `item` at the end of its lane.
    pub fn push(&mut self, lane: u64, item: T) {
        let behind = self.behind.entry(lane).or_default();
        let round = self.next.max(*behind);
        *behind = round + 1;
        // A lane has an item in every round up to its last: at most one round is missing.
        match self.rounds.get_mut((round - self.next) as usize) {
            Some(round) => round.push(item),
            None => self.rounds.push_back(vec![item]),
        }
    }

    /// Takes the next round: one item of every lane that waits. `None` when none does.
    pub fn take(&mut self) -> Option<Vec<T>> {
        let round = self.rounds.pop_front()?;
        self.next += 1;
        // Every lane that waits has an item in the first round.
        let waiting = self.rounds.front().map_or(0, Vec::len);
        if self.behind.len() > 2 * waiting + IDLE_LANES {
            let next = self.next;
            self.behind.retain(|_, behind| *behind > next);
        }
        Some(round)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.rounds.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64, usize),
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let lane = prop_oneof![Just(0u64), 0u64..4, 0u64..500];
        let push = (lane, 1usize..20).prop_map(|(lane, count)| Step::Push(lane, count));
        proptest::collection::vec(prop_oneof![push, Just(Step::Take)], 0..400)
    }

    proptest! {
        /// Beside a queue for each lane that is walked lane by lane.
        #[test]
        fn a_round_is_one_of_every_lane_that_waits(steps in steps()) {
            let (mut turns, mut lanes, mut number) = (Turns::default(), BTreeMap::new(), 0u64);
            for step in steps.into_iter().chain(std::iter::repeat_n(Step::Take, 8000)) {
                match step {
                    Step::Push(lane, count) => for _ in 0..count {
                        number += 1;
                        turns.push(lane, (lane, number));
                        lanes.entry(lane).or_insert_with(VecDeque::new).push_back((lane, number));
                    },
                    Step::Take => {
                        prop_assert_eq!(turns.is_empty(), lanes.is_empty());
                        let mut want: Vec<(u64, u64)> = lanes.values_mut().filter_map(VecDeque::pop_front).collect();
                        lanes.retain(|_, lane| !lane.is_empty());
                        let mut got = turns.take().unwrap_or_default();
                        got.sort_unstable();
                        want.sort_unstable();
                        prop_assert_eq!(got, want);
                        prop_assert!(turns.behind.len() <= 2 * lanes.len() + IDLE_LANES, "lanes are forgotten");
                        if lanes.is_empty() && number > 0 {
                            // Nothing more to take until something comes.
                            prop_assert!(turns.take().is_none());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn whoever_comes_first_stands_first_in_the_round() {
        let mut turns = Turns::default();
        for (lane, item) in [(7, "a1"), (7, "a2"), (9, "b1"), (3, "c1"), (9, "b2"), (7, "a3")] {
            turns.push(lane, item);
        }
        assert_eq!(turns.take(), Some(vec!["a1", "b1", "c1"]));
        turns.push(3, "c2");
        assert_eq!(turns.take(), Some(vec!["a2", "b2", "c2"]));
        assert_eq!((turns.take(), turns.take()), (Some(vec!["a3"]), None));
    }
}
