//! A database that fails while the agent runs: said once, refused until it works, opened anew where that may help.
//!
//! Always holds: a full disk keeps its connection, which works again when there is room; anything else is looked at
//! from the beginning, as at the start, and no more than once a second. Owner: `writer.rs`.

use super::folder::Folder;
use super::writer::{TICK, Writer};
use super::{OutboxError, open};
use crate::core::refusal::Refusal;
use std::os::unix::fs::MetadataExt;
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

    /// Opens the database again, if it has to be and it is time to.
    pub(super) fn reopen(&mut self) {
        if self.store.is_some() || Instant::now() < self.retry_at {
            return;
        }
        match open::open(&self.folder, self.last_n) {
            Ok((mut store, _)) => {
                let counts = *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
                store.keep_counting(&counts);
                self.store = Some(store);
                self.opened();
                if self.ill.take().is_some() {
                    tracing::info!("the outbox works again");
                }
            }
            Err(error) => {
                let refusal = match error {
                    OutboxError::Failed(refusal) => refusal,
                    other => Refusal::new("outbox-failed", other.to_string()),
                };
                self.fall_ill(refusal, true);
            }
        }
    }

    /// The database is open.
    pub(super) fn opened(&mut self) {
        self.file = file_of(&self.folder);
        // A full disk: the next put says so.
        let _ = self.transact(false, |store, _, _| store.save_clock());
        if let Some(store) = &self.store {
            self.last_n = self.last_n.max(store.tally.last_n);
        }
        self.publish_counts();
        self.shared.changed.notify_one();
    }
}

/// Whether the same connection may go on: another one held the database, or the disk is full.
pub(super) fn is_passing(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull))
}

/// The database's file: device and inode.
pub(super) fn file_of(folder: &Folder) -> Option<(u64, u64)> {
    std::fs::metadata(folder.database()).ok().map(|file| (file.dev(), file.ino()))
}
