//! What a failure of the database means: to whoever asked, and for the connection.
//!
//! Always holds: a disk without room is called that, whatever SQLite calls it. Owner: the outbox.

use super::OutboxError;
use super::folder::with;
use crate::core::refusal::Refusal;
use crate::core::room;
use nix::libc;
use nix::sys::statvfs::statvfs;
use rusqlite::ErrorCode::{
    CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, SystemIoFailure,
};
use std::path::Path;

/// With less room no database can be opened, in bytes: the index of its log alone takes half of this.
const LEAST_ROOM: u64 = 64 * 1024;

/// What an error of SQLite about the database at `path` means to whoever asked.
pub(super) fn trouble(error: &rusqlite::Error, path: &Path) -> Refusal {
    match error.sqlite_error_code() {
        Some(DiskFull) => disk_full(),
        Some(DatabaseBusy | DatabaseLocked) => busy(path),
        Some(SystemIoFailure | CannotOpen) if is_full(path) => disk_full(),
        Some(SystemIoFailure | CannotOpen) if is_at_limit(path) => file_limit(),
        _ if is_damage(error) => Refusal::new("outbox-damaged", format!("the outbox is damaged: {error}")),
        _ => Refusal::new("outbox-failed", format!("the outbox's database failed: {error}")),
    }
}

pub(super) fn disk_full() -> Refusal {
    let why = "the disk of the outbox is full; free space there, publishing resumes by itself";
    Refusal::new("outbox-disk-full", why)
}

fn file_limit() -> Refusal {
    let why = format!("this process may write no larger outbox: {}, and start the agent again", room::RAISE);
    Refusal::new("outbox-disk-full", why)
}

/// Whether this process may not write the database at `path`, or its log, on. SQLite does not say so.
fn is_at_limit(path: &Path) -> bool {
    let wal = with(path, "-wal");
    let largest = [path, &wal].map(|path| path.metadata().map_or(0, |meta| meta.len())).into_iter().max();
    largest.unwrap_or(0).saturating_add(LEAST_ROOM) > room::largest_file()
}

/// Another process has the database.
fn busy(path: &Path) -> Refusal {
    let why = format!(
        "another process has locked {}; end what it does with it ('fuser' shows who it is), the outbox works again by itself",
        path.display()
    );
    Refusal::new(BUSY_CODE, why)
}

/// The code of a database that another process has locked.
pub(super) const BUSY_CODE: &str = "outbox-busy";

/// Whether the file itself is wrong.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Whether the same connection may go on: another one held the database, or the disk is full.
pub(super) fn is_passing(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull))
}

/// Whether the disk of this path, which may not be there yet, has no room for a database. What a file system keeps for
/// root is no room: some keep it from root as well.
pub(super) fn is_full(path: &Path) -> bool {
    let there = |at: &Path| statvfs(if at.as_os_str().is_empty() { Path::new(".") } else { at }).ok();
    path.ancestors().find_map(there).is_some_and(|disk| {
        // One that counts no blocks, or no files, has no bound of them.
        let room = disk.blocks_available().saturating_mul(disk.fragment_size());
        disk.blocks() > 0 && room <= LEAST_ROOM || disk.files() > 0 && disk.files_available() == 0
    })
}

impl OutboxError {
    /// What it is to whoever publishes, if it may pass by itself: a database that fails, a disk that is full or sick.
    /// The rest needs an operator.
    pub(super) fn passing(self) -> Result<Refusal, Self> {
        match self {
            OutboxError::Failed(refusal) => Ok(refusal),
            OutboxError::Io { ref error, .. } if room::is_limit(error) => Ok(file_limit()),
            OutboxError::Io { ref error, .. } if room::is_full(error) => Ok(disk_full()),
            OutboxError::Io { ref error, .. } if error.raw_os_error() == Some(libc::EIO) => {
                Ok(Refusal::new("outbox-failed", self.to_string()))
            }
            lasting => Err(lasting),
        }
    }
}
