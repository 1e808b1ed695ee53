//! Runs a command for an event: `sh -c`, the event's line on its stdin, what it is about in its environment.
//!
//! Always holds: what a command does with its stdin, and how it ends, is no error. It has a process group of its own,
//! so that a Ctrl-C for this program is none for the command. Owner: whoever handles events.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A line of a command's stderr is passed on in pieces of so many bytes at the most.
const LINE_BYTES: u64 = 8 * 1024;
/// What a command that has ended still has to say comes within this.
const LAST_LINE: Duration = Duration::from_millis(200);

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
pub struct Running(Arc<Mutex<Now>>);

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

    /// Starts one; who asks meanwhile waits for that.
    fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut running = self.lock();
        let child = command.spawn()?;
        running.pid = i32::try_from(child.id()).ok().map(Pid::from_raw);
        if let (Some(pid), Some(signal)) = (running.pid, running.signal) {
            let _ = killpg(pid, signal);
        }
        Ok(child)
    }

    fn ended(&self) {
        self.lock().pid = None;
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `command` for the event of this line, and waits for its end.
///
/// # Errors
/// There is no sh, or the system gives no process.
pub fn run(command: &str, facts: &Facts<'_>, line: &[u8], running: &Running) -> io::Result<ExitStatus> {
    let mut child = running.start(&mut sh(command, facts))?;
    feed(&mut child, line);
    let status = child.wait();
    running.ended();
    status
}

/// The same with more in its environment; the last line that it wrote to stderr is handed out, and all that it writes there
/// goes to `pass_on` as it comes.
///
/// # Errors
/// There is no sh, or the system gives no process or thread.
pub fn run_heard(
    command: &str,
    facts: &Facts<'_>,
    more: &[(&str, String)],
    line: &[u8],
    running: &Running,
    pass_on: impl FnMut(&[u8]) + Send + 'static,
) -> io::Result<(ExitStatus, String)> {
    let mut sh = sh(command, facts);
    sh.stderr(Stdio::piped()).envs(more.iter().map(|(name, value)| (name, value)));
    let mut child = running.start(&mut sh)?;
    feed(&mut child, line);
    let said = child.stderr.take().map(|stderr| hear(stderr, pass_on)).transpose();
    let status = child.wait();
    running.ended();
    let said = said?.map(|said| {
        // Something that it left behind may keep its stderr open.
        let _ = said.over.recv_timeout(LAST_LINE);
        said.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    });
    Ok((status?, said.unwrap_or_default()))
}

fn sh(command: &str, facts: &Facts<'_>) -> Command {
    let mut sh = Command::new("sh");
    sh.arg("-c").arg(command).stdin(Stdio::piped()).process_group(0);
    sh.env("CASTRA_SEQ", facts.seq.to_string()).env("CASTRA_TS", facts.ts.to_string());
    sh.env("CASTRA_ID", &*facts.id).env("CASTRA_VM", &*facts.vm).env("CASTRA_TOPIC", &*facts.topic);
    sh
}

fn feed(child: &mut Child, line: &[u8]) {
    if let Some(mut stdin) = child.stdin.take() {
        // It need not read.
        let _ = stdin.write_all(line);
    }
}

/// What is heard of a command.
struct Said {
    line: Arc<Mutex<String>>,
    over: Receiver<()>,
}

/// Passes on what comes, and keeps the last line, or its beginning.
fn hear(from: ChildStderr, mut pass_on: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Said> {
    let (line, (ended, over)) = (Arc::new(Mutex::new(String::new())), channel());
    let last = line.clone();
    std::thread::Builder::new().spawn(move || {
        let mut from = BufReader::new(from);
        let mut said = Vec::new();
        // A line without an end is passed on in pieces.
        while let Ok(1..) = (&mut from).take(LINE_BYTES).read_until(b'\n', &mut said) {
            pass_on(&said);
            let text = String::from_utf8_lossy(&said);
            if !text.trim().is_empty() {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = text.trim().to_owned();
            }
            said.clear();
        }
        let _ = ended.send(());
    })?;
    Ok(Said { line, over })
}
