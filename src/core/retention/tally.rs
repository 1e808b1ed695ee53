//! How many of the newest events of a rule are within its bounds.
//!
//! Events are counted in blocks of a 64th of the bound, so that what is remembered does not grow with what is counted.
//! Always holds: at least what the bounds allow is kept, and at most a block more; what was let go of does not come
//! back. Pure. Owner: `sweep.rs`.

use std::collections::VecDeque;

/// Blocks that make up a bound.
const BLOCKS: u64 = 64;

#[derive(Clone, Copy, Debug)]
struct Block {
    last: u64,
    events: u64,
    bytes: u64,
}

/// What a rule keeps.
#[derive(Debug)]
pub(super) struct Tally {
    most_bytes: u64,
    most_events: u64,
    blocks: VecDeque<Block>,
    bytes: u64,
    events: u64,
    through: u64,
}

impl Tally {
    pub fn new(bytes: Option<u64>, events: Option<u64>) -> Self {
        Tally {
            most_bytes: bytes.unwrap_or(u64::MAX),
            most_events: events.unwrap_or(u64::MAX),
            blocks: VecDeque::new(),
            bytes: 0,
            events: 0,
            through: 0,
        }
    }

    /// Nothing bounds it.
    pub fn is_free(&self) -> bool {
        self.most_bytes == u64::MAX && self.most_events == u64::MAX
    }

    /// Counts the next event, and lets go of the oldest ones that are too many.
    pub fn add(&mut self, seq: u64, bytes: u64) {
        if self.is_free() {
            return;
        }
        let most = |bound: u64| (bound / BLOCKS).max(1);
        match self.blocks.back_mut() {
            Some(block)
                if block.events < most(self.most_events)
                    && block.bytes.saturating_add(bytes) <= most(self.most_bytes) =>
            {
                *block = Block { last: seq, events: block.events + 1, bytes: block.bytes + bytes };
            }
            _ => self.blocks.push_back(Block { last: seq, events: 1, bytes }),
        }
        (self.events, self.bytes) = (self.events + 1, self.bytes + bytes);
        while let Some(first) = self.blocks.front()
            && (self.events - first.events >= self.most_events || self.bytes - first.bytes >= self.most_bytes)
        {
            self.through = first.last;
            self.drop_first();
        }
    }

    /// The journal does not have what is before `first` any more.
    pub fn forget(&mut self, first: u64) {
        while self.blocks.front().is_some_and(|block| block.last < first) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(block) = self.blocks.pop_front() {
            (self.events, self.bytes) = (self.events - block.events, self.bytes - block.bytes);
        }
    }

    /// What is too much: everything of the rule through this seq.
    pub fn through(&self) -> u64 {
        self.through
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never less than the bounds allow, never more than a block more, however large the events are.
        #[test]
        fn keeps_what_the_bounds_allow_and_little_more(
            sizes in proptest::collection::vec(1u64..400, 1..600),
            most_events in 1u64..300, most_bytes in 400u64..20_000,
        ) {
            let mut tally = Tally::new(Some(most_bytes), Some(most_events));
            for (i, size) in sizes.iter().enumerate() {
                tally.add(i as u64 + 1, *size);
                let kept = &sizes[tally.through() as usize..=i];
                let bytes: u64 = kept.iter().sum();
                let room = |events: u64, bytes: u64| events <= most_events.div_ceil(BLOCKS) + most_events
                    && bytes <= most_bytes + (most_bytes / BLOCKS).max(400) + 400;
                prop_assert!(room(kept.len() as u64, bytes), "{} {bytes}", kept.len());
                // With one event more on the left it would be too much, by a block at the most.
                if tally.through() > 0 {
                    prop_assert!(kept.len() as u64 >= most_events || bytes >= most_bytes);
                }
                prop_assert!(tally.blocks.len() as u64 <= 4 * BLOCKS + 4);
            }
        }
    }

    #[test]
    fn a_small_count_is_exact_and_what_is_gone_is_not_counted() {
        let mut tally = Tally::new(None, Some(3));
        (1..=5).for_each(|seq| tally.add(seq * 10, 100));
        assert_eq!(tally.through(), 20);
        tally.forget(41);
        tally.add(60, 100);
        tally.add(70, 100);
        assert_eq!(tally.through(), 20);
        tally.add(80, 100);
        assert_eq!(tally.through(), 50);
    }
}
