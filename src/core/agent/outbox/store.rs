//! The rows of the outbox: the states of an event, and the bounds.
//!
//! ```text
//! put ──▶ pending ──sent──▶ sent ──pruned──▶ gone
//!            │  ▲──retry, put (as a new row, behind all others)──╮
//!            └──failed, expired──▶ error ──over its bound──▶ gone
//! ```
//!
//! Always holds: what [`Tally`] says is what the rows are, also after a transaction that was undone; an id has one row;
//! rows that are sent have no frame. Owner: `writer.rs`, and `edit.rs` for the commands; both call it within a transaction.

use super::age::Age;
use super::facts::{COUNTERS, counter, read_age, read_number, write_age, write_fact};
use super::open::BUSY;
use super::{Bounds, Counts, Cursor, Entry, Kept, Put, Sent};
use crate::core::clock;
use crate::core::limits::OUTBOX_SENT;
use crate::core::refusal::Refusal;
use rusqlite::{Connection, OptionalExtension, params};
use std::time::Duration;

/// What a row takes besides its frame, as the bounds count it, in bytes.
pub const ROW_BYTES: u64 = 128;

/// The states, as they are stored.
pub(super) const PENDING: i64 = 0;
pub(super) const SENT: i64 = 1;
pub(super) const ERROR: i64 = 2;

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
    /// How long it waits for a lock.
    patience: Duration,
}

impl Store {
    /// Reads how much there is.
    pub fn new(db: Connection) -> rusqlite::Result<Self> {
        let (tally, written) = (Tally::default(), Counts::default());
        let age = read_age(&db)?;
        let mut store =
            Store { db, tally, age, version: 0, before: tally, written, durable: true, patience: BUSY };
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

    /// Sets how long statements wait while another process has the database locked.
    pub fn wait_for_lock(&mut self, time: Duration) -> rusqlite::Result<()> {
        if self.patience != time {
            self.db.busy_timeout(time)?;
            self.patience = time;
        }
        Ok(())
    }

    /// Goes on from these counters, if they are further; or, of what was counted before a file was open, adds them.
    pub fn keep_counting(&mut self, counts: &Counts, adds: bool) {
        let mut counts = *counts;
        for name in COUNTERS {
            let (ours, theirs) = (counter(&mut self.tally.counts, name), *counter(&mut counts, name));
            *ours = if adds { *ours + theirs } else { theirs.max(*ours) };
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

    /// Keeps these, or refuses all of them. One whose id is pending or among the sent ones that are shown is kept
    /// already; one whose id is in the state error is put again.
    pub fn put(
        &mut self,
        puts: &[Put],
        bounds: &Bounds,
        gone: &mut Gone,
    ) -> rusqlite::Result<Result<Vec<Kept>, Refusal>> {
        let mut bytes = 0;
        for put in puts {
            bytes += self.place_of(&put.id)?.map_or_else(|| weight(put), |_| 0);
        }
        if let Err(refusal) = self.make_room(bytes, bounds, gone)? {
            self.tally.counts.refused += 1;
            return Ok(Err(refusal));
        }
        let (now, wall) = (self.now(), clock::wall_ms() as i64);
        let insert = "INSERT INTO event (state, id, topic, put_ts, since, weight, frame) VALUES (0, ?1, ?2, ?3, ?4, ?5, ?6)";
        let mut kept = Vec::with_capacity(puts.len());
        for put in puts {
            if let Some(n) = self.place_of(&put.id)? {
                kept.push(Kept { n, id: put.id.clone(), duplicate: true });
                continue;
            }
            self.forget_failed(&put.id)?;
            let bytes = weight(put);
            let values = params![put.id, put.topic, wall, now, bytes as i64, put.frame];
            let n = self.db.prepare(insert)?.insert(values)? as u64;
            kept.push(Kept { n, id: put.id.clone(), duplicate: false });
            self.tally.counts.pending += 1;
            self.tally.counts.bytes += bytes;
            self.tally.last_n = n;
        }
        Ok(Ok(kept))
    }

    /// An event that failed is put again: what is left of the failure gives way.
    fn forget_failed(&mut self, id: &str) -> rusqlite::Result<()> {
        if self.tally.counts.error == 0 {
            return Ok(());
        }
        let mut forget = self.db.prepare("DELETE FROM event WHERE id = ?1 AND state = 2 RETURNING weight")?;
        let mut forgotten = forget.query([id])?;
        while let Some(row) = forgotten.next()? {
            self.tally.counts.error = self.tally.counts.error.saturating_sub(1);
            self.tally.error_bytes = self.tally.error_bytes.saturating_sub(row.get::<_, i64>(0)? as u64);
        }
        Ok(())
    }

    /// Where an event of this id is that need not be kept again.
    fn place_of(&self, id: &str) -> rusqlite::Result<Option<u64>> {
        let place = "SELECT n FROM event WHERE id = ?1 AND state <> 2";
        self.db.query_row(place, [id], |row| Ok(row.get::<_, i64>(0)? as u64)).optional()
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

fn state_of(db: &Connection, n: u64) -> rusqlite::Result<Option<(i64, u64)>> {
    let state = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64));
    db.query_row("SELECT state, weight FROM event WHERE n = ?1", [n as i64], state).optional()
}

#[cfg(test)]
mod tests {
    use super::super::folder::Folder;
    use super::super::{OutboxError, WhenFull, edit, open};
    use super::*;
    use crate::core::identity::VmName;
    use crate::core::ids::IdSource;
    use edit::{State, Which};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::path::Path;
    use std::time::Duration;

    /// What may happen to an outbox; numbers choose among what is there.
    #[derive(Clone, Debug)]
    enum Op {
        Put(Vec<usize>),
        /// The same id once more, beside another one.
        Again(usize),
        Sent(usize),
        Failed(usize),
        /// The first so many pending ones get old.
        Expire(usize),
        Retry(usize),
        RetryAll,
        Purge(usize),
        PurgeAll(State),
        /// The transaction of this is undone.
        Undone(Box<Op>),
        Reopen,
    }

    fn op() -> impl Strategy<Value = Op> {
        let plain = prop_oneof![
            6 => vec(0usize..3_000, 1..5).prop_map(Op::Put),
            2 => any::<usize>().prop_map(Op::Again),
            5 => any::<usize>().prop_map(Op::Sent),
            3 => any::<usize>().prop_map(Op::Failed),
            1 => (0usize..4).prop_map(Op::Expire),
        ];
        let beside = prop_oneof![
            2 => any::<usize>().prop_map(Op::Retry),
            1 => Just(Op::RetryAll),
            1 => any::<usize>().prop_map(Op::Purge),
            1 => prop_oneof![Just(State::Sent), Just(State::Error), Just(State::Pending)].prop_map(Op::PurgeAll),
            1 => Just(Op::Reopen),
        ];
        prop_oneof![
            8 => plain.clone(),
            3 => beside,
            1 => plain.prop_map(|op| Op::Undone(Box::new(op))),
        ]
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Modelled {
        n: u64,
        id: String,
        state: State,
        bytes: u64,
    }

    /// The same, written down as simply as it can be.
    #[derive(Clone, Debug, Default)]
    struct Model {
        rows: Vec<Modelled>,
        last_n: u64,
        counts: Counts,
    }

    impl Model {
        fn of(&self, state: State) -> Vec<usize> {
            let of = |(i, row): (usize, &Modelled)| (row.state == state).then_some(i);
            self.rows.iter().enumerate().filter_map(of).collect()
        }

        fn bytes(&self, state: State) -> u64 {
            self.rows.iter().filter(|row| row.state == state).map(|row| row.bytes).sum()
        }

        fn drop_oldest(&mut self, state: State, most: u64) {
            while self.bytes(state) > most {
                self.rows.remove(self.of(state)[0]);
                self.counts.dropped += 1;
            }
        }

        /// The places, and whether they were there before; `None`: refused.
        fn put(&mut self, puts: &[Put], bounds: &Bounds) -> Option<Vec<(u64, bool)>> {
            let place = |rows: &[Modelled], id: &str| {
                rows.iter().find(|row| row.id == id && row.state != State::Error).map(|row| row.n)
            };
            let is_new = |put: &&Put| place(&self.rows, &put.id).is_none();
            let bytes: u64 = puts.iter().filter(is_new).map(weight).sum();
            if bounds.when_full == WhenFull::DropOldest && bytes <= bounds.bytes {
                self.drop_oldest(State::Pending, bounds.bytes - bytes);
            }
            if self.bytes(State::Pending) + bytes > bounds.bytes {
                self.counts.refused += 1;
                return None;
            }
            let mut kept = Vec::new();
            for put in puts {
                if let Some(n) = place(&self.rows, &put.id) {
                    kept.push((n, true));
                    continue;
                }
                self.rows.retain(|row| row.id != put.id);
                self.last_n += 1;
                let (id, bytes) = (put.id.clone(), weight(put));
                self.rows.push(Modelled { n: self.last_n, id, state: State::Pending, bytes });
                kept.push((self.last_n, false));
            }
            Some(kept)
        }

        fn retry(&mut self, which: impl Fn(&Modelled) -> bool) -> u64 {
            let again = |row: &Modelled| row.state == State::Error && which(row);
            let moved: Vec<Modelled> = self.rows.iter().filter(|row| again(row)).cloned().collect();
            self.rows.retain(|row| !again(row));
            for row in &moved {
                self.last_n += 1;
                self.rows.push(Modelled { n: self.last_n, state: State::Pending, ..row.clone() });
            }
            moved.len() as u64
        }
    }

    struct World {
        dir: tempfile::TempDir,
        folder: Folder,
        store: Option<Store>,
        model: Model,
        bounds: Bounds,
        ids: IdSource,
    }

    fn opened(dir: &Path) -> Folder {
        Folder::open(dir).unwrap()
    }

    impl World {
        fn new(bounds: Bounds) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = opened(&dir.path().join("agent"));
            let (store, aside) = open::open(&folder, 0).unwrap();
            assert_eq!(aside, None);
            let (model, ids) = (Model::default(), IdSource::new(7));
            World { dir, folder, store: Some(store), model, bounds, ids }
        }

        fn store(&mut self) -> &mut Store {
            self.store.as_mut().unwrap()
        }

        fn path(&self) -> std::path::PathBuf {
            self.folder.database()
        }

        /// The id of a row that may be there.
        fn id(&self, n: usize) -> String {
            match self.model.rows.len() {
                0 => "none".into(),
                rows => self.model.rows[n % rows].id.clone(),
            }
        }

        /// Does it to the store, and, if it lasts, to the model.
        fn within(&mut self, op: &Op, lasts: bool) {
            let bounds = self.bounds;
            let mut model = self.model.clone();
            let mut gone = Gone::default();
            let (mut puts, vm) = (Vec::new(), VmName::parse("web").unwrap());
            if let Op::Put(sizes) = op {
                for size in sizes {
                    let line = format!("{{\"topic\":\"t\",\"payload\":\"{}\"}}", "x".repeat(*size));
                    puts.push(Put::parse(&vm, line.as_bytes(), &mut self.ids, 5).unwrap());
                }
            }
            if let Op::Again(which) = op {
                for line in [format!("{{\"id\":\"{}\"}}", self.id(*which)), "{}".into()] {
                    puts.push(Put::parse(&vm, line.as_bytes(), &mut self.ids, 5).unwrap());
                }
            }
            let store = self.store();
            store.set_durable(false).unwrap();
            store.begin().unwrap();
            match op {
                Op::Put(_) | Op::Again(_) => {
                    let kept = store.put(&puts, &bounds, &mut gone).unwrap().ok();
                    let kept = kept.map(|kept| kept.iter().map(|kept| (kept.n, kept.duplicate)).collect());
                    assert_eq!(kept, model.put(&puts, &bounds));
                }
                Op::Sent(which) => {
                    let pending = model.of(State::Pending);
                    if !pending.is_empty() {
                        let row = &mut model.rows[pending[which % pending.len()]];
                        let ack = Sent { n: row.n, seq: row.n + 1000, duplicate: which % 2 == 0 };
                        // A repeated ack changes nothing.
                        store.sent(&[ack, ack]).unwrap();
                        (row.state, row.bytes) = (State::Sent, 0);
                        model.counts.sent += 1;
                        model.counts.duplicate += u64::from(ack.duplicate);
                    }
                }
                Op::Failed(which) => {
                    let pending = model.of(State::Pending);
                    if !pending.is_empty() {
                        let row = &mut model.rows[pending[which % pending.len()]];
                        store.failed(row.n, "bad-topic", "no", &bounds, &mut gone).unwrap();
                        row.state = State::Error;
                        model.drop_oldest(State::Error, bounds.bytes / 4);
                    }
                }
                Op::Expire(number) => {
                    let pending: Vec<usize> = model.of(State::Pending).into_iter().take(*number).collect();
                    let age = bounds.age.as_millis() as i64 + 1_000;
                    for at in &pending {
                        let row = &mut model.rows[*at];
                        let older = "UPDATE event SET since = since - ?1 WHERE n = ?2";
                        store.db.execute(older, [age, row.n as i64]).unwrap();
                        row.state = State::Error;
                        model.counts.expired += 1;
                    }
                    assert_eq!(store.has_expired(&bounds).unwrap(), !pending.is_empty());
                    assert_eq!(store.expire(&bounds, &mut gone).unwrap(), pending.len() as u64);
                    model.drop_oldest(State::Error, bounds.bytes / 4);
                }
                _ => {}
            }
            if lasts {
                store.commit().unwrap();
                self.model = model;
            } else {
                store.undo();
            }
        }

        fn run(&mut self, op: &Op) {
            let path = self.path();
            match op {
                Op::Undone(op) => self.within(op, false),
                Op::Retry(which) => {
                    let id = self.id(*which);
                    let done = edit::retry(&path, Which::Ids(std::slice::from_ref(&id))).unwrap();
                    assert_eq!((done.retried, done.removed), (self.model.retry(|row| row.id == id), 0));
                    assert_eq!(done.unknown.len(), usize::from(done.retried == 0));
                }
                Op::RetryAll => {
                    let done = edit::retry(&path, Which::All(State::Error)).unwrap();
                    assert_eq!((done.retried, done.removed), (self.model.retry(|_| true), 0));
                }
                Op::Purge(which) => {
                    let id = self.id(*which);
                    edit::purge(&path, Which::Ids(std::slice::from_ref(&id))).unwrap();
                    self.model.rows.retain(|row| row.id != id);
                }
                Op::PurgeAll(state) => {
                    edit::purge(&path, Which::All(*state)).unwrap();
                    self.model.rows.retain(|row| row.state != *state);
                }
                Op::Reopen => {
                    self.store = None;
                    let (store, aside) = open::open(&self.folder, 0).unwrap();
                    assert_eq!(aside, None);
                    self.store = Some(store);
                }
                op => self.within(op, true),
            }
            self.check();
        }

        fn check(&mut self) {
            let (path, model) = (self.path(), self.model.clone());
            let mut listed = Vec::new();
            edit::list(&path, None, None, |row| {
                let bytes = row.frame.map_or(0, |frame| frame.len() as u64 + ROW_BYTES);
                listed.push(Modelled { n: row.n, id: row.id, state: row.state, bytes });
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(listed, model.rows);
            let ids: std::collections::HashSet<_> = listed.iter().map(|row| &row.id).collect();
            assert_eq!(ids.len(), listed.len(), "an id has one row");
            let store = self.store();
            store.look().unwrap();
            let want = Counts {
                pending: model.of(State::Pending).len() as u64,
                error: model.of(State::Error).len() as u64,
                bytes: model.bytes(State::Pending),
                ..model.counts
            };
            assert_eq!(store.tally.counts, want);
            assert_eq!(store.tally.error_bytes, model.bytes(State::Error));
            assert_eq!(store.tally.shown, model.of(State::Sent).len() as u64);
            // Any way to ask for what is pending gives all of it, in order.
            for (limit, bytes) in [(1, usize::MAX), (usize::MAX, 1), (3, 4_000), (usize::MAX, usize::MAX)] {
                let (mut after, mut pending) = (0, Vec::new());
                while let found = store.pending(after, limit, bytes).unwrap()
                    && let Some(last) = found.last()
                {
                    after = last.n;
                    assert!(found.len() <= limit);
                    assert!(found.len() == 1 || found.iter().map(|e| e.frame.len()).sum::<usize>() <= bytes);
                    pending.extend(found.into_iter().map(|entry| entry.n));
                }
                assert!(pending.iter().eq(model.of(State::Pending).iter().map(|at| &model.rows[*at].n)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        /// Whatever happens in whatever order, the file and what is counted of it are the model's.
        #[test]
        fn an_outbox_is_its_model(
            ops in vec(op(), 1..60), drops in any::<bool>(), bytes in 2_000u64..30_000,
        ) {
            let when_full = if drops { WhenFull::DropOldest } else { WhenFull::Refuse };
            let mut world = World::new(Bounds { bytes, when_full, ..Bounds::default() });
            for op in &ops {
                world.run(op);
            }
        }
    }

    #[test]
    fn only_the_last_that_were_sent_are_shown() {
        let mut world = World::new(Bounds::default());
        let over = 30;
        for _ in 0..(OUTBOX_SENT + over) / 10 {
            world.within(&Op::Put(vec![1; 10]), true);
        }
        for _ in 0..OUTBOX_SENT + over {
            world.within(&Op::Sent(0), true);
        }
        let store = world.store();
        assert_eq!((store.tally.shown, store.tally.counts.sent), (OUTBOX_SENT, OUTBOX_SENT + over));
        let first: i64 = store.db.query_row("SELECT min(n) FROM event", [], |row| row.get(0)).unwrap();
        assert_eq!(first as u64, over + 1);
    }

    #[test]
    fn numbers_go_on_over_a_file_that_was_put_aside_and_over_an_empty_one() {
        let mut world = World::new(Bounds::default());
        world.within(&Op::Put(vec![1, 1]), true);
        edit::purge(&world.path(), Which::All(State::Pending)).unwrap();
        world.store = None;
        let (store, _) = open::open(&world.folder, 0).unwrap();
        assert_eq!(store.tally.last_n, 2);
        drop(store);
        let (store, _) = open::open(&world.folder, 40).unwrap();
        world.store = Some(store);
        world.model.last_n = 40;
        world.model.rows.clear();
        world.run(&Op::Put(vec![1]));
    }

    #[test]
    fn age_goes_on_where_the_machine_was_not_up() {
        let mut world = World::new(Bounds { age: Duration::from_secs(60), ..Bounds::default() });
        world.within(&Op::Put(vec![1]), true);
        let at = world.store().now();
        let store = world.store();
        store.begin().unwrap();
        store.save_clock().unwrap();
        store.commit().unwrap();
        // Another run of the machine, whose own clock says little, and whose wall clock may say anything.
        store.db.execute("UPDATE fact SET value = 'another' WHERE name = 'clock_boot'", []).unwrap();
        store.db.execute("UPDATE event SET put_ts = 1", []).unwrap();
        world.run(&Op::Reopen);
        let now = world.store().now();
        assert!((at..at + 30_000).contains(&now), "{at} {now}");
        let bounds = world.bounds;
        assert!(!world.store().has_expired(&bounds).unwrap());
    }

    #[test]
    fn two_agents_do_not_share_a_folder() {
        let world = World::new(Bounds::default());
        let second = Folder::open(&world.dir.path().join("agent"));
        let Err(OutboxError::InUse { pid, .. }) = second else { panic!() };
        assert_eq!(pid, format!(" (pid {})", std::process::id()));
    }
}
