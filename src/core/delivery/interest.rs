//! What one subscription wants, and the frames it is sent.
//!
//! Always holds: two subscriptions of the same name and patterns are sent the same bytes, so these are made once and
//! shared. Pure. Owner: `subscription.rs` makes it; the router and the readers of the journal look at it.

use crate::core::event::Event;
use crate::core::limits::{CHUNK_BYTES, CHUNK_EVENTS};
use crate::core::topic::Pattern;
use crate::core::wire::group::delivery_head;
use crate::core::wire::subscribe::{event, event_head};
use bytes::Bytes;

/// A subscription's name and patterns.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Interest {
    sub: Box<str>,
    /// As topics stand in encoded events.
    patterns: Box<[Pattern]>,
    head: Box<[u8]>,
}

impl Interest {
    /// An interest in events of any of `patterns`, each counted once.
    pub fn new(sub: Box<str>, patterns: &[Pattern]) -> Self {
        let mut patterns: Vec<Pattern> = patterns.iter().map(Pattern::encoded).collect();
        patterns.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        patterns.dedup();
        Interest { head: event_head(&sub), sub, patterns: patterns.into() }
    }

    /// The interest of a group, whose frames are those of first attempts.
    pub fn of_group(group: &str, patterns: &[Pattern], max_attempts: u32) -> Self {
        Interest { head: delivery_head(group, 1, max_attempts), ..Interest::new(group.into(), patterns) }
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
