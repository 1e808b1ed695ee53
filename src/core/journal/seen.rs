//! Which ids were seen: the last [`SEEN_IDS`] that the publishers of each VM gave, the last [`SEEN_ALL`] of all, and the
//! seqs of their events.
//!
//! ```text
//! add ──▶ known, not durable ──keep──▶ seen
//!                            ──forget─▶ as if it had never come; what gave way for it is back
//! ```
//!
//! An event whose id is known is a repeat: it has the seq of the first one and is not written. Always holds: an
//! id is found from its `add` on until so many others of its VM were added, or until its VM gave none for longer
//! than [`SEEN_VMS`] others, and in any case as long as it is in the window of all (`window.rs`); what was forgotten left
//! no trace. An id is kept as 128 bits of a hash, of its VM and itself, whose key nobody outside knows, so a false repeat
//! is not to be expected, nor to be made. Pure. Owner: `writer.rs`, and `refill.rs` before it; `snapshot.rs` writes it
//! down.

use super::repeats::{LETTERS, whose};
use super::window::Window;
use crate::core::limits::{SEEN_ALL, SEEN_IDS, SEEN_TIME, SEEN_VMS};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::HashMap;
use std::hash::Hasher;

/// What an id is kept as.
pub type Hash = [u64; 2];

/// An id and the event that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The id's, and its VM's.
    pub hash: Hash,
    /// The event's.
    pub seq: u64,
}

/// The table.
#[derive(Debug)]
pub struct Seen {
    key: [u8; 16],
    /// Where the ring of each VM is.
    vms: HashMap<Box<[u8]>, usize>,
    rings: Vec<Ring>,
    window: Window,
    /// The rings that were added to since the last `keep`, in order, and what gave way there.
    undo: Vec<(usize, Option<Known>)>,
}

/// The ids of one VM.
#[derive(Debug, Default)]
pub struct Ring {
    /// The low bits of each hash: all of them are looked through for every id.
    marks: Vec<u32>,
    known: Vec<Known>,
    /// How many were ever added: the next one's place, around the ring.
    added: u64,
    /// It came from a snapshot, and has what there was up to this seq.
    whole_to: u64,
}

impl Seen {
    /// An empty one, whose hashes have this key.
    pub fn new(key: [u8; 16]) -> Self {
        let age = u64::try_from(SEEN_TIME.as_millis()).unwrap_or(u64::MAX);
        Seen::with(key, Window::new(SEEN_ALL, age))
    }

    fn with(key: [u8; 16], window: Window) -> Self {
        Seen { key, vms: HashMap::new(), rings: Vec::new(), window, undo: Vec::new() }
    }

    /// The hashes' key.
    pub fn key(&self) -> [u8; 16] {
        self.key
    }

    /// No VM gave an id.
    pub fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// The VMs that gave ids, and these.
    pub fn vms(&self) -> impl Iterator<Item = (&[u8], &Ring)> {
        self.vms.iter().map(|(vm, ring)| (&**vm, &self.rings[*ring]))
    }

    /// The seq of the event of `vm` that has this `id`; `ts` is the time of the event that is compared, in milliseconds.
    pub fn find(&self, vm: &[u8], id: &[u8], ts: u64) -> Option<u64> {
        let hash = self.hash(vm, id);
        let ring = self.vms.get(vm).and_then(|ring| self.rings[*ring].find(hash));
        ring.or_else(|| self.window.find(hash, ts))
    }

    /// The seq of the newest event before `pending` that has this `id`, of any VM, or of that one and the letters that
    /// it writes.
    pub fn newest(&self, vm: Option<&[u8]>, id: &[u8], ts: u64, pending: u64) -> Option<u64> {
        let of = |vm: &[u8]| self.find(vm, id, ts).filter(|seq| *seq < pending);
        match vm {
            None => self.vms.keys().filter_map(|vm| of(vm)).max(),
            Some(b"host") => of(b"host").max(of(whose(b"host", LETTERS))),
            Some(vm) => of(vm),
        }
    }

    /// The same; when there is none, the event `seq` has it from now on. `ts` never goes back.
    pub fn find_or_add(&mut self, vm: &[u8], id: &[u8], seq: u64, ts: u64) -> Option<u64> {
        let (hash, ring) = (self.hash(vm, id), self.vms.get(vm).copied());
        let found = ring.and_then(|ring| self.rings[ring].find(hash));
        let found = found.or_else(|| self.window.find(hash, ts));
        if found.is_none() {
            let (known, ring) = (Known { hash, seq }, ring.unwrap_or_else(|| self.new_ring(vm)));
            let old = self.rings[ring].add(known);
            self.undo.push((ring, old));
            self.window.add(known, ts);
        }
        found
    }

    /// The event `seq` of `vm`, of the time `ts`, is durable and has this `id`, the same as an older one or not. Only
    /// while nothing was added that may still be forgotten.
    pub fn add(&mut self, vm: &[u8], id: &[u8], seq: u64, ts: u64) {
        let known = Known { hash: self.hash(vm, id), seq };
        let ring = self.vms.get(vm).copied().unwrap_or_else(|| self.new_ring(vm));
        let ring = &mut self.rings[ring];
        if seq > ring.whole_to {
            // It is stored: nothing brings back what gives way.
            ring.add(known);
        }
        self.window.add(known, ts);
    }

    /// As a snapshot has it: the ids of one VM, oldest first, and no others of its events up to `whole_to`.
    pub fn restore(&mut self, vm: &[u8], known: impl Iterator<Item = Known>, whole_to: u64) {
        let ring = self.vms.get(vm).copied().unwrap_or_else(|| self.new_ring(vm));
        let ring = &mut self.rings[ring];
        *ring = Ring { whole_to, ..Ring::default() };
        for known in known {
            ring.add(known);
        }
    }

    fn new_ring(&mut self, vm: &[u8]) -> usize {
        self.vms.insert(vm.into(), self.rings.len());
        self.rings.push(Ring::default());
        self.rings.len() - 1
    }

    /// What was added is durable, and no later event is older than `ts`.
    pub fn keep(&mut self, ts: u64) {
        self.undo.clear();
        self.window.keep(ts);
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
        self.window.forget();
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

    fn hash(&self, vm: &[u8], id: &[u8]) -> Hash {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(id);
        // In no name.
        hasher.write_u8(b'"');
        hasher.write(vm);
        let hash = hasher.finish128();
        [hash.h1, hash.h2]
    }
}

impl Ring {
    fn find(&self, hash: Hash) -> Option<u64> {
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

    /// The ids, oldest first.
    pub fn known(&self) -> impl ExactSizeIterator<Item = Known> + '_ {
        let (count, added) = (self.known.len(), self.added as usize);
        (0..count).map(move |i| self.known[(added + i) % count])
    }

    /// The newest one's seq; 0 when there is none.
    pub fn newest(&self) -> u64 {
        self.known.iter().map(|known| known.seq).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: usize = 500;
    const AGE: u64 = 100;

    /// Every VM, id, seq and time in their order, and nothing clever.
    #[derive(Clone, Default)]
    struct Naive(Vec<(u8, u16, u64, u64)>);

    impl Naive {
        fn find(&self, vm: u8, id: u16, ts: u64) -> Option<u64> {
            let own = self.0.iter().rev().filter(|known| known.0 == vm).take(SEEN_IDS);
            let all = self.0.iter().rev().take(MOST).filter(|known| known.0 == vm && ts - known.3 <= AGE);
            own.chain(all).find(|known| known.1 == id).map(|known| known.2)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8, u16),
        /// So many ids in a row.
        Run(u8, u16, u16),
        Later(u64),
        Keep,
        Forget,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u8..4, 0u16..700).prop_map(|(vm, id)| Step::Add(vm, id)),
            3 => (0u8..4, 0u16..700, 1u16..400).prop_map(|(vm, id, n)| Step::Run(vm, id, n)),
            2 => (1u64..60).prop_map(Step::Later),
            2 => Just(Step::Keep),
            2 => Just(Step::Forget),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn it_knows_what_a_naive_one_knows(steps in steps()) {
            let mut seen = Seen::with([3; 16], Window::new(MOST, AGE));
            let (mut naive, mut next, mut ts) = (Naive::default(), 1, 0);
            let mut kept = (naive.clone(), next);
            for step in steps {
                let (vm, ids) = match step {
                    Step::Add(vm, id) => (vm, id..id + 1),
                    Step::Run(vm, from, count) => (vm, from..from + count),
                    Step::Later(ms) => {
                        ts += ms;
                        continue;
                    }
                    Step::Keep => {
                        seen.keep(ts);
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
                    let want = naive.find(vm, id, ts);
                    prop_assert_eq!(seen.find(&[vm], &id.to_le_bytes(), ts), want);
                    prop_assert_eq!(seen.find_or_add(&[vm], &id.to_le_bytes(), next, ts), want);
                    if want.is_none() {
                        naive.0.push((vm, id, next, ts));
                        next += 1;
                    }
                }
            }
            for (vm, id) in (0..4u8).flat_map(|vm| (0..1100u16).map(move |id| (vm, id))) {
                let want = naive.find(vm, id, ts);
                prop_assert_eq!(seen.find(&[vm], &id.to_le_bytes(), ts), want, "{} {}", vm, id);
            }
        }
    }

    #[test]
    fn the_longest_silent_vms_give_way() {
        let mut seen = Seen::with([3; 16], Window::new(0, 0));
        let vm = |n: usize| format!("vm{n}");
        let most = SEEN_VMS + SEEN_VMS / 8;
        for n in 0..most {
            assert_eq!(seen.find_or_add(vm(n).as_bytes(), b"a", 1 + n as u64, 0), None);
        }
        seen.keep(0);
        // The first of them speaks once more, then there is one too many.
        assert_eq!(seen.find_or_add(b"vm0", b"b", 100_000, 0), None);
        assert_eq!(seen.find_or_add(b"new", b"a", 100_001, 0), None);
        assert_eq!(seen.rings.len(), most + 1);
        seen.forget();
        assert_eq!((seen.rings.len(), seen.vms.len()), (most, most));
        assert_eq!(seen.find_or_add(b"vm0", b"b", 100_000, 0), None);
        assert_eq!(seen.find_or_add(b"new", b"a", 100_001, 0), None);
        seen.keep(0);
        assert_eq!((seen.rings.len(), seen.vms.len()), (SEEN_VMS, SEEN_VMS));
        let known = |n: usize| seen.find(vm(n).as_bytes(), b"a", 0);
        assert_eq!(
            (known(0), seen.find(b"vm0", b"b", 0), seen.find(b"new", b"a", 0)),
            (Some(1), Some(100_000), Some(100_001))
        );
        let gone = most + 1 - SEEN_VMS;
        assert!((1..=gone).all(|n| known(n).is_none()));
        assert!((gone + 1..most).all(|n| known(n) == Some(1 + n as u64)));
    }

    #[test]
    fn one_id_of_two_vms_is_two_ids() {
        let mut seen = Seen::with([3; 16], Window::new(0, 0));
        assert_eq!(seen.find_or_add(b"a", b"1", 1, 0), None);
        assert_eq!(seen.find_or_add(b"b", b"1", 2, 0), None);
        assert_eq!((seen.find(b"a", b"1", 0), seen.find(b"b", b"1", 0)), (Some(1), Some(2)));
        assert_eq!((seen.find(b"c", b"1", 0), seen.find(b"a", b"2", 0)), (None, None));
    }
}
