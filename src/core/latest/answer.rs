//! Answers out of the view: newest events by key, and topics.
//!
//! Always holds: an answer has everything that was durable when it was asked, or it is refused; a few read at once, and
//! each for one answer, so nobody's file is held open by a slow peer (invariant 7). Owner: the session that asked.

use super::letters::group_of;
use super::open::Wrong;
use super::{Latest, pool};
use crate::core::delivery::when_free;
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use crate::core::wire::latest::{Ask, Events, Known, topics_ack};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// Topics in one answer.
const TOPICS: usize = 100;

impl Latest {
    /// The answer to what is asked, but for snapshots.
    ///
    /// # Errors
    /// `not-compacted`, `view-behind`.
    pub async fn answer(self: &Arc<Self>, ask: &Ask) -> Result<Vec<u8>, Refusal> {
        let (through, mut out) = (self.caught_up_for(ask).await?, Vec::new());
        let is_there = self.seq().is_some();
        match ask {
            Ask::Latest { topic, keys, after } => {
                let (topic, keys, after) = (topic.as_str().to_owned(), keys.clone(), after.clone());
                let events = match is_there {
                    true => self.look(through, move |db| page(db, &topic, keys.as_deref(), &after)).await?,
                    false => Events::default(),
                };
                events.ack(&mut out, through);
            }
            Ask::Topics { topics, after } => {
                let (this, topics, after) = (self.clone(), topics.clone(), after.clone());
                let dropped = self.letters().dropped_of;
                let has = move |name: &str| topics.matches(name) && this.compaction().has(name);
                let (mut known, is_more) = match is_there {
                    true => self.look(through, move |db| list(db, &after, has)).await?,
                    false => (Vec::new(), false),
                };
                for known in &mut known {
                    let group = group_of(&known.topic);
                    known.dropped = group.and_then(|group| dropped.get(group)).copied().unwrap_or(0);
                }
                topics_ack(&mut out, &known, is_more);
            }
            Ask::Snapshot(_) => {}
        }
        Ok(out)
    }

    async fn caught_up_for(&self, ask: &Ask) -> Result<u64, Refusal> {
        if !matches!(ask, Ask::Topics { .. }) {
            self.check(ask.topic())?;
        }
        self.caught_up().await
    }

    /// Whether one topic is compacted.
    ///
    /// # Errors
    /// `not-compacted`.
    pub fn check(&self, topic: &Pattern) -> Result<(), Refusal> {
        if self.compaction().has(topic.as_str()) {
            return Ok(());
        }
        let why = format!(
            "the newest event per key is not kept of '{:.64}': on the host, say [[topics]] with topic and compaction = true in \
             castra.toml, and start the broker anew",
            topic.as_str()
        );
        Err(Refusal::new("not-compacted", why))
    }

    /// Reads, when there is a place; what was read is as new as `through`.
    pub(super) async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        through: u64,
        read: impl FnOnce(&Connection) -> Result<T, Wrong> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (this, file) = (self.clone(), self.shared.pool.file());
        let result = when_free(&self.reads, move || Ok(this.shared.pool.read(read))).await;
        // In this order: where it has caught up since, it is another file.
        let is_new_enough = *self.shared.seq.borrow() >= through;
        let is_same = || self.shared.pool.file() == file;
        let refusal = match result {
            Ok(Ok(value)) if is_new_enough && is_same() => return Ok(value),
            Ok(Ok(_)) => {
                "the newest events per key are being read from the journal; ask again in a while".into()
            }
            Ok(Err(Wrong::Damaged(why))) => {
                let mut queue = self.shared.lock();
                queue.is_damaged |= is_same();
                drop(queue);
                self.shared.changed.notify_all();
                format!("the newest events per key are damaged and made anew; ask again in a while: {why}")
            }
            Ok(Err(Wrong::Failed(why) | Wrong::Replaced(why))) => {
                format!("the newest events per key cannot be read: {why}")
            }
            Err(error) => format!("the newest events per key cannot be read: {error}"),
        };
        Err(Refusal::new("view-behind", refusal))
    }
}

fn number(db: &Connection, topic: &str) -> rusqlite::Result<Option<i64>> {
    db.prepare("SELECT n FROM topic WHERE name = ?1")?.query_row([topic], |row| row.get(0)).optional()
}

fn page(db: &Connection, topic: &str, keys: Option<&[String]>, after: &str) -> Result<Events, Wrong> {
    let mut events = Events::default();
    let Some(n) = number(db, topic)? else { return Ok(events) };
    match keys {
        None => {
            let mut rows =
                db.prepare("SELECT line, crc FROM latest WHERE topic = ?1 AND key > ?2 ORDER BY key")?;
            let mut rows = rows.query(params![n, after])?;
            while let Some(row) = rows.next()? {
                if !events.add(pool::line(row, 0)?) {
                    break;
                }
            }
        }
        Some(keys) => {
            let mut one = db.prepare("SELECT line, crc FROM latest WHERE topic = ?1 AND key = ?2")?;
            for key in keys.iter().filter(|key| key.as_str() > after) {
                let mut rows = one.query(params![n, key])?;
                if let Some(row) = rows.next()?
                    && !events.add(pool::line(row, 0)?)
                {
                    break;
                }
            }
        }
    }
    Ok(events)
}

fn list(db: &Connection, after: &str, has: impl Fn(&str) -> bool) -> Result<(Vec<Known>, bool), Wrong> {
    let mut known = Vec::new();
    let mut topics = db.prepare("SELECT n, name, changed FROM topic WHERE name > ?1 ORDER BY name")?;
    let mut count = db.prepare("SELECT count(*) FROM latest WHERE topic = ?1")?;
    let mut rows = topics.query([after])?;
    while let Some(row) = rows.next()? {
        let (n, topic, changed): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if !has(&topic) {
            continue;
        }
        let keys: i64 = count.query_row([n], |row| row.get(0))?;
        if keys == 0 {
            continue;
        }
        if known.len() == TOPICS {
            return Ok((known, true));
        }
        known.push(Known { topic, keys: keys as u64, changed: changed as u64, dropped: 0 });
    }
    Ok((known, false))
}
