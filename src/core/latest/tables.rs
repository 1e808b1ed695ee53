//! The tables of the view, and how an older file gets them.
//!
//! Always holds: a migration is one transaction: killed at any moment, the file is of one version or of the other, and
//! no row is lost. Owner: `open.rs`.

use nix::sys::statvfs::statvfs;
use rusqlite::{Connection, Transaction};
use std::path::Path;

/// `clat`: what the view says it is, in the header of the file.
pub(super) const APPLICATION: i32 = 0x636c_6174;
/// The version of the tables.
pub(super) const VERSION: i64 = 2;
/// `auto_vacuum`: pages that are free can be given back to the disk.
pub(super) const INCREMENTAL: i64 = 2;
/// A file that is larger is not written anew for that: the write-ahead log would outgrow what is mapped of it.
const REWRITTEN_BYTES: u64 = 512 * 1024 * 1024;

const TABLES: &str = "
CREATE TABLE latest (
  seq INTEGER PRIMARY KEY,
  topic INTEGER NOT NULL,
  key TEXT NOT NULL,
  line BLOB NOT NULL,
  crc INTEGER NOT NULL
);
CREATE UNIQUE INDEX latest_key ON latest (topic, key);
CREATE TABLE topic (
  n INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  changed INTEGER NOT NULL DEFAULT 0,
  snapped INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// From version 1: tombstones. Keys that ended before are not known.
const TOMBSTONES: &str = "
CREATE TABLE ended (
  seq INTEGER PRIMARY KEY,
  topic INTEGER NOT NULL,
  key TEXT NOT NULL,
  line BLOB NOT NULL,
  crc INTEGER NOT NULL
);
CREATE UNIQUE INDEX ended_key ON ended (topic, key);
ALTER TABLE topic ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
CREATE INDEX topic_forgotten ON topic (forgotten);
INSERT OR REPLACE INTO fact (name, value) SELECT 'since', value FROM fact WHERE name = 'seq';
";

/// Makes the tables in a file that has those of `version`, 0 if none.
pub(super) fn make(db: &mut Connection, version: i64) -> rusqlite::Result<()> {
    if version == VERSION {
        return Ok(());
    }
    let transaction = db.transaction()?;
    migrate(&transaction, version)?;
    transaction.commit()?;
    if version > 0 {
        tracing::info!(from = version, to = VERSION, "latest: the tables are migrated");
    }
    Ok(())
}

fn migrate(transaction: &Transaction<'_>, version: i64) -> rusqlite::Result<()> {
    if version < 1 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
    }
    transaction.execute_batch(TOMBSTONES)?;
    transaction.pragma_update(None, "user_version", VERSION)
}

/// Makes a file whose free pages cannot be given back one whose can, which writes it anew. Without the room for that it
/// stays as it is, and that is said: the next start tries again.
pub(super) fn give_back_pages(db: &Connection, path: &Path) {
    let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let made = (|| {
        if number("auto_vacuum")? == INCREMENTAL {
            return Ok(Ok(()));
        }
        let bytes = number("page_count")?.saturating_mul(number("page_size")?).unsigned_abs();
        let free =
            statvfs(path).map_or(0, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
        // Into the log, and from there into the file; as much stays free.
        if bytes > REWRITTEN_BYTES || free / 3 < bytes {
            return Ok(Err(format!("it has {bytes} bytes, and the disk {free} that are free")));
        }
        db.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
        db.execute_batch("VACUUM").map(Ok)
    })();
    let why = match made {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(error) => rusqlite::Error::to_string(&error),
    };
    tracing::warn!(
        why,
        "latest: {} keeps its free pages for itself, as it cannot be written anew for that just now; the next start tries again",
        path.display()
    );
}
