//! Which ids were seen: the last [`SEEN_IDS`] that the publishers of each VM gave, and the seqs of their events.
//!
//! ```text
//! add ──▶ known, not durable ──keep──▶ seen
//!                            ──forget─▶ as if it had never come; what gave way for it is back
//! ```
//!
//! An event whose id is known is a repeat: it has the seq of the first one and is not written. Always holds: an
//! id is found from its `add` on until so many others of its VM were added, or until its VM gave none for longer
//! than [`SEEN_VMS`] others; what was forgotten left no trace. An id is kept as 128 bits of two hashes whose keys
//! nobody outside knows, so a false repeat is not to be expected, nor to be made. Pure. Owner: `writer.rs`, and
//! `refill.rs` before it.

use crate::core::limits::{SEEN_IDS, SEEN_VMS};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// The table.
#[derive(Debug, Default)]
pub struct Seen {
    keys: [RandomState; 2],
    /// Where the ring of each VM is.
    vms: HashMap<Box<[u8]>, usize>,
    rings: Vec<Ring>,
    /// The rings that were added to since the last `keep`, in order, and what gave way there.
    undo: Vec<(usize, Option<Known>)>,
}

/// The ids of one VM.
#[derive(Debug, Default)]
struct Ring {
    /// The low bits of each hash: all of them are looked through for every id.
    marks: Vec<u32>,
    known: Vec<Known>,
    /// How many were ever added: the next one's place, around the ring.
    added: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    hash: [u64; 2],
    seq: u64,
}

impl Seen {
    /// The seq of the event of `vm` that has this `id`.
    pub fn find(&self, vm: &[u8], id: &[u8]) -> Option<u64> {
        self.rings[*self.vms.get(vm)?].find(self.hash(id))
    }

    /// The same; when there is none, the event `seq` has it from now on.
    pub fn find_or_add(&mut self, vm: &[u8], id: &[u8], seq: u64) -> Option<u64> {
        let (hash, ring) = (self.hash(id), self.ring_of(vm));
        let found = self.rings[ring].find(hash);
        if found.is_none() {
            let old = self.rings[ring].add(Known { hash, seq });
            self.undo.push((ring, old));
        }
        found
    }

    /// The event `seq` of `vm` is durable and has this `id`, the same as an older one or not. Only while nothing was
    /// added that may still be forgotten.
    pub fn add(&mut self, vm: &[u8], id: &[u8], seq: u64) {
        let (hash, ring) = (self.hash(id), self.ring_of(vm));
        // It is stored: nothing brings back what gives way.
        self.rings[ring].add(Known { hash, seq });
    }

    fn ring_of(&mut self, vm: &[u8]) -> usize {
        match self.vms.get(vm) {
            Some(ring) => *ring,
            None => {
                self.vms.insert(vm.into(), self.rings.len());
                self.rings.push(Ring::default());
                self.rings.len() - 1
            }
        }
    }

    /// What was added is durable.
    pub fn keep(&mut self) {
        self.undo.clear();
        // Some more than the bound may be in the table, so that the oldest are looked for once in a while.
        if self.rings.len() > SEEN_VMS + SEEN_VMS / 8 {
            self.forget_silent();
        }
    }

    /// What was added since the last `keep` is not stored.
    pub fn forget(&mut self) {
        for (ring, old) in self.undo.drain(..).rev() {
            self.rings[ring].take_back(old);
        }
        // New ones stand last, and nothing that they had was kept.
        let kept = self.rings.iter().rposition(|ring| ring.added > 0).map_or(0, |last| last + 1);
        if kept < self.rings.len() {
            self.rings.truncate(kept);
            self.vms.retain(|_, ring| *ring < kept);
        }
    }

    /// Lets the VMs go whose newest id is the oldest.
    fn forget_silent(&mut self) {
        let mut newest: Vec<u64> = self.rings.iter().map(Ring::newest).collect();
        let (_, from, _) = newest.select_nth_unstable(self.rings.len() - SEEN_VMS);
        let from = *from;
        let mut rings = std::mem::take(&mut self.rings);
        self.vms.retain(|_, ring| {
            let old = std::mem::take(&mut rings[*ring]);
            let keep = old.newest() >= from;
            if keep {
                *ring = self.rings.len();
                self.rings.push(old);
            }
            keep
        });
    }

    fn hash(&self, id: &[u8]) -> [u64; 2] {
        self.keys.each_ref().map(|key| key.hash_one(id))
    }
}

impl Ring {
    fn find(&self, hash: [u64; 2]) -> Option<u64> {
        const STEP: usize = 32;
        let mark = hash[0] as u32;
        for (at, marks) in (0..).step_by(STEP).zip(self.marks.chunks(STEP)) {
            // Without an early end it is a few vector instructions.
            if marks.iter().fold(false, |hit, other| hit | (*other == mark)) {
                let known = &self.known[at..at + marks.len()];
                if let Some(known) = known.iter().find(|known| known.hash == hash) {
                    return Some(known.seq);
                }
            }
        }
        None
    }

    /// What it took the place of comes back.
    fn add(&mut self, new: Known) -> Option<Known> {
        let place = (self.added % SEEN_IDS as u64) as usize;
        self.added += 1;
        if place == self.known.len() {
            self.marks.push(new.hash[0] as u32);
            self.known.push(new);
            return None;
        }
        self.marks[place] = new.hash[0] as u32;
        Some(std::mem::replace(&mut self.known[place], new))
    }

    fn take_back(&mut self, old: Option<Known>) {
        self.added -= 1;
        let place = (self.added % SEEN_IDS as u64) as usize;
        match old {
            Some(old) => {
                self.marks[place] = old.hash[0] as u32;
                self.known[place] = old;
            }
            None => {
                self.marks.pop();
                self.known.pop();
            }
        }
    }

    fn newest(&self) -> u64 {
        self.known.iter().map(|known| known.seq).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Every id in its order, by VM, and nothing clever.
    #[derive(Clone, Default)]
    struct Naive(BTreeMap<u8, Vec<(u16, u64)>>);

    impl Naive {
        fn find(&self, vm: u8, id: u16) -> Option<u64> {
            let last = self.0.get(&vm)?.iter().rev().take(SEEN_IDS);
            last.rev().find(|known| known.0 == id).map(|known| known.1)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8, u16),
        /// So many ids in a row.
        Run(u8, u16, u16),
        Keep,
        Forget,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u8..4, 0u16..400).prop_map(|(vm, id)| Step::Add(vm, id)),
            3 => (0u8..4, 0u16..400, 1u16..300).prop_map(|(vm, id, n)| Step::Run(vm, id, n)),
            2 => Just(Step::Keep),
            2 => Just(Step::Forget),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn it_knows_what_a_naive_one_knows(steps in steps()) {
            let (mut seen, mut naive, mut next) = (Seen::default(), Naive::default(), 1);
            let mut kept = (naive.clone(), next);
            for step in steps {
                let (vm, ids) = match step {
                    Step::Add(vm, id) => (vm, id..id + 1),
                    Step::Run(vm, from, count) => (vm, from..from + count),
                    Step::Keep => {
                        seen.keep();
                        kept = (naive.clone(), next);
                        continue;
                    }
                    Step::Forget => {
                        seen.forget();
                        (naive, next) = kept.clone();
                        continue;
                    }
                };
                for id in ids {
                    let want = naive.find(vm, id);
                    prop_assert_eq!(seen.find(&[vm], &id.to_le_bytes()), want);
                    prop_assert_eq!(seen.find_or_add(&[vm], &id.to_le_bytes(), next), want);
                    if want.is_none() {
                        naive.0.entry(vm).or_default().push((id, next));
                        next += 1;
                    }
                }
            }
            for (vm, id) in (0..4u8).flat_map(|vm| (0..700u16).map(move |id| (vm, id))) {
                prop_assert_eq!(seen.find(&[vm], &id.to_le_bytes()), naive.find(vm, id), "{} {}", vm, id);
            }
        }
    }

    #[test]
    fn the_longest_silent_vms_give_way() {
        let mut seen = Seen::default();
        let vm = |n: usize| format!("vm{n}");
        let most = SEEN_VMS + SEEN_VMS / 8;
        for n in 0..most {
            assert_eq!(seen.find_or_add(vm(n).as_bytes(), b"a", 1 + n as u64), None);
        }
        seen.keep();
        // The first of them speaks once more, then there is one too many.
        assert_eq!(seen.find_or_add(b"vm0", b"b", 100_000), None);
        assert_eq!(seen.find_or_add(b"new", b"a", 100_001), None);
        assert_eq!(seen.rings.len(), most + 1);
        seen.forget();
        assert_eq!((seen.rings.len(), seen.vms.len()), (most, most));
        assert_eq!(seen.find_or_add(b"vm0", b"b", 100_000), None);
        assert_eq!(seen.find_or_add(b"new", b"a", 100_001), None);
        seen.keep();
        assert_eq!((seen.rings.len(), seen.vms.len()), (SEEN_VMS, SEEN_VMS));
        let known = |n: usize| seen.find(vm(n).as_bytes(), b"a");
        assert_eq!(
            (known(0), seen.find(b"vm0", b"b"), seen.find(b"new", b"a")),
            (Some(1), Some(100_000), Some(100_001))
        );
        let gone = most + 1 - SEEN_VMS;
        assert!((1..=gone).all(|n| known(n).is_none()));
        assert!((gone + 1..most).all(|n| known(n) == Some(1 + n as u64)));
    }

    #[test]
    fn one_id_of_two_vms_is_two_ids() {
        let mut seen = Seen::default();
        assert_eq!(seen.find_or_add(b"a", b"1", 1), None);
        assert_eq!(seen.find_or_add(b"b", b"1", 2), None);
        assert_eq!((seen.find(b"a", b"1"), seen.find(b"b", b"1")), (Some(1), Some(2)));
        assert_eq!((seen.find(b"c", b"1"), seen.find(b"a", b"2")), (None, None));
    }
}
