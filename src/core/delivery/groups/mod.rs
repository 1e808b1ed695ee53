//! Consumer groups: what must be done is done by one of the members, again and again until it is.
//!
//! ```text
//! session ─▶ handle.rs (the machine, locked) ◀─ task.rs ◀─ intake.rs ◀─ router, journal
//!                 └─▶ writer.rs ─▶ journal (notes.rs)
//! ```
//!
//! `members.rs` is what members do, `stages.rs` what becomes of the group; `taken.rs` reads the frames that come in, `letters.rs` makes dead letters. Always holds: what a group has done is in the
//! journal, and a start finds it there; a member that goes leaves what it held to the others. Owner: [`super::super::bus::Bus`].

mod counting;
pub mod figures;
mod handle;
mod intake;
mod lapse;
mod letters;
mod members;
pub mod notes;
mod stages;
mod taken;
mod task;
mod writer;

use super::Delivery;
use crate::core::event::Batch;
use crate::core::journal::{Journal, Outcome};
use crate::core::limits::{GROUPS, Limits};
use crate::core::metrics::groups::Table;
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use crate::core::wire::group::{Join, Word, refused};
use crate::core::wire::subscribe::From;
use handle::Handle;
use notes::Replay;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
pub use writer::Dirty;

use super::outlet::Outlet;

/// The dead letters' lane in the journal: no session has this number.
const LANE: u64 = 0;

/// So much of what is listed goes into one answer, in bytes; one group more at the most.
const LIST_BYTES: usize = 32 * 1024;

/// All groups.
pub struct Groups {
    delivery: Arc<Delivery>,
    journal: Arc<Journal>,
    limits: Limits,
    handles: Mutex<BTreeMap<Box<str>, Arc<Handle>>>,
    dirty: Arc<Dirty>,
    /// Where metrics count, if there are any.
    counts: Option<Arc<Table>>,
    /// Dead letters under way.
    letters: Arc<Semaphore>,
    members: AtomicU64,
    /// The journal has records of groups.
    is_used: AtomicBool,
    begun: Instant,
}

/// A session's part in a group; it ends when this is dropped.
pub struct Membership {
    handle: Arc<Handle>,
    number: u64,
}

impl Groups {
    /// The groups that the journal has, running; `dirty` is told when a segment begins.
    pub fn start(
        limits: &Limits,
        delivery: Arc<Delivery>,
        journal: Arc<Journal>,
        replay: Replay,
        dirty: Arc<Dirty>,
        counts: Option<Arc<Table>>,
    ) -> Arc<Self> {
        let (begun, is_used) = (Instant::now(), replay.is_any);
        if replay.unknown > 0 {
            tracing::error!(records = replay.unknown, "groups: records of the journal are not understood");
        }
        let mut handles = BTreeMap::new();
        for (name, (spec, saved)) in replay.into_groups() {
            let patterns = patterns_of(&spec.topics);
            let shared = (dirty.clone(), delivery.retention.clone(), begun);
            let handle = Handle::new(name.clone(), spec, &patterns, Some(saved), shared);
            counts.iter().for_each(|counts| handle.count(counts.of(&handle.name)));
            handles.insert(name, handle);
        }
        let all: Vec<Arc<Handle>> = handles.values().cloned().collect();
        let groups = Arc::new(Groups {
            delivery,
            journal,
            limits: limits.clone(),
            handles: Mutex::new(handles),
            dirty,
            counts,
            letters: Arc::new(Semaphore::new(GROUPS)),
            members: AtomicU64::new(0),
            is_used: AtomicBool::new(is_used),
            begun,
        });
        tokio::spawn(writer::run(groups.clone()));
        for handle in all {
            tokio::spawn(task::run(groups.clone(), handle));
        }
        groups
    }

    /// Makes the session with this queue a member of a group, which begins if it is not there; `may` says whether it may
    /// have events of these topics. The answer comes through the queue.
    ///
    /// # Errors
    /// `too-many-groups`, and what `may` says of the group's topics.
    pub fn join(
        self: &Arc<Self>,
        wish: Join,
        outlet: &Arc<Outlet>,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<Membership, Refusal> {
        let number = self.members.fetch_add(1, Relaxed) + 1;
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let (spec, max_in_flight) = (wish.spec.clone(), wish.max_in_flight);
        let handle = self.find_or_begin(&mut handles, wish, may)?;
        // Under the lock of all, so that a group that fails to begin is not joined any more.
        handle.join(number, outlet.clone(), &spec, max_in_flight);
        drop(handles);
        Ok(Membership { handle, number })
    }

    fn find_or_begin(
        self: &Arc<Self>,
        handles: &mut BTreeMap<Box<str>, Arc<Handle>>,
        wish: Join,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<Arc<Handle>, Refusal> {
        if let Some(handle) = handles.get(&wish.group) {
            may(&patterns_of(&handle.spec.topics))?;
            return Ok(handle.clone());
        }
        if handles.len() >= GROUPS {
            return Err(Refusal::new("too-many-groups", format!("there are {GROUPS} groups already")));
        }
        may(&wish.patterns)?;
        let shared = (self.dirty.clone(), self.delivery.retention.clone(), self.begun);
        let handle = Handle::new(wish.group.clone(), wish.spec, &wish.patterns, None, shared);
        self.counts.iter().for_each(|counts| handle.count(counts.of(&handle.name)));
        self.is_used.store(true, Relaxed);
        handles.insert(wish.group, handle.clone());
        tokio::spawn(task::begin(self.clone(), handle.clone(), wish.from));
        Ok(handle)
    }

    fn find(
        &self,
        group: &str,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<Arc<Handle>, Refusal> {
        let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(handle) = handles.get(group) else {
            return Err(Refusal::new("unknown-group", format!("there is no group '{group}'")));
        };
        may(&patterns_of(&handle.spec.topics))?;
        Ok(handle.clone())
    }

    /// How a group stands.
    ///
    /// # Errors
    /// `unknown-group`, and what `may` says of its topics.
    pub fn show(
        &self,
        group: &str,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<Value, Refusal> {
        let map = self.journal.map();
        Ok(self.find(group, may)?.report(map.first_seq(), map.durable_seq()))
    }

    /// How some groups stand whose topics `may` lets be seen: those behind the name `after`, as many as fit a frame.
    pub fn list(&self, after: Option<&str>, may: impl Fn(&[Pattern]) -> Result<(), Refusal>) -> Value {
        let map = self.journal.map();
        let (mut groups, mut bytes, mut is_more) = (Vec::new(), 0, false);
        for handle in self.all() {
            if after.is_some_and(|after| *handle.name <= *after)
                || may(&patterns_of(&handle.spec.topics)).is_err()
            {
                continue;
            }
            let report = handle.report(map.first_seq(), map.durable_seq());
            bytes += report.to_string().len() + 1;
            if bytes > LIST_BYTES && !groups.is_empty() {
                is_more = true;
                break;
            }
            groups.push(report);
        }
        json!({ "groups": groups, "more": is_more })
    }

    /// Begins a group, if it is not there. The session with this queue is told once it is durable.
    ///
    /// # Errors
    /// As [`Groups::join`].
    pub fn create(
        self: &Arc<Self>,
        wish: Join,
        outlet: &Arc<Outlet>,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        self.find_or_begin(&mut handles, wish, may)?.tell_created(outlet);
        Ok(())
    }

    /// Has a group go on somewhere else; what its members hold is forgotten. The session with this queue is told.
    ///
    /// # Errors
    /// `unknown-group`, `seq-ahead`, and what `may` says of its topics.
    pub fn seek(
        self: &Arc<Self>,
        group: &str,
        from: From,
        outlet: &Arc<Outlet>,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let (handle, outlet) = (self.find(group, may)?, outlet.clone());
        if let Some(beginning) = self.delivery.begin(&from)? {
            handle.seek(beginning.next - 1, &outlet);
            return Ok(());
        }
        let looked_up = self.delivery.look_up(from);
        tokio::spawn(async move {
            match looked_up.await {
                Ok(beginning) => handle.seek(beginning.next - 1, &outlet),
                Err(refusal) => {
                    let mut out = Vec::new();
                    refused(&mut out, "group_seek", &handle.name, None, &refusal);
                    outlet.hold(0, out.into(), 0);
                }
            }
        });
        Ok(())
    }

    /// Removes a group, with what it knows. The session with this queue is told once that is durable.
    ///
    /// # Errors
    /// `unknown-group`, and what `may` says of its topics.
    pub fn remove(
        &self,
        group: &str,
        outlet: &Arc<Outlet>,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let handle = self.find(group, may)?;
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).remove(group);
        handle.remove(outlet);
        Ok(())
    }

    fn fail(&self, handle: &Handle, why: &Refusal) {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.remove(&handle.name);
        handle.fail(why);
    }

    fn all(&self) -> Vec<Arc<Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn publish(&self, letter: Batch) -> oneshot::Receiver<Outcome> {
        match self.letters.clone().try_acquire_owned() {
            Ok(permit) => self.journal.submit_reserved(LANE, letter, permit),
            // There is one for each group, which has one letter under way.
            Err(_) => oneshot::channel().1,
        }
    }
}

impl Membership {
    /// The group's name.
    pub fn group(&self) -> &str {
        &self.handle.name
    }

    /// The group is no more.
    pub fn is_gone(&self) -> bool {
        self.handle.is_gone()
    }

    /// Its number in the session's queue.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The group's topics.
    pub fn patterns(&self) -> Vec<Pattern> {
        patterns_of(&self.handle.spec.topics)
    }

    /// Takes what the session says; the refusal of each event that it may not say that of. The answer, if one is wanted
    /// and nothing is refused, comes through the queue when it is durable.
    pub fn say(&self, word: Word) -> Vec<(Option<u64>, Refusal)> {
        self.handle.say(self.number, word)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.handle.leave(self.number);
    }
}

fn patterns_of(topics: &[String]) -> Vec<Pattern> {
    topics.iter().filter_map(|topic| Pattern::parse(topic).ok()).collect()
}
