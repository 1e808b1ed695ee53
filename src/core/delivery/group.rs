//! A consumer group: who is given which event, what comes of it, and how far the group has come.
//!
//! ```text
//! offer ──▶ waiting ──step──▶ held ──ack─────────────────────────────────▶ done
//!              ▲               │ nack, timeout, its member goes              ▲
//!              ├──── delayed ◀─┤                                             │
//!              └───────────────┴─ the last attempt, term ─▶ dead ──buried────┘
//! ```
//!
//! Always holds: an event is held by one member at most; it is delivered [`Options::max_attempts`] times at most; the
//! cursor passes no event that is not done; of one key only the oldest is under way, where the group is ordered by
//! key. What is held is bounded by what members take, what waits by [`Group::room`]. Every input costs a logarithm of
//! that. Pure: `now` is monotonic, since some start; effects are returned. `group/answers.rs` is what members say,
//! `group/members.rs` whose turn it is, `group/queue.rs` what is next, `group/progress.rs` what is written,
//! `redelivery.rs` when it is delivered again. Owner: the task of the group.

pub mod answers;
pub mod members;
pub mod progress;
mod queue;
pub mod ranges;

use super::redelivery::Timers;
use crate::core::limits::GROUP_WAITING;
use members::{MemberId, Members};
use progress::{Cause, Change, Failure, Progress, Saved};
pub use queue::Key;
use queue::Queue;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

/// What a group was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// An event is dead after so many deliveries in vain; 0 is as good as 1.
    pub max_attempts: u32,
    /// A delivery is in vain when nothing was heard of it for so long.
    pub ack_timeout: Duration,
    /// Of the events of one key the next is delivered only when the one before is done.
    pub ordered_by_key: bool,
    /// About so many events are handed to a member at a time; 0 is as good as 1.
    pub batch: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { max_attempts: 5, ack_timeout: Duration::from_secs(30), ordered_by_key: false, batch: 100 }
    }
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send it.
    Deliver {
        /// To whom.
        member: MemberId,
        /// The event.
        seq: u64,
        /// How many times it was delivered, this time included.
        attempt: u32,
    },
    /// Publish it to the dead letters; once that is durable: [`Group::buried`]. After a restart it may be asked for again.
    Dead {
        /// The event.
        seq: u64,
        /// The last deliveries in vain, oldest first; never none.
        attempts: Vec<Failure>,
    },
}

/// What retention took from a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Events of the group that nobody held and that were not dead.
    pub undelivered: u64,
    /// Seqs that were not looked at yet; so many events of the group at the most.
    pub unseen: u64,
}

/// A group in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Members.
    pub members: usize,
    /// Events that members hold.
    pub in_flight: usize,
    /// Events that can go out as soon as somebody takes them.
    pub waiting: usize,
    /// Events that wait for another of their key.
    pub behind: usize,
    /// Events that wait for the end of a delay.
    pub delayed: usize,
    /// Events whose dead letter is not durable.
    pub dead: usize,
    /// Everything through this seq is done.
    pub cursor: u64,
    /// Everything through this seq was offered or passed.
    pub looked: u64,
    /// How many ranges beyond the cursor are done.
    pub done_ranges: usize,
}

/// Why nothing is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Nobody is there to take it.
    NoMembers,
    /// Every member holds as much as it takes.
    InFlightFull,
    /// As many as may wait do so for the end of a delay, for another of their key, or for their dead letter.
    WaitingFull,
}

#[derive(Debug)]
struct Event {
    key: Option<Key>,
    bytes: usize,
    /// Deliveries in vain.
    failed: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// In the queue; an ack of `late` still counts, who had it until its time was over.
    Waiting {
        late: Option<MemberId>,
    },
    /// Waits for another of its key.
    Behind,
    Held {
        member: MemberId,
        until: Duration,
    },
    Delayed {
        until: Duration,
    },
    Dead,
}

/// One group.
#[derive(Debug)]
pub struct Group {
    options: Options,
    progress: Progress,
    /// Everything through this seq was offered or passed.
    looked: u64,
    /// What is not done of it.
    events: BTreeMap<u64, Event>,
    queue: Queue,
    members: Members,
    timers: Timers,
    /// Dead, and not told yet.
    dying: VecDeque<u64>,
    dead: usize,
    delayed: usize,
    now: Duration,
}

impl Group {
    /// A new one: everything through `cursor` is done.
    pub fn new(options: Options, cursor: u64) -> Self {
        let mut saved = Progress::default();
        saved.reset(cursor);
        Group::with(options, saved)
    }

    /// One that was there before: what was in flight is to be offered again, with all else behind the cursor.
    pub fn restore(options: Options, saved: Saved) -> Self {
        Group::with(options, Progress::new(saved))
    }

    fn with(options: Options, progress: Progress) -> Self {
        Group {
            looked: progress.saved().cursor(),
            options,
            progress,
            events: BTreeMap::new(),
            queue: Queue::default(),
            members: Members::default(),
            timers: Timers::default(),
            dying: VecDeque::new(),
            dead: 0,
            delayed: 0,
            now: Duration::ZERO,
        }
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Somebody takes part, and takes so many events and bytes at a time (one event in any case); a member that says
    /// it again changes that.
    pub fn join(&mut self, member: MemberId, max_in_flight: u32, max_bytes: usize) {
        self.members.join(member, max_in_flight, max_bytes);
    }

    /// A member goes; what it held is a delivery in vain each, and waits for another at once.
    pub fn leave(&mut self, member: MemberId, now: Duration) {
        self.clock(now);
        for seq in self.members.leave(member).unwrap_or_default() {
            if let Some(event) = self.events.get_mut(&seq)
                && let Place::Held { until, .. } = event.place
            {
                self.timers.clear(until, seq);
                self.fail(seq, Cause::Gone, "", Duration::ZERO, Some(member));
            }
        }
    }

    /// The next event that the group wants, `bytes` long; what lies before it and was not offered is passed. `false`:
    /// it is done, or was offered before.
    pub fn offer(&mut self, seq: u64, key: Option<Key>, bytes: usize) -> bool {
        if seq <= self.looked {
            return false;
        }
        self.looked = seq;
        if self.progress.saved().done().contains(seq) {
            self.advance(false);
            return false;
        }
        let key = key.filter(|_| self.options.ordered_by_key);
        let failures = self.progress.saved().failures(seq);
        let (failed, given_up) =
            failures.last().map_or((0, false), |last| (last.attempt, last.cause == Cause::Term));
        let place = if given_up || failed >= self.options.max_attempts.max(1) {
            self.queue.is_first(seq, key);
            self.dying.push_back(seq);
            self.dead += 1;
            Place::Dead
        } else if self.queue.add(seq, key) {
            Place::Waiting { late: None }
        } else {
            Place::Behind
        };
        let first = self.events.is_empty();
        self.events.insert(seq, Event { key, bytes, failed, place });
        if first {
            self.advance(false);
        }
        true
    }

    /// Everything through this seq was looked at; what of it was not offered is no event of the group.
    pub fn pass(&mut self, through: u64) {
        if through > self.looked {
            self.looked = through;
            if self.events.is_empty() {
                self.advance(false);
            }
        }
    }

    /// How many events may be offered now; none without members. It grows when [`Group::step`] delivers, when events
    /// are done, and when somebody joins.
    pub fn room(&self) -> usize {
        if self.members.is_empty() {
            return 0;
        }
        let all = GROUP_WAITING.saturating_sub(self.events.len().saturating_sub(self.members.in_flight()));
        if self.options.ordered_by_key {
            return all;
        }
        let ahead = (self.batch() * 2).saturating_add(self.members.places());
        all.min(ahead.saturating_sub(self.queue.len()))
    }

    fn batch(&self) -> usize {
        self.options.batch.max(1) as usize
    }

    /// What is to be done now. It does so much at a time; whoever calls it looks at [`Group::next`] afterwards.
    pub fn step(&mut self, now: Duration) -> Vec<Effect> {
        self.clock(now);
        self.ring();
        let mut effects = Vec::new();
        for _ in 0..self.batch() {
            let Some(seq) = self.dying.pop_front() else { break };
            if let Some(Event { place: Place::Dead, .. }) = self.events.get(&seq) {
                effects.push(Effect::Dead { seq, attempts: self.progress.saved().failures(seq).to_vec() });
            }
        }
        for _ in 0..self.batch().saturating_mul(self.members.in_turn()) {
            let Some(seq) = self.queue.first() else { break };
            let Some(event) = self.events.get_mut(&seq) else {
                self.queue.pop();
                continue;
            };
            let Some(member) = self.members.give(seq, event.bytes) else { break };
            self.queue.pop();
            if let Place::Waiting { late: Some(other) } = event.place {
                self.members.not_late(other, seq);
            }
            let until = self.now.saturating_add(self.options.ack_timeout);
            event.place = Place::Held { member, until };
            self.timers.set(until, seq);
            effects.push(Effect::Deliver { member, seq, attempt: event.failed.saturating_add(1) });
        }
        effects
    }

    /// What is due: deadlines and ends of delays.
    fn ring(&mut self) {
        while let Some(seq) = self.timers.due(self.now) {
            let Some(event) = self.events.get_mut(&seq) else { continue };
            match event.place {
                Place::Held { member, .. } => {
                    self.members.release(member, seq, event.bytes);
                    self.fail(seq, Cause::Timeout, "", Duration::ZERO, Some(member));
                }
                Place::Delayed { .. } => {
                    event.place = Place::Waiting { late: None };
                    self.delayed = self.delayed.saturating_sub(1);
                    self.queue.again(seq);
                }
                Place::Waiting { .. } | Place::Behind | Place::Dead => {}
            }
        }
    }

    /// When [`Group::step`] has something to do without another input: at once when that is past.
    pub fn next(&self) -> Option<Duration> {
        let now = !self.dying.is_empty() || (!self.queue.is_empty() && self.members.have_room());
        if now { Some(Duration::ZERO) } else { self.timers.next() }
    }

    /// The dead letter of `seq` is durable: it is done.
    pub fn buried(&mut self, seq: u64) {
        if let Some(Event { place: Place::Dead, .. }) = self.events.get(&seq) {
            self.finish(seq);
        }
    }

    /// Somebody moves the cursor: everything through it is done, all else is to be offered again, and nothing was
    /// ever delivered.
    pub fn seek(&mut self, cursor: u64) {
        self.members.release_all();
        self.events.clear();
        self.queue = Queue::default();
        self.timers = Timers::default();
        self.dying.clear();
        (self.dead, self.delayed) = (0, 0);
        self.looked = cursor;
        self.progress.reset(cursor);
    }

    /// Everything before `first` is gone. What members hold of it is done, whatever becomes of it.
    pub fn expire(&mut self, first: u64) -> Expired {
        let last = first.saturating_sub(1);
        if last <= self.progress.saved().cursor() {
            return Expired::default();
        }
        let mut expired = Expired { undelivered: 0, unseen: last.saturating_sub(self.looked) };
        let mut owed = expired.unseen > 0;
        while let Some((&seq, _)) = self.events.first_key_value()
            && seq <= last
        {
            if let Some(event) = self.detach(seq) {
                expired.undelivered += u64::from(!matches!(event.place, Place::Held { .. } | Place::Dead));
                owed = true;
            }
        }
        self.queue.expire(first);
        self.looked = self.looked.max(last);
        self.advance(owed);
        expired
    }

    /// What is to be written since the last call, as much as goes into one note: call it until there is no more. A
    /// cursor that only passed events which are not the group's is not worth a note: [`Group::take_cursor`].
    pub fn take_changes(&mut self) -> Option<Change> {
        self.progress.take(false)
    }

    /// Whether [`Group::take_changes`] has something.
    pub fn has_changes(&self) -> bool {
        self.progress.is_changed()
    }

    /// The same, and the cursor wherever it is.
    pub fn take_cursor(&mut self) -> Option<Change> {
        self.progress.take(true)
    }

    /// How far the cursor came since it was written, in seqs.
    pub fn unwritten_cursor(&self) -> u64 {
        self.progress.unwritten_cursor()
    }

    /// What outlives the broker, written or not.
    pub fn saved(&self) -> &Saved {
        self.progress.saved()
    }

    /// The group in figures.
    pub fn counts(&self) -> Counts {
        let (in_flight, waiting) = (self.members.in_flight(), self.queue.len());
        let elsewhere = in_flight + waiting + self.delayed + self.dead;
        Counts {
            members: self.members.len(),
            in_flight,
            waiting,
            behind: self.events.len().saturating_sub(elsewhere),
            delayed: self.delayed,
            dead: self.dead,
            cursor: self.progress.saved().cursor(),
            looked: self.looked,
            done_ranges: self.progress.saved().done().len(),
        }
    }

    /// Why nothing more is delivered, whether there is more or not; none when nothing is in the way.
    pub fn stalled(&self) -> Option<Stall> {
        if self.members.is_empty() {
            return Some(Stall::NoMembers);
        }
        if !self.members.have_room() {
            return Some(Stall::InFlightFull);
        }
        (self.queue.is_empty() && self.room() == 0).then_some(Stall::WaitingFull)
    }

    /// Time does not go back.
    fn clock(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// A delivery of `seq`, which no timer and no member has any more, was in vain.
    fn fail(&mut self, seq: u64, cause: Cause, reason: &str, delay: Duration, late: Option<MemberId>) {
        let Some(event) = self.events.get_mut(&seq) else { return };
        event.failed = self.progress.fail(seq, cause, reason);
        if cause == Cause::Term || event.failed >= self.options.max_attempts.max(1) {
            event.place = Place::Dead;
            self.dead += 1;
            self.dying.push_back(seq);
        } else if delay.is_zero() {
            event.place = Place::Waiting { late };
            self.queue.again(seq);
            if let Some(member) = late {
                self.members.late(member, seq);
            }
        } else {
            let until = self.now.saturating_add(delay);
            event.place = Place::Delayed { until };
            self.timers.set(until, seq);
            self.delayed += 1;
        }
    }

    /// `seq` is done.
    fn finish(&mut self, seq: u64) {
        if self.detach(seq).is_none() {
            return;
        }
        let before = self.events.range(..seq).next_back();
        let Some((before, _)) = before else { return self.advance(true) };
        let after = self.events.range(seq..).next();
        let last = after.map_or(self.looked, |(after, _)| after.saturating_sub(1));
        self.progress.finish(before.saturating_add(1), last);
    }

    /// Takes `seq` out of wherever it is.
    fn detach(&mut self, seq: u64) -> Option<Event> {
        let event = self.events.remove(&seq)?;
        match event.place {
            Place::Held { member, until } => {
                self.timers.clear(until, seq);
                self.members.release(member, seq, event.bytes);
            }
            Place::Waiting { late } => {
                self.queue.not_again(seq);
                if let Some(member) = late {
                    self.members.not_late(member, seq);
                }
            }
            Place::Delayed { until } => {
                self.timers.clear(until, seq);
                self.delayed = self.delayed.saturating_sub(1);
            }
            Place::Dead => self.dead = self.dead.saturating_sub(1),
            Place::Behind => {}
        }
        if let Some(key) = event.key
            && let Some(next) = self.queue.left(seq, key)
            && let Some(behind) = self.events.get_mut(&next)
            && let Place::Behind = behind.place
        {
            behind.place = Place::Waiting { late: None };
            self.queue.again(next);
        }
        Some(event)
    }

    /// The cursor goes to the first event that is not done; `owed` when that is to be written soon.
    fn advance(&mut self, owed: bool) {
        let first = self.events.first_key_value();
        let done = first.map_or(self.looked, |(first, _)| first.saturating_sub(1));
        self.progress.advance(done, owed);
        self.looked = self.looked.max(self.progress.saved().cursor());
    }
}
