//! A database that fails, from the start or while the agent runs: said once, refused until it works, opened anew where
//! that may help.
//!
//! Always holds: a full disk keeps its connection, which works again when there is room; anything else is looked at
//! from the beginning, as at the start, and no more than once a second; a file that SQLite finds damaged twice while it
//! works with it is put aside, whatever its check says. Owner: `writer.rs`.

use super::folder::{Folder, database};
use super::trouble::{is_damage, is_passing, trouble};
use super::writer::{TICK, Writer};
use super::{Counts, OutboxError, open};
use crate::core::refusal::Refusal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Instant;

impl Writer {
    /// Says once what is wrong. `anew`: the database has to be opened again.
    pub(super) fn fall_ill(&mut self, refusal: Refusal, anew: bool) -> Refusal {
        if self.ill.as_ref().is_none_or(|ill| ill.code != refusal.code) {
            tracing::error!("{refusal}; new events are refused until it works again");
        }
        if anew {
            self.store = None;
            self.retry_at = Instant::now() + TICK;
        }
        self.ill = Some(refusal.clone());
        refusal
    }

    /// The same of an error of the open database.
    pub(super) fn failed(&mut self, error: &rusqlite::Error) -> Refusal {
        if is_damage(error) {
            if self.suspect == self.file {
                self.distrust = Some(error.to_string());
            }
            self.suspect = self.file;
        }
        self.fall_ill(trouble(error, &database(&self.state_dir)), !is_passing(error))
    }

    /// Opens the database; where a damaged one was put.
    pub(super) fn open(&mut self) -> Result<Option<PathBuf>, OutboxError> {
        let folder = match &self.folder {
            Some(folder) => folder,
            None => self.folder.insert(Folder::open(&self.state_dir)?),
        };
        let (mut store, aside) = match self.distrust.take() {
            Some(why) => open::anew(folder, self.last_n, &why)?,
            None => open::open(folder, self.last_n)?,
        };
        let (counts, file) = (self.counts(), file_of(&self.state_dir));
        store.keep_counting(&counts, self.file.is_none());
        if self.file.is_some() && self.file != file {
            store.tally.counts.lost += self.lost(&counts, aside.as_deref());
        }
        (self.store, self.file) = (Some(store), file);
        // A new file does not know it.
        self.said.1 = self.said.0.is_empty();
        // A transaction that works ends an illness.
        let _ = self.transact(false, |store, _, _| store.save_clock());
        self.last_n = self.last_n.max(self.store.as_ref().map_or(0, |store| store.tally.last_n));
        self.publish();
        self.shared.changed.notify_one();
        Ok(aside)
    }

    /// Opens it again, if it has to be and it is time to.
    pub(super) fn reopen(&mut self) {
        if self.store.is_some() || Instant::now() < self.retry_at {
            return;
        }
        if let Err(error) = self.open() {
            let lasting = |error: OutboxError| Refusal::new("outbox-failed", error.to_string());
            self.fall_ill(error.passing().unwrap_or_else(lasting), true);
        }
    }

    /// How many events are pending in a file that is not in use any more; said.
    fn lost(&self, counts: &Counts, aside: Option<&Path>) -> u64 {
        let lost = counts.pending.saturating_sub(self.owed.len() as u64);
        if lost > 0 {
            let place = aside.map_or("the file that is gone".into(), |aside| aside.display().to_string());
            tracing::error!(
                "{lost} events were pending in {place}; they are not sent unless they are published again from it"
            );
        }
        lost
    }

    fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The database's file: device and inode.
pub(super) fn file_of(state_dir: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(database(state_dir)).ok().map(|file| (file.dev(), file.ino()))
}
