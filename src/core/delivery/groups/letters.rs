//! Dead letters: what becomes of an event that nobody could handle.
//!
//! Always holds: a letter has the whole event, and fits a frame, if need be with fewer of the failures; it has an id made
//! of the group, its life and the event's seq, so that one that is written again after a crash is a repeat, and none of
//! another time is; its key is that seq, by
//! which it is kept until somebody sees to it. Pure. Owner: the group's task.

use crate::core::delivery::group::progress::Failure;
use crate::core::event::{Batch, Letter};
use serde_json::json;

/// The topic of a group's dead letters.
pub(super) fn topic(group: &str) -> String {
    format!("$dlq.{group}")
}

/// The letter of an event whose line is `line`, from `"seq":` to its last brace.
pub(super) fn letter(group: &str, life: u64, seq: u64, line: &[u8], failures: &[Failure]) -> Batch {
    let attempts = failures.last().map_or(0, |last| last.attempt);
    let (topic, id, key) = (topic(group), format!("dlq:{group}:{life}:{seq}"), seq.to_string());
    let mut batch = Batch::default();
    // The last reasons say most.
    for skip in 0..=failures.len() {
        let mut payload =
            format!("{{\"group\":\"{group}\",\"attempts\":{attempts},\"failures\":").into_bytes();
        payload.extend_from_slice(json!(failures[skip..]).to_string().as_bytes());
        payload.extend_from_slice(b",\"event\":{");
        payload.extend_from_slice(line);
        payload.push(b'}');
        let letter = Letter { topic: &topic, id: &id, is_once: true, key: Some(&key), payload: &payload };
        if batch.push_letter(&letter).is_ok() {
            break;
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::delivery::group::progress::Cause;
    use crate::core::limits::{EVENT_BYTES, GROUP_FAILURES, GROUP_NAME_BYTES, LETTER_BYTES, REASON_BYTES};

    #[test]
    fn the_longest_event_has_a_letter() {
        let head = r#""seq":18446744073709551615,"payload":""#;
        let line = format!("{head}{}\"}}", "x".repeat(EVENT_BYTES - 1 - head.len() - 2));
        let failure =
            Failure { attempt: 100, cause: Cause::Timeout, reason: "\"".repeat(REASON_BYTES), again: None };
        let failures = vec![failure; GROUP_FAILURES];
        let batch = letter(&"g".repeat(GROUP_NAME_BYTES), u64::MAX, u64::MAX, line.as_bytes(), &failures);
        assert_eq!(batch.len(), 1);
        assert!((EVENT_BYTES..=LETTER_BYTES).contains(&batch.bytes()));
        let small = letter("g", 3, 7, br#""seq":7,"payload":1}"#, &failures[..1]);
        let text = String::from_utf8(small.tail(&small.drafts()[0]).to_vec()).unwrap();
        let want = r#""id":"dlq:g:3:7","vm":"host","topic":"$dlq.g","key":"7","payload":{"group":"g","attempts":100,"failures":[{"attempt":100,"cause":"timeout","reason":"#;
        assert!(
            text.starts_with(want) && text.ends_with("\"event\":{\"seq\":7,\"payload\":1}}}\n"),
            "{text}"
        );
    }
}
