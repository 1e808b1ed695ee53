//! Observable signals: what happened, for files that people and scripts read.
//!
//! `handshakes/handshake-events.jsonl` has a record per handshake, `handshakes/bus-events.jsonl` one per signal of
//! a session (`signals.rs`), `logs/broker.log` the broker's own lines. Always holds: whoever signals never waits
//! for the disk; what does not fit the queue is counted and said in `status` (invariant 11); each file rotates
//! like a log. Owner: `broker.rs`; one thread writes. Each session owns its [`Signals`].

use super::append_file::{AppendFile, Look, say_changed};
use super::clock;
use super::counters::Counting;
use super::harmless::harmless;
use super::identity::VmName;
use super::limits::SIGNALS_QUEUED;
use super::rotation::rotate;
use super::signals::{Limiter, Signal, Verdict};
use super::state_root::StateRoot;
use super::status::ReloadRefused;
use serde::Serialize;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::Instant;

/// The end waits so long for what was signalled to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// One handshake, as `handshake-events.jsonl` has it.
#[derive(Debug, Serialize)]
pub struct Handshake<'a> {
    /// Unix seconds.
    pub timestamp: u64,
    /// The name that was said, if one was.
    pub vm: Option<&'a str>,
    /// Sorted.
    pub capabilities: &'a [String],
    /// `bus-v1`, or `handshake-only`.
    pub session_kind: &'static str,
    /// `granted`, `denied` or `timeout`.
    pub session_outcome: &'static str,
    /// Why not granted.
    pub reason: Option<&'a str>,
    /// What proved the name, when that was judged: `cid`, `socket`, `token`, or `name` for nothing.
    pub identity: Option<&'static str>,
    /// Who it was.
    pub remote_addr: &'a str,
}

/// One signal of a session, as `bus-events.jsonl` has it.
#[derive(Debug, Serialize)]
pub struct BusEvent<'a> {
    /// Unix seconds.
    pub timestamp: u64,
    /// Whose session.
    pub vm: &'a str,
    /// Which session; not its token.
    pub session: u64,
    /// Stable, kebab-case.
    pub reason: &'static str,
    /// What was done; one word, stable.
    pub action: &'static str,
    /// How many before it were not said; not there when none.
    #[serde(skip_serializing_if = "is_zero")]
    pub folded: u64,
    /// For people.
    pub detail: &'a str,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What one session signals: counted each time, said as a log line and a record unless it was said lately.
#[derive(Debug)]
pub struct Signals {
    recorder: Arc<Recorder>,
    vm: VmName,
    session: u64,
    limiter: Limiter,
    since: Instant,
}

impl Signals {
    /// Those of a session that begins, which is counted; `session` is its number in records.
    pub fn new(recorder: Arc<Recorder>, vm: VmName, session: u64) -> Self {
        recorder.counters.sessions_opened.fetch_add(1, Relaxed);
        Signals { recorder, vm, session, limiter: Limiter::default(), since: Instant::now() }
    }

    /// Signals. The detail is not written out unless it is said. Behind the session's end there is nothing more to
    /// signal, and nothing is.
    pub fn say(&mut self, signal: Signal, detail: impl Display) {
        let verdict = self.limiter.judge(signal, self.since.elapsed());
        if verdict == Verdict::Over {
            return;
        }
        let counters = &self.recorder.counters;
        counters.signal(signal);
        let Verdict::Say { folded } = verdict else {
            counters.signals_folded.fetch_add(1, Relaxed);
            return;
        };
        let (vm, session, detail) = (self.vm.as_str(), self.session, detail.to_string());
        let (reason, action, detail) = (signal.reason(), signal.action(), detail.as_str());
        let if_any = (folded > 0).then_some(folded);
        tracing::info!(vm, session, reason, action, folded = if_any, detail, "session");
        let timestamp = clock::wall_ms() / 1000;
        self.recorder.bus_event(&BusEvent { timestamp, vm, session, reason, action, folded, detail });
    }
}

#[derive(Clone, Copy)]
enum Target {
    Handshakes = 0,
    BusEvents = 1,
    BrokerLog = 2,
}

enum Job {
    Line(Target, Vec<u8>),
    /// There is something to do beside lines.
    Wake,
    Stop,
}

/// Takes signals and never waits.
#[derive(Debug)]
pub struct Recorder {
    /// What the broker counts.
    pub counters: Counting,
    queue: SyncSender<Job>,
    dropped: AtomicU64,
    reload_refused: Mutex<Option<ReloadRefused>>,
    reopen: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Recorder {
    /// Starts the thread; a file rotates at `log_bytes`.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(root: &StateRoot, log_bytes: u64) -> io::Result<Arc<Self>> {
        let (queue, jobs) = sync_channel(SIGNALS_QUEUED);
        let reopen = Arc::<AtomicBool>::default();
        let recorder = Arc::new(Recorder {
            counters: Counting::default(),
            queue,
            dropped: AtomicU64::new(0),
            reload_refused: Mutex::default(),
            reopen: reopen.clone(),
            thread: Mutex::default(),
        });
        let paths = [
            root.handshakes().join("handshake-events.jsonl"),
            root.handshakes().join("bus-events.jsonl"),
            root.logs().join("broker.log"),
        ];
        let files = paths.map(|path| Appended::new(path, log_bytes));
        let counter = Arc::downgrade(&recorder);
        let count = move |lost, changed| {
            if let Some(recorder) = counter.upgrade() {
                recorder.dropped.fetch_add(lost, Relaxed);
                recorder.counters.log_changes.fetch_add(changed, Relaxed);
            }
        };
        let thread = std::thread::Builder::new()
            .name("castra-events".into())
            .spawn(move || write(&jobs, files, &reopen, count))?;
        *recorder.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(recorder)
    }

    /// Counts and records a handshake.
    pub fn handshake(&self, record: &Handshake<'_>) {
        self.counters.handshake(record.session_outcome);
        self.json(Target::Handshakes, record);
    }

    /// Records a session's signal.
    pub fn bus_event(&self, record: &BusEvent<'_>) {
        self.json(Target::BusEvents, record);
    }

    /// Appends a line, newline included, to the broker's own log.
    pub fn log_line(&self, line: Vec<u8>) {
        self.send(Target::BrokerLog, line);
    }

    /// How the last reload of castra.toml ended; `None`: it was taken.
    pub fn reload_refused(&self, refused: Option<ReloadRefused>) {
        *self.reload_refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    /// The last reload, if it was refused.
    pub fn last_reload_refused(&self) -> Option<ReloadRefused> {
        self.reload_refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many signals were lost: the queue was full, or the file could not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn json(&self, target: Target, record: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(record) {
            self.send(target, (harmless(&line) + "\n").into_owned().into_bytes());
        }
    }

    fn send(&self, target: Target, line: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Job::Line(target, line)) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// The files are closed, and opened by their names again with the next line: somebody moved them. What was
    /// signalled so far may be in either.
    pub fn reopen(&self) {
        self.reopen.store(true, Relaxed);
        // A queue that is full wakes the thread as well.
        let _ = self.queue.try_send(Job::Wake);
    }

    /// Writes what was signalled so far and ends the thread. Blocks, for a second at most.
    pub fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A disk that hangs does not hold up the end.
            let until = Instant::now() + LAST_LINES;
            while self.queue.try_send(Job::Stop).is_err() && Instant::now() < until {
                std::thread::sleep(LAST_LINES / 100);
            }
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(LAST_LINES / 100);
            }
        }
    }
}

fn write(jobs: &Receiver<Job>, mut files: [Appended; 3], reopen: &AtomicBool, count: impl Fn(u64, u64)) {
    while let Ok(job) = jobs.recv() {
        if reopen.swap(false, Relaxed) {
            files.iter_mut().for_each(|file| file.file = None);
        }
        // One write for all that is waiting, but for so much at the most.
        let (mut next, mut lines) = (Some(job), 0);
        while let Some(Job::Line(target, line)) = next {
            files[target as usize].push(&line);
            lines += 1;
            next = if lines < SIGNALS_QUEUED { jobs.try_recv().ok() } else { None };
        }
        for file in &mut files {
            let lost = file.flush();
            count(lost, std::mem::take(&mut file.changed));
        }
        if matches!(next, Some(Job::Stop)) {
            return;
        }
    }
}

/// A file that lines are appended to and that rotates.
struct Appended {
    path: PathBuf,
    file: Option<AppendFile>,
    /// It rotates at this size.
    log_bytes: u64,
    pending: Vec<u8>,
    lines: u64,
    /// How often the file was not as it had been left.
    changed: u64,
    /// That was said of this file.
    said: bool,
}

impl Appended {
    fn new(path: PathBuf, log_bytes: u64) -> Self {
        Appended { path, file: None, log_bytes, pending: Vec::new(), lines: 0, changed: 0, said: false }
    }

    fn push(&mut self, line: &[u8]) {
        self.pending.extend_from_slice(line);
        self.lines += 1;
    }

    /// Writes what is pending; how many lines were lost.
    fn flush(&mut self) -> u64 {
        let lines = std::mem::take(&mut self.lines);
        if lines == 0 {
            return 0;
        }
        let written = self.try_flush();
        self.pending.clear();
        if written.is_err() {
            self.file = None;
            return lines;
        }
        0
    }

    fn try_flush(&mut self) -> io::Result<()> {
        match self.file.as_mut().map(AppendFile::look).transpose()? {
            None | Some(Look::Same) => {}
            // A file that somebody removed begins again.
            Some(Look::Removed) => self.file = None,
            Some(Look::Changed { expected, found }) => {
                self.changed += 1;
                if !std::mem::replace(&mut self.said, true) {
                    say_changed(&self.path, Some(expected), found);
                }
            }
        }
        let full = |file: &AppendFile| file.size() + self.pending.len() as u64 > self.log_bytes;
        if self.file.as_ref().is_some_and(|file| file.size() > 0 && full(file)) {
            rotate(&self.path)?;
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                self.said = false;
                self.file.insert(AppendFile::open(&self.path)?)
            }
        };
        file.append(&self.pending)
    }
}
