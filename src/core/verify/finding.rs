//! What is wrong with lines of a log, and how it is said.
//!
//! Always holds: it is one line, with the file, the place and the events as far as they can be told. Owner: `log.rs`,
//! which finds it.

use serde::Serialize;
use std::fmt;

/// What is wrong with lines of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The line is not what the journal has.
    Altered,
    /// The line should be there.
    Missing,
    /// It is no line of an event.
    Garbage,
    /// It stands behind a later event's, or before an earlier one's.
    OutOfOrder,
    /// The same event's line stands before it.
    Repeated,
    /// The event is another log's.
    Foreign,
    /// The journal ends before this event.
    NotInJournal,
    /// The file cannot be read on.
    Unreadable,
}

/// Lines that follow each other and have the same wrong with them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The log's name.
    pub log: String,
    /// The file's name.
    pub file: String,
    /// Where in the file the first of them stands, or should, in bytes.
    pub at: u64,
    /// What is wrong.
    pub kind: Kind,
    /// How many lines.
    pub lines: u64,
    /// The first one's event; `None` when no event can be told.
    pub first_seq: Option<u64>,
    /// The last one's.
    pub last_seq: Option<u64>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { file, at, lines, .. } = self;
        match (self.kind, at) {
            (Kind::Missing, 0) => write!(f, "logs/bus/{file}: ")?,
            _ => write!(f, "logs/bus/{file} at byte {at}: ")?,
        }
        let one = *lines == 1;
        match self.events() {
            Some(events) => write!(f, "{events} ")?,
            _ if self.kind == Kind::Unreadable => {}
            _ if one => write!(f, "1 line ")?,
            _ => write!(f, "{lines} lines ")?,
        }
        f.write_str(match (self.kind, one) {
            (Kind::Altered, true) => "is not as the journal has it",
            (Kind::Altered, false) => "are not as the journal has them",
            (Kind::Missing, true) => "is missing",
            (Kind::Missing, false) => "are missing",
            (Kind::Garbage, true) => "is no event",
            (Kind::Garbage, false) => "are no events",
            (Kind::OutOfOrder, _) => "out of order",
            (Kind::Repeated, _) => "repeated",
            (Kind::Foreign, true) => "is not of this log",
            (Kind::Foreign, false) => "are not of this log",
            (Kind::NotInJournal, true) => "is not in the journal, which ends before it",
            (Kind::NotInJournal, false) => "are not in the journal, which ends before them",
            (Kind::Unreadable, _) => "cannot be read on",
        })
    }
}

impl Finding {
    /// Which events it is about, if that can be told.
    pub fn events(&self) -> Option<String> {
        let (first, last) = (self.first_seq?, self.last_seq?);
        Some(match last.wrapping_sub(first).wrapping_add(1) {
            1 => format!("event {first}"),
            all if all == self.lines => format!("events {first} to {last}"),
            _ => format!("{} events from {first} to {last}", self.lines),
        })
    }
}
