//! The rows of the outbox: the states of an event, and the bounds.
//!
//! ```text
//! put ──▶ pending ──sent──▶ sent ──pruned──▶ gone
//!            │  ▲──retry (as a new row, behind all others)──╮
//!            └──failed, expired──▶ error ──over its bound──▶ gone
//! ```
//!
//! Always holds: what [`Tally`] says is what the rows are, also after a transaction that was undone; rows that are
//! sent have no frame. Owner: `writer.rs`, and `edit.rs` for the commands; both call it within a transaction.

use super::age::Age;
use super::{Bounds, Counts, Cursor, Entry, Kept, Put, Sent, WhenFull};
use crate::core::clock;
use crate::core::limits::OUTBOX_SENT;
use crate::core::refusal::Refusal;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

/// What a row takes besides its frame, as the bounds count it, in bytes.
pub const ROW_BYTES: u64 = 128;
/// Rows that are looked at together where some are to go.
const PIECE: i64 = 256;

/// The states, as they are stored.
pub(super) const PENDING: i64 = 0;
pub(super) const SENT: i64 = 1;
pub(super) const ERROR: i64 = 2;

/// Counted over the life of the file, in its table `fact`.
const COUNTERS: [&str; 5] = ["sent", "duplicate", "dropped", "refused", "expired"];

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub counts: Counts,
    /// Rows that are sent and still shown.
    pub shown: u64,
    /// What the rows in the state error take, in bytes.
    pub error_bytes: u64,
    /// The last number that was given.
    pub last_n: u64,
}

/// What went besides what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// Pending events that gave way to newer ones.
    pub pending: u64,
    /// Events in the state error that gave way.
    pub error: u64,
}

/// What an error of SQLite means to whoever asked.
pub(super) fn trouble(error: &rusqlite::Error) -> Refusal {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            let why = "the disk of the outbox is full; free space there, publishing resumes by itself";
            Refusal::new("outbox-disk-full", why)
        }
        _ => Refusal::new("outbox-failed", format!("the outbox's database failed: {error}")),
    }
}

/// An open outbox.
pub(super) struct Store {
    pub db: Connection,
    pub tally: Tally,
    age: Age,
    /// What other connections did is seen by this.
    version: i64,
    /// The tally as it was when the transaction began.
    before: Tally,
    /// The counters as they are in the file.
    written: Counts,
    /// Whether a commit is synced.
    durable: bool,
}

impl Store {
    /// Reads how much there is.
    pub fn new(db: Connection) -> rusqlite::Result<Self> {
        let (tally, written) = (Tally::default(), Counts::default());
        let age = read_age(&db)?;
        let mut store = Store { db, tally, age, version: 0, before: tally, written, durable: true };
        store.look()?;
        Ok(store)
    }

    /// Says whether commits are synced from now on. Outside of a transaction.
    pub fn set_durable(&mut self, durable: bool) -> rusqlite::Result<()> {
        if self.durable != durable {
            self.db.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
            self.durable = durable;
        }
        Ok(())
    }

    /// Goes on from these counters, if they are further.
    pub fn keep_counting(&mut self, counts: &Counts) {
        let mut counts = *counts;
        for name in COUNTERS {
            let ours = counter(&mut self.tally.counts, name);
            *ours = (*ours).max(*counter(&mut counts, name));
        }
    }

    /// Begins a transaction and takes in what other connections did. It has to be ended with [`Store::commit`] or
    /// [`Store::undo`].
    pub fn begin(&mut self) -> rusqlite::Result<()> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        if let Err(error) = self.look() {
            self.undo();
            return Err(error);
        }
        self.before = self.tally;
        Ok(())
    }

    /// Ends the transaction.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        let (mut now, mut written) = (self.tally.counts, self.written);
        for name in COUNTERS {
            let value = *counter(&mut now, name);
            if value != *counter(&mut written, name) {
                write_fact(&self.db, name, &(value as i64))?;
            }
        }
        self.db.execute_batch("COMMIT")?;
        self.written = now;
        Ok(())
    }

    /// Undoes the transaction.
    pub fn undo(&mut self) {
        // SQLite may have undone it already.
        if !self.db.is_autocommit() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        self.tally = self.before;
    }

    /// Whether another connection changed something since this was asked last; if so all is counted anew.
    pub fn look(&mut self) -> rusqlite::Result<bool> {
        let version = self.db.pragma_query_value(None, "data_version", |row| row.get(0))?;
        let changed = version != self.version;
        if changed {
            self.recount()?;
            self.version = version;
        }
        Ok(changed)
    }

    fn recount(&mut self) -> rusqlite::Result<()> {
        // What is counted and not written yet, because its transaction failed, stays counted.
        let mut tally = Tally { counts: self.tally.counts, ..Tally::default() };
        let mut rows = self.db.prepare("SELECT state, count(*), sum(weight) FROM event GROUP BY state")?;
        let mut rows = rows.query([])?;
        (tally.counts.pending, tally.counts.bytes, tally.counts.error) = (0, 0, 0);
        while let Some(row) = rows.next()? {
            let (state, number, bytes): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (number, bytes) = (number as u64, bytes as u64);
            match state {
                PENDING => (tally.counts.pending, tally.counts.bytes) = (number, bytes),
                ERROR => (tally.counts.error, tally.error_bytes) = (number, bytes),
                _ => tally.shown = number,
            }
        }
        let last = "SELECT seq FROM sqlite_sequence WHERE name = 'event'";
        let last: Option<i64> = self.db.query_row(last, [], |row| row.get(0)).optional()?;
        tally.last_n = last.unwrap_or(0) as u64;
        for name in COUNTERS {
            let value = read_number(&self.db, name)?.unwrap_or(0) as u64;
            *counter(&mut self.written, name) = value;
            let ours = counter(&mut tally.counts, name);
            *ours = (*ours).max(value);
        }
        self.tally = tally;
        Ok(())
    }

    /// Numbers go on behind `last`.
    pub fn skip_to(&mut self, last: u64) -> rusqlite::Result<()> {
        if last > self.tally.last_n {
            self.db.execute("DELETE FROM sqlite_sequence WHERE name = 'event'", [])?;
            let skip = "INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?1)";
            self.db.execute(skip, [last as i64])?;
            self.tally.last_n = last;
        }
        Ok(())
    }

    /// The outbox's clock, in milliseconds.
    pub fn now(&self) -> i64 {
        self.age.ms + (clock::boot_ms() - self.age.boot_ms).max(0)
    }

    /// Writes the clock down, so that the next run goes on from here.
    pub fn save_clock(&mut self) -> rusqlite::Result<()> {
        self.age = self.age.now();
        write_age(&self.db, &self.age)
    }

    /// Keeps these, or refuses all of them.
    pub fn put(
        &mut self,
        puts: &[Put],
        bounds: &Bounds,
        gone: &mut Gone,
    ) -> rusqlite::Result<Result<Vec<Kept>, Refusal>> {
        let bytes: u64 = puts.iter().map(weight).sum();
        if let Err(refusal) = self.make_room(bytes, bounds, gone)? {
            self.tally.counts.refused += 1;
            return Ok(Err(refusal));
        }
        let (now, wall) = (self.now(), clock::wall_ms() as i64);
        let insert = "INSERT INTO event (state, id, topic, put_ts, since, weight, frame) VALUES (0, ?1, ?2, ?3, ?4, ?5, ?6)";
        let mut insert = self.db.prepare(insert)?;
        let mut kept = Vec::with_capacity(puts.len());
        for put in puts {
            let bytes = weight(put);
            let n = insert.insert(params![put.id, put.topic, wall, now, bytes as i64, put.frame])? as u64;
            kept.push(Kept { n, id: put.id.clone() });
            self.tally.counts.pending += 1;
            self.tally.counts.bytes += bytes;
            self.tally.last_n = n;
        }
        Ok(Ok(kept))
    }

    fn make_room(
        &mut self,
        bytes: u64,
        bounds: &Bounds,
        gone: &mut Gone,
    ) -> rusqlite::Result<Result<(), Refusal>> {
        if bytes <= bounds.bytes && bounds.when_full == WhenFull::DropOldest {
            let most = bounds.bytes - bytes;
            gone.pending += self.drop_oldest(PENDING, most)?;
        }
        if self.tally.counts.bytes + bytes <= bounds.bytes {
            return Ok(Ok(()));
        }
        let has = self.tally.counts.pending;
        let why = format!(
            "{has} events are pending and no room is left for {bytes} bytes of {} that are allowed; it has room again \
             when the broker takes them",
            bounds.bytes
        );
        Ok(Err(Refusal::new("outbox-full", why)))
    }

    /// Drops the oldest rows of a state until they take `most` bytes. How many went.
    fn drop_oldest(&mut self, state: i64, most: u64) -> rusqlite::Result<u64> {
        let mut gone = 0;
        loop {
            let counts = &mut self.tally.counts;
            let (number, bytes) = match state {
                PENDING => (&mut counts.pending, &mut counts.bytes),
                _ => (&mut counts.error, &mut self.tally.error_bytes),
            };
            if *bytes <= most {
                break;
            }
            let oldest = "SELECT n, weight FROM event WHERE state = ?1 ORDER BY n LIMIT ?2";
            let mut oldest = self.db.prepare(oldest)?;
            let mut rows = oldest.query([state, PIECE])?;
            let (mut last, mut went) = (None, 0);
            while let Some(row) = rows.next()?
                && *bytes > most
            {
                last = Some(row.get::<_, i64>(0)?);
                *bytes = bytes.saturating_sub(row.get::<_, i64>(1)? as u64);
                went += 1;
            }
            drop(rows);
            let Some(last) = last else { break };
            self.db.execute("DELETE FROM event WHERE state = ?1 AND n <= ?2", [state, last])?;
            *number = number.saturating_sub(went);
            counts.dropped += went;
            gone += went;
        }
        Ok(gone)
    }

    /// The broker has these.
    pub fn sent(&mut self, acks: &[Sent]) -> rusqlite::Result<()> {
        let mark = "UPDATE event SET state = 1, seq = ?2, duplicate = ?3, end_ts = ?4, weight = 0, code = NULL, \
                    reason = NULL, frame = NULL WHERE n = ?1";
        let wall = clock::wall_ms() as i64;
        for ack in acks {
            let counts = &mut self.tally.counts;
            counts.sent += 1;
            counts.duplicate += u64::from(ack.duplicate);
            // It may have been dropped, expired or purged while it was under way.
            let Some((state, weight)) = state_of(&self.db, ack.n)? else { continue };
            match state {
                PENDING => {
                    counts.pending = counts.pending.saturating_sub(1);
                    counts.bytes = counts.bytes.saturating_sub(weight);
                }
                ERROR => {
                    counts.error = counts.error.saturating_sub(1);
                    self.tally.error_bytes = self.tally.error_bytes.saturating_sub(weight);
                }
                _ => {
                    counts.sent -= 1;
                    counts.duplicate -= u64::from(ack.duplicate);
                    continue;
                }
            }
            self.tally.shown += 1;
            self.db.execute(mark, params![ack.n as i64, ack.seq as i64, ack.duplicate, wall])?;
        }
        if self.tally.shown > OUTBOX_SENT {
            let over = (self.tally.shown - OUTBOX_SENT) as i64;
            let prune =
                "DELETE FROM event WHERE n IN (SELECT n FROM event WHERE state = 1 ORDER BY n LIMIT ?1)";
            let went = self.db.execute(prune, [over])? as u64;
            self.tally.shown = self.tally.shown.saturating_sub(went);
        }
        Ok(())
    }

    /// The broker refused this one for good.
    pub fn failed(
        &mut self,
        n: u64,
        code: &str,
        reason: &str,
        bounds: &Bounds,
        gone: &mut Gone,
    ) -> rusqlite::Result<()> {
        let mark =
            "UPDATE event SET state = 2, code = ?2, reason = ?3, end_ts = ?4 WHERE n = ?1 AND state = 0";
        if let Some((PENDING, weight)) = state_of(&self.db, n)? {
            self.db.execute(mark, params![n as i64, code, reason, clock::wall_ms() as i64])?;
            self.count_failed(1, weight);
        }
        self.bound_errors(bounds, gone)
    }

    fn count_failed(&mut self, number: u64, bytes: u64) {
        let counts = &mut self.tally.counts;
        counts.pending = counts.pending.saturating_sub(number);
        counts.bytes = counts.bytes.saturating_sub(bytes);
        counts.error += number;
        self.tally.error_bytes += bytes;
    }

    fn bound_errors(&mut self, bounds: &Bounds, gone: &mut Gone) -> rusqlite::Result<()> {
        gone.error += self.drop_oldest(ERROR, bounds.bytes / 4)?;
        Ok(())
    }

    /// Whether something is pending for too long.
    pub fn has_expired(&self, bounds: &Bounds) -> rusqlite::Result<bool> {
        let oldest = "SELECT since FROM event WHERE state = 0 ORDER BY n LIMIT 1";
        let since: Option<i64> = self.db.query_row(oldest, [], |row| row.get(0)).optional()?;
        Ok(since.is_some_and(|since| since < self.oldest(bounds)))
    }

    fn oldest(&self, bounds: &Bounds) -> i64 {
        self.now().saturating_sub(i64::try_from(bounds.age.as_millis()).unwrap_or(i64::MAX))
    }

    /// What is pending for too long goes to the state error. How many.
    pub fn expire(&mut self, bounds: &Bounds, gone: &mut Gone) -> rusqlite::Result<u64> {
        let oldest = self.oldest(bounds);
        let old = "SELECT count(*), coalesce(sum(weight), 0) FROM event WHERE state = 0 AND since < ?1";
        let (number, bytes): (i64, i64) =
            self.db.query_row(old, [oldest], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mark = "UPDATE event SET state = 2, code = 'expired', reason = ?2, end_ts = ?3 WHERE state = 0 AND since < ?1";
        let why = format!("it was pending for more than {:?}", bounds.age);
        self.db.execute(mark, params![oldest, why, clock::wall_ms() as i64])?;
        self.count_failed(number as u64, bytes as u64);
        self.tally.counts.expired += number as u64;
        self.bound_errors(bounds, gone)?;
        Ok(number as u64)
    }

    /// What is pending behind `after`.
    pub fn pending(&self, after: u64, limit: usize, bytes: usize) -> rusqlite::Result<Vec<Entry>> {
        let next = "SELECT n, id, frame FROM event WHERE state = 0 AND n > ?1 ORDER BY n LIMIT ?2";
        let mut next = self.db.prepare(next)?;
        let mut rows = next.query([after as i64, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let (mut found, mut has) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let entry = Entry { n: row.get::<_, i64>(0)? as u64, id: row.get(1)?, frame: row.get(2)? };
            has += entry.frame.len();
            if has > bytes && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    /// The cursor of this name.
    pub fn cursor(&self, name: &str) -> rusqlite::Result<Option<Cursor>> {
        let read = "SELECT seq, ts, id FROM cursor WHERE name = ?1";
        let cursor = |row: &rusqlite::Row<'_>| {
            let (seq, ts): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok(Cursor { seq: seq as u64, ts: ts as u64, id: row.get(2)? })
        };
        self.db.query_row(read, [name], cursor).optional()
    }

    /// Sets a cursor.
    pub fn set_cursor(&self, name: &str, cursor: &Cursor) -> rusqlite::Result<()> {
        let write = "INSERT OR REPLACE INTO cursor (name, seq, ts, id) VALUES (?1, ?2, ?3, ?4)";
        self.db.execute(write, params![name, cursor.seq as i64, cursor.ts as i64, cursor.id]).map(drop)
    }

    /// Why nothing is drained; empty when all is well.
    pub fn said(&self, error: &str) -> rusqlite::Result<()> {
        write_fact(&self.db, "said", &error)
    }
}

fn weight(put: &Put) -> u64 {
    put.frame.len() as u64 + ROW_BYTES
}

fn counter<'c>(counts: &'c mut Counts, name: &str) -> &'c mut u64 {
    match name {
        "sent" => &mut counts.sent,
        "duplicate" => &mut counts.duplicate,
        "dropped" => &mut counts.dropped,
        "refused" => &mut counts.refused,
        _ => &mut counts.expired,
    }
}

fn state_of(db: &Connection, n: u64) -> rusqlite::Result<Option<(i64, u64)>> {
    let state = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64));
    db.query_row("SELECT state, weight FROM event WHERE n = ?1", [n as i64], state).optional()
}

/// A number of the table `fact`.
pub(super) fn read_number(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT value FROM fact WHERE name = ?1", [name], |row| row.get(0)).optional()
}

/// A text of the table `fact`.
pub(super) fn read_text(db: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM fact WHERE name = ?1", [name], |row| row.get(0)).optional()
}

fn write_fact(db: &Connection, name: &str, value: &dyn rusqlite::ToSql) -> rusqlite::Result<()> {
    db.execute("INSERT OR REPLACE INTO fact (name, value) VALUES (?1, ?2)", params![name, value]).map(drop)
}

/// The outbox's clock now.
pub(super) fn read_age(db: &Connection) -> rusqlite::Result<Age> {
    let saved = Age {
        ms: read_number(db, "clock")?.unwrap_or(0),
        boot_ms: read_number(db, "clock_boot_ms")?.unwrap_or(0),
        boot_id: read_text(db, "clock_boot")?.unwrap_or_default(),
    };
    let mut age = saved.now();
    // Of the run of the machine before this one, what was not written down is at least as much.
    let newest = "SELECT since FROM event WHERE state = 0 ORDER BY n DESC LIMIT 1";
    let newest: Option<i64> = db.query_row(newest, [], |row| row.get(0)).optional()?;
    age.ms = age.ms.max(newest.unwrap_or(0));
    Ok(age)
}

fn write_age(db: &Connection, age: &Age) -> rusqlite::Result<()> {
    write_fact(db, "clock", &age.ms)?;
    write_fact(db, "clock_boot_ms", &age.boot_ms)?;
    write_fact(db, "clock_boot", &age.boot_id)
}
