//! Connections that read the view, for questions that run side by side with its thread.
//!
//! Always holds: a row that is handed out is what was written, by its checksum; a connection to a file that was put aside
//! is used no more. Blocks, for files do. Owner: [`super::Latest`].

use super::open::{Wrong, connect_beside};
use rusqlite::{Connection, Row};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Idle connections that are kept.
const IDLE: usize = 4;

/// Connections to one file.
pub(super) struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<(u64, Connection)>>,
    /// Which file it is: it counts up when another one takes its name.
    file: AtomicU64,
}

impl Pool {
    /// None yet.
    pub fn new(path: PathBuf) -> Self {
        Pool { path, idle: Mutex::default(), file: AtomicU64::new(0) }
    }

    /// The file may be another one.
    pub fn renew(&self) {
        self.file.fetch_add(1, Relaxed);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Which file it is: another number, another file.
    pub fn file(&self) -> u64 {
        self.file.load(Relaxed)
    }

    /// Reads.
    pub fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T, Wrong>) -> Result<T, Wrong> {
        let file = self.file.load(Relaxed);
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let db = match idle {
            Some((of, db)) if of == file => db,
            _ => connect_beside(&self.path)?,
        };
        let result = f(&db)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && file == self.file.load(Relaxed) {
            idle.push((file, db));
        }
        Ok(result)
    }
}

/// The line in the columns `line` and `line + 1` of a row, checked.
pub(super) fn line<'a>(row: &'a Row<'_>, line: usize) -> Result<&'a [u8], Wrong> {
    let bytes = row.get_ref(line)?.as_blob().map_err(|e| Wrong::Damaged(e.to_string()))?;
    let crc: u32 = row.get(line + 1)?;
    if crc32c::crc32c(bytes) != crc {
        return Err(Wrong::Damaged("a row is not what was written".into()));
    }
    Ok(bytes)
}
