//! The rows of the view, and the transactions that write them.
//!
//! ```text
//! latest  seq (the row), topic, key, line, crc     one row for each key of a topic; the newest event
//! ended   seq (the row), topic, key, line, crc     tombstones: one row for each key that ended; the event that ended it
//! topic   n, name, changed, snapped, forgotten     changed: seq of what changed it last; snapped: of its last snapshot;
//!                                                  forgotten: tombstones up to this seq may be gone
//! fact    name, value                              journal, seq, patterns, since
//! ```
//!
//! `since` is the watermark of all topics: a state that is known from before that seq cannot be brought up to date. A
//! key stands in `latest` or in `ended`, never in both.
//!
//! Always holds: rows and `seq` change together; an event older than what stands there changes nothing, so that events
//! may be taken again; when a tombstone goes, its topic's watermark moves in the same transaction; tombstones are
//! bounded in number and bytes (invariant 6). Owner: `work.rs`, whose thread writes.

use super::letters::{Bounds, Letters, group_of};
use super::space;
use crate::core::limits::{LATEST_ENDED, LATEST_ENDED_BYTES};
use rusqlite::{Connection, OptionalExtension, Statement, Transaction, params};
use std::collections::{BTreeSet, HashMap};

/// What is kept of the database in memory, in KiB …
pub(super) const CACHE_KIB: i64 = 8 * 1024;
/// … and while it is made anew: the index of a million keys.
const BUSY_CACHE_KIB: i64 = 64 * 1024;
/// So many numbers of topics are remembered.
const TOPICS: usize = 4096;

/// The fact: keys that were known before this seq may be missing, and their ends unknown.
pub(super) const SINCE: &str = "since";

/// Topic and key.
type Name = (Box<str>, Box<str>);

/// The newest event of a key.
#[derive(Debug)]
struct Newest {
    seq: u64,
    line: Vec<u8>,
    /// It ends the key.
    is_end: bool,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Pending {
    rows: HashMap<Name, Newest>,
    /// What they take, in bytes.
    pub bytes: usize,
}

impl Pending {
    /// The newest event of a key; `is_end`: it ends the key.
    pub fn put(&mut self, topic: &str, key: &str, seq: u64, line: &[u8], is_end: bool) {
        self.bytes += topic.len() + key.len() + line.len() + 64;
        self.rows.insert((topic.into(), key.into()), Newest { seq, line: line.to_vec(), is_end });
    }

    /// There is nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Tombstones, and what their lines take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub rows: u64,
    pub bytes: u64,
}

/// So many are kept.
const MOST_ENDED: Ended = Ended { rows: LATEST_ENDED, bytes: LATEST_ENDED_BYTES };

/// An open view.
pub(super) struct Store {
    db: Connection,
    topics: HashMap<Box<str>, i64>,
    /// Every event up to here is in it, durably.
    pub seq: u64,
    /// Tombstones that there are …
    ended: Ended,
    /// … and that there may be.
    most_ended: Ended,
    /// Dead letters that there are.
    pub letters: Letters,
}

/// So many dead letters are dropped in one transaction at the most, …
const DROPS: usize = 4096;
/// … and so many bytes of them.
const DROPPED_BYTES: u64 = 8 * 1024 * 1024;

impl Store {
    /// A view on a database that has the tables.
    pub fn new(db: Connection) -> rusqlite::Result<Self> {
        let seq = number(&db, "seq")?;
        let ended = count_ended(&db)?;
        let letters = count_letters(&db)?;
        Ok(Store { db, topics: HashMap::new(), seq, ended, most_ended: MOST_ENDED, letters })
    }

    /// A state that is known from before this seq cannot be brought up to date.
    pub fn since(&self) -> rusqlite::Result<u64> {
        number(&self.db, SINCE)
    }

    /// Moves [`Store::since`] to `seq`.
    pub fn lose(&self, seq: u64) -> rusqlite::Result<()> {
        set_fact(&self.db, SINCE, &seq.to_string())
    }

    /// A fact; none when it was never written.
    pub fn fact(&self, name: &str) -> rusqlite::Result<Option<String>> {
        fact(&self.db, name)
    }

    /// Writes facts down, and so from where the journal is read. Topics that `stays` does not know leave with their rows:
    /// what changes there from now on is not followed.
    pub fn begin_at(
        &mut self,
        seq: u64,
        facts: &[(&str, &str)],
        stays: impl Fn(&str) -> bool,
    ) -> rusqlite::Result<()> {
        let transaction = self.db.transaction()?;
        {
            let mut topics = transaction.prepare("SELECT n, name FROM topic")?;
            let topics = topics.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut leaving: Vec<i64> = Vec::new();
            for topic in topics {
                let (n, name): (i64, String) = topic?;
                if !stays(&name) {
                    leaving.push(n);
                }
            }
            for n in leaving {
                transaction.execute("DELETE FROM latest WHERE topic = ?1", [n])?;
                transaction.execute("DELETE FROM ended WHERE topic = ?1", [n])?;
                transaction.execute("DELETE FROM topic WHERE n = ?1", [n])?;
            }
        }
        let number = seq.to_string();
        for (name, value) in facts.iter().copied().chain([("seq", number.as_str())]) {
            set_fact(&transaction, name, value)?;
        }
        transaction.commit()?;
        self.topics.clear();
        self.seq = seq;
        self.ended = count_ended(&self.db)?;
        self.letters = count_letters(&self.db)?;
        Ok(())
    }

    /// Writes what is pending, and that everything up to `seq` is there; durable when it returns.
    pub fn write(
        &mut self,
        pending: &mut Pending,
        seq: u64,
        snapped: &[(String, u64)],
    ) -> rusqlite::Result<()> {
        if self.topics.len() > TOPICS {
            self.topics.clear();
        }
        let transaction = self.db.transaction()?;
        let mut ended = self.ended;
        {
            let mut rows = Rows::new(&transaction)?;
            let mut changed: HashMap<i64, u64> = HashMap::new();
            let mut news: Vec<_> = pending.rows.iter().collect();
            // In their order, so that rows are appended.
            news.sort_unstable_by_key(|(_, newest)| newest.seq);
            for ((topic, key), newest) in news {
                let n = match self.topics.get(topic) {
                    Some(n) => *n,
                    None => {
                        let n = topic_number(&transaction, topic)?;
                        self.topics.insert(topic.clone(), n);
                        n
                    }
                };
                changed.insert(n, newest.seq);
                let (gone, is_in) = rows.put(n, key, newest, &mut ended)?;
                if let Some(group) = group_of(topic) {
                    gone.into_iter().for_each(|seq| self.letters.went(n, seq));
                    if is_in && !newest.is_end {
                        self.letters.came(n, group, newest.seq, newest.line.len() as u64);
                    }
                }
            }
            let mut touch =
                transaction.prepare("UPDATE topic SET changed = max(changed, ?2) WHERE n = ?1")?;
            for (n, seq) in changed {
                touch.execute(params![n, seq as i64])?;
            }
            let mut snap = transaction.prepare("UPDATE topic SET snapped = ?2 WHERE name = ?1")?;
            for (topic, through) in snapped {
                snap.execute(params![topic, *through as i64])?;
            }
            set_fact(&transaction, "seq", &seq.to_string())?;
        }
        if ended.rows > self.most_ended.rows || ended.bytes > self.most_ended.bytes {
            forget(&transaction, &mut ended, self.most_ended)?;
        }
        let committed = transaction.commit();
        if committed.is_err() {
            // Topics that were new are not there.
            self.topics.clear();
        }
        committed?;
        (pending.bytes, self.seq, self.ended) = (0, seq, ended);
        pending.rows.clear();
        Ok(())
    }

    /// Drops dead letters that are too many, as many as one transaction takes; how many, and whether there may be more.
    /// A subscriber that has seen events up to `seen` may know them: it cannot be brought up to date.
    ///
    /// # Errors
    /// The store is not to be used any more.
    pub fn drop_letters(&mut self, bounds: &Bounds, seen: u64) -> rusqlite::Result<(u64, bool)> {
        let (mut bytes, mut dropped, mut topics) = (0, Vec::new(), BTreeSet::new());
        while bytes < DROPPED_BYTES
            && dropped.len() < DROPS
            && let Some((n, seq, of)) = self.letters.drop_next(bounds)
        {
            bytes += of;
            dropped.push(seq);
            topics.insert(n);
        }
        if dropped.is_empty() {
            return Ok((0, false));
        }
        let transaction = self.db.transaction()?;
        {
            let mut remove = transaction.prepare("DELETE FROM latest WHERE seq = ?1")?;
            dropped.iter().try_for_each(|seq| remove.execute([*seq as i64]).map(drop))?;
            let mut move_on =
                transaction.prepare("UPDATE topic SET forgotten = max(forgotten, ?2) WHERE n = ?1")?;
            topics.iter().try_for_each(|n| move_on.execute(params![n, seen as i64 + 1]).map(drop))?;
        }
        transaction.commit()?;
        Ok((dropped.len() as u64, bytes >= DROPPED_BYTES || dropped.len() >= DROPS))
    }

    /// Gives some of what is free back to the disk: whether it did, and whether there is more.
    pub fn give_back(&self) -> rusqlite::Result<(bool, bool)> {
        space::give_back(&self.db)
    }

    /// Empties the write-ahead log; false while somebody reads what is in it.
    pub fn fold(&self) -> rusqlite::Result<bool> {
        space::fold(&self.db)
    }

    /// Whether much is to be written: then more of the file is kept in memory.
    pub fn set_busy(&mut self, is_busy: bool) -> rusqlite::Result<()> {
        self.db.pragma_update(None, "cache_size", if is_busy { -BUSY_CACHE_KIB } else { -CACHE_KIB })?;
        if is_busy { Ok(()) } else { self.db.execute_batch("PRAGMA shrink_memory") }
    }

    /// How many rows there are.
    pub fn keys(&self) -> rusqlite::Result<u64> {
        let keys: i64 = self.db.query_row("SELECT count(*) FROM latest", [], |row| row.get(0))?;
        Ok(keys as u64)
    }
}

/// What writes the row of a key.
struct Rows<'a> {
    /// Older rows of a key …
    remove: Statement<'a>,
    /// … and older tombstones.
    revive: Statement<'a>,
    insert: Statement<'a>,
    end: Statement<'a>,
}

impl<'a> Rows<'a> {
    fn new(db: &'a Connection) -> rusqlite::Result<Self> {
        // What is newer than the event stays, in whichever table it stands.
        let insert = |into: &str, beside: &str| {
            db.prepare(&format!(
                "INSERT OR IGNORE INTO {into} (seq, topic, key, line, crc) SELECT ?1, ?2, ?3, ?4, ?5 \
                 WHERE NOT EXISTS (SELECT 1 FROM {beside} WHERE topic = ?2 AND key = ?3)"
            ))
        };
        Ok(Rows {
            remove: db
                .prepare("DELETE FROM latest WHERE topic = ?1 AND key = ?2 AND seq < ?3 RETURNING seq")?,
            revive: db.prepare(
                "DELETE FROM ended WHERE topic = ?1 AND key = ?2 AND seq < ?3 RETURNING length(line)",
            )?,
            insert: insert("latest", "ended")?,
            end: insert("ended", "latest")?,
        })
    }

    /// The seq of the older row that is gone, and whether the new one is in.
    fn put(
        &mut self,
        topic: i64,
        key: &str,
        newest: &Newest,
        ended: &mut Ended,
    ) -> rusqlite::Result<(Option<u64>, bool)> {
        let Newest { seq, line, is_end } = newest;
        let removed = self.remove.query_row(params![topic, key, *seq as i64], |row| row.get::<_, i64>(0));
        let removed = removed.optional()?.map(|seq| seq as u64);
        let revived = self.revive.query_row(params![topic, key, *seq as i64], |row| row.get::<_, i64>(0));
        if let Some(bytes) = revived.optional()? {
            ended.take(bytes);
        }
        let insert = if *is_end { &mut self.end } else { &mut self.insert };
        let rows = insert.execute(params![*seq as i64, topic, key, line, crc32c::crc32c(line)])?;
        if *is_end && rows > 0 {
            *ended = Ended { rows: ended.rows + 1, bytes: ended.bytes + line.len() as u64 };
        }
        Ok((removed, rows > 0))
    }
}

impl Ended {
    /// One of so many bytes is gone.
    fn take(&mut self, bytes: i64) {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes.unsigned_abs());
    }
}

/// Removes the oldest tombstones until there are no more than `most`, and moves the watermarks of their topics.
fn forget(db: &Transaction<'_>, ended: &mut Ended, most: Ended) -> rusqlite::Result<()> {
    let mut oldest = db.prepare("SELECT seq, topic, length(line) FROM ended ORDER BY seq")?;
    let mut forgotten: HashMap<i64, i64> = HashMap::new();
    let (mut rows, mut through) = (oldest.query([])?, 0);
    while ended.rows > most.rows || ended.bytes > most.bytes {
        let Some(row) = rows.next()? else { break };
        through = row.get(0)?;
        forgotten.insert(row.get(1)?, through);
        ended.take(row.get(2)?);
    }
    db.execute("DELETE FROM ended WHERE seq <= ?1", [through])?;
    let mut move_on = db.prepare("UPDATE topic SET forgotten = max(forgotten, ?2) WHERE n = ?1")?;
    forgotten.iter().try_for_each(|(topic, seq)| move_on.execute([topic, seq]).map(drop))
}

fn count_ended(db: &Connection) -> rusqlite::Result<Ended> {
    let count = "SELECT count(*), coalesce(sum(length(line)), 0) FROM ended";
    let (rows, bytes): (i64, i64) = db.query_row(count, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Ended { rows: rows.unsigned_abs(), bytes: bytes.unsigned_abs() })
}

fn count_letters(db: &Connection) -> rusqlite::Result<Letters> {
    let mut letters = Letters::default();
    let mut rows = db.prepare(
        "SELECT topic.n, topic.name, latest.seq, length(latest.line) FROM topic JOIN latest ON latest.topic = topic.n \
         WHERE topic.name GLOB '$dlq.*'",
    )?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let (n, topic): (i64, String) = (row.get(0)?, row.get(1)?);
        let (seq, bytes): (i64, i64) = (row.get(2)?, row.get(3)?);
        letters.came(n, group_of(&topic).unwrap_or_default(), seq as u64, bytes.unsigned_abs());
    }
    Ok(letters)
}

fn number(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    Ok(fact(db, name)?.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn set_fact(db: &Connection, name: &str, value: &str) -> rusqlite::Result<()> {
    db.execute("INSERT OR REPLACE INTO fact (name, value) VALUES (?1, ?2)", [name, value]).map(drop)
}

fn fact(db: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM fact WHERE name = ?1", [name], |row| row.get(0)).optional()
}

fn topic_number(db: &Connection, topic: &str) -> rusqlite::Result<i64> {
    let mut find = db.prepare("SELECT n FROM topic WHERE name = ?1")?;
    if let Some(n) = find.query_row([topic], |row| row.get(0)).optional()? {
        return Ok(n);
    }
    db.prepare("INSERT INTO topic (name) VALUES (?1)")?.execute([topic])?;
    Ok(db.last_insert_rowid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::latest::letters::Size;
    use crate::core::latest::tables;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn store(most_ended: Ended) -> Store {
        let mut db = Connection::open_in_memory().unwrap();
        tables::make(&mut db, 0).unwrap();
        Store { most_ended, ..Store::new(db).unwrap() }
    }

    /// Key, seq and whether it is an end, of one table or of both.
    fn rows(db: &Connection) -> BTreeMap<(i64, String), (u64, bool)> {
        let all = "SELECT topic, key, seq, 0 FROM latest UNION ALL SELECT topic, key, seq, 1 FROM ended";
        let mut all = db.prepare(all).unwrap();
        let rows = all.query_map([], |row| {
            Ok(((row.get(0)?, row.get(1)?), (row.get::<_, i64>(2)? as u64, row.get(3)?)))
        });
        let rows: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
        let (count, rows) = (rows.len(), BTreeMap::from_iter(rows));
        assert_eq!(rows.len(), count, "a key stands in one table");
        rows
    }

    proptest! {
        /// However letters come, end and are dropped: what is known of them is what stands there, and the watermark covers
        /// what was dropped.
        #[test]
        fn letters_are_counted_as_they_stand(
            steps in proptest::collection::vec((0..3u8, 0..9u8, any::<bool>(), 1..40usize), 1..60),
            (gulp, rows) in (1..9usize, 1..5u64),
        ) {
            let mut store = store(MOST_ENDED);
            let most = |rows| Size { rows, bytes: 60 };
            let bounds = Bounds { group: most(rows), all: most(2 * rows) };
            let watermarks = |db: &Connection| -> i64 {
                db.query_row("SELECT max(forgotten) FROM topic", [], |row| row.get(0)).unwrap()
            };
            for (part, steps) in steps.chunks(gulp).enumerate() {
                let mut pending = Pending::default();
                let seq = |i: usize| (part * gulp + i) as u64 + 1;
                for (i, (group, key, is_end, bytes)) in steps.iter().enumerate() {
                    pending.put(&format!("$dlq.g{group}"), &format!("{key}"), seq(i), &vec![b'x'; *bytes], *is_end);
                }
                let last = seq(steps.len() - 1);
                store.write(&mut pending, last, &[]).unwrap();
                let before = rows_of(&store.db);
                let (dropped, is_more) = store.drop_letters(&bounds, last).unwrap();
                prop_assert!(!is_more);
                prop_assert_eq!(before - rows_of(&store.db), dropped);
                prop_assert!(dropped == 0 || watermarks(&store.db) == last as i64 + 1);
                let size = store.letters.size();
                prop_assert_eq!(count_letters(&store.db).unwrap().size(), size);
                prop_assert!(size.rows <= 2 * rows && size.bytes <= 60);
            }
        }
    }

    fn rows_of(db: &Connection) -> u64 {
        db.query_row("SELECT count(*) FROM latest", [], |row| row.get::<_, i64>(0)).unwrap() as u64
    }

    proptest! {
        /// However events are batched, repeated and forgotten: each key has its newest event, an end is kept or its
        /// topic's watermark says that it is not, and the count is right.
        #[test]
        fn rows_are_the_newest_events_and_the_watermark_covers_what_is_forgotten(
            events in proptest::collection::vec((0..3u8, 0..6u8, any::<bool>()), 1..60),
            gulps in proptest::collection::vec((1..9usize, 0..9usize), 1..20),
            most in 0..5u64,
        ) {
            let mut store = store(Ended { rows: most, bytes: 40 });
            let (mut at, mut topics) = (0, BTreeMap::new());
            for (size, back) in gulps {
                // A part is taken again, as after a loss.
                let from = at - back.min(at);
                let to = (at + size).min(events.len());
                let mut pending = Pending::default();
                for (i, (topic, key, is_end)) in events.iter().enumerate().take(to).skip(from) {
                    pending.put(&format!("t{topic}"), &format!("k{key}"), i as u64 + 1, &[b'x'; 9], *is_end);
                }
                store.write(&mut pending, to as u64, &[]).unwrap();
                at = to;
                let rows = rows(&store.db);
                let ended = rows.values().filter(|(_, is_end)| *is_end).count() as u64;
                prop_assert_eq!(store.ended, Ended { rows: ended, bytes: 9 * ended });
                prop_assert_eq!(count_ended(&store.db).unwrap(), store.ended);
                prop_assert!(ended <= most.min(4));
                let mut newest = BTreeMap::new();
                for (i, (topic, key, is_end)) in events.iter().enumerate().take(at) {
                    newest.insert((topic, key), (i as u64 + 1, *is_end));
                }
                for ((topic, key), (seq, is_end)) in newest {
                    let name = format!("t{topic}");
                    let n = *topics.entry(*topic).or_insert_with(|| topic_number(&store.db, &name).unwrap());
                    let watermark = "SELECT forgotten FROM topic WHERE n = ?1";
                    let forgotten: i64 = store.db.query_row(watermark, [n], |row| row.get(0)).unwrap();
                    match rows.get(&(n, format!("k{key}"))) {
                        Some(row) => prop_assert_eq!(*row, (seq, is_end)),
                        None => prop_assert!(is_end && forgotten as u64 >= seq),
                    }
                }
            }
        }
    }
}
