//! What metrics count of consumer groups, by topic and group.
//!
//! Always holds: no more than [`METRICS_GROUPS`] groups have a name, those that were there first, and it stays theirs; all
//! others are one, `other`; topics as in `topics.rs`. Counting takes no lock but the group's own, which whoever counts
//! has. What members hold, and how far a group is, is looked up when somebody asks. Owner: [`super::Metrics`];
//! `delivery/groups/counting.rs` counts.

use super::topics::Topics;
use super::{SECONDS, Sources};
use crate::core::limits::{METRICS_GROUPS, METRICS_TOPICS};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

const OTHER: &str = "other";

/// What is counted of each topic.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// It was handed to a member.
    Delivered,
    /// It is done.
    Acked,
    /// A member said that it is not done, or never will be.
    Nacked,
}

/// What is counted of one group, or of all that have no name.
#[derive(Debug)]
pub struct Counts {
    /// The topics that have a name.
    pub topics: Arc<Topics>,
    /// By the topic's place.
    by_topic: Vec<[AtomicU64; 3]>,
    dead_letters: AtomicU64,
    expired: AtomicU64,
    polls: Histogram,
    handlers: Histogram,
}

impl Counts {
    fn new(topics: Arc<Topics>) -> Arc<Self> {
        let by_topic = (0..=METRICS_TOPICS).map(|_| Default::default()).collect();
        let (dead_letters, expired) = Default::default();
        let (polls, handlers) = (Histogram::new(SECONDS), Histogram::new(SECONDS));
        Arc::new(Counts { topics, by_topic, dead_letters, expired, polls, handlers })
    }

    /// So many events of the topic of this place.
    pub fn add(&self, what: What, slot: usize, events: u64) {
        if let Some(counts) = self.by_topic.get(slot) {
            counts[what as usize].fetch_add(events, Relaxed);
        }
    }

    /// A dead letter is durable.
    pub fn dead_letter(&self) {
        self.dead_letters.fetch_add(1, Relaxed);
    }

    /// So many events expired before the group had them.
    pub fn expired(&self, events: u64) {
        self.expired.fetch_add(events, Relaxed);
    }

    /// The journal was read for the group; in seconds.
    pub fn polled(&self, seconds: f64) {
        self.polls.observe(seconds);
    }

    /// A member had an event for so long before it said what became of it; in seconds.
    pub fn handled(&self, seconds: f64) {
        self.handlers.observe(seconds);
    }
}

/// The groups that have a name.
#[derive(Debug)]
pub struct Table {
    named: Mutex<BTreeMap<Box<str>, Arc<Counts>>>,
    other: Arc<Counts>,
}

impl Table {
    /// Nothing is counted yet.
    pub fn new(topics: &Arc<Topics>) -> Arc<Self> {
        Arc::new(Table { named: Mutex::default(), other: Counts::new(topics.clone()) })
    }

    /// Where a group counts.
    pub fn of(&self, group: &str) -> Arc<Counts> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        match named.get(group) {
            Some(counts) => counts.clone(),
            None if named.len() < METRICS_GROUPS => {
                named.entry(group.into()).or_insert_with(|| Counts::new(self.other.topics.clone())).clone()
            }
            None => self.other.clone(),
        }
    }

    fn all(&self) -> Vec<(Box<str>, Arc<Counts>)> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let named = named.iter().map(|(name, counts)| (name.clone(), counts.clone()));
        named.chain([(OTHER.into(), self.other.clone())]).collect()
    }
}

/// All of it, as metrics.
#[derive(Debug)]
pub(super) struct Grouped(pub Arc<Table>, pub Arc<Sources>);

impl Collector for Grouped {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        let (groups, topics) = (self.0.all(), self.0.other.topics.names());
        for (what, name, help) in [
            (What::Delivered, "events_delivered", "Events that were handed to members of a group."),
            (What::Acked, "events_acked", "Events that members of a group acked."),
            (What::Nacked, "events_nacked", "Events that members of a group nacked or gave up."),
        ] {
            let mut head = out.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
            for (group, counts) in &groups {
                let last = counts.by_topic.len() - 1;
                let slots = (0..topics.len() - 1).chain([last]);
                for (topic, slot) in topics.iter().zip(slots) {
                    let count = counts.by_topic[slot][what as usize].load(Relaxed);
                    if count > 0 {
                        let labels = [("topic", topic.as_str()), ("group", group)];
                        ConstCounter::new(count).encode(head.encode_family(&labels)?)?;
                    }
                }
            }
        }
        let letters = "Events of a group that became dead letters.";
        let expired = "Events that expired before a group had them.";
        for (name, help, get) in [
            ("castra_group_dead_letters", letters, (|c| &c.dead_letters) as fn(&Counts) -> &AtomicU64),
            ("castra_group_expired_events", expired, |c| &c.expired),
        ] {
            let mut head = out.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
            for (group, counts) in &groups {
                let count = get(counts).load(Relaxed);
                ConstCounter::new(count).encode(head.encode_family(&[("group", &**group)])?)?;
            }
        }
        let polls = "Time of a read of the journal for a group that is behind.";
        let handlers = "Time from a delivery to the member's ack or nack.";
        for (name, help, get) in [
            ("subscribe_poll_duration_seconds", polls, (|c| &c.polls) as fn(&Counts) -> &Histogram),
            ("delivery_handler_duration_seconds", handlers, |c| &c.handlers),
        ] {
            let mut head = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (group, counts) in &groups {
                get(counts).encode(head.encode_family(&[("group", &**group)])?)?;
            }
        }
        self.gauges(out, &groups)
    }
}

impl Grouped {
    /// What is known anyway: of each group that has a name; of the others the sum, or the worst.
    fn gauges(&self, mut out: DescriptorEncoder<'_>, named: &[(Box<str>, Arc<Counts>)]) -> fmt::Result {
        let Some(running) = self.1.running.get() else { return Ok(()) };
        let (mut of, mut count) = (BTreeMap::<&str, [u64; 3]>::new(), 0);
        let figures = running.groups.figures();
        for group in &figures {
            count += 1;
            let is_named = named.iter().any(|(name, _)| **name == *group.name);
            let [held, members, lag] = of.entry(if is_named { &group.name } else { OTHER }).or_default();
            *held += group.in_flight;
            *members += group.members;
            *lag = (*lag).max(group.lag);
        }
        let lag = "Events between what a group has done and the newest one; of 'other' the most.";
        for (n, (name, help)) in [
            ("events_inflight", "Events that members of a group hold."),
            ("castra_group_members", "Members of a group."),
            ("castra_group_lag_events", lag),
        ]
        .into_iter()
        .enumerate()
        {
            let mut head = out.encode_descriptor(name, help, None, ConstGauge::<u64>::TYPE)?;
            for (group, values) in &of {
                ConstGauge::new(values[n]).encode(head.encode_family(&[("group", *group)])?)?;
            }
        }
        let head =
            out.encode_descriptor("castra_groups", "Consumer groups.", None, ConstGauge::<u64>::TYPE)?;
        ConstGauge::<u64>::new(count).encode(head)
    }
}
