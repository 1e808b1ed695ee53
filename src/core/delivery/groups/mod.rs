//! Consumer groups: what must be done is done by one of the members, again and again until it is.
//!
//! ```text
//! session ─▶ handle.rs (the machine, locked) ◀─ task.rs ◀─ intake.rs ◀─ router, journal
//!                 └─▶ writer.rs ─▶ journal (notes.rs)
//! ```
//!
//! `members.rs` is what members do, `stages.rs` what becomes of the group; `hand_out.rs` is the way
//! to the members, `ledger.rs` the way to the journal; `taken.rs` reads the frames that come in, `lapse.rs` lets go of what has expired, `letters.rs` makes dead letters. Always holds: what a group has done is in the
//! journal, and a start finds it there; a member that goes leaves what it held to the others. Owner: [`super::super::bus::Bus`].

mod absent;
mod counting;
pub mod figures;
mod frames;
mod hand_out;
mod handle;
mod intake;
mod lag;
mod lapse;
mod ledger;
mod letters;
mod lines;
mod members;
pub mod notes;
mod passing;
mod stages;
mod taken;
mod task;
mod writer;

use super::Delivery;
use crate::core::awake::Instant;
use crate::core::clock::wall_ms;
use crate::core::event::Batch;
use crate::core::identity::VmName;
use crate::core::journal::{Journal, Outcome};
use crate::core::latest::Latest;
use crate::core::limits::{GROUPS, GROUPS_PER_VM, Limits};
use crate::core::metrics::groups::Table;
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use crate::core::wire::group::{Join, Word};
use crate::core::wire::subscribe::From;
use handle::{Handle, Shared};
use notes::Replay;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc, oneshot};
pub use writer::Dirty;

use super::outlet::Outlet;

/// The dead letters' lane in the journal: no session has this number.
const LANE: u64 = 0;

/// So much of what is listed goes into one answer, in bytes; one group more at the most.
const LIST_BYTES: usize = 32 * 1024;

type Handles = BTreeMap<Box<str>, Arc<Handle>>;

/// All groups.
pub struct Groups {
    delivery: Arc<Delivery>,
    journal: Arc<Journal>,
    limits: Limits,
    handles: Mutex<Handles>,
    shared: Arc<Shared>,
    /// Keeps dead letters.
    latest: Arc<Latest>,
    /// Dead letters under way.
    letters: Arc<Semaphore>,
    members: AtomicU64,
    /// The journal has records of groups.
    is_used: AtomicBool,
}

/// A session's part in a group; it ends when this is dropped.
pub struct Membership {
    handle: Arc<Handle>,
    number: u64,
}

impl Groups {
    /// The groups that the journal has; `dirty` is told when a segment begins.
    pub fn start(
        limits: &Limits,
        delivery: Arc<Delivery>,
        journal: Arc<Journal>,
        replay: Replay,
        dirty: Arc<Dirty>,
        (latest, counts): (Arc<Latest>, Option<Arc<Table>>),
    ) -> Arc<Self> {
        // Also of those that are damaged there is something to take the place of.
        let is_used = replay.is_any || journal.map().notes().from > 0;
        if replay.unknown > 0 {
            tracing::error!(records = replay.unknown, "groups: records of the journal are not understood");
        }
        let (runs, to_run) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            dirty,
            retention: delivery.retention.clone(),
            ages: Box::new({
                let journal = journal.clone();
                move || journal.ages()
            }),
            held: Arc::default(),
            ends: Arc::default(),
            runs,
            counts,
            begun: Instant::now(),
        });
        let mut handles = BTreeMap::new();
        for (name, known) in replay.into_groups() {
            let patterns = patterns_of(&known.spec.topics);
            handles.insert(name.clone(), Handle::goes_on(name, known, &patterns, shared.clone()));
        }
        let groups = Arc::new(Groups {
            delivery,
            journal,
            limits: limits.clone(),
            handles: Mutex::new(handles),
            shared,
            latest,
            letters: Arc::new(Semaphore::new(GROUPS)),
            members: AtomicU64::new(0),
            is_used: AtomicBool::new(is_used),
        });
        tokio::spawn(writer::run(groups.clone()));
        tokio::spawn(task::run_all(groups.clone(), to_run));
        tokio::spawn(absent::run(groups.clone()));
        groups
    }

    /// Makes the session with this queue a member of a group, which begins if it is not there; `may` says whether it may
    /// have events of these topics, and `by` whose it is. The answer comes through the queue.
    ///
    /// # Errors
    /// `too-many-groups`, what is wrong with where it is to begin, and what `may` says of the group's topics.
    pub fn join(
        self: &Arc<Self>,
        wish: Join,
        (outlet, by): (&Arc<Outlet>, &VmName),
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<Membership, Refusal> {
        let number = self.members.fetch_add(1, Relaxed) + 1;
        let (spec, part) = (wish.spec.clone(), (wish.max_in_flight, wish.begins));
        // Under the lock of all, so that a group that fails to begin is not joined any more.
        let handle = self.find_or_begin(&mut self.lock(), wish, by, may, |handle| {
            handle.join(number, outlet.clone(), &spec, part);
        })?;
        Ok(Membership { handle, number })
    }

    /// `waits` is for whoever is to be told that it is there: before a new one begins, which may be durable at once.
    fn find_or_begin(
        self: &Arc<Self>,
        handles: &mut Handles,
        wish: Join,
        by: &VmName,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
        waits: impl FnOnce(&Arc<Handle>),
    ) -> Result<Arc<Handle>, Refusal> {
        if let Some(handle) = handles.get(&wish.group) {
            may(&handle.patterns)?;
            waits(handle);
            return Ok(handle.clone());
        }
        let too_many = |why: String| Refusal::new("too-many-groups", why);
        if handles.len() >= GROUPS {
            return Err(too_many(format!("there are {GROUPS} groups already")));
        }
        may(&wish.patterns)?;
        let by = by.as_str();
        let own = || handles.values().filter(|handle| *handle.by == *by).count();
        if by != VmName::host().as_str() && own() >= GROUPS_PER_VM {
            return Err(too_many(format!("sessions of '{by}' have begun {GROUPS_PER_VM} groups already")));
        }
        // At once, so that what the session publishes next is behind it.
        let beginning = self.delivery.begin(&wish.from)?;
        let Join { group, spec, patterns, from, .. } = wish;
        let handle = Handle::begins(group.clone(), spec, &patterns, by, wall_ms(), self.shared.clone());
        self.is_used.store(true, Relaxed);
        handles.insert(group, handle.clone());
        waits(&handle);
        match beginning {
            Some(beginning) => handle.begin(beginning.next - 1),
            None => drop(tokio::spawn(task::search(self.clone(), handle.clone(), from))),
        }
        Ok(handle)
    }

    fn lock(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(
        &self,
        handles: &Handles,
        group: &str,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<Arc<Handle>, Refusal> {
        let handle = handles.get(group).ok_or_else(|| unknown(group))?;
        may(&handle.patterns)?;
        Ok(handle.clone())
    }

    /// How some groups stand whose topics `may` lets be seen: those behind the name `after`, as many as fit a frame. Their
    /// lags are what was counted last.
    pub fn list(&self, after: Option<&str>, may: impl Fn(&[Pattern]) -> Result<(), Refusal>) -> Value {
        let place = self.place();
        let (mut groups, mut bytes, mut is_more) = (Vec::new(), 0, false);
        let behind = (after.map_or(Unbounded, Excluded), Unbounded);
        let all: Vec<_> = self.lock().range::<str, _>(behind).map(|(_, handle)| handle.clone()).collect();
        for handle in all {
            if may(&handle.patterns).is_err() {
                continue;
            }
            let report = handle.report(place);
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
        (outlet, by): (&Arc<Outlet>, &VmName),
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let wished = wish.spec.clone();
        self.find_or_begin(&mut self.lock(), wish, by, may, |handle| {
            handle.tell_created(&wished, outlet);
        })?;
        Ok(())
    }

    /// Has a group go on somewhere else; what its members hold is forgotten. The session with this queue is told.
    ///
    /// # Errors
    /// `unknown-group`, `seq-ahead`, `seek-under-way`, and what `may` says of its topics.
    pub fn seek(
        self: &Arc<Self>,
        group: &str,
        from: From,
        outlet: &Arc<Outlet>,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let handle = self.find(&self.lock(), group, may)?;
        let beginning = self.delivery.begin(&from)?;
        handle.begin_seek()?;
        if let Some(beginning) = beginning {
            handle.end_seek(Ok(beginning.next - 1), outlet);
            return Ok(());
        }
        let (looked_up, outlet) = (self.delivery.look_up(from), outlet.clone());
        // Another seek that the session sent behind this one is not refused: it is read when this one is done.
        let awaited = outlet.awaits_first();
        tokio::spawn(async move {
            handle.end_seek(looked_up.await.map(|beginning| beginning.next - 1), &outlet);
            drop(awaited);
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
        let mut handles = self.lock();
        let handle = self.find(&handles, group, may)?;
        handles.remove(group);
        // Under the lock of all: whoever begins one of the same name is written behind the end of this one.
        handle.remove(outlet);
        Ok(())
    }

    /// The broker ends: what members hold is not in vain, and how far each group is, is written. Call before sessions end.
    pub fn drain(&self) {
        self.shared.ends.store(true, Relaxed);
        self.all().iter().for_each(|handle| handle.write_cursor());
    }

    /// Resolves when all that members have said is durable.
    pub async fn settle(&self) {
        // If it fails, the journal has ended.
        let _ = self.shared.dirty.settle().await;
    }

    /// It was not found where this one is to begin; false when it began elsewhere meanwhile, or was removed.
    fn fail(&self, handle: &Arc<Handle>, why: &Refusal) -> bool {
        let mut handles = self.lock();
        let has_failed = handle.fail(why);
        if has_failed && handles.get(&handle.name).is_some_and(|own| Arc::ptr_eq(own, handle)) {
            handles.remove(&handle.name);
        }
        has_failed
    }

    fn all(&self) -> Vec<Arc<Handle>> {
        self.lock().values().cloned().collect()
    }

    fn publish(&self, letter: Batch) -> oneshot::Receiver<Outcome> {
        if let Err(error) = self.latest.begin() {
            tracing::error!(%error, "latest: no thread; dead letters are kept no longer than other events");
        }
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
    pub fn patterns(&self) -> &[Pattern] {
        &self.handle.patterns
    }

    /// The session is to be handed nothing more; what it holds it keeps.
    pub fn drain(&self) {
        self.handle.drain(self.number);
    }

    /// The session takes out of its queue again.
    pub fn go_on(&self) {
        self.handle.go_on(self.number);
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

fn unknown(group: &str) -> Refusal {
    Refusal::new("unknown-group", format!("there is no group '{group}'"))
}

fn patterns_of(topics: &[String]) -> Vec<Pattern> {
    topics.iter().filter_map(|topic| Pattern::parse(topic).ok()).collect()
}
