//! Runs a command for each event of a group, as many at once as the member holds.
//!
//! Always holds: an event is acked when its command ended with 0, else nacked with what it said last; while one runs for
//! long, the group is told that it goes on. Owner: `member.rs`; `core/exec.rs` runs it.

use super::exec::{how_it_ended, say_short};
use super::say::Sayer;
use super::work::Tally;
use crate::app::stderr;
use crate::core::awake::timeout;
use crate::core::client::{Context, Delivery};
use crate::core::exec::{Facts, Job, Listener, Running};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::sleep;

/// What waits to be written to stderr, in lines; then commands wait that write to theirs.
const LINES: usize = 64;
/// Why a command's stderr was closed, and what to do.
const CUT_OFF: &str = "because something that it left running still held it open; redirect the stderr of what is to outlive \
                       the command";

/// Runs `sh -c` with this command.
pub struct Exec {
    work: Work,
    /// Of the time to answer.
    half: Duration,
    ended: UnboundedSender<Tally>,
    all: All,
    /// Resolves when all that commands wrote to stderr is written.
    written: oneshot::Receiver<()>,
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

    /// Those that wait to be started are not.
    pub fn give_up(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().for_each(Running::give_up);
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
    ///
    /// # Errors
    /// The thread that passes on what commands write to stderr cannot be started.
    pub fn new(
        command: &str,
        group: &str,
        sayer: Sayer,
        half: Duration,
        ended: UnboundedSender<Tally>,
    ) -> io::Result<Self> {
        let (onto, mut lines) = mpsc::channel::<Vec<u8>>(LINES);
        let (is_written, written) = oneshot::channel();
        // A reader of stderr that stops holds up the commands that write to it, and nothing else.
        Builder::new().spawn(move || {
            while let Some(line) = lines.blocking_recv() {
                stderr::write_waiting(&line);
            }
            let _ = is_written.send(());
        })?;
        let work = Work { command: command.into(), group: group.into(), sayer, onto, cut: Arc::default() };
        let half = half.max(Duration::from_millis(1));
        Ok(Exec { work, half, ended, all: All::default(), written })
    }

    /// Those that run.
    pub fn running(&self) -> All {
        self.all.clone()
    }

    /// Starts the command for an event.
    pub fn start(&self, delivery: Delivery) {
        let (work, ended, all, half) = (self.work.clone(), self.ended.clone(), self.all.clone(), self.half);
        let seq = delivery.event.seq;
        let running = all.begin(seq);
        tokio::spawn(async move {
            let context = delivery.context();
            let tally = tokio::select! {
                tally = work.run(delivery, &running) => tally,
                never = pulse(context, half) => match never {},
            };
            all.end(seq);
            // Nobody may be waiting any more.
            let _ = ended.send(tally);
        });
    }

    /// No more are to be started; their end is that of the last command.
    pub fn finish(self) -> Rest {
        Rest { cut: self.work.cut, sayer: self.work.sayer, written: self.written }
    }
}

/// What commands wrote to stderr and is not written yet.
pub struct Rest {
    cut: Arc<AtomicU64>,
    sayer: Sayer,
    written: oneshot::Receiver<()>,
}

impl Rest {
    /// Waits until it is written, `limit` at the most.
    pub async fn write_within(self, limit: Duration) {
        let _ = timeout(limit, self.written).await;
        let commands = self.cut.load(Ordering::Relaxed);
        if commands > 1 {
            let text = format!("the stderr of {commands} commands was closed, {CUT_OFF}");
            self.sayer.warn("stderr-cut-off", &text, &[("commands", commands)]);
        }
    }
}

/// Says that it goes on.
async fn pulse(context: Context, half: Duration) -> Infallible {
    loop {
        sleep(half).await;
        // Who has the event by now does it, too; that cannot be helped.
        let _ = context.in_progress().await;
    }
}

/// What each command needs.
#[derive(Clone)]
struct Work {
    command: Arc<str>,
    group: Arc<str>,
    sayer: Sayer,
    /// To whoever writes it to stderr.
    onto: mpsc::Sender<Vec<u8>>,
    /// Commands whose stderr was closed.
    cut: Arc<AtomicU64>,
}

impl Work {
    async fn run(&self, delivery: Delivery, running: &Running) -> Tally {
        let mut line = delivery.event.line().to_vec();
        line.push(b'\n');
        let seq = delivery.event.seq;
        let Some(facts) = Facts::of(&line) else {
            drop(delivery.term("it is no event"));
            return Tally { failed: 1, ..Tally::default() };
        };
        let more = [
            ("CASTRA_GROUP", self.group.to_string()),
            ("CASTRA_ATTEMPT", delivery.attempt.to_string()),
            ("CASTRA_MAX_ATTEMPTS", delivery.max_attempts.to_string()),
        ];
        let short = |error: &io::Error| say_short(self.sayer, seq, error);
        let command = &*self.command;
        let job = Job { command, facts: &facts, more: &more, line: &line, running, short: &short };
        match job.run_heard(self.listener(seq)).await {
            Ok(Some((status, _))) if status.success() => {
                drop(delivery.ack());
                Tally { done: 1, ..Tally::default() }
            }
            Ok(Some((status, said))) => {
                let (how, field) = how_it_ended(status);
                let (attempt, most) = (delivery.attempt, delivery.max_attempts);
                let text = format!("the command {how} for event {seq}, attempt {attempt} of {most}");
                self.sayer.warn("command-failed", &text, &[("seq", seq), ("attempt", attempt.into()), field]);
                let reason = if said.is_empty() { how } else { format!("{how}: {said}") };
                drop(delivery.nack(reason));
                Tally { done: 1, failed: 1, broken: None }
            }
            // Told to end before it could be started: it was not begun, so it goes to others as it is.
            Ok(None) => {
                delivery.put_back();
                Tally::default()
            }
            Err(error) => {
                let why = format!("no command can be run for event {seq}: {error}");
                drop(delivery.nack(&why));
                Tally { broken: Some(io::Error::new(error.kind(), why)), ..Tally::default() }
            }
        }
    }

    fn listener(&self, seq: u64) -> Listener<impl FnOnce() + Send + 'static> {
        let (sayer, cut) = (self.sayer, self.cut.clone());
        let cut_off = move || {
            // The first one is said, the others are counted.
            if cut.fetch_add(1, Ordering::Relaxed) == 0 {
                let text = format!("the stderr of the command for event {seq} was closed, {CUT_OFF}");
                sayer.warn("stderr-cut-off", &text, &[("seq", seq)]);
            }
        };
        Listener { onto: self.onto.clone(), cut_off }
    }
}
