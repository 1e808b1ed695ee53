//! What a client receives: the frames of the broker, borrowed from the bytes they came in.
//!
//! Always holds: an event's line is the line of its log, whatever stands in front of it in the frame or in which
//! order; it has no line break. Frames of unknown type are [`Received::Other`]. Pure. Owner: `client.rs`.

use crate::core::event::Text;
use crate::core::tail::line::Stamp;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Every event's frame begins so; the name of its subscription follows.
const EVENT: &[u8] = b"{\"type\":\"event\",\"sub\":\"";
/// So those of a group; its name follows.
const DELIVERY: &[u8] = b"{\"type\":\"event\",\"group\":\"";
/// Behind the head, the line.
const SEQ: &[u8] = b",\"seq\":";
/// What a frame has and a line has not.
const HEAD: [&str; 5] = ["type", "sub", "group", "attempt", "max_attempts"];

/// A frame from the broker.
#[derive(Debug)]
pub enum Received<'a> {
    /// An event of a subscription.
    Event {
        /// The subscription's name.
        sub: Cow<'a, str>,
        /// The event's place in the journal.
        seq: u64,
        /// The event as its log has it, without the line's end.
        line: Cow<'a, [u8]>,
    },
    /// An event that is delivered to a member of a group.
    Delivery {
        /// The group's name.
        group: Cow<'a, str>,
        /// The how-manieth delivery it is, from 1.
        attempt: u32,
        /// How many there are at the most.
        max_attempts: u32,
        /// The event's place in the journal.
        seq: u64,
        /// The event as its log has it, without the line's end.
        line: Cow<'a, [u8]>,
    },
    /// Events that this subscription does not get: they are gone.
    Gap {
        /// The subscription's name.
        sub: Cow<'a, str>,
        /// From this seq …
        from: u64,
        /// … to this one, both included.
        to: u64,
    },
    /// This subscription was sent the newest event of each key.
    State {
        /// The subscription's name.
        sub: Cow<'a, str>,
        /// Of everything up to this seq.
        through: Option<u64>,
    },
    /// The operator ended this subscription.
    Unsubscribed {
        /// Its name.
        sub: Cow<'a, str>,
        /// The group, if it was a membership.
        group: Option<Cow<'a, str>>,
        /// A code of `docs/BUS.md`.
        code: Cow<'a, str>,
        /// A sentence.
        reason: Cow<'a, str>,
    },
    /// What became of a frame that was sent.
    Ack(Ack<'a>),
    /// The broker lives.
    Heartbeat,
    /// The last frame.
    Close {
        /// A close reason of `docs/BUS.md`.
        reason: Cow<'a, str>,
        /// When it makes sense to come back, in milliseconds.
        retry_after_ms: u64,
    },
    /// What later brokers send.
    Other,
}

/// An ack, borrowed from what was received.
#[derive(Debug, Deserialize)]
#[allow(missing_docs, reason = "the fields of docs/BUS.md")]
pub struct Ack<'a> {
    #[serde(rename = "type", borrow)]
    pub(crate) kind: Text<'a>,
    #[serde(borrow)]
    pub ack: Option<Text<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    #[serde(borrow)]
    pub code: Option<Text<'a>>,
    #[serde(borrow)]
    pub reason: Option<Text<'a>>,
    pub seq: Option<u64>,
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    /// Of `publish`: it was stored before.
    #[serde(default)]
    pub duplicate: bool,
    /// Of `subscribe`: the first seq that may come.
    pub next_seq: Option<u64>,
    /// Of `subscribe`: what was asked for and is gone.
    pub gap: Option<Gap>,
    /// Of `subscribe`: the newest events per key come first, of everything up to this seq.
    pub state: Option<u64>,
    /// Of `subscribe`, of somebody who keeps the state: which topics have one.
    #[serde(borrow)]
    pub compacted: Option<Vec<Text<'a>>>,
    /// Of what is about a group: its name.
    #[serde(borrow)]
    pub group: Option<Text<'a>>,
}

/// Events that are gone.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Gap {
    /// From this seq …
    pub from: u64,
    /// … to this one, both included.
    pub to: u64,
}

impl Ack<'_> {
    /// Whether it was done.
    pub fn is_ok(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.0 == "ok")
    }

    /// Whether it is of a frame of this type.
    pub fn is_of(&self, kind: &str) -> bool {
        self.ack.as_ref().is_some_and(|ack| ack.0 == kind)
    }
}

/// What every frame has; its other fields are its type's, and nobody knows those of an unknown one.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
}

/// For whom an event is.
#[derive(Deserialize)]
struct For<'a> {
    #[serde(borrow)]
    sub: Option<Text<'a>>,
    #[serde(borrow)]
    group: Option<Text<'a>>,
    attempt: Option<u32>,
    max_attempts: Option<u32>,
}

#[derive(Deserialize)]
struct Gone<'a> {
    #[serde(borrow)]
    sub: Option<Text<'a>>,
    from: u64,
    to: u64,
}

#[derive(Deserialize)]
struct Sub<'a> {
    #[serde(borrow)]
    sub: Option<Text<'a>>,
    through: Option<u64>,
}

#[derive(Deserialize)]
struct Over<'a> {
    #[serde(borrow)]
    sub: Option<Text<'a>>,
    #[serde(borrow)]
    group: Option<Text<'a>>,
    #[serde(borrow)]
    code: Option<Text<'a>>,
    #[serde(borrow)]
    reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Close<'a> {
    #[serde(borrow)]
    reason: Option<Text<'a>>,
    retry_after_ms: Option<u64>,
}

impl<'a> Received<'a> {
    /// Reads a frame's body. The byte before an event's line is written over: the line is made where it stands.
    ///
    /// # Errors
    /// It is no JSON object, or one without what its type must have.
    pub fn parse(body: &'a mut [u8]) -> Result<Self, serde_json::Error> {
        if let Some(at) = line_at(body) {
            body[at] = b'{';
            let name = EVENT.len()..at - 1;
            if let (Some(stamp), Ok(_)) = (Stamp::of(&body[at..]), std::str::from_utf8(&body[name.clone()])) {
                let (head, line) = body.split_at_mut(at);
                let sub = String::from_utf8_lossy(&head[name]);
                return Ok(Received::Event { sub, seq: stamp.seq, line: Cow::Borrowed(line) });
            }
            body[at] = b',';
        }
        if let Some((name, attempt, max_attempts, at)) = delivery_at(body) {
            body[at] = b'{';
            if let (Some(stamp), Ok(_)) = (Stamp::of(&body[at..]), std::str::from_utf8(&body[name.clone()])) {
                let (head, line) = body.split_at_mut(at);
                let group = String::from_utf8_lossy(&head[name]);
                let line = Cow::Borrowed(&*line);
                return Ok(Received::Delivery { group, attempt, max_attempts, seq: stamp.seq, line });
            }
            body[at] = b',';
        }
        Self::of_any_order(body)
    }

    fn of_any_order(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        let Kind { kind } = serde_json::from_slice(body)?;
        let text = |text: Option<Text<'a>>| text.map_or(Cow::Borrowed(""), |text| text.0);
        Ok(match kind.0.as_ref() {
            "ack" => Received::Ack(serde_json::from_slice(body)?),
            "event" => {
                let fields: Fields<'a> = serde_json::from_slice(body)?;
                let (seq, line) = fields.line()?;
                let line = Cow::Owned(line);
                match serde_json::from_slice(body)? {
                    For { sub: None, group: Some(group), attempt, max_attempts } => Received::Delivery {
                        group: group.0,
                        attempt: attempt.unwrap_or(1),
                        max_attempts: max_attempts.unwrap_or(1),
                        seq,
                        line,
                    },
                    For { sub, .. } => Received::Event { sub: text(sub), seq, line },
                }
            }
            "gap" => {
                let Gone { sub, from, to } = serde_json::from_slice(body)?;
                Received::Gap { sub: text(sub), from, to }
            }
            "unsubscribed" => {
                let Over { sub, group, code, reason } = serde_json::from_slice(body)?;
                let group = group.map(|group| group.0);
                Received::Unsubscribed { sub: text(sub), group, code: text(code), reason: text(reason) }
            }
            "state" => {
                let Sub { sub, through } = serde_json::from_slice(body)?;
                Received::State { sub: text(sub), through }
            }
            "heartbeat" => Received::Heartbeat,
            "close" => {
                let Close { reason, retry_after_ms } = serde_json::from_slice(body)?;
                Received::Close { reason: text(reason), retry_after_ms: retry_after_ms.unwrap_or(0) }
            }
            _ => Received::Other,
        })
    }
}

/// Where the byte before an event's line is, when the frame has the order that brokers write.
fn line_at(body: &[u8]) -> Option<usize> {
    let rest = body.strip_prefix(EVENT)?;
    let end = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    let line = rest.get(end + 1..)?;
    (rest[end] == b'"' && line.starts_with(SEQ) && !line.contains(&b'\n')).then_some(EVENT.len() + end + 1)
}

/// Where the group's name is in a delivery that has the order that brokers write, its attempt, the most attempts, and where the
/// byte before the event's line is.
fn delivery_at(body: &[u8]) -> Option<(Range<usize>, u32, u32, usize)> {
    let rest = body.strip_prefix(DELIVERY)?;
    let end = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    let (attempt, rest) = counted(rest[end..].strip_prefix(b"\",\"attempt\":")?)?;
    let (max_attempts, rest) = counted(rest.strip_prefix(b",\"max_attempts\":")?)?;
    let is_line = rest.starts_with(SEQ) && !rest.contains(&b'\n');
    is_line.then(|| (DELIVERY.len()..DELIVERY.len() + end, attempt, max_attempts, body.len() - rest.len()))
}

fn counted(text: &[u8]) -> Option<(u32, &[u8])> {
    let end = text.iter().position(|b| !b.is_ascii_digit())?;
    let number = std::str::from_utf8(&text[..end]).ok()?.parse().ok()?;
    Some((number, &text[end..]))
}

fn missing(field: &'static str) -> serde_json::Error {
    serde::de::Error::missing_field(field)
}

/// The fields of an object, in the order in which they came.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl Fields<'_> {
    /// Its seq, and the line of its log.
    fn line(&self) -> Result<(u64, Vec<u8>), serde_json::Error> {
        let number = |name: &'static str| {
            let found = self.0.iter().find(|(field, _)| field == name).ok_or_else(|| missing(name))?;
            serde_json::from_str::<u64>(found.1.get())
        };
        let (seq, ts) = (number("seq")?, number("ts")?);
        let mut line = format!("{{\"seq\":{seq},\"ts\":{ts}").into_bytes();
        let is_line = |name: &str| !HEAD.contains(&name) && name != "seq" && name != "ts";
        for (name, value) in self.0.iter().filter(|(name, _)| is_line(name)) {
            line.push(b',');
            serde_json::to_writer(&mut line, name)?;
            line.push(b':');
            // Outside of strings, where JSON has none, a line break is a space like any other.
            line.extend(value.get().bytes().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }));
        }
        line.push(b'}');
        Ok((seq, line))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    fields.push((name.0, value));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(InOrder).map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(body: &str) -> (String, u64, String) {
        let mut body = body.as_bytes().to_vec();
        match Received::parse(&mut body).unwrap() {
            Received::Event { sub, seq, line } => {
                (sub.into_owned(), seq, String::from_utf8(line.into_owned()).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_line_is_that_of_the_log() {
        let line = r#"{"seq":7,"ts":8,"id":"x","vm":"a","topic":"t","payload":{"type":"event", "seq": 9}}"#;
        let tail = &line[1..];
        for (body, sub) in [
            (format!(r#"{{"type":"event","sub":"cli",{tail}"#), "cli"),
            (format!(r#"{{"type":"event","sub":"a\",\"seq\":1",{tail}"#), r#"a","seq":1"#),
            (format!(r#"{{"type":"event","sub":"q","group":"g","attempt":2,{tail}"#), "q"),
            (format!(r#"{{"sub":"b","type":"event",{tail}"#), "b"),
            (format!("{{ \"type\" : \"event\",\"sub\":\"é\",\n{tail}"), "é"),
        ] {
            assert_eq!(event(&body), (sub.to_owned(), 7, line.to_owned()), "{body}");
        }
        for (body, want) in [
            (format!(r#"{{"type":"event","group":"g.1","attempt":2,"max_attempts":5,{tail}"#), ("g.1", 2, 5)),
            (format!(r#"{{"group":"g","type":"event","max_attempts":3,"attempt":1,{tail}"#), ("g", 1, 3)),
            (
                format!(r#"{{"type":"event","group":"g","attempt":1,"max_attempts":5,"new":1,{tail}"#),
                ("g", 1, 5),
            ),
        ] {
            let mut bytes = body.clone().into_bytes();
            let Ok(Received::Delivery { group, attempt, max_attempts, seq, line: got }) =
                Received::parse(&mut bytes)
            else {
                panic!("{body}")
            };
            assert_eq!((&*group, attempt, max_attempts, seq), (want.0, want.1, want.2, 7), "{body}");
            let got = String::from_utf8(got.into_owned()).unwrap();
            assert_eq!(got.replace(",\"new\":1", ""), line, "{body}");
        }
        // Another order within it: seq and ts lead, nothing is left out.
        let body = "{\"payload\":[1,\n2],\"ts\":8,\"vm\":\"a\",\"sub\":\"s\",\"seq\":7,\"type\":\"event\",\"new\":1}";
        assert_eq!(event(body).2, r#"{"seq":7,"ts":8,"payload":[1, 2],"vm":"a","new":1}"#);
    }

    #[test]
    fn the_other_frames() {
        let parse = |body: &str| {
            let mut body = body.as_bytes().to_vec();
            Received::parse(&mut body).map(|received| format!("{received:?}"))
        };
        assert_eq!(
            parse(r#"{"type":"gap","sub":"s","from":3,"to":5}"#).unwrap(),
            r#"Gap { sub: "s", from: 3, to: 5 }"#
        );
        assert_eq!(parse(r#"{"type":"heartbeat","new":{}}"#).unwrap(), "Heartbeat");
        assert_eq!(
            parse(r#"{"type":"close","reason":"draining","retry_after_ms":1000}"#).unwrap(),
            r#"Close { reason: "draining", retry_after_ms: 1000 }"#
        );
        for later in [
            r#"{"type":"from-later","seq":1}"#,
            r#"{"type":"advice","seq":"soon","ack":1,"gap":[],"sub":{},"from":-1,"duplicate":null}"#,
        ] {
            assert_eq!(parse(later).unwrap(), "Other");
        }
        assert_eq!(parse(r#"{"seq":"soon","type":"heartbeat"}"#).unwrap(), "Heartbeat");
        let ack = r#"{"type":"ack","ack":"subscribe","status":"ok","sub":"s","next_seq":4,"gap":{"from":1,"to":3}}"#;
        let mut body = ack.as_bytes().to_vec();
        let Received::Ack(ack) = Received::parse(&mut body).unwrap() else { panic!("no ack") };
        assert!(ack.is_ok() && ack.is_of("subscribe") && !ack.is_of("publish"));
        assert_eq!((ack.next_seq, ack.gap), (Some(4), Some(Gap { from: 1, to: 3 })));
        for bad in ["", "[]", "{}", r#"{"type":"event","sub":"s"}"#, r#"{"type":"gap","sub":"s","from":1}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut body in prop_oneof![
            any::<Vec<u8>>(),
            "(\\{\"type\":\"event\",\"group\":\"[a\\\\\"]{0,3}\",\"attempt\":[0-9]{0,11},\"max_attempts\":[0-9],\"seq\":[0-9]{0,3},\"ts\":1[,}a\n]{0,3})".prop_map(String::into_bytes),
            "(\\{\"type\":\"event\",\"sub\":\"[a\\\\\"]{0,3}\",\"seq\":[0-9]{0,3},\"ts\":1[,}a\n]{0,3})".prop_map(String::into_bytes),
        ]) {
            let before = body.clone();
            if let Ok(Received::Event { line, .. } | Received::Delivery { line, .. }) = Received::parse(&mut body) {
                let is_line = !line.contains(&b'\n') && line.starts_with(b"{\"seq\":");
                prop_assert!(is_line);
            } else {
                prop_assert_eq!(body, before, "what is no event stays as it was");
            }
        }
    }
}
