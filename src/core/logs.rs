//! Per-VM logs and `bus.log`: the copies of the journal that people read.
//!
//! ```text
//! live: commits ─▶ queue ─▶ rounds of ≤ 25 ms ─▶ files ─▶ logs_seq ── now and then ─▶ checkpoint
//!  │ a write failed: said once, the queue is dropped                    ▲
//!  ▼                                                                    │
//! stalled ── every second: cut behind logs_seq, read the journal on ────┘
//! ```
//!
//! Start-up is the same way out of `stalled`, from the checkpoint. Always holds: behind the commit, not in
//! it; a view that cannot be written stops no commit (invariant 11), and one that is merely slow slows
//! publishers at [`super::limits::Limits::logs_behind_bytes`] (invariant 6); a line stands in a log once.
//! Owner: `broker.rs`; one thread writes.

use super::journal::read::Reader;
use super::journal::writer::Committed;
use super::limits::{COMMIT_BYTES, Limits};
use super::log_view::LogView;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// Lines are gathered so long before they are written, unless somebody waits for them.
const GATHER: Duration = Duration::from_millis(25);
/// Stalled logs are tried again so often.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Queue {
    commits: VecDeque<Arc<Committed>>,
    bytes: usize,
    /// Somebody waits for a line.
    hurry: bool,
    /// Why the files cannot be written.
    stalled: Option<String>,
    /// Commits are not queued, for the files cannot be written: the journal has them.
    dropping: bool,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    seq: watch::Sender<u64>,
    /// What the last checkpoint says; retention stops here.
    floor: Arc<AtomicU64>,
    behind_bytes: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The logs of a running broker.
pub struct Logs {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Logs {
    /// Starts the thread, which writes `view` on.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        mut view: LogView,
        limits: &Limits,
        journal: impl Fn(u64) -> Reader + Send + 'static,
    ) -> io::Result<Arc<Logs>> {
        let floor = Arc::new(AtomicU64::new(view.durable()));
        match view.checkpoint() {
            Ok(seq) => floor.store(seq, Relaxed),
            Err(error) => tracing::error!(%error, "logs: no checkpoint at the start; it is tried again"),
        }
        let (seq, _) = watch::channel(view.seq());
        let behind_bytes = limits.logs_behind_bytes;
        let shared =
            Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), seq, floor, behind_bytes });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("castra-logs".into())
                .spawn(move || run(view, &shared, &journal))?
        };
        Ok(Arc::new(Logs { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Hands over a commit. Waits while the logs are too far behind and going on.
    pub fn push(&self, commit: Arc<Committed>) {
        let full =
            |queue: &mut Queue| queue.bytes > self.shared.behind_bytes && !queue.dropping && !queue.stop;
        let queue = self.shared.changed.wait_while(self.shared.lock(), full);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        if queue.dropping {
            return;
        }
        queue.bytes += commit.bytes();
        queue.commits.push_back(commit);
        if queue.commits.len() == 1 || queue.bytes > COMMIT_BYTES {
            self.shared.changed.notify_all();
        }
    }

    /// Waits until the event `seq` is in the logs; false when it is not after `limit`.
    pub async fn wait_for(&self, seq: u64, limit: Duration) -> bool {
        let mut watch = self.shared.seq.subscribe();
        if *watch.borrow() >= seq {
            return true;
        }
        self.shared.lock().hurry = true;
        self.shared.changed.notify_all();
        super::awake::timeout(limit, watch.wait_for(|logs_seq| *logs_seq >= seq))
            .await
            .is_ok_and(|seen| seen.is_ok())
    }

    /// Every event up to here is in the logs.
    pub fn seq(&self) -> u64 {
        *self.shared.seq.borrow()
    }

    /// Every event up to here is in the logs, durably: retention may go so far.
    pub fn floor(&self) -> Arc<AtomicU64> {
        self.shared.floor.clone()
    }

    /// Why the logs are not being written, if so.
    pub fn stalled(&self) -> Option<String> {
        self.shared.lock().stalled.clone()
    }

    /// Writes what was handed over, makes a checkpoint, ends the thread. Blocks.
    pub fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }
}

fn run(mut view: LogView, shared: &Shared, journal: &dyn Fn(u64) -> Reader) {
    loop {
        let (commits, stop) = gather(shared, view.checkpoint_due());
        if let Err(error) = view.write(&commits, &shared.seq) {
            stall(&mut view, shared, journal, &error);
        }
        drop(commits);
        if stop || view.checkpoint_due().is_some_and(|wait| wait.is_zero()) {
            match view.checkpoint() {
                Ok(seq) => shared.floor.store(seq, Relaxed),
                Err(error) if stop => {
                    tracing::error!(%error, "logs: no checkpoint; the next start writes them anew")
                }
                Err(error) if view.must_rebuild() => stall(&mut view, shared, journal, &error),
                Err(error) => tracing::error!(%error, "logs: no checkpoint; it is tried again in a while"),
            }
        }
        if stop {
            return;
        }
    }
}

/// Waits for commits and takes them all; none when `due` has passed. Also whether this is the end.
fn gather(shared: &Shared, due: Option<Duration>) -> (Vec<Arc<Committed>>, bool) {
    let nothing = |queue: &mut Queue| queue.commits.is_empty() && !queue.stop;
    let queue = shared.lock();
    let mut queue = match due {
        None => shared.changed.wait_while(queue, nothing).unwrap_or_else(PoisonError::into_inner),
        Some(due) => {
            shared.changed.wait_timeout_while(queue, due, nothing).unwrap_or_else(PoisonError::into_inner).0
        }
    };
    if !queue.commits.is_empty() {
        let few = |queue: &mut Queue| !queue.hurry && !queue.stop && queue.bytes < COMMIT_BYTES;
        let waited = shared.changed.wait_timeout_while(queue, GATHER, few);
        queue = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    (queue.hurry, queue.bytes) = (false, 0);
    let commits = std::mem::take(&mut queue.commits).into();
    let stop = queue.stop;
    drop(queue);
    shared.changed.notify_all();
    (commits, stop)
}

/// Until the files can be written again: nothing is queued, and the journal is read on.
fn stall(view: &mut LogView, shared: &Shared, journal: &dyn Fn(u64) -> Reader, error: &io::Error) {
    tracing::error!(%error, logs_seq = view.seq(), "logs: cannot be written; events are safe in the journal, and the logs go on by themselves");
    // Whoever waits for room in the queue goes on.
    let drop_commits = |error: &io::Error| {
        let mut queue = shared.lock();
        (queue.stalled, queue.dropping, queue.bytes) = (Some(error.to_string()), true, 0);
        queue.commits.clear();
        shared.changed.notify_all();
    };
    drop_commits(error);
    loop {
        let queue = shared.lock();
        let waited = shared.changed.wait_timeout_while(queue, RETRY, |queue| !queue.stop);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        if queue.stop {
            return;
        }
        // From here on commits are queued again, and what came before is in the journal: so publishers are
        // slowed down while the logs catch up, and they do catch up.
        queue.dropping = false;
        drop(queue);
        match view.rebuild(journal, &mut |seq| _ = shared.seq.send_replace(seq)) {
            Ok(()) => {
                shared.lock().stalled = None;
                shared.seq.send_replace(view.seq());
                tracing::info!(logs_seq = view.seq(), "logs: written again");
                return;
            }
            Err(error) => drop_commits(&error),
        }
    }
}
