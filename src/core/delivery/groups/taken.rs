//! What is known of an event that a group took in, from its frame.
//!
//! Always holds: a frame that the broker made itself is read without a copy; one that is none is left out. Pure. Owner:
//! the group's task.

use super::lines::Place;
use crate::core::event::{Event, Layout, retry};
use crate::core::wire::codec::{LENGTH_BYTES, first_frame};
use crate::core::wire::group::Spec;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

/// One event.
#[derive(Debug)]
pub(super) struct Taken {
    /// Its seq, and where its frame is.
    pub place: Place,
    /// Its key, hashed, where the group wants order by key and it has one.
    pub key: Option<u64>,
    /// Its line has so many, from `"seq":` to the last brace.
    pub bytes: usize,
}

/// What stands in an intake's frames.
#[derive(Debug)]
pub(super) enum Found {
    Event(Taken),
    /// It is not for the group.
    Other,
    /// These seqs are gone, the first and the last.
    Gap(u64, u64),
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    from: u64,
    #[serde(default)]
    to: u64,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    tags: Vec<String>,
}

/// Goes over `frames`, each of which begins with `head` if it is an event of the group of this name.
pub(super) fn each(
    frames: &[u8],
    (head, group): (&[u8], &str),
    spec: &Spec,
    keys: &RandomState,
    mut take: impl FnMut(Found),
) {
    let wants_fields = spec.ordered_by_key || !spec.headers.is_empty() || !spec.tags.is_empty();
    let mut at = 0;
    while let Ok(Some(body)) = first_frame(&frames[at..]) {
        let (frame, len) = (at as u32, LENGTH_BYTES + body.len());
        at += len;
        let taken = |seq, key| {
            let place = Place { seq, at: frame, len: len as u32 };
            Found::Event(Taken { place, key, bytes: body.len().saturating_sub(head.len()) })
        };
        let seq = body.strip_prefix(head).and_then(seq_of);
        match seq {
            Some(_)
                if may_be_retry(&body[head.len()..]) && retry::of(body).is_some_and(|own| own != group) =>
            {
                take(Found::Other);
            }
            Some(seq) if !wants_fields => take(taken(seq, None)),
            _ => {
                let Ok(line) = serde_json::from_slice::<Line<'_>>(body) else { continue };
                if line.kind == "gap" {
                    take(Found::Gap(line.from, line.to));
                    continue;
                }
                let is_wanted =
                    spec.headers.iter().all(|(name, value)| line.headers.get(name) == Some(value))
                        && spec.tags.iter().all(|tag| line.tags.contains(tag));
                let key = line.key.filter(|_| spec.ordered_by_key).map(|key| keys.hash_one(&*key));
                take(if is_wanted { taken(line.seq, key) } else { Found::Other });
            }
        }
    }
}

/// Whether the line's id begins as that of an event which is published again for one group.
fn may_be_retry(line: &[u8]) -> bool {
    let number = |rest: &[u8]| rest.iter().position(|byte| !byte.is_ascii_digit());
    let skip = |rest: &'_ [u8], name: &[u8]| -> Option<usize> {
        Some(name.len() + number(rest.strip_prefix(name)?)?)
    };
    let at = skip(line, b"\"seq\":").and_then(|at| Some(at + skip(&line[at..], b",\"ts\":")?));
    let id = at.and_then(|at| line[at..].strip_prefix(b",\"id\":\""));
    id.is_some_and(|id| id.starts_with(retry::ID.as_bytes()))
}

/// The seq at the beginning of a line: `"seq":17,`.
fn seq_of(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"\"seq\":")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// The event whose line, from `"seq":` on, this is.
pub(super) fn event_of(line: &[u8]) -> Option<Event<'_>> {
    let number = |at: usize, name: &[u8]| {
        let digits = line.get(at..)?.strip_prefix(name)?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        let number = std::str::from_utf8(&digits[..end]).ok()?.parse::<u64>().ok()?;
        Some((number, at + name.len() + end))
    };
    // The text behind `name`, and where its closing quote is.
    let text = |at: usize, name: &[u8]| {
        let begin = at + name.len();
        line.get(at..)?.strip_prefix(name)?;
        let mut end = begin;
        while *line.get(end)? != b'"' {
            end += 1 + usize::from(line[end] == b'\\');
        }
        Some((begin, end))
    };
    let (seq, at) = number(0, b"\"seq\":")?;
    let (ts, at) = number(at, b",\"ts\":")?;
    let (_, at) = text(at, b",\"id\":\"")?;
    let (vm_at, vm_end) = text(at, b"\",\"vm\":\"")?;
    let (topic_at, topic_end) = text(vm_end, b"\",\"topic\":\"")?;
    let layout = Layout {
        vm_at: u16::try_from(vm_at).ok()?,
        vm_len: u8::try_from(vm_end - vm_at).ok()?,
        topic_len: u16::try_from(topic_end - topic_at).ok()?,
        own_id: false,
        // That there is none is seen where it would stand.
        expires: true,
    };
    Some(Event { seq, ts, line, layout })
}

/// The id of an event whose line begins with its seq, encoded.
pub(super) fn id_of(line: &[u8]) -> Option<&[u8]> {
    const ID: &[u8] = b",\"id\":\"";
    // Before it there are numbers only; inside it a quote has a backslash before it.
    let at = line.windows(ID.len()).position(|window| window == ID)? + ID.len();
    let rest = &line[at..];
    let mut end = 0;
    while *rest.get(end)? != b'"' {
        end += 1 + usize::from(rest[end] == b'\\');
    }
    rest.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::wire::group::delivery_head;
    use crate::core::wire::subscribe::{event, gap};

    fn spec(ordered_by_key: bool, headers: &[(&str, &str)], tags: &[&str]) -> Spec {
        Spec {
            topics: vec!["t".into()],
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            tags: tags.iter().map(|tag| (*tag).into()).collect(),
            batch: 1,
            ack_timeout_ms: 1,
            max_attempts: 5,
            ordered_by_key,
        }
    }

    #[test]
    fn events_gaps_and_what_is_filtered() {
        let head = delivery_head("g", 1, 5);
        let mut frames = Vec::new();
        for line in [
            r#"{"seq":7,"ts":1,"id":"a\"b","vm":"w","topic":"t","key":"k","headers":{"h":"1"},"tags":["x"],"payload":1}"#,
            r#"{"seq":8,"ts":1,"id":"c","vm":"w","topic":"t","payload":{"headers":{"h":"1"},"tags":["x"]}}"#,
        ] {
            event(&mut frames, &head, format!("{line}\n").as_bytes());
        }
        gap(&mut frames, &head, 9, 12);
        let keys = RandomState::new();
        let found = |spec: &Spec| {
            let mut all = Vec::new();
            each(&frames, (&head, "g"), spec, &keys, |found| {
                all.push(match found {
                    Found::Event(taken) => (taken.place.seq, taken.key.is_some()),
                    Found::Other => (0, false),
                    Found::Gap(from, to) => (100 * from + to, false),
                });
            });
            all
        };
        assert_eq!(found(&spec(false, &[], &[])), [(7, false), (8, false), (912, false)]);
        assert_eq!(found(&spec(true, &[], &[])), [(7, true), (8, false), (912, false)]);
        for only in
            [spec(false, &[("h", "1")], &[]), spec(false, &[], &["x"]), spec(false, &[("h", "1")], &["x"])]
        {
            assert_eq!(found(&only), [(7, false), (0, false), (912, false)]);
        }
        assert_eq!(found(&spec(false, &[("h", "2")], &[])), [(0, false), (0, false), (912, false)]);
        let mut lines = Vec::new();
        each(&frames, (&head, "g"), &spec(false, &[], &[]), &keys, |found| {
            if let Found::Event(taken) = found {
                let end = (taken.place.at + taken.place.len) as usize;
                lines.push(&frames[end - taken.bytes..end]);
            }
        });
        assert_eq!(id_of(lines[0]), Some(&br#"a\"b"#[..]));
        assert!(lines[1].starts_with(b"\"seq\":8,") && lines[1].ends_with(b"}}"));
    }

    #[test]
    fn what_is_retried_for_another_group_is_passed_by() {
        let head = delivery_head("g", 1, 5);
        let mut frames = Vec::new();
        for (seq, id, vm, group) in [
            (1, "retry:9", "host", "g"),
            (2, "retry:9", "host", "h"),
            (3, "retry:9", "web", "h"),
            (4, "r", "host", "h"),
        ] {
            let line = format!(
                r#"{{"seq":{seq},"ts":1,"id":"{id}","vm":"{vm}","topic":"t","headers":{{"castra-retry":"{group}"}},"payload":1}}"#
            );
            event(&mut frames, &head, format!("{line}\n").as_bytes());
        }
        let keys = RandomState::new();
        for spec in [spec(false, &[], &[]), spec(true, &[], &[])] {
            let mut seqs = Vec::new();
            each(&frames, (&head, "g"), &spec, &keys, |found| {
                if let Found::Event(taken) = found {
                    seqs.push(taken.place.seq);
                }
            });
            assert_eq!(seqs, [1, 3, 4]);
        }
    }
}
