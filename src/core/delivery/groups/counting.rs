//! What metrics count of one group, while its state is locked anyway.
//!
//! Always holds: without metrics there is none of this; events of one topic that are handed out or answered together are
//! counted together. Owner: [`super::handle::State`].

use super::handle::{Handle, State};
use super::taken::event_of;
use crate::core::limits::METRICS_TOPICS;
use crate::core::metrics::groups::{Counts, What};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Counts for one group.
pub(super) struct Counting {
    counts: Arc<Counts>,
    /// The topic of the event before, and its place: the next one is mostly of the same.
    topic: Vec<u8>,
    slot: usize,
    /// When each event that is held was handed out.
    since: HashMap<u64, Duration>,
    /// What is not added yet.
    run: u64,
}

impl Counting {
    pub fn new(counts: Arc<Counts>) -> Self {
        Counting { counts, topic: Vec::new(), slot: METRICS_TOPICS, since: HashMap::new(), run: 0 }
    }

    /// Counts one event; it is added with the next of another topic, or by [`Counting::add`].
    fn one(&mut self, what: What, line: Option<&[u8]>) {
        let topic = line.and_then(event_of).map_or(&[][..], |event| event.topic());
        if self.topic != topic {
            self.add(what);
            // What is no event any more has no topic.
            self.slot = if topic.is_empty() { METRICS_TOPICS } else { self.counts.topics.slot(topic) };
            self.topic.clear();
            self.topic.extend_from_slice(topic);
        }
        self.run += 1;
    }

    /// Adds what was counted.
    pub fn add(&mut self, what: What) {
        if self.run > 0 {
            self.counts.add(what, self.slot, std::mem::take(&mut self.run));
        }
    }

    pub fn delivered(&mut self, seq: u64, line: Option<&[u8]>, now: Duration) {
        self.one(What::Delivered, line);
        self.since.insert(seq, now);
    }

    pub fn dead_letter(&self) {
        self.counts.dead_letter();
    }

    pub fn expired(&self, events: u64) {
        self.counts.expired(events);
    }

    /// Nothing is held any more.
    pub fn clear(&mut self) {
        self.since = HashMap::new();
    }

    pub fn forget(&mut self, seq: u64) {
        self.since.remove(&seq);
    }
}

impl State {
    /// A member said this of these events; their lines are still there.
    pub(super) fn count_answered(&mut self, what: What, seqs: impl Iterator<Item = u64>, now: Duration) {
        let State { counting: Some(counting), lines, .. } = self else { return };
        for seq in seqs {
            counting.one(what, lines.get(seq));
            if let Some(since) = counting.since.remove(&seq) {
                counting.counts.handled(now.saturating_sub(since).as_secs_f64());
            }
        }
        counting.add(what);
    }
}

impl Handle {
    /// The journal was read for it.
    pub fn polled(&self, time: Duration) {
        if let Some(counting) = &self.lock().counting {
            counting.counts.polled(time.as_secs_f64());
        }
    }
}
