//! Becoming a member of a group: with a handler, to take events by oneself, or only to have the group there.
//!
//! Always holds: handlers that run are at most `max_in_flight`; a subscription ends after they did. Owner: whoever
//! subscribes.

use super::Bus;
use super::bus::read;
use super::consumer::{Consumer, Context, Delivery, Joined};
use super::error::{Error, check_group};
use super::event::Event;
use super::nack::Nack;
use super::queue::Queue;
use super::word::{Command, Joining, Say};
use crate::core::follow::{Begin, place};
use crate::core::wire::codec::FrameCodec;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::codec::Encoder;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A function that handles events.
pub struct Handler(Box<Handle>);

type Handle = dyn FnMut(Event, Context) -> Boxed<'static, Result<(), Nack>> + Send;

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

/// Events are to be taken one by one.
#[derive(Debug)]
pub struct Take;

/// The group is to be there, and nobody is a member by that.
#[derive(Debug)]
pub struct Only;

/// A wish about a group, of which all can be left out; done when this is awaited. What is said here holds for a group
/// that is new (but [`Subscribe::max_in_flight`], which is the member's): one that is there goes on behind its cursor
/// with its own options, and says which are [others](Joined::differs).
#[must_use = "nothing is subscribed before it is awaited"]
#[derive(Debug)]
pub struct Subscribe<'a, H> {
    bus: &'a Bus,
    group: String,
    topics: Vec<String>,
    begin: Begin,
    /// Those that are said.
    options: Value,
    headers: Vec<(String, String)>,
    tags: Vec<String>,
    max_in_flight: u32,
    is_buffer: bool,
    how: H,
}

/// What a member holds when it does not say otherwise.
const IN_FLIGHT: u32 = 1000;

impl<'a, H> Subscribe<'a, H> {
    pub(super) fn new(bus: &'a Bus, topic: String, group: String, how: H) -> Self {
        Subscribe {
            bus,
            group,
            topics: vec![topic],
            begin: Begin::Latest,
            options: json!({}),
            headers: Vec::new(),
            tags: Vec::new(),
            max_in_flight: IN_FLIGHT,
            is_buffer: false,
            how,
        }
    }

    /// Begins with the oldest event that there is, instead of what is published from now on.
    pub fn earliest(self) -> Self {
        self.from(Begin::Earliest)
    }

    /// Begins here.
    pub fn from(mut self, begin: Begin) -> Self {
        self.begin = begin;
        self
    }

    /// These topics or patterns as well; 64 at the most.
    pub fn topics(mut self, topics: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// Only events with this header, of this value; a name once.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Only events with this tag.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// So many events are handed to a member at a time: 1 to 1,000; 100 if nothing is said.
    pub fn batch(self, events: u32) -> Self {
        self.option("batch", events.into())
    }

    /// What this member holds at the most, and how many handlers run at once: 1 to 10,000; 1,000 if nothing is said.
    pub fn max_in_flight(mut self, events: u32) -> Self {
        self.max_in_flight = events;
        self
    }

    /// How long a member may hold an event that it began, then it is delivered again: up to a day; 30 s if nothing is
    /// said. What waits for its turn with this member is extended by itself.
    pub fn ack_timeout(self, time: Duration) -> Self {
        self.option("ack_timeout_ms", u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into())
    }

    /// How often an event is begun at the most, then it is a dead letter: 1 to 100; 5 if nothing is said.
    pub fn max_attempts(self, attempts: u32) -> Self {
        self.option("max_attempts", attempts.into())
    }

    /// Events of one key one after the other, in order.
    pub fn ordered_by_key(self) -> Self {
        self.option("ordered_by_key", true.into())
    }

    fn option(mut self, name: &str, value: Value) -> Self {
        self.options[name] = value;
        self
    }

    fn frame(&self, kind: &str) -> Result<Bytes, Error> {
        check_group(&self.group)?;
        let mut headers = serde_json::Map::new();
        for (name, value) in &self.headers {
            // An event has one value of a name.
            if headers.insert(name.clone(), json!(value)).is_some() {
                let why = format!("headers is an object of strings: the name '{name:.64}' stands twice");
                return Err(Error::refused("bad-headers", why));
            }
        }
        let mut frame = self.options.clone();
        for (name, value) in [
            ("type", json!(kind)),
            ("group", json!(self.group)),
            ("topics", json!(self.topics)),
            ("from", place(&self.begin)),
            ("max_in_flight", json!(self.max_in_flight)),
            ("begins", json!(true)),
            ("filter", json!({"headers": headers, "tags": self.tags})),
        ] {
            frame[name] = value;
        }
        let mut bytes = BytesMut::new();
        let encoded = FrameCodec.encode(frame.to_string().as_bytes(), &mut bytes);
        encoded.map_err(|e| Error::refused("frame-too-large", e.to_string()))?;
        Ok(bytes.freeze())
    }

    async fn join(self) -> Result<(Consumer, H), Error> {
        let frame = self.frame("subscribe")?;
        let ack_timeout = Duration::from_millis(self.options["ack_timeout_ms"].as_u64().unwrap_or(30_000));
        let Subscribe { bus, group, max_in_flight, is_buffer, how, .. } = self;
        let (queue, number, max_in_flight) =
            (Arc::<Queue>::default(), bus.next_number(), max_in_flight as usize);
        let (answer, answered) = oneshot::channel();
        // From here on it leaves when nobody waits any more.
        let consumer = Consumer::new(number, queue.clone(), max_in_flight, is_buffer, bus.words());
        let group = group.into();
        let joining = Joining { number, group, frame, queue, max_in_flight, ack_timeout, answer };
        bus.command(Command::Join(joining)).await?;
        let ack = answered.await.unwrap_or(Err(Error::Closed))?;
        Ok((consumer.welcome(&ack), how))
    }
}

impl Subscribe<'_, Take> {
    /// Events that are taken are not begun: this program only hands them on. They are extended for as long as it lives.
    /// One that is dropped without an answer costs no attempt, and comes again when its time is over or this member left.
    pub fn as_buffer(mut self) -> Self {
        self.is_buffer = true;
        self
    }
}

impl<'a> IntoFuture for Subscribe<'a, Handler> {
    type Output = Result<Subscription, Error>;
    type IntoFuture = Boxed<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (consumer, handler) = self.join().await?;
            let joined = consumer.joined().clone();
            let (stop, stopped) = watch::channel(false);
            let (ended, end) = watch::channel(None);
            tokio::spawn(async move {
                let why = run(consumer, handler, stopped).await;
                ended.send_replace(Some(why));
            });
            Ok(Subscription { stop, end, joined })
        })
    }
}

impl<'a> IntoFuture for Subscribe<'a, Take> {
    type Output = Result<Consumer, Error>;
    type IntoFuture = Boxed<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.join().await?.0) })
    }
}

impl<'a> IntoFuture for Subscribe<'a, Only> {
    type Output = Result<Joined, Error>;
    type IntoFuture = Boxed<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let frame = self.frame("group_create")?;
            let ack = self.bus.asked("group_create", Some(self.group.clone()), frame).await?;
            Ok(Joined::of(&read(&ack)?))
        })
    }
}

impl Handler {
    pub(super) fn new<F, Fut>(mut handle: F) -> Self
    where
        F: FnMut(Event, Context) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), Nack>> + Send + 'static,
    {
        Handler(Box::new(move |event, context| Box::pin(handle(event, context))))
    }
}

/// A handler that is fed. It goes on when this is dropped, for as long as there is the bus.
#[derive(Debug)]
pub struct Subscription {
    stop: watch::Sender<bool>,
    end: watch::Receiver<Option<Error>>,
    joined: Joined,
}

impl Subscription {
    /// What the group said at the beginning.
    pub fn joined(&self) -> &Joined {
        &self.joined
    }

    /// Takes nothing more, lets the handlers that run come to their end, and leaves when what they said is durable.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.ended().await;
    }

    /// Waits until nothing is handled any more; why: the group was removed, the operator forbade its topics, the bus was
    /// closed.
    pub async fn ended(&mut self) -> Error {
        match self.end.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Error::Closed),
            Err(_) => Error::Closed,
        }
    }
}

async fn run(mut consumer: Consumer, mut handler: Handler, mut stopped: watch::Receiver<bool>) -> Error {
    let mut running = JoinSet::new();
    let why = loop {
        tokio::select! {
            delivery = consumer.next() => match delivery {
                Ok(delivery) => handle(delivery, &mut handler, &mut running),
                Err(why) => break why,
            },
            // Not when its subscription is dropped: then it goes on.
            Ok(_) = stopped.wait_for(|is| *is) => break Error::Closed,
            Some(_) = running.join_next() => {}
        }
    };
    consumer.drain();
    while running.join_next().await.is_some() {}
    consumer.leave().await;
    why
}

fn handle(delivery: Delivery, handler: &mut Handler, running: &mut JoinSet<()>) {
    let context = delivery.context();
    let Delivery { event, mut held, .. } = delivery;
    let handling = (handler.0)(event, context);
    running.spawn(async move {
        let say = match handling.await {
            Ok(()) => Say::Ack,
            Err(nack) => Say::Nack(nack),
        };
        // In doubt it comes again; refused, somebody else has it.
        let _ = held.say(say).await;
    });
}
