//! A copy of the view as of one moment, while it is written.
//!
//! Always holds: the copy is durable when it is said to be there; the file that is copied is not changed. Owner:
//! `backup.rs`.

use super::open::{Wrong, connect_beside};
use rusqlite::{Connection, OptionalExtension};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Copies the view at `from`; up to which seq the copy is. `None`: there is none, or it has nothing yet, or it is damaged:
/// a broker puts such a one aside.
///
/// # Errors
/// It cannot be read, or the copy not be written.
pub fn copy(from: &Path, to: &Path) -> io::Result<Option<u64>> {
    if !from.exists() {
        return Ok(None);
    }
    let copied = connect_beside(from).and_then(|db| {
        db.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
        seq(to)?.ok_or_else(|| Wrong::Damaged("it is only just begun".into()))
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
        Err(Wrong::Failed(why) | Wrong::Replaced(why)) => Err(io::Error::other(why)),
    }
}

/// None of a view that has its tables and nothing in them.
fn seq(path: &Path) -> rusqlite::Result<Option<u64>> {
    let db = Connection::open(path)?;
    let text = db.query_row("SELECT value FROM fact WHERE name = 'seq'", [], |row| row.get::<_, String>(0));
    Ok(text.optional()?.map(|text| text.parse().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::latest::tables;

    #[test]
    fn a_view_that_is_only_just_begun_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("latest.db"), dir.path().join("copy.db"));
        let mut db = Connection::open(&from).unwrap();
        db.pragma_update(None, "journal_mode", "wal").unwrap();
        tables::make(&mut db, 0).unwrap();
        assert_eq!((copy(&from, &to).unwrap(), to.exists()), (None, false));
        db.execute("INSERT INTO fact (name, value) VALUES ('seq', '7')", []).unwrap();
        assert_eq!((copy(&from, &to).unwrap(), to.exists()), (Some(7), true));
    }
}
