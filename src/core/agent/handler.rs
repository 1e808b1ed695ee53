//! The handler of events: a command for each, in order, and the cursor behind those that are done.
//!
//! ```text
//! feed ── lines ──▶ run ── 0 ─────────────────▶ cursor
//!                    │  ── else: wait, again ──▶ run … 5 times ──▶ said, counted, cursor
//! ```
//!
//! Always holds: a command has ended before the next one begins; the cursor moves behind an event when its command
//! ended with 0, or failed 5 times; what was not done is begun again after a restart. Owner: `mod.rs`.

use super::outbox::{Cursor, Outbox};
use crate::core::awake::timeout;
use crate::core::backoff;
use crate::core::chance::chance;
use crate::core::exec::{Facts, Job, Running};
use crate::core::follow::Room;
use crate::core::limits::{HANDLER_ATTEMPTS, HANDLER_TIME};
use nix::sys::signal::Signal;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::sleep;

/// The subscription's name.
pub const SUB: &str = "agent";
/// The first wait after a command that failed is this at the most, the next ones twice as long each …
const FIRST: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST: Duration = Duration::from_secs(30);
/// A command that is told to end has so long until it is killed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What was done. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<(AtomicU64, AtomicU64)>);

impl Tally {
    /// Events that were handled.
    pub fn handled(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Events that were passed over.
    pub fn passed_over(&self) -> u64 {
        self.0.1.load(Ordering::Relaxed)
    }
}

/// Runs a command for each event.
pub struct Handler {
    /// What `sh -c` runs.
    pub command: String,
    /// The cursor's name.
    pub cursor: String,
    /// Where it is kept.
    pub outbox: Outbox,
    /// Where lines that are done are given back.
    pub room: Room,
    /// What was done.
    pub tally: Tally,
}

impl Handler {
    /// Handles what comes, until it is told to end, or there is nothing more.
    pub async fn run(self, mut lines: UnboundedReceiver<Vec<u8>>, mut stop: watch::Receiver<bool>) {
        while let Some(bytes) = lines.recv().await {
            for line in bytes.split_inclusive(|b| *b == b'\n') {
                if *stop.borrow() || !self.event(line, &mut stop).await {
                    return;
                }
                self.room.give_back(line.len());
            }
        }
    }

    /// Handles one; whether to go on.
    async fn event(&self, line: &[u8], stop: &mut watch::Receiver<bool>) -> bool {
        let Some(facts) = Facts::of(line) else {
            tracing::warn!("something that is no event was received and left out");
            return true;
        };
        let (seq, ts, id) = (facts.seq, facts.ts, facts.id.clone().into_owned());
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Err(how) = self.attempt(line, &facts, stop).await else {
                self.tally.0.0.fetch_add(1, Ordering::Relaxed);
                break;
            };
            if *stop.borrow() {
                return false;
            }
            if attempt >= HANDLER_ATTEMPTS {
                self.tally.0.1.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    seq,
                    id,
                    "the handler {how} for event {seq}, {attempt} times; the event is passed over"
                );
                break;
            }
            tracing::warn!(seq, attempt, "the handler {how} for event {seq}; trying it again");
            let wait = FIRST / 2 + backoff::wait_within(FIRST, LONGEST, attempt - 1, chance());
            if timeout(wait, told(stop)).await.is_ok() {
                return false;
            }
        }
        let cursor = Cursor { seq, ts, id };
        // The next event moves it further; until then a restart handles this one again.
        if let Err(error) = self.outbox.set_cursor(&self.cursor, cursor).await {
            tracing::error!(%error, seq, "the cursor cannot be written");
        }
        true
    }

    /// Runs the command once; why it failed. When the agent is told to end it has [`HANDLER_TIME`] to, and is not begun any
    /// more.
    async fn attempt(
        &self,
        line: &[u8],
        facts: &Facts<'_>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), String> {
        let (running, command, seq) = (Running::default(), self.command.as_str(), facts.seq);
        let short = |error: &io::Error| {
            tracing::warn!(%error, seq, "the handler cannot be started now for event {seq}; trying again");
        };
        let job = Job { command, facts, more: &[], line, running: &running, short: &short };
        let mut done = pin!(job.run());
        let status = tokio::select! {
            status = &mut done => status,
            () = told(stop) => {
                running.give_up();
                let mut signals = [(HANDLER_TIME, Signal::SIGTERM), (LAST_WORDS, Signal::SIGKILL)].into_iter();
                loop {
                    let Some((time, signal)) = signals.next() else { break done.await };
                    tokio::select! {
                        status = &mut done => break status,
                        () = sleep(time) => running.signal_all(signal),
                    }
                }
            }
        };
        match status {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(format!("ended with {status}")),
            Ok(None) => Err("was not begun".to_owned()),
            Err(error) => Err(format!("cannot be run ({error})")),
        }
    }
}

/// Resolves when the agent is told to end.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone says nothing more: that is the end as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
