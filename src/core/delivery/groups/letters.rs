//! Dead letters: what becomes of an event that nobody could handle.
//!
//! Always holds: a letter has the whole event, and fits a frame; it has an id made of the group, its life
//! and the event's seq, so that one that is written again after a crash is a repeat, and none of another time is. Pure. Owner: the group's task.

use crate::core::delivery::group::progress::Failure;
use crate::core::event::Batch;
use crate::core::identity::VmName;
use serde_json::json;

/// The topic of a group's dead letters.
pub(super) fn topic(group: &str) -> String {
    format!("$dlq.{group}")
}

/// The letter of an event whose line is `line`, from `"seq":` to its last brace.
pub(super) fn letter(group: &str, life: u64, seq: u64, line: &[u8], failures: &[Failure]) -> Batch {
    let attempts = failures.last().map_or(0, |last| last.attempt);
    let mut payload = format!("{{\"group\":\"{group}\",\"attempts\":{attempts},\"failures\":").into_bytes();
    payload.extend_from_slice(json!(failures).to_string().as_bytes());

    payload.extend_from_slice(b",\"event\":{");
    payload.extend_from_slice(line);
    payload.push(b'}');
    let mut batch = Batch::default();
    batch.push_letter(&VmName::host(), &topic(group), &format!("dlq:{group}:{life}:{seq}"), &payload);
    batch
}
