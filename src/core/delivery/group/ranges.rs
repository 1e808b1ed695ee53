//! Seqs as ranges: what of a group is done beyond its cursor, what a member holds, what is due at one time.
//!
//! Always holds: no two ranges touch or overlap; every operation costs the logarithm of how many there are, and what
//! it takes out. Pure. Owner: `progress.rs`, `members.rs`, `deliveries.rs` and `redelivery.rs`, each its own.

use std::collections::BTreeMap;

/// A set of seqs as ranges, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds all from `from` through `to`; nothing when that is backwards.
    pub fn insert(&mut self, mut from: u64, mut to: u64) {
        if from > to {
            return;
        }
        // Mostly it goes on where the last one ends.
        if let Some(mut end) = self.0.last_entry()
            && end.get().checked_add(1) == Some(from)
        {
            end.insert(to);
            return;
        }
        while let Some((&first, &last)) = self.0.range(..=to.saturating_add(1)).next_back()
            && last.saturating_add(1) >= from
        {
            self.0.remove(&first);
            (from, to) = (from.min(first), to.max(last));
        }
        self.0.insert(from, to);
    }

    /// Whether `seq` is in one of them.
    pub fn contains(&self, seq: u64) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(_, last)| *last >= seq)
    }

    /// Takes out everything through `seq`, and the range that goes on from there. The last seq of it, or `seq`.
    pub fn trim(&mut self, seq: u64) -> u64 {
        let mut through = seq;
        while let Some(range) = self.0.first_entry()
            && *range.key() <= through.saturating_add(1)
        {
            through = through.max(range.remove());
        }
        through
    }

    /// Takes one out; false when it was not in.
    pub fn remove(&mut self, seq: u64) -> bool {
        let Some((&first, last)) = self.0.range_mut(..=seq).next_back() else { return false };
        let end = *last;
        if end < seq {
            return false;
        }
        if first < seq {
            *last = seq - 1;
        } else {
            self.0.remove(&first);
        }
        if seq < end {
            self.0.insert(seq + 1, end);
        }
        true
    }

    /// Returns the first seq.
    pub fn first(&self) -> Option<u64> {
        self.0.first_key_value().map(|(first, _)| *first)
    }

    /// Returns the first seq from `seq` on.
    pub fn next(&self, seq: u64) -> Option<u64> {
        if self.contains(seq) {
            return Some(seq);
        }
        self.0.range(seq..).next().map(|(first, _)| *first)
    }

    /// Takes the first seq out.
    pub fn pop_seq(&mut self) -> Option<u64> {
        let first = *self.0.first_key_value()?.0;
        self.remove(first);
        Some(first)
    }

    /// Each of those through `seq`, in order.
    pub fn through(&self, seq: u64) -> impl Iterator<Item = u64> {
        self.0.range(..=seq).flat_map(move |(first, last)| *first..=(*last).min(seq))
    }

    /// Takes the first range out.
    pub fn pop(&mut self) -> Option<(u64, u64)> {
        self.0.pop_first()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn they_are_the_set_of_what_was_inserted(
            steps in proptest::collection::vec((0u64..60, 0u64..6, 0u64..70, 0u64..99), 0..40),
        ) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (from, more, cut, one) in steps {
                ranges.insert(from, from + more);
                set.extend(from..=from + more);
                if cut < 8 {
                    let mut last = cut;
                    while set.contains(&(last + 1)) {
                        last += 1;
                    }
                    prop_assert_eq!(ranges.trim(cut), last);
                    set = set.split_off(&(last + 1));
                }
                prop_assert_eq!(ranges.remove(one), set.remove(&one));
                prop_assert_eq!((ranges.first(), ranges.next(one)), (set.first().copied(), set.range(one..).next().copied()));
                prop_assert!(ranges.through(one).eq(set.range(..=one).copied()));
                if one > 80 {
                    prop_assert_eq!(ranges.pop_seq(), set.pop_first());
                }
                for seq in 0..70 {
                    prop_assert_eq!(ranges.contains(seq), set.contains(&seq));
                }
                let parts: Vec<_> = ranges.iter().collect();
                prop_assert!(parts.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", parts);
            }
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_seqs_too() {
        let mut ranges = Ranges::default();
        ranges.insert(u64::MAX, u64::MAX);
        ranges.insert(0, 0);
        ranges.insert(5, 4);
        assert!(ranges.contains(u64::MAX) && ranges.contains(0) && !ranges.contains(4));
        assert!(ranges.clone().remove(u64::MAX) && ranges.clone().remove(0));
        ranges.insert(u64::MAX - 1, u64::MAX);
        assert!(ranges.through(u64::MAX).eq([0, u64::MAX - 1, u64::MAX]));
        assert_eq!(ranges.trim(u64::MAX), u64::MAX);
        assert!(ranges.is_empty());
    }
}
