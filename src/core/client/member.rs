//! One membership in a group, beyond its connections.
//!
//! ```text
//! delivered ─▶ held ─ said ─▶ asked ─ answered ─▶ over
//!                │               │
//!                └── the connection is lost: what was acked is kept as done, and acked when it comes again
//! ```
//!
//! What the program has not begun is extended for as long as it waits here. Always holds: an event is with the program
//! once at a time, whatever is delivered again; what the program is done with
//! it does not get again, as far as this process remembers; another event of the same seq (another journal) is another
//! event. It waits for nothing. Owner: [`super::state`].

use super::error::Error;
use super::queue::{Arrived, Queue, Unanswered};
use super::said::{Asked, Done, Said, write};
use super::word::{Joining, Say, To};
use crate::core::awake::Instant;
use crate::core::limits::ACK_SEQS;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What is not begun is extended so many times in the time that the group waits …
const TIMES: u32 = 3;
/// … and not more often than this.
const SHORTEST: Duration = Duration::from_millis(10);

pub(super) struct Membership {
    pub number: u64,
    pub group: Box<str>,
    /// What makes it one.
    pub frame: Bytes,
    queue: Arc<Queue>,
    /// Who waits for it to be one.
    welcome: Option<To<Value>>,
    session: u64,
    /// It is one, in this session.
    is_in: bool,
    /// Delivered, and nothing said of it.
    held: HashMap<u64, Held>,
    /// Acks that go into the next frame.
    acks: Vec<Said>,
    /// The broker wants to know what is begun.
    is_telling: bool,
    /// What was begun goes into the next frame.
    begun: Vec<u64>,
    ack_timeout: Duration,
    extends_at: Instant,
    asked: VecDeque<Asked>,
    /// Acked, and the broker may not know: the newest ones.
    done: VecDeque<Done>,
    max_in_flight: usize,
    /// It is to be handed nothing more.
    drains: bool,
    leaving: Leaving,
}

#[derive(Debug, Default)]
enum Leaving {
    #[default]
    No,
    /// As soon as everything is answered.
    Wants(Option<oneshot::Sender<()>>),
    Asked(Option<oneshot::Sender<()>>),
}

struct Held {
    id: Arc<str>,
    /// The session that it was delivered in last.
    session: u64,
    /// The program has it.
    is_begun: bool,
}

impl Membership {
    pub fn new(joining: Joining, session: u64) -> Self {
        let Joining { number, group, frame, queue, max_in_flight, ack_timeout, answer } = joining;
        Membership {
            number,
            group,
            frame,
            queue,
            welcome: Some(answer),
            session,
            is_in: false,
            held: HashMap::new(),
            acks: Vec::new(),
            is_telling: false,
            begun: Vec::new(),
            ack_timeout,
            extends_at: Instant::now(),
            asked: VecDeque::new(),
            done: VecDeque::new(),
            max_in_flight,
            drains: false,
            leaving: Leaving::No,
        }
    }

    /// It is a member, in this session.
    pub fn joined(&mut self, ack: Value, out: &mut BytesMut) {
        self.is_in = true;
        self.is_telling = ack["begins"] == true;
        // A broker that does not say it does not want to know what is begun either.
        self.ack_timeout = ack["ack_timeout_ms"].as_u64().map_or(self.ack_timeout, Duration::from_millis);
        self.extends_at = Instant::now() + self.extends_every();
        if let Some(welcome) = self.welcome.take()
            && welcome.send(Ok(ack)).is_err()
        {
            // Whoever wanted it is gone.
            self.leave(None);
            self.settle(out);
        }
        if self.drains {
            self.say_drain(out);
        }
    }

    /// The program takes nothing more, and goes on with what it has.
    pub fn drain(&mut self, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.drains, true) && self.is_in {
            self.say_drain(out);
        }
    }

    fn say_drain(&self, out: &mut BytesMut) {
        if matches!(self.leaving, Leaving::No) {
            write(&json!({"type": "unsubscribe", "group": self.group, "drain": true}), out);
        }
    }

    /// Whether an answer of this kind is to come.
    pub fn waits_for(&self, kind: &str) -> bool {
        match kind {
            "subscribe" => !self.is_in,
            "unsubscribe" => matches!(self.leaving, Leaving::Asked(_)),
            _ => false,
        }
    }

    /// An event is delivered.
    pub fn delivered(&mut self, arrived: Arrived, out: &mut BytesMut) {
        let (seq, id) = (arrived.event.seq, arrived.event.id.as_str());
        let is_it = |said: &&Said| said.seq == seq && *said.id == *id;
        // What comes again comes before what is new.
        for done in self.done.iter_mut().filter(|done| done.seq < seq) {
            done.is_open = false;
        }
        self.tell();
        let acks = self.asked.iter().filter(|asked| matches!(asked.kind, "ack" | "term"));
        if !matches!(self.leaving, Leaving::No) || acks.flat_map(|asked| &asked.said).any(|said| is_it(&said))
        {
            return;
        }
        if let Some(at) = self.done.iter().position(|done| done.seq == seq && *done.id == *id) {
            if let Some(Done { seq, id, .. }) = self.done.remove(at) {
                let unanswered = Some(Unanswered::new(None, &self.queue, true));
                self.acks.push(Said { seq, id, say: Say::Ack, answer: None, unanswered });
                self.tell();
                self.flush(out);
            }
            return;
        }
        let session = self.session;
        match self.held.get_mut(&seq) {
            Some(held) if *held.id == *id => {
                held.session = session;
                if held.is_begun {
                    self.begun.push(seq);
                    self.flush(out);
                }
            }
            _ => {
                self.held.insert(seq, Held { id: id.into(), session, is_begun: false });
                self.queue.push(arrived);
            }
        }
    }

    /// The program is to have an event; returns whether the broker is told that in this session.
    pub fn begin(&mut self, seq: u64, id: &str) -> bool {
        let Some(held) = self.held.get_mut(&seq).filter(|held| *held.id == *id) else { return false };
        held.is_begun = true;
        self.begun.push(seq);
        self.is_telling && held.session == self.session
    }

    /// The program let go of an event that it had not begun: it is not extended any more.
    pub fn forget(&mut self, seq: u64, id: &str) {
        if self.held.get(&seq).is_some_and(|held| *held.id == *id) {
            self.held.remove(&seq);
        }
    }

    fn extends_every(&self) -> Duration {
        (self.ack_timeout / TIMES).max(SHORTEST)
    }

    /// Returns when what is not begun is to be extended.
    pub fn extends_at(&self) -> Instant {
        self.extends_at
    }

    /// Extends what is not begun, if it is time.
    pub fn extend(&mut self, now: Instant, out: &mut BytesMut) {
        if now < self.extends_at {
            return;
        }
        self.extends_at = now + self.extends_every();
        let waits = |held: &Held| held.session == self.session && !held.is_begun;
        let waiting = self.held.iter().filter(|(_, held)| waits(held)).map(|(seq, _)| *seq);
        self.say_of("in_progress", waiting.collect(), out);
    }

    /// Says something of events that needs no answer.
    fn say_of(&self, kind: &str, mut seqs: Vec<u64>, out: &mut BytesMut) {
        seqs.sort_unstable();
        for seqs in seqs.chunks(ACK_SEQS) {
            write(&json!({"type": kind, "group": self.group, "seqs": seqs}), out);
        }
    }

    /// The program says something of an event. Acks wait for [`Membership::flush`].
    pub fn say(&mut self, said: Said, out: &mut BytesMut) {
        let held = self.held.get(&said.seq).filter(|held| held.id == said.id);
        let is_now = held.is_some_and(|held| held.session == self.session);
        if held.is_some() && !matches!(said.say, Say::InProgress) {
            self.held.remove(&said.seq);
        }
        match said.say {
            Say::Ack if is_now => self.acks.push(said),
            _ if is_now => self.ask(vec![said], out),
            _ => self.in_doubt(said),
        }
    }

    /// It cannot be said any more: the session is another one.
    fn in_doubt(&mut self, said: Said) {
        match &said.say {
            Say::Ack => {
                self.remember(said.seq, said.id.clone());
                said.answer(Err(Error::InDoubt));
            }
            // It comes again anyway.
            Say::Nack(nack) if !nack.is_final => said.answer(Ok(())),
            _ => said.answer(Err(Error::InDoubt)),
        }
    }

    fn remember(&mut self, seq: u64, id: Arc<str>) {
        if self.done.len() >= self.max_in_flight {
            self.done.pop_front();
        }
        self.done.push_back(Done { seq, id, is_open: true });
        self.tell();
    }

    /// Lets the program see what is in doubt.
    fn tell(&self) {
        self.queue.set_in_doubt(self.done.iter().filter(|done| done.is_open).count());
    }

    /// Sends the acks that wait.
    pub fn flush(&mut self, out: &mut BytesMut) {
        while !self.acks.is_empty() {
            let rest = self.acks.split_off(self.acks.len().min(ACK_SEQS));
            let said = std::mem::replace(&mut self.acks, rest);
            self.ask(said, out);
        }
        // What is done already was begun.
        let mut begun = std::mem::take(&mut self.begun);
        let is_new = |seq: &u64| self.held.get(seq).is_some_and(|held| held.session == self.session);
        begun.retain(|seq| self.is_telling && is_new(seq));
        self.say_of("begin", begun, out);
        self.settle(out);
    }

    fn ask(&mut self, said: Vec<Said>, out: &mut BytesMut) {
        let Some(first) = said.first() else { return };
        let kind = first.say.kind();
        let seqs: Vec<u64> = said.iter().map(|said| said.seq).collect();
        let mut frame = json!({"type": kind, "group": self.group, "seqs": seqs, "confirm": true});
        if let Say::Nack(nack) = &first.say {
            frame["reason"] = nack.reason.as_str().into();
            match &nack.delays[..] {
                [] => {}
                [one] => frame["delay_ms"] = (*one).into(),
                several => frame["delay_ms"] = several.into(),
            }
        }
        write(&frame, out);
        self.asked.push_back(Asked { kind, said });
    }

    /// What was said of some events is durable. The broker answers those of a kind in their order.
    pub fn confirmed(&mut self, kind: &str, out: &mut BytesMut) {
        if let Some(at) = self.asked.iter().position(|asked| asked.kind == kind) {
            let asked = self.asked.remove(at);
            asked.into_iter().flat_map(|asked| asked.said).for_each(|said| said.answer(Ok(())));
        }
        self.settle(out);
    }

    /// What was said is refused: of this event, or of all of a frame, the last one: what the broker took before that it
    /// answers later.
    pub fn refused(&mut self, kind: &str, seq: Option<u64>, why: &Error, out: &mut BytesMut) {
        let is_it = |asked: &Asked| {
            asked.kind == kind && seq.is_none_or(|seq| asked.said.iter().any(|said| said.seq == seq))
        };
        let at = match seq {
            Some(_) => self.asked.iter().position(is_it),
            None => self.asked.iter().rposition(is_it),
        };
        if let Some(at) = at
            && let Some(asked) = self.asked.get_mut(at)
        {
            let is_meant = |said: &mut Said| seq.is_none_or(|seq| said.seq == seq);
            let meant: Vec<Said> = asked.said.extract_if(.., is_meant).collect();
            if asked.said.is_empty() {
                self.asked.remove(at);
            }
            // Another try of the same, or the one before: that is what was wanted.
            let is_fine = kind == "ack" && why.code() == Some("already-done");
            if kind == "ack" && why.code() == Some("disk-full") {
                // It could not be written down now. When it comes again it is done all the same.
                meant.iter().for_each(|said| self.remember(said.seq, said.id.clone()));
            }
            meant.into_iter().for_each(|said| said.answer(if is_fine { Ok(()) } else { Err(why.clone()) }));
        }
        self.settle(out);
    }

    /// The program wants no more.
    pub fn leave(&mut self, answer: Option<oneshot::Sender<()>>) {
        if matches!(self.leaving, Leaving::No) {
            self.leaving = Leaving::Wants(answer);
        }
        self.queue.end(Error::Closed);
    }

    /// Leaves when everything is answered.
    fn settle(&mut self, out: &mut BytesMut) {
        if let Leaving::Wants(answer) = &mut self.leaving
            && self.asked.is_empty()
        {
            self.leaving = Leaving::Asked(answer.take());
            write(&json!({"type": "unsubscribe", "group": self.group}), out);
        }
    }

    /// The program takes nothing more, and is to leave by itself.
    pub fn stop(&self) {
        self.queue.end(Error::Closed);
    }

    /// The session is lost; whether it is a member in the next one.
    pub fn lost(&mut self, session: u64) -> bool {
        self.session = session;
        self.is_in = false;
        self.begun.clear();
        for seq in self.queue.clear() {
            self.held.remove(&seq);
        }
        let asked: Vec<Said> = self.asked.drain(..).flat_map(|asked| asked.said).collect();
        let acks = std::mem::take(&mut self.acks);
        asked.into_iter().chain(acks).for_each(|said| self.in_doubt(said));
        match &mut self.leaving {
            Leaving::No => true,
            Leaving::Wants(answer) | Leaving::Asked(answer) => {
                answer.take().map(|answer| answer.send(()));
                false
            }
        }
    }

    /// It is no member any more, for this reason.
    pub fn end(mut self, why: &Error) {
        self.queue.end(why.clone());
        if let Some(welcome) = self.welcome.take() {
            let _ = welcome.send(Err(why.clone()));
        }
        let asked = self.asked.drain(..).flat_map(|asked| asked.said);
        asked.chain(self.acks.drain(..)).for_each(|said| said.answer(Err(why.clone())));
        if let Leaving::Wants(answer) | Leaving::Asked(answer) = &mut self.leaving {
            answer.take().map(|answer| answer.send(()));
        }
    }
}
