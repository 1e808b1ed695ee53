//! The outbox: what this guest publishes, on its own disk until the broker has it.
//!
//! ```text
//! local.rs ──put──▶ Outbox ══▶ castra-outbox (writer.rs) ──▶ store.rs ──▶ outbox.db
//! the link ◀─pending─┘   └─sent, failed─▶                      (edit.rs: what the commands do beside it)
//! ```
//!
//! Always holds: [`Outbox::put`] answers after its event is durable, or refuses it; the order of what is pending is
//! that of the puts, by a number `n` that only grows, also over a file that was put aside; nothing leaves the state
//! pending but by the broker's word, by a bound that was set (counted and said), or by an operator. Owner: the agent.

mod age;
pub mod edit;
mod facts;
mod folded;
mod folder;
mod marks;
mod open;
mod put;
mod reopen;
mod request;
mod room;
mod store;
mod trouble;
mod writer;

pub use folder::STATE_DIR_FILES;
pub use put::Put;

use crate::core::limits::{OUTBOX_AGE, OUTBOX_BYTES, OUTBOX_WAITING};
use crate::core::refusal::Refusal;
use request::Request;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use writer::Writer;

/// What may be kept, and what happens at more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The frames that are pending, in bytes, each with `ROW_BYTES` more; events in the state error may
    /// take a quarter of this besides.
    pub bytes: u64,
    /// What was pending for so long, while this machine was up, goes to the state error as `expired`.
    pub age: Duration,
    /// What happens when `bytes` are reached.
    pub when_full: WhenFull,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { bytes: OUTBOX_BYTES, age: OUTBOX_AGE, when_full: WhenFull::Refuse }
    }
}

/// What happens when the outbox is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// New events are refused (`outbox-full`).
    Refuse,
    /// The oldest pending ones are dropped, counted and said.
    DropOldest,
}

/// An outbox that was opened.
pub struct Opened {
    /// The handle.
    pub outbox: Outbox,
    /// A damaged file was put aside, under this name, and a new one begun.
    pub aside: Option<PathBuf>,
}

/// An event that is kept now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its place in the outbox.
    pub n: u64,
    /// The publisher's id, or the one that it was given.
    pub id: String,
    /// It was there before, pending or among those that are shown as sent: it is not kept a second time.
    pub duplicate: bool,
}

/// An event that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the outbox.
    pub n: u64,
    /// Its id.
    pub id: String,
    /// The body of its publish frame.
    pub frame: Vec<u8>,
}

/// An event that the broker acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its place in the outbox.
    pub n: u64,
    /// Its place in the broker's journal.
    pub seq: u64,
    /// The broker had it before.
    pub duplicate: bool,
}

/// The last event that a handler is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Its place in the broker's journal.
    pub seq: u64,
    /// Its time, in milliseconds since 1970.
    pub ts: u64,
    /// Its id.
    pub id: String,
}

/// How much there is. The first three are what is there now, the others count over the life of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that wait for the broker.
    pub pending: u64,
    /// Events in the state error.
    pub error: u64,
    /// What the pending ones take, in bytes.
    pub bytes: u64,
    /// Events that the broker acknowledged.
    pub sent: u64,
    /// Of these, the ones that it had before.
    pub duplicate: u64,
    /// Events that gave way to a bound: pending ones to newer ones, and ones in the state error.
    pub dropped: u64,
    /// Puts that were refused: full, or a disk that failed.
    pub refused: u64,
    /// Events that were pending for too long.
    pub expired: u64,
    /// Events that were pending in a file that was put aside as damaged, or removed, while the agent ran.
    pub lost: u64,
}

/// Why the outbox cannot be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Another agent uses the state directory.
    #[error("{path} is in use by another agent{pid}; stop that one, or give this one a --state-dir of its own", path = .path.display())]
    InUse {
        /// The state directory.
        path: PathBuf,
        /// ` (pid 123)`, or nothing.
        pid: String,
    },
    /// Somebody else's.
    #[error("{path} belongs to uid {owner}, this agent runs as uid {uid}; run it as its owner, or choose another --state-dir", path = .path.display())]
    NotOwned {
        /// The state directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        uid: u32,
    },
    /// A folder that is something else.
    #[error("{path} is no state directory of an agent: it holds {name} and no outbox.db; choose an empty folder, or one that does not exist", path = .path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        name: String,
    },
    /// A call failed.
    #[error("{what} {path}: {error}", path = .path.display())]
    Io {
        /// The call.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The database failed; the code is `outbox-disk-full`, `outbox-damaged`, `outbox-failed` or `outbox-closed`.
    #[error("{0}")]
    Failed(Refusal),
}

/// What the handles and the thread share.
struct Shared {
    counts: Mutex<Counts>,
    /// Why puts are refused.
    ill: Mutex<Option<Refusal>>,
    changed: Arc<Notify>,
    /// Requests that wait for the thread.
    waiting: Arc<Semaphore>,
}

/// A handle to the thread castra-outbox, which alone has the agent's connection to the database.
#[derive(Clone)]
pub struct Outbox {
    requests: mpsc::Sender<(Request, Option<OwnedSemaphorePermit>)>,
    shared: Arc<Shared>,
}

/// The answer to a put that was handed over.
pub struct Receipt(oneshot::Receiver<Result<Vec<Kept>, Refusal>>);

impl Receipt {
    /// Waits until the events are durable.
    ///
    /// # Errors
    /// They are not kept, and why.
    pub async fn kept(self) -> Result<Vec<Kept>, Refusal> {
        self.0.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The same if it is known already; else the receipt itself.
    ///
    /// # Errors
    /// It is not known yet.
    pub fn try_kept(mut self) -> Result<Result<Vec<Kept>, Refusal>, Self> {
        match self.0.try_recv() {
            Ok(answer) => Ok(answer),
            Err(oneshot::error::TryRecvError::Closed) => Ok(Err(closed())),
            Err(oneshot::error::TryRecvError::Empty) => Err(self),
        }
    }
}

fn closed() -> Refusal {
    Refusal::new("outbox-closed", "the agent is ending")
}

impl Outbox {
    /// Makes what is missing of the state directory, takes its lock, opens the database, and starts the thread. A
    /// database that is damaged is put aside and a new one begun. One that cannot be opened now, or be made on a full
    /// disk, is tried again, and puts are refused until then.
    ///
    /// # Errors
    /// The directory is somebody else's, something else or in use, or a call failed in a way that does not pass.
    pub fn open(state_dir: &Path, bounds: Bounds) -> Result<Opened, OutboxError> {
        let shared = Arc::new(Shared {
            counts: Mutex::default(),
            ill: Mutex::default(),
            changed: Arc::new(Notify::new()),
            waiting: Arc::new(Semaphore::new(OUTBOX_WAITING)),
        });
        let (requests, inbox) = mpsc::channel();
        let mut writer = Writer::new(state_dir.to_owned(), bounds, shared.clone());
        let aside = writer.start()?;
        let run = move || writer.run(&inbox);
        std::thread::Builder::new().name("castra-outbox".into()).spawn(run).map_err(|error| {
            OutboxError::Io { what: "start a thread for", path: state_dir.to_owned(), error }
        })?;
        Ok(Opened { outbox: Outbox { requests, shared }, aside })
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        self.hand_over(make).await.await.ok()
    }

    /// Waits for room in the queue to the thread, and no longer.
    async fn hand_over<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Request) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        let permit = self.shared.waiting.clone().acquire_owned().await.ok();
        // A thread that is gone drops the reply, which says so.
        let _ = self.requests.send((make(reply), permit));
        answer
    }

    /// Keeps these events, all of them or none. Answers after they are durable; puts that wait are committed together,
    /// in the order in which they were handed over.
    ///
    /// # Errors
    /// `outbox-full`, `outbox-disk-full`, `outbox-damaged`, `outbox-failed`, `outbox-closed`: nothing is kept.
    pub async fn put(&self, events: Vec<Put>) -> Result<Vec<Kept>, Refusal> {
        self.submit(events).await.kept().await
    }

    /// The first half of [`Outbox::put`]: hands the events over, so that their place is taken, and does not wait for
    /// the disk. They are kept even if nobody waits for the receipt.
    pub async fn submit(&self, events: Vec<Put>) -> Receipt {
        Receipt(self.hand_over(|reply| Request::Put { events, reply }).await)
    }

    /// What is pending behind `after`, in order: at most `limit` events, and so many bytes of frames, but one event at
    /// least. What was retried stands behind everything else, so a reader that goes on from its last `n` misses
    /// nothing. A database that fails has nothing, until [`Outbox::changed`] tells that it works again.
    ///
    /// # Errors
    /// The outbox is closed.
    pub async fn pending(&self, after: u64, limit: usize, bytes: usize) -> Result<Vec<Entry>, OutboxError> {
        let asked = self.ask(|reply| Request::Pending { after, limit, bytes, reply }).await;
        asked.ok_or_else(|| OutboxError::Failed(closed()))
    }

    /// The broker acknowledged these. Returns when it is written down; where that fails it is tried again, and after a
    /// crash the events are sent once more, which the broker knows by their ids.
    pub async fn sent(&self, acks: Vec<Sent>) {
        let _ = self.ask(|reply| Request::Sent { acks, reply }).await;
    }

    /// The broker refused this one for good: it goes to the state error, with why.
    pub async fn failed(&self, n: u64, code: &str, reason: &str) {
        let (code, reason) = (code.to_owned(), reason.to_owned());
        let _ = self.ask(|reply| Request::Failed { n, code, reason, reply }).await;
    }

    /// Why nothing is drained just now; shown beside what is pending until something is sent again. Written down
    /// within about a second.
    pub async fn said(&self, error: &str) {
        let error = error.to_owned();
        let _ = self.ask(|reply| Request::Said { error, reply }).await;
    }

    /// Is notified (`notify_one`) when something pending came, also by a command, and when a database that failed works
    /// again. Made for one waiter: the link.
    pub fn changed(&self) -> Arc<Notify> {
        self.shared.changed.clone()
    }

    /// The cursor of this name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn cursor(&self, name: &str) -> Result<Option<Cursor>, OutboxError> {
        let name = name.to_owned();
        let asked = self.ask(|reply| Request::Cursor { name, reply }).await;
        asked.unwrap_or_else(|| Err(closed())).map_err(OutboxError::Failed)
    }

    /// Sets a cursor; durable when it returns.
    ///
    /// # Errors
    /// It is not set.
    pub async fn set_cursor(&self, name: &str, cursor: Cursor) -> Result<(), OutboxError> {
        let name = name.to_owned();
        let asked = self.ask(|reply| Request::SetCursor { name, cursor, reply }).await;
        asked.unwrap_or_else(|| Err(closed())).map_err(OutboxError::Failed)
    }

    /// How much there is, as of the last commit.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why new events are refused, if they are: the database fails, or its disk is full.
    pub fn ill(&self) -> Option<Refusal> {
        self.shared.ill.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finishes what was handed over, closes the database and gives the lock back. Other handles are refused from now
    /// on (`outbox-closed`).
    pub async fn close(self) {
        let _ = self.ask(|reply| Request::Close { reply }).await;
    }
}
