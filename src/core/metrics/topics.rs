//! Which topics metrics have by name, and how often each was published to.
//!
//! Always holds: no more than [`METRICS_TOPICS`] have a name, those that came first, and it stays theirs; all others are
//! one, `OTHER`; an event is counted once, whatever is read a second time. Counting takes no lock but for a topic that is
//! new, and there are only so many of those. Owner: [`super::Metrics`]; the logs' thread counts, for it goes over every
//! event anyway, and behind the commit. What else has a label `topic` asks [`Topics::slot`].

use crate::core::event::Event;
use crate::core::limits::METRICS_TOPICS;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The label of all topics or groups that have no label of their own. Nobody else's: no topic that is published to and
/// no group begins with `$`, but for `$dlq.…`.
pub(super) const OTHER: &str = "$other";

/// The topics that have a name, and their counts.
#[derive(Debug)]
pub struct Topics {
    slots: Mutex<HashMap<Box<[u8]>, usize>>,
    /// The last one is of all others.
    published: Vec<AtomicU64>,
}

impl Default for Topics {
    fn default() -> Self {
        let published = (0..=METRICS_TOPICS).map(|_| AtomicU64::new(0)).collect();
        Topics { slots: Mutex::default(), published }
    }
}

impl Topics {
    fn slots(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, usize>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of a topic, encoded as in an event's line: below [`METRICS_TOPICS`] when it has a name, or gets one, else
    /// that of all others.
    pub fn slot(&self, topic: &[u8]) -> usize {
        let mut slots = self.slots();
        let next = slots.len();
        match slots.get(topic) {
            Some(slot) => *slot,
            None if next < METRICS_TOPICS => *slots.entry(topic.into()).or_insert(next),
            None => METRICS_TOPICS,
        }
    }

    /// What each place is called, the one of all others last.
    pub fn names(&self) -> Vec<String> {
        let slots = self.slots();
        let mut names = vec![String::new(); slots.len()];
        for (topic, slot) in slots.iter() {
            // As it was said: in a line it has the escapes of JSON.
            let text = format!("\"{}\"", String::from_utf8_lossy(topic));
            names[*slot] = serde_json::from_str(&text).unwrap_or(text);
        }
        names.push(OTHER.to_owned());
        names
    }

    /// How many events were published to each topic, by its name; those of all others last.
    pub fn published(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let names = self.names();
        let counts = self.published.iter().take(names.len() - 1).chain(self.published.last());
        let counts: Vec<u64> = counts.map(|count| count.load(Relaxed)).collect();
        names.into_iter().zip(counts)
    }

    /// Counts events behind the one of the seq `last`.
    pub fn tally(self: &Arc<Self>, last: u64) -> Tally {
        Tally { topics: self.clone(), slots: HashMap::new(), topic: Vec::new(), slot: METRICS_TOPICS, last }
    }
}

/// Counts events by topic, as they come by. Of one thread.
#[derive(Debug)]
pub struct Tally {
    topics: Arc<Topics>,
    /// Those that are known to have a name.
    slots: HashMap<Box<[u8]>, usize>,
    /// The topic of the event before, and its place: the next one is mostly of the same.
    topic: Vec<u8>,
    slot: usize,
    /// The newest event that was counted.
    last: u64,
}

impl Tally {
    /// Counts an event, unless it came by before.
    pub fn count(&mut self, event: &Event<'_>) {
        if event.seq <= self.last {
            return;
        }
        self.last = event.seq;
        let topic = event.topic();
        if self.topic != topic {
            self.slot = self.find(topic);
            self.topic.clear();
            self.topic.extend_from_slice(topic);
        }
        if let Some(count) = self.topics.published.get(self.slot) {
            count.fetch_add(1, Relaxed);
        }
    }

    fn find(&mut self, topic: &[u8]) -> usize {
        if let Some(slot) = self.slots.get(topic) {
            return *slot;
        }
        if self.slots.len() >= METRICS_TOPICS {
            return METRICS_TOPICS;
        }
        let slot = self.topics.slot(topic);
        if slot < METRICS_TOPICS {
            self.slots.insert(topic.into(), slot);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Batch, Layout, Publish};
    use crate::core::identity::VmName;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Has an event of this topic come by.
    fn count(tally: &mut Tally, seq: u64, topic: &str) {
        let publish = serde_json::json!({ "topic": topic }).to_string();
        let publish: Publish<'_> = serde_json::from_str(&publish).unwrap();
        let mut batch = Batch::default();
        batch.push(&VmName::parse("dev").unwrap(), &publish, |out| out.push(b'i')).unwrap();
        let draft = batch.drafts()[0];
        let layout = Layout::of(&draft, 0);
        tally.count(&Event { seq, ts: 0, line: batch.tail(&draft), layout });
    }

    proptest! {
        /// Whatever comes, and comes again: the counts are those of the first hundred topics, and the rest is other.
        #[test]
        fn each_event_counts_once_under_its_name_or_as_other(
            events in prop::collection::vec((0usize..150, 0u64..3), 0..600),
            begins in 0u64..4,
        ) {
            let topics = Arc::new(Topics::default());
            let mut tally = topics.tally(begins);
            let name = |n: usize| format!("t\"\\.ä{n}");
            let (mut want, mut seen, mut seq) = (BTreeMap::new(), Vec::new(), 0u64);
            for (n, back) in events {
                // Some are read again.
                let again = back > 0 && seq > back;
                let at = if again { seq - back } else { seq + 1 };
                seq = seq.max(at);
                count(&mut tally, at, &name(n));
                if again || at <= begins {
                    continue;
                }
                if !seen.contains(&n) && seen.len() < METRICS_TOPICS {
                    seen.push(n);
                }
                let label = if seen.contains(&n) { name(n) } else { OTHER.to_owned() };
                *want.entry(label).or_insert(0) += 1;
            }
            let counted = topics.published().filter(|(_, n)| *n > 0).collect::<BTreeMap<_, _>>();
            prop_assert_eq!(counted, want);
            prop_assert_eq!(topics.published().count(), seen.len() + 1);
        }
    }
}
