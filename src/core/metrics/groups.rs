//! What metrics count of consumer groups, by topic and group.
//!
//! Always holds: no more than [`METRICS_GROUPS`] groups have a name: those of the host, then those that were there first;
//! all others are one, `OTHER`; topics as in `topics.rs`. What was counted under a name that is given away goes to
//! `OTHER`, in one: no sum over groups ever goes back. What members hold, and how far a group is, is looked up when
//! somebody asks. Owner: [`super::Metrics`]; `delivery/groups/counting.rs` counts, one thread at a time for each group.

use super::topics::{OTHER, Topics};
use super::{SECONDS, Sources};
use crate::core::limits::{METRICS_GROUPS, METRICS_TOPICS};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// How long something took, how often; the times are in seconds.
#[derive(Clone, Debug, Default)]
struct Times {
    sum: f64,
    /// Up to each of [`SECONDS`], and beyond the last.
    buckets: [u64; SECONDS.len() + 1],
}

impl Times {
    fn observe(&mut self, seconds: f64) {
        self.sum += seconds;
        self.buckets[SECONDS.partition_point(|bound| *bound < seconds)] += 1;
    }

    fn take_in(&mut self, from: &Times) {
        self.sum += from.sum;
        self.buckets.iter_mut().zip(from.buckets).for_each(|(own, more)| *own += more);
    }
}

/// What was counted.
#[derive(Clone, Debug)]
struct Sums {
    /// By the topic's place.
    by_topic: Vec<[u64; 3]>,
    dead_letters: u64,
    expired: u64,
    polls: Times,
    handlers: Times,
}

impl Sums {
    fn new() -> Self {
        let (dead_letters, expired, polls, handlers) = Default::default();
        Sums { by_topic: vec![[0; 3]; METRICS_TOPICS + 1], dead_letters, expired, polls, handlers }
    }

    fn take_in(&mut self, from: &Sums) {
        let counts = self.by_topic.iter_mut().zip(&from.by_topic);
        counts.for_each(|(own, more)| own.iter_mut().zip(more).for_each(|(own, more)| *own += more));
        self.dead_letters += from.dead_letters;
        self.expired += from.expired;
        self.polls.take_in(&from.polls);
        self.handlers.take_in(&from.handlers);
    }
}

/// What is counted of one group, or of all that have no name.
#[derive(Debug)]
pub struct Counts {
    /// The topics that have a name.
    pub topics: Arc<Topics>,
    /// None: all that is counted here, and was, is counted by `OTHER`.
    sums: Mutex<Option<Sums>>,
    /// None: this is it.
    other: Option<Arc<Counts>>,
}

impl Counts {
    fn new(topics: Arc<Topics>, other: Option<Arc<Counts>>) -> Arc<Self> {
        Arc::new(Counts { topics, sums: Mutex::new(Some(Sums::new())), other })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sums>> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, add: impl FnOnce(&mut Sums)) {
        let mut sums = self.lock();
        match (&mut *sums, &self.other) {
            (Some(sums), _) => add(sums),
            (None, Some(other)) => {
                drop(sums);
                other.count(add);
            }
            (None, None) => {}
        }
    }

    /// So many events of the topic of this place.
    pub fn add(&self, what: What, slot: usize, events: u64) {
        self.count(|sums| {
            sums.by_topic.get_mut(slot).into_iter().for_each(|counts| counts[what as usize] += events)
        });
    }

    /// A dead letter is durable.
    pub fn dead_letter(&self) {
        self.count(|sums| sums.dead_letters += 1);
    }

    /// So many events expired before the group had them.
    pub fn expired(&self, events: u64) {
        self.count(|sums| sums.expired += events);
    }

    /// The journal was read for the group; in seconds.
    pub fn polled(&self, seconds: f64) {
        self.count(|sums| sums.polls.observe(seconds));
    }

    /// A member had an event for so long before it said what became of it; in seconds.
    pub fn handled(&self, seconds: f64) {
        self.count(|sums| sums.handlers.observe(seconds));
    }

    /// From here on `OTHER` counts, what was counted here as well.
    fn give_up(&self) {
        let sums = self.lock().take();
        if let (Some(sums), Some(other)) = (sums, &self.other) {
            other.count(|own| own.take_in(&sums));
        }
    }
}

/// A group that has a name.
#[derive(Debug)]
struct Named {
    counts: Arc<Counts>,
    /// When it came, of those that guests made; none of the host's.
    guest: Option<u64>,
}

/// The groups that have a name.
#[derive(Debug)]
pub struct Table {
    /// They, and how many ever had one.
    named: Mutex<(BTreeMap<Box<str>, Named>, u64)>,
    other: Arc<Counts>,
}

impl Table {
    /// Nothing is counted yet.
    pub fn new(topics: &Arc<Topics>) -> Arc<Self> {
        Arc::new(Table { named: Mutex::default(), other: Counts::new(topics.clone(), None) })
    }

    fn lock(&self) -> MutexGuard<'_, (BTreeMap<Box<str>, Named>, u64)> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a group counts, which `by` has made. When no name is left one of the host has that of the guests' youngest.
    pub fn of(&self, group: &str, by: &str) -> Arc<Counts> {
        let (named, came) = &mut *self.lock();
        if let Some(one) = named.get(group) {
            return one.counts.clone();
        }
        let is_host = by == "host";
        if named.len() >= METRICS_GROUPS {
            let guests = named.iter().filter_map(|(name, one)| Some((one.guest?, name)));
            let Some((_, youngest)) = guests.max().filter(|_| is_host) else { return self.other.clone() };
            let youngest = youngest.clone();
            named.remove(&youngest).into_iter().for_each(|one| one.counts.give_up());
        }
        *came += 1;
        let counts = Counts::new(self.other.topics.clone(), Some(self.other.clone()));
        named.insert(group.into(), Named { counts: counts.clone(), guest: (!is_host).then_some(*came) });
        counts
    }

    /// There is no such group any more: its name is free.
    pub fn free(&self, group: &str) {
        let mut named = self.lock();
        named.0.remove(group).into_iter().for_each(|one| one.counts.give_up());
    }

    /// What was counted, all at one time; `OTHER` is the last.
    fn all(&self) -> Vec<(Box<str>, Sums)> {
        let named = self.lock();
        let sums = |counts: &Counts| counts.lock().clone().unwrap_or_else(Sums::new);
        let all = named.0.iter().map(|(name, one)| (name.clone(), sums(&one.counts)));
        all.chain([(OTHER.into(), sums(&self.other))]).collect()
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
                    let count = counts.by_topic[slot][what as usize];
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
            ("castra_group_dead_letters", letters, (|c| c.dead_letters) as fn(&Sums) -> u64),
            ("castra_group_expired_events", expired, |c| c.expired),
        ] {
            let mut head = out.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
            for (group, counts) in &groups {
                ConstCounter::new(get(counts)).encode(head.encode_family(&[("group", &**group)])?)?;
            }
        }
        let polls = "Time of a read of the journal for a group that is behind.";
        let handlers = "Time from a delivery to the member's ack or nack.";
        for (name, help, get) in [
            ("subscribe_poll_duration_seconds", polls, (|c| &c.polls) as fn(&Sums) -> &Times),
            ("delivery_handler_duration_seconds", handlers, |c| &c.handlers),
        ] {
            let mut head = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (group, counts) in &groups {
                let Times { sum, buckets } = get(counts);
                let bounds = SECONDS.into_iter().chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(*buckets).collect();
                let count = buckets.iter().map(|(_, count)| count).sum();
                let labels = [("group", &**group)];
                let mut one = head.encode_family(&labels)?;
                one.encode_histogram::<NoLabelSet>(*sum, count, &buckets, None)?;
            }
        }
        self.gauges(out, &groups)
    }
}

impl Grouped {
    /// What is known anyway: of each group that has a name; of the others the sum, or the worst.
    fn gauges(&self, mut out: DescriptorEncoder<'_>, named: &[(Box<str>, Sums)]) -> fmt::Result {
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
        let lag = "Events that a group has yet to do, as far as they are counted; of '$other' the most.";
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
