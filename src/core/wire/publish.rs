//! What a client says of one event: the body of its publish frame, and what the broker would make of it.
//!
//! Always holds: what is checked here is checked by the broker's own code, with the same codes. Pure. Owner: the
//! commands.

use super::frame::{self, Frame};
use crate::core::event::{Batch, Publish, Text, string_body};
use crate::core::identity::VmName;
use crate::core::limits::FRAME_BYTES;
use crate::core::refusal::Refusal;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::time::Duration;

/// What holds for an event that does not say otherwise.
#[derive(Debug, Default)]
pub struct Defaults {
    topic: Option<String>,
    key: Option<String>,
    headers: Option<Box<RawValue>>,
    tags: Option<Box<RawValue>>,
    caused_by: Option<Box<RawValue>>,
    sid: Option<String>,
    ttl_ms: Option<u64>,
}

impl Defaults {
    /// Fields as they were typed; an empty list says nothing. Nothing is checked: [`stored`] and the broker do.
    pub fn new(
        topic: Option<String>,
        key: Option<String>,
        headers: &[(String, String)],
        tags: &[String],
        caused_by: &[String],
    ) -> Self {
        let strings = |list: &[String]| raw(list, b"[]", |out, text| string(out, text));
        let header = |out: &mut Vec<u8>, (name, value): &(String, String)| {
            string(out, name);
            out.push(b':');
            string(out, value);
        };
        // A name that was given twice stands twice: it is refused, and not lost.
        let headers = raw(headers, b"{}", header);
        Defaults {
            topic,
            key,
            headers,
            tags: strings(tags),
            caused_by: strings(caused_by),
            sid: None,
            ttl_ms: None,
        }
    }

    /// The same, with the session it comes from and how long it is of use.
    pub fn and(self, sid: Option<String>, ttl: Option<Duration>) -> Self {
        let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        Defaults { sid, ttl_ms, ..self }
    }

    /// `said`, and these fields where it says nothing.
    pub fn fill<'a>(&'a self, said: Publish<'a>) -> Publish<'a> {
        let text = |own: Option<Text<'a>>, ours: &'a Option<String>| {
            own.or_else(|| ours.as_deref().map(|text| Text(Cow::Borrowed(text))))
        };
        Publish {
            topic: text(said.topic, &self.topic),
            key: text(said.key, &self.key),
            headers: said.headers.or(self.headers.as_deref()),
            tags: said.tags.or(self.tags.as_deref()),
            caused_by: said.caused_by.or(self.caused_by.as_deref()),
            sid: text(said.sid, &self.sid),
            ttl_ms: said.ttl_ms.or(self.ttl_ms),
            ..said
        }
    }
}

/// A JSON list of what `write` writes for each of `items`, between `ends`.
fn raw<T>(items: &[T], ends: &[u8; 2], write: impl Fn(&mut Vec<u8>, &T)) -> Option<Box<RawValue>> {
    let mut out = vec![ends[0]];
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(&mut out, item);
    }
    out.push(ends[1]);
    let json = String::from_utf8(out).ok().filter(|_| !items.is_empty())?;
    RawValue::from_string(json).ok()
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    string_body(out, text);
    out.push(b'"');
}

/// Appends the body of a publish frame.
///
/// # Errors
/// `event-too-large`: it fits no frame. `out` is as it was.
pub fn write_body(out: &mut Vec<u8>, publish: &Publish<'_>) -> Result<(), Refusal> {
    let start = out.len();
    out.extend_from_slice(b"{\"type\":\"publish\"");
    let texts =
        [("topic", &publish.topic), ("id", &publish.id), ("key", &publish.key), ("sid", &publish.sid)];
    for (name, text) in texts {
        if let Some(Text(text)) = text {
            field(out, name);
            string(out, text);
        }
    }
    if let Some(ttl) = publish.ttl_ms {
        field(out, "ttl_ms");
        out.extend_from_slice(itoa::Buffer::new().format(ttl).as_bytes());
    }
    let (headers, tags) = (publish.headers, publish.tags);
    for (name, json) in
        [("headers", headers), ("tags", tags), ("caused_by", publish.caused_by), ("payload", publish.payload)]
    {
        if let Some(json) = json {
            field(out, name);
            out.extend_from_slice(json.get().as_bytes());
        }
    }
    out.push(b'}');
    let bytes = out.len() - start;
    if bytes > FRAME_BYTES {
        out.truncate(start);
        return Err(Refusal::new(
            "event-too-large",
            format!("its frame is {bytes} bytes, at most {FRAME_BYTES} are allowed"),
        ));
    }
    Ok(())
}

fn field(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// What the broker would store of this frame if the host sent it: the event's line without `seq` and `ts`, with its
/// line end.
///
/// # Errors
/// What the broker would refuse it with.
pub fn stored(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let Frame::Publish(publish) = frame::parse(body).map_err(|(_, refusal)| refusal)? else {
        return Err(Refusal::new("bad-field", "the frame is no publish of one event"));
    };
    let mut batch = Batch::default();
    batch.push(&VmName::host(), &publish, |_| {})?;
    let mut line = vec![b'{'];
    batch.drafts().iter().for_each(|draft| line.extend_from_slice(batch.tail(draft)));
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    fn check(body: &[u8]) -> serde_json::Value {
        serde_json::from_slice(body).unwrap()
    }

    proptest! {
        /// Whatever is typed comes out of the broker's parser as it was typed.
        #[test]
        fn what_is_typed_is_what_the_broker_reads(
            topic in option::of(any::<String>()), key in option::of(any::<String>()),
            headers in vec((any::<String>(), any::<String>()), 0..4),
            tags in vec(any::<String>(), 0..4), ids in vec(any::<String>(), 0..3),
            sid in option::of(any::<String>()), ttl in option::of(any::<u64>()),
        ) {
            let defaults = Defaults::new(topic.clone(), key.clone(), &headers, &tags, &ids);
            let defaults = defaults.and(sid.clone(), ttl.map(Duration::from_millis));
            let mut body = Vec::new();
            write_body(&mut body, &defaults.fill(Publish::default())).unwrap();
            let Ok(Frame::Publish(read)) = frame::parse(&body) else { panic!() };
            let text = |text: Option<Text<'_>>| text.map(|Text(text)| text.into_owned());
            prop_assert_eq!((text(read.topic), text(read.key)), (topic, key));
            prop_assert_eq!((text(read.sid), read.ttl_ms), (sid, ttl));
            let list = |raw: Option<&RawValue>| -> Vec<String> {
                raw.map_or_else(Vec::new, |raw| serde_json::from_str(raw.get()).unwrap())
            };
            prop_assert_eq!((list(read.tags), list(read.caused_by)), (tags, ids));
            let map: std::collections::BTreeMap<String, String> =
                read.headers.map_or_else(Default::default, |raw| serde_json::from_str(raw.get()).unwrap());
            prop_assert_eq!(map, headers.into_iter().collect());
        }
    }

    #[test]
    fn a_line_says_more_than_the_defaults() {
        let defaults = Defaults::new(Some("t".into()), None, &[("a".into(), "1".into())], &["x".into()], &[]);
        let line =
            frame::parse_event(br#"{"topic":null,"headers":{"b":"2"},"id":"i","payload":[1]}"#).unwrap();
        let mut body = Vec::new();
        write_body(&mut body, &defaults.fill(line)).unwrap();
        let want = serde_json::json!({"type":"publish","topic":"t","id":"i","headers":{"b":"2"},"tags":["x"],"payload":[1]});
        assert_eq!(check(&body), want);
        let line = String::from_utf8(stored(&body).unwrap()).unwrap();
        assert_eq!(
            line,
            "{\"id\":\"i\",\"vm\":\"host\",\"topic\":\"t\",\"headers\":{\"b\":\"2\"},\"tags\":[\"x\"],\"payload\":[1]}\n"
        );
    }

    #[test]
    fn what_fits_no_frame_is_refused() {
        let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(FRAME_BYTES))).unwrap();
        let mut body = b"before".to_vec();
        let publish = Publish { payload: Some(&payload), ..Publish::default() };
        assert_eq!(write_body(&mut body, &publish).unwrap_err().code, "event-too-large");
        assert_eq!(body, b"before");
    }
}
