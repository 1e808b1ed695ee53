//! Gives back what deleted rows took on the disk.
//!
//! Always holds: one step is short, so that the view's thread is not held up; nobody who reads is waited for. Owner:
//! `store.rs`.

use super::open::BUSY;
use rusqlite::Connection;
use std::time::Duration;

/// Free pages of 4 KiB that the file keeps for what comes next …
const KEPT: i64 = 256;
/// … and that are given back in one step.
const STEP: i64 = 512;

/// Gives some of the pages that are free back: whether it did, and whether there are more.
pub(super) fn give_back(db: &Connection) -> rusqlite::Result<(bool, bool)> {
    let free = || db.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
    let before = free()?;
    if before <= KEPT {
        return Ok((false, false));
    }
    {
        let mut step = db.prepare(&format!("PRAGMA incremental_vacuum({})", STEP.min(before - KEPT)))?;
        // A page for each row of the answer.
        let mut rows = step.query([])?;
        while rows.next()?.is_some() {}
    }
    let after = free()?;
    // A file that was not made for this keeps its pages.
    let did = after < before;
    Ok((did, did && after > KEPT))
}

/// Folds the write-ahead log into the database and empties it; false while somebody reads what is in it.
pub(super) fn fold(db: &Connection) -> rusqlite::Result<bool> {
    db.busy_timeout(Duration::ZERO)?;
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    db.busy_timeout(BUSY)?;
    Ok(busy? == 0)
}
