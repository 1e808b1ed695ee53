//! The router: which sessions get which event. Next: `delivery/subscription.rs`.
//!
//! ```text
//! commits ─▶ [waiting] ─▶ thread: topic ─▶ feeds (cached) ─▶ frames, once a feed ─▶ outlets of its members
//! ```
//!
//! A *feed* is all subscriptions of the same name and patterns: their frames are the same, and are made once. Always
//! holds: a member gets every event its feed matches from the seq it joined at, in order, once, or has left; joining is
//! refused at a seq that was handed out already, so that reading the journal up to there and the feed make one whole;
//! whoever commits never waits for whoever is sent to (invariant 7). Owner: [`super::Delivery`].

use super::interest::{Chunks, Interest};
use super::outlet::Outlet;
use super::patterns::Patterns;
use crate::core::journal::writer::Committed;
use crate::core::limits::{ROUTER_BYTES, ROUTES_CACHED};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// So much is taken up at a time, in bytes.
const TURN_BYTES: usize = 1024 * 1024;
/// Whoever joins or leaves waits about so long at the most, for it does so on a worker of the runtime.
const HOLD: Duration = Duration::from_millis(1);
/// The clock is looked at after so many events.
const EVENTS_PER_LOOK: u32 = 32;
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

#[derive(Debug)]
struct Routes {
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
    is_busy: bool,
}

/// How far some commits are handed out.
#[derive(Debug, Default)]
struct At {
    commit: usize,
    event: usize,
}

#[derive(Default)]
struct Waiting {
    commits: VecDeque<Arc<Committed>>,
    bytes: usize,
    stop: bool,
}

/// Hands commits to subscribers.
pub struct Router {
    routes: Mutex<Routes>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// So many want to join or leave just now.
    wishes: AtomicUsize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Router {
    /// A router without a thread, which begins at the seq `next`.
    pub fn new(next: u64) -> Self {
        let routes = Routes {
            next,
            feeds: BTreeMap::new(),
            numbers: HashMap::new(),
            last_number: 0,
            patterns: Patterns::default(),
            cache: HashMap::new(),
            joins: BTreeSet::new(),
            made: 0,
            is_busy: false,
        };
        Router {
            routes: Mutex::new(routes),
            waiting: Mutex::default(),
            changed: Condvar::new(),
            wishes: AtomicUsize::new(0),
            thread: Mutex::default(),
        }
    }

    /// The same with its thread; `failed` is called if that panics, for then nobody is sent anything any more.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(next: u64, failed: impl FnOnce(String) + Send + 'static) -> io::Result<Arc<Self>> {
        let router = Arc::new(Router::new(next));
        let run = {
            let router = router.clone();
            move || {
                let guard = Guard(Some(failed));
                while router.turn() {}
                drop(guard);
            }
        };
        let thread = std::thread::Builder::new().name("castra-router".into()).spawn(run)?;
        *router.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(router)
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a commit of some events, and never waits.
    pub fn push(&self, commit: Arc<Committed>) {
        let mut waiting = self.waiting();
        // Nobody subscribes: nothing to do, and no thread to wake.
        let routes = match self.routes.try_lock() {
            Ok(routes) => Some(routes),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut routes) = routes
            && routes.feeds.is_empty()
            && !routes.is_busy
            && waiting.commits.is_empty()
        {
            routes.next = commit.last_seq().map_or(routes.next, |last| last + 1);
            return;
        }
        if waiting.bytes + commit.bytes() > ROUTER_BYTES {
            // They are in the journal; the newest one makes the router see that it missed some.
            waiting.commits.clear();
            waiting.bytes = 0;
        }
        waiting.bytes += commit.bytes();
        waiting.commits.push_back(commit);
        drop(waiting);
        self.changed.notify_one();
    }

    /// Waits for commits and hands some of them out; false at the end.
    fn turn(&self) -> bool {
        let nothing = |waiting: &mut Waiting| waiting.commits.is_empty() && !waiting.stop;
        let waiting =
            self.changed.wait_while(self.waiting(), nothing).unwrap_or_else(PoisonError::into_inner);
        if waiting.stop {
            return false;
        }
        drop(waiting);
        // The routes are locked first: `push` must not find nothing that waits and the routes free before these commits
        // were handed out.
        let mut routes = self.routes();
        let mut waiting = self.waiting();
        let (mut commits, mut bytes) = (Vec::new(), 0);
        while bytes < TURN_BYTES
            && let Some(commit) = waiting.commits.pop_front()
        {
            bytes += commit.bytes();
            commits.push(commit);
        }
        waiting.bytes -= bytes;
        drop(waiting);
        routes.is_busy = true;
        let mut at = At::default();
        loop {
            let (since, mut events) = (Instant::now(), 0u32);
            let enough = || {
                events += 1;
                events.is_multiple_of(EVENTS_PER_LOOK) && since.elapsed() > HOLD
            };
            if routes.route(&commits, &mut at, enough) {
                routes.is_busy = false;
                return true;
            }
            drop(routes);
            // A lock that is let go and taken again at once is nobody else's.
            let until = Instant::now() + HOLD;
            while self.wishes.load(Relaxed) > 0 && Instant::now() < until {
                std::thread::yield_now();
            }
            routes = self.routes();
        }
    }

    /// The routes, for somebody who joins or leaves.
    fn wish<T>(&self, wish: impl FnOnce(&mut Routes) -> T) -> T {
        self.wishes.fetch_add(1, Relaxed);
        let mut routes = self.routes();
        self.wishes.fetch_sub(1, Relaxed);
        wish(&mut routes)
    }

    /// Hands commits out, in order; what lies between them and the last ones is left to the journal.
    pub fn route(&self, commits: &[Arc<Committed>]) {
        self.routes().route(commits, &mut At::default(), || false);
    }

    /// From the seq `from` on `outlet` gets what `interest` wants, for its subscription `id`.
    ///
    /// # Errors
    /// Events from there on were handed out already: read the journal on, and ask again.
    pub fn join(
        &self,
        interest: &Arc<Interest>,
        outlet: &Arc<Outlet>,
        id: u32,
        from: u64,
    ) -> Result<(), Passed> {
        self.wish(|routes| routes.join(interest, Member { outlet: outlet.clone(), id, from }))
    }

    /// `outlet` gets no more for its subscription `id`. Nothing happens when it had left.
    pub fn leave(&self, interest: &Arc<Interest>, outlet: &Arc<Outlet>, id: u32) {
        self.wish(|routes| {
            if let Some(number) = routes.numbers.get(interest).copied() {
                routes.remove(number, |member| member.id == id && Arc::ptr_eq(&member.outlet, outlet));
            }
        });
    }

    /// Subscriptions that get events from here, for status and tests.
    pub fn members(&self) -> usize {
        self.routes().feeds.values().map(|feed| feed.members.len()).sum()
    }

    /// Ends the thread. Blocks; what was not handed out is in the journal.
    pub fn stop(&self) {
        self.waiting().stop = true;
        self.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }
}

/// Says so when the thread panics.
struct Guard<F: FnOnce(String)>(Option<F>);

impl<F: FnOnce(String)> Drop for Guard<F> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(failed) = self.0.take()
        {
            failed("the router's thread panicked".to_owned());
        }
    }
}

/// The seq at which somebody wants to join was handed out already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed;

impl Routes {
    fn join(&mut self, interest: &Arc<Interest>, member: Member) -> Result<(), Passed> {
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

    fn remove(&mut self, number: u32, is_it: impl Fn(&Member) -> bool) {
        let Some(feed) = self.feeds.get_mut(&number) else { return };
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
    fn route(&mut self, commits: &[Arc<Committed>], at: &mut At, mut enough: impl FnMut() -> bool) -> bool {
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
