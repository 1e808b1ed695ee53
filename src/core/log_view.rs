//! The logs as a view of the journal: written from commits as they come, or from the journal itself.
//!
//! Always holds: every event up to `seq` stands in its logs, once; the checkpoint vouches for no more than
//! was synced, and what it does not vouch for is cut and written anew from the journal. Owner: `logs.rs`,
//! whose thread writes; at start `broker.rs`.

use super::event::Event;
use super::events::Recorder;
use super::identity::VmName;
use super::journal::read::{Read, Reader};
use super::journal::writer::Committed;
use super::limits::Limits;
use super::log_files::LogFiles;
use super::metrics::topics::Tally;
use super::state_root::{StateRoot, replace};
use super::status::VmTable;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A checkpoint is made after so much time, or [`Limits::checkpoint_bytes`], whichever is first.
const CHECKPOINT_TIME: Duration = Duration::from_secs(30);
/// So much is gathered before it is written; it stays in the CPU's cache.
const ROUND_BYTES: usize = 1024 * 1024;
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

#[derive(Debug, Deserialize, Serialize)]
struct Checkpoint {
    logs_seq: u64,
}

/// The `logs_seq` of the checkpoint at `path`; `None` when there is none.
///
/// # Errors
/// It is there and cannot be read.
pub fn read_checkpoint(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice::<Checkpoint>(&bytes)?.logs_seq)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The logs' files and how far they have come.
pub struct LogView {
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
    checkpoint_bytes: usize,
    synced_at: Instant,
    /// A checkpoint failed: no other before this.
    retry_at: Option<Instant>,
    /// Counts what comes by, where there are metrics.
    tally: Option<Tally>,
    /// Counts the files that others changed.
    recorder: Option<Arc<Recorder>>,
}

impl LogView {
    /// Brings the logs up to date: cuts what the checkpoint does not vouch for and writes it on from the
    /// journal, which ends at `head` and begins at `first`.
    ///
    /// # Errors
    /// [`LogsError`].
    pub fn open(
        root: &StateRoot,
        limits: &Limits,
        vms: Arc<VmTable>,
        (first, head): (u64, u64),
        journal: &dyn Fn(u64) -> Reader,
    ) -> Result<Self, LogsError> {
        let checkpoint = root.checkpoint();
        let said = read_checkpoint(&checkpoint).unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "logs: the checkpoint cannot be read; the logs are written anew from the journal"
            );
            None
        });
        // Without a word the journal's oldest event is the best guess: older lines cannot be written anew.
        let seq = said.unwrap_or(0).max(first.saturating_sub(1));
        if let Some(said) = said.filter(|said| *said < seq) {
            let from = said + 1;
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
        let mut view = LogView {
            files: LogFiles::new(dir.clone(), limits.open_logs, limits.log_bytes),
            checkpoint,
            vms,
            seq,
            durable: seq,
            lacking: HashMap::new(),
            whole: seq,
            unsynced: 0,
            checkpoint_bytes: limits.checkpoint_bytes,
            synced_at: Instant::now(),
            retry_at: None,
            tally: None,
            recorder: None,
        };
        view.rebuild(journal, &mut |_| {}).map_err(|error| LogsError::Io { path: dir, error })?;
        Ok(view)
    }

    /// Every event up to here is in the logs.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Has the files counted that somebody else changes from here on.
    pub fn count_changes(&mut self, recorder: Arc<Recorder>) {
        self.recorder = Some(recorder);
    }

    /// Has every event counted that is written from here on.
    pub fn count(&mut self, tally: Tally) {
        self.tally = Some(tally);
    }

    fn push(&mut self, event: &Event<'_>) {
        if let Some(tally) = &mut self.tally {
            tally.count(event);
        }
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
    ///
    /// # Errors
    /// A log cannot be written: nothing else works until [`LogView::rebuild`] does.
    pub fn write(&mut self, commits: &[Arc<Committed>], progress: &watch::Sender<u64>) -> io::Result<()> {
        let mut round = 0;
        for (i, commit) in commits.iter().enumerate() {
            let seq = self.seq;
            commit.events().filter(|event| event.seq > seq).for_each(|event| self.push(&event));
            round += commit.bytes();
            if round >= ROUND_BYTES || i + 1 == commits.len() {
                round = 0;
                self.flush(commit.last_seq().unwrap_or(seq))?;
                progress.send_replace(self.seq);
            }
        }
        Ok(())
    }

    fn flush(&mut self, seq: u64) -> io::Result<()> {
        let flushed = self.files.flush();
        let changed = self.files.take_changed();
        if let Some(recorder) = self.recorder.as_ref().filter(|_| changed > 0) {
            recorder.counters.log_changes.fetch_add(changed, Relaxed);
        }
        flushed?;
        self.seq = self.seq.max(seq);
        Ok(())
    }

    /// Cuts what is behind `seq` and writes it anew from the journal, to its end; a log that is seen to lack
    /// earlier lines gets those as well. `progress` hears how far all of them are.
    ///
    /// # Errors
    /// A log or the journal cannot be read, or a log cannot be written.
    pub fn rebuild(
        &mut self,
        journal: &dyn Fn(u64) -> Reader,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        if self.files.is_suspect() {
            // What was written since may be in the page cache alone.
            self.seq = self.durable;
        }
        for (log, last) in self.files.cut(self.seq, SHARED, &self.lacking)? {
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
            match reader.read(ROUND_BYTES, &mut |event| self.push(&event))? {
                Read::Events(_) => {
                    self.flush(reader.next_seq() - 1)?;
                    self.lacking.values_mut().for_each(|last| *last = (*last).max(reader.next_seq() - 1));
                    progress(self.seq);
                }
                Read::Gap { from, to } => {
                    tracing::error!(
                        from,
                        to,
                        "logs: these events are gone from the journal and will be missing"
                    );
                    self.seq = self.seq.max(to);
                    self.lacking.values_mut().for_each(|last| *last = (*last).max(to));
                }
                Read::End => {
                    self.lacking.clear();
                    return Ok(());
                }
            }
        }
    }

    /// Makes everything durable and says so; up to which event.
    ///
    /// # Errors
    /// It could not be made durable.
    pub fn checkpoint(&mut self) -> io::Result<u64> {
        self.files.sync()?;
        let text = serde_json::json!(Checkpoint { logs_seq: self.seq }).to_string() + "\n";
        replace(&self.checkpoint, text.as_bytes())?;
        (self.unsynced, self.synced_at, self.durable) = (0, Instant::now(), self.seq);
        self.retry_at = None;
        Ok(self.seq)
    }

    /// In how long the next checkpoint is due; `None` while nothing was written.
    pub fn checkpoint_due(&self) -> Option<Duration> {
        (self.unsynced > 0).then(|| {
            let wait = if self.unsynced >= self.checkpoint_bytes { Duration::ZERO } else { CHECKPOINT_TIME };
            let retry =
                self.retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            wait.saturating_sub(self.synced_at.elapsed()).max(retry)
        })
    }

    /// Whether the logs themselves must be written anew after a checkpoint that failed; if not, the next one is
    /// due in a while.
    pub fn must_rebuild(&mut self) -> bool {
        self.retry_at = Some(Instant::now() + CHECKPOINT_TIME);
        self.files.is_suspect()
    }

    /// Every event up to here is in the logs durably.
    pub fn durable(&self) -> u64 {
        self.durable
    }
}
