//! Runs a command for an event: `sh -c`, the event's line on its stdin, what it is about in its environment.
//!
//! ```text
//! start ── short of descriptors, processes, memory ──▶ wait, start again … until given up
//!   │
//!   ▼
//! running: stdin fed, stderr heard ── ended ──▶ answer;  stderr still open ──▶ lingering, at most 200 ms ──▶ closed
//! ```
//!
//! Always holds: what a command does with its stdin, and how it ends, is no error. It has a process group of its own, so
//! that a Ctrl-C for this program is none for the command. A process that it leaves behind holds no thread, and no
//! descriptor for longer than [`EXEC_LINGER`]. A signal that this program handles has its default action in the command;
//! this program ignores none but SIGPIPE, which std resets. Owner: whoever handles events.

use super::awake::{Instant, timeout_at};
use crate::core::backoff;
use crate::core::chance::chance;
use crate::core::limits::{EXEC_LINGER, EXEC_LINGERING};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use std::borrow::Cow;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A line of a command's stderr is passed on in pieces of so many bytes at the most.
const LINE_BYTES: usize = 8 * 1024;
/// What lies in a pipe when its time is over is still read: at most so many bytes.
const PIPE_BYTES: usize = 64 * 1024;
/// The longest first wait before a command that could not be started is started again; it doubles …
const FIRST: Duration = Duration::from_millis(100);
/// … up to this.
const LONGEST: Duration = Duration::from_secs(5);

/// Commands that have ended and whose stderr is still read.
static LINGERING: Semaphore = Semaphore::const_new(EXEC_LINGERING);

/// What a command is told of its event beside the line.
#[derive(Debug, Deserialize)]
pub struct Facts<'a> {
    /// Its place in the journal.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub ts: u64,
    /// Its id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    vm: Cow<'a, str>,
    #[serde(borrow)]
    topic: Cow<'a, str>,
}

impl<'a> Facts<'a> {
    /// Those of an event's line; `None` when it is none.
    pub fn of(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// The command that runs now, if any. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Running {
    now: Arc<Mutex<Now>>,
    given_up: CancellationToken,
}

#[derive(Debug, Default)]
struct Now {
    pid: Option<Pid>,
    /// One that is just being started gets this, too.
    signal: Option<Signal>,
}

impl Running {
    /// Whether one runs.
    pub fn is_any(&self) -> bool {
        self.lock().pid.is_some()
    }

    /// Sends a signal to its whole group.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.lock().pid {
            // It may have ended.
            let _ = killpg(pid, signal);
        }
    }

    /// The same, and one that begins yet gets it at once.
    pub fn signal_all(&self, signal: Signal) {
        self.lock().signal = Some(signal);
        self.signal(signal);
    }

    /// A command that cannot be started for want of a resource is not tried again.
    pub fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Starts one; who asks meanwhile waits for that.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut running = self.lock();
        let child = command.spawn()?;
        running.pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        if let (Some(pid), Some(signal)) = (running.pid, running.signal) {
            let _ = killpg(pid, signal);
        }
        Ok(child)
    }

    fn ended(&self) {
        self.lock().pid = None;
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be run.
pub struct Job<'a> {
    /// What `sh -c` runs.
    pub command: &'a str,
    /// What it is told of its event.
    pub facts: &'a Facts<'a>,
    /// The rest of its environment.
    pub more: &'a [(&'a str, String)],
    /// The event's line.
    pub line: &'a [u8],
    /// Where it is known while it runs.
    pub running: &'a Running,
    /// Called once when it cannot be started for want of a resource, and is tried again.
    pub short: &'a (dyn Fn(&io::Error) + Sync),
}

/// Who hears what a command writes to its stderr.
pub struct Listener<F> {
    /// Gets all of it, in lines.
    pub onto: mpsc::Sender<Vec<u8>>,
    /// Called when somebody still held its stderr open [`EXEC_LINGER`] after it ended, and it was closed.
    pub cut_off: F,
}

impl Job<'_> {
    /// Runs it and waits for its end; `None` when it could not be started before it was given up.
    ///
    /// # Errors
    /// There is no sh, or the system gives no process.
    pub async fn run(&self) -> io::Result<Option<ExitStatus>> {
        let Some(mut child) = self.start(&mut self.sh()).await? else { return Ok(None) };
        self.wait(&mut child, None).await.map(Some)
    }

    /// The same; the last line that it wrote to stderr is handed out, and all that it writes there is heard. The last line
    /// of one that failed is waited for, as long as [`EXEC_LINGER`].
    ///
    /// # Errors
    /// There is no sh, or the system gives no process.
    pub async fn run_heard<F>(&self, listener: Listener<F>) -> io::Result<Option<(ExitStatus, String)>>
    where
        F: FnOnce() + Send + 'static,
    {
        let mut sh = self.sh();
        sh.stderr(Stdio::piped());
        let Some(mut child) = self.start(&mut sh).await? else { return Ok(None) };
        let mut ear = child.stderr.take().map(|from| Ear::new(from, listener.onto));
        let status = self.wait(&mut child, ear.as_mut()).await?;
        let end = Instant::now() + EXEC_LINGER;
        let Some(mut ear) = ear else { return Ok(Some((status, String::new()))) };
        if !status.success() {
            // What it wrote itself is in the pipe; what still writes for it may hold it open.
            let _ = timeout_at(end, ear.hear()).await;
        }
        let said = ear.last.clone();
        linger(ear, end, listener.cut_off);
        Ok(Some((status, said)))
    }

    fn sh(&self) -> Command {
        let (mut sh, facts) = (Command::new("sh"), self.facts);
        sh.arg("-c").arg(self.command).stdin(Stdio::piped()).process_group(0);
        sh.env("CASTRA_SEQ", facts.seq.to_string()).env("CASTRA_TS", facts.ts.to_string());
        sh.env("CASTRA_ID", &*facts.id).env("CASTRA_VM", &*facts.vm).env("CASTRA_TOPIC", &*facts.topic);
        sh.envs(self.more.iter().map(|(name, value)| (name, value)));
        sh
    }

    /// Starts it, however often that takes while the system is short of something.
    async fn start(&self, sh: &mut Command) -> io::Result<Option<Child>> {
        let mut tries = 0;
        loop {
            match self.running.spawn(sh) {
                Ok(child) => return Ok(Some(child)),
                Err(error) if !is_shortage(&error) => return Err(error),
                Err(error) if tries == 0 => (self.short)(&error),
                Err(_) => {}
            }
            let wait = FIRST / 2 + backoff::wait_within(FIRST, LONGEST, tries, chance());
            tries = tries.saturating_add(1);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.running.given_up.cancelled() => return Ok(None),
            }
        }
    }

    /// Feeds and hears it until it has ended, whoever else holds its pipes.
    async fn wait(&self, child: &mut Child, ear: Option<&mut Ear>) -> io::Result<ExitStatus> {
        let stdin = child.stdin.take();
        let hear = async {
            if let Some(ear) = ear {
                ear.hear().await;
            }
        };
        let pipes = async {
            tokio::join!(feed(stdin, self.line), hear);
            pending::<Infallible>().await
        };
        let status = tokio::select! {
            status = child.wait() => status,
            never = pipes => match never {},
        };
        self.running.ended();
        status
    }
}

/// Whether a process cannot be started now, and can be later: descriptors, processes or memory are used up.
fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN | Errno::ENOMEM))
}

async fn feed(stdin: Option<ChildStdin>, line: &[u8]) {
    if let Some(mut stdin) = stdin {
        // It need not read.
        let _ = stdin.write_all(line).await;
    }
}

/// Hears out what a command left, in a task of its own.
fn linger(mut ear: Ear, end: Instant, cut_off: impl FnOnce() + Send + 'static) {
    if ear.is_over && ear.piece.is_empty() {
        return;
    }
    let Ok(place) = LINGERING.try_acquire() else { return cut_off() };
    tokio::spawn(async move {
        if !ear.hear_until(end).await {
            cut_off();
        }
        drop(place);
    });
}

/// A command's stderr. A future of it that is dropped loses nothing.
struct Ear {
    from: BufReader<ChildStderr>,
    onto: mpsc::Sender<Vec<u8>>,
    /// What was read and not passed on.
    piece: Vec<u8>,
    /// The last line that is not blank, or its last piece.
    last: String,
    is_over: bool,
}

impl Ear {
    fn new(from: ChildStderr, onto: mpsc::Sender<Vec<u8>>) -> Self {
        Ear { from: BufReader::new(from), onto, piece: Vec::new(), last: String::new(), is_over: false }
    }

    /// Passes on what comes until nobody holds the other end.
    async fn hear(&mut self) {
        while !self.is_over {
            self.read().await;
            self.pass_on().await;
        }
    }

    /// The same until then, or what is in the pipe then; whether it was at its end.
    async fn hear_until(&mut self, end: Instant) -> bool {
        let mut late = 0;
        while !self.is_over && late < PIPE_BYTES {
            match timeout_at(end, self.read()).await {
                Ok(bytes) if Instant::now() > end => late += bytes,
                Ok(_) => {}
                Err(_) => break,
            }
            self.pass_on().await;
        }
        let is_over = self.is_over;
        // A line without an end is one as well.
        self.is_over = true;
        self.pass_on().await;
        is_over
    }

    /// Reads on in the line; how many bytes that were.
    async fn read(&mut self) -> usize {
        if self.is_whole() {
            return 0;
        }
        let bytes = self.from.fill_buf().await.unwrap_or_default();
        self.is_over = bytes.is_empty();
        let line = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        let taken = line.min(LINE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        self.from.consume(taken);
        taken
    }

    fn is_whole(&self) -> bool {
        self.is_over || self.piece.len() >= LINE_BYTES || self.piece.ends_with(b"\n")
    }

    /// Passes on a line that is whole.
    async fn pass_on(&mut self) {
        if !self.is_whole() || self.piece.is_empty() {
            return;
        }
        let room = self.onto.reserve().await;
        let piece = std::mem::take(&mut self.piece);
        let text = String::from_utf8_lossy(&piece);
        if !text.trim().is_empty() {
            text.trim().clone_into(&mut self.last);
        }
        // Whoever listened may be gone.
        if let Ok(room) = room {
            room.send(piece);
        }
    }
}
