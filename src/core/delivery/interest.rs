//! What one subscription wants, and the frames it is sent.
//!
//! Always holds: two subscriptions of the same name and patterns are sent the same bytes, so these are made once and
//! shared. Pure. Owner: `subscription.rs` makes it; the router and the readers of the journal look at it.

use crate::core::event::Event;
use crate::core::limits::{CHUNK_BYTES, CHUNK_EVENTS};
use crate::core::topic::Pattern;
use crate::core::wire::group::{Spec, delivery_head};
use crate::core::wire::subscribe::{event, event_head};
use bytes::Bytes;
use memchr::memmem::Finder;
use std::hash::{Hash, Hasher};

/// A subscription's name and patterns.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Interest {
    sub: Box<str>,
    /// As topics stand in encoded events.
    patterns: Box<[Pattern]>,
    head: Box<[u8]>,
    /// What an event without these bytes in its line has nothing to do with.
    needles: Box<[Needle]>,
}

/// Bytes to look for.
#[derive(Debug)]
struct Needle(Finder<'static>);

impl PartialEq for Needle {
    fn eq(&self, other: &Self) -> bool {
        self.0.needle() == other.0.needle()
    }
}

impl Eq for Needle {}

impl Hash for Needle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.needle().hash(state);
    }
}

impl Interest {
    /// An interest in events of any of `patterns`, each counted once.
    pub fn new(sub: Box<str>, patterns: &[Pattern]) -> Self {
        let mut patterns: Vec<Pattern> = patterns.iter().map(Pattern::encoded).collect();
        patterns.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        patterns.dedup();
        Interest { head: event_head(&sub), sub, patterns: patterns.into(), needles: Box::default() }
    }

    /// The interest of a group, whose frames are those of first attempts.
    pub fn of_group(group: &str, patterns: &[Pattern], spec: &Spec) -> Self {
        let json = |text: &str| serde_json::to_string(text).unwrap_or_default();
        // As headers and tags are encoded: sorted or not, each of them stands so in the line.
        let headers = spec.headers.iter().map(|(name, value)| format!("{}:{}", json(name), json(value)));
        let all = headers.chain(spec.tags.iter().map(|tag| json(tag)));
        let needles = all.map(|bytes| Needle(Finder::new(bytes.as_bytes()).into_owned())).collect();
        let head = delivery_head(group, 1, spec.max_attempts);
        Interest { head, needles, ..Interest::new(group.into(), patterns) }
    }

    /// Whether an event of this line may pass the group's filter, as far as can be seen without reading it: few that do
    /// not are taken for it.
    pub fn may_pass(&self, line: &[u8]) -> bool {
        self.needles.iter().all(|needle| needle.0.find(line).is_some())
    }

    /// The subscription's name.
    pub fn sub(&self) -> &str {
        &self.sub
    }

    /// The patterns of encoded topics, sorted.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// How its frames begin.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The patterns as they were typed.
    pub fn topics(&self) -> Vec<Box<str>> {
        let typed = |encoded: &str| serde_json::from_str(&format!("\"{encoded}\"")).unwrap_or_default();
        self.patterns.iter().map(|pattern| typed(pattern.as_str())).collect()
    }

    /// Whether it wants events of this encoded topic.
    pub fn wants(&self, topic: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(topic))
    }
}

/// Frames that go to everybody of one interest.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The first event's seq.
    pub from: u64,
    /// The last one's.
    pub to: u64,
    /// How many.
    pub events: usize,
    /// Some of them have a `ttl_ms`.
    pub expires: bool,
    /// Their frames.
    pub frames: Bytes,
}

/// Makes chunks of events as they come.
#[derive(Debug, Default)]
pub struct Chunks {
    done: Vec<Chunk>,
    frames: Vec<u8>,
    events: usize,
    expires: bool,
    from: u64,
    to: u64,
}

impl Chunks {
    /// Adds an event for subscriptions whose frames begin with `head`.
    pub fn push(&mut self, head: &[u8], wanted: &Event<'_>) {
        if self.events == 0 {
            self.from = wanted.seq;
        }
        event(&mut self.frames, head, wanted.line);
        (self.to, self.events) = (wanted.seq, self.events + 1);
        self.expires |= wanted.layout.expires;
        if self.events == CHUNK_EVENTS || self.frames.len() >= CHUNK_BYTES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.events > 0 {
            let frames = std::mem::take(&mut self.frames).into();
            let expires = std::mem::take(&mut self.expires);
            self.done.push(Chunk { from: self.from, to: self.to, events: self.events, expires, frames });
            self.events = 0;
        }
    }

    /// Nothing was added.
    pub fn is_empty(&self) -> bool {
        self.events == 0 && self.done.is_empty()
    }

    /// All of them, in order.
    pub fn take(&mut self) -> Vec<Chunk> {
        self.cut();
        std::mem::take(&mut self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Batch, Publish};
    use crate::core::identity::VmName;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    proptest! {
        /// Whatever a filter names, an event that has it passes, however it is written in JSON.
        #[test]
        fn what_passes_the_filter_is_not_left_out(
            headers in proptest::collection::btree_map("[\\PC\"\\\\\u{7}]{0,6}", any::<String>(), 1..4),
            tags in proptest::collection::vec("[\\PC\"\\\\\u{7}]{1,6}", 1..4),
            pick in any::<(usize, usize)>(),
        ) {
            let frame = json!({"headers": headers, "tags": tags, "payload": "x"}).to_string();
            let publish: Publish<'_> = serde_json::from_str(&frame).unwrap();
            let mut batch = Batch::default();
            prop_assume!(batch.push(&VmName::host(), &publish, |out| out.push(b'i')).is_ok());
            let line = batch.tail(&batch.drafts()[0]);
            let (name, value) = headers.iter().nth(pick.0 % headers.len()).unwrap();
            let tag = tags[pick.1 % tags.len()].clone();
            let of = |headers: BTreeMap<String, String>, tags: Vec<String>| Spec {
                topics: vec!["t".into()], headers, tags, batch: 1, ack_timeout_ms: 1, max_attempts: 1,
                ordered_by_key: false,
            };
            let passes = |spec: Spec| Interest::of_group("g", &[], &spec).may_pass(line);
            let one = BTreeMap::from([(name.clone(), value.clone())]);
            prop_assert!(passes(of(one.clone(), vec![tag.clone()])));
            prop_assert!(passes(of(BTreeMap::new(), Vec::new())));
            prop_assert!(!passes(of(BTreeMap::from([(name.clone(), value.clone() + "-other")]), vec![tag])));
        }
    }
}
