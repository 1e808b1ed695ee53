//! Why a command failed: what happened and what to do, a code for scripts, an exit code for shells.
//!
//! Always holds: a code is kebab-case and keeps its meaning; an exit code is one of DESIGN section 6. Owner:
//! every command makes them, [`super::run`] says them.

use crate::core::room;
use std::borrow::Cow;
use std::io;
#[cfg(feature = "broker")]
use std::path::Path;

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
    /// Further fields of the object for scripts.
    fields: serde_json::Map<String, serde_json::Value>,
}

impl Failure {
    /// A failure.
    pub fn new(exit: Exit, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Failure { exit, code: code.into(), message: message.into(), fields: serde_json::Map::new() }
    }

    /// The same with a field for scripts.
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// The same as an object for scripts.
    pub fn json(&self) -> serde_json::Value {
        let mut object = serde_json::json!({
            "schema": 1,
            "code": self.code,
            "reason": self.message,
            "exit": self.exit as u8,
        });
        for (name, value) in &self.fields {
            object[name] = value.clone();
        }
        object
    }
}

/// What a call's error means to whoever typed the command.
pub fn of_io(error: &io::Error) -> (Exit, &'static str) {
    match error.kind() {
        io::ErrorKind::PermissionDenied => (Exit::Refused, "permission-denied"),
        io::ErrorKind::NotADirectory => (Exit::BadData, "no-state-root"),
        io::ErrorKind::InvalidData => (Exit::BadData, "unreadable"),
        _ if room::is_limit(error) => (Exit::Io, "file-limit"),
        _ if room::is_full(error) => (Exit::TryAgain, "disk-full"),
        io::ErrorKind::WouldBlock => (Exit::TryAgain, "busy"),
        _ => (Exit::Io, "io"),
    }
}

impl Failure {
    /// `path`, which belongs to a state root, cannot be read.
    #[cfg(feature = "broker")]
    pub fn unreadable(path: &Path, error: &io::Error) -> Self {
        let (exit, code) = of_io(error);
        let name = path.display();
        let why = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("{name}: {error}; run this as the broker's user or root")
            }
            io::ErrorKind::NotADirectory => {
                format!("{name}: not a folder; --state-root must name the folder that the broker uses")
            }
            _ => format!("{name}: {error}"),
        };
        Failure::new(exit, code, why)
    }

    /// The system gives no thread.
    pub fn no_threads(error: &io::Error) -> Self {
        let why = format!(
            "the system gives this process too few threads: {error}; raise `ulimit -u`, TasksMax= of its unit, or the bound of \
             its container"
        );
        Failure::new(Exit::TryAgain, "no-threads", why)
    }

    /// It ended in order because it may use the processor no longer.
    pub fn no_processor_time() -> Self {
        let why = "the processor time of this process is used up (RLIMIT_CPU), so it ended; raise `ulimit -t`, or LimitCPU= of the \
             unit";
        Failure::new(Exit::TryAgain, "cpu-limit", why)
    }

    /// The system gives no thread, or nothing else of its own.
    pub fn system(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::WouldBlock {
            return Failure::no_threads(&error);
        }
        Failure::new(Exit::Io, "system", format!("the system gives this command too little: {error}"))
    }
}

/// What a command prints could not be printed: every other error is made by hand, with its path.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever read our output has enough.
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Ok } else { Exit::Io };
        let advice =
            if room::is_full(&error) { format!("; {}", room::advice(&error)) } else { String::new() };
        Failure::new(exit, "stdout", format!("stdout cannot be written: {error}{advice}"))
    }
}
