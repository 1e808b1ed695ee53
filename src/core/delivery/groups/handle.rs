//! One group, as its members, its task and the writer of records share it.
//!
//! ```text
//! intake ─▶ take ─▶ machine ─▶ deliveries ─▶ queues of members
//! members ─▶ say ──▶    │    ─▶ dead letters ─▶ task ─▶ journal
//!                       └─▶ changes ─▶ writer ─▶ journal ─▶ answers
//! ```
//!
//! Always holds: an answer that says something is so is sent once it is durable; who locks it waits for nothing. Owner:
//! [`super::Groups`].

use super::letters;
use super::notes::{Record, What};
use super::taken::{Found, Taken, id_of};
use super::writer::Dirty;
use crate::core::delivery::group::progress::{Failure, Saved};
use crate::core::delivery::group::{self, Effect, Group};
use crate::core::delivery::interest::Interest;
use crate::core::delivery::outlet::Outlet;
use crate::core::event::{Batch, string_body};
use crate::core::limits::GROUP_BYTES_HELD;
use crate::core::topic::Pattern;
use crate::core::wire::group::{Spec, delivery_head};
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A group.
pub(super) struct Handle {
    pub name: Box<str>,
    pub spec: Spec,
    /// What it takes in.
    pub interest: Arc<Interest>,
    pub(super) keys: RandomState,
    pub(super) state: Mutex<State>,
    /// Its task has something to do.
    pub wake: Notify,
    pub(super) dirty: Arc<Dirty>,
    pub(super) begun: Instant,
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
    pub(super) lines: HashMap<u64, Bytes>,
    pub(super) bytes: usize,
    pub(super) ids: HashMap<u64, u64>,
    pub(super) members: Vec<Member>,
    /// For whom, once what they say is durable.
    pub(super) answers: Vec<(Arc<Outlet>, u64, Vec<u8>)>,
    pub(super) letters: Vec<(u64, Vec<Failure>)>,
    /// Where the task is to go on.
    pub(super) seek: Option<u64>,
    /// The cursor is to be written, though it only passed other events.
    pub(super) wants_cursor: bool,
    /// Who waits for the group to be durable.
    pub(super) creators: Vec<Arc<Outlet>>,
}

pub(super) struct Member {
    pub(super) number: u64,
    pub(super) outlet: Arc<Outlet>,
    pub(super) max_in_flight: u32,
    /// The options that the group has otherwise, until it is told: it waits for the group to begin.
    pub(super) differs: Option<Vec<&'static str>>,
}

/// What the writer takes.
#[derive(Default)]
pub(super) struct Unwritten {
    pub records: Vec<Record>,
    pub answers: Vec<(Arc<Outlet>, u64, Vec<u8>)>,
}

impl Handle {
    /// A group that is not known to begin anywhere yet, or goes on where it was.
    pub fn new(
        name: Box<str>,
        spec: Spec,
        patterns: &[Pattern],
        saved: Option<Saved>,
        (dirty, begun): (Arc<Dirty>, Instant),
    ) -> Arc<Self> {
        let options = group::Options {
            max_attempts: spec.max_attempts,
            ack_timeout: Duration::from_millis(spec.ack_timeout_ms),
            ordered_by_key: spec.ordered_by_key,
            batch: spec.batch,
        };
        let (machine, stage) = match saved {
            Some(saved) => (Group::restore(options, saved), Stage::Durable),
            None => (Group::new(options, 0), Stage::Searching),
        };
        Arc::new(Handle {
            interest: Arc::new(Interest::of_group(&name, patterns, spec.max_attempts)),
            name,
            spec,
            keys: RandomState::new(),
            state: Mutex::new(State {
                machine,
                stage,
                is_listed: false,
                lines: HashMap::new(),
                bytes: 0,
                ids: HashMap::new(),
                members: Vec::new(),
                answers: Vec::new(),
                letters: Vec::new(),
                seek: None,
                wants_cursor: false,
                creators: Vec::new(),
            }),
            wake: Notify::new(),
            dirty,
            begun,
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// How many events it may take in, if any.
    pub fn may_take(&self) -> bool {
        let state = self.lock();
        state.stage == Stage::Durable && state.bytes < GROUP_BYTES_HELD && state.machine.room() > 0
    }

    /// Takes events in, and what was looked at up to `through`.
    pub fn take(self: &Arc<Self>, frames: &Bytes, through: u64) -> u64 {
        let (head, mut state, mut expired) = (self.interest.head(), self.lock(), 0);
        // It goes on elsewhere: what lies before these events is not done.
        if state.seek.is_some() {
            return 0;
        }
        super::taken::each(frames, (head, &self.name), &self.spec, &self.keys, |found| match found {
            Found::Event(Taken { seq, key, line }) => {
                if state.machine.offer(seq, key, line.len()) {
                    if let Some(id) = id_of(&line) {
                        let id = self.keys.hash_one(id);
                        state.ids.insert(id, seq);
                    }
                    state.bytes += line.len();
                    state.lines.insert(seq, line);
                }
            }
            Found::Gap(to) => {
                let gone = state.machine.expire(to + 1);
                expired += gone.undelivered + gone.unseen;
                let old: Vec<u64> = state.lines.keys().copied().filter(|seq| *seq <= to).collect();
                old.into_iter().for_each(|seq| state.forget(&self.keys, seq));
            }
            Found::Other => {}
        });
        state.machine.pass(through);
        self.act(&mut state);
        expired
    }

    /// There was nothing for it up to `through`.
    pub fn pass(self: &Arc<Self>, through: u64) {
        let mut state = self.lock();
        if state.seek.is_some() {
            return;
        }
        state.machine.pass(through);
        state.wants_cursor = state.machine.unwritten_cursor() > 0;
        self.act(&mut state);
    }

    /// Does what is due; when something is again.
    pub fn look(self: &Arc<Self>) -> Option<Instant> {
        let mut state = self.lock();
        self.act(&mut state);
        state.machine.next().map(|next| self.begun + next)
    }

    /// A dead letter is durable.
    pub fn buried(self: &Arc<Self>, seq: u64) {
        let mut state = self.lock();
        state.letters.retain(|(dead, _)| *dead != seq);
        state.machine.buried(seq);
        state.forget(&self.keys, seq);
        self.act(&mut state);
    }

    /// The next dead letter that is to be written.
    pub fn letter(&self) -> Option<(u64, Batch)> {
        let state = self.lock();
        let (seq, failures) = state.letters.first()?;
        let line = state.lines.get(seq)?;
        Some((*seq, letters::letter(&self.name, *seq, line, failures)))
    }

    /// Everything up to this seq is done.
    pub fn cursor(&self) -> u64 {
        self.lock().machine.counts().cursor
    }

    /// What is to be written, and who waits for it.
    pub fn unwritten(&self) -> Unwritten {
        let mut state = self.lock();
        state.is_listed = false;
        let mut changes = Vec::new();
        if std::mem::take(&mut state.wants_cursor) {
            changes.extend(state.machine.take_cursor());
        }
        while let Some(change) = state.machine.take_changes() {
            changes.push(change);
        }
        let what = match state.stage {
            Stage::Begun => {
                state.stage = Stage::Writing;
                self.whole(&state)
            }
            Stage::Removed => {
                state.stage = Stage::Gone;
                vec![What::Gone(true)]
            }
            Stage::Durable => changes.into_iter().map(What::Changed).collect(),
            Stage::Searching | Stage::Writing | Stage::Gone => Vec::new(),
        };
        Unwritten { records: self.records(what), answers: std::mem::take(&mut state.answers) }
    }

    /// All of it, for a snapshot; what changed until now is in it.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut state = self.lock();
        // Of one that is being written the call has the beginning, which a snapshot in the same call makes void.
        if !matches!(state.stage, Stage::Writing | Stage::Durable) {
            return Vec::new();
        }
        while state.machine.take_changes().is_some() {}
        self.records(self.whole(&state))
    }

    pub(super) fn whole(&self, state: &State) -> Vec<What> {
        let saved = state.machine.saved();
        let begins = What::Begins { spec: self.spec.clone(), cursor: saved.cursor() };
        [begins].into_iter().chain(saved.changes().into_iter().map(What::Changed)).collect()
    }

    pub(super) fn records(&self, what: Vec<What>) -> Vec<Record> {
        what.into_iter().map(|what| Record { group: self.name.clone(), what }).collect()
    }

    /// Hands out what is to be delivered by now, and says that there is something to write.
    pub(super) fn act(self: &Arc<Self>, state: &mut State) {
        let effects = state.machine.step(self.now());
        let (mut frames, mut to, mut events) = (Vec::new(), None, 0);
        for effect in effects {
            match effect {
                Effect::Deliver { member, seq, attempt } => {
                    if to.is_some_and(|to| to != member) {
                        state.hand_out(to, &mut frames, &mut events);
                    }
                    to = Some(member);
                    let Some(line) = state.lines.get(&seq) else { continue };
                    events += 1;
                    self.frame(&mut frames, attempt, line);
                }
                Effect::Dead { seq, attempts } => {
                    state.letters.push((seq, attempts));
                }
            }
        }
        state.hand_out(to, &mut frames, &mut events);
        if state.stage == Stage::Begun
            || state.wants_cursor
            || state.machine.has_changes()
            || !state.answers.is_empty()
        {
            self.list(state);
        }
    }

    /// The same, for whoever is not the task: its timers and its room may be others.
    pub(super) fn stir(self: &Arc<Self>, state: &mut State) {
        self.act(state);
        self.wake.notify_one();
    }

    /// There is something to write, or somebody to answer once all before it is written.
    pub(super) fn list(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.is_listed, true) {
            self.dirty.add(self);
        }
    }

    pub(super) fn frame(&self, out: &mut Vec<u8>, attempt: u32, line: &[u8]) {
        let later;
        let head = match attempt {
            1 => self.interest.head(),
            _ => {
                later = delivery_head(&self.name, attempt, self.spec.max_attempts);
                &later
            }
        };
        out.extend_from_slice(&((head.len() + line.len()) as u32).to_be_bytes());
        out.extend_from_slice(head);
        out.extend_from_slice(line);
    }
}

impl State {
    pub(super) fn hand_out(&self, to: Option<u64>, frames: &mut Vec<u8>, events: &mut usize) {
        if frames.is_empty() {
            return;
        }
        let (frames, events) = (std::mem::take(frames), std::mem::take(events));
        if let Some(member) = self.members.iter().find(|member| Some(member.number) == to) {
            member.outlet.hold(member.number, frames.into(), events);
        }
    }

    pub(super) fn forget(&mut self, keys: &RandomState, seq: u64) {
        let Some(line) = self.lines.remove(&seq) else { return };
        self.bytes -= line.len();
        if let Some(id) = id_of(&line) {
            let id = keys.hash_one(id);
            if self.ids.get(&id) == Some(&seq) {
                self.ids.remove(&id);
            }
        }
    }

    pub(super) fn seq_of(&self, keys: &RandomState, id: &str) -> Option<u64> {
        let mut encoded = Vec::new();
        string_body(&mut encoded, id);
        self.ids.get(&keys.hash_one(&encoded[..])).copied()
    }
}
