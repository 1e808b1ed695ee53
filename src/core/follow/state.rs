//! What a subscription knows beyond its connections: what was seen, what comes next, and whether the journal is still
//! the same one.
//!
//! A subscription that began at the state keeps it:
//!
//! ```text
//!         ack                  `state`             a gap: what is newest of it per key comes, then `state`
//! Whole ───────▶ Rows(T) ────────────▶ Events ◀──────┐
//!   ▲   {"state":0}  │ {"state":N,"through":T}  │ {"seq":N+1,"compacted":true}, each after a lost connection
//!   └────────────────┴──── `state-expired` ─────┘ the next `state` ends the keys that the new state lacks
//! ```
//!
//! Always holds: in a new session nothing is handed out before the last event that was seen came again, with the same
//! id and ts, or is known to be gone; whoever keeps the newest of what is handed out per key has, with each `state`, that
//! of the broker. Owner: `follow.rs`, and the agent's `feed.rs`.

use super::known::Known;
use super::{Begin, News, place};
use crate::core::client::ClientError;
use crate::core::clock::wall_ms;
use crate::core::follow::Room;
use crate::core::latest::compaction::Compaction;
use crate::core::topic::Pattern;
use crate::core::wire::received::{Ack, Gap, Received};
use serde::Deserialize;
use serde_json::{Value, json};
use std::ops::Range;
use std::time::Duration;

/// Between which frames a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) enum Mode {
    Asked,
    Taking,
    Paused,
}

/// How a session ended.
pub(in crate::core) enum Broken {
    Lost { error: ClientError, retry_after: Duration },
    Refused { code: String, reason: String },
    OtherJournal { seq: u64, next: u64 },
}

impl From<ClientError> for Broken {
    fn from(error: ClientError) -> Self {
        Broken::Lost { error, retry_after: Duration::ZERO }
    }
}

/// What tells an event from another one of the same seq.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Seen {
    seq: u64,
    ts: u64,
    #[serde(default)]
    id: String,
}

impl Seen {
    fn of(line: &[u8]) -> Option<Seen> {
        serde_json::from_slice(line).ok()
    }
}

/// What outlives a session.
#[derive(Default)]
pub(in crate::core) struct Following {
    /// The seq to go on with; none before the first ack.
    pub next: Option<u64>,
    /// The session ends.
    pub closed: Option<Broken>,
    /// The broker asked for a sign of life.
    pub is_asked: bool,
    /// The last event that was handed out.
    last: Option<Seen>,
    /// That event has to come first.
    is_checking: bool,
    /// It began at the state.
    keeping: Option<Keeping>,
    /// Lines that came together.
    lines: Vec<u8>,
    /// The last of them that is an event of the journal.
    newest: Option<Range<usize>>,
}

/// Between which frames the state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is to be asked for, as far as it is behind this seq.
    Whole(u64),
    /// Rows of the state of this seq come.
    Rows(u64),
    /// Events come.
    Events,
}

/// What a subscription that keeps the state knows of it.
struct Keeping {
    phase: Phase,
    known: Known,
    /// Which topics have a state; all, if the broker does not say.
    compacted: Option<Compaction>,
    /// It began with all of the state, so that it knows all keys.
    is_whole: bool,
    /// The state that comes is another one than that of the keys that are known.
    is_anew: bool,
    /// Gaps were said up to this seq.
    said: u64,
}

impl Following {
    /// Goes on behind this event; one without an id is only a place.
    #[cfg_attr(not(feature = "agent"), allow(dead_code, reason = "only the agent remembers"))]
    pub fn behind(seq: u64, ts: u64, id: String) -> Self {
        let last = (!id.is_empty()).then_some(Seen { seq, ts, id });
        Following { next: Some(seq.saturating_add(1)), last, ..Following::default() }
    }

    /// Begins here.
    pub fn new(begin: &Begin) -> Self {
        let keeping = match begin {
            Begin::State(after) => Some(Keeping {
                phase: Phase::Whole(*after),
                known: Known::default(),
                compacted: None,
                is_whole: *after == 0,
                is_anew: false,
                said: 0,
            }),
            _ => None,
        };
        Following { keeping, ..Following::default() }
    }

    /// There is a new session.
    pub fn begin(&mut self) {
        // The last event may be the newest of its key no longer, and does not come again then.
        let is_state = self.keeping.as_ref().is_some_and(|keeping| keeping.phase != Phase::Events);
        self.is_checking = self.last.is_some() && !is_state;
        self.is_asked = false;
    }

    /// Begins with the state once more, as the broker cannot bring it up to date; false if that cannot be done.
    pub fn begin_anew(&mut self) -> bool {
        let Some(keeping) = &mut self.keeping else { return false };
        if !keeping.is_whole || !keeping.known.begin_anew() {
            return false;
        }
        (keeping.phase, keeping.is_anew, keeping.said) = (Phase::Whole(0), true, 0);
        (self.next, self.last, self.newest, self.is_checking) = (Some(1), None, None, false);
        true
    }

    /// Whether it keeps the state, and was subscribed before.
    pub fn keeps(&self) -> bool {
        self.keeping.is_some() && self.next.is_some()
    }

    /// From where to subscribe, if that was `begin` at first.
    pub fn place(&self, begin: &Begin) -> Value {
        match (self.keeping.as_ref().map(|keeping| keeping.phase), self.from()) {
            (Some(Phase::Whole(after)), _) => place(&Begin::State(after)),
            (Some(Phase::Rows(through)), Some(next)) => json!({"state": next - 1, "through": through}),
            (Some(Phase::Events), Some(seq)) => json!({"seq": seq, "compacted": true}),
            (None, Some(seq)) => json!({"seq": seq}),
            (_, None) => place(begin),
        }
    }

    /// Where to subscribe from: the last event itself, as long as it was not seen in this session.
    pub fn from(&self) -> Option<u64> {
        match &self.last {
            Some(last) if self.is_checking => Some(last.seq),
            _ => self.next,
        }
    }

    pub fn take(&mut self, received: Received<'_>, mode: &mut Mode, news: &mut impl FnMut(News<'_>)) {
        match (received, self.next) {
            // Nothing counts behind the end.
            _ if self.closed.is_some() => {}
            (Received::Event { seq, line, .. }, Some(next)) if *mode == Mode::Taking => {
                self.event(seq, &line, next);
            }
            (Received::Gap { from, to, .. }, Some(next)) if *mode == Mode::Taking => {
                self.gone(Gap { from, to }, next, news);
            }
            (Received::Ack(ack), _) if *mode == Mode::Asked && is_answer(&ack) => {
                if !ack.is_ok() {
                    let code = ack.code.map_or_else(|| "refused".into(), |code| code.0.into_owned());
                    let reason = ack.reason.map_or_else(|| "no reason given".into(), |r| r.0.into_owned());
                    self.closed = Some(Broken::Refused { code, reason });
                    return;
                }
                if let Some(gap) = ack.gap {
                    self.gone(gap, self.next.unwrap_or(0), news);
                }
                let next = self.next.max(ack.next_seq).unwrap_or(1);
                self.next = Some(next);
                if let Some(keeping) = &mut self.keeping {
                    keeping.phase = ack.state.map_or(Phase::Events, Phase::Rows);
                    let patterns =
                        ack.compacted.iter().flatten().filter_map(|one| Pattern::parse(&one.0).ok());
                    keeping.compacted = ack.compacted.as_ref().map(|_| Compaction::new(patterns));
                }
                *mode = Mode::Taking;
                news(News::Subscribed(next));
            }
            (Received::Close { reason, retry_after_ms }, _) => {
                let retry_after = Duration::from_millis(retry_after_ms);
                let error = ClientError::Closed(reason.into_owned());
                self.closed = Some(Broken::Lost { error, retry_after });
            }
            (Received::Unsubscribed { code, reason, .. }, _) => {
                let (code, reason) = (code.into_owned(), reason.into_owned());
                self.closed = Some(Broken::Refused { code, reason });
            }
            (Received::State { through, .. }, Some(next)) if *mode == Mode::Taking => {
                self.state(through.unwrap_or(next - 1), next);
            }
            (Received::Heartbeat, _) => self.is_asked = true,
            // Repeats, what is dropped, and what later brokers send.
            _ => {}
        }
    }

    fn event(&mut self, seq: u64, line: &[u8], next: u64) {
        if self.is_same(seq, line, next) && seq >= next {
            self.next = Some(seq.saturating_add(1));
            if let Some(Keeping { known, compacted, is_anew, .. }) = &mut self.keeping {
                let has = |topic: &str| compacted.as_ref().is_none_or(|compacted| compacted.has(topic));
                if known.take(line, has) && *is_anew {
                    // It was handed out before.
                    return;
                }
            }
            let begin = self.lines.len();
            self.lines.extend_from_slice(line);
            self.newest = Some(begin..self.lines.len());
            self.lines.push(b'\n');
        }
    }

    /// All of the state of the seq `through` came.
    fn state(&mut self, through: u64, next: u64) {
        let Some(keeping) = &mut self.keeping else { return };
        if std::mem::take(&mut keeping.is_anew) {
            let compacted = keeping.compacted.as_ref();
            let has = |topic: &str| compacted.is_none_or(|compacted| compacted.has(topic));
            keeping.known.end_missing(&mut self.lines, through, wall_ms(), has);
        }
        keeping.phase = Phase::Events;
        if through >= next {
            // The last row need not be there any more, and says nothing of what is behind it.
            (self.next, self.last, self.newest) = (Some(through.saturating_add(1)), None, None);
        }
    }

    /// Whether this is an event of the journal that was followed; if it is of another one that is the end.
    fn is_same(&mut self, seq: u64, line: &[u8], next: u64) -> bool {
        let Some(last) = self.last.as_ref().filter(|last| self.is_checking && seq >= last.seq) else {
            return true;
        };
        if seq == last.seq && Seen::of(line).as_ref() == Some(last) {
            self.is_checking = false;
            return true;
        }
        self.closed = Some(Broken::OtherJournal { seq: last.seq, next });
        false
    }

    /// These events are gone; what was received of them is no loss.
    fn gone(&mut self, gap: Gap, next: u64, news: &mut impl FnMut(News<'_>)) {
        if self.last.as_ref().is_some_and(|last| (gap.from..=gap.to).contains(&last.seq)) {
            self.is_checking = false;
        }
        if let Some(keeping) = &mut self.keeping {
            // What is newest of it comes now: a session that ends meanwhile is to be asked for the rest.
            let from = gap.from.max(next).max(keeping.said.saturating_add(1));
            if gap.to >= from {
                keeping.said = gap.to;
                news(News::Gap(Gap { from, to: gap.to }));
            }
            return;
        }
        if gap.to >= next {
            self.next = Some(gap.to.saturating_add(1));
            news(News::Gap(Gap { from: gap.from.max(next), to: gap.to }));
        }
    }

    /// Everything that came so far.
    pub fn hand_out(&mut self, room: &Room, news: &mut impl FnMut(News<'_>)) {
        if self.lines.is_empty() {
            return;
        }
        if let Some(newest) = self.newest.take() {
            self.last = Seen::of(&self.lines[newest]);
        }
        room.take(self.lines.len());
        news(News::Events(std::mem::take(&mut self.lines)));
    }
}

/// Whether an ack is of our `subscribe`: a broker that knows none acks a `frame`.
fn is_answer(ack: &Ack<'_>) -> bool {
    ack.is_of("subscribe") || (ack.is_of("frame") && !ack.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Topic and key; the line.
    type Map = BTreeMap<(String, String), String>;

    #[derive(Clone, Debug)]
    enum Step {
        /// A key gets a value, or ends; it is delivered, or missed until the next state.
        Change { topic: u8, key: u8, is_end: bool },
        /// What is published from now on is missed.
        Cut,
        /// The state comes anew; `cut`: so many of its rows, and then the connection is lost.
        Anew { cut: Option<usize> },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3u8, 0..5u8, any::<bool>())
                .prop_map(|(topic, key, is_end)| Step::Change { topic, key, is_end }),
            1 => Just(Step::Cut),
            2 => proptest::option::of(0..4usize).prop_map(|cut| Step::Anew { cut }),
        ]
    }

    fn topic(n: u8) -> String {
        // The last one has no state.
        if n < 2 { format!("s.{n}") } else { "plain".into() }
    }

    struct World {
        following: Following,
        /// Of topics that have a state: the broker's, by seq, …
        broker: BTreeMap<u64, (String, String, String)>,
        head: u64,
        /// … and that of whoever is handed lines.
        reader: Map,
        seen: Vec<u64>,
        is_live: bool,
    }

    impl World {
        fn keeping(&mut self) -> &mut Keeping {
            self.following.keeping.as_mut().unwrap()
        }

        fn deliver(&mut self, seq: u64, line: &str) {
            let next = self.following.next.unwrap();
            self.following.event(seq, line.as_bytes(), next);
        }

        fn hand_out(&mut self) {
            let (mut bytes, room) = (Vec::new(), Room::default());
            self.following.hand_out(&room, &mut |news| {
                if let News::Events(lines) = news {
                    bytes = lines;
                }
            });
            for line in String::from_utf8(bytes).unwrap().lines() {
                let event: Value = serde_json::from_str(line).unwrap();
                let name = |name: &str| event[name].as_str().unwrap().to_owned();
                match event["payload"].is_null() {
                    true => drop(self.reader.remove(&(name("topic"), name("key")))),
                    false => drop(self.reader.insert((name("topic"), name("key")), line.to_owned())),
                }
                if event["headers"]["castra-event"].is_null() {
                    self.seen.push(event["seq"].as_u64().unwrap());
                }
            }
        }

        fn change(&mut self, n: u8, key: u8, is_end: bool) {
            self.head += 1;
            let (seq, topic, key) = (self.head, topic(n), format!("k{key}"));
            let payload = if is_end { "null" } else { "1" };
            let line = format!(
                "{{\"seq\":{seq},\"ts\":{seq},\"id\":\"i{seq}\",\"vm\":\"v\",\"topic\":\"{topic}\",\"key\":\"{key}\",\"payload\":{payload}}}"
            );
            if n < 2 {
                self.broker.retain(|_, (t, k, _)| (&*t, &*k) != (&topic, &key));
                if !is_end {
                    self.broker.insert(seq, (topic, key, line.clone()));
                }
            }
            if self.is_live {
                self.deliver(seq, &line);
                self.hand_out();
            }
        }

        fn anew(&mut self, cut: Option<usize>) {
            assert!(self.following.begin_anew());
            self.following.begin();
            let through = self.head;
            self.keeping().phase = Phase::Rows(through);
            let rows: Vec<(u64, String)> =
                self.broker.iter().map(|(seq, row)| (*seq, row.2.clone())).collect();
            for (seq, line) in rows.iter().take(cut.unwrap_or(usize::MAX)) {
                self.deliver(*seq, line);
            }
            self.is_live = cut.is_none();
            if self.is_live {
                self.following.state(through, self.following.next.unwrap());
            }
            self.hand_out();
        }

        fn is_up_to_date(&self) -> bool {
            let own = self.reader.iter().filter(|((topic, _), _)| topic != "plain");
            let broker = self.broker.values().map(|(t, k, line)| ((t.clone(), k.clone()), line.clone()));
            own.map(|(name, line)| (name.clone(), line.clone())).collect::<Map>() == broker.collect()
        }
    }

    proptest! {
        /// Whatever is missed and however often the state is begun anew: with each whole state, and with each event behind
        /// it, whoever is handed lines has that of the broker; and no event is handed out twice.
        #[test]
        fn a_state_that_comes_anew_is_the_brokers(steps in proptest::collection::vec(step(), 1..60)) {
            let mut following = Following { next: Some(1), ..Following::new(&Begin::State(0)) };
            let keeping = following.keeping.as_mut().unwrap();
            keeping.compacted = Some(Compaction::new(Pattern::parse("s.>")));
            keeping.phase = Phase::Events;
            let mut world = World {
                following,
                broker: BTreeMap::new(),
                head: 0,
                reader: Map::new(),
                seen: Vec::new(),
                is_live: true,
            };
            for step in steps {
                match step {
                    Step::Change { topic, key, is_end } => world.change(topic, key, is_end),
                    Step::Cut => world.is_live = false,
                    Step::Anew { cut } => world.anew(cut),
                }
                prop_assert!(!world.is_live || world.is_up_to_date(), "{:?} {:?}", world.reader, world.broker);
            }
            let count = world.seen.len();
            world.seen.sort_unstable();
            world.seen.dedup();
            prop_assert_eq!(world.seen.len(), count, "an event came twice");
        }
    }

    /// Keys of topics that have no state do not use up what is remembered of those that have one.
    #[test]
    fn only_keys_of_a_state_are_remembered() {
        let mut known = Known::default();
        let has = |topic: &str| topic == "s";
        let line =
            |topic: &str, key: usize| format!("{{\"topic\":\"{topic}\",\"key\":\"{key}\",\"payload\":1}}");
        assert!(!known.take(line("s", 1).as_bytes(), has) && known.take(line("s", 1).as_bytes(), has));
        for key in 0..1_100_000 {
            known.take(line("plain", key).as_bytes(), has);
        }
        assert!(known.begin_anew() && known.take(line("s", 1).as_bytes(), has));
    }
}
