//! Runs a command for each event, one after the other.
//!
//! Always holds: a command has ended before the next one begins; what it does with its stdin, and how it ends, is no
//! reason to stop. It has a process group of its own, so that a Ctrl-C for this program is none for the command.
//! Owner: `mod.rs`.

use super::say::Sayer;
use super::work::Handle;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use std::borrow::Cow;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a command is told of its event beside the line.
#[derive(Deserialize)]
struct Facts<'a> {
    seq: u64,
    ts: u64,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    vm: Cow<'a, str>,
    #[serde(borrow)]
    topic: Cow<'a, str>,
}

/// The command that runs now, if any. Clones are the same one.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<Now>>);

#[derive(Default)]
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

/// Runs `sh -c` with this command.
pub struct Exec {
    /// The command.
    pub command: String,
    /// Who is told of failures.
    pub sayer: Sayer,
    /// The one that runs.
    pub running: Running,
}

impl Exec {
    fn run(&self, facts: &Facts<'_>, line: &[u8]) -> io::Result<ExitStatus> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).stdin(Stdio::piped()).process_group(0);
        command.env("CASTRA_SEQ", facts.seq.to_string()).env("CASTRA_TS", facts.ts.to_string());
        command.env("CASTRA_ID", &*facts.id).env("CASTRA_VM", &*facts.vm).env("CASTRA_TOPIC", &*facts.topic);
        let mut child = self.running.start(&mut command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // It need not read.
            let _ = stdin.write_all(line);
        }
        let status = child.wait();
        self.running.ended();
        status
    }
}

impl Handle for Exec {
    fn event(&mut self, line: &[u8]) -> io::Result<bool> {
        let Ok(facts) = serde_json::from_slice::<Facts<'_>>(line) else {
            self.sayer.warn("no-event", "something that is no event was received and left out", &[]);
            return Ok(false);
        };
        let seq = facts.seq;
        let cannot =
            |e: io::Error| io::Error::new(e.kind(), format!("no command can be run for event {seq}: {e}"));
        let status = self.run(&facts, line).map_err(cannot)?;
        if status.success() {
            return Ok(true);
        }
        let (how, field) = match (status.code(), status.signal()) {
            (Some(code), _) => (format!("ended with {code}"), ("status", u64::from(code.unsigned_abs()))),
            (None, signal) => {
                let signal = signal.unwrap_or(0);
                (format!("was ended by signal {signal}"), ("signal", u64::from(signal.unsigned_abs())))
            }
        };
        self.sayer.warn(
            "command-failed",
            &format!("the command {how} for event {seq}"),
            &[("seq", seq), field],
        );
        Ok(false)
    }
}
