//! What a subscription that keeps the state is sent out of the view.
//!
//! ```text
//! "state"                    rows up to T                      then the journal behind T
//! {"state":N,"through":T}    rows in (N, T]                    then the journal behind T
//! {"state":N}                rows and tombstones in (N, T]     then the journal behind T, T being the newest event
//! {"seq":S,"compacted":true} nothing                           the journal from S on
//! a gap F..T of any of them  rows and tombstones in [F, T]     then the journal behind T
//! ```
//!
//! Always holds: what a subscriber is sent brings the state that it knows up to date, key by key, or it is told that
//! this cannot be done (`state-expired`): tombstones of a topic that it wants are forgotten, or keys were lost. Owner: the
//! session.

use super::open::Wrong;
use super::{Latest, RETRY, pool};
use crate::core::delivery::catch_up::Step;
use crate::core::delivery::interest::Interest;
use crate::core::delivery::subscription::{Source, StatePlan};
use crate::core::event::string_body;
use crate::core::limits::{LATEST_WAIT, OUTPUT_BYTES};
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use crate::core::wire::subscribe::{From, event};
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// Rows that a step of a subscription looks at.
const STEP_ROWS: usize = 16 * 1024;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its first seq.
    pub next: u64,
    /// With what it begins.
    pub source: Source,
    /// [`Latest::losses`] from then.
    pub losses: u64,
}

/// The refusal of a state that cannot be brought up to date.
pub fn expired() -> Refusal {
    let why = "which keys ended since then is not known any more; begin anew from \"state\", and forget keys that it lacks";
    Refusal::new("state-expired", why)
}

impl Latest {
    /// Where a subscription to `patterns` begins that keeps the state, from [`From::State`] or [`From::Compacted`].
    ///
    /// # Errors
    /// `not-compacted`, if it is for one topic; `view-behind`; `seq-ahead`; `state-expired`.
    pub async fn begin_state(self: Arc<Self>, patterns: Vec<Pattern>, from: From) -> Result<Begun, Refusal> {
        patterns.iter().filter(|pattern| pattern.is_plain()).try_for_each(|topic| self.check(topic))?;
        // Before anything else: what is lost from here on is seen.
        let losses = self.losses();
        let head = self.caught_up().await?;
        let (next, source) = match from {
            From::State { after, through } => {
                let ended = through.is_none() && after > 0;
                (after.saturating_add(1), Source::State { through: through.unwrap_or(head), ended })
            }
            From::Compacted(seq) => (seq, Source::Behind { pressed: false }),
            _ => return Err(Refusal::new("bad-from", "this is no place in the state")),
        };
        // All of this was known, and whether tombstones behind it are needed.
        let (known, needs_ended) = match source {
            Source::State { through, ended: false } => (through, false),
            Source::State { .. } => (next - 1, true),
            _ => (next - 1, next < self.map.first_seq()),
        };
        if known > head {
            return Err(Refusal::new(
                "seq-ahead",
                format!("the newest event is {head}; the state is that at most"),
            ));
        }
        let is_new = matches!(from, From::State { after: 0, through: None });
        if !is_new && known < self.shared.since.load(SeqCst) {
            return Err(expired());
        }
        if needs_ended && self.seq().is_some() {
            let this = self.clone();
            let wants = move |topic: &str| {
                this.compaction().has(topic) && patterns.iter().any(|one| one.matches(topic))
            };
            if self.look(head, move |db| is_forgotten(db, known, &mut |name| wants(name))).await? {
                return Err(expired());
            }
        }
        Ok(Begun { next, source, losses })
    }

    /// The state for a subscription, in the order of seq, as much as makes a step.
    ///
    /// # Errors
    /// The view cannot be read.
    pub async fn step(self: Arc<Self>, plan: StatePlan) -> io::Result<Step> {
        let nothing = Step { next: plan.at, ..Step::default() };
        if self.seq().is_none() {
            return Ok(Step { is_end: true, ..nothing });
        }
        let through = plan.through;
        // It is being made anew: the peer waits.
        if !self.has(through, LATEST_WAIT).await {
            return Ok(nothing);
        }
        let this = self.clone();
        let read = move |db: &Connection| state(db, &plan, &|name| this.compaction().has(name));
        match self.look(through, read).await {
            Ok(step) => Ok(step),
            // It is asked again at once.
            Err(_) => {
                tokio::time::sleep(RETRY).await;
                Ok(nothing)
            }
        }
    }
}

/// Whether a tombstone behind `known` is gone, of a topic that `wants` says.
fn is_forgotten(db: &Connection, known: u64, wants: &mut dyn FnMut(&str) -> bool) -> Result<bool, Wrong> {
    let mut topics = db.prepare("SELECT name FROM topic WHERE forgotten > ?1")?;
    let mut topics = topics.query([known as i64])?;
    while let Some(row) = topics.next()? {
        if wants(row.get_ref(0)?.as_str().map_err(|e| Wrong::Damaged(e.to_string()))?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a subscription wants the topic `name`, as it was typed.
fn wants(interest: &Interest, name: &str) -> bool {
    let mut encoded = Vec::new();
    string_body(&mut encoded, name);
    interest.wants(std::str::from_utf8(&encoded).unwrap_or_default())
}

const ROWS: &str = "SELECT seq, topic, line, crc FROM latest WHERE seq >= ?1 AND seq <= ?2";
const ENDED: &str = "UNION ALL SELECT seq, topic, line, crc FROM ended WHERE seq >= ?1 AND seq <= ?2";

fn state(db: &Connection, plan: &StatePlan, has: &dyn Fn(&str) -> bool) -> Result<Step, Wrong> {
    let StatePlan { at, through, ended, interest, .. } = plan;
    let mut step = Step { next: *at, ..Step::default() };
    // One look: what is forgotten meanwhile is still read.
    let db = db.unchecked_transaction()?;
    if *ended && is_forgotten(&db, at - 1, &mut |name| has(name) && wants(interest, name))? {
        return Ok(Step { is_expired: true, ..step });
    }
    let mut wanted: HashMap<i64, bool> = HashMap::new();
    let mut name = db.prepare("SELECT name FROM topic WHERE n = ?1")?;
    let mut rows = db.prepare(&format!("{ROWS} {} ORDER BY seq", if *ended { ENDED } else { "" }))?;
    let mut rows = rows.query(params![*at as i64, *through as i64])?;
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let (seq, topic): (i64, i64) = (row.get(0)?, row.get(1)?);
        let is_wanted = match wanted.get(&topic) {
            Some(is_wanted) => *is_wanted,
            None => {
                let name: String = name.query_row([topic], |row| row.get(0))?;
                let is_wanted = has(&name) && wants(interest, &name);
                wanted.insert(topic, is_wanted);
                is_wanted
            }
        };
        if is_wanted {
            event(&mut step.frames, interest.head(), pool::line(row, 2)?);
            step.events += 1;
        }
        step.next = seq as u64 + 1;
        looked_at += 1;
        if step.frames.len() >= OUTPUT_BYTES || looked_at >= STEP_ROWS {
            return Ok(step);
        }
    }
    step.is_end = true;
    Ok(step)
}
