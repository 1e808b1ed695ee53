//! What an event does to the state of its topic.
//!
//! Always holds: an event without a key does nothing, and one that was published again by `castra bus dlq retry` does
//! nothing either: what is newer than it stays. Pure. Owner: `work.rs`.

use crate::core::event::{Event, retry};
use serde::Deserialize;
use std::borrow::Cow;

/// A change of one key.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// Which.
    pub key: Cow<'a, str>,
    /// The payload is null: the key is no more.
    pub is_end: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
}

/// What `event` changes.
pub fn of<'a>(event: &Event<'a>) -> Option<Change<'a>> {
    if retry::is_retry(event) {
        return None;
    }
    let key = serde_json::from_slice::<Line<'a>>(event.line).ok()?.key?;
    // Only the outermost payload can stand before the last brace.
    Some(Change { key, is_end: event.line.ends_with(b",\"payload\":null}\n") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Batch, Layout, Publish};
    use crate::core::identity::VmName;
    use proptest::prelude::*;

    fn change(vm: &VmName, publish: &serde_json::Value) -> Option<(String, bool)> {
        let text = publish.to_string();
        let publish: Publish<'_> = serde_json::from_str(&text).unwrap();
        let mut batch = Batch::default();
        batch.push(vm, &publish, |out| out.extend_from_slice(b"x")).unwrap();
        let draft = batch.drafts()[0];
        let line = [&b"{\"seq\":1,\"ts\":2,"[..], batch.tail(&draft)].concat();
        let layout = Layout::of(&draft, line.len() - batch.tail(&draft).len());
        of(&Event { seq: 1, ts: 2, line: &line, layout })
            .map(|change| (change.key.into_owned(), change.is_end))
    }

    #[test]
    fn only_the_payload_itself_ends_a_key() {
        let web = VmName::parse("web").unwrap();
        for (publish, want) in [
            (serde_json::json!({"payload": 1}), None),
            (serde_json::json!({"key": "k"}), Some(true)),
            (serde_json::json!({"key": "k", "payload": null}), Some(true)),
            (serde_json::json!({"key": "k", "payload": {"payload": null}}), Some(false)),
            (serde_json::json!({"key": "k", "payload": ["x", {"payload": null}]}), Some(false)),
            (serde_json::json!({"key": "k", "payload": ",\"payload\":null}"}), Some(false)),
            (
                serde_json::json!({"key": "k", "headers": {"castra-retry": "g"}, "id": "retry:7", "payload": 1}),
                Some(false),
            ),
        ] {
            assert_eq!(change(&web, &publish).map(|(_, is_end)| is_end), want, "{publish}");
        }
        let retried =
            serde_json::json!({"key": "k", "headers": {"castra-retry": "g"}, "id": "retry:7", "payload": 1});
        assert_eq!(change(&VmName::host(), &retried), None);
    }

    proptest! {
        #[test]
        fn any_key_is_found(key in ".{1,40}", payload in ".*") {
            let publish = serde_json::json!({"key": key, "headers": {"key": "no"}, "tags": ["t"], "payload": {"key": payload}});
            prop_assert_eq!(change(&VmName::host(), &publish), Some((key, false)));
        }
    }
}
