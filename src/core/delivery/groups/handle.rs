//! One group, as its members, its task and the writer of records share it.
//!
//! ```text
//! intake ─▶ take ─▶ machine ─▶ deliveries ─▶ queues of members
//! members ─▶ say ──▶    │    ─▶ dead letters ─▶ task ─▶ journal
//!                       └─▶ changes ─▶ writer ─▶ journal ─▶ answers
//! ```
//!
//! `hand_out.rs` is the way to the members, `ledger.rs` the way to the journal. Always holds: an answer that says something is so is sent once it is durable; who locks it waits for nothing. Owner:
//! [`super::Groups`].

use super::counting::Counting;
use super::intake::Came;
use super::lag::Counted;
use super::lines::Lines;
use super::notes::Known;
use super::passing::Awaited;
use super::taken::{Found, Taken, id_of};
use super::writer::Dirty;
use crate::core::awake::Instant;
use crate::core::clock::wall_ms;
use crate::core::delivery::group::progress::Failure;
use crate::core::delivery::group::{self, Group};
use crate::core::delivery::interest::Interest;
use crate::core::delivery::outlet::{Outlet, PendingAnswer};
use crate::core::event::string_body;
use crate::core::journal::Ages;
use crate::core::metrics::groups::Table;
use crate::core::retention::Retention;
use crate::core::topic::Pattern;
use crate::core::wire::group::{Spec, delivery_head};
use std::collections::{BTreeMap, VecDeque};
use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

/// A group.
pub(super) struct Handle {
    pub name: Box<str>,
    pub spec: Spec,
    /// Its topics, as they were typed.
    pub patterns: Box<[Pattern]>,
    /// The VM whose session began it; empty when it is not known.
    pub by: Box<str>,
    pub(super) keys: RandomState,
    state: Mutex<State>,
    /// Its task has something to do.
    pub(super) wake: Notify,
    pub(super) shared: Arc<Shared>,
}

/// What all groups have in common.
pub(super) struct Shared {
    pub dirty: Arc<Dirty>,
    pub retention: Arc<Retention>,
    /// How old events are.
    pub ages: Box<dyn Fn() -> Ages + Send + Sync>,
    /// The bytes of all chunks that groups keep, and of what they are about to read.
    pub held: Arc<AtomicUsize>,
    /// The broker ends: whoever leaves leaves what it holds to the next one, which delivers it as if it was never out.
    pub ends: Arc<AtomicBool>,
    /// Groups that have something to do, and no task.
    pub runs: UnboundedSender<Arc<Handle>>,
    /// Where metrics count, if there are any.
    pub counts: Option<Arc<Table>>,
    pub begun: Instant,
}

/// How far a group is on its way into the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is looked for where it begins.
    Searching,
    /// That is known.
    Begun,
    /// It is being written down.
    Writing,
    /// The journal has it: it hands out.
    Durable,
    /// It is no more, and the journal does not know.
    Removed,
    /// It is no more.
    Gone,
}

/// What is locked.
pub(super) struct State {
    pub(super) machine: Group,
    pub(super) stage: Stage,
    pub(super) is_listed: bool,
    /// It has a task.
    pub(super) is_running: bool,
    pub(super) lines: Lines,
    /// Some of them have a `ttl_ms`.
    pub(super) expires: bool,
    /// Events of the group, since the broker started, that were gone or of no use any more before it had come to them.
    pub(super) expired: u64,
    /// What of that the broker's log has not.
    pub(super) unsaid: u64,
    /// For metrics, if there are any.
    pub(super) counting: Option<Box<Counting>>,
    pub(super) members: BTreeMap<u64, Member>,
    /// For whom, once what they say is durable.
    pub(super) answers: Vec<(PendingAnswer, u64, Vec<u8>)>,
    /// Events that are given up, while the last attempts are not written …
    pub(super) dying: Vec<(u64, Vec<Failure>)>,
    /// … while they are being written …
    pub(super) burying: Vec<(u64, Vec<Failure>)>,
    /// … and those whose letter is to be written.
    pub(super) letters: VecDeque<(u64, Vec<Failure>)>,
    /// In the ids of letters: an event that is given up again after the group went back has another letter.
    pub(super) life: u64,
    pub(super) is_life_written: bool,
    /// It is looked for where it is to go on.
    pub(super) is_seeking: bool,
    /// Where the task is to go on.
    pub(super) seek: Option<u64>,
    /// Its queue, while the router puts all of its events there.
    pub(super) live: Option<Arc<Outlet>>,
    /// What was counted for somebody who asked how far it is behind.
    pub(super) counted: Option<Box<Counted>>,
    /// What it waits with while it has no members, as far as that is known.
    pub(super) awaited: Option<Awaited>,
    /// The cursor is to be written, though it only passed other events.
    pub(super) wants_cursor: bool,
    /// Who waits for the group to be durable.
    pub(super) creators: Vec<(Arc<Outlet>, Vec<&'static str>)>,
}

pub(super) struct Member {
    pub(super) outlet: Arc<Outlet>,
    pub(super) max_in_flight: u32,
    /// It says which events it begins.
    pub(super) begins: bool,
    /// The options that the group has otherwise, until it is told: it waits for the group to begin.
    pub(super) differs: Option<Vec<&'static str>>,
    /// It is handed nothing more.
    pub(super) drains: bool,
}

impl Handle {
    /// A group that is not known to begin anywhere yet.
    pub fn begins(
        name: Box<str>,
        spec: Spec,
        patterns: &[Pattern],
        by: &str,
        life: u64,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        let machine = Group::new(options(&spec), 0);
        Handle::new(name, spec, patterns, (by.into(), life), (machine, Stage::Searching), shared)
    }

    /// One that goes on where it was.
    pub fn goes_on(name: Box<str>, known: Known, patterns: &[Pattern], shared: Arc<Shared>) -> Arc<Self> {
        let Known { spec, by, life, saved } = known;
        let machine = Group::restore(options(&spec), saved, wall_ms());
        Handle::new(name, spec, patterns, (by, life), (machine, Stage::Durable), shared)
    }

    fn new(
        name: Box<str>,
        spec: Spec,
        patterns: &[Pattern],
        (by, life): (Box<str>, u64),
        (machine, stage): (Group, Stage),
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        let counting =
            shared.counts.iter().map(|counts| Box::new(Counting::new(counts.of(&name, &by)))).next();
        let head = delivery_head(&name, 1, spec.max_attempts);
        let lines = Lines::new(head.len(), shared.held.clone());
        Arc::new(Handle {
            patterns: patterns.into(),
            name,
            spec,
            by,
            keys: RandomState::new(),
            state: Mutex::new(State {
                machine,
                stage,
                is_listed: false,
                is_running: false,
                lines,
                expires: false,
                expired: 0,
                unsaid: 0,
                counting,
                members: BTreeMap::new(),
                answers: Vec::new(),
                dying: Vec::new(),
                burying: Vec::new(),
                letters: VecDeque::new(),
                life,
                is_life_written: true,
                is_seeking: false,
                seek: None,
                live: None,
                counted: None,
                awaited: None,
                wants_cursor: false,
                creators: Vec::new(),
            }),
            wake: Notify::new(),
            shared,
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.shared.begun.elapsed()
    }

    /// How many bytes of events it may take in at a time; 0: none.
    pub fn room(&self) -> usize {
        let state = self.lock();
        match state.stage {
            Stage::Durable if state.machine.room() > 0 => state.lines.room(),
            _ => 0,
        }
    }

    /// What it takes in.
    pub fn interest(&self) -> Interest {
        Interest::of_group(&self.name, &self.patterns, &self.spec)
    }

    /// Takes events in, whose frames begin with `head`, and what was looked at up to `through`; `outlet` is the queue that
    /// the router puts them in.
    pub fn take(self: &Arc<Self>, came: &Came, head: &[u8], outlet: &Arc<Outlet>) {
        let (mut found, mut expired) = (Vec::new(), came.expired);
        let own = (head, &*self.name);
        super::taken::each(&came.frames, own, &self.spec, &self.keys, |one| found.push(one));
        let mut state = self.lock();
        outlet.arrived();
        // It goes on elsewhere: what lies before these events is not done.
        if state.seek.is_some() {
            return;
        }
        if came.is_live != state.live.is_some() {
            state.live = came.is_live.then(|| outlet.clone());
        }
        let mut held = Vec::new();
        for one in found {
            match one {
                Found::Event(Taken { place, key, bytes }) => {
                    if state.machine.offer(place.seq, key, bytes) {
                        state.count_taken(place.seq);
                        held.push(place);
                    }
                }
                // What the group has taken in lies before it.
                Found::Gap(from, to) => {
                    expired += to.saturating_sub(from) + 1;
                    state.machine.pass(to);
                }
                Found::Other => {}
            }
        }
        state.lines.keep(&came.frames, held);
        state.expires |= came.expires;
        state.expire(expired);
        state.wants_cursor |= expired > 0;
        state.machine.pass(came.through);
        state.count_passed(expired > 0);
        self.act(&mut state);
    }

    /// There was nothing for it up to `through`.
    pub fn pass(self: &Arc<Self>, through: u64) {
        let mut state = self.lock();
        if state.seek.is_some() {
            return;
        }
        state.machine.pass(through);
        state.count_passed(false);
        state.wants_cursor = state.machine.unwritten_cursor() > 0;
        self.act(&mut state);
    }

    /// Has its task look at it; it gets one if it has none.
    pub(super) fn rouse(self: &Arc<Self>, state: &mut State) {
        // It does not know where to read from; once it does it is roused.
        if state.stage == Stage::Searching {
            return;
        }
        if std::mem::replace(&mut state.is_running, true) {
            self.wake.notify_one();
        } else {
            // At the broker's end nobody takes it.
            let _ = self.shared.runs.send(self.clone());
        }
    }

    /// Whether nothing is to be done before it is roused: its task ends, for an idle group is to be small.
    pub fn rests(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        let has_nobody = state.members.is_empty() && state.lines.is_empty();
        let rests = has_nobody && state.seek.is_none() && state.machine.next().is_none();
        state.is_running = !rests;
        if rests {
            state.machine.shrink();
            (state.awaited, state.live) = (None, None);
            self.list_cursor(&mut state);
        }
        rests
    }

    /// Has its cursor written, wherever it is.
    pub fn write_cursor(self: &Arc<Self>) {
        self.list_cursor(&mut self.lock());
    }

    fn list_cursor(self: &Arc<Self>, state: &mut State) {
        if state.stage == Stage::Durable && state.machine.unwritten_cursor() > 0 {
            state.wants_cursor = true;
            self.list(state);
        }
    }

    /// Does what is due; when something is again.
    pub fn look(self: &Arc<Self>) -> Option<Instant> {
        let mut state = self.lock();
        self.act(&mut state);
        state.machine.next().map(|next| self.shared.begun + next)
    }

    /// Everything up to this seq is done.
    pub fn cursor(&self) -> u64 {
        self.lock().machine.counts().cursor
    }
}

impl State {
    pub(super) fn forget(&mut self, seq: u64) {
        if !self.lines.forget(seq) {
            return;
        }
        self.counting.iter_mut().for_each(|counting| counting.forget(seq));
        self.expires &= !self.lines.is_empty();
    }

    /// Forgets all lines.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.expires = false;
        (self.live, self.counted) = (None, None);
        self.counting.iter_mut().for_each(|counting| counting.clear());
        (self.dying, self.burying, self.letters) = (Vec::new(), Vec::new(), VecDeque::new());
    }

    /// Which event of this id the member holds; the oldest, when events of several VMs have it.
    pub(super) fn seq_of(&self, member: u64, id: &str) -> Option<u64> {
        let mut encoded = Vec::new();
        string_body(&mut encoded, id);
        let has_id = |seq: &u64| self.lines.get(*seq).and_then(id_of) == Some(&encoded[..]);
        self.machine.held_through(member, u64::MAX).into_iter().find(has_id)
    }
}

fn options(spec: &Spec) -> group::Options {
    group::Options {
        max_attempts: spec.max_attempts,
        ack_timeout: Duration::from_millis(spec.ack_timeout_ms),
        ordered_by_key: spec.ordered_by_key,
        batch: spec.batch,
    }
}
