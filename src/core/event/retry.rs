//! Events that are published again for one group, out of its dead letters.
//!
//! Always holds: only the host's events are such; whoever is no such event is told by its VM or the beginning of its id,
//! without reading further. Pure. Owner: `delivery/groups` and `latest`, which pass them by.

use super::Event;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The header that names the group.
pub const HEADER: &str = "castra-retry";
/// How their ids begin; the letter's seq follows.
pub const ID: &str = "retry:";

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    vm: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// Whether `event` is one.
pub fn is_retry(event: &Event<'_>) -> bool {
    event.vm() == b"host" && of(event.line).is_some()
}

/// The group that an event is published again for, of which this is the JSON object; none when it is any other event.
pub fn of(line: &[u8]) -> Option<String> {
    let mut line: Line<'_> = serde_json::from_slice(line).ok()?;
    let group = line.headers.remove(HEADER)?;
    (line.vm == "host" && line.id.starts_with(ID)).then_some(group)
}
