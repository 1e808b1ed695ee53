//! A copy of the view as of one moment, while it is written.
//!
//! Always holds: the copy is durable when it is said to be there; the file that is copied is not changed. Owner:
//! `backup.rs`.

use super::open::{Wrong, connect_beside};
use rusqlite::Connection;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Copies the view at `from`; up to which seq the copy is. `None`: there is none, or it is damaged: a broker puts such
/// a one aside.
///
/// # Errors
/// It cannot be read, or the copy not be written.
pub fn copy(from: &Path, to: &Path) -> io::Result<Option<u64>> {
    if !from.exists() {
        return Ok(None);
    }
    let copied = connect_beside(from).and_then(|db| {
        db.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
        Ok(seq(to)?)
    });
    match copied {
        Ok(seq) => {
            let file = File::open(to)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.sync_all()?;
            Ok(Some(seq))
        }
        Err(Wrong::Damaged(_)) => {
            let _ = std::fs::remove_file(to);
            Ok(None)
        }
        Err(Wrong::Failed(why)) => Err(io::Error::other(why)),
    }
}

fn seq(path: &Path) -> rusqlite::Result<u64> {
    let db = Connection::open(path)?;
    let text: String = db.query_row("SELECT value FROM fact WHERE name = 'seq'", [], |row| row.get(0))?;
    Ok(text.parse().unwrap_or(0))
}
