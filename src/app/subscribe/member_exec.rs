//! Runs a command for each event of a group, as many at once as the member holds.
//!
//! Always holds: an event is acked when its command ended with 0, else nacked with what it said last; while one runs for
//! long, the group is told that it goes on. Owner: `member.rs`; `core/exec.rs` runs it.

use super::exec::how_it_ended;
use super::say::Sayer;
use super::work::Tally;
use crate::core::client::{Context, Delivery};
use crate::core::exec::{self, Facts, Running};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Runs `sh -c` with this command.
pub struct Exec {
    command: Arc<str>,
    group: Arc<str>,
    sayer: Sayer,
    /// Of the time to answer.
    half: Duration,
    ended: UnboundedSender<Tally>,
    all: All,
}

/// Those that run, by the seqs of their events. Clones are the same ones.
#[derive(Clone, Default)]
pub struct All(Arc<Mutex<HashMap<u64, Running>>>);

impl All {
    /// Whether one runs.
    pub fn is_any(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Sends a signal to all of them, and to one that is just being started.
    pub fn signal(&self, signal: Signal) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().for_each(|running| running.signal_all(signal));
    }

    fn begin(&self, seq: u64) -> Running {
        let running = Running::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(seq, running.clone());
        running
    }

    fn end(&self, seq: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&seq);
    }
}

impl Exec {
    /// A command, whose end is told to `ended`; a group waits twice `half` for an answer.
    pub fn new(
        command: &str,
        group: &str,
        sayer: Sayer,
        half: Duration,
        ended: UnboundedSender<Tally>,
    ) -> Self {
        let (command, group, all) = (command.into(), group.into(), All::default());
        Exec { command, group, sayer, half: half.max(Duration::from_millis(1)), ended, all }
    }

    /// Those that run.
    pub fn running(&self) -> All {
        self.all.clone()
    }

    /// Starts the command for an event.
    pub fn start(&self, delivery: Delivery) {
        let (over, is_over) = oneshot::channel::<()>();
        tokio::spawn(pulse(delivery.context(), self.half, is_over));
        let (command, group, sayer) = (self.command.clone(), self.group.clone(), self.sayer);
        let (ended, all) = (self.ended.clone(), self.all.clone());
        let seq = delivery.event.seq;
        let running = all.begin(seq);
        let started = Builder::new().spawn(move || {
            let tally = run(&command, &group, delivery, &running, sayer);
            drop(over);
            all.end(seq);
            // Nobody may be waiting any more.
            let _ = ended.send(tally);
        });
        if let Err(error) = started {
            self.all.end(seq);
            let _ = self.ended.send(Tally { broken: Some(error), ..Tally::default() });
        }
    }
}

/// Says that it goes on, until it is over.
async fn pulse(context: Context, half: Duration, mut is_over: oneshot::Receiver<()>) {
    while timeout(half, &mut is_over).await.is_err() {
        // Who has the event by now does it, too; that cannot be helped.
        let _ = context.in_progress().await;
    }
}

fn run(command: &str, group: &str, delivery: Delivery, running: &Running, sayer: Sayer) -> Tally {
    let mut line = delivery.event.line().to_vec();
    line.push(b'\n');
    let seq = delivery.event.seq;
    let Some(facts) = Facts::of(&line) else {
        drop(delivery.term("it is no event"));
        return Tally { failed: 1, ..Tally::default() };
    };
    let more = [
        ("CASTRA_GROUP", group.to_owned()),
        ("CASTRA_ATTEMPT", delivery.attempt.to_string()),
        ("CASTRA_MAX_ATTEMPTS", delivery.max_attempts.to_string()),
    ];
    // Nobody may be reading.
    let pass_on = |said: &[u8]| drop(io::stderr().write_all(said));
    match exec::run_heard(command, &facts, &more, &line, running, pass_on) {
        Ok((status, _)) if status.success() => {
            drop(delivery.ack());
            Tally { done: 1, ..Tally::default() }
        }
        Ok((status, said)) => {
            let (how, field) = how_it_ended(status);
            let (attempt, most) = (delivery.attempt, delivery.max_attempts);
            let text = format!("the command {how} for event {seq}, attempt {attempt} of {most}");
            sayer.warn("command-failed", &text, &[("seq", seq), ("attempt", attempt.into()), field]);
            let reason = if said.is_empty() { how } else { format!("{how}: {said}") };
            drop(delivery.nack(reason));
            Tally { done: 1, failed: 1, broken: None }
        }
        Err(error) => {
            let why = format!("no command can be run for event {seq}: {error}");
            drop(delivery.nack(&why));
            Tally { broken: Some(io::Error::new(error.kind(), why)), ..Tally::default() }
        }
    }
}
