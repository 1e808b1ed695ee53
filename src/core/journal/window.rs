//! The last ids of all VMs together, and not older than a while: what a session that lost its acks may send again.
//!
//! ```text
//!          ┌ older, or before so many others      ┌ added since the last `keep`
//!  gone ◀──│──────────── the window ──────────────│──▶ forget: as if they had never come
//! ```
//!
//! Always holds: an id is found when it is among the last `most` and not older than `age`, and not otherwise; what fell
//! out stays at hand until the next `keep`, so that `forget` brings it back. Time is that of the events. It is small, for
//! every id looks for its place in it: what fell out leaves the table of places by many at a time. Pure. Owner: `seen.rs`.

use super::seen::{Hash, Known};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// So many places of what fell out, and as many as there are others, may be in the table.
const SLACK: usize = 64;

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
    /// The newest of each mark, by the low half of its number. It may be gone.
    newest: HashMap<u32, u32, BuildHasherDefault<Mixed>>,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    ts: u64,
    /// The one before it of the same mark, likewise; itself when there is none.
    before: u32,
}

/// What an id is looked for by, and then compared.
fn mark(hash: Hash) -> u32 {
    hash[1] as u32
}

impl Window {
    /// Of the last `most` ids, which are `age` milliseconds old at the most.
    pub fn new(most: usize, age: u64) -> Self {
        let newest = HashMap::default();
        Window { most: most as u64, age, entries: VecDeque::new(), first: 0, kept: 0, newest }
    }

    /// The seq of the event of that id; `ts` is the time of the event that is compared.
    pub fn find(&self, hash: Hash, ts: u64) -> Option<u64> {
        let mut low = *self.newest.get(&mark(hash))?;
        let mut end = self.entries.len();
        while let Some((at, entry)) = self.entry(low).filter(|(at, _)| *at < end) {
            if entry.known.hash == hash {
                let after = (self.entries.len() - at) as u64;
                let is_in = after <= self.most && ts.saturating_sub(entry.ts) <= self.age;
                return is_in.then_some(entry.known.seq);
            }
            (low, end) = (entry.before, at);
        }
        None
    }

    /// It is known from now on, and its event has this `ts`; not before that of the one added before it.
    pub fn add(&mut self, known: Known, ts: u64) {
        let low = self.end() as u32;
        let before = self.newest.insert(mark(known.hash), low).unwrap_or(low);
        self.entries.push_back(Entry { known, ts, before });
    }

    /// What was added stays, and at the time `ts` what fell out goes.
    pub fn keep(&mut self, ts: u64) {
        self.kept = self.end();
        let is_out = |entry: &Entry, left: u64| left > self.most || ts.saturating_sub(entry.ts) > self.age;
        while let Some(oldest) = self.entries.front()
            && is_out(oldest, self.kept - self.first)
        {
            self.entries.pop_front();
            self.first += 1;
        }
        if self.newest.len() > 2 * self.entries.len() + SLACK {
            let (first, entries) = (self.first as u32, &self.entries);
            self.newest.retain(|mark, low| is_of(*mark, entries.get(low.wrapping_sub(first) as usize)));
        }
    }

    /// What was added since the last `keep` is not known.
    pub fn forget(&mut self) {
        while self.end() > self.kept
            && let Some(Entry { known, before, .. }) = self.entries.pop_back()
        {
            let mark = mark(known.hash);
            if is_of(mark, self.entry(before).map(|(_, entry)| entry)) {
                self.newest.insert(mark, before);
            } else {
                self.newest.remove(&mark);
            }
        }
    }

    /// Which one that is, if it is there.
    fn entry(&self, low: u32) -> Option<(usize, &Entry)> {
        let at = low.wrapping_sub(self.first as u32) as usize;
        self.entries.get(at).map(|entry| (at, entry))
    }

    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

fn is_of(mark_of: u32, entry: Option<&Entry>) -> bool {
    entry.is_some_and(|entry| mark(entry.known.hash) == mark_of)
}

/// A mark is part of a hash; only its bits have to be spread over a word.
#[derive(Clone, Copy, Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u32(&mut self, mark: u32) {
        self.0 = u64::from(mark).wrapping_mul(0x9e37_79b9_7f4a_7c15);
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
        /// Hashes of few marks, after so many milliseconds.
        Add(u64, u64, u64),
        Keep,
        Forget,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            12 => (0u64..3, 0u64..12, 0u64..8).prop_map(|(a, b, later)| Step::Add(a, b, later)),
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
                for hash in (0..3).flat_map(|a| (0..12).map(move |b| [a, b])) {
                    let known = naive.iter().rev().take(MOST).find(|known| known.0 == hash);
                    let want = known.filter(|known| ts - known.2 <= AGE).map(|known| known.1);
                    prop_assert_eq!(window.find(hash, ts), want, "{:?}", hash);
                }
            }
            window.keep(ts);
            prop_assert!(window.entries.len() <= MOST && window.newest.len() <= 2 * MOST + SLACK);
        }
    }
}
