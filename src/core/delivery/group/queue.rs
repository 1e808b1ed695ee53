//! What may be delivered next: what has to go out again first, then the rest in order; of a key, one at a time.
//!
//! Always holds: of the events of one key only the oldest is in the queue, until it leaves the group. Each operation
//! costs a logarithm at the most, but for taking out what never went out and what is behind others of its key. Pure. Owner: `group.rs`.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::VecDeque;

/// The key of an event, as a hash: two keys of the same hash go one after the other as if they were one.
pub type Key = u64;

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    /// Was delivered before, or waited for another of its key.
    again: BTreeSet<u64>,
    /// Never went out; ascending.
    fresh: VecDeque<u64>,
    /// The events of each key, oldest first.
    keys: HashMap<Key, VecDeque<u64>>,
}

impl Queue {
    /// Adds a new event, later than all others, which is the first of its key.
    pub fn fresh(&mut self, seq: u64) {
        self.fresh.push_back(seq);
    }

    /// Takes note of the key of a new event. `false`: it is behind another of its key.
    pub fn is_first(&mut self, seq: u64, key: Option<Key>) -> bool {
        let Some(key) = key else { return true };
        let same = self.keys.entry(key).or_default();
        same.push_back(seq);
        same.len() == 1
    }

    /// `seq` is to be delivered again.
    pub fn again(&mut self, seq: u64) {
        self.again.insert(seq);
    }

    /// The next one.
    pub fn first(&self) -> Option<u64> {
        self.again.first().or(self.fresh.front()).copied()
    }

    /// Takes the next one out.
    pub fn pop(&mut self) {
        if self.again.pop_first().is_none() {
            self.fresh.pop_front();
        }
    }

    /// `seq` need not be delivered.
    pub fn remove(&mut self, seq: u64) {
        if !self.again.remove(&seq)
            && let Ok(at) = self.fresh.binary_search(&seq)
        {
            self.fresh.remove(at);
        }
    }

    /// An event of this key left the group. The one that was behind it, if it is in nobody's way now.
    pub fn left(&mut self, seq: u64, key: Key) -> Option<u64> {
        let same = self.keys.get_mut(&key)?;
        let next = if same.front() == Some(&seq) {
            same.pop_front();
            same.front().copied()
        } else {
            same.retain(|other| *other != seq);
            None
        };
        if same.is_empty() {
            self.keys.remove(&key);
        }
        next
    }

    /// How many wait in it.
    pub fn len(&self) -> usize {
        self.again.len() + self.fresh.len()
    }

    /// Nothing waits in it.
    pub fn is_empty(&self) -> bool {
        self.again.is_empty() && self.fresh.is_empty()
    }
}
