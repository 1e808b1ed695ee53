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

use super::event::Event;
use super::identity::VmName;
use super::journal::read::{Read, Reader};
use super::journal::writer::Committed;
use super::limits::{COMMIT_BYTES, Limits};
use super::log_files::LogFiles;
use super::state_root::{StateRoot, replace};
use super::status::VmTable;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Lines are gathered so long before they are written, unless somebody waits for them.
const GATHER: Duration = Duration::from_millis(25);
/// A checkpoint is made after so much time …
const CHECKPOINT_TIME: Duration = Duration::from_secs(30);
/// … or so many bytes, whichever is first.
const CHECKPOINT_BYTES: usize = 64 * 1024 * 1024;
/// Stalled logs are tried again so often.
const RETRY: Duration = Duration::from_secs(1);
/// The name of the log of all events.
const SHARED: &[u8] = b"bus";

/// Why logs cannot be brought up to date at start.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The logs have seen events that the journal does not have.
    #[error(
        "the journal ends at seq {head}, but {path} says that events up to {logs_seq} were stored; a part of the \
         journal is gone. Restore it from a backup, or remove {path} to go on without those events",
        path = .path.display()
    )]
    JournalBehind {
        /// The last event of the journal.
        head: u64,
        /// The last event of the logs.
        logs_seq: u64,
        /// The checkpoint.
        path: PathBuf,
    },
    /// The journal or a log cannot be read or written.
    #[error("logs in {path}: {error}", path = .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

#[derive(Deserialize, Serialize)]
struct Checkpoint {
    logs_seq: u64,
}

/// What the thread works on.
struct Files {
    files: LogFiles,
    checkpoint: PathBuf,
    vms: Arc<VmTable>,
    /// Every event up to here is in the files, but for what `lacking` says.
    seq: u64,
    /// Every event up to here is there durably.
    durable: u64,
    /// Logs that were damaged, with the last line that each has, and the seq up to which the others have all:
    /// until then only these are written.
    lacking: HashMap<Box<[u8]>, u64>,
    whole: u64,
    unsynced: usize,
    synced_at: Instant,
}

impl Files {
    fn push(&mut self, event: &Event<'_>) {
        let vm = event.vm();
        self.push_to(SHARED, event);
        self.push_to(vm, event);
        if let Some(mailbox) = event.mailbox().filter(|name| *name != vm) {
            // `bus.log` has every line already.
            let name = std::str::from_utf8(mailbox).ok().and_then(|name| VmName::parse(name).ok());
            if let Some(name) = name.filter(|name| !name.is_reserved())
                && (self.vms.knows(&name) || self.files.exists(mailbox))
            {
                self.push_to(mailbox, event);
            }
        }
        self.unsynced += 2 * event.line.len();
    }

    fn push_to(&mut self, log: &[u8], event: &Event<'_>) {
        if event.seq > self.whole || self.lacking.get(log).is_some_and(|last| event.seq > *last) {
            self.files.push(log, event.line);
        }
    }

    /// Writes commits, in rounds that stay small; events that are in the files already are left out.
    fn write(&mut self, commits: &[Arc<Committed>], progress: &watch::Sender<u64>) -> io::Result<()> {
        let mut round = 0;
        for (i, commit) in commits.iter().enumerate() {
            let seq = self.seq;
            commit.events().filter(|event| event.seq > seq).for_each(|event| self.push(&event));
            round += commit.bytes();
            if round >= COMMIT_BYTES || i + 1 == commits.len() {
                round = 0;
                self.flush(commit.last_seq().unwrap_or(seq))?;
                progress.send_replace(self.seq);
            }
        }
        Ok(())
    }

    fn flush(&mut self, seq: u64) -> io::Result<()> {
        self.files.flush()?;
        self.seq = self.seq.max(seq);
        Ok(())
    }

    /// Cuts what is behind `seq` and writes it anew from the journal, to its end; a log that is seen to lack
    /// earlier lines gets those as well.
    fn rebuild(&mut self, journal: &dyn Fn(u64) -> Reader) -> io::Result<()> {
        if self.files.is_suspect() {
            // What was written since may be in the page cache alone.
            self.seq = self.durable;
        }
        for (log, last) in self.files.cut(self.seq, SHARED)? {
            let name = String::from_utf8_lossy(&log).into_owned();
            tracing::warn!(
                log = name,
                last,
                seq = self.seq,
                "logs: damage: lines are missing at its end; they are written anew from the journal"
            );
            let known = self.lacking.entry(log).or_insert(last);
            *known = last.min(*known);
        }
        self.whole = self.seq;
        let from = self.lacking.values().copied().fold(self.seq, u64::min);
        let mut reader = journal(from + 1);
        loop {
            match reader.read(COMMIT_BYTES, &mut |event| self.push(&event))? {
                Read::Events(_) => self.flush(reader.next_seq() - 1)?,
                Read::Gap { from, to } => {
                    tracing::error!(
                        from,
                        to,
                        "logs: these events are gone from the journal and will be missing"
                    );
                    self.seq = self.seq.max(to);
                }
                Read::End => {
                    self.lacking.clear();
                    return Ok(());
                }
            }
        }
    }

    fn checkpoint(&mut self) -> io::Result<u64> {
        self.files.sync()?;
        let text = serde_json::json!(Checkpoint { logs_seq: self.seq }).to_string() + "\n";
        replace(&self.checkpoint, text.as_bytes())?;
        (self.unsynced, self.synced_at, self.durable) = (0, Instant::now(), self.seq);
        Ok(self.seq)
    }

    fn checkpoint_due(&self) -> Option<Duration> {
        (self.unsynced > 0).then(|| {
            let wait = if self.unsynced >= CHECKPOINT_BYTES { Duration::ZERO } else { CHECKPOINT_TIME };
            wait.saturating_sub(self.synced_at.elapsed())
        })
    }
}

#[derive(Default)]
struct Queue {
    commits: VecDeque<Arc<Committed>>,
    bytes: usize,
    /// Somebody waits for a line.
    hurry: bool,
    /// Why the files cannot be written; commits are not queued meanwhile.
    stalled: Option<String>,
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

/// Logs that are up to date; no thread runs yet.
pub struct Prepared {
    files: Files,
}

impl Prepared {
    /// Brings the logs up to date: cuts what the checkpoint does not vouch for and writes it on from the
    /// journal, which ends at `head` and begins at `first`.
    ///
    /// # Errors
    /// [`LogsError`].
    pub fn new(
        root: &StateRoot,
        limits: &Limits,
        vms: Arc<VmTable>,
        (first, head): (u64, u64),
        journal: &dyn Fn(u64) -> Reader,
    ) -> Result<Self, LogsError> {
        let checkpoint = root.logs().join("checkpoint");
        let said = std::fs::read(&checkpoint)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Checkpoint>(&bytes).ok());
        // Without a word the journal's oldest event is the best guess: older lines cannot be written anew.
        let seq = said.as_ref().map_or(0, |said| said.logs_seq).max(first.saturating_sub(1));
        if let Some(said) = said.filter(|said| said.logs_seq < seq) {
            let from = said.logs_seq + 1;
            tracing::error!(
                from,
                to = seq,
                "logs: the journal begins behind these events; they will be missing"
            );
        }
        if seq > head {
            return Err(LogsError::JournalBehind { head, logs_seq: seq, path: checkpoint });
        }
        let dir = root.bus_logs();
        let mut files = Files {
            files: LogFiles::new(dir.clone(), limits.open_logs),
            checkpoint,
            vms,
            seq,
            durable: seq,
            lacking: HashMap::new(),
            whole: seq,
            unsynced: 0,
            synced_at: Instant::now(),
        };
        files.rebuild(journal).map_err(|error| LogsError::Io { path: dir, error })?;
        Ok(Prepared { files })
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        self,
        limits: &Limits,
        journal: impl Fn(u64) -> Reader + Send + 'static,
    ) -> io::Result<Arc<Logs>> {
        let Prepared { mut files } = self;
        let floor = Arc::new(AtomicU64::new(0));
        match files.checkpoint() {
            Ok(seq) => floor.store(seq, Relaxed),
            Err(error) => tracing::error!(%error, "logs: no checkpoint at the start; it is tried again"),
        }
        let (seq, _) = watch::channel(files.seq);
        let behind_bytes = limits.logs_behind_bytes;
        let shared =
            Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), seq, floor, behind_bytes });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("castra-logs".into())
                .spawn(move || run(files, &shared, &journal))?
        };
        Ok(Arc::new(Logs { shared, thread: Mutex::new(Some(thread)) }))
    }
}

/// The logs of a running broker.
pub struct Logs {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Logs {
    /// Hands over a commit. Waits while the logs are too far behind and going on.
    pub fn push(&self, commit: Arc<Committed>) {
        let full = |queue: &mut Queue| {
            queue.bytes > self.shared.behind_bytes && queue.stalled.is_none() && !queue.stop
        };
        let queue = self.shared.changed.wait_while(self.shared.lock(), full);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        if queue.stalled.is_some() {
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
        tokio::time::timeout(limit, watch.wait_for(|logs_seq| *logs_seq >= seq))
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

fn run(mut files: Files, shared: &Shared, journal: &dyn Fn(u64) -> Reader) {
    loop {
        let (commits, stop) = gather(shared, files.checkpoint_due());
        if let Err(error) = files.write(&commits, &shared.seq) {
            stall(&mut files, shared, journal, &error);
        }
        drop(commits);
        if stop || files.checkpoint_due().is_some_and(|wait| wait.is_zero()) {
            match files.checkpoint() {
                Ok(seq) => shared.floor.store(seq, Relaxed),
                Err(error) if stop => {
                    tracing::error!(%error, "logs: no checkpoint; the next start writes them anew")
                }
                Err(error) => stall(&mut files, shared, journal, &error),
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
fn stall(files: &mut Files, shared: &Shared, journal: &dyn Fn(u64) -> Reader, error: &io::Error) {
    tracing::error!(%error, logs_seq = files.seq, "logs: cannot be written; events are safe in the journal, and the logs go on by themselves");
    // Whoever waits for room in the queue goes on.
    let stop_queueing = |error: &io::Error| {
        let mut queue = shared.lock();
        queue.stalled = Some(error.to_string());
        queue.commits.clear();
        queue.bytes = 0;
        shared.changed.notify_all();
    };
    stop_queueing(error);
    loop {
        let queue = shared.lock();
        let waited = shared.changed.wait_timeout_while(queue, RETRY, |queue| !queue.stop);
        if waited.unwrap_or_else(PoisonError::into_inner).0.stop {
            return;
        }
        if files.rebuild(journal).is_err() {
            continue;
        }
        // From here on commits are queued again; what came between is in the journal by now.
        shared.lock().stalled = None;
        match files.rebuild(journal) {
            Ok(()) => {
                shared.seq.send_replace(files.seq);
                tracing::info!(logs_seq = files.seq, "logs: written again");
                return;
            }
            Err(error) => stop_queueing(&error),
        }
    }
}
