//! Why a command failed: what happened and what to do, a code for scripts, an exit code for shells.
//!
//! Always holds: a code is kebab-case and keeps its meaning; an exit code is one of DESIGN section 6. Owner:
//! every command makes them, [`super::run`] says them.

use std::borrow::Cow;
use std::io;
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

impl Failure {
    /// `path`, which belongs to a state root, cannot be read.
    pub fn unreadable(path: &Path, error: &io::Error) -> Self {
        let name = path.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                let why = format!("{name}: {error}; run this as the broker's user or root");
                Failure::new(Exit::Refused, "permission-denied", why)
            }
            io::ErrorKind::NotADirectory => Failure::no_folder(path),
            io::ErrorKind::InvalidData => {
                Failure::new(Exit::BadData, "unreadable", format!("{name}: {error}"))
            }
            _ => Failure::new(Exit::Io, "io", format!("{name}: {error}")),
        }
    }
}

impl Failure {
    /// `path`, which is a state root or in one, is not there because something above it is a file.
    pub fn no_folder(path: &Path) -> Self {
        let why = format!(
            "{}: not a folder; --state-root must name the folder that the broker uses",
            path.display()
        );
        Failure::new(Exit::BadData, "no-state-root", why)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever read our output has enough.
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Ok } else { Exit::Io };
        Failure::new(exit, "io", error.to_string())
    }
}
