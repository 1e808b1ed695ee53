//! Which events are of no use any more, though the journal still has them: those whose `ttl_ms` is over, and those
//! that a rule for their topics has expired, by age, bytes or count.
//!
//! ```text
//! sweep.rs ── reads the journal ──▶ tally.rs ──▶ how far each rule has expired ──▶ catch_up, groups: passed over
//!                                                └▶ segments that hold nothing else ──▶ the journal's keeper: removed
//! ```
//!
//! Always holds: the first rule in the file that matches a topic is the one that counts; what a rule has expired is a
//! beginning of what it matches, so one seq says it; an event that was expired by bytes or count stays so while the
//! broker runs. Pure, but for `sweep.rs`: how old events are comes from outside. Owner: `broker.rs` makes one, `delivery` looks at it.

pub mod sweep;
mod tally;

use super::event::Event;
use super::journal::Ages;
use super::topic::Pattern;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tally::Tally;

/// How long the events of some topics are of use; nothing set is no bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// As it was typed.
    pub topic: Pattern,
    /// Not older than this, in milliseconds.
    pub age_ms: Option<u64>,
    /// The newest ones of so many bytes in all, as they are encoded; up to a 64th more.
    pub bytes: Option<u64>,
    /// So many of the newest ones; up to a 64th more.
    pub count: Option<u64>,
}

#[derive(Debug)]
struct Ruled {
    rule: Rule,
    /// As topics stand in encoded events.
    pattern: Pattern,
    /// What it matches is expired by bytes or count through this seq.
    through: AtomicU64,
}

/// All rules, and how far each has come.
#[derive(Debug, Default)]
pub struct Retention {
    rules: Box<[Ruled]>,
    /// The segments through this seq hold nothing that is of use.
    useless: Arc<AtomicU64>,
}

/// The rule of a topic.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    age_ms: Option<u64>,
    through: u64,
}

impl Retention {
    /// In the order of the file. Where none has a bound there is none.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        let is_bound = |rule: &Rule| rule.age_ms.is_some() || rule.bytes.is_some() || rule.count.is_some();
        if !rules.iter().any(is_bound) {
            rules.clear();
        }
        let ruled = |rule: Rule| Ruled { pattern: rule.topic.encoded(), rule, through: AtomicU64::new(0) };
        Retention { rules: rules.into_iter().map(ruled).collect(), useless: Arc::default() }
    }

    /// There is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    fn rule_of(&self, topic: &[u8]) -> Option<usize> {
        // What is encoded is UTF-8.
        let topic = std::str::from_utf8(topic).unwrap_or_default();
        self.rules.iter().position(|ruled| ruled.pattern.matches(topic))
    }

    /// What holds now for events of this encoded topic, if anything does.
    pub fn of(&self, topic: &[u8]) -> Option<Bound> {
        let ruled = &self.rules[self.rule_of(topic)?];
        Some(Bound { age_ms: ruled.rule.age_ms, through: ruled.through.load(Relaxed) })
    }

    /// The segments whose last seq is at or before this hold nothing that is of use.
    pub fn useless(&self) -> Arc<AtomicU64> {
        self.useless.clone()
    }

    fn tallies(&self) -> Vec<Tally> {
        self.rules.iter().map(|ruled| Tally::new(ruled.rule.bytes, ruled.rule.count)).collect()
    }
}

/// What ends an event's use with time: its `ttl_ms`, or the age that a rule allows.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    seq: u64,
    ts: u64,
    ttl_ms: Option<u64>,
    age_ms: Option<u64>,
}

impl Expiry {
    /// That of an event whose topic has this bound, if there is one.
    pub fn of(event: &Event<'_>, bound: Option<Bound>) -> Option<Self> {
        let (ttl_ms, age_ms) = (event.ttl_ms(), bound.and_then(|bound| bound.age_ms));
        let Event { seq, ts, .. } = *event;
        (ttl_ms.is_some() || age_ms.is_some()).then_some(Expiry { seq, ts, ttl_ms, age_ms })
    }

    /// Whether the event is of no use any more, now that events are so old.
    pub fn is_over(&self, ages: &Ages) -> bool {
        self.ttl_ms.is_some_and(|ttl| ages.is_over(self.seq, self.ts, ttl))
            || self.age_ms.is_some_and(|age| ages.is_past(self.seq, age))
    }

    /// The one of two that is over first, as far as the `ts` of their events tell.
    pub fn first(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.into_iter().chain(other).min_by_key(Expiry::by_ts)
    }

    fn by_ts(&self) -> u64 {
        let after = self.ttl_ms.into_iter().chain(self.age_ms).min();
        after.map_or(u64::MAX, |ms| self.ts.saturating_add(ms))
    }
}

/// Whether an event whose topic has this bound is of no use any more, now that events are so old.
pub fn is_expired(event: &Event<'_>, bound: Option<Bound>, ages: &Ages) -> bool {
    bound.is_some_and(|bound| event.seq <= bound.through)
        || Expiry::of(event, bound).is_some_and(|expiry| expiry.is_over(ages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Batch, Layout, Publish, Text};
    use crate::core::identity::VmName;

    fn rule(topic: &str, age_ms: Option<u64>) -> Rule {
        Rule { topic: Pattern::parse(topic).unwrap(), age_ms, bytes: None, count: None }
    }

    #[test]
    fn rules_without_a_bound_are_none() {
        assert!(Retention::new(vec![rule("a", None), rule("b", None)]).is_empty());
        assert!(!Retention::new(vec![rule("a", None), rule("b", Some(1))]).is_empty());
    }

    #[test]
    fn the_first_rule_that_matches_counts_and_a_ttl_in_any_case() {
        let retention = Retention::new(vec![rule("a.b", None), rule("a.*", Some(10)), rule("\"q", Some(1))]);
        let expired = |topic: &str, ttl_ms: Option<u64>, age: i64| {
            let mut batch = Batch::default();
            let publish = Publish { topic: Some(Text(topic.into())), ttl_ms, ..Publish::default() };
            batch.push(&VmName::host(), &publish, |out| out.push(b'i')).unwrap();
            let line = [b"{\"seq\":5,\"ts\":100,", batch.tail(&batch.drafts()[0])].concat();
            let layout = Layout::of(&batch.drafts()[0], 18);
            let event = Event { seq: 5, ts: 100, line: &line, layout };
            is_expired(&event, retention.of(event.topic()), &Ages::all_of(age))
        };
        assert_eq!([9, 10].map(|age| expired("a.c", None, age)), [false, true]);
        assert!(!expired("a.b", None, 900), "the first one has no bound");
        assert!(!expired("other", None, i64::MAX));
        assert!(expired("\"q", None, 1), "topics are compared as they are encoded");
        assert_eq!([4, 5].map(|age| expired("other", Some(5), age)), [false, true]);
        retention.rules[0].through.store(5, Relaxed);
        assert!(expired("a.b", None, 0));
        retention.rules[0].through.store(4, Relaxed);
        assert!(!expired("a.b", None, 0));
    }
}
