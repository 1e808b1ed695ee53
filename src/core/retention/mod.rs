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
//! broker runs. Pure, but for `sweep.rs`: the wall time comes from outside. Owner: `broker.rs` makes one, `delivery` looks at it.

pub mod sweep;
mod tally;

use super::event::Event;
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

/// Whether an event whose topic has this bound is of no use any more at `now`, wall time in milliseconds.
pub fn is_expired(event: &Event<'_>, bound: Option<Bound>, now: u64) -> bool {
    expires_at(event, bound).is_some_and(|at| at <= now)
        || bound.is_some_and(|bound| event.seq <= bound.through)
}

/// When an event whose topic has this bound is of no use any more, wall time in milliseconds, as far as it depends on time.
pub fn expires_at(event: &Event<'_>, bound: Option<Bound>) -> Option<u64> {
    let by_age = bound.and_then(|bound| bound.age_ms).map(|age| event.ts.saturating_add(age));
    event.expires_at().into_iter().chain(by_age).min()
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
        let expired = |topic: &str, ttl_ms: Option<u64>, now: u64| {
            let mut batch = Batch::default();
            let publish = Publish { topic: Some(Text(topic.into())), ttl_ms, ..Publish::default() };
            batch.push(&VmName::host(), &publish, |out| out.push(b'i')).unwrap();
            let line = [b"{\"seq\":5,\"ts\":100,", batch.tail(&batch.drafts()[0])].concat();
            let layout = Layout::of(&batch.drafts()[0], 18);
            let event = Event { seq: 5, ts: 100, line: &line, layout };
            is_expired(&event, retention.of(event.topic()), now)
        };
        assert_eq!([109, 110].map(|now| expired("a.c", None, now)), [false, true]);
        assert!(!expired("a.b", None, 1000), "the first one has no bound");
        assert!(!expired("other", None, u64::MAX));
        assert!(expired("\"q", None, 101), "topics are compared as they are encoded");
        assert_eq!([104, 105].map(|now| expired("other", Some(5), now)), [false, true]);
        retention.rules[0].through.store(5, Relaxed);
        assert!(expired("a.b", None, 100));
        retention.rules[0].through.store(4, Relaxed);
        assert!(!expired("a.b", None, 100));
    }
}
