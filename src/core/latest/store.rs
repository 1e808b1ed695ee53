//! The rows of the view, and the transactions that write them.
//!
//! ```text
//! latest  seq (the row), topic, key, line, crc     one row for each key of a topic; the newest event
//! topic   n, name, changed, snapped                changed: seq of what changed it last; snapped: of its last snapshot
//! fact    name, value                              journal, seq, patterns
//! ```
//!
//! Always holds: rows and `seq` change together; an event older than what stands there changes nothing, so that events
//! may be taken again. Owner: `work.rs`, whose thread writes.

use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;

/// What is kept of the database in memory, in KiB …
pub(super) const CACHE_KIB: i64 = 8 * 1024;
/// … and while it is made anew: the index of a million keys.
const BUSY_CACHE_KIB: i64 = 64 * 1024;
/// So many numbers of topics are remembered.
const TOPICS: usize = 4096;

/// Topic and key.
type Name = (Box<str>, Box<str>);
/// The newest event's seq, and its line; none when it is the end of its key.
type Newest = (u64, Option<Vec<u8>>);

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Pending {
    rows: HashMap<Name, Newest>,
    /// What they take, in bytes.
    pub bytes: usize,
}

impl Pending {
    /// The newest of a key: a line, or none when the key is no more.
    pub fn put(&mut self, topic: &str, key: &str, seq: u64, line: Option<&[u8]>) {
        self.bytes += topic.len() + key.len() + line.map_or(0, <[u8]>::len) + 64;
        self.rows.insert((topic.into(), key.into()), (seq, line.map(<[u8]>::to_vec)));
    }

    /// There is nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// An open view.
pub(super) struct Store {
    db: Connection,
    topics: HashMap<Box<str>, i64>,
    /// Every event up to here is in it, durably.
    pub seq: u64,
}

impl Store {
    /// A view on a database that has the tables.
    pub fn new(db: Connection) -> rusqlite::Result<Self> {
        let seq = fact(&db, "seq")?.and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Store { db, topics: HashMap::new(), seq })
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
                transaction.execute("DELETE FROM topic WHERE n = ?1", [n])?;
            }
        }
        let number = seq.to_string();
        for (name, value) in facts.iter().copied().chain([("seq", number.as_str())]) {
            transaction
                .execute("INSERT OR REPLACE INTO fact (name, value) VALUES (?1, ?2)", [name, value])?;
        }
        transaction.commit()?;
        self.topics.clear();
        self.seq = seq;
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
        {
            let mut remove =
                transaction.prepare("DELETE FROM latest WHERE topic = ?1 AND key = ?2 AND seq < ?3")?;
            let mut insert = transaction.prepare(
                "INSERT OR IGNORE INTO latest (seq, topic, key, line, crc) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            let mut changed: HashMap<i64, u64> = HashMap::new();
            let mut rows: Vec<_> = pending.rows.iter().collect();
            // In their order, so that rows are appended.
            rows.sort_unstable_by_key(|(_, (seq, _))| *seq);
            for ((topic, key), (seq, line)) in rows {
                let n = match self.topics.get(topic) {
                    Some(n) => *n,
                    None => {
                        let n = topic_number(&transaction, topic)?;
                        self.topics.insert(topic.clone(), n);
                        n
                    }
                };
                changed.insert(n, *seq);
                remove.execute(params![n, key, *seq as i64])?;
                if let Some(line) = line {
                    insert.execute(params![*seq as i64, n, key, line, crc32c::crc32c(line)])?;
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
            transaction
                .prepare("INSERT OR REPLACE INTO fact (name, value) VALUES ('seq', ?1)")?
                .execute([seq.to_string()])?;
        }
        let committed = transaction.commit();
        if committed.is_err() {
            // Topics that were new are not there.
            self.topics.clear();
        }
        committed?;
        (pending.bytes, self.seq) = (0, seq);
        pending.rows.clear();
        Ok(())
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
