//! Events as they are published, for somebody who needs no group.
//!
//! Always holds: events come in order, each once; what was received and not taken is bounded: then the broker keeps the
//! rest in its journal. Owner: whoever listens.

use super::Bus;
use super::error::Error;
use super::event::Event;
use crate::core::follow::{Begin, Failed, News, Room};
use crate::core::topic::Pattern;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

/// A wish to be sent events: done when this is awaited.
#[must_use = "nothing is subscribed before it is awaited"]
#[derive(Debug)]
pub struct Listen<'a> {
    bus: &'a Bus,
    patterns: Vec<String>,
    begin: Begin,
}

impl<'a> Listen<'a> {
    pub(super) fn new(bus: &'a Bus, pattern: String) -> Self {
        Listen { bus, patterns: vec![pattern], begin: Begin::Latest }
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
        self.patterns.extend(topics.into_iter().map(Into::into));
        self
    }

    async fn start(self) -> Result<Events, Error> {
        let wrong = |text: &str, why: String| Error::refused("bad-pattern", format!("'{text:.64}': {why}"));
        let patterns = self.patterns.iter();
        let patterns = patterns.map(|text| Pattern::parse(text).map_err(|e| wrong(text, e.to_string())));
        let follow = self.bus.follow(patterns.collect::<Result<_, _>>()?, self.begin);
        let client = follow.connect().await?;
        let (lines, received) = unbounded_channel();
        let (subscribed, begun) = oneshot::channel();
        let room = Room::default();
        let theirs = room.clone();
        let task = tokio::spawn(async move {
            let mut subscribed = Some(subscribed);
            let failed = follow.run(client, &theirs, |news| match news {
                // Whoever listened is gone, and ends this.
                News::Events(bytes) => _ = lines.send(Ok(bytes)),
                News::Gap(gap) => _ = lines.send(Err(Error::Gap { from: gap.from, to: gap.to })),
                News::Subscribed(next) => _ = subscribed.take().map(|subscribed| subscribed.send(next)),
                News::Anew | News::Lost(..) => {}
            });
            let _ = lines.send(Err(why(failed.await)));
        });
        let mut events = Events { received, room, lines: Vec::new(), at: 0, task: Ended(task) };
        match begun.await {
            Ok(_) => Ok(events),
            Err(_) => Err(events.next().await.err().unwrap_or(Error::Closed)),
        }
    }
}

impl<'a> IntoFuture for Listen<'a> {
    type Output = Result<Events, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.start())
    }
}

/// Events that are listened to, over a connection of their own.
#[derive(Debug)]
pub struct Events {
    received: UnboundedReceiver<Result<Vec<u8>, Error>>,
    room: Room,
    /// Lines that came together, and how far they were taken.
    lines: Vec<u8>,
    at: usize,
    #[allow(dead_code, reason = "it ends with this")]
    task: Ended,
}

impl Events {
    /// Waits for the next event. When this is dropped before it is done, nothing is lost.
    ///
    /// # Errors
    /// [`Error::Gap`]: events are gone, and the next call goes on behind them. Any other is the end.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(end) = self.lines[self.at..].iter().position(|b| *b == b'\n') {
                let line = &self.lines[self.at..self.at + end];
                let event = Event::of(line);
                self.at += end + 1;
                self.room.give_back(end + 1);
                match event {
                    Some(event) => return Ok(event),
                    None => continue,
                }
            }
            (self.lines, self.at) = (self.received.recv().await.unwrap_or(Err(Error::Closed))?, 0);
        }
    }
}

/// A task that ends with this.
#[derive(Debug)]
struct Ended(tokio::task::JoinHandle<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn why(failed: Failed) -> Error {
    match failed {
        Failed::Refused { code, reason, .. } => Error::refused(code, reason),
        Failed::OtherJournal { seq, .. } => {
            Error::refused("seq-ahead", format!("the broker's journal has another event {seq}"))
        }
        Failed::NoSession(error) => error.into(),
    }
}
