//! A subscription that outlives its connection: it connects again and goes on behind the last event it handed out.
//!
//! ```text
//!         ack                  no room for HOLD               room
//! Asked ───────▶ Taking ──── unsubscribe ────▶ Paused ── subscribe from next ──▶ Asked
//!   ▲               │ what comes is read all the while, so that the session lives; between Taking and the next
//!   │ connected     ▼ ack it is dropped: the journal has it
//!   └───────── lost, closed, silent
//! ```
//!
//! Always holds: events are handed out in order, each once, and none that the broker still has is left out; it does
//! not go on in a journal that has another event where the last one was; what was handed out and is not done with is
//! bounded by [`FOLLOW_BYTES`] and one read (invariant 6); a link on which nothing comes is given up. Owner: the
//! command that follows; the agent, which has a link of its own, shares what a subscription knows.

mod known;
pub(in crate::core) mod state;

use super::awake::{self, Instant, sleep_until, timeout};
use super::backoff;
use super::chance::chance;
use super::client::{Client, ClientError, Sender, Target};
use super::identity::VmName;
use super::limits::FOLLOW_BYTES;
use super::topic::Pattern;
use super::wire::received::Gap;
use serde_json::{Value, json};
use state::{Broken, Following, Mode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

/// The subscription's name.
const SUB: &str = "cli";
/// Without room for so long the broker is told to stop sending: before it takes note of a socket that takes nothing.
const HOLD: Duration = Duration::from_millis(500);
/// A session that lasted so long was a good one: the next wait is a short one again.
const GOOD: Duration = Duration::from_secs(5);
/// A broker that asks for a longer wait than this is not obeyed.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What is followed.
#[derive(Clone, Debug)]
pub struct Follow {
    /// Where the broker is.
    pub target: Target,
    /// Who follows: the hello line, without its end.
    pub hello: String,
    /// An event that matches any of these.
    pub patterns: Vec<Pattern>,
    /// Where to begin.
    pub begin: Begin,
    /// How long to wait for what.
    pub times: Times,
}

/// The first event that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// What is published from now on.
    Latest,
    /// The oldest that there is.
    Earliest,
    /// This one.
    Seq(u64),
    /// What was published at this time or later; milliseconds since 1970.
    Time(u64),
    /// What follows the newest event of this id, of this VM if one is named: ids are each VM's own.
    Id(String, Option<VmName>),
    /// The newest event of each key, as far as it is behind this seq; then what is published.
    State(u64),
}

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For a connection and the answer to the hello.
    pub connect: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// For anything at all to come; heartbeats are answered.
    pub silence: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Times { connect: seconds(10), heartbeat: seconds(20), silence: seconds(60) }
    }
}

/// What there is to say and to hand out.
#[derive(Debug)]
pub enum News<'a> {
    /// From this seq on nothing is missed; said at the beginning and after each [`News::Lost`].
    Subscribed(u64),
    /// The lines of events, in order, each with its end. To be given back to the [`Room`].
    Events(Vec<u8>),
    /// Events that are gone.
    Gap(Gap),
    /// The broker cannot bring the state that was followed up to date: it comes anew, and then ends of keys that it lacks.
    Anew,
    /// There is no session just now; it goes on with this seq.
    Lost(&'a ClientError, u64),
}

/// Why there is nothing more.
#[derive(Debug)]
pub enum Failed {
    /// The subscription was refused.
    Refused {
        /// A code of `docs/BUS.md`.
        code: String,
        /// A sentence.
        reason: String,
        /// The first subscription was not; this is what it was to go on with.
        next: Option<u64>,
    },
    /// Another event stands where the last one was that was handed out; this was to come next.
    OtherJournal {
        /// The seq that both have.
        seq: u64,
        /// What was to come next.
        next: u64,
    },
    /// There was no session to begin with, or there cannot be one again.
    NoSession(ClientError),
}

/// What was handed out and is not done with. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Room(Arc<(AtomicUsize, Notify)>);

impl Room {
    /// These bytes of [`News::Events`] are done with.
    pub fn give_back(&self, bytes: usize) {
        let (used, freed) = &*self.0;
        let before = used.fetch_sub(bytes, Ordering::AcqRel);
        if before > FOLLOW_BYTES / 2 && before - bytes <= FOLLOW_BYTES / 2 {
            freed.notify_one();
        }
    }

    fn take(&self, bytes: usize) {
        self.0.0.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The bytes that are not done with.
    pub(in crate::core) fn used(&self) -> usize {
        self.0.0.load(Ordering::Acquire)
    }

    /// Waits until half of it is free.
    pub(in crate::core) async fn freed(&self) {
        while self.used() > FOLLOW_BYTES / 2 {
            self.0.1.notified().await;
        }
    }
}

impl Follow {
    /// Says hello.
    ///
    /// # Errors
    /// There is no session, or not within the time.
    pub async fn connect(&self) -> Result<Client, ClientError> {
        let _watch = awake::watch();
        let connected = timeout(self.times.connect, Client::connect(&self.target, &self.hello)).await;
        connected.unwrap_or_else(|_| Err(ClientError::Connect(std::io::ErrorKind::TimedOut.into())))
    }

    /// Follows, beginning with the session of `client`, until that is not possible any more.
    pub async fn run(&self, mut client: Client, room: &Room, mut news: impl FnMut(News<'_>)) -> Failed {
        let _watch = awake::watch();
        let (mut state, mut attempt) = (Following::new(&self.begin), 0);
        loop {
            let since = Instant::now();
            let before = state.next;
            let mut wait = match self.session(client, &mut state, room, &mut news).await {
                Broken::Refused { code, .. } if code == "state-expired" && state.begin_anew() => {
                    news(News::Anew);
                    Duration::ZERO
                }
                Broken::Refused { code, .. } if code == "view-behind" && state.keeps() => {
                    news(News::Lost(&ClientError::Closed(code), state.next.unwrap_or(1)));
                    Duration::ZERO
                }
                Broken::Refused { code, reason } => {
                    return Failed::Refused { code, reason, next: state.next };
                }
                Broken::OtherJournal { seq, next } => return Failed::OtherJournal { seq, next },
                Broken::Lost { error, .. } if !may_pass(&error) => return Failed::NoSession(error),
                Broken::Lost { error, retry_after } => match state.next {
                    None => return Failed::NoSession(error),
                    Some(next) => {
                        news(News::Lost(&error, next));
                        retry_after.min(LONGEST_RETRY)
                    }
                },
            };
            if state.next != before || since.elapsed() >= GOOD {
                attempt = 0;
            }
            client = loop {
                sleep(wait + backoff::wait(attempt, chance())).await;
                wait = Duration::ZERO;
                attempt += 1;
                match self.connect().await {
                    Ok(client) => break client,
                    Err(error) if !may_pass(&error) => return Failed::NoSession(error),
                    Err(_) => {}
                }
            };
        }
    }

    async fn session(
        &self,
        client: Client,
        state: &mut Following,
        room: &Room,
        news: &mut impl FnMut(News<'_>),
    ) -> Broken {
        match self.serve(client, state, room, news).await {
            Ok(never) => never,
            Err(error) => error.into(),
        }
    }

    async fn serve(
        &self,
        client: Client,
        state: &mut Following,
        room: &Room,
        news: &mut impl FnMut(News<'_>),
    ) -> Result<Broken, ClientError> {
        let (mut sender, mut receiver) = client.split();
        state.begin();
        self.subscribe(&mut sender, state).await?;
        let (mut mode, mut heard) = (Mode::Asked, Instant::now());
        let mut beat = interval_at((heard + self.times.heartbeat).timer(), self.times.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                result = receiver.each(|received| state.take(received, &mut mode, news)) => {
                    heard = Instant::now();
                    state.hand_out(room, news);
                    if let Some(broken) = state.closed.take() {
                        return Ok(broken);
                    }
                    result?;
                    if std::mem::take(&mut state.is_asked) {
                        send(&mut sender, &json!({"type": "heartbeat"})).await?;
                    }
                }
                _ = beat.tick() => send(&mut sender, &json!({"type": "heartbeat"})).await?,
                () = room.freed(), if mode == Mode::Paused => {
                    self.subscribe(&mut sender, state).await?;
                    mode = Mode::Asked;
                }
                () = sleep_until(heard + self.times.silence) => {
                    let why = format!("nothing came for {}", humantime::format_duration(self.times.silence));
                    return Err(ClientError::Lost(std::io::Error::new(std::io::ErrorKind::TimedOut, why)));
                }
            }
            if mode == Mode::Taking
                && room.used() >= FOLLOW_BYTES
                && timeout(HOLD, room.freed()).await.is_err()
            {
                send(&mut sender, &json!({"type": "unsubscribe", "sub": SUB})).await?;
                mode = Mode::Paused;
            }
        }
    }

    /// Asks for what comes next, or for the beginning.
    async fn subscribe(&self, sender: &mut Sender, state: &Following) -> Result<(), ClientError> {
        send(sender, &subscribe(SUB, &self.patterns, state.place(&self.begin))).await
    }
}

/// The frame that subscribes from this place on.
pub(in crate::core) fn subscribe(sub: &str, patterns: &[Pattern], from: Value) -> Value {
    let mut frame = json!({"type": "subscribe", "sub": sub, "from": from});
    match patterns {
        [pattern] => frame["topic"] = pattern.as_str().into(),
        several => frame["topics"] = several.iter().map(Pattern::as_str).collect(),
    }
    frame
}

/// A beginning, as frames say it.
pub(in crate::core) fn place(begin: &Begin) -> Value {
    match begin {
        Begin::Latest => json!("latest"),
        Begin::Earliest => json!("earliest"),
        Begin::Seq(seq) => json!({"seq": seq}),
        Begin::Time(ms) => json!({"ts": ms}),
        Begin::Id(id, None) => json!({"id": id}),
        Begin::Id(id, Some(vm)) => json!({"id": id, "vm": vm.as_str()}),
        Begin::State(after) => json!({"state": after}),
    }
}

async fn send(sender: &mut Sender, frame: &Value) -> Result<(), ClientError> {
    sender.send([frame.to_string().as_bytes()]).await
}

/// Whether it makes sense to connect again.
pub fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Connect(error) => error.kind() != std::io::ErrorKind::PermissionDenied,
        ClientError::Refused(reason) => {
            let passing = ["hello-timeout", "draining", "journal-failed"];
            passing.contains(&reason.as_str()) || reason.starts_with("too-many-")
        }
        ClientError::Closed(_) | ClientError::Lost(_) => true,
        ClientError::Protocol(_) => false,
    }
}
