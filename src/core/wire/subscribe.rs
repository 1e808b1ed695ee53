//! What a guest says of a subscription, and what the broker says of it.
//!
//! Always holds: a delivered frame is a head of its own and the shared bytes of the event; whatever is wrong with a
//! wish is a [`Refusal`]. Pure. Owner: `session/subscribing.rs`, and `delivery` for the events.

use super::frame::{framed, refusal};
use super::group::{Join, check_name, parse_join};
use crate::core::event::{Text, string_body};
use crate::core::identity::VmName;
use crate::core::limits::{ID_BYTES, PATTERN_STARS, PATTERN_TOKENS, PATTERNS, SUB_BYTES};
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// Where a subscription begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// Behind everything that is durable by now.
    Latest,
    /// At the oldest event that can be read.
    Earliest,
    /// At this seq.
    Seq(u64),
    /// At the first event that is not older; milliseconds since 1970.
    Ts(u64),
    /// Behind the newest event of this id, of this VM if one is named.
    Id(String, Option<VmName>),
    /// At this seq, for somebody who keeps the state: in the place of events that are gone comes what is newest of them
    /// per key.
    Compacted(u64),
    /// At the newest event of each key; then at what follows.
    State {
        /// Only what is behind this seq, ends of keys too; 0: all, and nobody knows of ended keys.
        after: u64,
        /// It is the rest of the state of this seq, which was cut off; none: the state of now.
        through: Option<u64>,
    },
}

/// A wish to be sent events.
#[derive(Debug)]
pub struct Subscribe {
    /// Its name within the session.
    pub sub: Box<str>,
    /// An event of any of them comes, once.
    pub patterns: Vec<Pattern>,
    /// Where it begins.
    pub from: From,
}

/// What a `subscribe` wishes.
#[derive(Debug)]
pub enum Subscribed {
    /// To be sent every event.
    Alone(Subscribe),
    /// To share events with the other members of a group.
    Group(Box<Join>),
}

/// What an `unsubscribe` ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsubscribe {
    /// The subscription of this name.
    Sub(Box<str>),
    /// The membership in this group; or, with `drain`, what it is handed.
    Group {
        /// The group.
        group: Box<str>,
        /// It goes on for what the member holds.
        drain: bool,
    },
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    topic: Option<Text<'a>>,
    #[serde(borrow, default)]
    topics: Option<Vec<Text<'a>>>,
    #[serde(borrow, default)]
    sub: Option<Text<'a>>,
    #[serde(borrow, default)]
    from: Option<&'a RawValue>,
    #[serde(borrow, default)]
    group: Option<Text<'a>>,
    #[serde(default)]
    drain: Option<bool>,
}

#[derive(Deserialize)]
struct Place {
    seq: Option<u64>,
    ts: Option<u64>,
    id: Option<String>,
    state: Option<u64>,
    through: Option<u64>,
    #[serde(default)]
    compacted: bool,
    vm: Option<String>,
}

/// Reads the body of a frame that is a `subscribe`.
///
/// # Errors
/// `bad-field`, `duplicate-field`, `bad-pattern`, `bad-sub`, `bad-from`, `too-many-subscriptions`, `bad-group`.
pub fn parse_subscribe(body: &str) -> Result<Subscribed, Refusal> {
    let fields: Fields<'_> = serde_json::from_str(body).map_err(|e| refusal(&e))?;
    let from = fields.from.map_or(Ok(From::Latest), parse_from)?;
    let is_group = fields.group.is_some();
    if is_group && fields.sub.is_some() {
        return Err(Refusal::new(
            "bad-sub",
            "a member of a group is known by the group's name: leave 'sub' out",
        ));
    }
    // A member needs no other name.
    let sub = fields.sub.or(fields.group);
    let (sub, patterns) = match (sub, fields.topic, fields.topics) {
        (_, Some(_), Some(_)) => {
            return Err(Refusal::new("bad-field", "either 'topic' or 'topics', not both"));
        }
        (_, None, None) => return Err(Refusal::new("bad-field", "a subscription has a 'topic' or 'topics'")),
        (None, None, Some(_)) => {
            return Err(Refusal::new("bad-sub", "with 'topics' the subscription needs a name: 'sub'"));
        }
        (sub, Some(topic), None) => {
            let patterns = vec![pattern(&topic)?];
            (sub.unwrap_or(topic), patterns)
        }
        (Some(_), None, Some(topics)) if topics.is_empty() => {
            return Err(Refusal::new("bad-field", "topics is empty"));
        }
        (Some(_), None, Some(topics)) if topics.len() > PATTERNS => {
            return Err(Refusal::new("too-many-subscriptions", format!("topics are at most {PATTERNS}")));
        }
        (Some(sub), None, Some(topics)) => (sub, topics.iter().map(pattern).collect::<Result<_, _>>()?),
    };
    if is_group {
        refuse_state(&from)?;
        return parse_join(body, patterns, from).map(Box::new).map(Subscribed::Group);
    }
    Ok(Subscribed::Alone(Subscribe { sub: check_sub(&sub.0)?, patterns, from }))
}

/// A group's events are handed out one after the other, and done for good: a state that is written over is no such thing.
pub(super) fn refuse_state(from: &From) -> Result<(), Refusal> {
    match from {
        From::State { .. } | From::Compacted(_) => Err(Refusal::new(
            "bad-from",
            "a group does not begin at the state: read that with a subscription of its own, or with 'latest'",
        )),
        _ => Ok(()),
    }
}

/// Reads the body of a frame that is an `unsubscribe`.
///
/// # Errors
/// `bad-field`, `duplicate-field`, `bad-sub`, `bad-group`.
pub fn parse_unsubscribe(body: &str) -> Result<Unsubscribe, Refusal> {
    let fields: Fields<'_> = serde_json::from_str(body).map_err(|e| refusal(&e))?;
    match (fields.group, fields.sub.or(fields.topic)) {
        (Some(group), _) => {
            check_name(&group.0).map(|group| Unsubscribe::Group { group, drain: fields.drain == Some(true) })
        }
        (None, Some(sub)) => check_sub(&sub.0).map(Unsubscribe::Sub),
        (None, None) => Err(Refusal::new("bad-field", "which one: 'sub', 'topic' or 'group'")),
    }
}

fn pattern(text: &Text<'_>) -> Result<Pattern, Refusal> {
    let bad = |why: String| Refusal::new("bad-pattern", format!("'{:.64}': {why}", text.0));
    let pattern = Pattern::parse(&text.0).map_err(|e| bad(e.to_string()))?;
    let stars = text.0.split('.').filter(|token| *token == "*").count();
    if !pattern.is_plain() && (text.0.split('.').count() > PATTERN_TOKENS || stars > PATTERN_STARS) {
        let most = format!("at most {PATTERN_TOKENS} tokens and {PATTERN_STARS} of them '*'");
        return Err(bad(format!("a pattern that is subscribed has {most}")));
    }
    Ok(pattern)
}

/// The name that a `subscribe` or `unsubscribe` (`kind`) is about, as far as it can be read; what is about a group has none.
pub fn sub_of(kind: &str, body: &[u8]) -> Option<Box<str>> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow, default)]
        topic: Option<Text<'a>>,
        #[serde(borrow, default)]
        sub: Option<Text<'a>>,
        #[serde(default)]
        group: Option<IgnoredAny>,
    }
    let named: Named<'_> = serde_json::from_slice(body).ok()?;
    if named.group.is_some() || !matches!(kind, "subscribe" | "unsubscribe") {
        return None;
    }
    named.sub.or(named.topic).filter(|Text(name)| name.len() <= SUB_BYTES).map(|Text(name)| name.into())
}

/// Appends an ack that refuses a `subscribe` or `unsubscribe` (`ack`) of that name.
pub fn refused_ack(out: &mut Vec<u8>, ack: &str, sub: Option<&str>, refusal: &Refusal) {
    framed(out, |out| {
        out.extend_from_slice(
            format!("{{\"type\":\"ack\",\"ack\":\"{ack}\",\"status\":\"error\"").as_bytes(),
        );
        if let Some(sub) = sub {
            out.extend_from_slice(b",\"sub\":\"");
            string_body(out, sub);
            out.push(b'"');
        }
        out.extend_from_slice(format!(",\"code\":\"{}\",\"reason\":\"", refusal.code).as_bytes());
        string_body(out, &refusal.reason);
        out.extend_from_slice(b"\"}");
    });
}

fn check_sub(sub: &str) -> Result<Box<str>, Refusal> {
    if sub.is_empty() || sub.len() > SUB_BYTES || sub.chars().any(char::is_control) {
        let reason = format!("a subscription's name is 1-{SUB_BYTES} bytes without control characters");
        return Err(Refusal::new("bad-sub", reason));
    }
    Ok(sub.into())
}

pub(super) fn parse_from(raw: &RawValue) -> Result<From, Refusal> {
    let wrong = || {
        Refusal::new(
            "bad-from",
            r#"from is "latest", "earliest", "state", {"seq":1 or more}, {"ts":milliseconds}, {"state":seq}, {"state":seq,"through":seq} or {"id":"…"}, with the name of a "vm" or not"#,
        )
    };
    match raw.get() {
        "null" | "\"latest\"" => return Ok(From::Latest),
        "\"earliest\"" => return Ok(From::Earliest),
        "\"state\"" => return Ok(From::State { after: 0, through: None }),
        text if !text.starts_with('{') => return Err(wrong()),
        _ => {}
    }
    match serde_json::from_str(raw.get()).map_err(|_| wrong())? {
        Place { seq: Some(seq), ts: None, id: None, state: None, compacted, .. } if seq > 0 => {
            Ok(if compacted { From::Compacted(seq) } else { From::Seq(seq) })
        }
        Place { seq: None, ts: Some(ts), id: None, state: None, .. } => Ok(From::Ts(ts)),
        Place { seq: None, ts: None, id: None, state: Some(after), through, .. }
            if through.is_none_or(|through| after <= through) =>
        {
            Ok(From::State { after, through })
        }
        Place { seq: None, ts: None, id: Some(id), state: None, vm, .. }
            if (1..=ID_BYTES).contains(&id.len()) =>
        {
            let vm = vm.map(|vm| VmName::parse(&vm)).transpose().map_err(|_| wrong())?;
            Ok(From::Id(id, vm))
        }
        _ => Err(wrong()),
    }
}

/// Appends the ack of a subscription whose next event is `next_seq` or a later one; `gap` was asked for and is gone.
pub fn subscribe_ack(out: &mut Vec<u8>, sub: &str, next_seq: u64, gap: Option<(u64, u64)>) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"subscribe\",\"status\":\"ok\",\"sub\":\"");
        string_body(out, sub);
        out.extend_from_slice(format!("\",\"next_seq\":{next_seq}").as_bytes());
        if let Some((from, to)) = gap {
            out.extend_from_slice(format!(",\"gap\":{{\"from\":{from},\"to\":{to}}}").as_bytes());
        }
        out.push(b'}');
    });
}

/// Appends the ack of a subscription that keeps the state, from `next_seq` on. `state`: it begins with that of everything
/// up to this seq; `compacted`: the patterns of topics that have a state, if they fit.
pub fn state_ack(
    out: &mut Vec<u8>,
    sub: &str,
    next_seq: u64,
    state: Option<u64>,
    compacted: Option<&[&str]>,
) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"subscribe\",\"status\":\"ok\",\"sub\":\"");
        string_body(out, sub);
        out.extend_from_slice(format!("\",\"next_seq\":{next_seq}").as_bytes());
        if let Some(through) = state {
            out.extend_from_slice(format!(",\"state\":{through}").as_bytes());
        }
        if let Some(patterns) = compacted {
            out.extend_from_slice(b",\"compacted\":[");
            for (i, pattern) in patterns.iter().enumerate() {
                out.extend_from_slice(if i == 0 { b"\"" } else { b",\"" });
                string_body(out, pattern);
                out.push(b'"');
            }
            out.push(b']');
        }
        out.push(b'}');
    });
}

/// Appends what says that a subscription was sent the whole state.
pub fn state_end(out: &mut Vec<u8>, sub: &str, through: u64) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"state\",\"sub\":\"");
        string_body(out, sub);
        out.extend_from_slice(format!("\",\"through\":{through}}}").as_bytes());
    });
}

/// Appends the ack of the end of a subscription.
pub fn unsubscribe_ack(out: &mut Vec<u8>, sub: &str) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"ack\",\"ack\":\"unsubscribe\",\"status\":\"ok\",\"sub\":\"");
        string_body(out, sub);
        out.extend_from_slice(b"\"}");
    });
}

/// Appends the news that the operator ended a subscription, and why.
pub fn unsubscribed(out: &mut Vec<u8>, sub: &str, why: &Refusal) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"unsubscribed\",\"sub\":\"");
        string_body(out, sub);
        out.extend_from_slice(b"\",\"code\":\"");
        out.extend_from_slice(why.code.as_bytes());
        out.extend_from_slice(b"\",\"reason\":\"");
        string_body(out, &why.reason);
        out.extend_from_slice(b"\"}");
    });
}

/// How the events of a subscription begin: everything before `"seq":`.
pub fn event_head(sub: &str) -> Box<[u8]> {
    let mut head = b"{\"type\":\"event\",\"sub\":\"".to_vec();
    string_body(&mut head, sub);
    head.extend_from_slice(b"\",");
    head.into()
}

/// Appends a delivered event: a head of [`event_head`], and the event's line.
pub fn event(out: &mut Vec<u8>, head: &[u8], line: &[u8]) {
    // From `"seq":` on, without the newline.
    let shared = line.get(1..line.len().saturating_sub(1)).unwrap_or_default();
    let length = (head.len() + shared.len()) as u32;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(head);
    out.extend_from_slice(shared);
}

/// Appends what says that these seqs cannot be read any more, for the subscription of this [`event_head`].
pub fn gap(out: &mut Vec<u8>, head: &[u8], from: u64, to: u64) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"gap\"");
        out.extend_from_slice(head.strip_prefix(b"{\"type\":\"event\"").unwrap_or_default());
        out.extend_from_slice(format!("\"from\":{from},\"to\":{to}}}").as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::limits::{EVENT_BYTES, FRAME_BYTES};
    use proptest::prelude::*;

    fn code(body: &str) -> &'static str {
        parse_subscribe(body).map(drop).map_err(|refusal| refusal.code).unwrap_err()
    }

    fn alone(body: &str) -> Subscribe {
        match parse_subscribe(body).unwrap() {
            Subscribed::Alone(wish) => wish,
            Subscribed::Group(wish) => panic!("{wish:?}"),
        }
    }

    #[test]
    fn wishes() {
        let wish = alone(r#"{"topic":"a.*"}"#);
        assert_eq!((&*wish.sub, wish.patterns[0].as_str(), wish.from), ("a.*", "a.*", From::Latest));
        for (from, want) in [
            (r#""latest""#, From::Latest),
            ("null", From::Latest),
            (r#""earliest""#, From::Earliest),
            (r#"{"seq":7}"#, From::Seq(7)),
            (r#"{"ts":0,"new":1}"#, From::Ts(0)),
            (r#"{"id":"x"}"#, From::Id("x".into(), None)),
            (r#"{"id":"x","vm":"devbox"}"#, From::Id("x".into(), VmName::parse("devbox").ok())),
        ] {
            assert_eq!(alone(&format!(r#"{{"topic":"a","from":{from}}}"#)).from, want);
        }
        let wish = alone(r#"{"topics":["a","b.>"],"sub":"s"}"#);
        assert_eq!((&*wish.sub, wish.patterns.len()), ("s", 2));
        for (body, want) in [
            (r#"{"topic":"a"}"#, Unsubscribe::Sub("a".into())),
            (r#"{"topic":"a","sub":"s"}"#, Unsubscribe::Sub("s".into())),
            (r#"{"group":"g"}"#, Unsubscribe::Group { group: "g".into(), drain: false }),
            (
                r#"{"group":"g","drain":null,"sub":"s"}"#,
                Unsubscribe::Group { group: "g".into(), drain: false },
            ),
            (r#"{"group":"g","drain":true}"#, Unsubscribe::Group { group: "g".into(), drain: true }),
        ] {
            assert_eq!(parse_unsubscribe(body).unwrap(), want);
        }
        let member = parse_subscribe(r#"{"topics":["b","a"],"group":"g","from":"earliest"}"#).unwrap();
        assert!(
            matches!(member, Subscribed::Group(wish) if &*wish.group == "g" && wish.from == From::Earliest)
        );
    }

    #[test]
    fn every_refusal_has_its_code() {
        let many = format!(r#"{{"sub":"s","topics":[{}"a"]}}"#, "\"a\",".repeat(PATTERNS));
        for (body, want) in [
            (r#"{}"#, "bad-field"),
            (r#"{"topic":7}"#, "bad-field"),
            (r#"{"topic":"a","topics":["b"]}"#, "bad-field"),
            (r#"{"topics":[],"sub":"s"}"#, "bad-field"),
            (r#"{"topic":"a","topic":"b"}"#, "duplicate-field"),
            (r#"{"topics":["a"]}"#, "bad-sub"),
            (r#"{"topic":"a","sub":""}"#, "bad-sub"),
            (r#"{"topic":"a","sub":"\u0007"}"#, "bad-sub"),
            (r#"{"topic":"a..b"}"#, "bad-pattern"),
            (r#"{"topic":"a.>.b"}"#, "bad-pattern"),
            (r#"{"topic":"*.*.*.*.*"}"#, "bad-pattern"),
            (r#"{"topic":"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.>"}"#, "bad-pattern"),
            (r#"{"topic":""}"#, "bad-pattern"),
            (&many, "too-many-subscriptions"),
            (r#"{"topic":"a","from":7}"#, "bad-from"),
            (r#"{"topic":"a","from":"newest"}"#, "bad-from"),
            (r#"{"topic":"a","from":{}}"#, "bad-from"),
            (r#"{"topic":"a","from":[1]}"#, "bad-from"),
            (r#"{"topic":"a","from":{"seq":0}}"#, "bad-from"),
            (r#"{"topic":"a","from":{"seq":-1}}"#, "bad-from"),
            (r#"{"topic":"a","from":{"seq":"1"}}"#, "bad-from"),
            (r#"{"topic":"a","from":{"seq":1,"ts":1}}"#, "bad-from"),
            (r#"{"topic":"a","from":{"id":""}}"#, "bad-from"),
            (r#"{"topic":"a","from":{"id":"x","vm":"a b"}}"#, "bad-from"),
            (r#"{"topic":"a","from":{"id":"x","vm":7}}"#, "bad-from"),
            (r#"{"topic":"a","group":"a b"}"#, "bad-group"),
            (r#"{"topic":"a","group":"g","sub":"s"}"#, "bad-sub"),
        ] {
            assert_eq!(code(body), want, "{body}");
        }
    }

    proptest! {
        /// Any name fits the frames that carry it, and comes back.
        #[test]
        fn frames_are_frames(sub in "[ -~é\"\\\\]{1,100}", seq in any::<u64>()) {
            let line = format!("{{\"seq\":{seq},\"x\":1}}\n");
            let head = event_head(&sub);
            let mut out = Vec::new();
            event(&mut out, &head, line.as_bytes());
            gap(&mut out, &head, 1, seq);
            subscribe_ack(&mut out, &sub, seq, Some((1, 2)));
            unsubscribe_ack(&mut out, &sub);
            refused_ack(&mut out, "subscribe", Some(&sub), &Refusal::new("bad-from", &sub));
            let mut rest = &out[..];
            for kind in ["event", "gap", "ack", "ack", "ack"] {
                let body = crate::core::wire::codec::first_frame(rest).unwrap().unwrap();
                let value: serde_json::Value = serde_json::from_slice(body).unwrap();
                prop_assert_eq!(value["type"].as_str(), Some(kind));
                prop_assert_eq!(value["sub"].as_str(), Some(&*sub));
                rest = &rest[4 + body.len()..];
            }
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn the_longest_event_fits_a_frame() {
        // No character takes more room in JSON than these, for a name has no control characters.
        assert!(event_head(&"\"".repeat(SUB_BYTES)).len() + EVENT_BYTES <= FRAME_BYTES);
    }
}
