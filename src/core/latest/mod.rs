//! The newest event of each key: a view of the journal in SQLite, `latest.db` below the state root.
//!
//! ```text
//! commits ─▶ queue ─▶ work.rs (thread) ─▶ store.rs ─▶ latest.db ─▶ pool.rs ─▶ answer.rs ─▶ sessions
//!            journal ──┘ at a start, after a hole                        └─▶ snapshot.rs ─▶ journal
//! ```
//!
//! `compaction.rs` says of which topics, `change.rs` what an event changes; `tables.rs` makes the tables, `open.rs` opens the file, `copy.rs` copies it; `floor.rs`
//! says how far retention may go; `letters.rs` bounds dead letters, `space.rs` gives back what they took. Always holds: it is behind the commit and stops none (invariant 11); what is waiting for
//! it is bounded (invariant 6); retention removes nothing that it has not written durably, unless the journal has grown too
//! large because of that; an answer has everything that was durable when it was asked. Without a compacted topic
//! and without a dead letter there is no thread and no file. Owner: `broker.rs`.

pub mod answer;
mod change;
pub mod compaction;
pub mod copy;
mod floor;
mod letters;
mod mapped;
mod open;
mod pool;
pub mod snapshot;
mod space;
pub mod state;
mod store;
mod tables;
mod work;

use super::event::Event;
use super::journal::read::Reader;
use super::journal::segment::Map;
use super::journal::writer::Committed;
use super::limits::{CATCH_UP_READS, LATEST_BYTES, LATEST_WAIT, Limits};
use super::refusal::Refusal;
use compaction::Compaction;
use letters::Bounds;
use mapped::Mapped;
use pool::Pool;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use work::{MARK_BYTES, Work};

/// What failed is tried again so often.
const RETRY: Duration = Duration::from_secs(1);

/// What waits for the thread.
#[derive(Default)]
struct Queue {
    commits: VecDeque<Arc<Committed>>,
    bytes: usize,
    /// Somebody waits for an event.
    hurry: bool,
    /// Topics of which a snapshot was published, and up to which seq.
    snapped: Vec<(String, u64)>,
    /// A reader found a row that is not what was written.
    is_damaged: bool,
    /// Why it cannot be written.
    stalled: Option<String>,
    stop: bool,
}

/// Dead letters, as somebody outside sees them.
#[derive(Clone, Debug, Default)]
pub struct LettersKept {
    /// How many there are.
    pub letters: u64,
    /// What their events take, in bytes.
    pub bytes: u64,
    /// How many were dropped since the broker started, as there were too many.
    pub dropped: u64,
    /// The same of each group that has some left.
    pub dropped_of: BTreeMap<Box<str>, u64>,
}

/// What the thread and the others share.
struct Shared {
    path: PathBuf,
    compaction: Compaction,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Every event up to here is seen by whoever reads.
    seq: watch::Sender<u64>,
    /// Every event up to here is there durably.
    floor: AtomicU64,
    /// Bytes of the journal that it may need, as much of it is being read.
    reading: AtomicU64,
    /// Events that were gone before the view had them.
    lost: AtomicU64,
    /// A state that is known from before this seq cannot be brought up to date, …
    since: AtomicU64,
    /// … as keys were lost so many times while this process runs.
    losses: AtomicU64,
    /// How many dead letters there may be …
    bounds: Bounds,
    /// … and are.
    letters: Mutex<LettersKept>,
    pool: Pool,
    /// Behind what reads: it outlives that.
    mapped: Mutex<Mapped>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn letters(&self) -> MutexGuard<'_, LettersKept> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It cannot be written: waits a while; false at the end.
    fn stall(&self, error: String) -> bool {
        let mut queue = self.lock();
        if queue.stalled.is_none() {
            tracing::error!(
                error,
                "latest: the newest events per key cannot be written; events are safe in the journal, and this goes on by itself"
            );
        }
        // What waits is in the journal.
        queue.commits.clear();
        (queue.stalled, queue.bytes) = (Some(error), 0);
        let waited = self.changed.wait_timeout_while(queue, RETRY, |queue| !queue.stop);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    /// The view is at `seq`, which may be further back than it was: what `map` has may be needed. Before the file becomes
    /// another one this is 0, so that nobody takes its rows for all of them.
    fn goes_back_to(&self, seq: u64, map: &Map) {
        if seq < self.floor.load(Relaxed) {
            self.reading.store(bytes(map), Relaxed);
        }
        self.floor.store(seq, Relaxed);
        self.seq.send_replace(seq);
    }

    /// Keys may be missing from now on; returns the seq before which nobody knows that.
    fn lose(&self, map: &Map) -> u64 {
        // First this: a subscriber that sees the old number has seen nothing behind the seq.
        self.losses.fetch_add(1, SeqCst);
        map.durable_seq() + 1
    }

    /// It is written again.
    fn works(&self) {
        if self.lock().stalled.take().is_some() {
            tracing::info!(seq = *self.seq.borrow(), "latest: written again");
        }
    }
}

/// What the segments of the journal take.
fn bytes(map: &Map) -> u64 {
    map.segments().iter().map(|segment| segment.end).sum()
}

/// Whether `event` changes the state of its topic.
pub fn is_change(compaction: &Compaction, event: &Event<'_>) -> bool {
    compaction::name_of(event.topic()).is_some_and(|name| compaction.has(&name))
        && change::of(event).is_some()
}

/// Makes readers of the journal.
type Readers = Box<dyn Fn(u64) -> Reader + Send>;

/// The view of a running broker.
pub struct Latest {
    shared: Arc<Shared>,
    map: Arc<Map>,
    retain_bytes: u64,
    /// The journal for the thread, until it begins.
    journal: Mutex<Option<Readers>>,
    is_running: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Questions that read at once.
    reads: Arc<Semaphore>,
}

impl Latest {
    /// The view at `path` of what `compaction` says. Its thread runs when there is something to view: a file, topics that
    /// are compacted, or `has_groups` that may have dead letters.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        path: PathBuf,
        compaction: Compaction,
        limits: &Limits,
        map: Arc<Map>,
        journal: impl Fn(u64) -> Reader + Send + 'static,
        has_groups: bool,
    ) -> io::Result<Arc<Self>> {
        let begins = has_groups || compaction.is_configured() || path.exists();
        let shared = Shared {
            pool: Pool::new(path.clone()),
            path,
            compaction,
            queue: Mutex::default(),
            changed: Condvar::new(),
            seq: watch::channel(0).0,
            floor: AtomicU64::new(0),
            reading: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            since: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            bounds: Bounds::beside(limits.retain_bytes),
            letters: Mutex::default(),
            mapped: Mutex::default(),
        };
        let latest = Arc::new(Latest {
            shared: Arc::new(shared),
            map,
            retain_bytes: limits.retain_bytes,
            journal: Mutex::new(Some(Box::new(journal))),
            is_running: AtomicBool::new(false),
            thread: Mutex::default(),
            reads: Arc::new(Semaphore::new(CATCH_UP_READS)),
        });
        if begins {
            latest.begin()?;
        }
        Ok(latest)
    }

    /// There is something to view from now on.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn begin(&self) -> io::Result<()> {
        if self.is_running.load(Relaxed) {
            return Ok(());
        }
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(journal) = journal else { return Ok(()) };
        // How much of it the file has is not known yet.
        self.shared.reading.store(bytes(&self.map), Relaxed);
        // From here on commits are queued; what was before is in the journal.
        self.is_running.store(true, Relaxed);
        let mark_bytes = usize::try_from((self.retain_bytes / 8).min(MARK_BYTES)).unwrap_or(usize::MAX);
        let work = Work { shared: self.shared.clone(), map: self.map.clone(), journal, mark_bytes };
        let thread = std::thread::Builder::new().name("castra-latest".into()).spawn(move || work.run());
        let thread = thread.inspect_err(|_| self.is_running.store(false, Relaxed))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Takes a commit, and never waits.
    pub fn push(&self, commit: &Arc<Committed>) {
        if !self.is_running.load(Relaxed) {
            return;
        }
        let mut queue = self.shared.lock();
        if queue.bytes + commit.bytes() > LATEST_BYTES {
            // They are in the journal; the newest one makes the thread see that it missed some.
            queue.commits.clear();
            queue.bytes = 0;
        }
        queue.bytes += commit.bytes();
        queue.commits.push_back(commit.clone());
        if queue.commits.len() == 1 {
            drop(queue);
            self.shared.changed.notify_all();
        }
    }

    /// What is compacted.
    pub fn compaction(&self) -> &Compaction {
        &self.shared.compaction
    }

    /// Every event up to here is in it; none while it does not run.
    pub fn seq(&self) -> Option<u64> {
        self.is_running.load(Relaxed).then(|| *self.shared.seq.borrow())
    }

    /// Events that were gone before it had them.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Relaxed)
    }

    /// The dead letters that are kept, and those that were dropped.
    pub fn letters(&self) -> LettersKept {
        self.shared.letters().clone()
    }

    /// How often keys were lost: whoever began to keep the state before does so in vain.
    pub fn losses(&self) -> u64 {
        self.shared.losses.load(SeqCst)
    }

    /// Why it is not being written, if so.
    pub fn stalled(&self) -> Option<String> {
        self.shared.lock().stalled.clone()
    }

    /// Waits until it has what is durable now: up to which seq that is. 0 when there is nothing to view.
    ///
    /// # Errors
    /// `view-behind`.
    pub async fn caught_up(&self) -> Result<u64, Refusal> {
        let head = self.map.durable_seq();
        if !self.is_running.load(Relaxed) || self.has(head, LATEST_WAIT).await {
            return Ok(head);
        }
        let why = match self.stalled() {
            Some(why) => format!("the newest events per key cannot be written just now: {why}"),
            None => format!(
                "the newest events per key are known up to {} of {head} only; ask again in a while",
                *self.shared.seq.borrow()
            ),
        };
        Err(Refusal::new("view-behind", why))
    }

    async fn has(&self, seq: u64, limit: Duration) -> bool {
        let mut watch = self.shared.seq.subscribe();
        if *watch.borrow() >= seq {
            return true;
        }
        self.shared.lock().hurry = true;
        self.shared.changed.notify_all();
        let waited = crate::core::awake::timeout(limit, watch.wait_for(|own| *own >= seq)).await;
        waited.is_ok_and(|seen| seen.is_ok())
    }

    /// A snapshot of this topic was published.
    fn snapped(&self, topic: &str, through: u64) {
        self.shared.lock().snapped.push((topic.to_owned(), through));
        self.shared.changed.notify_all();
    }

    /// Writes what was handed over and ends the thread. Blocks.
    pub fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }
}
