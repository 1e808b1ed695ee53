//! Taking events of a group one by one, and saying what became of them.
//!
//! Always holds: whoever lets go of an event without a word has nacked it, if it was begun; no more are out than `max_in_flight`, those
//! whose answer is not durable yet with them. Owner: whoever consumes.

use super::error::Error;
use super::event::Event;
use super::nack::Nack;
use super::queue::{Queue, Unanswered};
use super::word::{Say, Word};
use crate::core::awake::timeout;
use serde_json::Value;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waker, Poll};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// What a group said when somebody became a member of it, or made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Everything up to this seq was done.
    pub cursor: u64,
    /// The group was not there before.
    pub created: bool,
    /// The options that the group has otherwise than was asked for; its own hold.
    pub differs: Vec<String>,
}

impl Joined {
    pub(super) fn of(ack: &Value) -> Self {
        let names = ack["differs"].as_array().into_iter().flatten();
        Joined {
            cursor: ack["cursor"].as_u64().unwrap_or(0),
            created: ack["created"].as_bool().unwrap_or(false),
            differs: names.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }
}

/// A member of a group, which takes events by itself. When it is dropped it leaves.
#[derive(Debug)]
pub struct Consumer {
    number: u64,
    joined: Joined,
    queue: Arc<Queue>,
    room: Arc<Semaphore>,
    /// It hands on what it takes, and begins nothing.
    is_buffer: bool,
    /// The next event, and when the broker's socket has taken that it begins.
    beginning: Option<(Delivery, oneshot::Receiver<()>)>,
    words: UnboundedSender<Word>,
}

/// An event that this member holds.
#[derive(Debug)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    /// The how-manieth delivery it is, from 1.
    pub attempt: u32,
    /// How many there are at the most; then it is a dead letter.
    pub max_attempts: u32,
    pub(super) held: Held,
}

/// What a handler knows beside the event.
#[derive(Clone, Debug)]
pub struct Context {
    /// The how-manieth delivery it is, from 1.
    pub attempt: u32,
    /// How many there are at the most; then it is a dead letter.
    pub max_attempts: u32,
    pub(super) caller: Caller,
}

/// Whose event it is.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    member: u64,
    seq: u64,
    id: Arc<str>,
    words: UnboundedSender<Word>,
}

/// An event of which nothing is said yet.
#[derive(Debug)]
pub(super) struct Held {
    pub caller: Caller,
    queue: Arc<Queue>,
    permit: Option<OwnedSemaphorePermit>,
    is_said: bool,
    is_begun: bool,
}

/// The broker's answer: what was said is durable. It was said already, whether this is awaited or not.
#[derive(Debug)]
pub struct Answer(oneshot::Receiver<Result<(), Error>>);

impl Future for Answer {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(waker).map(|answer| answer.unwrap_or(Err(Error::Closed)))
    }
}

impl Consumer {
    pub(super) fn new(
        number: u64,
        queue: Arc<Queue>,
        max_in_flight: usize,
        is_buffer: bool,
        words: UnboundedSender<Word>,
    ) -> Self {
        let room = Arc::new(Semaphore::new(max_in_flight));
        let joined = Joined { cursor: 0, created: false, differs: Vec::new() };
        Consumer { number, joined, queue, room, is_buffer, beginning: None, words }
    }

    pub(super) fn welcome(mut self, ack: &Value) -> Self {
        self.joined = Joined::of(ack);
        self
    }

    /// What the group said at the beginning.
    pub fn joined(&self) -> &Joined {
        &self.joined
    }

    /// Waits for the next event, which is an attempt from then on. The broker's socket has taken that before this returns:
    /// an event that crashes its program becomes a dead letter, and not a loop. When this is dropped before it is done,
    /// nothing is lost: the next call returns the event.
    ///
    /// # Errors
    /// There will be none: the group was removed, the operator forbade its topics, the bus was closed.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        let beginning = match self.beginning.take() {
            Some(beginning) => beginning,
            None => self.begin().await?,
        };
        let (_, sent) = self.beginning.insert(beginning);
        // Without a connection nobody says so: it is sent when the event is delivered again.
        let _ = sent.await;
        let (mut delivery, _) = self.beginning.take().ok_or(Error::Closed)?;
        delivery.held.is_begun = !self.is_buffer;
        Ok(delivery)
    }

    async fn begin(&self) -> Result<(Delivery, oneshot::Receiver<()>), Error> {
        let permit = self.room.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
        let arrived = self.queue.next().await?;
        let (member, words) = (self.number, self.words.clone());
        let caller = Caller { member, seq: arrived.event.seq, id: arrived.event.id.as_str().into(), words };
        let (begun, sent) = oneshot::channel();
        if !self.is_buffer {
            let (seq, id) = (caller.seq, caller.id.clone());
            let _ = self.words.send(Word::Begin { member, seq, id, sent: begun });
        }
        let (queue, permit) = (self.queue.clone(), Some(permit));
        let delivery = Delivery {
            event: arrived.event,
            attempt: arrived.attempt,
            max_attempts: arrived.max_attempts,
            held: Held { caller, queue, permit, is_said: false, is_begun: false },
        };
        Ok((delivery, sent))
    }

    /// Nothing more is to come: what is on its way still does. What is held may be answered until this one leaves, and
    /// makes no room for what would be delivered in vain.
    pub fn drain(&self) {
        let _ = self.words.send(Word::Drain { member: self.number });
    }

    /// Leaves, once what was said is durable. What is held goes to other members.
    pub async fn leave(self) {
        let (answer, answered) = oneshot::channel();
        let _ = self.words.send(Word::Leave { member: self.number, answer: Some(answer) });
        // The task is gone, and with it the membership.
        let _ = answered.await;
    }

    /// The same, for so long at the most: a broker that is away may not come back. How many events that were acked, or
    /// given up, come again as far as is known: the broker has not confirmed it.
    pub async fn leave_within(self, time: Duration) -> usize {
        let (answer, answered) = oneshot::channel();
        let _ = self.words.send(Word::Leave { member: self.number, answer: Some(answer) });
        // It is over, or nobody answers.
        let _ = timeout(time, answered).await;
        self.queue.unconfirmed()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.words.send(Word::Leave { member: self.number, answer: None });
    }
}

impl Delivery {
    /// It is done. The answer says when that is durable.
    pub fn ack(mut self) -> Answer {
        self.held.say(Say::Ack)
    }

    /// Not now: it comes again. See [`Nack`] for when; a text is a reason.
    pub fn nack(mut self, why: impl Into<Nack>) -> Answer {
        self.held.say(Say::Nack(why.into()))
    }

    /// Given up at once: it becomes a dead letter.
    pub fn term(mut self, reason: impl Display) -> Answer {
        self.held.say(Say::Nack(Nack::term(reason)))
    }

    /// Gives the event back without an answer: another member gets it when this one leaves, or its time is over.
    pub fn put_back(mut self) {
        self.held.is_said = true;
    }

    /// It takes longer: the time to answer begins anew.
    pub fn in_progress(&self) -> Answer {
        self.held.caller.say(Say::InProgress, None)
    }

    /// What a handler knows of it: may go elsewhere, to say that it takes longer.
    pub fn context(&self) -> Context {
        let caller = self.held.caller.clone();
        Context { attempt: self.attempt, max_attempts: self.max_attempts, caller }
    }
}

impl Context {
    /// It takes longer: the time to answer begins anew.
    pub fn in_progress(&self) -> Answer {
        self.caller.say(Say::InProgress, None)
    }
}

impl Caller {
    fn say(&self, say: Say, unanswered: Option<Unanswered>) -> Answer {
        let (answer, answered) = oneshot::channel();
        let (member, seq, id) = (self.member, self.seq, self.id.clone());
        // Without a task the answer is that there is none.
        let _ = self.words.send(Word::Say { member, seq, id, say, answer, unanswered });
        Answer(answered)
    }
}

impl Held {
    pub fn say(&mut self, say: Say) -> Answer {
        self.is_said = true;
        // What is nacked is to come again anyway.
        let is_last = !matches!(&say, Say::Nack(nack) if !nack.is_final);
        let unanswered = Unanswered::new(self.permit.take(), &self.queue, is_last);
        self.caller.say(say, Some(unanswered))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_said && !self.is_begun {
            let Caller { member, seq, id, words } = &self.caller;
            let _ = words.send(Word::Forget { member: *member, seq: *seq, id: id.clone() });
        } else if !self.is_said {
            let why =
                if std::thread::panicking() { "the handler panicked" } else { "dropped without an answer" };
            drop(self.say(Say::Nack(Nack::new(why))));
        }
    }
}
