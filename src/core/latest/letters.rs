//! Dead letters: how many are kept, and which go when there are too many.
//!
//! ```text
//! a letter comes ─▶ its group is beyond a group's bound ─▶ the oldest of that group go
//!               └─▶ all are beyond the bound of all     ─▶ the oldest of the group that has most go
//! ```
//!
//! Always holds: the sizes are those of the rows; a group loses letters to its own newer ones, or as the one that has
//! most, so nobody pushes out another's with fewer (invariant 6). Pure. Owner: `store.rs`.

use crate::core::limits::{LETTERS, LETTERS_BYTES_LEAST, LETTERS_OF_GROUP, LETTERS_SHARE};
use std::collections::{BTreeMap, BTreeSet};

/// How the topic of a group's dead letters begins.
const TOPIC: &str = "$dlq.";

/// The group whose dead letters a topic has.
pub(super) fn group_of(topic: &str) -> Option<&str> {
    topic.strip_prefix(TOPIC)
}

/// Letters, and what their lines take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub rows: u64,
    pub bytes: u64,
}

impl Size {
    fn exceeds(self, most: Size) -> bool {
        self.rows > most.rows || self.bytes > most.bytes
    }
}

/// The most letters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Of one group.
    pub group: Size,
    /// Of all groups.
    pub all: Size,
}

impl Bounds {
    /// Beside a journal that may take so many bytes.
    pub fn beside(retain_bytes: u64) -> Self {
        let share = |of: u64| (of / LETTERS_SHARE).max(LETTERS_BYTES_LEAST);
        let all = share(retain_bytes);
        Bounds {
            group: Size { rows: LETTERS_OF_GROUP, bytes: share(all) },
            all: Size { rows: LETTERS, bytes: all },
        }
    }
}

/// The letters of one group.
#[derive(Debug)]
struct Group {
    name: Box<str>,
    /// What each takes, by its own seq.
    letters: BTreeMap<u64, u64>,
    bytes: u64,
    /// How many were dropped.
    dropped: u64,
}

impl Group {
    fn size(&self) -> Size {
        Size { rows: self.letters.len() as u64, bytes: self.bytes }
    }
}

/// All letters, without their lines.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// By the number of their topic.
    groups: BTreeMap<i64, Group>,
    all: Size,
    /// Groups that got one, and may be beyond their bound.
    grown: BTreeSet<i64>,
}

impl Letters {
    /// A letter of the group `name`, whose topic has the number `n`.
    pub fn came(&mut self, n: i64, name: &str, seq: u64, bytes: u64) {
        let group = || Group { name: name.into(), letters: BTreeMap::new(), bytes: 0, dropped: 0 };
        let group = self.groups.entry(n).or_insert_with(group);
        if group.letters.insert(seq, bytes).is_none() {
            group.bytes += bytes;
            self.all = Size { rows: self.all.rows + 1, bytes: self.all.bytes + bytes };
            self.grown.insert(n);
        }
    }

    /// The letter of this seq is gone, if there was one.
    pub fn went(&mut self, n: i64, seq: u64) {
        let Some(group) = self.groups.get_mut(&n) else { return };
        let Some(bytes) = group.letters.remove(&seq) else { return };
        group.bytes -= bytes;
        self.all = Size { rows: self.all.rows - 1, bytes: self.all.bytes - bytes };
        if group.letters.is_empty() {
            self.groups.remove(&n);
        }
    }

    /// Takes out the letter that has to go next: its topic's number, its seq and bytes.
    pub fn drop_next(&mut self, bounds: &Bounds) -> Option<(i64, u64, u64)> {
        let exceeds = |n: &i64| self.groups.get(n).is_some_and(|group| group.size().exceeds(bounds.group));
        while let Some(n) = self.grown.first().copied() {
            if exceeds(&n) {
                return self.drop_oldest(n);
            }
            self.grown.remove(&n);
        }
        if !self.all.exceeds(bounds.all) {
            return None;
        }
        // By what is too much; the older group of two that have as much.
        let by_bytes = self.all.bytes > bounds.all.bytes;
        let has = |group: &Group| if by_bytes { group.bytes } else { group.letters.len() as u64 };
        let most = self.groups.iter().max_by_key(|(n, group)| (has(group), -**n));
        let n = most.map(|(n, _)| *n)?;
        self.drop_oldest(n)
    }

    fn drop_oldest(&mut self, n: i64) -> Option<(i64, u64, u64)> {
        let group = self.groups.get_mut(&n)?;
        group.dropped += 1;
        let (seq, bytes) = group.letters.first_key_value().map(|(seq, bytes)| (*seq, *bytes))?;
        self.went(n, seq);
        Some((n, seq, bytes))
    }

    /// What all take.
    pub fn size(&self) -> Size {
        self.all
    }

    /// Groups that lost letters and have some, with how many they lost.
    pub fn dropped(&self) -> BTreeMap<Box<str>, u64> {
        let lost = self.groups.values().filter(|group| group.dropped > 0);
        lost.map(|group| (group.name.clone(), group.dropped)).collect()
    }

    /// So many were dropped before, by group.
    pub fn remember(&mut self, dropped: &BTreeMap<Box<str>, u64>) {
        for group in self.groups.values_mut() {
            group.dropped = dropped.get(&group.name).copied().unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_follow_what_the_journal_may_take() {
        let of = |mib: u64| {
            let bounds = Bounds::beside(mib << 20);
            (bounds.group.bytes >> 20, bounds.all.bytes >> 20)
        };
        assert_eq!([of(1024), of(64), of(4), of(1)], [(64, 256), (4, 16), (1, 1), (1, 1)]);
    }

    proptest! {
        /// Whatever comes and goes: the sizes are right, nothing is beyond a bound, and only the oldest go of a group that
        /// has too many or has most.
        #[test]
        fn the_oldest_go_and_only_of_those_that_have_too_many(
            steps in proptest::collection::vec((0..4i64, 1..9u64, 0..5u8), 1..120),
            (rows, bytes) in (1..6u64, 8..30u64),
        ) {
            let group = Size { rows, bytes };
            let bounds = Bounds { group, all: Size { rows: 2 * rows, bytes: 2 * bytes } };
            let (mut letters, mut kept) = (Letters::default(), BTreeMap::<i64, BTreeMap<u64, u64>>::new());
            for (i, (n, bytes, end)) in steps.into_iter().enumerate() {
                let seq = i as u64 + 1;
                if end == 0 {
                    let oldest = kept.get(&n).and_then(|of| of.keys().next().copied());
                    letters.went(n, oldest.unwrap_or(seq));
                    kept.entry(n).or_default().remove(&oldest.unwrap_or(seq));
                } else {
                    letters.came(n, &format!("g{n}"), seq, bytes);
                    kept.entry(n).or_default().insert(seq, bytes);
                }
                let size = |of: &BTreeMap<u64, u64>| Size { rows: of.len() as u64, bytes: of.values().sum() };
                while let Some((n, seq, bytes)) = letters.drop_next(&bounds) {
                    let own = size(&kept[&n]);
                    let has_most = kept.values().map(size).all(|of| of.rows <= own.rows || of.bytes <= own.bytes);
                    prop_assert!(own.exceeds(bounds.group) || has_most);
                    prop_assert_eq!(kept.get_mut(&n).unwrap().pop_first(), Some((seq, bytes)));
                }
                let all = kept.values().flat_map(BTreeMap::values);
                let all = Size { rows: all.clone().count() as u64, bytes: all.sum() };
                prop_assert_eq!(letters.size(), all);
                prop_assert!(!all.exceeds(bounds.all));
                for of in kept.values() {
                    prop_assert!(!size(of).exceeds(bounds.group));
                }
            }
        }
    }

    #[test]
    fn a_group_pushes_out_its_own_letters_and_else_those_of_the_largest() {
        let bounds = Bounds { group: Size { rows: 4, bytes: 1000 }, all: Size { rows: 6, bytes: 1000 } };
        let mut letters = Letters::default();
        let drop_all = |letters: &mut Letters| {
            std::iter::from_fn(|| letters.drop_next(&bounds)).map(|(n, seq, _)| (n, seq)).collect::<Vec<_>>()
        };
        for seq in 1..=6 {
            letters.came(1, "flood", seq, 10);
        }
        assert_eq!(drop_all(&mut letters), [(1, 1), (1, 2)]);
        letters.came(2, "quiet", 7, 10);
        letters.came(2, "quiet", 8, 10);
        assert_eq!(drop_all(&mut letters), []);
        // One more of the quiet one: the flood gives way, however old the other's letters are.
        letters.came(2, "quiet", 9, 10);
        assert_eq!(drop_all(&mut letters), [(1, 3)]);
        assert_eq!(letters.dropped(), BTreeMap::from([("flood".into(), 3)]));
    }
}
