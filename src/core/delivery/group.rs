//! A consumer group: who is given which event, what comes of it, and how far the group has come.
//!
//! ```text
//! offer ──▶ waiting ──step──▶ held ──ack─────────────────────────────────▶ done
//!              ▲               │ timeout, its member goes: an attempt, if    ▲
//!              ├───────────────┤ the member had begun it                     │
//!              ├──── delayed ◀─┤ nack                                        │
//!              └───────────────┴─ the last attempt, term ─▶ dead ──buried────┘
//! ```
//!
//! Always holds: an event is held by one member at most; it is dead when members began it [`Options::max_attempts`] times
//! in vain, and what was only in a member's buffer costs no attempt; the cursor passes no event that is not done; of one
//! key only the oldest is under way, where the group is ordered by key. What is held is bounded by what members take, what
//! waits by [`Group::room`]. Every input costs a logarithm of that. Pure: `now` is monotonic, since some start; effects are
//! returned. `group/answers.rs` is what members say, `group/outcome.rs` what comes of it, `group/members.rs` whose turn it
//! is, `group/deliveries.rs` what a member has begun, `group/queue.rs` what is next, `redelivery.rs` when it goes out
//! again, `group/progress.rs` what is written. Owner: the task of the group.

pub mod answers;
mod deliveries;
pub mod figures;
pub mod members;
mod outcome;
pub mod progress;
mod queue;
pub mod ranges;

use super::redelivery::Timers;
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
    /// An event is dead after so many attempts in vain; 0 is as good as 1.
    pub max_attempts: u32,
    /// A delivery is over when nothing was heard of it for so long.
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

#[derive(Debug)]
struct Event {
    key: Option<Key>,
    bytes: usize,
    /// Deliveries in vain.
    failed: u32,
    /// Its member said that it began it.
    is_begun: bool,
    /// Which of its member's deliveries it is.
    number: u64,
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
    /// The time is not over before `until`; its member may have restarted it since.
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
    /// The wall clock when it was restored, which is the beginning of its time.
    restored_ms: u64,
}

impl Group {
    /// A new one: everything through `cursor` is done.
    pub fn new(options: Options, cursor: u64) -> Self {
        let mut saved = Progress::default();
        saved.reset(cursor);
        Group::with(options, saved, 0)
    }

    /// One that was there before: what was in flight is to be offered again, with all else behind the cursor. Delays go
    /// on: its time begins at 0, when the wall clock is at `wall_ms`.
    pub fn restore(options: Options, saved: Saved, wall_ms: u64) -> Self {
        Group::with(options, Progress::new(saved), wall_ms)
    }

    fn with(options: Options, progress: Progress, restored_ms: u64) -> Self {
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
            restored_ms,
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

    /// A member that takes nothing out of its queue is given nothing more …
    pub fn pause(&mut self, member: MemberId) {
        self.members.pause(member);
    }

    /// … until it does.
    pub fn go_on(&mut self, member: MemberId) {
        self.members.go_on(member);
    }

    /// The member, which joined, says which events it begins: the others are in its buffer, and cost no attempt.
    pub fn tells(&mut self, member: MemberId) {
        self.members.tells(member);
    }

    /// A member goes; what it held waits for another at once. What it had begun is a delivery in vain.
    pub fn leave(&mut self, member: MemberId, now: Duration) {
        self.clock(now);
        let Some((held, begun)) = self.members.leave(member) else { return };
        for seq in held {
            if let Some(event) = self.events.get(&seq)
                && let Place::Held { until, .. } = event.place
            {
                let is_begun = event.is_begun || Some(event.number) == begun;
                self.timers.clear(until, seq);
                self.let_wait(seq, member, is_begun.then_some(Cause::Gone));
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
        } else if !self.queue.is_first(seq, key) {
            Place::Behind
        } else if let Some(until) = self.restored_delay(seq) {
            self.delay(seq, until);
            Place::Delayed { until }
        } else {
            self.queue.fresh(seq);
            Place::Waiting { late: None }
        };
        let first = self.events.is_empty();
        self.events.insert(seq, Event { key, bytes, failed, is_begun: false, number: 0, place });
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
            let Some((member, number)) = self.members.give(seq, event.bytes) else { break };
            self.queue.pop();
            if let Place::Waiting { late: Some(other) } = event.place {
                self.members.not_late(other, seq);
            }
            let until = self.now.saturating_add(self.options.ack_timeout);
            (event.number, event.is_begun) = (number, false);
            event.place = Place::Held { member, until };
            self.timers.set(until, seq);
            effects.push(Effect::Deliver { member, seq, attempt: event.failed.saturating_add(1) });
        }
        effects
    }

    /// What is due: deadlines and ends of delays.
    fn ring(&mut self) {
        let mut over = Vec::new();
        while let Some(seq) = self.timers.due(self.now) {
            let Some(event) = self.events.get_mut(&seq) else { continue };
            match event.place {
                Place::Held { member, .. } => {
                    let restarted = self.members.restarted(member, event.number);
                    let until = restarted.map(|since| since.saturating_add(self.options.ack_timeout));
                    if let Some(until) = until.filter(|until| *until > self.now) {
                        event.place = Place::Held { member, until };
                        self.timers.set(until, seq);
                        continue;
                    }
                    // Known before anything is released: behind the oldest, none becomes the oldest by that.
                    let is_oldest = self.members.has_begun(member, event.number);
                    over.push((seq, member, is_oldest));
                }
                Place::Delayed { .. } => {
                    event.place = Place::Waiting { late: None };
                    self.delayed = self.delayed.saturating_sub(1);
                    self.queue.again(seq);
                }
                Place::Waiting { .. } | Place::Behind | Place::Dead => {}
            }
        }
        for (seq, member, is_oldest) in over {
            let Some(event) = self.events.get(&seq) else { continue };
            let is_begun = event.is_begun || is_oldest;
            self.members.release(member, (seq, event.number), event.bytes);
            if is_oldest {
                self.members.spare(member);
            }
            self.let_wait(seq, member, is_begun.then_some(Cause::Timeout));
        }
    }

    /// When [`Group::step`] has something to do without another input: at once when that is past.
    pub fn next(&self) -> Option<Duration> {
        let now = !self.dying.is_empty() || (!self.queue.is_empty() && self.members.have_room());
        if now { Some(Duration::ZERO) } else { self.timers.next() }
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

    /// Nothing is under way: what was room for that is given back.
    pub fn shrink(&mut self) {
        if self.events.is_empty() {
            self.queue = Queue::default();
            self.dying = VecDeque::new();
        }
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

    /// Time does not go back.
    fn clock(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::redelivery::Delay;
    use super::answers::{Answered, Fate, Refused, Which};
    use super::*;
    use crate::core::limits::GROUP_FAILURES;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    pub(super) const MS: fn(u64) -> Duration = Duration::from_millis;

    /// What the wall clock says.
    pub(super) const WALL: u64 = 1_767_225_600_000;

    pub(super) fn group(options: Options, members: &[(MemberId, u32)], events: u64) -> Group {
        let mut group = Group::new(options, 0);
        for (member, max) in members {
            group.join(*member, *max, usize::MAX);
        }
        for seq in 1..=events {
            assert!(group.offer(seq, None, 10));
        }
        group
    }

    pub(super) fn delivered(effects: &[Effect]) -> Vec<(MemberId, u64, u32)> {
        let of = |effect: &Effect| match effect {
            Effect::Deliver { member, seq, attempt } => Some((*member, *seq, *attempt)),
            Effect::Dead { .. } => None,
        };
        effects.iter().filter_map(of).collect()
    }

    pub(super) fn ack(group: &mut Group, member: MemberId, seq: u64) -> Result<(), Refused> {
        let answered = group.ack(member, Which::Seqs(vec![seq]), Duration::ZERO);
        answered.refused.first().map_or(Ok(()), |(_, refused)| Err(*refused))
    }

    #[test]
    fn members_share_and_the_cursor_waits_for_the_oldest() {
        let mut group = group(Options::default(), &[(1, 10), (2, 10)], 5);
        let effects = group.step(MS(0));
        assert_eq!(delivered(&effects), [(1, 1, 1), (2, 2, 1), (1, 3, 1), (2, 4, 1), (1, 5, 1)]);
        group.pass(9);
        assert_eq!((ack(&mut group, 2, 2), group.counts().cursor), (Ok(()), 0));
        assert_eq!((ack(&mut group, 1, 5), group.counts().cursor), (Ok(()), 0));
        assert_eq!(group.saved().done().iter().collect::<Vec<_>>(), [(2, 2), (5, 9)]);
        assert_eq!((ack(&mut group, 1, 1), group.counts().cursor), (Ok(()), 2));
        let answered = group.ack(1, Which::Through(4), MS(0));
        assert_eq!(answered, Answered { taken: vec![3], refused: vec![] });
        assert_eq!((ack(&mut group, 2, 4), group.counts().cursor), (Ok(()), 9));
        let counts = group.counts();
        assert_eq!((counts.in_flight, counts.waiting, counts.done_ranges), (0, 0, 0));
    }

    #[test]
    fn of_a_key_the_next_goes_out_when_the_one_before_is_done() {
        let options = Options { ordered_by_key: true, ..Options::default() };
        let mut group = Group::new(options, 0);
        group.join(1, 9, usize::MAX);
        group.join(2, 9, usize::MAX);
        for (seq, key) in [(1, Some(7)), (2, Some(7)), (3, None), (4, Some(8)), (5, Some(7)), (6, None)] {
            group.offer(seq, key, 10);
        }
        let seqs = |effects: &[Effect]| -> Vec<u64> { delivered(effects).iter().map(|d| d.1).collect() };
        let none = Vec::<u64>::new();
        assert_eq!(seqs(&group.step(MS(0))), [1, 3, 4, 6]);
        assert_eq!(group.counts().behind, 2);
        assert!(group.nack(1, 1, "", &Delay::One(100), (MS(0), WALL)).is_ok());
        assert_eq!(seqs(&group.step(MS(99))), none);
        let first = delivered(&group.step(MS(100)))[0];
        assert_eq!((first.1, first.2), (1, 2));
        assert_eq!(group.term(first.0, 1, "", MS(100)), Ok(()));
        assert_eq!(seqs(&group.step(MS(100))), none, "its dead letter is not durable");
        group.buried(1);
        assert_eq!(seqs(&group.step(MS(100))), [2]);
    }

    #[test]
    fn what_is_of_no_use_any_more_is_done() {
        let mut group = group(Options::default(), &[(1, 2)], 6);
        group.step(MS(0));
        assert_eq!(group.waiting().collect::<Vec<_>>(), [3, 4, 5, 6]);
        [4, 5].into_iter().for_each(|seq| group.lapse(seq));
        assert_eq!((group.counts().waiting, group.counts().cursor), (2, 0));
        assert_eq!(group.ack(1, Which::Seqs(vec![1, 2]), MS(0)).taken, [1, 2]);
        assert_eq!(delivered(&group.step(MS(0))), [(1, 3, 1), (1, 6, 1)]);
        group.lapse(3);
        assert_eq!((group.counts().cursor, group.counts().in_flight), (5, 1));
        assert_eq!(ack(&mut group, 1, 3), Err(Refused::AlreadyDone));
    }

    #[test]
    fn whatever_was_saved_is_restored_without_harm() {
        let json = format!(
            r#"{{"cursor":5,"done":[[9,7],[2,3],[6,{max}],[1,{max}]],"failed":[[{max},[]],[3,[{{"attempt":0,"cause":"gone"}}]]]}}"#,
            max = u64::MAX
        );
        let mut group = Group::restore(Options::default(), serde_json::from_str(&json).unwrap(), WALL);
        assert_eq!(group.counts().cursor, u64::MAX);
        assert!(!group.offer(u64::MAX, None, 1));
        group.pass(u64::MAX);
        group.seek(u64::MAX - 1);
        group.join(1, u32::MAX, usize::MAX);
        group.join(2, u32::MAX, usize::MAX);
        assert!(group.offer(u64::MAX, None, usize::MAX));
        assert_eq!(group.step(Duration::MAX).len(), 1);
        assert_eq!(group.next(), Some(Duration::MAX));
        let answered = group.ack(1, Which::Through(u64::MAX), Duration::ZERO);
        assert_eq!((answered.taken, group.counts().cursor), (vec![u64::MAX], u64::MAX));
    }

    /// What may happen; numbers are picked among what there is.
    #[derive(Clone, Debug)]
    enum Input {
        Feed(usize, bool),
        Step,
        Time(u64),
        Join(MemberId, u32, usize),
        Leave(MemberId),
        Ack(usize),
        AckAny(MemberId, u64),
        AckThrough(MemberId, u64),
        Nack(usize, u64),
        Term(usize),
        /// And whether it says that it begins.
        InProgress(usize, bool),
        Bury,
        Write(bool),
        /// The wall clock goes elsewhere meanwhile, so many milliseconds.
        Crash(i64),
        Seek(u64),
        Lapse(u64),
    }

    fn input() -> impl Strategy<Value = Input> {
        let seq = 0..=STREAM + 2;
        prop_oneof![
            8 => (1usize..30, prop::bool::weighted(0.1)).prop_map(|(n, force)| Input::Feed(n, force)),
            12 => Just(Input::Step),
            6 => (0u64..400).prop_map(Input::Time),
            3 => (1u64..=3, 1u32..6, prop_oneof![Just(usize::MAX), 0usize..200]).prop_map(|(m, n, b)| Input::Join(m, n, b)),
            1 => (1u64..=3).prop_map(Input::Leave),
            12 => (0usize..12).prop_map(Input::Ack),
            1 => (1u64..=4, seq.clone()).prop_map(|(m, s)| Input::AckAny(m, s)),
            2 => (1u64..=3, seq.clone()).prop_map(|(m, s)| Input::AckThrough(m, s)),
            4 => (0usize..12, 0u64..300).prop_map(|(i, ms)| Input::Nack(i, ms)),
            1 => (0usize..12).prop_map(Input::Term),
            4 => (0usize..12, any::<bool>()).prop_map(|(i, begins)| Input::InProgress(i, begins)),
            3 => Just(Input::Bury),
            3 => any::<bool>().prop_map(Input::Write),
            1 => prop_oneof![Just(0), -500i64..500, Just(i64::MIN), Just(1 << 40)].prop_map(Input::Crash),
            1 => prop_oneof![8 => Just(None), 1 => seq.clone().prop_map(Some)]
                .prop_map(|s| s.map_or(Input::Step, Input::Seek)),
            1 => prop_oneof![4 => Just(None), 1 => (0..STREAM / 2).prop_map(Some)]
                .prop_map(|s| s.map_or(Input::Step, Input::Lapse)),
        ]
    }

    const STREAM: u64 = 120;

    /// An event of the stream: of the group or not, its key, its size.
    #[derive(Clone, Copy, Debug)]
    struct Given {
        wanted: bool,
        key: Option<Key>,
        bytes: usize,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum State {
        Ahead,
        Waiting { again: bool, late: Option<MemberId> },
        Held { member: MemberId, until: Duration, number: u64, is_begun: bool },
        Delayed { until: Duration },
        Dead { told: bool },
        Done,
    }

    /// A member: what it takes, how many deliveries it had, and which of them are behind one that timed out.
    #[derive(Clone, Copy, Debug)]
    struct Part {
        most: usize,
        bytes: usize,
        delivered: u64,
        spared: u64,
    }

    /// This one says what it begins.
    const TELLING: MemberId = 3;

    type Written = (Vec<bool>, Vec<u32>, BTreeSet<u64>, Vec<Option<(u64, u64)>>);

    /// The group as it is thought of: one state for each event, looked through for every question.
    struct Model {
        options: Options,
        stream: Vec<Given>,
        state: Vec<State>,
        failed: Vec<u32>,
        given_up: BTreeSet<u64>,
        /// When each is to come again by the wall clock, and after how long.
        due: Vec<Option<(u64, u64)>>,
        /// Which were done, how often each failed, what was given up, and what is due, when it was last written.
        written: Written,
        members: BTreeMap<MemberId, Part>,
        /// What the group was told of, and the stream was read.
        looked: u64,
        fed: u64,
        now: Duration,
        /// The wall clock, and what it was when the group was restored.
        wall: u64,
        restored: u64,
        /// Deliveries, oldest first.
        history: Vec<(MemberId, u64)>,
    }

    impl Model {
        fn at(&mut self, seq: u64) -> &mut State {
            &mut self.state[seq as usize]
        }

        fn seqs(&self, of: impl Fn(State) -> bool) -> Vec<u64> {
            let state = |seq: &u64| self.stream[*seq as usize].wanted && of(self.state[*seq as usize]);
            (1..=STREAM).filter(state).collect()
        }

        fn held_by(&self, member: MemberId) -> Vec<u64> {
            self.seqs(|state| matches!(state, State::Held { member: m, .. } if m == member))
        }

        fn number(&self, seq: u64) -> Option<u64> {
            match self.state[seq as usize] {
                State::Held { number, .. } => Some(number),
                _ => None,
            }
        }

        /// Whether a delivery is an attempt: its member said so, or it is the oldest of those that it has.
        fn has_begun(&self, seq: u64) -> bool {
            self.is_oldest(seq) || matches!(self.state[seq as usize], State::Held { is_begun: true, .. })
        }

        fn is_oldest(&self, seq: u64) -> bool {
            let State::Held { member, number, .. } = self.state[seq as usize] else { return false };
            let oldest = self.held_by(member).into_iter().filter_map(|seq| self.number(seq)).min();
            member != TELLING && oldest == Some(number) && number >= self.members[&member].spared
        }

        /// The member cannot have begun those of its deliveries before now that begin with this one.
        fn restart(&mut self, member: MemberId, from: u64) {
            if member == TELLING {
                return;
            }
            let anew = self.now + self.options.ack_timeout;
            self.members.get_mut(&member).into_iter().for_each(|part| part.spared = 0);
            for seq in self.held_by(member) {
                if let State::Held { until, number, .. } = self.at(seq)
                    && *number >= from
                {
                    *until = anew;
                }
            }
        }

        /// It is with nobody any more, and was in vain or not.
        fn let_wait(&mut self, seq: u64, member: MemberId, is_begun: bool) {
            match is_begun {
                true => self.fail(seq, Duration::ZERO, Some(member)),
                false => *self.at(seq) = State::Waiting { again: true, late: Some(member) },
            }
        }

        fn blocked(&self, seq: u64) -> bool {
            let key = self.stream[seq as usize].key;
            let same = |other: &u64| self.stream[*other as usize].key == key;
            self.options.ordered_by_key
                && key.is_some()
                && self.seqs(|state| state != State::Done).iter().take_while(|o| **o < seq).any(same)
        }

        /// What goes out next.
        fn next(&self) -> Option<u64> {
            let waiting = self.seqs(|state| matches!(state, State::Waiting { .. }));
            let again = |seq: &u64| matches!(self.state[*seq as usize], State::Waiting { again: true, .. });
            waiting.into_iter().filter(|seq| !self.blocked(*seq)).min_by_key(|seq| (!again(seq), *seq))
        }

        fn fail(&mut self, seq: u64, delay: Duration, late: Option<MemberId>) {
            self.failed[seq as usize] += 1;
            let is_last = self.failed[seq as usize] >= self.options.max_attempts;
            let delay_ms = delay.as_millis() as u64;
            let due = (!is_last && delay_ms > 0).then_some((self.wall + delay_ms, delay_ms));
            self.due[seq as usize] = due;
            *self.at(seq) = if self.failed[seq as usize] >= self.options.max_attempts {
                State::Dead { told: false }
            } else if delay.is_zero() {
                State::Waiting { again: true, late }
            } else {
                State::Delayed { until: self.now + delay }
            };
        }

        fn judge(&self, member: MemberId, seq: u64) -> Result<bool, Refused> {
            let given = (1..=STREAM).contains(&seq).then(|| self.stream[seq as usize]);
            let state = match given {
                Some(given) if given.wanted => self.state[seq as usize],
                _ if seq <= self.looked => State::Done,
                _ => State::Ahead,
            };
            match state {
                State::Done => Err(Refused::AlreadyDone),
                State::Ahead => Err(Refused::Unknown),
                State::Held { member: m, .. } if m == member => Ok(true),
                State::Waiting { late: Some(m), .. } if m == member => Ok(false),
                State::Dead { .. } => Err(Refused::GivenUp),
                State::Waiting { late: None, .. } if self.failed[seq as usize] == 0 => {
                    Err(Refused::NotDelivered)
                }
                _ => Err(Refused::NotHeld),
            }
        }

        /// A delivery of late: the last, the one before …
        fn pick(&self, back: usize) -> (MemberId, u64) {
            let at = self.history.len().checked_sub(back + 1);
            at.map_or((1, 1), |at| self.history[at])
        }

        fn step(&mut self, group: &mut Group) {
            let all = self.seqs(|_| true);
            let begun: BTreeSet<u64> = all.iter().copied().filter(|seq| self.has_begun(*seq)).collect();
            let oldest: BTreeSet<u64> = all.iter().copied().filter(|seq| self.is_oldest(*seq)).collect();
            for seq in self.seqs(|_| true) {
                match self.state[seq as usize] {
                    State::Held { member, until, .. } if until <= self.now => {
                        if let Some(part) = self.members.get_mut(&member).filter(|_| oldest.contains(&seq)) {
                            part.spared = part.delivered;
                        }
                        self.let_wait(seq, member, begun.contains(&seq));
                    }
                    State::Delayed { until } if until <= self.now => {
                        *self.at(seq) = State::Waiting { again: true, late: None };
                    }
                    _ => {}
                }
            }
            for effect in group.step(self.now) {
                match effect {
                    Effect::Dead { seq, attempts } => {
                        assert_eq!(*self.at(seq), State::Dead { told: false }, "{seq}");
                        *self.at(seq) = State::Dead { told: true };
                        let failed = self.failed[seq as usize];
                        assert_eq!(attempts.last().unwrap().attempt, failed);
                        assert_eq!(attempts.len(), GROUP_FAILURES.min(failed as usize));
                        assert_eq!(
                            attempts.last().unwrap().cause == Cause::Term,
                            self.given_up.contains(&seq)
                        );
                    }
                    Effect::Deliver { member, seq, attempt } => {
                        assert_eq!(Some(seq), self.next());
                        let held = self.held_by(member);
                        let Part { most, bytes: most_bytes, delivered, .. } = self.members[&member];
                        let bytes: usize = held.iter().map(|seq| self.stream[*seq as usize].bytes).sum();
                        let fits = held.len() < most && bytes + self.stream[seq as usize].bytes <= most_bytes;
                        assert!(held.is_empty() || fits, "{member} has no room for {seq}");
                        assert_eq!(attempt, self.failed[seq as usize] + 1);
                        assert!(attempt <= self.options.max_attempts);
                        let until = self.now + self.options.ack_timeout;
                        *self.at(seq) = State::Held { member, until, number: delivered, is_begun: false };
                        self.members.get_mut(&member).unwrap().delivered += 1;
                        self.history.push((member, seq));
                    }
                }
            }
            if group.next() != Some(Duration::ZERO) {
                assert!(self.seqs(|state| state == State::Dead { told: false }).is_empty());
                for (member, Part { most, bytes, .. }) in &self.members {
                    let held = self.held_by(*member).len();
                    let full = held >= *most || (held > 0 && *bytes < usize::MAX);
                    assert!(full || self.next().is_none(), "{member} could take something");
                }
                let until = |seq: &u64| match self.state[*seq as usize] {
                    State::Held { until, .. } | State::Delayed { until } => Some(until),
                    _ => None,
                };
                let first = self.seqs(|_| true).iter().filter_map(until).min();
                // A time that was restarted is known when it would have been over.
                assert!(group.next() <= first && group.next().is_some() == first.is_some());
            }
        }

        fn feed(&mut self, group: &mut Group, most: usize, force: bool) {
            for _ in 0..most {
                let seq = self.fed + 1;
                if seq > STREAM || (group.room() == 0 && !force) {
                    return;
                }
                self.fed = seq;
                let Given { wanted, key, bytes } = self.stream[seq as usize];
                if !wanted {
                    // Not every one is said by itself.
                    if !seq.is_multiple_of(3) || seq == STREAM {
                        group.pass(seq);
                        self.looked = seq;
                    }
                    continue;
                }
                self.looked = seq;
                let is_new = *self.at(seq) != State::Done;
                assert_eq!(group.offer(seq, key, bytes), is_new, "{seq}");
                assert!(!group.offer(seq, key, bytes));
                if is_new {
                    let dead = self.failed[seq as usize] >= self.options.max_attempts
                        || self.given_up.contains(&seq);
                    let again = self.blocked(seq);
                    *self.at(seq) = match (dead, self.rest(seq)) {
                        (true, _) => State::Dead { told: false },
                        (_, Some(until)) if !again => State::Delayed { until },
                        _ => State::Waiting { again, late: None },
                    };
                }
            }
        }

        /// When the delay ends that an event had before the crash.
        fn rest(&self, seq: u64) -> Option<Duration> {
            let (at, delay) = self.due[seq as usize]?;
            Some(MS(at.saturating_sub(self.restored).min(delay)))
        }

        fn done(&mut self, seq: u64) {
            assert_ne!(*self.at(seq), State::Done);
            *self.at(seq) = State::Done;
            // The next of its key goes on with its delay.
            for next in self.seqs(|state| matches!(state, State::Waiting { again: true, .. })) {
                let is_next = next > seq && self.stream[next as usize].key == self.stream[seq as usize].key;
                if is_next
                    && self.failed[next as usize] > 0
                    && !self.blocked(next)
                    && self.options.ordered_by_key
                    && self.stream[seq as usize].key.is_some()
                    && let Some(until) = self.rest(next)
                {
                    *self.at(next) = State::Delayed { until };
                }
            }
            self.failed[seq as usize] = 0;
            self.given_up.remove(&seq);
        }

        fn ack(&mut self, group: &mut Group, member: MemberId, seqs: &[u64]) {
            let answered = group.ack(member, Which::Seqs(seqs.to_vec()), self.now);
            self.answered(member, seqs, answered);
        }

        fn answered(&mut self, member: MemberId, seqs: &[u64], answered: Answered) {
            let mut expected = Answered::default();
            for &seq in seqs {
                match self.judge(member, seq) {
                    Ok(_) => {
                        let number = self.number(seq);
                        self.restart(member, number.map_or(0, |number| number + 1));
                        self.done(seq);
                        expected.taken.push(seq);
                    }
                    Err(refused) => expected.refused.push((seq, refused)),
                }
            }
            assert_eq!(answered, expected);
        }

        fn write(&mut self, group: &mut Group, disk: &mut Saved, cursor: bool) {
            let mut write = |change: Option<Change>| {
                let Some(change) = change else { return false };
                assert!(change.done.iter().all(|(first, _)| *first > change.cursor + 1), "{change:?}");
                let note = serde_json::to_string(&change).unwrap();
                disk.apply(serde_json::from_str(&note).unwrap());
                true
            };
            while write(if cursor { group.take_cursor() } else { group.take_changes() }) {}
            if cursor {
                assert_eq!((&*disk, group.unwritten_cursor()), (group.saved(), 0));
            }
            let unwritten = disk.cursor() + 1..=group.saved().cursor();
            assert!(
                unwritten.clone().all(|seq| !self.stream[seq as usize].wanted || disk.done().contains(seq))
            );
            let done = self.state.iter().map(|state| *state == State::Done).collect();
            self.written = (done, self.failed.clone(), self.given_up.clone(), self.due.clone());
        }

        fn run(&mut self, group: &mut Group, disk: &mut Saved, input: Input) {
            match input {
                Input::Feed(most, force) => self.feed(group, most, force),
                Input::Step => self.step(group),
                Input::Time(ms) => {
                    self.now += MS(ms);
                    self.wall = self.wall.saturating_add(ms);
                }
                Input::Join(member, most, bytes) => {
                    group.join(member, most, bytes);
                    if member == TELLING {
                        group.tells(member);
                    }
                    let part = Part { most: 0, bytes: 0, delivered: 0, spared: 0 };
                    let part = self.members.entry(member).or_insert(part);
                    (part.most, part.bytes) = (most as usize, bytes);
                }
                Input::Leave(member) => {
                    group.leave(member, self.now);
                    let held = self.held_by(member).into_iter();
                    for (seq, is_begun) in held.map(|seq| (seq, self.has_begun(seq))).collect::<Vec<_>>() {
                        self.let_wait(seq, member, is_begun);
                    }
                    self.members.remove(&member);
                }
                Input::Ack(back) => {
                    let (member, seq) = self.pick(back);
                    self.ack(group, member, &[seq, seq]);
                }
                // What was written as done of events that are not the group's, a crash later, is no matter.
                Input::AckAny(_, seq) | Input::AckThrough(_, seq)
                    if seq > self.looked && group.saved().done().contains(seq) => {}
                Input::AckAny(member, seq) => self.ack(group, member, &[seq]),
                Input::AckThrough(member, through) => {
                    let held = self.held_by(member);
                    let late = self
                        .seqs(|state| matches!(state, State::Waiting { late: Some(m), .. } if m == member));
                    let late = late.into_iter().filter(|_| self.members.contains_key(&member));
                    let all = held.into_iter().chain(late).filter(|seq| *seq <= through);
                    let mut all: BTreeSet<u64> = all.collect();
                    let mut answered = group.ack(member, Which::Through(through), self.now);
                    // Whoever left and came back holds nothing, but is late all the same.
                    all.retain(|seq| answered.taken.contains(seq) || self.judge(member, *seq) == Ok(true));
                    answered.taken.sort_unstable();
                    let all = if all.is_empty() { vec![through] } else { all.into_iter().collect() };
                    self.answered(member, &all, answered);
                }
                Input::Nack(back, ms) => {
                    let (member, seq) = self.pick(back);
                    let nacked = group.nack(
                        member,
                        seq,
                        "not\u{7}yet",
                        &Delay::List(vec![ms, 2 * ms]),
                        (self.now, self.wall),
                    );
                    match self.judge(member, seq) {
                        Ok(true) => {
                            let after = MS(if self.failed[seq as usize] == 0 { ms } else { 2 * ms });
                            let number = self.number(seq).unwrap();
                            self.restart(member, number + 1);
                            self.fail(seq, after, None);
                            let dead = matches!(*self.at(seq), State::Dead { .. });
                            assert_eq!(nacked, Ok(if dead { Fate::Dead } else { Fate::Again { after } }));
                        }
                        Ok(false) => assert_eq!(nacked, Err(Refused::NotHeld)),
                        Err(refused) => assert_eq!(nacked, Err(refused)),
                    }
                }
                Input::Term(back) => {
                    let (member, seq) = self.pick(back);
                    let held =
                        self.judge(member, seq).and_then(|held| held.then_some(()).ok_or(Refused::NotHeld));
                    assert_eq!(group.term(member, seq, "", self.now), held);
                    if held.is_ok() {
                        let number = self.number(seq).unwrap();
                        self.restart(member, number + 1);
                        self.fail(seq, Duration::ZERO, None);
                        *self.at(seq) = State::Dead { told: false };
                        self.given_up.insert(seq);
                    }
                }
                Input::InProgress(back, begins) => {
                    let (member, seq) = self.pick(back);
                    let answered = match begins {
                        true => group.begin(member, &[seq], self.now),
                        false => group.in_progress(member, &[seq], self.now),
                    };
                    assert_eq!(answered.taken == [seq], self.judge(member, seq) == Ok(true));
                    if !answered.taken.is_empty() {
                        let number = self.number(seq).unwrap();
                        self.restart(member, number);
                        let anew = self.now + self.options.ack_timeout;
                        if let State::Held { until, is_begun, .. } = self.at(seq) {
                            (*until, *is_begun) = (anew, *is_begun || begins);
                        }
                    }
                }
                Input::Bury => {
                    for seq in self.seqs(|state| state == State::Dead { told: true }) {
                        group.buried(seq);
                        self.done(seq);
                    }
                }
                Input::Write(cursor) => self.write(group, disk, cursor),
                Input::Crash(step) => {
                    self.wall = self.wall.saturating_add_signed(step);
                    (self.restored, self.now) = (self.wall, Duration::ZERO);
                    *group = Group::restore(self.options.clone(), disk.clone(), self.wall);
                    let state = |done: &bool| if *done { State::Done } else { State::Ahead };
                    self.state = self.written.0.iter().map(state).collect();
                    self.failed = self.written.1.clone();
                    self.given_up = self.written.2.clone();
                    self.due = self.written.3.clone();
                    self.members.clear();
                    self.history.clear();
                    self.looked = group.counts().cursor;
                    self.fed = self.looked;
                }
                Input::Seek(cursor) => {
                    let cursor = cursor.min(STREAM);
                    group.seek(cursor);
                    self.state = (0..=STREAM)
                        .map(|seq| if seq <= cursor { State::Done } else { State::Ahead })
                        .collect();
                    self.failed.fill(0);
                    self.due.fill(None);
                    self.given_up.clear();
                    (self.looked, self.fed) = (cursor, cursor);
                    self.members.values_mut().for_each(|part| part.spared = 0);
                }
                Input::Lapse(before) => {
                    let waits = |state| matches!(state, State::Waiting { .. } | State::Delayed { .. });
                    let waiting = self.seqs(waits);
                    assert_eq!(group.waiting().collect::<Vec<_>>(), waiting);
                    for seq in waiting.into_iter().filter(|seq| *seq < before) {
                        group.lapse(seq);
                        self.done(seq);
                    }
                }
            }
            self.check(group);
        }

        fn check(&mut self, group: &Group) {
            let (counts, undone) = (group.counts(), self.seqs(|state| state != State::Done));
            if let Some(first) = undone.first() {
                assert!(counts.cursor < *first, "{} passed {first}", counts.cursor);
            }
            match undone.iter().find(|seq| **seq <= self.looked) {
                Some(first) => assert_eq!(counts.cursor, first - 1),
                None => assert!(counts.cursor >= self.looked),
            }
            self.looked = self.looked.max(counts.cursor);
            self.fed = self.fed.max(self.looked);
            assert_eq!(counts.looked, self.looked);
            assert_eq!(counts.in_flight, self.seqs(|state| matches!(state, State::Held { .. })).len());
            assert_eq!(counts.delayed, self.seqs(|state| matches!(state, State::Delayed { .. })).len());
            assert_eq!(counts.dead, self.seqs(|state| matches!(state, State::Dead { .. })).len());
            let waiting = self.seqs(|state| matches!(state, State::Waiting { .. }));
            let blocked = waiting.iter().filter(|seq| self.blocked(**seq)).count();
            assert_eq!((counts.waiting, counts.behind), (waiting.len() - blocked, blocked));
            assert!(counts.done_ranges <= undone.len() + 1);
            for seq in undone {
                assert!(!group.saved().done().contains(seq));
            }
        }

        /// Members that do what they are for, until nothing is left.
        fn settle(&mut self, group: &mut Group, disk: &mut Saved) {
            self.run(group, disk, Input::Join(9, 7, 300));
            for _ in 0..10 * STREAM {
                self.run(group, disk, Input::Feed(100, false));
                self.run(group, disk, Input::Step);
                for seq in self.held_by(9) {
                    self.ack(group, 9, &[seq]);
                }
                self.run(group, disk, Input::Bury);
                if group.counts().cursor == STREAM {
                    break;
                }
                self.now = self.now.max(group.next().unwrap_or(self.now));
            }
            assert_eq!((group.counts().cursor, self.seqs(|state| state != State::Done)), (STREAM, vec![]));
            self.run(group, disk, Input::Write(true));
            assert_eq!(*disk, Saved::new(STREAM));
        }
    }

    fn given() -> impl Strategy<Value = Given> {
        let key = prop_oneof![1 => Just(None), 3 => (0u64..4).prop_map(Some)];
        (prop::bool::weighted(0.7), key, 1usize..100).prop_map(|(wanted, key, bytes)| Given {
            wanted,
            key,
            bytes,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        #[test]
        fn it_is_what_the_model_is(
            stream in prop::collection::vec(given(), STREAM as usize + 1),
            inputs in prop::collection::vec(input(), 0..300),
            ordered_by_key in any::<bool>(),
            max_attempts in 1u32..8,
            batch in 1u32..12,
        ) {
            let options = Options { max_attempts, ack_timeout: MS(1000), ordered_by_key, batch };
            let events = STREAM as usize + 1;
            let mut model = Model {
                options: options.clone(),
                stream,
                state: (0..events).map(|seq| if seq == 0 { State::Done } else { State::Ahead }).collect(),
                failed: vec![0; events],
                given_up: BTreeSet::new(),
                due: vec![None; events],
                written: (vec![false; events], vec![0; events], BTreeSet::new(), vec![None; events]),
                members: BTreeMap::new(),
                looked: 0,
                fed: 0,
                now: Duration::ZERO,
                wall: WALL,
                restored: 0,
                history: Vec::new(),
            };
            let (mut group, mut disk) = (Group::new(options, 0), Saved::default());
            for input in inputs {
                model.run(&mut group, &mut disk, input);
            }
            model.settle(&mut group, &mut disk);
        }
    }

    /// `cargo nextest run --lib --run-ignored all -E 'test(what_it_costs)' --no-capture`
    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stdout)]
    fn what_it_costs() {
        let run = |name: &str, members: u64, through: bool, stuck: bool, ordered_by_key: bool| {
            let mut group = Group::new(Options { ordered_by_key, ..Options::default() }, 0);
            for member in 1..=members {
                group.join(member, 1000, usize::MAX);
            }
            let (start, events) = (std::time::Instant::now(), 2_000_000u64);
            let (mut seq, mut acked, mut changes) = (0, 0, 0);
            while acked < events {
                for _ in 0..group.room().min(256) {
                    seq += 1;
                    group.offer(seq, Some(seq % 5000), 256);
                }
                let effects = group.step(start.elapsed());
                if through && let Some(Effect::Deliver { member, seq, .. }) = effects.last() {
                    acked += group.ack(*member, Which::Through(*seq), start.elapsed()).taken.len() as u64;
                } else {
                    for (member, seq, _) in delivered(&effects) {
                        if !stuck || seq > 1 {
                            group.ack(member, Which::Seqs(vec![seq]), start.elapsed());
                        }
                        acked += 1;
                    }
                }
                changes += u64::from(group.take_changes().is_some());
            }
            let rate = acked as f64 / start.elapsed().as_secs_f64();
            println!("{name}: {rate:.0} events/s, offered, delivered and acked; {changes} changes");
        };
        run("one member, one ack each", 1, false, false, false);
        run("one member, through", 1, true, false, false);
        run("three members", 3, false, false, false);
        run("one member, the first event stuck", 1, false, true, false);
        run("one member, ordered by 5,000 keys", 1, false, false, true);
        let mut group = Group::new(Options::default(), 0);
        group.join(1, 1000, usize::MAX);
        let (mut seq, mut spent) = (0, Duration::ZERO);
        for _ in 0..2000 {
            while group.counts().in_flight < 1000 {
                for _ in 0..group.room() {
                    seq += 1;
                    group.offer(seq, None, 256);
                }
                group.step(MS(seq / 100));
            }
            let start = std::time::Instant::now();
            for acked in group.counts().cursor + 1..=group.counts().cursor + 1000 {
                group.ack(1, Which::Seqs(vec![acked]), MS(seq / 100));
            }
            spent += start.elapsed();
        }
        println!("acks alone, in order, 1,000 in flight: {:.0}/s", 2_000_000.0 / spent.as_secs_f64());
        println!("a group without members: {} bytes", size_of::<Group>());
    }
}
