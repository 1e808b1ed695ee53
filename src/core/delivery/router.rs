//! The router: which sessions get which event. Next: `delivery/subscription.rs`.
//!
//! ```text
//! commits ─▶ [waiting] ─▶ thread: topic ─▶ feeds (cached) ─▶ frames, once a feed ─▶ outlets of its members
//! ```
//!
//! `routes.rs` has the feeds and what is handed to whom; here are the thread, what waits for it, and whose turn it is.
//! Always holds: whoever commits never waits for whoever is sent to (invariant 7); what cannot wait here is left to the
//! journal; whoever joins or leaves has its turn every millisecond. Owner: [`super::Delivery`].

use super::interest::Interest;
use super::outlet::Outlet;
use super::routes::{At, Passed, Routes};
use crate::core::journal::writer::Committed;
use crate::core::limits::ROUTER_BYTES;
use std::collections::VecDeque;
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
        Router {
            routes: Mutex::new(Routes::new(next)),
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
            && waiting.commits.is_empty()
            && routes.pass(&commit)
        {
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
        self.wish(|routes| routes.join(interest, outlet, id, from))
    }

    /// `outlet` gets no more for its subscription `id`. Nothing happens when it had left.
    pub fn leave(&self, interest: &Arc<Interest>, outlet: &Arc<Outlet>, id: u32) {
        self.wish(|routes| routes.leave(interest, outlet, id));
    }

    /// The first seq that was not handed out.
    pub fn next_seq(&self) -> u64 {
        self.wish(|routes| routes.next_seq())
    }

    /// Subscriptions that get events from here, for status and tests.
    pub fn members(&self) -> usize {
        self.routes().members()
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
