//! Consumer groups: what must be done is done by one of the members, again and again until it is.
//!
//! ```text
//! session ─▶ handle.rs (the machine, locked) ◀─ task.rs ◀─ intake.rs ◀─ router, journal
//!                 └─▶ writer.rs ─▶ journal (notes.rs)
//! ```
//!
//! `taken.rs` reads the frames that come in, `letters.rs` makes dead letters. Always holds: what a group has done is in the
//! journal, and a start finds it there; a member that goes leaves what it held to the others. Owner: [`super::super::bus::Bus`].

mod handle;
mod intake;
mod letters;
pub mod notes;
mod taken;
mod task;
mod writer;

use super::Delivery;
use crate::core::event::Batch;
use crate::core::journal::{Journal, Outcome};
use crate::core::limits::{GROUPS, Limits};
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use crate::core::wire::group::{Join, Word};
use handle::Handle;
use notes::Replay;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use writer::Dirty;

use super::outlet::Outlet;

/// The dead letters' lane in the journal: no session has this number.
const LANE: u64 = 0;

/// All groups.
pub struct Groups {
    delivery: Arc<Delivery>,
    journal: Arc<Journal>,
    limits: Limits,
    handles: Mutex<BTreeMap<Box<str>, Arc<Handle>>>,
    dirty: Arc<Dirty>,
    /// Dead letters under way.
    letters: Arc<Semaphore>,
    members: AtomicU64,
    begun: Instant,
}

/// A session's part in a group; it ends when this is dropped.
pub struct Membership {
    handle: Arc<Handle>,
    number: u64,
}

impl Groups {
    /// The groups that the journal has, running.
    pub fn start(
        limits: &Limits,
        delivery: Arc<Delivery>,
        journal: Arc<Journal>,
        replay: Replay,
    ) -> Arc<Self> {
        let (dirty, begun) = (Arc::new(Dirty::default()), Instant::now());
        if replay.unknown > 0 {
            tracing::error!(records = replay.unknown, "groups: records of the journal are not understood");
        }
        let mut handles = BTreeMap::new();
        for (name, (spec, saved)) in replay.into_groups() {
            let patterns = patterns_of(&spec.topics);
            let handle = Handle::new(name.clone(), spec, &patterns, Some(saved), (dirty.clone(), begun));
            handles.insert(name, handle);
        }
        let all: Vec<Arc<Handle>> = handles.values().cloned().collect();
        let groups = Arc::new(Groups {
            delivery,
            journal,
            limits: limits.clone(),
            handles: Mutex::new(handles),
            dirty,
            letters: Arc::new(Semaphore::new(GROUPS)),
            members: AtomicU64::new(0),
            begun,
        });
        tokio::spawn(writer::run(groups.clone()));
        for handle in all {
            tokio::spawn(task::run(groups.clone(), handle));
        }
        groups
    }

    /// A segment has begun: all groups are to be written down in it.
    pub fn rotated(&self) {
        self.dirty.rotated();
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
        let handle = match handles.get(&wish.group) {
            Some(handle) => {
                may(&patterns_of(&handle.spec.topics))?;
                handle.clone()
            }
            None if handles.len() >= GROUPS => {
                return Err(Refusal::new("too-many-groups", format!("there are {GROUPS} groups already")));
            }
            None => {
                may(&wish.patterns)?;
                let shared = (self.dirty.clone(), self.begun);
                let handle =
                    Handle::new(wish.group.clone(), wish.spec.clone(), &wish.patterns, None, shared);
                handles.insert(wish.group, handle.clone());
                tokio::spawn(task::begin(self.clone(), handle.clone(), wish.from));
                handle
            }
        };
        // Under the lock of all, so that a group that fails to begin is not joined any more.
        handle.join(number, outlet.clone(), &wish.spec, wish.max_in_flight);
        drop(handles);
        Ok(Membership { handle, number })
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
