//! Which keys a subscription that keeps the state has handed on, so that it can end those that a new state lacks.
//!
//! Always holds: what is remembered is bounded; beyond that nothing is, and that is known (invariant 6). It holds no
//! payload. Pure. Owner: `state.rs`.

use crate::core::event::retry;
use crate::core::limits::FOLLOW_KEYS_BYTES;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// What an entry takes beside its key, in bytes.
const ENTRY_BYTES: usize = 64;

/// Keys by topic.
#[derive(Default)]
pub(super) struct Known {
    topics: HashMap<Box<str>, HashMap<Box<str>, Entry>>,
    bytes: usize,
    hasher: RandomState,
    /// How many states were begun.
    round: u32,
    is_over: bool,
}

struct Entry {
    /// Of the newest event.
    hash: u64,
    /// The last state that had it.
    round: u32,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Known {
    /// Takes in an event; whether it is the one that was newest of its key already. A topic that `has` no state has no keys
    /// to remember.
    pub fn take(&mut self, line: &[u8], has: impl Fn(&str) -> bool) -> bool {
        let Ok(Line { topic, key: Some(key), payload }) = serde_json::from_slice(line) else { return false };
        // An old event that was published again changes nothing.
        if self.is_over || retry::of(line).is_some() {
            return false;
        }
        if payload.get() == "null" {
            if let Some(keys) = self.topics.get_mut(&*topic)
                && keys.remove(&*key).is_some()
            {
                self.bytes -= key.len() + ENTRY_BYTES;
            }
            return false;
        }
        let entry = Entry { hash: self.hasher.hash_one(line), round: self.round };
        if !self.topics.contains_key(&*topic) {
            if !has(&topic) {
                return false;
            }
            self.bytes += topic.len() + ENTRY_BYTES;
            self.topics.insert(topic.as_ref().into(), HashMap::new());
        }
        let Some(keys) = self.topics.get_mut(&*topic) else { return false };
        if let Some(old) = keys.get_mut(&*key) {
            let is_same = old.hash == entry.hash;
            *old = entry;
            return is_same;
        }
        self.bytes += key.len() + ENTRY_BYTES;
        keys.insert(key.into(), entry);
        if self.bytes > FOLLOW_KEYS_BYTES {
            (self.topics, self.bytes, self.is_over) = (HashMap::new(), 0, true);
        }
        false
    }

    /// A new state begins; false if there were too many keys to remember.
    pub fn begin_anew(&mut self) -> bool {
        self.round += 1;
        !self.is_over
    }

    /// Appends the ends, as of the seq `through`, of keys that the new state lacks, of topics that `has` a state.
    pub fn end_missing(&mut self, out: &mut Vec<u8>, through: u64, ts: u64, has: impl Fn(&str) -> bool) {
        let round = self.round;
        for (topic, keys) in &mut self.topics {
            let is_compacted = has(topic);
            keys.retain(|key, entry| {
                let stays = entry.round == round;
                if !stays {
                    self.bytes -= key.len() + ENTRY_BYTES;
                    if is_compacted {
                        out.extend_from_slice(end_of(topic, key, through, ts).as_bytes());
                    }
                }
                stays
            });
        }
        let bytes = &mut self.bytes;
        self.topics.retain(|topic, keys| {
            *bytes -= if keys.is_empty() { topic.len() + ENTRY_BYTES } else { 0 };
            !keys.is_empty()
        });
    }
}

/// The line that ends a key that a new state lacks: no event of the journal.
fn end_of(topic: &str, key: &str, through: u64, ts: u64) -> String {
    let (topic, key) = (json!(topic), json!(key));
    format!(
        "{{\"seq\":{through},\"ts\":{ts},\"id\":\"state.ended:{through}\",\"vm\":\"bus\",\"topic\":{topic},\"key\":{key},\
         \"headers\":{{\"castra-event\":\"state.ended\"}},\"payload\":null}}\n"
    )
}
