//! Who is sent what: feeds, their members, and the frames they get.
//!
//! A *feed* is all subscriptions of the same name and patterns: their frames are the same, and are made once. Always
//! holds: a member gets every event its feed matches from the seq it joined at, in order, once, or has left; joining is
//! refused at a seq that was handed out already, so that reading the journal up to there and the feed make one whole;
//! frames that were made and not handed out are bounded (invariant 6). Owner: `router.rs`, behind its lock.

use super::interest::{Chunks, Interest};
use super::outlet::Outlet;
use super::patterns::Patterns;
use crate::core::journal::writer::Committed;
use crate::core::limits::ROUTES_CACHED;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// More feeds of one topic than these are not remembered, so that the cache is bounded in bytes as well.
const FEEDS_CACHED: usize = 1024;

/// Frames of all feeds together are handed out when there are so many bytes, so that many feeds of the same topics take
/// no more memory than that.
const MADE_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug)]
struct Member {
    outlet: Arc<Outlet>,
    /// The subscription's number in its session.
    id: u32,
    /// The first seq it gets.
    from: u64,
}

#[derive(Debug)]
struct Feed {
    interest: Arc<Interest>,
    members: Vec<Member>,
    /// Being made for the members.
    chunks: Chunks,
}

/// All feeds.
#[derive(Debug)]
pub(super) struct Routes {
    /// The first seq that was not handed out.
    next: u64,
    feeds: BTreeMap<u32, Feed>,
    numbers: HashMap<Arc<Interest>, u32>,
    last_number: u32,
    patterns: Patterns<u32>,
    /// Topics, and their feeds.
    cache: HashMap<Box<str>, Arc<[u32]>>,
    /// Seqs behind `next` at which members join.
    joins: BTreeSet<u64>,
    /// Bytes of frames that were made and not handed out.
    made: usize,
    /// Commits were taken up and are not all handed out.
    pub is_busy: bool,
}

/// How far some commits are handed out.
#[derive(Debug, Default)]
pub(super) struct At {
    commit: usize,
    event: usize,
}

/// The seq at which somebody wants to join was handed out already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed;

impl Routes {
    /// Nobody is sent anything; events from `next` on will be handed in.
    pub fn new(next: u64) -> Self {
        Routes {
            next,
            feeds: BTreeMap::new(),
            numbers: HashMap::new(),
            last_number: 0,
            patterns: Patterns::default(),
            cache: HashMap::new(),
            joins: BTreeSet::new(),
            made: 0,
            is_busy: false,
        }
    }

    /// Passes a commit over that nobody wants, for there is nobody; false when there is, or others are on the way.
    pub fn pass(&mut self, commit: &Committed) -> bool {
        if !self.feeds.is_empty() || self.is_busy {
            return false;
        }
        self.next = commit.last_seq().map_or(self.next, |last| last + 1);
        true
    }

    /// The first seq that was not handed out.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// How many subscriptions are sent events.
    pub fn members(&self) -> usize {
        self.feeds.values().map(|feed| feed.members.len()).sum()
    }

    /// From the seq `from` on `outlet` gets what `interest` wants, for its subscription `id`.
    pub fn join(
        &mut self,
        interest: &Arc<Interest>,
        outlet: &Arc<Outlet>,
        id: u32,
        from: u64,
    ) -> Result<(), Passed> {
        let member = Member { outlet: outlet.clone(), id, from };
        if member.from < self.next {
            return Err(Passed);
        }
        if member.from > self.next {
            self.joins.insert(member.from);
        }
        let number = match self.numbers.get(interest) {
            Some(number) => *number,
            None => self.add(interest),
        };
        if let Some(feed) = self.feeds.get_mut(&number) {
            feed.members.push(member);
        }
        Ok(())
    }

    fn add(&mut self, interest: &Arc<Interest>) -> u32 {
        while self.feeds.contains_key(&self.last_number) {
            self.last_number = self.last_number.wrapping_add(1);
        }
        let number = self.last_number;
        self.numbers.insert(interest.clone(), number);
        interest.patterns().iter().for_each(|pattern| self.patterns.insert(pattern, number));
        let feed = Feed { interest: interest.clone(), members: Vec::new(), chunks: Chunks::default() };
        self.feeds.insert(number, feed);
        self.forget(interest);
        number
    }

    /// What is remembered of the topics that `interest` wants is not so any more.
    fn forget(&mut self, interest: &Interest) {
        for pattern in interest.patterns() {
            if pattern.is_plain() {
                self.cache.remove(pattern.as_str());
            } else {
                self.cache.clear();
            }
        }
    }

    /// `outlet` gets no more for its subscription `id`, if it still does.
    pub fn leave(&mut self, interest: &Arc<Interest>, outlet: &Arc<Outlet>, id: u32) {
        let Some(number) = self.numbers.get(interest).copied() else { return };
        let Some(feed) = self.feeds.get_mut(&number) else { return };
        let is_it = |member: &Member| member.id == id && Arc::ptr_eq(&member.outlet, outlet);
        if let Some(i) = feed.members.iter().position(is_it) {
            feed.members.swap_remove(i);
        }
        self.remove_if_empty(number);
    }

    fn remove_if_empty(&mut self, number: u32) {
        if self.feeds.get(&number).is_some_and(|feed| feed.members.is_empty())
            && let Some(feed) = self.feeds.remove(&number)
        {
            self.numbers.remove(&feed.interest);
            feed.interest.patterns().iter().for_each(|pattern| self.patterns.remove(pattern, number));
            self.forget(&feed.interest);
        }
    }

    /// Hands out what stands at `at` and behind it, until `enough` says so; true when all of it is.
    pub fn route(
        &mut self,
        commits: &[Arc<Committed>],
        at: &mut At,
        mut enough: impl FnMut() -> bool,
    ) -> bool {
        let mut touched = Vec::new();
        while let Some(commit) = commits.get(at.commit) {
            if let Some(first) = commit.first_seq()
                && first > self.next
            {
                self.hand_out(&mut touched);
                self.skip_to(first);
            }
            let (done, is_all) = self.frame(commit, at.event, &mut touched, &mut enough);
            if !is_all {
                at.event += done;
                self.hand_out(&mut touched);
                return false;
            }
            *at = At { commit: at.commit + 1, event: 0 };
        }
        self.hand_out(&mut touched);
        true
    }

    /// Events before `seq` were not handed to this router: whoever is owed some of them leaves.
    fn skip_to(&mut self, seq: u64) {
        if seq <= self.next {
            return;
        }
        let from = self.next;
        self.next = seq;
        for number in self.feeds.keys().copied().collect::<Vec<u32>>() {
            if let Some(feed) = self.feeds.get_mut(&number) {
                feed.members.retain(|member| {
                    let stays = member.from >= seq;
                    if !stays {
                        member.outlet.leave(member.id, from.max(member.from));
                    }
                    stays
                });
            }
            self.remove_if_empty(number);
        }
    }

    /// Goes over a commit from one of its events on and makes the frames, for every feed that wants some; `touched` are
    /// those that have any. How many events it came to, and whether these are all.
    fn frame(
        &mut self,
        commit: &Committed,
        from: usize,
        touched: &mut Vec<u32>,
        enough: &mut impl FnMut() -> bool,
    ) -> (usize, bool) {
        let mut last: (&[u8], Option<Arc<[u32]>>) = (b"", None);
        for (done, event) in commit.events_from(from).enumerate() {
            if done > 0 && enough() {
                return (done, false);
            }
            if self.joins.first().is_some_and(|seq| *seq <= event.seq) {
                // Somebody joins here, perhaps in the middle of a commit: a chunk is for all members or for none.
                self.hand_out(touched);
                self.joins = self.joins.split_off(&(event.seq + 1));
            }
            let topic = event.topic();
            if last.1.is_none() || last.0 != topic {
                last = (topic, Some(self.feeds_of(topic)));
            }
            for number in last.1.iter().flat_map(|numbers| numbers.iter()) {
                let Some(feed) = self.feeds.get_mut(number) else { continue };
                if !feed.interest.may_pass(event.line) {
                    continue;
                }
                if feed.chunks.is_empty() {
                    touched.push(*number);
                }
                feed.chunks.push(feed.interest.head(), &event);
                self.made += feed.interest.head().len() + event.line.len();
                if self.made > MADE_BYTES {
                    self.next = event.seq + 1;
                    self.hand_out(touched);
                }
            }
            self.next = event.seq + 1;
        }
        (0, true)
    }

    /// The feeds of an encoded topic.
    fn feeds_of(&mut self, topic: &[u8]) -> Arc<[u32]> {
        let topic = std::str::from_utf8(topic).unwrap_or_default();
        if let Some(numbers) = self.cache.get(topic) {
            return numbers.clone();
        }
        let mut numbers = Vec::new();
        self.patterns.find(topic, &mut numbers);
        // A feed of several patterns is found by each of them.
        numbers.sort_unstable();
        numbers.dedup();
        let numbers: Arc<[u32]> = numbers.into();
        if self.cache.len() >= ROUTES_CACHED {
            self.cache.clear();
        }
        if numbers.len() <= FEEDS_CACHED {
            self.cache.insert(topic.into(), numbers.clone());
        }
        numbers
    }

    /// Gives the frames that were made to the members.
    fn hand_out(&mut self, touched: &mut Vec<u32>) {
        let next = self.next;
        self.made = 0;
        for number in touched.drain(..) {
            if let Some(feed) = self.feeds.get_mut(&number) {
                let chunks = feed.chunks.take();
                feed.members.retain(|member| member.from >= next || member.outlet.offer(member.id, &chunks));
            }
            self.remove_if_empty(number);
        }
    }
}
