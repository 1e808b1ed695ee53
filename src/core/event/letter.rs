//! Events of the broker's own, in the one encoding: dead letters, and the events of snapshots.
//!
//! Always holds: they are events that wrap others, so they may be longer than these; a frame has room for them whoever
//! subscribes them. Pure. Owner: `delivery/groups`, `latest/snapshot.rs`.

use super::{Batch, Publish, Text, string_body};
use crate::core::identity::VmName;
use crate::core::limits::LETTER_BYTES;
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use serde_json::value::RawValue;

/// What the broker says of an event of its own.
#[derive(Debug)]
pub struct Letter<'a> {
    /// It may be one of the broker's own.
    pub topic: &'a str,
    /// Its id.
    pub id: &'a str,
    /// The same id again is a repeat.
    pub is_once: bool,
    /// What it is the latest state of.
    pub key: Option<&'a str>,
    /// JSON.
    pub payload: &'a [u8],
}

/// Whether a publish is of the host, and the end of a dead letter: its key, and nothing.
pub(super) fn is_end(vm: &VmName, publish: &Publish<'_>) -> bool {
    let is_letter = |text: &Text<'_>| {
        text.0.starts_with("$dlq.") && Pattern::parse(&text.0).is_ok_and(|pattern| pattern.is_plain())
    };
    vm.as_str() == "host"
        && publish.topic.as_ref().is_some_and(is_letter)
        && publish.key.is_some()
        && publish.payload.is_none_or(|payload| payload.get() == "null")
}

impl Batch {
    /// Encodes an event of the host, of [`LETTER_BYTES`] at the most.
    ///
    /// # Errors
    /// `event-too-large`, `bad-json`, `bad-key`; the batch is as it was.
    pub fn push_letter(&mut self, letter: &Letter<'_>) -> Result<(), Refusal> {
        let payload: &RawValue =
            serde_json::from_slice(letter.payload).map_err(|e| Refusal::new("bad-json", e.to_string()))?;
        let key = letter.key.map(|key| Text(key.into()));
        let publish = Publish { payload: Some(payload), key, ..Publish::default() };
        // An id of a group and more may be longer than a publisher's.
        let id = |out: &mut Vec<u8>| string_body(out, letter.id);
        self.push_to(letter.topic, &VmName::host(), &publish, id, LETTER_BYTES)?;
        if let Some(draft) = self.drafts.last_mut() {
            draft.own_id = letter.is_once;
        }
        Ok(())
    }
}
