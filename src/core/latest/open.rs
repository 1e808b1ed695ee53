//! Opens the view's database: the one that is there, or a new one beside what cannot be used.
//!
//! Always holds: what is of another journal, beyond its end, damaged or of an unknown version is put aside, never changed;
//! the newest few such files are kept. A disk that fails is an error, not damage. Owner: `work.rs`.

use super::compaction::Compaction;
use super::store::{CACHE_KIB, SINCE, Store};
use super::tables;
use crate::core::clock;
use crate::core::limits::LATEST_ASIDES;
use crate::core::state_root::sync_dir;
use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::fs::{OpenOptions, symlink_metadata};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A copy that is being made holds the database for less. Of whoever has it locked for longer it is said that nothing is
/// written, and the end of the broker waits no longer.
pub(super) const BUSY: Duration = Duration::from_secs(1);
/// What is kept of the write-ahead log between two checkpoints, in bytes.
const WAL_BYTES: i64 = 16 * 1024 * 1024;
/// Pages of 4 KiB in the write-ahead log, then it is folded into the database.
const FOLD_PAGES: i64 = 4 * 1024;
/// What SQLite has beside a database.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// Why a database cannot be used.
pub(super) enum Wrong {
    /// It is damaged, or of something else.
    Damaged(String),
    /// It fails now.
    Failed(String),
    /// Its file was removed or replaced: the next one can be begun at once.
    Replaced(String),
}

impl From<rusqlite::Error> for Wrong {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Wrong::Damaged(error.to_string()),
            _ => Wrong::Failed(error.to_string()),
        }
    }
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Wrong::Failed(error.to_string())
    }
}

/// The journal that is viewed.
pub(super) struct Viewed<'a> {
    /// Its id.
    pub journal: u128,
    /// The oldest seq that can be read.
    pub first: u64,
    /// The newest one.
    pub head: u64,
    /// This process had a view of it.
    pub had: bool,
    /// Called when keys may be missing from now on; returns the seq before which no subscriber knows that.
    pub lose: &'a dyn Fn() -> u64,
    /// Called before the file becomes another one.
    pub goes_back: &'a dyn Fn(),
}

impl Viewed<'_> {
    /// The fact [`SINCE`] when the view begins with the first event of the journal; none when that is event 1.
    fn loss(&self) -> Option<String> {
        (self.first > 1).then(|| (self.lose)().to_string())
    }
}

/// Opens the view of this journal, or begins one; how many events are gone from it that one which was lost may have had.
pub(super) fn open(path: &Path, viewed: &Viewed<'_>, compaction: &Compaction) -> Result<(Store, u64), Wrong> {
    let is_there = symlink_metadata(path).is_ok();
    if !is_there {
        (viewed.goes_back)();
    }
    let had = viewed.had || is_there;
    let mut lost = 0;
    let found = connect(path).and_then(|db| {
        if !viewed.had {
            tables::give_back_pages(&db, path);
        }
        let store = Store::new(db)?;
        let journal = store.fact("journal")?;
        if journal.as_ref().is_some_and(|id| *id != name_of(viewed.journal)) {
            return Err(Wrong::Damaged("it is of another journal".into()));
        }
        if store.seq > viewed.head {
            let why = format!("it has events up to {}, and the journal ends at {}", store.seq, viewed.head);
            return Err(Wrong::Damaged(why));
        }
        Ok((store, journal.is_some()))
    });
    let (mut store, is_old) = match found {
        Err(Wrong::Damaged(why)) => {
            (viewed.goes_back)();
            let aside = put_aside(path)?;
            tracing::error!(
                "latest: {} cannot be used ({why}); it was put aside as {}, and is made anew from the journal",
                path.display(),
                aside.display()
            );
            (Store::new(connect(path)?)?, false)
        }
        found => found?,
    };
    let text = compaction.text();
    let said = store.fact("patterns")?;
    let stays = |topic: &str| compaction.has(topic);
    if !is_old {
        lost = begins_without(viewed, had);
        let journal = name_of(viewed.journal);
        let loss = viewed.loss();
        let mut facts = vec![("journal", journal.as_str()), ("patterns", &text)];
        facts.extend(loss.as_deref().map(|seq| (SINCE, seq)));
        store.begin_at(viewed.first - 1, &facts, stays)?;
    } else if !said.as_ref().is_some_and(|said| compaction.is_within(said)) {
        tracing::info!(
            first_seq = viewed.first,
            "latest: more topics are compacted than before; the journal is read from its first event on for them"
        );
        if viewed.first > 1 {
            tracing::warn!(
                to = viewed.first - 1,
                "latest: of topics that are compacted from now on keys are missing whose newest event retention has removed \
                 already"
            );
        }
        let loss = viewed.loss();
        let mut facts = vec![("patterns", text.as_str())];
        facts.extend(loss.as_deref().map(|seq| (SINCE, seq)));
        store.begin_at((viewed.first - 1).min(store.seq), &facts, stays)?;
    } else if said.as_ref() != Some(&text) {
        store.begin_at(store.seq, &[("patterns", &text)], stays)?;
    }
    Ok((store, lost))
}

/// Says what a new view cannot have; how many events that are, if there was one before.
fn begins_without(viewed: &Viewed<'_>, had: bool) -> u64 {
    let to = viewed.first - 1;
    match (to, had) {
        (0, _) => 0,
        (_, true) => {
            tracing::error!(
                to,
                "latest: keys are missing whose newest event retention has removed already: the view that had them is lost. \
                 Restore latest.db from a backup of this state root, if there is one"
            );
            to
        }
        (_, false) => {
            tracing::warn!(
                to,
                "latest: keys are missing whose newest event retention has removed already; if there was a latest.db before, \
                 it had them: that is not known"
            );
            0
        }
    }
}

fn name_of(journal: u128) -> String {
    format!("{journal:032x}")
}

/// A connection that writes, to a database that has the tables.
fn connect(path: &Path) -> Result<Connection, Wrong> {
    match symlink_metadata(path) {
        // It is not opened here: to close it would take the locks away that SQLite has on it.
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(Wrong::Failed(format!("{} is not a regular file: remove it", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => begin_file(path)?,
        Err(error) => return Err(error.into()),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    let (application, version) = numbers(&db)?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let is_empty = tables == 0 && application == 0 && version == 0;
    match is_empty {
        // Before the file has its first page.
        true => db.pragma_update(None, "auto_vacuum", tables::INCREMENTAL)?,
        false => check(application, version)?,
    }
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(Wrong::Failed(format!("SQLite can only use '{mode}' here, not a write-ahead log")));
    }
    // What a commit says is durable: retention goes by it.
    db.pragma_update(None, "synchronous", "FULL")?;
    // The log is folded in less often than SQLite would.
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let _: i64 = db.query_row(&format!("PRAGMA wal_autocheckpoint = {FOLD_PAGES}"), [], |row| row.get(0))?;
    let _: i64 = db.query_row(&format!("PRAGMA journal_size_limit = {WAL_BYTES}"), [], |row| row.get(0))?;
    tables::make(&mut db, if is_empty { 0 } else { version })?;
    Ok(db)
}

fn begin_file(path: &Path) -> io::Result<()> {
    // A log that was left behind would be taken for its own.
    BESIDE.iter().for_each(|end| _ = std::fs::remove_file(with(path, end)));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// A connection that reads, beside the one that writes.
pub(super) fn connect_beside(path: &Path) -> Result<Connection, Wrong> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    let (application, version) = numbers(&db)?;
    check(application, version)?;
    Ok(db)
}

fn numbers(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    let number = |pragma: &str| db.pragma_query_value(None, pragma, |row| row.get(0));
    Ok((number("application_id")?, number("user_version")?))
}

fn check(application: i64, version: i64) -> Result<(), Wrong> {
    if application != i64::from(tables::APPLICATION) {
        return Err(Wrong::Damaged("it is a database of something else".into()));
    }
    if !(1..=tables::VERSION).contains(&version) {
        let why = format!("it has version {version}, this castra knows versions 1 to {}", tables::VERSION);
        return Err(Wrong::Damaged(why));
    }
    Ok(())
}

/// The path of what is beside a database.
pub(super) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Renames the database and what is beside it; what it is called now.
pub(super) fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let own = with(path, ".aside-");
    let mut asides: Vec<PathBuf> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.as_os_str().as_encoded_bytes().starts_with(own.as_os_str().as_encoded_bytes()))
        .filter(|path| {
            !BESIDE.iter().any(|end| path.as_os_str().as_encoded_bytes().ends_with(end.as_bytes()))
        })
        .collect();
    // By their times, which all have as many digits.
    asides.sort();
    while asides.len() >= LATEST_ASIDES {
        let oldest = asides.remove(0);
        tracing::warn!("latest: {} is removed, as newer ones are kept", oldest.display());
        BESIDE.iter().for_each(|end| _ = std::fs::remove_file(with(&oldest, end)));
        std::fs::remove_file(&oldest)?;
    }
    let aside = with(path, &format!(".aside-{:013}", clock::wall_ms()));
    // The log goes first: beside a new database it would be taken for its own.
    for suffix in BESIDE {
        match std::fs::rename(with(path, suffix), with(&aside, suffix)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    sync_dir(folder)?;
    match std::fs::rename(path, &aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    sync_dir(folder)?;
    Ok(aside)
}
