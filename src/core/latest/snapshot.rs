//! Snapshots: the newest event of each key of a topic, published to `<topic>.snapshot`.
//!
//! ```text
//! a frame, or the schedule ─▶ page of rows ─▶ batch ─▶ journal ─ durable ─▶ next page … ─▶ the end: how many, through which seq
//! ```
//!
//! Always holds: one snapshot at a time, and one batch of it under way, so that it takes a bounded part of what the journal
//! does; each key that there was when it began, and that was not deleted since, is in it once, as new as then or newer; a
//! scheduled one is published only if something changed since the last one. Owner: `broker.rs`, [`super::super::bus::Bus`].

use super::compaction::SNAPSHOT;
use super::open::Wrong;
use super::{Latest, pool};
use crate::core::config::topics::TopicSetting;
use crate::core::event::{Batch, Letter};
use crate::core::journal::{Journal, NotCommitted};
use crate::core::limits::{OUTPUT_BYTES, TOPIC_BYTES};
use crate::core::refusal::Refusal;
use crate::core::wire::latest::Snapshot;
use rusqlite::{Connection, params};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};

/// The snapshots' lane in the journal: no session has this number.
const LANE: u64 = u64::MAX;

/// Makes snapshots.
pub struct Snapshots {
    latest: Arc<Latest>,
    journal: Arc<Journal>,
    one: Arc<Semaphore>,
}

#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    ts: u64,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Snapshots {
    /// Of this view, published to this journal.
    pub fn new(latest: Arc<Latest>, journal: Arc<Journal>) -> Arc<Self> {
        Arc::new(Snapshots { latest, journal, one: Arc::new(Semaphore::new(1)) })
    }

    /// Publishes one, when its turn comes.
    ///
    /// # Errors
    /// `not-compacted`, `bad-topic`, `view-behind`, `disk-full`, `outcome-unknown`; a part of it may be published then,
    /// without its end.
    pub async fn take(&self, topic: &str) -> Result<Snapshot, Refusal> {
        let target = format!("{topic}{}", SNAPSHOT);
        if !can_have_one(topic) {
            let why =
                format!("'{target:.64}' is no topic for a snapshot: too long, a mailbox or the broker's own");
            return Err(Refusal::new("bad-topic", why));
        }
        // Never closed; it orders those who wait.
        let _turn = self.one.acquire().await;
        let through = self.latest.caught_up().await?;
        let mut snapshot = Snapshot { through, ..Snapshot::default() };
        let mut after = String::new();
        loop {
            let (own, at) = (topic.to_owned(), after.clone());
            let rows = self.latest.look(through, move |db| page(db, &own, &at)).await?;
            let Some((last, _)) = rows.last() else { break };
            after.clone_from(last);
            let mut batch = Batch::default();
            for (key, line) in &rows {
                snapshot.keys += 1;
                push(&mut batch, &target, through, Some(key), line)?;
            }
            self.publish(batch, &mut snapshot).await?;
        }
        let mut batch = Batch::default();
        let end = format!(r#"{{"end":true,"keys":{},"through":{through}}}"#, snapshot.keys);
        push_payload(&mut batch, &target, &format!("snapshot:{through}:end"), None, end.as_bytes())?;
        self.publish(batch, &mut snapshot).await?;
        self.latest.snapped(topic, through);
        Ok(snapshot)
    }

    async fn publish(&self, batch: Batch, snapshot: &mut Snapshot) -> Result<(), Refusal> {
        let one = Arc::new(Semaphore::new(1));
        let Ok(permit) = one.try_acquire_owned() else { return Ok(()) };
        let outcome = self.journal.submit(LANE, batch, permit).await.unwrap_or(Err(NotCommitted::Unknown));
        let receipt = outcome.map_err(|why| match why {
            NotCommitted::DiskFull => Refusal::new(
                "disk-full",
                "the host's disk is full; the snapshot is not whole: take it again later",
            ),
            NotCommitted::Unknown => Refusal::new(
                "outcome-unknown",
                "the broker ended before the snapshot was known to be durable",
            ),
        })?;
        if let Some((first, _)) = receipt.seqs.each().next().filter(|_| snapshot.seqs.0 == 0) {
            snapshot.seqs.0 = first;
        }
        snapshot.seqs.1 = receipt.last_seq();
        Ok(())
    }

    /// Publishes those that are due, for as long as the broker runs.
    pub async fn schedule(self: Arc<Self>, topics: Vec<TopicSetting>) {
        let all = Arc::new(topics);
        for n in (0..all.len()).filter(|n| all[*n].snapshot_every.is_some()) {
            tokio::spawn(self.clone().every(all.clone(), n));
        }
    }

    async fn every(self: Arc<Self>, all: Arc<Vec<TopicSetting>>, n: usize) {
        let mut tick = interval(all[n].snapshot_every.unwrap_or(Duration::MAX));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            let Ok(through) = self.latest.caught_up().await else { continue };
            // The first one that names a topic says how often.
            let own = all.clone();
            let is_own = move |topic: &str| {
                let mut every = own.iter().enumerate().filter(|(_, one)| one.snapshot_every.is_some());
                every.find(|(_, one)| one.topic.matches(topic)).is_some_and(|(first, _)| first == n)
            };
            let latest = self.latest.clone();
            let has =
                move |topic: &str| is_own(topic) && can_have_one(topic) && latest.compaction().has(topic);
            let Ok(due) = self.latest.look(through, move |db| changed(db, has)).await else { continue };
            for topic in due {
                match self.take(&topic).await {
                    Ok(Snapshot { keys, seqs: (_, last), .. }) => {
                        tracing::info!(topic, keys, last, "latest: a snapshot is published");
                    }
                    Err(why) => {
                        tracing::warn!(
                            topic,
                            why = why.reason,
                            "latest: no snapshot; it is tried again when the next is due"
                        );
                    }
                }
            }
        }
    }
}

/// Whether `topic` is no mailbox, none of the broker's own, and short enough.
fn can_have_one(topic: &str) -> bool {
    !topic.starts_with('$') && !topic.starts_with("vm:") && topic.len() + SNAPSHOT.len() <= TOPIC_BYTES
}

fn push(
    batch: &mut Batch,
    target: &str,
    through: u64,
    key: Option<&str>,
    line: &[u8],
) -> Result<(), Refusal> {
    let bad = |e: serde_json::Error| Refusal::new("view-behind", format!("a row cannot be read: {e}"));
    let Line { seq, ts, payload } = serde_json::from_slice(line).map_err(bad)?;
    let name = serde_json::Value::from(key);
    let wrapped = format!(r#"{{"key":{name},"seq":{seq},"ts":{ts},"payload":{payload}}}"#);
    push_payload(batch, target, &format!("snapshot:{through}:{seq}"), key, wrapped.as_bytes())
}

/// The id says of which snapshot it is; one that was cut off and is taken again has another one.
fn push_payload(
    batch: &mut Batch,
    topic: &str,
    id: &str,
    key: Option<&str>,
    payload: &[u8],
) -> Result<(), Refusal> {
    batch.push_letter(&Letter { topic, id, is_once: false, key, payload })
}

/// Keys behind `after`, with their lines.
fn page(db: &Connection, topic: &str, after: &str) -> Result<Vec<(String, Vec<u8>)>, Wrong> {
    let mut rows = db.prepare(
        "SELECT key, line, crc FROM latest WHERE topic = (SELECT n FROM topic WHERE name = ?1) AND key > ?2 ORDER BY key",
    )?;
    let mut rows = rows.query(params![topic, after])?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let line = pool::line(row, 1)?.to_vec();
        bytes += line.len();
        page.push((row.get(0)?, line));
        if bytes >= OUTPUT_BYTES {
            break;
        }
    }
    Ok(page)
}

/// Topics that changed since their last snapshot.
fn changed(db: &Connection, is_own: impl Fn(&str) -> bool) -> Result<Vec<String>, Wrong> {
    let mut rows = db.prepare("SELECT name FROM topic WHERE changed > snapped ORDER BY name")?;
    let mut rows = rows.query([])?;
    let mut topics = Vec::new();
    while let Some(row) = rows.next()? {
        let topic: String = row.get(0)?;
        if is_own(&topic) {
            topics.push(topic);
        }
    }
    Ok(topics)
}
