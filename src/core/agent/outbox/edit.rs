//! What the commands do with an outbox: list it, retry and purge. They open the database themselves, beside an agent
//! that runs or without one.
//!
//! Always holds: nothing is held open while rows are handed out, so that a slow reader of a list keeps no log from
//! being written back; a change is one transaction. Owner: `castra agent outbox`.

use super::Counts;
use super::facts::{read_age, read_text};
use super::folder::database;
use super::open::connect_beside;
use super::store::{self, Store};
use super::trouble::{disk_full, is_full, trouble};
use crate::core::refusal::Refusal;
use rusqlite::{Connection, OptionalExtension, params};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Rows that are read at a time.
const PIECE: i64 = 64;

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for the broker.
    Pending,
    /// The broker has it.
    Sent,
    /// The broker refused it for good, or it was pending for too long.
    Error,
}

impl State {
    /// As it is read and typed.
    pub fn name(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Sent => "sent",
            State::Error => "error",
        }
    }

    fn number(self) -> i64 {
        match self {
            State::Pending => store::PENDING,
            State::Sent => store::SENT,
            State::Error => store::ERROR,
        }
    }
}

/// One event of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its place.
    pub n: u64,
    /// Where it stands.
    pub state: State,
    /// Its id.
    pub id: String,
    /// What it is about.
    pub topic: String,
    /// When it was put, in milliseconds since 1970 by the guest's clock.
    pub put_ts: u64,
    /// When it was sent or failed.
    pub end_ts: Option<u64>,
    /// Its place in the broker's journal.
    pub seq: Option<u64>,
    /// The broker had it before.
    pub duplicate: bool,
    /// Why it is in the state error: the code …
    pub code: Option<String>,
    /// … and the reason.
    pub reason: Option<String>,
    /// The body of its publish frame; what is sent has none.
    pub frame: Option<Vec<u8>>,
}

/// The whole outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How much there is.
    pub counts: Counts,
    /// Why nothing is drained just now.
    pub said: Option<String>,
}

/// Which events.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// All of a state.
    All(State),
    /// Those with these ids.
    Ids(&'a [String]),
}

/// The database of a state directory.
///
/// # Errors
/// There is none (`no-outbox`), and no room for one (`outbox-disk-full`).
pub fn find(state_dir: &Path) -> Result<PathBuf, Refusal> {
    let path = database(state_dir);
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        // An agent may be there that could not make one.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_full(&path) => Err(disk_full()),
        Err(error) => Err(Refusal::new("no-outbox", format!("{}: {error}", path.display()))),
    }
}

/// How much there is, and why nothing is drained. A full disk keeps an agent from writing down anything: that is
/// looked at here.
///
/// # Errors
/// It cannot be read.
pub fn summary(path: &Path) -> Result<Summary, Refusal> {
    let db = connect_beside(path, true)?;
    let read = || -> rusqlite::Result<Summary> {
        let said = read_text(&db, "said")?.filter(|said| !said.is_empty());
        let said = if is_full(path) { Some(disk_full().to_string()) } else { said };
        Ok(Summary { said, counts: Store::new(db)?.tally.counts })
    };
    read().map_err(|e| trouble(&e, path))
}

/// Hands out the events, or the `last` so many of them, in their order. How many there were.
///
/// # Errors
/// It cannot be read; what could be was handed out.
pub fn list(
    path: &Path,
    state: Option<State>,
    last: Option<u64>,
    mut each: impl FnMut(Row) -> ControlFlow<()>,
) -> Result<u64, Refusal> {
    let db = connect_beside(path, true)?;
    let state = state.map(State::number);
    let first = last.map(|last| first_of(&db, state, last)).transpose().map_err(|e| trouble(&e, path))?;
    let (mut after, mut listed) = (first.unwrap_or(1) - 1, 0);
    loop {
        let rows = piece(&db, state, after).map_err(|e| trouble(&e, path))?;
        let Some(end) = rows.last() else { return Ok(listed) };
        after = end.n as i64;
        for row in rows {
            listed += 1;
            if each(row).is_break() {
                return Ok(listed);
            }
        }
    }
}

/// Where the last so many begin.
fn first_of(db: &Connection, state: Option<i64>, last: u64) -> rusqlite::Result<i64> {
    let Some(skip) = last.checked_sub(1) else { return Ok(i64::MAX) };
    let first = "SELECT n FROM event WHERE ?1 IS NULL OR state = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2";
    let skip = i64::try_from(skip).unwrap_or(i64::MAX);
    Ok(db.query_row(first, params![state, skip], |row| row.get(0)).optional()?.unwrap_or(1))
}

fn piece(db: &Connection, state: Option<i64>, after: i64) -> rusqlite::Result<Vec<Row>> {
    let some = "SELECT n, state, id, topic, put_ts, end_ts, seq, duplicate, code, reason, frame FROM event \
                WHERE n > ?1 AND (?2 IS NULL OR state = ?2) ORDER BY n LIMIT ?3";
    let mut some = db.prepare(some)?;
    let number = |value: Option<i64>| value.map(|value| value as u64);
    let rows = some.query_map(params![after, state, PIECE], |row| {
        let state = match row.get(1)? {
            store::PENDING => State::Pending,
            store::SENT => State::Sent,
            _ => State::Error,
        };
        Ok(Row {
            n: row.get::<_, i64>(0)? as u64,
            state,
            id: row.get(2)?,
            topic: row.get(3)?,
            put_ts: row.get::<_, i64>(4)? as u64,
            end_ts: number(row.get(5)?),
            seq: number(row.get(6)?),
            duplicate: row.get(7)?,
            code: row.get(8)?,
            reason: row.get(9)?,
            frame: row.get(10)?,
        })
    })?;
    rows.collect()
}

/// What [`retry`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// Events that are pending again.
    pub retried: u64,
    /// Events whose ids were pending or sent already: removed, and not sent a second time.
    pub removed: u64,
    /// Ids that no event in the state error had.
    pub unknown: Vec<String>,
}

/// Makes events of the state error pending again, behind all others and in their order; of an id the newest one, and
/// none if it is pending or sent already. The rest of them is removed.
///
/// # Errors
/// Nothing was changed.
pub fn retry(path: &Path, which: Which<'_>) -> Result<Retried, Refusal> {
    let again = "INSERT INTO event (state, id, topic, put_ts, since, weight, frame) \
                 SELECT 0, id, topic, put_ts, ?1, weight, frame FROM event AS failed \
                 WHERE state = 2 AND (?2 IS NULL OR id = ?2) AND NOT EXISTS \
                 (SELECT 1 FROM event WHERE id = failed.id AND (state <> 2 OR n > failed.n)) ORDER BY n";
    let old = "DELETE FROM event WHERE state = 2 AND (?1 IS NULL OR id = ?1)";
    let mut retried = 0;
    let (went, unknown) = change(path, which, |db, id| {
        retried += db.execute(again, params![read_age(db)?.ms, id])? as u64;
        Ok(db.execute(old, [id])? as u64)
    })?;
    Ok(Retried { retried, removed: went - retried, unknown })
}

/// Removes events: all of a state, or those with these ids, whatever their state. How many, and which ids had none.
///
/// # Errors
/// Nothing was changed.
pub fn purge(path: &Path, which: Which<'_>) -> Result<(u64, Vec<String>), Refusal> {
    let state = match which {
        Which::All(state) => Some(state.number()),
        Which::Ids(_) => None,
    };
    let gone = "DELETE FROM event WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR id = ?2)";
    change(path, which, |db, id| Ok(db.execute(gone, params![state, id])? as u64))
}

fn change(
    path: &Path,
    which: Which<'_>,
    mut change: impl FnMut(&Connection, Option<&str>) -> rusqlite::Result<u64>,
) -> Result<(u64, Vec<String>), Refusal> {
    let mut db = connect_beside(path, false)?;
    let mut all = || -> rusqlite::Result<(u64, Vec<String>)> {
        let during = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let (mut changed, mut unknown) = (0, Vec::new());
        match which {
            Which::All(_) => changed = change(&during, None)?,
            Which::Ids(ids) => {
                for id in ids {
                    match change(&during, Some(id))? {
                        0 => unknown.push(id.clone()),
                        n => changed += n,
                    }
                }
            }
        }
        during.commit()?;
        Ok((changed, unknown))
    };
    all().map_err(|e| trouble(&e, path))
}
