//! An event, as it was received.
//!
//! Always holds: the line is the line of its log; the payload is what was published, digit by digit. Owner: whoever
//! received it.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// An event.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Its place in the one order of all events, from 1.
    pub seq: u64,
    /// When it reached the journal, in milliseconds since 1970.
    pub ts: u64,
    /// The publisher's id, or a UUIDv7.
    pub id: String,
    /// Who published it.
    pub vm: String,
    /// What it is about.
    pub topic: String,
    /// What it is the latest state of.
    pub key: Option<String>,
    /// Its headers, by name.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The ids of what caused it.
    #[serde(default)]
    pub caused_by: Vec<String>,
    /// The publisher's session, if it said one.
    pub sid: Option<String>,
    /// It is not delivered when it is older than this, in milliseconds.
    pub ttl_ms: Option<u64>,
    payload: Box<RawValue>,
    #[serde(skip)]
    line: Box<[u8]>,
}

impl Event {
    /// The event of a line without its end; `None` when it is none.
    pub fn of(line: &[u8]) -> Option<Self> {
        let event: Event = serde_json::from_slice(line).ok()?;
        Some(Event { line: line.into(), ..event })
    }

    /// What was published, read as a `T`.
    ///
    /// # Errors
    /// It is no `T`.
    pub fn payload<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.payload.get())
    }

    /// What was published, as JSON.
    pub fn json(&self) -> &str {
        self.payload.get()
    }

    /// The whole event as its log has it: a JSON object, without a line's end.
    pub fn line(&self) -> &[u8] {
        &self.line
    }
}
