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
use crate::core::delivery::group::answers::{Refused, Which as These};
use crate::core::delivery::group::figures::Stall;
use crate::core::delivery::group::progress::{Failure, Saved};
use crate::core::delivery::group::{self, Effect, Group};
use crate::core::delivery::interest::Interest;
use crate::core::delivery::outlet::Outlet;
use crate::core::delivery::redelivery::Delay;
use crate::core::event::{Batch, string_body};
use crate::core::limits::{GROUP_BYTES_HELD, GROUP_MEMBER_BYTES};
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use crate::core::wire::group::{
    Say, Spec, Which, Word, delivery_head, ended, join_ack, refused, report, word_ack,
};
use bytes::Bytes;
use serde_json::{Value, json};
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
    keys: RandomState,
    state: Mutex<State>,
    /// Its task has something to do.
    pub wake: Notify,
    dirty: Arc<Dirty>,
    begun: Instant,
}

/// How far a group is on its way into the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
    machine: Group,
    stage: Stage,
    is_listed: bool,
    lines: HashMap<u64, Bytes>,
    bytes: usize,
    ids: HashMap<u64, u64>,
    members: Vec<Member>,
    /// For whom, once what they say is durable.
    answers: Vec<(Arc<Outlet>, u64, Vec<u8>)>,
    letters: Vec<(u64, Vec<Failure>)>,
    /// Where the task is to go on.
    seek: Option<u64>,
    /// The cursor is to be written, though it only passed other events.
    wants_cursor: bool,
    /// Who waits for the group to be durable.
    creators: Vec<Arc<Outlet>>,
}

struct Member {
    number: u64,
    outlet: Arc<Outlet>,
    max_in_flight: u32,
    /// The options that the group has otherwise, until it is told: it waits for the group to begin.
    differs: Option<Vec<&'static str>>,
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

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Adds a member that wished for `wish`; false when the group is no more.
    pub fn join(self: &Arc<Self>, number: u64, outlet: Arc<Outlet>, wish: &Spec, max_in_flight: u32) -> bool {
        let mut state = self.lock();
        let differs = Some(self.spec.differs(wish));
        state.members.push(Member { number, outlet, max_in_flight, differs });
        match state.stage {
            Stage::Durable => self.welcome(&mut state, false),
            Stage::Gone | Stage::Removed => return false,
            Stage::Searching | Stage::Begun | Stage::Writing => {}
        }
        true
    }

    /// Tells the session with this queue once the group is durable; false when it is no more.
    pub fn tell_created(self: &Arc<Self>, outlet: &Arc<Outlet>) -> bool {
        let mut state = self.lock();
        match state.stage {
            Stage::Gone | Stage::Removed => return false,
            Stage::Durable => self.say_created(&state, outlet, false),
            Stage::Searching | Stage::Begun | Stage::Writing => state.creators.push(outlet.clone()),
        }
        true
    }

    fn say_created(&self, state: &State, outlet: &Outlet, is_created: bool) {
        let mut out = Vec::new();
        let said =
            json!({"group": self.name, "cursor": state.machine.counts().cursor, "created": is_created});
        report(&mut out, "group_create", &said);
        outlet.hold(0, out.into(), 0);
    }

    /// Goes on behind `cursor`: what is held is forgotten. The session with this queue is told once that is durable.
    pub fn seek(self: &Arc<Self>, cursor: u64, outlet: &Arc<Outlet>) {
        let mut state = self.lock();
        state.machine.seek(cursor);
        (state.lines, state.ids, state.bytes) = (HashMap::new(), HashMap::new(), 0);
        state.letters.clear();
        state.seek = Some(cursor + 1);
        let mut out = Vec::new();
        report(&mut out, "group_seek", &json!({"group": self.name, "cursor": cursor}));
        state.answers.push((outlet.clone(), 0, out));
        self.stir(&mut state);
    }

    /// Where the task is to go on, if somewhere else.
    pub fn take_seek(&self) -> Option<u64> {
        self.lock().seek.take()
    }

    /// The group is no more: members are told; the session with this queue is, once that is durable.
    pub fn remove(self: &Arc<Self>, outlet: &Arc<Outlet>) {
        let mut state = self.lock();
        state.stage = Stage::Removed;
        let why = Refusal::new("group-removed", "the group was removed");
        for member in std::mem::take(&mut state.members) {
            let mut out = Vec::new();
            ended(&mut out, &self.name, &why);
            member.outlet.hold(member.number, out.into(), 0);
        }
        let mut out = Vec::new();
        report(&mut out, "group_remove", &json!({"group": self.name}));
        state.answers.push((outlet.clone(), 0, out));
        self.list(&mut state);
        self.wake.notify_one();
    }

    /// It is no more.
    pub fn is_gone(&self) -> bool {
        matches!(self.lock().stage, Stage::Gone | Stage::Removed)
    }

    /// How it stands, `head` being the newest event and `first` the oldest.
    pub fn report(&self, first: u64, head: u64) -> Value {
        let state = self.lock();
        let counts = state.machine.counts();
        let cursor = counts.cursor;
        let stalled = match state.machine.stalled() {
            _ if cursor + 1 < first => Some("behind retention"),
            Some(Stall::NoMembers) => Some("no members"),
            Some(Stall::InFlightFull) => Some("in-flight full"),
            Some(Stall::WaitingFull) => Some("waiting full"),
            None => None,
        };
        json!({
            "group": self.name, "spec": self.spec, "cursor": cursor, "lag": head.saturating_sub(cursor),
            "members": state.members.len(), "held": counts.in_flight,
            "waiting": counts.waiting + counts.behind, "delayed": counts.delayed, "dead": counts.dead,
            "stalled": stalled,
        })
    }

    /// It begins behind `cursor`.
    pub fn begin(self: &Arc<Self>, cursor: u64) {
        let mut state = self.lock();
        state.machine.seek(cursor);
        state.stage = Stage::Begun;
        self.stir(&mut state);
    }

    /// It cannot begin: its members are told, and it is gone.
    pub fn fail(&self, why: &Refusal) {
        let mut state = self.lock();
        state.stage = Stage::Gone;
        for outlet in std::mem::take(&mut state.creators) {
            let mut out = Vec::new();
            refused(&mut out, "group_create", &self.name, None, why);
            outlet.hold(0, out.into(), 0);
        }
        for member in std::mem::take(&mut state.members) {
            let mut out = Vec::new();
            refused(&mut out, "subscribe", &self.name, None, why);
            member.outlet.hold(member.number, out.into(), 0);
        }
    }

    /// What was taken to be written is durable.
    pub fn written(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.stage == Stage::Writing {
            state.stage = Stage::Durable;
            for outlet in std::mem::take(&mut state.creators) {
                self.say_created(&state, &outlet, true);
            }
            self.welcome(&mut state, true);
        }
    }

    /// Tells members that joined that they are, before they get anything.
    fn welcome(self: &Arc<Self>, state: &mut State, is_created: bool) {
        let State { members, machine, .. } = &mut *state;
        for member in members {
            let Some(differs) = member.differs.take() else { continue };
            let mut out = Vec::new();
            join_ack(&mut out, &self.name, machine.counts().cursor, is_created, &differs);
            member.outlet.hold(member.number, out.into(), 0);
            machine.join(member.number, member.max_in_flight, GROUP_MEMBER_BYTES);
        }
        self.stir(state);
    }

    /// A member goes.
    pub fn leave(self: &Arc<Self>, number: u64) {
        let mut state = self.lock();
        state.members.retain(|member| member.number != number);
        state.machine.leave(number, self.now());
        self.stir(&mut state);
    }

    /// How many events it may take in, if any.
    pub fn may_take(&self) -> bool {
        let state = self.lock();
        state.stage == Stage::Durable && state.bytes < GROUP_BYTES_HELD && state.machine.room() > 0
    }

    /// Takes events in, and what was looked at up to `through`.
    pub fn take(self: &Arc<Self>, frames: &Bytes, through: u64) -> u64 {
        let (head, mut state, mut expired) = (self.interest.head(), self.lock(), 0);
        super::taken::each(frames, head, &self.spec, &self.keys, |found| match found {
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

    /// Takes what a member says; the refusal of each event that it may not say that of.
    pub fn say(self: &Arc<Self>, number: u64, word: Word) -> Vec<(Option<u64>, Refusal)> {
        let now = self.now();
        let mut state = self.lock();
        let seqs = match word.which {
            Which::Seqs(seqs) => seqs,
            Which::Through(seq) => match state.machine.held_through(number, seq) {
                held if held.is_empty() => vec![seq],
                held => held,
            },
            Which::Id(id) => match state.seq_of(&self.keys, &id) {
                Some(seq) => vec![seq],
                None => {
                    let why = format!("the group has no event of the id '{id:.64}' that waits for an answer");
                    return vec![(None, Refusal::new("not-delivered", why))];
                }
            },
        };
        let reason = word.reason.unwrap_or_default();
        let (kind, machine, mut refusals) = (word.say.kind(), &mut state.machine, Vec::new());
        let mut each = |seqs: &[u64], say: &mut dyn FnMut(u64) -> Result<(), Refused>| {
            let refused = seqs.iter().filter_map(|seq| say(*seq).err().map(|why| (*seq, why)));
            refusals.extend(refused);
        };
        match &word.say {
            Say::Ack => {
                let answered = machine.ack(number, These::Seqs(seqs.clone()), now);
                refusals = answered.refused;
                answered.taken.into_iter().for_each(|seq| state.forget(&self.keys, seq));
            }
            Say::InProgress => refusals = machine.in_progress(number, &seqs, now).refused,
            Say::Term => each(&seqs, &mut |seq| machine.term(number, seq, &reason, now)),
            Say::Nack { delays } => {
                let delay = match delays[..] {
                    [] => Delay::Doubling,
                    [one] => Delay::One(one),
                    _ => Delay::List(delays.clone()),
                };
                each(&seqs, &mut |seq| machine.nack(number, seq, &reason, &delay, now).map(drop));
            }
        }
        if word.confirm && refusals.is_empty() {
            let mut out = Vec::new();
            word_ack(&mut out, kind, &self.name, seqs.len());
            let member = state.members.iter().find(|member| member.number == number);
            if let Some(outlet) = member.map(|member| member.outlet.clone()) {
                state.answers.push((outlet, number, out));
            }
        }
        self.stir(&mut state);
        refusals.into_iter().map(|(seq, why)| (Some(seq), refusal(seq, why))).collect()
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
        if state.stage != Stage::Durable {
            return Vec::new();
        }
        while state.machine.take_changes().is_some() {}
        self.records(self.whole(&state))
    }

    fn whole(&self, state: &State) -> Vec<What> {
        let saved = state.machine.saved();
        let begins = What::Begins { spec: self.spec.clone(), cursor: saved.cursor() };
        [begins].into_iter().chain(saved.changes().into_iter().map(What::Changed)).collect()
    }

    fn records(&self, what: Vec<What>) -> Vec<Record> {
        what.into_iter().map(|what| Record { group: self.name.clone(), what }).collect()
    }

    /// Hands out what is to be delivered by now, and says that there is something to write.
    fn act(self: &Arc<Self>, state: &mut State) {
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
    fn stir(self: &Arc<Self>, state: &mut State) {
        self.act(state);
        self.wake.notify_one();
    }

    /// There is something to write, or somebody to answer once all before it is written.
    fn list(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.is_listed, true) {
            self.dirty.add(self);
        }
    }

    fn frame(&self, out: &mut Vec<u8>, attempt: u32, line: &[u8]) {
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
    fn hand_out(&self, to: Option<u64>, frames: &mut Vec<u8>, events: &mut usize) {
        if frames.is_empty() {
            return;
        }
        let (frames, events) = (std::mem::take(frames), std::mem::take(events));
        if let Some(member) = self.members.iter().find(|member| Some(member.number) == to) {
            member.outlet.hold(member.number, frames.into(), events);
        }
    }

    fn forget(&mut self, keys: &RandomState, seq: u64) {
        let Some(line) = self.lines.remove(&seq) else { return };
        self.bytes -= line.len();
        if let Some(id) = id_of(&line) {
            let id = keys.hash_one(id);
            if self.ids.get(&id) == Some(&seq) {
                self.ids.remove(&id);
            }
        }
    }

    fn seq_of(&self, keys: &RandomState, id: &str) -> Option<u64> {
        let mut encoded = Vec::new();
        string_body(&mut encoded, id);
        self.ids.get(&keys.hash_one(&encoded[..])).copied()
    }
}

fn refusal(seq: u64, why: Refused) -> Refusal {
    match why {
        Refused::AlreadyDone => Refusal::new("already-done", format!("event {seq} is done already")),
        Refused::GivenUp => Refusal::new("already-done", format!("event {seq} is given up: a dead letter")),
        Refused::NotHeld => Refusal::new("not-held", format!("event {seq} is not held by this member")),
        Refused::NotDelivered => {
            Refusal::new("not-delivered", format!("event {seq} was not delivered since the broker started"))
        }
        Refused::Unknown => {
            Refusal::new("not-delivered", format!("the group has not come to an event {seq} yet"))
        }
    }
}
