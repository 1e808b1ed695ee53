//! Runs a command for each event, one after the other.
//!
//! Always holds: a command has ended before the next one begins; what it does with its stdin, and how it ends, is no
//! reason to stop. Owner: `mod.rs`; `core/exec.rs` runs it.

use super::say::Sayer;
use super::work::Handle;
use crate::core::exec::{Facts, Job, Running};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::runtime;

/// Runs `sh -c` with this command.
pub struct Exec {
    /// The command.
    pub command: String,
    /// Who is told of failures.
    pub sayer: Sayer,
    /// The one that runs.
    pub running: Running,
    /// Where it is waited for.
    pub runtime: runtime::Handle,
}

impl Handle for Exec {
    fn event(&mut self, line: &[u8]) -> io::Result<bool> {
        let Some(facts) = Facts::of(line) else {
            self.sayer.warn("no-event", "something that is no event was received and left out", &[]);
            return Ok(false);
        };
        let seq = facts.seq;
        let cannot =
            |e: io::Error| io::Error::new(e.kind(), format!("no command can be run for event {seq}: {e}"));
        let short = |error: &io::Error| say_short(self.sayer, seq, error);
        let (command, running) = (self.command.as_str(), &self.running);
        let job = Job { command, facts: &facts, more: &[], line, running, short: &short };
        let status = match self.runtime.block_on(job.run()).map_err(cannot)? {
            Some(status) if status.success() => return Ok(true),
            Some(status) => status,
            // Told to end; it was not begun.
            None => return Ok(false),
        };
        let (how, field) = how_it_ended(status);
        self.sayer.warn(
            "command-failed",
            &format!("the command {how} for event {seq}"),
            &[("seq", seq), field],
        );
        Ok(false)
    }
}

/// Says that a command waits for something that the system is short of.
pub fn say_short(sayer: Sayer, seq: u64, error: &io::Error) {
    let text = format!("the command for event {seq} cannot be started now: {error}; trying again");
    sayer.warn("command-waits", &text, &[("seq", seq)]);
}

/// What is said of a command that failed, and the field of that.
pub fn how_it_ended(status: ExitStatus) -> (String, (&'static str, u64)) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (format!("ended with {code}"), ("status", u64::from(code.unsigned_abs()))),
        (None, signal) => {
            let signal = signal.unwrap_or(0);
            (format!("was ended by signal {signal}"), ("signal", u64::from(signal.unsigned_abs())))
        }
    }
}
