//! The thread of the view: takes what was committed, or reads the journal, and writes rows.
//!
//! ```text
//! commits ─▶ queue ─▶ rounds of ≤ 25 ms ─▶ pending ─▶ one transaction ─▶ seq, floor
//!  │ a hole (start, a full queue): the journal is read on, in pieces         ▲
//!  │ a write failed: said once, then every second from what is durable ──────┘
//!  ▼ damaged: put aside, made anew from the journal
//! ```
//!
//! Always holds: `seq` is what readers of the database see, and nothing stops a commit (invariant 11). Owner:
//! [`super::Latest`].

use super::compaction::name_of;
use super::open::{Viewed, Wrong, open, put_aside, with};
use super::store::{Pending, Store};
use super::{RETRY, Readers, Shared, change};
use crate::core::event::Event;
use crate::core::journal::read::Read;
use crate::core::journal::segment::Map;
use crate::core::journal::writer::Committed;
use crate::core::limits::{COMMIT_BYTES, ROUTES_CACHED};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Events are gathered so long before they are written, unless somebody waits for them.
const GATHER: Duration = Duration::from_millis(25);
/// Where nothing is compacted, that it was looked at is written after so much time …
const MARK_TIME: Duration = Duration::from_secs(30);
/// … or so many bytes, less where the journal is small.
pub(super) const MARK_BYTES: u64 = 64 * 1024 * 1024;
/// So much of the journal is read at a time, in bytes.
const PIECE: usize = 1024 * 1024;
/// What is written at a time while much is read, in bytes: each time pages of the index are written for keys anywhere in
/// it, so seldom is better.
const GULP: usize = 32 * 1024 * 1024;
/// That dead letters were dropped is said at once, and further ones together after this.
const SAY_DROPPED: Duration = Duration::from_secs(60);
/// So much of the write-ahead log is kept when rows are gone, in bytes.
const LOG_KEPT: u64 = 1024 * 1024;
/// Whoever waits for a long reading is told so often.
const SAY: Duration = Duration::from_secs(5);

/// What the thread has.
pub(super) struct Work {
    pub shared: Arc<Shared>,
    pub map: Arc<Map>,
    pub journal: Readers,
    /// After so many bytes that were looked at that is written down: retention goes by it.
    pub mark_bytes: usize,
}

impl Work {
    /// Until the end.
    pub fn run(self) {
        let mut had = false;
        loop {
            let viewed = Viewed {
                journal: self.map.journal,
                first: self.map.first_seq(),
                head: self.map.durable_seq(),
                had,
                lose: &|| self.shared.lose(&self.map),
                goes_back: &|| self.shared.goes_back_to(0, &self.map),
            };
            let shared = &self.shared;
            let opened = {
                let mut mapped = shared.mapped.lock().unwrap_or_else(PoisonError::into_inner);
                let opened = mapped.may_begin(&shared.path);
                let opened = opened.and_then(|()| open(&shared.path, &viewed, &shared.compaction));
                opened.and_then(|(store, lost)| {
                    had = true;
                    shared.lost.fetch_add(lost, Relaxed);
                    mapped.reserve(&shared.path).map(|()| store)
                })
            };
            let error = match opened {
                Ok(store) => {
                    shared.pool.renew();
                    // What was found is of the file before.
                    shared.lock().is_damaged = false;
                    match View::new(&self, store).map_err(Wrong::from).and_then(|mut view| view.follow()) {
                        Ok(()) => {
                            return shared.mapped.lock().unwrap_or_else(PoisonError::into_inner).let_go();
                        }
                        Err(Wrong::Damaged(why)) => {
                            (viewed.goes_back)();
                            match put_aside(&shared.path) {
                                Ok(aside) => {
                                    let (path, aside) = (shared.path.display(), aside.display());
                                    tracing::error!(
                                        "latest: {path} is damaged ({why}); it was put aside as {aside}, and is made anew from the journal"
                                    );
                                    continue;
                                }
                                Err(error) => error.to_string(),
                            }
                        }
                        // Not a moment is lost: retention keeps what is to be read again within a bound only.
                        Err(Wrong::Replaced(why)) => {
                            tracing::error!("latest: {why}; it is made anew from the journal");
                            continue;
                        }
                        Err(Wrong::Failed(why)) => why,
                    }
                }
                Err(Wrong::Damaged(why) | Wrong::Failed(why) | Wrong::Replaced(why)) => why,
            };
            if !shared.stall(error) {
                return;
            }
        }
    }
}

struct View<'a> {
    work: &'a Work,
    shared: &'a Shared,
    store: Store,
    /// What the file was when it was opened.
    file: Option<(u64, u64)>,
    /// Encoded topics, and their names if they are compacted.
    topics: HashMap<Box<[u8]>, Option<Box<str>>>,
    pending: Pending,
    /// Every event up to here was looked at.
    seq: u64,
    marked: Instant,
    unmarked: usize,
    /// Dead letters are too many, or pages are free: there is something to do when nothing else is.
    is_untidy: bool,
    /// The write-ahead log has pages that were given back.
    is_unfolded: bool,
    /// Dead letters that were dropped and not said yet …
    unsaid: u64,
    /// … since some were said.
    said: Option<Instant>,
}

impl<'a> View<'a> {
    fn new(work: &'a Work, store: Store) -> rusqlite::Result<Self> {
        let shared = &*work.shared;
        shared.since.store(store.since()?, SeqCst);
        // It may be further back than it was.
        shared.goes_back_to(store.seq, &work.map);
        let mut store = store;
        store.letters.remember(&shared.letters().dropped_of);
        Ok(View {
            work,
            shared,
            file: inode(shared),
            seq: store.seq,
            store,
            topics: HashMap::new(),
            pending: Pending::default(),
            marked: Instant::now(),
            unmarked: 0,
            is_untidy: true,
            is_unfolded: true,
            unsaid: 0,
            said: None,
        })
    }

    /// Goes on with what is committed, until the end or a failure.
    fn follow(&mut self) -> Result<(), Wrong> {
        self.catch_up()?;
        self.shared.reading.store(0, Relaxed);
        self.shared.works();
        loop {
            let (commits, stop) = self.gather();
            for commit in &commits {
                let (Some(first), Some(last)) = (commit.first_seq(), commit.last_seq()) else { continue };
                if first > self.seq + 1 {
                    break;
                }
                if last > self.seq {
                    let skip = (self.seq + 1 - first) as usize;
                    commit.events_from(skip).for_each(|event| self.take(&event));
                }
            }
            let (end, is_quiet) =
                (commits.last().and_then(|commit| commit.last_seq()).unwrap_or(0), commits.is_empty());
            drop(commits);
            self.write(stop)?;
            self.tidy(is_quiet, stop)?;
            if end > self.seq {
                self.catch_up()?;
            }
            if stop {
                return Ok(());
            }
        }
    }

    /// Waits for commits and takes them all; also whether this is the end.
    fn gather(&mut self) -> (Vec<Arc<Committed>>, bool) {
        let shared = self.shared;
        let quiet = |queue: &mut super::Queue| {
            queue.commits.is_empty() && !queue.stop && queue.snapped.is_empty() && !queue.is_damaged
        };
        let mark = MARK_TIME.saturating_sub(self.marked.elapsed()).max(GATHER);
        let due = match (self.is_untidy, self.is_unfolded) {
            (true, _) => GATHER,
            // Somebody reads what is in it.
            (false, true) => mark.min(RETRY),
            (false, false) => mark,
        };
        let queue = shared.lock();
        let waited = shared.changed.wait_timeout_while(queue, due, quiet);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        if !queue.commits.is_empty() {
            let few = |queue: &mut super::Queue| !queue.hurry && !queue.stop && queue.bytes < COMMIT_BYTES;
            let waited = shared.changed.wait_timeout_while(queue, GATHER, few);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (queue.hurry, queue.bytes) = (false, 0);
        (std::mem::take(&mut queue.commits).into(), queue.stop)
    }

    /// Reads the journal on to its end.
    fn catch_up(&mut self) -> Result<(), Wrong> {
        let mut reader = (self.work.journal)(self.seq + 1);
        let (begun, mut said) = (Instant::now(), Instant::now());
        let mut is_busy = false;
        loop {
            let read = reader.read(PIECE, &mut |event| self.take(&event))?;
            match read {
                Read::Events(_) => {}
                Read::Gap { from, to } => {
                    // The first reading of a journal begins where that does.
                    self.seq = to;
                    self.shared.lost.fetch_add(to + 1 - from, Relaxed);
                    self.store.lose(self.shared.lose(&self.work.map))?;
                    self.shared.since.store(self.store.since()?, SeqCst);
                    tracing::error!(
                        from,
                        to,
                        "latest: these events are gone, removed or damaged, before the view had them"
                    );
                }
                Read::End => break,
            }
            if self.pending.bytes >= COMMIT_BYTES && !is_busy {
                is_busy = true;
                self.store.set_busy(true)?;
            }
            if self.pending.bytes >= GULP || self.unmarked >= self.work.mark_bytes {
                self.write(true)?;
            }
            if said.elapsed() >= SAY {
                said = Instant::now();
                let head_seq = self.work.map.durable_seq();
                tracing::info!(seq = self.seq, head_seq, "latest: the journal is being read");
            }
            if self.shared.lock().stop {
                break;
            }
        }
        self.write(true)?;
        if is_busy {
            self.store.set_busy(false)?;
        }
        if begun.elapsed() >= SAY {
            let keys = self.store.keys()?;
            tracing::info!(seq = self.seq, keys, "latest: the journal was read to its end");
        }
        Ok(())
    }

    /// Drops dead letters that are too many, and gives room back: some of it at a time.
    fn tidy(&mut self, is_quiet: bool, is_end: bool) -> Result<(), Wrong> {
        let seen = self.work.map.durable_seq();
        let (dropped, is_more) = self.store.drop_letters(&self.shared.bounds, seen)?;
        {
            let mut kept = self.shared.letters();
            let size = self.store.letters.size();
            (kept.letters, kept.bytes) = (size.rows, size.bytes);
            if dropped > 0 {
                kept.dropped += dropped;
                kept.dropped_of = self.store.letters.dropped();
            }
        }
        self.say_dropped(dropped, is_end);
        if is_end {
            return Ok(());
        }
        let (did, is_free) = if is_more { (false, false) } else { self.store.give_back()? };
        // Until then the file keeps the pages that were given back.
        self.is_unfolded |= did || (dropped > 0 && log_bytes(self.shared) > LOG_KEPT);
        let is_due = self.is_unfolded && !is_more && !is_free;
        if is_due && is_quiet {
            self.is_unfolded = !self.store.fold()?;
        }
        self.is_untidy = is_more || is_free || (is_due && !is_quiet);
        Ok(())
    }

    fn say_dropped(&mut self, dropped: u64, now: bool) {
        self.unsaid += dropped;
        if self.unsaid > 0 && (now || self.said.is_none_or(|at| at.elapsed() >= SAY_DROPPED)) {
            tracing::warn!(
                dropped = self.unsaid,
                "latest: the oldest dead letters were dropped, as there were too many; 'castra bus dlq ls' says of which groups"
            );
            (self.unsaid, self.said) = (0, Some(Instant::now()));
        }
    }

    fn take(&mut self, event: &Event<'_>) {
        self.seq = event.seq;
        self.unmarked += event.line.len();
        if self.topics.len() > ROUTES_CACHED {
            self.topics.clear();
        }
        let topic = match self.topics.get(event.topic()) {
            Some(topic) => topic,
            None => {
                let name = name_of(event.topic()).filter(|name| self.shared.compaction.has(name));
                self.topics.entry(event.topic().into()).or_insert(name.map(Into::into))
            }
        };
        if let Some(topic) = topic
            && let Some(change) = change::of(event)
        {
            self.pending.put(topic, &change.key, event.seq, event.line, change.is_end);
        }
    }

    /// Writes what there is; with nothing but a place in the journal only when it is time, or `always`.
    fn write(&mut self, always: bool) -> Result<(), Wrong> {
        let snapped = {
            let mut queue = self.shared.lock();
            if std::mem::take(&mut queue.is_damaged) {
                return Err(Wrong::Damaged("a row is not what was written".into()));
            }
            std::mem::take(&mut queue.snapped)
        };
        let is_due = self.unmarked >= self.work.mark_bytes || self.marked.elapsed() >= MARK_TIME || always;
        let has_rows = !self.pending.is_empty() || !snapped.is_empty();
        if has_rows || (is_due && self.seq > self.store.seq) {
            if self.file != inode(self.shared) {
                self.shared.goes_back_to(0, &self.work.map);
                let why = format!("{} was removed or replaced", self.shared.path.display());
                return Err(Wrong::Replaced(why));
            }
            self.store.write(&mut self.pending, self.seq, &snapped)?;
            self.shared.floor.store(self.seq, Relaxed);
            self.unmarked = 0;
        }
        if is_due || has_rows {
            self.marked = Instant::now();
        }
        self.shared.seq.send_if_modified(|seq| std::mem::replace(seq, self.seq) != self.seq);
        Ok(())
    }
}

/// What the write-ahead log takes.
fn log_bytes(shared: &Shared) -> u64 {
    std::fs::symlink_metadata(with(&shared.path, "-wal")).map_or(0, |meta| meta.len())
}

fn inode(shared: &Shared) -> Option<(u64, u64)> {
    let meta = std::fs::symlink_metadata(&shared.path).ok()?;
    Some((meta.dev(), meta.ino()))
}
