//! One session of the agent, from the answer to its hello to its end: heartbeats, the outbox on its way, and the
//! subscription, over one connection.
//!
//! Always holds: what the broker acknowledged is written down before more is sent, so that no more than a window is
//! ever sent again; what comes is read all the while; a host that is not heard is given up. Owner: the link.

use super::drain::{Drain, Fate, WINDOW};
use super::feed::{After, Feed};
use super::handler::told;
use super::outbox::{Outbox, OutboxError};
use super::pipe::{Pipe, Step};
use super::pulse::{Clocks, Due, Pulse, Times};
use crate::core::awake::{Instant, at_once, sleep_until, timeout};
use crate::core::chance::chance;
use crate::core::clock;
use crate::core::limits::{DRAIN_BYTES, HOST_STUCK};
use crate::core::wire::received::Received;
use serde_json::Value;
use std::io;
use std::time::Duration;
use tokio::sync::watch;

const HEARTBEAT: &[u8] = b"{\"type\":\"heartbeat\"}";
/// A subscription that is refused is asked for again after so long.
const AGAIN: Duration = Duration::from_secs(30);
/// When the agent is told to end, what is under way is waited for so long.
const LAST_ACKS: Duration = Duration::from_secs(2);
/// A cursor that could not be read or written is tried again after so long.
const CURSOR_AGAIN: Duration = Duration::from_secs(5);
/// A frame of length 0: the end, on a line that has none.
const END: [u8; 4] = [0; 4];

/// Why a session ended.
#[derive(Debug)]
pub enum Ended {
    /// The agent was told to.
    Told,
    /// The broker closed it: a reason, and when it makes sense to come back.
    Closed(String, Duration),
    /// The connection failed.
    Lost(io::Error),
    /// What came is not bus-v1.
    Broken(String),
    /// The host was not heard for so long.
    Silent(Duration),
    /// The connection took nothing for so long.
    Stuck(Duration),
    /// The outbox cannot be read.
    Outbox(OutboxError),
}

/// A session under way.
pub struct Session<'a> {
    pipe: &'a mut Pipe,
    outbox: &'a Outbox,
    feed: Option<&'a mut Feed>,
    is_line: bool,
    begun: Instant,
    drain: Drain,
    pulse: Pulse,
    /// There may be more in the outbox.
    is_more: bool,
    /// When the subscription is asked for again.
    subscribe_at: Option<Instant>,
    /// When the place of the subscription is written down again.
    cursor_at: Option<Instant>,
    /// The broker asked for a sign of life.
    is_asked: bool,
    /// When the connection took something, or had nothing to take.
    took: Instant,
    /// Something was stored or received.
    pub is_useful: bool,
}

fn clocks() -> Clocks {
    Clocks { boot: clock::boot_ms(), wall: i64::try_from(clock::wall_ms()).unwrap_or(0) }
}

impl<'a> Session<'a> {
    /// Of a connection on which the broker said ok.
    pub fn new(
        pipe: &'a mut Pipe,
        outbox: &'a Outbox,
        feed: Option<&'a mut Feed>,
        times: Times,
        is_line: bool,
    ) -> Self {
        let (begun, pulse) = (Instant::now(), Pulse::new(times, clocks()));
        let drain = Drain::new();
        Session {
            pipe,
            outbox,
            feed,
            is_line,
            begun,
            drain,
            pulse,
            is_more: true,
            subscribe_at: None,
            cursor_at: None,
            is_asked: false,
            took: begun,
            is_useful: false,
        }
    }

    /// Holds it to its end.
    pub async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Ended {
        self.subscribe().await;
        match self.serve(stop).await {
            Ok(()) => {
                // The broker is told; what it still has to say is waited for.
                let _ = timeout(LAST_ACKS, self.end()).await;
                Ended::Told
            }
            Err(ended) => ended,
        }
    }

    /// Subscribes, as soon as the cursor can be read: why it cannot is said by the outbox.
    async fn subscribe(&mut self) {
        let Some(feed) = self.feed.as_deref_mut() else { return };
        match feed.begin(self.outbox).await {
            Ok(frame) => self.push(&frame),
            Err(_) => self.subscribe_at = Some(Instant::now() + CURSOR_AGAIN),
        }
    }

    async fn serve(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), Ended> {
        // Bytes behind the answer came with it.
        self.take().await?;
        let changed = self.outbox.changed();
        loop {
            self.fetch().await?;
            let due = self.next();
            let feed = self.feed.as_deref();
            let resumed = async {
                match feed {
                    Some(feed) => feed.resumed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // A broker that never stops talking holds up nothing else.
                biased;
                () = told(stop) => return Ok(()),
                () = changed.notified() => self.is_more = true,
                () = resumed => if let Some(frame) = self.feed.as_deref_mut().map(Feed::resume) {
                    self.push(&frame);
                },
                () = sleep_until(due) => {
                    // What the connection has or takes by now counts before it is judged.
                    if let Some(step) = at_once(self.pipe.step()).await {
                        self.stepped(step.map_err(Ended::Lost)?).await?;
                    }
                    self.due().await?;
                }
                step = self.pipe.step() => self.stepped(step.map_err(Ended::Lost)?).await?,
            }
        }
    }

    async fn stepped(&mut self, step: Step) -> Result<(), Ended> {
        match step {
            Step::Wrote => {
                self.took = Instant::now();
                self.answer();
                Ok(())
            }
            Step::Read => {
                self.pulse.heard(self.begun.elapsed());
                self.take().await
            }
        }
    }

    fn push(&mut self, frame: &Value) {
        self.push_body(frame.to_string().as_bytes());
    }

    fn push_body(&mut self, body: &[u8]) {
        if self.pipe.is_written() {
            self.took = Instant::now();
        }
        self.pipe.push_frame(body);
        self.pulse.sent(self.begun.elapsed());
    }

    /// Answers the broker's heartbeats, all at once; bytes that wait are a sign of life as well.
    fn answer(&mut self) {
        if self.is_asked && self.pipe.is_written() {
            self.is_asked = false;
            self.push_body(HEARTBEAT);
        }
    }

    /// Sends what the window has room for.
    async fn fetch(&mut self) -> Result<(), Ended> {
        // Half a window at a time: an event at a time would be a question to the database for each.
        let bytes = self.drain.bytes();
        if !self.is_more || self.drain.under_way() > WINDOW / 2 || bytes > DRAIN_BYTES / 2 {
            return Ok(());
        }
        let Some((after, room)) = self.drain.wants(self.begun.elapsed()) else { return Ok(()) };
        let entries = self.outbox.pending(after, room, DRAIN_BYTES - bytes).await.map_err(Ended::Outbox)?;
        self.is_more = !entries.is_empty();
        for entry in entries {
            self.push_body(&entry.frame);
            self.drain.sent(entry.n, entry.id, entry.frame.len());
        }
        Ok(())
    }

    fn next(&self) -> Instant {
        let drain = self.drain.next().filter(|_| self.is_more);
        let at = self.begun + drain.map_or(self.pulse.next(), |drain| drain.min(self.pulse.next()));
        let stuck = (!self.pipe.is_written()).then(|| self.took + HOST_STUCK);
        [self.subscribe_at, self.cursor_at, stuck].into_iter().flatten().fold(at, Instant::min)
    }

    async fn due(&mut self) -> Result<(), Ended> {
        if !self.pipe.is_written() && self.took.elapsed() >= HOST_STUCK {
            return Err(Ended::Stuck(self.took.elapsed()));
        }
        if self.cursor_at.is_some_and(|at| at <= Instant::now()) {
            self.cursor_at = None;
            self.write_place().await;
            self.hand_on();
        }
        if self.subscribe_at.is_some_and(|at| at <= Instant::now()) {
            self.subscribe_at = None;
            self.subscribe().await;
        }
        match self.pulse.look(self.begun.elapsed(), clocks()) {
            Some(Due::Beat) => self.push_body(HEARTBEAT),
            Some(Due::Gone(time)) => return Err(Ended::Silent(time)),
            None => {}
        }
        Ok(())
    }

    /// Takes the frames that came.
    async fn take(&mut self) -> Result<(), Ended> {
        let mut fates = Vec::new();
        let ended = self.frames(&mut fates);
        self.settle(fates).await;
        self.answer();
        // Before what follows is handed on: the handler moves the same cursor.
        if self.cursor_at.is_none() {
            self.write_place().await;
        }
        self.hand_on();
        ended
    }

    fn hand_on(&mut self) {
        let Some(feed) = self.feed.as_deref_mut() else { return };
        feed.hand_on();
        if let Some(frame) = feed.pause() {
            self.push(&frame);
        }
    }

    /// Writes down where the subscription begins; a disk that is full now may not be later.
    async fn write_place(&mut self) {
        let Some(feed) = self.feed.as_deref_mut() else { return };
        let Some(place) = feed.place() else { return };
        match self.outbox.set_cursor(feed.name(), place.clone()).await {
            Ok(()) => feed.placed(),
            Err(error) => {
                let seconds = CURSOR_AGAIN.as_secs();
                tracing::error!(
                    "the place of the subscription cannot be written ({error}); trying again every {seconds} s, nothing is handled until then"
                );
                self.cursor_at = Some(Instant::now() + CURSOR_AGAIN);
            }
        }
    }

    fn frames(&mut self, fates: &mut Vec<Fate>) -> Result<(), Ended> {
        let broken = |error: &dyn std::fmt::Display| Ended::Broken(error.to_string());
        while let Some(mut body) = self.pipe.frame().map_err(|e| broken(&e))? {
            match Received::parse(&mut body).map_err(|e| broken(&e))? {
                // A publish that could not even be read as one is refused as a frame.
                Received::Ack(ack)
                    if ack.is_of("publish") || (ack.is_of("frame") && self.drain.under_way() > 0) =>
                {
                    let (now, chance) = (self.begun.elapsed(), chance());
                    fates.push(self.drain.answered(&ack, now, chance).map_err(|e| broken(&e))?);
                    self.is_useful = true;
                }
                Received::Heartbeat => self.is_asked = true,
                Received::Close { reason, retry_after_ms } => {
                    return Err(Ended::Closed(reason.into_owned(), Duration::from_millis(retry_after_ms)));
                }
                Received::Ack(ack) if !ack.is_of("subscribe") => {}
                received => self.fed(received),
            }
        }
        Ok(())
    }

    fn fed(&mut self, received: Received<'_>) {
        let Some(feed) = self.feed.as_deref_mut() else { return };
        self.is_useful |= matches!(received, Received::Event { .. });
        if matches!(&received, Received::Ack(ack) if ack.is_ok()) {
            self.subscribe_at = None;
        }
        match feed.take(received) {
            After::Nothing => {}
            After::Anew => feed.anew_frames().iter().for_each(|frame| self.push(frame)),
            After::Refused(code, reason) => {
                let seconds = AGAIN.as_secs();
                tracing::error!(
                    "the broker refuses the subscription: {code}: {reason}; asking again every {seconds} s"
                );
                self.subscribe_at = Some(Instant::now() + AGAIN);
            }
        }
    }

    /// Writes down what became of events.
    async fn settle(&mut self, fates: Vec<Fate>) {
        let mut sent = Vec::new();
        for fate in fates {
            match fate {
                Fate::Sent(ack) => sent.push(ack),
                Fate::Failed(n, code, reason) => {
                    tracing::warn!(
                        n,
                        "the broker refuses an event: {code}: {reason}; 'castra agent outbox ls' shows it"
                    );
                    self.outbox.failed(n, &code, &reason).await;
                }
                Fate::Held(code, reason) => {
                    self.is_more = true;
                    tracing::debug!("the broker takes nothing just now: {code}: {reason}");
                    self.outbox.said(&format!("{code}: {reason}")).await;
                }
            }
        }
        if !sent.is_empty() {
            self.outbox.sent(sent).await;
        }
    }

    /// Waits for what is under way, and says that this is the end.
    async fn end(&mut self) {
        while self.drain.under_way() > 0 || !self.pipe.is_written() {
            let Ok(step) = self.pipe.step().await else { return };
            if self.stepped(step).await.is_err() {
                return;
            }
        }
        if !self.is_line {
            return self.pipe.shutdown().await;
        }
        self.pipe.push(&END);
        while !self.pipe.is_written() && self.pipe.step().await.is_ok() {}
    }
}
