//! Runs a command for each event, one after the other.
//!
//! Always holds: a command has ended before the next one begins; what it does with its stdin, and how it ends, is no
//! reason to stop. Owner: `mod.rs`; `core/exec.rs` runs it.

use super::say::Sayer;
use super::work::Handle;
use crate::core::exec::{self, Facts, Running};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Runs `sh -c` with this command.
pub struct Exec {
    /// The command.
    pub command: String,
    /// Who is told of failures.
    pub sayer: Sayer,
    /// The one that runs.
    pub running: Running,
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
        let status = exec::run(&self.command, &facts, line, &self.running).map_err(cannot)?;
        if status.success() {
            return Ok(true);
        }
        let (how, field) = how_it_ended(status);
        self.sayer.warn(
            "command-failed",
            &format!("the command {how} for event {seq}"),
            &[("seq", seq), field],
        );
        Ok(false)
    }
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
