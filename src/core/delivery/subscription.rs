//! What one session subscribes to, and how far each subscription has come. Next: the peer's socket.
//!
//! ```text
//!             read to the head, joined
//!   behind ─────────────────────────────▶ live      events come from the router
//!    ▲ │ ▲  events are read from the journal  │
//!    │ │ └────────────────────────────────────┘
//!    │ │            no room in the queue: pressed
//!    │ ▼ events are gone, for somebody who keeps the state
//!   state    the newest events per key, tombstones too where something was known before
//! ```
//!
//! Always holds: a subscription gets each event it wants once, in order, whichever way it comes: `next` only grows; a
//! session has so many patterns at most (invariant 6). Pure. Owner: the session.

use super::interest::Interest;
use crate::core::limits::{CATCH_UP_TOGETHER, OUTPUT_BYTES};
use crate::core::refusal::Refusal;
use std::sync::Arc;

/// Where a subscription's events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The router, as they are committed.
    Live,
    /// The newest events per key, of all up to this seq; then the journal.
    State {
        /// It.
        through: u64,
        /// Tombstones as well: the subscriber knows the state of what is before.
        ended: bool,
    },
    /// The journal.
    Behind {
        /// Because there was no room, and not because it began there.
        pressed: bool,
    },
}

/// One subscription.
#[derive(Debug)]
pub struct Subscription {
    /// Its number in its session; never used again.
    pub id: u32,
    /// What it wants.
    pub interest: Arc<Interest>,
    /// It was sent everything that it wants before this seq.
    pub next: u64,
    /// Where the rest comes from.
    pub source: Source,
    /// The subscriber keeps the state: how often keys had been lost when it began.
    pub keeps: Option<u64>,
}

/// Somebody for whom the journal is read.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The number of the subscription.
    pub id: u32,
    /// Its next seq.
    pub next: u64,
    /// What it wants.
    pub interest: Arc<Interest>,
    /// It keeps the state: what is gone is not passed over, and no change of the state is out of date.
    pub keeps: bool,
}

/// What a subscription is sent out of the state.
#[derive(Clone, Debug)]
pub struct StatePlan {
    /// The number of the subscription.
    pub id: u32,
    /// Where it is.
    pub at: u64,
    /// Up to where.
    pub through: u64,
    /// Tombstones as well.
    pub ended: bool,
    /// What it wants.
    pub interest: Arc<Interest>,
}

impl Subscription {
    fn is_behind(&self) -> bool {
        matches!(self.source, Source::Behind { .. })
    }
}

/// What some subscriptions are to be sent from the journal.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to begin.
    pub at: u64,
    /// For whom.
    pub wanted: Vec<Wanted>,
    /// About so many bytes of frames at a time.
    pub bytes: usize,
}

/// All subscriptions of one session.
#[derive(Debug, Default)]
pub struct Subscriptions {
    list: Vec<Subscription>,
    last_id: u32,
}

impl Subscriptions {
    /// Whether `interest` may be added to at most `most` patterns; `Some(next)` when it is there already.
    ///
    /// # Errors
    /// `sub-exists`, `too-many-subscriptions`.
    pub fn check(&self, interest: &Interest, most: usize) -> Result<Option<u64>, Refusal> {
        let (name, count) = (interest.sub(), interest.patterns().len());
        match self.list.iter().find(|old| old.interest.sub() == name) {
            Some(old) if *old.interest == *interest => Ok(Some(old.next)),
            Some(_) => {
                let reason = format!(
                    "the session has a subscription '{name:.64}' of something else; unsubscribe it first"
                );
                Err(Refusal::new("sub-exists", reason))
            }
            None if self.patterns() + count > most => {
                let reason = format!("a session subscribes at most {most} patterns");
                Err(Refusal::new("too-many-subscriptions", reason))
            }
            None => Ok(None),
        }
    }

    fn patterns(&self) -> usize {
        self.list.iter().map(|subscription| subscription.interest.patterns().len()).sum()
    }

    /// Adds a subscription that was checked; it is behind. Its number.
    pub fn add(&mut self, interest: Arc<Interest>, next: u64) -> u32 {
        self.last_id += 1;
        let source = Source::Behind { pressed: false };
        self.list.push(Subscription { id: self.last_id, interest, next, source, keeps: None });
        self.last_id
    }

    /// Takes the subscription of that name out.
    pub fn remove(&mut self, sub: &str) -> Option<Subscription> {
        let i = self.list.iter().position(|subscription| subscription.interest.sub() == sub)?;
        Some(self.list.remove(i))
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.list.iter()
    }

    /// The one of that number; none when it was unsubscribed.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Subscription> {
        self.list.iter_mut().find(|subscription| subscription.id == id)
    }

    /// What is to be read for those that are furthest behind.
    pub fn plan(&self) -> Option<Plan> {
        let behind = self.list.iter().filter(|s| s.is_behind());
        let wanted = |s: &Subscription| Wanted {
            id: s.id,
            next: s.next,
            interest: s.interest.clone(),
            keeps: s.keeps.is_some(),
        };
        let mut wanted: Vec<_> = behind.map(wanted).collect();
        wanted.sort_unstable_by_key(|wanted| wanted.next);
        wanted.truncate(CATCH_UP_TOGETHER);
        let at = wanted.iter().map(|wanted| wanted.next).min()?;
        Some(Plan { at, wanted, bytes: OUTPUT_BYTES })
    }

    /// The first one that is to be sent the state.
    pub fn state(&self) -> Option<StatePlan> {
        self.list.iter().find_map(|s| match s.source {
            Source::State { through, ended } => {
                Some(StatePlan { id: s.id, at: s.next, through, ended, interest: s.interest.clone() })
            }
            _ => None,
        })
    }

    /// The next seq of the one that is furthest behind.
    pub fn behind(&self) -> Option<u64> {
        self.list.iter().filter(|s| s.is_behind()).map(|s| s.next).min()
    }

    /// Whether one is behind because there was no room.
    pub fn is_pressed(&self) -> bool {
        self.list.iter().any(|s| s.source == Source::Behind { pressed: true })
    }

    /// What they want, as it was typed.
    pub fn topics(&self) -> Vec<Box<str>> {
        self.list.iter().flat_map(|s| s.interest.topics()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::topic::Pattern;

    fn interest(sub: &str, patterns: &[&str]) -> Arc<Interest> {
        let patterns: Vec<Pattern> = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
        Arc::new(Interest::new(sub.into(), &patterns))
    }

    #[test]
    fn names_are_taken_once_and_patterns_are_counted() {
        let mut all = Subscriptions::default();
        let code = |checked: Result<Option<u64>, Refusal>| checked.map_err(|refusal| refusal.code);
        assert_eq!(all.check(&interest("a", &["a"]), 2), Ok(None));
        let id = all.add(interest("a", &["a"]), 7);
        assert_eq!(all.check(&interest("a", &["a", "a"]), 2), Ok(Some(7)));
        assert_eq!(code(all.check(&interest("a", &["b"]), 2)), Err("sub-exists"));
        assert_eq!(code(all.check(&interest("b", &["b", "c"]), 2)), Err("too-many-subscriptions"));
        assert_eq!(all.check(&interest("b", &["b"]), 2), Ok(None));
        assert_eq!(all.remove("a").unwrap().id, id);
        assert!(all.remove("a").is_none() && all.get_mut(id).is_none());
        assert_ne!(all.add(interest("a", &["a"]), 7), id);
    }

    #[test]
    fn those_behind_are_read_for_from_the_furthest_on() {
        let mut all = Subscriptions::default();
        let ids = [5, 3, 9].map(|next| all.add(interest(&next.to_string(), &["a"]), next));
        assert_eq!((all.plan().unwrap().at, all.behind()), (3, Some(3)));
        all.get_mut(ids[1]).unwrap().source = Source::Live;
        let plan = all.plan().unwrap();
        assert_eq!((plan.at, plan.wanted.len(), all.is_pressed()), (5, 2, false));
        all.get_mut(ids[0]).unwrap().source = Source::Behind { pressed: true };
        assert!(all.is_pressed());
        // Not all of many at once, and those that are furthest behind first.
        let more: Vec<u32> = (0..40).map(|n| all.add(interest(&format!("m{n}"), &["a"]), 100 - n)).collect();
        let plan = all.plan().unwrap();
        assert_eq!((plan.at, plan.wanted.len()), (5, CATCH_UP_TOGETHER));
        assert!(plan.wanted.iter().all(|wanted| wanted.next < 61 + CATCH_UP_TOGETHER as u64));
        more.iter().for_each(|id| all.get_mut(*id).unwrap().source = Source::Live);
        ids.iter().for_each(|id| all.get_mut(*id).unwrap().source = Source::Live);
        assert!(all.plan().is_none() && all.behind().is_none());
    }
}
