//! Opens the database: a new one, the one that is there, or a new one beside what is damaged.
//!
//! Always holds: a database is used only when SQLite finds it sound and it is an outbox of a version that is known;
//! anything else is put aside, never changed and never removed. A disk that fails is an error, not damage. Owner:
//! the outbox.

use super::OutboxError;
use super::folder::{Folder, failed};
use super::store::Store;
use super::trouble::{disk_full, is_damage, is_full, trouble};
use crate::core::refusal::Refusal;
use rusqlite::{Connection, OpenFlags};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `cout`: what an outbox says it is, in the header of the file.
const APPLICATION: i32 = 0x636f_7574;
/// The version of the tables.
const VERSION: i32 = 1;
/// A command that changes something, and a commit of the agent, hold the database for less. Whoever finds it locked for
/// longer says so.
pub(super) const BUSY: Duration = Duration::from_secs(1);
/// What is kept of the write-ahead log between two checkpoints, in bytes.
const WAL_BYTES: i64 = 4 * 1024 * 1024;

const TABLES: &str = "
CREATE TABLE event (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  state INTEGER NOT NULL,
  id TEXT NOT NULL,
  topic TEXT NOT NULL,
  put_ts INTEGER NOT NULL,
  since INTEGER NOT NULL,
  weight INTEGER NOT NULL,
  end_ts INTEGER,
  seq INTEGER,
  duplicate INTEGER NOT NULL DEFAULT 0,
  code TEXT,
  reason TEXT,
  frame BLOB
);
CREATE INDEX event_state ON event (state, n);
CREATE INDEX event_id ON event (id);
CREATE TABLE cursor (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, ts INTEGER NOT NULL, id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE fact (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
";

/// Why a database cannot be used.
enum Wrong {
    /// It is damaged, or no outbox.
    Damaged(String),
    /// SQLite cannot work here.
    Unfit(String),
    /// It fails now.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Wrong {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Wrong::Damaged(error.to_string()) } else { Wrong::Failed(error) }
    }
}

/// Opens the outbox of a folder whose lock is held. Numbers go on behind `last_n`. Where a damaged one was put.
pub(super) fn open(folder: &Folder, last_n: u64) -> Result<(Store, Option<PathBuf>), OutboxError> {
    match begin(folder, last_n)? {
        Ok(store) => Ok((store, None)),
        Err(why) => anew(folder, last_n, &why),
    }
}

/// Puts the database that is there aside, and begins a new one.
pub(super) fn anew(folder: &Folder, last_n: u64, why: &str) -> Result<(Store, Option<PathBuf>), OutboxError> {
    let aside = folder.put_aside()?;
    tracing::error!(
        "the outbox is damaged ({why}); it was put aside as {}, and a new one is begun. What can be read of it is shown \
         by 'castra agent outbox ls --file {}'",
        aside.display(),
        aside.display()
    );
    let store =
        begin(folder, last_n)?.map_err(|why| OutboxError::Failed(Refusal::new("outbox-failed", why)))?;
    Ok((store, Some(aside)))
}

/// Opens the database, or makes one; or says in what way the one that is there is damaged.
fn begin(folder: &Folder, last_n: u64) -> Result<Result<Store, String>, OutboxError> {
    folder.make_database()?;
    let path = folder.database();
    let opened = connect(&path).and_then(|db| {
        let mut store = Store::new(db)?;
        store.skip_to(last_n)?;
        Ok(store)
    });
    match opened {
        Ok(store) => Ok(Ok(store)),
        Err(Wrong::Damaged(why)) => Ok(Err(why)),
        Err(Wrong::Unfit(why)) => Err(failed("use", &path)(io::Error::other(why))),
        Err(Wrong::Failed(error)) => Err(OutboxError::Failed(trouble(&error, &path))),
    }
}

/// What `quick_check` found first: before it stands only which database it looked at.
fn first_finding(found: &str) -> &str {
    found.lines().find(|line| !line.starts_with("***")).unwrap_or(found)
}

/// A connection to a database that is sound, made if the file is empty.
fn connect(path: &Path) -> Result<Connection, Wrong> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    let number = |pragma: &str| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application, version) = (number("application_id")?, number("user_version")?);
    let is_new = tables == 0 && application == 0 && version == 0;
    if !is_new {
        if application != i64::from(APPLICATION) {
            return Err(Wrong::Damaged("it is a database of something else".into()));
        }
        if version != i64::from(VERSION) {
            let why = format!("it has version {version}, this castra knows {VERSION}");
            return Err(Wrong::Damaged(why));
        }
        let found: String = db.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if found != "ok" {
            return Err(Wrong::Damaged(first_finding(&found).to_owned()));
        }
    }
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        let why = format!("SQLite can only use '{mode}' here, not a write-ahead log");
        return Err(Wrong::Unfit(why));
    }
    db.pragma_update(None, "synchronous", "FULL")?;
    let _: i64 = db.query_row(&format!("PRAGMA journal_size_limit = {WAL_BYTES}"), [], |row| row.get(0))?;
    if is_new {
        let make = format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
        );
        db.execute_batch(&make)?;
    }
    Ok(db)
}

/// A connection for a command beside a running agent.
///
/// # Errors
/// It is no outbox of a known version, or cannot be opened.
pub(super) fn connect_beside(path: &Path, read_only: bool) -> Result<Connection, Refusal> {
    let mode = if read_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
    let open = || -> rusqlite::Result<(Connection, i64, i64)> {
        let db = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(BUSY)?;
        let number = |pragma: &str| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let (application, version) = (number("application_id")?, number("user_version")?);
        Ok((db, application, version))
    };
    let (db, application, version) = open().map_err(|e| trouble(&e, path))?;
    // An agent that found no room when it began has left an empty file.
    if (application, version) == (0, 0) && is_full(path) {
        return Err(disk_full());
    }
    if (application, version) != (i64::from(APPLICATION), i64::from(VERSION)) {
        let why = format!("it is no outbox of version {VERSION}");
        return Err(Refusal::new("outbox-damaged", why));
    }
    Ok(db)
}
