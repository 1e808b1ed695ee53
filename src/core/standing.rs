//! Where one session stands: what it subscribes to, what waits for it, how far it is behind.
//!
//! Always holds: a session tells it, nobody asks the session (invariant 8); nothing here waits for anything but a
//! copy of a few topics, and what is kept is bounded. Pure. Owner: `status.rs`; the session tells.

use super::identity::Identity;
use super::limits::TOPICS_SHOWN;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// No subscription of the session reads the journal.
const LIVE: u64 = u64::MAX;

/// Where one session stands; `castra status` shows those of a VM together.
#[derive(Debug)]
pub struct Standing {
    topics: Mutex<Topics>,
    queued: AtomicU64,
    behind: AtomicU64,
    identity: Mutex<Identity>,
    changed: Arc<AtomicBool>,
}

/// What sessions amount to, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// VMs that are remembered; the host is none.
    pub vms: u64,
    /// Open sessions, those of the host with them.
    pub sessions: u64,
    /// … of them, those that have a subscription which reads the journal.
    pub behind: u64,
    /// Topics and patterns that they subscribe to, each once a session.
    pub subscriptions: u64,
    /// Events that wait in the broker for them.
    pub queued: u64,
    /// The most events that any subscription is behind.
    pub lag: u64,
    /// Their publishes that wait for an ack.
    pub in_flight: u64,
}

/// The first topics in order, and how many more there are.
#[derive(Debug, Default)]
struct Topics {
    first: Vec<Box<str>>,
    more: u64,
}

impl Standing {
    /// That of a session which subscribes to nothing yet.
    pub(super) fn new(changed: Arc<AtomicBool>) -> Self {
        Standing {
            topics: Mutex::default(),
            queued: AtomicU64::new(0),
            behind: AtomicU64::new(LIVE),
            identity: Mutex::new(Identity::Name),
            changed,
        }
    }

    /// What proves its name.
    pub fn proved(&self, identity: Identity) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
        self.changed.store(true, Relaxed);
    }

    /// What it subscribes to now, names and patterns, in any order.
    pub fn topics(&self, mut topics: Vec<Box<str>>) {
        topics.sort_unstable();
        topics.dedup();
        let more = topics.len().saturating_sub(TOPICS_SHOWN) as u64;
        topics.truncate(TOPICS_SHOWN);
        topics.shrink_to_fit();
        *self.topics.lock().unwrap_or_else(PoisonError::into_inner) = Topics { first: topics, more };
        self.changed.store(true, Relaxed);
    }

    /// So many events wait in the broker for it. One store: to be called as often as one likes. Seen when
    /// something else changes, and once a second.
    pub fn queued(&self, events: u64) {
        self.queued.store(events, Relaxed);
    }

    /// The next seq that it reads from the journal, that of the subscription furthest back; none when all are
    /// live.
    pub fn behind(&self, next_seq: Option<u64>) {
        let next = next_seq.unwrap_or(LIVE);
        if self.behind.swap(next, Relaxed) != next {
            self.changed.store(true, Relaxed);
        }
    }
}

impl Standing {
    /// It reads the event `seq` or an older one.
    pub(super) fn is_behind(&self, seq: u64) -> bool {
        self.behind.load(Relaxed) <= seq
    }
}

impl Totals {
    /// Takes in a session, while `head_seq` is the newest event.
    pub(super) fn add(&mut self, session: &Standing, head_seq: u64) {
        let behind = session.behind.load(Relaxed);
        let topics = session.topics.lock().unwrap_or_else(PoisonError::into_inner);
        self.sessions += 1;
        self.behind += u64::from(behind != LIVE);
        self.subscriptions += topics.first.len() as u64 + topics.more;
        self.queued += session.queued.load(Relaxed);
        self.lag = self.lag.max((head_seq + 1).saturating_sub(behind));
    }
}

/// Where all sessions of a VM stand.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Together {
    /// Sorted, each once, at most [`TOPICS_SHOWN`] and so many bytes as were asked for.
    pub topics: Vec<String>,
    /// How many topics there are beside them; what several sessions have may count several times.
    pub topics_more: u64,
    /// Events that wait, of all of them.
    pub queued: u64,
    /// The most events that any is behind `head_seq`.
    pub lag: u64,
    /// The weakest of what proves their name, when there are any.
    pub identity: Option<Identity>,
}

impl Together {
    /// Of these sessions, while `head_seq` is the newest event; their topics take `bytes` at the most, but one
    /// is shown.
    pub(super) fn of(sessions: &[Arc<Standing>], head_seq: u64, bytes: usize) -> Self {
        let mut all = Together::default();
        for session in sessions {
            let topics = session.topics.lock().unwrap_or_else(PoisonError::into_inner);
            // What does not fit of one session's topics does not fit of all of them; the first of these ends the list.
            let shown = (fitting(&topics.first, bytes) + 1).min(topics.first.len());
            all.topics.extend(topics.first[..shown].iter().map(|topic| topic.to_string()));
            all.topics_more += topics.more + (topics.first.len() - shown) as u64;
            all.identity =
                all.identity.max(Some(*session.identity.lock().unwrap_or_else(PoisonError::into_inner)));
            all.queued += session.queued.load(Relaxed);
            all.lag = all.lag.max((head_seq + 1).saturating_sub(session.behind.load(Relaxed)));
        }
        if sessions.len() > 1 {
            all.topics.sort_unstable();
            all.topics.dedup();
        }
        let shown = fitting(&all.topics, bytes);
        all.topics_more += (all.topics.len() - shown) as u64;
        all.topics.truncate(shown);
        all
    }
}

/// How many of these topics may be shown.
fn fitting(topics: &[impl AsRef<str>], bytes: usize) -> usize {
    let mut room = bytes;
    let fits = |topic: &&_| {
        let left = room.checked_sub(AsRef::<str>::as_ref(*topic).len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    let shown = topics.iter().take(TOPICS_SHOWN).take_while(fits).count();
    shown.max(1).min(topics.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn session(topics: &[String]) -> Arc<Standing> {
        let standing = Standing::new(Arc::default());
        standing.topics(topics.iter().map(|topic| topic.as_str().into()).collect());
        Arc::new(standing)
    }

    proptest! {
        #[test]
        fn topics_of_all_sessions_are_sorted_and_each_once(
            sessions in prop::collection::vec(prop::collection::vec("[a-c]{1,4}", 0..120), 0..5),
            bytes in 1usize..400,
        ) {
            let standings: Vec<Arc<Standing>> = sessions.iter().map(|topics| session(topics)).collect();
            let union: BTreeSet<&String> = sessions.iter().flatten().collect();
            let all = Together::of(&standings, 0, bytes);
            let first: Vec<&String> = union.iter().copied().take(all.topics.len()).collect();
            prop_assert_eq!(all.topics.iter().collect::<Vec<_>>(), first);
            prop_assert_eq!(all.topics.is_empty(), union.is_empty());
            let taken: usize = all.topics.iter().map(String::len).sum();
            prop_assert!(all.topics.len() <= TOPICS_SHOWN && (taken <= bytes || all.topics.len() == 1));
            // Nothing is left out but for want of room.
            if let Some(next) = union.iter().nth(all.topics.len()) {
                prop_assert!(all.topics.len() == TOPICS_SHOWN || taken + next.len() > bytes);
            }
            let more = (union.len() - all.topics.len()) as u64;
            prop_assert!(all.topics_more >= more);
            if standings.len() == 1 {
                prop_assert_eq!(all.topics_more, more);
            }
        }
    }

    #[test]
    fn the_queue_is_the_sum_and_the_lag_the_greatest() {
        let sessions = [session(&[]), session(&[]), session(&[])];
        let nothing = |identity| Together { identity: Some(identity), ..Together::default() };
        assert_eq!(Together::of(&sessions, 100, 9), nothing(Identity::Name));
        // The weakest proof is shown.
        let proofs = [Identity::Cid, Identity::Socket, Identity::Cid];
        sessions.iter().zip(proofs).for_each(|(session, proof)| session.proved(proof));
        assert_eq!(Together::of(&sessions, 100, 9), nothing(Identity::Socket));
        sessions.iter().zip([3, 4, 0]).for_each(|(session, events)| session.queued(events));
        sessions.iter().zip([Some(91), None, Some(1)]).for_each(|(session, next)| session.behind(next));
        let all = Together::of(&sessions, 100, 9);
        assert_eq!((all.queued, all.lag), (7, 100));
        sessions[2].behind(None);
        assert_eq!(Together::of(&sessions, 100, 9).lag, 10);
        // It has read them all, and nobody has said yet that there are more.
        sessions[0].behind(Some(101));
        assert_eq!(Together::of(&sessions, 100, 9).lag, 0);
    }

    #[test]
    fn totals_are_those_of_all_sessions() {
        let mut totals = Totals::default();
        for (n, (behind, queued)) in [(Some(91), 3), (None, 4), (Some(101), 0)].into_iter().enumerate() {
            let topics: Vec<String> = (0..n * 50).map(|n| n.to_string()).collect();
            let session = session(&topics);
            session.behind(behind);
            session.queued(queued);
            totals.add(&session, 100);
        }
        let want =
            Totals { sessions: 3, behind: 2, subscriptions: 150, queued: 7, lag: 10, ..Totals::default() };
        assert_eq!(totals, want);
    }

    #[test]
    fn what_status_shows_of_it_counts_as_a_change() {
        let changed = Arc::<AtomicBool>::default();
        let standing = Standing::new(changed.clone());
        standing.topics(vec!["a".into()]);
        assert!(changed.swap(false, Relaxed));
        standing.behind(Some(7));
        assert!(changed.swap(false, Relaxed));
        standing.behind(Some(7));
        standing.queued(7);
        assert!(!changed.swap(false, Relaxed));
    }
}
