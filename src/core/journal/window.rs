//! The last ids of all VMs together, and not older than a while: what a session that lost its acks may send again.
//!
//! ```text
//!          ┌ older, or before so many others      ┌ added since the last `keep`
//!  gone ◀──│──────────── the window ──────────────│──▶ forget: as if they had never come
//! ```
//!
//! Always holds: an id is found when it is among the last `most` and not older than `age`, and not otherwise; what fell
//! out stays at hand until the next `keep`, so that `forget` brings it back. Time is that of the events. Pure. Owner:
//! `seen.rs`.

use super::seen::{Hash, Known};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// No older one.
const NONE: u64 = u64::MAX;

/// The ids, oldest first.
#[derive(Debug)]
pub struct Window {
    most: u64,
    age: u64,
    entries: VecDeque<Entry>,
    /// The number of the first of them; they are numbered in their order.
    first: u64,
    /// Behind the last that is kept.
    kept: u64,
    /// The newest of each half of a hash.
    newest: HashMap<u64, u64, BuildHasherDefault<AsItIs>>,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    ts: u64,
    /// The one before it of the same half of a hash.
    before: u64,
}

impl Window {
    /// Of the last `most` ids, which are `age` milliseconds old at the most.
    pub fn new(most: usize, age: u64) -> Self {
        let newest = HashMap::default();
        Window { most: most as u64, age, entries: VecDeque::new(), first: 0, kept: 0, newest }
    }

    /// The seq of the event of that id; `ts` is the time of the event that is compared.
    pub fn find(&self, hash: Hash, ts: u64) -> Option<u64> {
        let mut number = *self.newest.get(&hash[0])?;
        while let Some(entry) = self.entry(number) {
            if entry.known.hash == hash {
                let is_in = self.end() - number <= self.most && ts.saturating_sub(entry.ts) <= self.age;
                return is_in.then_some(entry.known.seq);
            }
            number = entry.before;
        }
        None
    }

    /// It is known from now on, and its event has this `ts`; not before that of the one added before it.
    pub fn add(&mut self, known: Known, ts: u64) {
        let before = self.newest.insert(known.hash[0], self.end()).unwrap_or(NONE);
        self.entries.push_back(Entry { known, ts, before });
    }

    /// What was added stays, and at the time `ts` what fell out goes.
    pub fn keep(&mut self, ts: u64) {
        self.kept = self.end();
        let is_out = |entry: &Entry, left: u64| left > self.most || ts.saturating_sub(entry.ts) > self.age;
        while let Some(oldest) = self.entries.front()
            && is_out(oldest, self.kept - self.first)
        {
            let half = oldest.known.hash[0];
            if self.newest.get(&half) == Some(&self.first) {
                self.newest.remove(&half);
            }
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// What was added since the last `keep` is not known.
    pub fn forget(&mut self) {
        while self.end() > self.kept
            && let Some(Entry { known, before, .. }) = self.entries.pop_back()
        {
            if self.entry(before).is_some() {
                self.newest.insert(known.hash[0], before);
            } else {
                self.newest.remove(&known.hash[0]);
            }
        }
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// Half of a hash is a hash.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: usize = 20;
    const AGE: u64 = 50;

    #[derive(Clone, Debug)]
    enum Step {
        /// Hashes of few halves, after so many milliseconds.
        Add(u64, u64, u64),
        Keep,
        Forget,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            12 => (0u64..12, 0u64..3, 0u64..8).prop_map(|(a, b, later)| Step::Add(a, b, later)),
            2 => Just(Step::Keep),
            2 => Just(Step::Forget),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn it_knows_the_last_that_are_not_too_old(steps in steps()) {
            let (mut window, mut naive, mut kept, mut ts) = (Window::new(MOST, AGE), Vec::new(), Vec::new(), 0);
            for (seq, step) in (1..).zip(steps) {
                match step {
                    Step::Add(a, b, later) => {
                        ts += later;
                        window.add(Known { hash: [a, b], seq }, ts);
                        naive.push(([a, b], seq, ts));
                    }
                    Step::Keep => {
                        window.keep(ts);
                        kept.clone_from(&naive);
                    }
                    Step::Forget => {
                        window.forget();
                        naive.clone_from(&kept);
                    }
                }
                for hash in (0..12).flat_map(|a| (0..3).map(move |b| [a, b])) {
                    let known = naive.iter().rev().take(MOST).find(|known| known.0 == hash);
                    let want = known.filter(|known| ts - known.2 <= AGE).map(|known| known.1);
                    prop_assert_eq!(window.find(hash, ts), want, "{:?}", hash);
                }
            }
            window.keep(ts);
            prop_assert!(window.entries.len() <= MOST && window.newest.len() <= window.entries.len());
        }
    }
}
