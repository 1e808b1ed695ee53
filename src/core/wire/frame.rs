//! What a frame says, and the frames that the broker sends.
//!
//! [`parse`] reads one frame's JSON; its fields borrow from it and a payload stays raw. Always holds: no
//! input panics, recurses or allocates more than a small multiple of the frame; whatever is wrong with a
//! frame is a [`Refusal`], never the end of the session. Owner: the session.

use super::group::{Join, Say, Word, parse_word};
use super::latest::{Ask, parse_ask};
use super::manage::{Manage, parse_manage};
use super::subscribe::{Subscribe, Subscribed, Unsubscribe, parse_subscribe, parse_unsubscribe};
use crate::core::event::{Batch, Draft, Publish, string_body};
use crate::core::identity::VmName;
use crate::core::limits::{GROUP_EVENTS, JSON_DEPTH};
use crate::core::refusal::Refusal;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::core::event::Text;

/// The levels of JSON around an event among `events`: the frame's object and the array.
const EVENTS_LEVELS: usize = 2;

/// A guest's frame.
#[derive(Debug)]
pub enum Frame<'a> {
    /// One event.
    Publish(Publish<'a>),
    /// `events: [ … ]`: all of them or none; 1 to [`GROUP_EVENTS`].
    PublishAll(Vec<Publish<'a>>),
    /// A sign of life that wants an answer.
    Heartbeat,
    /// A wish to be sent events.
    Subscribe(Subscribe),
    /// A subscription or membership is to end.
    Unsubscribe(Unsubscribe),
    /// A wish to be a member of a group.
    Join(Box<Join>),
    /// What a member says of events that it holds.
    Word(Box<Word>),
    /// What is asked of groups.
    Manage(Manage),
    /// What is asked of the newest events per key.
    Ask(Ask),
    /// The host wants a VM to be remembered no longer.
    Forget(VmName),
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    events: Option<&'a RawValue>,
    #[serde(borrow, default)]
    topic: Option<Text<'a>>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tags: Option<&'a RawValue>,
    #[serde(borrow, default)]
    caused_by: Option<&'a RawValue>,
    #[serde(borrow, default)]
    sid: Option<Text<'a>>,
    #[serde(default)]
    ttl_ms: Option<u64>,
    #[serde(borrow, default)]
    vm: Option<&'a RawValue>,
}

impl<'a> From<Fields<'a>> for Publish<'a> {
    fn from(fields: Fields<'a>) -> Self {
        Publish {
            topic: fields.topic,
            payload: fields.payload,
            id: fields.id,
            key: fields.key,
            headers: fields.headers,
            tags: fields.tags,
            caused_by: fields.caused_by,
            sid: fields.sid,
            ttl_ms: fields.ttl_ms,
        }
    }
}

/// Reads one frame.
///
/// # Errors
/// What `ack` says in the refusal (the frame's type when it is a known one, else `frame`), and one of the codes
/// `not-utf8`, `bad-json`, `not-an-object`, `too-deep`, `duplicate-field`, `bad-field`, `no-type`,
/// `unknown-type`, `too-many-events`, `bad-name`, or of [`parse_subscribe`] and [`parse_unsubscribe`].
pub fn parse(body: &[u8]) -> Result<Frame<'_>, (&'static str, Refusal)> {
    parse_fields(body).map_err(|refusal| (refused_type(body), refusal))
}

/// The type of a frame that is refused, as far as it can be read.
fn refused_type(body: &[u8]) -> &'static str {
    #[derive(Deserialize)]
    struct Type<'a> {
        #[serde(rename = "type", borrow)]
        kind: Text<'a>,
    }
    match serde_json::from_slice::<Type<'_>>(body) {
        Ok(said) if body.trim_ascii_start().starts_with(b"{") => match said.kind.0.as_ref() {
            "publish" => "publish",
            "subscribe" => "subscribe",
            "unsubscribe" => "unsubscribe",
            "forget" => "forget",
            "ack" => "ack",
            "nack" => "nack",
            "begin" => "begin",
            "in_progress" => "in_progress",
            "term" => "term",
            "groups" => "groups",
            "group" => "group",
            "group_create" => "group_create",
            "group_seek" => "group_seek",
            "group_remove" => "group_remove",
            "latest" => "latest",
            "latest_topics" => "latest_topics",
            "snapshot" => "snapshot",
            _ => "frame",
        },
        _ => "frame",
    }
}

/// Reads an event that stands for itself, as the line of a file: the fields of one publish. `type` and what is
/// unknown are ignored.
///
/// # Errors
/// The codes of [`parse`]; `events` is a `bad-field`.
pub fn parse_event(line: &[u8]) -> Result<Publish<'_>, Refusal> {
    let fields = fields(line)?;
    match fields.events {
        Some(_) => Err(Refusal::new("bad-field", "a line is one event: 'events' belongs into a frame")),
        None => Ok(fields.into()),
    }
}

fn fields(body: &[u8]) -> Result<Fields<'_>, Refusal> {
    text(body, depth_exceeds(body, JSON_DEPTH))
        .and_then(|text| serde_json::from_str(text).map_err(|e| refusal(&e)))
}

fn too_deep() -> Refusal {
    Refusal::new("too-deep", format!("JSON is nested at most {JSON_DEPTH} levels deep"))
}

/// The text of what looks like an object and is not too deep.
fn text(body: &[u8], is_too_deep: bool) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(body)
        .map_err(|e| Refusal::new("not-utf8", format!("the frame is not UTF-8: {e}")))?;
    if is_too_deep {
        return Err(too_deep());
    }
    if !text.trim_ascii_start().starts_with('{') {
        return Err(match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Refusal::new("not-an-object", "a frame is one JSON object"),
            Err(error) => refusal(&error),
        });
    }
    Ok(text)
}

fn parse_fields(body: &[u8]) -> Result<Frame<'_>, Refusal> {
    let is_deep = depth_exceeds(body, JSON_DEPTH);
    let text = text(body, is_deep && depth_exceeds(body, JSON_DEPTH + EVENTS_LEVELS))?;
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|e| refusal(&e))?;
    match fields.kind.as_ref().map(|k| k.0.as_ref()) {
        // An event that may be published alone may be published among others: its object is level 1 either way.
        Some("publish") => match fields.events {
            Some(events) if is_deep && depth_exceeds(events.get().as_bytes(), JSON_DEPTH + 1) => {
                Err(too_deep())
            }
            Some(events) => Ok(Frame::PublishAll(parse_events(events)?)),
            None if is_deep => Err(too_deep()),
            None => Ok(Frame::Publish(fields.into())),
        },
        _ if is_deep => Err(too_deep()),
        Some("heartbeat") => Ok(Frame::Heartbeat),
        // Their fields are looked at only here: a publish may have ones of the same names that are ignored.
        Some("subscribe") => parse_subscribe(text).map(|wish| match wish {
            Subscribed::Alone(wish) => Frame::Subscribe(wish),
            Subscribed::Group(wish) => Frame::Join(wish),
        }),
        Some("ack") => parse_word(text, Say::Ack).map(word),
        Some("nack") => parse_word(text, Say::Nack { delays: Vec::new() }).map(word),
        Some("begin") => parse_word(text, Say::Begin).map(word),
        Some("in_progress") => parse_word(text, Say::InProgress).map(word),
        Some("term") => parse_word(text, Say::Term).map(word),
        Some("unsubscribe") => parse_unsubscribe(text).map(Frame::Unsubscribe),
        Some(kind @ ("groups" | "group" | "group_create" | "group_seek" | "group_remove")) => {
            parse_manage(text, kind).map(Frame::Manage)
        }
        Some(kind @ ("latest" | "latest_topics" | "snapshot")) => parse_ask(text, kind).map(Frame::Ask),
        Some("forget") => forgotten(fields.vm).map(Frame::Forget),
        Some(kind) => {
            Err(Refusal::new("unknown-type", format!("this broker has no frame of type '{kind:.64}'")))
        }
        None => Err(Refusal::new("no-type", "the frame has no field 'type'")),
    }
}

fn word<'a>(word: Word) -> Frame<'a> {
    Frame::Word(Box::new(word))
}

/// The VM of a `forget`. Only here is the field looked at: a publish may have one of its own that is ignored.
fn forgotten(vm: Option<&RawValue>) -> Result<VmName, Refusal> {
    let text: Text<'_> = serde_json::from_str(vm.map_or("null", RawValue::get)).map_err(|e| refusal(&e))?;
    VmName::parse(&text.0).map_err(|e| Refusal::new("bad-name", e.to_string()))
}

/// An event that is a JSON object: serde takes an array for a struct as well.
struct Object<'a>(Publish<'a>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Publish<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
                Publish::deserialize(MapAccessDeserializer::new(fields))
            }
        }
        json.deserialize_map(Map).map(Object)
    }
}

fn parse_events(raw: &RawValue) -> Result<Vec<Publish<'_>>, Refusal> {
    struct Events;
    impl<'de> Visitor<'de> for Events {
        type Value = Option<Vec<Publish<'de>>>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array of objects")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut events = Vec::new();
            while events.len() < GROUP_EVENTS {
                match items.next_element::<Object<'de>>()? {
                    Some(Object(event)) => events.push(event),
                    None => return Ok(Some(events)),
                }
            }
            let mut too_many = false;
            while items.next_element::<IgnoredAny>()?.is_some() {
                too_many = true;
            }
            Ok(if too_many { None } else { Some(events) })
        }
    }
    let mut json = serde_json::Deserializer::from_str(raw.get());
    match json.deserialize_seq(Events).map_err(|e| refusal(&e))? {
        Some(events) if events.is_empty() => Err(Refusal::new("bad-field", "events is empty")),
        Some(events) => Ok(events),
        None => {
            Err(Refusal::new("too-many-events", format!("one publish has at most {GROUP_EVENTS} events")))
        }
    }
}

/// serde says what is wrong in words only; the words of these two are part of its interface in practice,
/// and a test below holds them.
pub(super) fn refusal(error: &serde_json::Error) -> Refusal {
    let reason = error.to_string();
    let code = match error.classify() {
        serde_json::error::Category::Data if reason.starts_with("duplicate field") => "duplicate-field",
        serde_json::error::Category::Data => "bad-field",
        _ => "bad-json",
    };
    Refusal::new(code, reason)
}

/// Whether brackets outside strings nest deeper than `limit`. Right for JSON; for anything else the
/// parser has the word.
fn depth_exceeds(json: &[u8], limit: usize) -> bool {
    let open = |b: &u8| matches!(b, b'{' | b'[');
    // So few brackets cannot nest so deep. Counting them in bytes, as many as a byte can count at a time, is a
    // loop of vector instructions.
    let count = |chunk: &[u8]| usize::from(chunk.iter().map(|b| u8::from(open(b))).sum::<u8>());
    if json.chunks(255).map(count).sum::<usize>() <= limit {
        return false;
    }
    let (mut depth, mut bytes) = (0usize, json.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => loop {
                match bytes.next() {
                    Some(b'\\') => drop(bytes.next()),
                    Some(b'"') | None => break,
                    Some(_) => {}
                }
            },
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// Appends one frame whose body `write` writes.
pub(super) fn framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends the ack of one durable event; it may be a repeat, and `seq` that of the first one.
pub fn publish_ack(out: &mut Vec<u8>, batch: &Batch, draft: &Draft, seq: u64, repeat: bool) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"publish\",\"status\":\"ok\",\"topic\":\"");
        out.extend_from_slice(batch.topic(draft));
        out.extend_from_slice(b"\",\"seq\":");
        out.extend_from_slice(itoa::Buffer::new().format(seq).as_bytes());
        out.extend_from_slice(b",\"id\":\"");
        out.extend_from_slice(batch.id(draft));
        out.extend_from_slice(if repeat { b"\",\"duplicate\":true}" } else { b"\"}" });
    });
}

/// Appends the ack of `events: [ … ]`: the seq of each, and whether it is a repeat.
pub fn publish_all_ack(out: &mut Vec<u8>, seqs: impl Iterator<Item = (u64, bool)>) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"publish\",\"status\":\"ok\",\"seqs\":[");
        let mut repeats = false;
        for (i, (seq, repeat)) in seqs.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(itoa::Buffer::new().format(seq).as_bytes());
            repeats |= repeat;
        }
        out.extend_from_slice(if repeats { b"],\"duplicate\":true}" } else { b"]}" });
    });
}

/// Appends an ack that refuses. `ack` is the refused frame's type where that could be read.
pub fn error_ack(out: &mut Vec<u8>, ack: &str, refusal: &Refusal, seq: Option<u64>) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"");
        out.extend_from_slice(ack.as_bytes());
        out.extend_from_slice(b"\",\"status\":\"error\",\"code\":\"");
        out.extend_from_slice(refusal.code.as_bytes());
        out.extend_from_slice(b"\",\"reason\":\"");
        string_body(out, &refusal.reason);
        out.push(b'"');
        if let Some(seq) = seq {
            out.extend_from_slice(format!(",\"seq\":{seq}").as_bytes());
        }
        out.push(b'}');
    });
}

/// Appends the answer to a heartbeat.
pub fn heartbeat_ack(out: &mut Vec<u8>) {
    framed(out, |out| out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"heartbeat\",\"status\":\"ok\"}"));
}

/// Appends the answer to a `forget` that was done.
pub fn forget_ack(out: &mut Vec<u8>) {
    framed(out, |out| out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"forget\",\"status\":\"ok\"}"));
}

/// Appends the broker's own sign of life.
pub fn heartbeat(out: &mut Vec<u8>) {
    framed(out, |out| out.extend_from_slice(b"{\"type\":\"heartbeat\"}"));
}

/// Appends the frame that comes before the broker ends a session.
pub fn close(out: &mut Vec<u8>, reason: &str, retry_after_ms: u64) {
    framed(out, |out| {
        let text =
            format!("{{\"type\":\"close\",\"reason\":\"{reason}\",\"retry_after_ms\":{retry_after_ms}}}");
        out.extend_from_slice(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(body: &[u8]) -> &'static str {
        parse(body).map(drop).map_err(|(_, refusal)| refusal.code).unwrap_err()
    }

    #[test]
    fn every_refusal_has_its_code() {
        let deep =
            format!("{{\"type\":\"publish\",\"payload\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        let many = format!("{{\"type\":\"publish\",\"events\":[{}{{}}]}}", "{},".repeat(1024));
        for (body, want) in [
            (&b"\xff"[..], "not-utf8"),
            (b"{", "bad-json"),
            (b"nonsense", "bad-json"),
            (b"{\"type\":\"heartbeat\"} x", "bad-json"),
            (b"[1]", "not-an-object"),
            (b"7", "not-an-object"),
            (b"{}", "no-type"),
            (b"{\"type\":null}", "no-type"),
            (b"{\"type\":7}", "bad-field"),
            (b"{\"type\":\"nope\"}", "unknown-type"),
            (b"{\"type\":\"publish\",\"topic\":7}", "bad-field"),
            (b"{\"type\":\"publish\",\"topic\":\"a\",\"topic\":\"b\"}", "duplicate-field"),
            (b"{\"type\":\"publish\",\"events\":{}}", "bad-field"),
            (b"{\"type\":\"publish\",\"events\":[]}", "bad-field"),
            (b"{\"type\":\"publish\",\"events\":[[\"t\"]]}", "bad-field"),
            (b"[\"publish\"]", "not-an-object"),
            (b"{\"type\":\"publish\",\"events\":[{\"id\":\"a\",\"id\":\"b\"}]}", "duplicate-field"),
            (deep.as_bytes(), "too-deep"),
            (many.as_bytes(), "too-many-events"),
        ] {
            assert_eq!(code(body), want, "{:.60}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn depth_counts_outside_strings_only() {
        let nested =
            |n: usize| format!("{{\"type\":\"heartbeat\",\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(63).as_bytes()).is_ok());
        assert_eq!(code(nested(64).as_bytes()), "too-deep");
        let event = |n: usize| format!("{{\"payload\":{}{}}}", "[".repeat(n), "]".repeat(n));
        let publish = |events: String| format!("{{\"type\":\"publish\",\"events\":[{{}},{events}]}}");
        assert!(parse_event(event(63).as_bytes()).is_ok());
        assert!(parse(publish(event(63)).as_bytes()).is_ok());
        assert_eq!(code(publish(event(64)).as_bytes()), "too-deep");
        assert_eq!(code(publish(event(65)).as_bytes()), "too-deep");
        let beside = format!("{{\"type\":\"publish\",\"x\":{}", &event(64)[11..]);
        assert_eq!(code(beside.as_bytes()), "too-deep");
        let quoted = format!("{{\"type\":\"heartbeat\",\"x\":\"\\\"{}\"}}", "[".repeat(100));
        assert!(parse(quoted.as_bytes()).is_ok());
    }

    #[test]
    fn unknown_fields_are_ignored() {
        assert!(matches!(parse(b" {\"type\":\"heartbeat\",\"new\":[1,{}]}"), Ok(Frame::Heartbeat)));
        let Ok(Frame::Publish(publish)) =
            parse(br#"{"type":"publish","topic":"a\u002eb","payload":{"n": 1e999}}"#)
        else {
            panic!()
        };
        assert_eq!(publish.topic.unwrap().0, "a.b");
        assert_eq!(publish.payload.unwrap().get(), "{\"n\": 1e999}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200), json in "[\\[\\]{}\":,a-c0-9 \\\\]{0,60}") {
            let _ = parse(&body);
            let _ = parse(json.as_bytes());
            let _ = parse(format!("{{\"type\":\"publish\",\"payload\":{json}}}").as_bytes());
        }

        /// The shortcut and the loop agree with a count over the parsed value.
        #[test]
        fn depth_is_that_of_the_value(levels in proptest::collection::vec(any::<bool>(), 0..90), limit in 1usize..80) {
            let mut value = serde_json::json!("]}[{\\\"");
            for object in &levels {
                value = if *object { serde_json::json!({ "[": value }) } else { serde_json::json!([value]) };
            }
            prop_assert_eq!(depth_exceeds(value.to_string().as_bytes(), limit), levels.len() > limit);
        }
    }
}
