//! Why a command failed: what happened and what to do, a code for scripts, an exit code for shells.
//!
//! Always holds: a code is kebab-case and keeps its meaning; an exit code is one of DESIGN section 6. Owner:
//! every command makes them, [`super::run`] says them.

use std::borrow::Cow;
use std::io;

/// Exit codes (sysexits where they fit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It ran, and nothing matched or something is degraded.
    Degraded = 1,
    /// It was typed wrongly.
    Usage = 2,
    /// What was given is wrong.
    BadData = 65,
    /// The broker is not reachable.
    NoBroker = 69,
    /// Something cannot be created.
    CannotCreate = 73,
    /// A file or a disk failed.
    Io = 74,
    /// Try again later.
    TryAgain = 75,
    /// Refused.
    Refused = 77,
    /// The configuration is wrong.
    BadConfig = 78,
    /// Time ran out.
    Timeout = 124,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// Stable, kebab-case.
    pub code: Cow<'static, str>,
    /// What happened, and what to do next.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(exit: Exit, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Failure { exit, code: code.into(), message: message.into() }
    }

    /// The same as an object for scripts.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "schema": 1,
            "code": self.code,
            "reason": self.message,
            "exit": self.exit as u8,
        })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever read our output has enough.
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Ok } else { Exit::Io };
        Failure::new(exit, "io", error.to_string())
    }
}
