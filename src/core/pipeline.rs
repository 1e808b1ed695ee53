//! Many publishes over one session, none of them waiting for the ack of the one before.
//!
//! ```text
//! reader ─ bursts ─▶ [window] ─ frames ─▶ broker
//!                       ▲                    │ acks, in order
//!        whoever prints ┴──── settled ◀──────┘
//! ```
//!
//! Always holds: what is sent and not settled, or settled and not given back to the window, is bounded by
//! [`super::limits::PIPELINE_EVENTS`] and [`PIPELINE_BYTES`] (invariant 6); acks are read whatever else waits, so that a slow printer
//! is no slow consumer; at the end every line is settled, or known as not stored, or known as unknown. Owner: the
//! command that publishes lines.

use super::awake::{self, Instant, sleep_until, timeout};
use super::burst::{Burst, Sent};
use super::client::{Client, ClientError, Receiver, Sender};
use super::limits::PIPELINE_BYTES;
use super::wire::received::Ack;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};

/// A session that is idle says that it lives so often; a broker ends it after 60 s, or what its operator set.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What became of a line.
#[derive(Debug)]
pub struct Settled {
    /// Its number.
    pub line: u64,
    /// What it takes of the window, until it is given back with [`Window::give_back`].
    pub weight: u32,
    /// How it ended.
    pub fate: Fate,
}

/// How a line ended.
#[derive(Debug)]
pub enum Fate {
    /// It is durable.
    Stored {
        /// Its place in the one order.
        seq: u64,
        /// Its id.
        id: Box<str>,
        /// Its topic.
        topic: Box<str>,
        /// The logs have it, too.
        in_logs: bool,
        /// It was stored before, with this id.
        duplicate: bool,
    },
    /// It is refused: a code of `docs/BUS.md` and a reason.
    Refused(Box<str>, Box<str>),
    /// The broker could not take it, or nobody knows: [`End`] has it.
    Open,
}

/// What may be under way, and a way to stop. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Window {
    free: Arc<Semaphore>,
    stop: Arc<Notify>,
}

impl Window {
    /// Nothing is under way.
    #[allow(clippy::new_without_default, reason = "a window of no pipeline is of no use")]
    pub fn new() -> Self {
        Window { free: Arc::new(Semaphore::new(PIPELINE_BYTES)), stop: Arc::default() }
    }

    /// What was settled is done with.
    pub fn give_back(&self, weight: usize) {
        self.free.add_permits(weight);
    }

    /// Nothing more is to be sent; what is under way is settled.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

/// Why nothing more is sent.
#[derive(Debug)]
pub enum Why {
    /// There is nothing more.
    Done,
    /// [`Window::stop`].
    Stopped,
    /// The broker could not take an event: its code.
    Refused(String),
    /// The session ended.
    Lost(ClientError),
    /// Events were under way, and no ack came in the time.
    Stalled,
}

/// How it ended, and for which lines it is not [`Fate::Stored`] or [`Fate::Refused`].
#[derive(Debug)]
pub struct End {
    /// Why nothing more was sent.
    pub why: Why,
    /// Lines that are not stored while later ones are, or may be: first and last of each range, in order. Refused ones
    /// may stand between.
    pub not_stored: Vec<(u64, u64)>,
    /// Lines that are stored or not, in order, with their ids. Those of one session are stored in their order: some
    /// from the front, or none.
    pub unknown: Vec<(u64, Box<str>)>,
    /// From this line on nothing is stored.
    pub resume: u64,
}

/// Publishes what comes out of `bursts` until it is over, something fails or the window is stopped; a `stall` without
/// any ack is a failure while something is under way. `settled` is told of every line, in order.
pub async fn run(
    client: Client,
    bursts: mpsc::Receiver<Burst>,
    window: &Window,
    stall: Duration,
    settled: impl FnMut(Vec<Settled>),
) -> End {
    let _watch = awake::watch();
    let (mut sender, mut receiver) = client.split();
    let state = State::default();
    let (sending, receiving) =
        (state.send(&mut sender, bursts, window), state.receive(&mut receiver, settled));
    let stalled = state.stalled(stall);
    tokio::pin!(sending, receiving, stalled);
    let mut is_sent = false;
    let error = loop {
        tokio::select! {
            biased;
            result = &mut receiving => break result.err().map(Why::Lost),
            result = &mut sending, if !is_sent => {
                is_sent = true;
                // What the broker said before the connection broke can still be read.
                state.finish(result.err().map(Why::Lost));
            }
            () = window.stop.notified() => state.finish(Some(Why::Stopped)),
            () = &mut stalled => break Some(Why::Stalled),
        }
    };
    state.end(error)
}

/// What sending and receiving share.
#[derive(Default)]
struct State {
    /// Sent, or refused here, and not settled.
    pending: RefCell<VecDeque<Sent>>,
    not_stored: RefCell<Vec<(u64, u64)>>,
    unknown: RefCell<Vec<(u64, Box<str>)>>,
    /// The line before was not stored.
    in_gap: Cell<bool>,
    last_line: Cell<u64>,
    /// Nothing more is sent …
    finished: Cell<bool>,
    /// … for this reason; none when there is nothing more.
    why: RefCell<Option<Why>>,
    /// The last ack, or the first event behind them all.
    heard: Cell<Option<Instant>>,
    /// `pending` has something to settle without an ack, or `finished` is new.
    changed: Notify,
}

impl State {
    fn finish(&self, why: Option<Why>) {
        if !self.finished.replace(true) {
            *self.why.borrow_mut() = why;
        }
        self.changed.notify_one();
    }

    async fn send(
        &self,
        sender: &mut Sender,
        mut bursts: mpsc::Receiver<Burst>,
        window: &Window,
    ) -> Result<(), ClientError> {
        let mut next = None;
        loop {
            let burst = match timeout(HEARTBEAT, ready(&mut bursts, &mut next, window)).await {
                Err(_) => {
                    sender.send([&b"{\"type\":\"heartbeat\"}"[..]]).await?;
                    continue;
                }
                Ok(None) => return Ok(()),
                Ok(Some(_)) if self.finished.get() => return Ok(()),
                Ok(Some(burst)) => burst,
            };
            if self.pending.borrow().is_empty() {
                self.heard.set(Some(Instant::now()));
            }
            if burst.sent.iter().any(|sent| sent.refusal.is_some()) {
                self.changed.notify_one();
            }
            self.last_line.set(burst.last_line);
            self.pending.borrow_mut().extend(burst.sent);
            sender.write(&burst.frames).await?;
        }
    }

    async fn receive(
        &self,
        receiver: &mut Receiver,
        mut settled: impl FnMut(Vec<Settled>),
    ) -> Result<(), ClientError> {
        loop {
            let mut out = Vec::new();
            self.settle_refused(&mut out);
            let result = if out.is_empty() {
                if self.finished.get() && self.pending.borrow().is_empty() {
                    return Ok(());
                }
                tokio::select! {
                    biased;
                    result = receiver.acks(|ack| self.settle(ack, &mut out)) => {
                        self.heard.set(Some(Instant::now()));
                        result
                    }
                    () = self.changed.notified() => Ok(()),
                }
            } else {
                Ok(())
            };
            if !out.is_empty() {
                settled(out);
            }
            result?;
        }
    }

    /// Lines at the front that wait for no ack.
    fn settle_refused(&self, out: &mut Vec<Settled>) {
        let mut pending = self.pending.borrow_mut();
        while let Some(refusal) = pending.front_mut().and_then(|sent| sent.refusal.take()) {
            let fate = Fate::Refused(refusal.code.into(), refusal.reason.into());
            let sent = pending.pop_front();
            out.extend(sent.map(|sent| Settled { line: sent.line, weight: sent.weight, fate }));
        }
    }

    fn settle(&self, ack: &Ack<'_>, out: &mut Vec<Settled>) {
        self.settle_refused(out);
        let Some(Sent { line, weight, id, topic, .. }) = self.pending.borrow_mut().pop_front() else {
            return;
        };
        let code = ack.code.as_ref().map_or("refused", |code| &code.0);
        let reason = ack.reason.as_ref().map_or("no reason given", |reason| &reason.0);
        let seq = ack.seq.unwrap_or(0);
        let fate = match code {
            _ if ack.is_ok() => Fate::Stored { seq, id, topic, in_logs: true, duplicate: ack.duplicate },
            "logs-behind" => Fate::Stored { seq, id, topic, in_logs: false, duplicate: false },
            "disk-full" | "outcome-unknown" => {
                self.finish(Some(Why::Refused(code.to_owned())));
                self.open(code == "outcome-unknown", line, id);
                Fate::Open
            }
            _ => Fate::Refused(code.into(), reason.into()),
        };
        if matches!(fate, Fate::Stored { .. }) {
            self.in_gap.set(false);
        }
        out.push(Settled { line, weight, fate });
    }

    /// A line that is not stored, or nobody knows.
    fn open(&self, unknown: bool, line: u64, id: Box<str>) {
        if unknown {
            self.in_gap.set(false);
            self.unknown.borrow_mut().push((line, id));
            return;
        }
        let mut ranges = self.not_stored.borrow_mut();
        match ranges.last_mut() {
            Some(range) if self.in_gap.get() => range.1 = line,
            _ => ranges.push((line, line)),
        }
        self.in_gap.set(true);
    }

    /// Resolves when something was under way for so long without an ack.
    async fn stalled(&self, stall: Duration) {
        loop {
            let now = Instant::now();
            let waiting = !self.pending.borrow().is_empty();
            let due = self.heard.get().filter(|_| waiting).unwrap_or(now) + stall;
            if waiting && due <= now {
                return;
            }
            sleep_until(due).await;
        }
    }

    fn end(&self, error: Option<Why>) -> End {
        // The broker answers all that it took before it closes a session.
        let unknown = !matches!(error, Some(Why::Lost(ClientError::Closed(_))));
        for sent in self.pending.take() {
            if sent.refusal.is_none() {
                self.open(unknown, sent.line, sent.id);
            }
        }
        let why = match (error, self.why.take()) {
            (_, Some(why @ Why::Refused(..))) => why,
            (Some(error), _) => error,
            (None, why) => why.unwrap_or(Why::Done),
        };
        let mut not_stored = self.not_stored.take();
        let last = if self.in_gap.get() { not_stored.pop() } else { None };
        let resume = last.map_or(self.last_line.get() + 1, |(first, _)| first);
        End { why, not_stored, unknown: self.unknown.take(), resume }
    }
}

/// The next burst that the window has room for. `next` keeps it while it has not.
async fn ready(
    bursts: &mut mpsc::Receiver<Burst>,
    next: &mut Option<Burst>,
    window: &Window,
) -> Option<Burst> {
    if next.is_none() {
        *next = bursts.recv().await;
    }
    let weight = next.as_ref()?.weight as u32;
    window.free.acquire_many(weight).await.ok()?.forget();
    next.take()
}
