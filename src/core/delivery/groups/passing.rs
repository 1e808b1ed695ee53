//! What passes by groups that have no members: events of other topics, and what expires before anybody has come.
//!
//! Always holds: each group passes everything before the first event that it wants and that is of use, and nothing
//! behind it; the journal is gone over once for all of them, from the first place on. Pure. Owner: `absent.rs`.

use crate::core::delivery::interest::Interest;
use crate::core::delivery::patterns::Patterns;
use crate::core::event::Event;
use crate::core::journal::Ages;
use crate::core::retention::{Bound, is_expired};

/// The event that a group without members waits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    pub seq: u64,
    /// It has a `ttl_ms`.
    pub expires: bool,
}

/// How far a group is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// Everything through this seq has passed.
    pub through: u64,
    /// So many of these were gone or have expired.
    pub expired: u64,
    pub awaited: Option<Awaited>,
}

struct One {
    interest: Interest,
    next: u64,
    expired: u64,
    is_over: bool,
}

/// Some groups, and a place in the journal.
pub(super) struct Passing {
    /// In the order of where they begin.
    groups: Vec<One>,
    /// So many of them begin at or before the place.
    begun: usize,
    /// Those that have begun and are not over.
    patterns: Patterns<u32>,
    left: usize,
    found: Vec<u32>,
}

impl Passing {
    /// Groups, each with the seq where it begins, in this order.
    pub fn new(groups: Vec<(Interest, u64)>) -> Self {
        let one = |(interest, next)| One { interest, next, expired: 0, is_over: false };
        let groups = groups.into_iter().map(one).collect();
        Passing { groups, begun: 0, patterns: Patterns::default(), left: 0, found: Vec::new() }
    }

    /// Where to read on after everything before `next`; `None` when all are over.
    pub fn from(&self, next: u64) -> Option<u64> {
        if self.left > 0 {
            return Some(next);
        }
        self.groups.get(self.begun).map(|one| one.next.max(next))
    }

    fn begin(&mut self, through: u64) {
        while let Some(one) = self.groups.get(self.begun)
            && one.next <= through
        {
            one.interest
                .patterns()
                .iter()
                .for_each(|pattern| self.patterns.insert(pattern, self.begun as u32));
            self.begun += 1;
            self.left += 1;
        }
    }

    /// The next event, whose topic has this bound, now that events are so old; `over` is told whose way ends at it.
    pub fn event(
        &mut self,
        event: &Event<'_>,
        bound: impl FnOnce() -> Option<Bound>,
        ages: &Ages,
        mut over: impl FnMut(usize, Passed),
    ) {
        self.begin(event.seq);
        if self.left == 0 {
            return;
        }
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        self.patterns.find(std::str::from_utf8(event.topic()).unwrap_or_default(), &mut found);
        found.sort_unstable();
        found.dedup();
        found.retain(|n| self.groups[*n as usize].interest.may_pass(event.line));
        if !found.is_empty() {
            let has_expired = is_expired(event, bound(), ages);
            for n in &found {
                let one = &mut self.groups[*n as usize];
                if has_expired {
                    one.expired += 1;
                    continue;
                }
                one.is_over = true;
                self.left -= 1;
                one.interest.patterns().iter().for_each(|pattern| self.patterns.remove(pattern, *n));
                let awaited = Some(Awaited { seq: event.seq, expires: event.layout.expires });
                over(*n as usize, Passed { through: event.seq - 1, expired: one.expired, awaited });
            }
        }
        self.found = found;
    }

    /// These seqs are gone.
    pub fn gap(&mut self, from: u64, to: u64) {
        self.begin(to);
        for one in self.groups[..self.begun].iter_mut().filter(|one| !one.is_over && one.next <= to) {
            one.expired += (to + 1).saturating_sub(from.max(one.next));
            one.next = to.saturating_add(1);
        }
    }

    /// All that are left have come through this seq.
    pub fn end(self, through: u64) -> impl Iterator<Item = (usize, Passed)> {
        let left = self.groups.into_iter().enumerate().take(self.begun).filter(|(_, one)| !one.is_over);
        left.map(move |(n, one)| (n, Passed { through, expired: one.expired, awaited: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Batch, Layout, Publish, Text};
    use crate::core::identity::VmName;
    use crate::core::topic::Pattern;
    use crate::core::wire::group::Spec;
    use proptest::prelude::*;

    const TOPICS: [&str; 3] = ["a", "a.b", "c"];
    const PATTERNS: [&[&str]; 4] = [&["a"], &["a.*", "c"], &[">", "a.b"], &["nothing"]];

    fn interest(n: usize) -> Interest {
        let patterns: Vec<Pattern> = PATTERNS[n].iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let spec = Spec {
            topics: Vec::new(),
            headers: Default::default(),
            tags: Vec::new(),
            batch: 1,
            ack_timeout_ms: 1,
            max_attempts: 1,
            ordered_by_key: false,
        };
        Interest::of_group("g", &patterns, &spec)
    }

    /// An event, which has expired if it can.
    fn event(seq: u64, topic: &str, expires: bool, look: impl FnOnce(&Event<'_>)) {
        let mut batch = Batch::default();
        let publish =
            Publish { topic: Some(Text(topic.into())), ttl_ms: expires.then_some(1), ..Publish::default() };
        batch.push(&VmName::host(), &publish, |out| out.push(b'i')).unwrap();
        let head = format!("{{\"seq\":{seq},\"ts\":100,");
        let line = [head.as_bytes(), batch.tail(&batch.drafts()[0])].concat();
        look(&Event { seq, ts: 100, line: &line, layout: Layout::of(&batch.drafts()[0], head.len()) });
    }

    proptest! {
        #[test]
        fn each_group_passes_what_is_not_its_own_up_to_what_is(
            first in 1u64..6,
            events in proptest::collection::vec((0usize..3, any::<bool>()), 0..30),
            mut groups in proptest::collection::vec((0usize..4, 1u64..40), 0..9),
        ) {
            groups.sort_by_key(|(_, next)| *next);
            let last = first + events.len() as u64 - 1;
            groups.retain(|(_, next)| *next <= last);
            let mut passing = Passing::new(groups.iter().map(|(n, next)| (interest(*n), *next)).collect());
            let mut passed: Vec<Option<Passed>> = groups.iter().map(|_| None).collect();
            // All before the first event are gone.
            if first > 1 && passing.from(1).is_some_and(|from| from < first) {
                passing.gap(1, first - 1);
            }
            for (seq, (topic, expires)) in (first..).zip(&events) {
                if passing.from(seq).is_some_and(|from| from <= seq) {
                    let over = |n: usize, at: Passed| assert!(passed[n].replace(at).is_none());
                    event(seq, TOPICS[*topic], *expires, |event| passing.event(event, || None, &Ages::all_of(1), over));
                }
            }
            for (n, at) in passing.end(last) {
                prop_assert!(passed[n].replace(at).is_none());
            }
            for ((n, next), passed) in groups.iter().zip(&passed) {
                let mut expected = Passed { through: last, expired: first.saturating_sub(*next), awaited: None };
                for (seq, (topic, expires)) in (first..).zip(&events).skip_while(|(seq, _)| seq < next) {
                    if interest(*n).wants(TOPICS[*topic]) {
                        if !expires {
                            expected.through = seq - 1;
                            expected.awaited = Some(Awaited { seq, expires: false });
                            break;
                        }
                        expected.expired += 1;
                    }
                }
                prop_assert_eq!(passed.as_ref(), Some(&expected));
            }
        }
    }
}
