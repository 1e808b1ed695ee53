//! What a member of a consumer group says, and what the broker says to it.
//!
//! Always holds: whatever is wrong with a frame is a [`Refusal`]; a group's options are compared as they were understood,
//! not as they were typed. Pure. Owner: `session/grouping.rs`, and `delivery/groups` for the events.

use super::frame::{framed, refusal};
use super::subscribe::From;
use crate::core::event::{Text, read_headers, read_tags, string_body};
use crate::core::limits::{
    ACK_SEQS, GROUP_ACK_TIMEOUT, GROUP_ATTEMPTS, GROUP_BATCH, GROUP_IN_FLIGHT, GROUP_NAME_BYTES, ID_BYTES,
    NACK_DELAY_SET, REASON_BYTES,
};
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a group is: its first member says it, or whoever creates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// An event of any of them is for the group.
    pub topics: Vec<String>,
    /// Of these, what has all of these headers …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// … and all of these tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// How many events a member is handed at a time.
    pub batch: u32,
    /// How long a member may hold an event, in milliseconds.
    pub ack_timeout_ms: u64,
    /// How often an event is delivered at the most.
    pub max_attempts: u32,
    /// Events of one key one after the other.
    #[serde(default)]
    pub ordered_by_key: bool,
}

/// A wish to be a member.
#[derive(Debug)]
pub struct Join {
    /// Of which group.
    pub group: Box<str>,
    /// What it is if it is not there yet.
    pub spec: Spec,
    /// The same topics.
    pub patterns: Vec<Pattern>,
    /// Where it begins if it is not there yet.
    pub from: From,
    /// What the member holds at the most.
    pub max_in_flight: u32,
    /// It says which events it begins.
    pub begins: bool,
}

/// Which of the events that a member holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Which {
    /// These.
    Seqs(Vec<u64>),
    /// The one of this id.
    Id(String),
    /// All up to this one.
    Through(u64),
}

/// What becomes of events that a member holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Say {
    /// They are done.
    Ack,
    /// They are to be delivered again, after a wait: this one, one of these by the attempt, or the usual one.
    Nack {
        /// In milliseconds.
        delays: Vec<u64>,
    },
    /// They are an attempt from now on.
    Begin,
    /// They need more time.
    InProgress,
    /// They are given up.
    Term,
}

/// A frame of a member.
#[derive(Debug)]
pub struct Word {
    /// Of which group.
    pub group: Box<str>,
    /// What.
    pub say: Say,
    /// Of which events.
    pub which: Which,
    /// Why, for people.
    pub reason: Option<String>,
    /// It wants an answer also when all is well.
    pub confirm: bool,
}

impl Say {
    /// The type of its frame.
    pub fn kind(&self) -> &'static str {
        match self {
            Say::Ack => "ack",
            Say::Nack { .. } => "nack",
            Say::Begin => "begin",
            Say::InProgress => "in_progress",
            Say::Term => "term",
        }
    }

    /// Whether it changes what the journal has: its answer waits for that.
    pub fn is_written(&self) -> bool {
        !matches!(self, Say::Begin | Say::InProgress)
    }
}

/// The name of a group, which is also the end of a topic.
///
/// # Errors
/// `bad-group`.
pub fn check_name(name: &str) -> Result<Box<str>, Refusal> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    // A name is tokens of a topic.
    let is_good = name.len() <= GROUP_NAME_BYTES
        && name.split('.').all(|token| !token.is_empty() && token.bytes().all(is_plain));
    if !is_good {
        let rule = "of A-Z a-z 0-9 _ - and single dots between them";
        return Err(Refusal::new(
            "bad-group",
            format!("a group's name is 1-{GROUP_NAME_BYTES} bytes {rule}"),
        ));
    }
    Ok(name.into())
}

#[derive(Deserialize)]
struct Options<'a> {
    group: String,
    batch: Option<u32>,
    max_in_flight: Option<u32>,
    begins: Option<bool>,
    ack_timeout_ms: Option<u64>,
    max_attempts: Option<u32>,
    ordered_by_key: Option<bool>,
    #[serde(borrow)]
    filter: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter<'a> {
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
    #[serde(borrow)]
    tags: Option<&'a RawValue>,
}

/// Reads a filter: headers and tags, as those of an event.
fn parse_filter(raw: &RawValue) -> Result<(BTreeMap<String, String>, Vec<String>), Refusal> {
    if !raw.get().starts_with('{') {
        return Err(Refusal::new("bad-field", "filter is an object with 'headers', 'tags' or both"));
    }
    let filter: Filter<'_> = serde_json::from_str(raw.get()).map_err(|e| refusal(&e))?;
    let headers = filter.headers.map(read_headers).transpose()?.unwrap_or_default();
    let mut tags = filter.tags.map(read_tags).transpose()?.unwrap_or_default();
    tags.sort_unstable();
    tags.dedup();
    Ok((headers, tags))
}

/// Reads the rest of a `subscribe` that names a group; its topics were read.
///
/// # Errors
/// `bad-field`, `bad-group`, `bad-headers`, `bad-tags`.
pub fn parse_join(body: &str, patterns: Vec<Pattern>, from: From) -> Result<Join, Refusal> {
    let options: Options<'_> = serde_json::from_str(body).map_err(|e| refusal(&e))?;
    let (headers, tags) = options.filter.map(parse_filter).transpose()?.unwrap_or_default();
    let between = |what: &str, value: u64, most: u64| match value {
        1.. if value <= most => Ok(value),
        _ => Err(Refusal::new("bad-field", format!("{what} is 1 to {most}"))),
    };
    let count = |what: &str, value: Option<u32>, usual: u32, most: u32| {
        between(what, value.unwrap_or(usual).into(), most.into()).map(|value| value as u32)
    };
    let usual = Duration::from_secs(30).as_millis() as u64;
    let mut topics: Vec<String> = patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect();
    topics.sort_unstable();
    topics.dedup();
    Ok(Join {
        group: check_name(&options.group)?,
        spec: Spec {
            topics,
            headers,
            tags,
            batch: count("batch", options.batch, 100, GROUP_BATCH)?,
            ack_timeout_ms: between(
                "ack_timeout_ms",
                options.ack_timeout_ms.unwrap_or(usual),
                GROUP_ACK_TIMEOUT.as_millis() as u64,
            )?,
            max_attempts: count("max_attempts", options.max_attempts, 5, GROUP_ATTEMPTS)?,
            ordered_by_key: options.ordered_by_key.unwrap_or(false),
        },
        patterns,
        from,
        max_in_flight: count("max_in_flight", options.max_in_flight, 1000, GROUP_IN_FLIGHT)?,
        begins: options.begins.unwrap_or(false),
    })
}

impl Spec {
    /// The names of the options in which `wish` is another, in the order of the fields.
    pub fn differs(&self, wish: &Spec) -> Vec<&'static str> {
        [
            ("topics", self.topics != wish.topics),
            ("filter", self.headers != wish.headers || self.tags != wish.tags),
            ("batch", self.batch != wish.batch),
            ("ack_timeout_ms", self.ack_timeout_ms != wish.ack_timeout_ms),
            ("max_attempts", self.max_attempts != wish.max_attempts),
            ("ordered_by_key", self.ordered_by_key != wish.ordered_by_key),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

#[derive(Deserialize)]
struct Words {
    group: Option<String>,
    seq: Option<u64>,
    seqs: Option<Vec<u64>>,
    id: Option<String>,
    through: Option<u64>,
    reason: Option<String>,
    delay_ms: Option<Delay>,
    confirm: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Delay {
    One(u64),
    Many(Vec<u64>),
}

/// Reads the body of a frame of a member; `say` is what its type says.
///
/// # Errors
/// `bad-field`, `duplicate-field`, `bad-group`.
pub fn parse_word(body: &str, mut say: Say) -> Result<Word, Refusal> {
    let words: Words = serde_json::from_str(body).map_err(|e| refusal(&e))?;
    let bad = |why: String| Refusal::new("bad-field", why);
    let kind = say.kind();
    let group = words.group.ok_or_else(|| bad(format!("{kind} has a 'group'")))?;
    let which = match (words.seq, words.seqs, words.id, words.through) {
        (Some(seq), None, None, None) => Which::Seqs(vec![seq]),
        (None, Some(seqs), None, None) if (1..=ACK_SEQS).contains(&seqs.len()) => Which::Seqs(seqs),
        (None, None, Some(id), None) if (1..=ID_BYTES).contains(&id.len()) => Which::Id(id),
        (None, None, None, Some(through)) => Which::Through(through),
        _ => {
            let what = format!("seq, seqs (1 to {ACK_SEQS} of them), id or through");
            return Err(bad(format!("{kind} says which events, by one of {what}")));
        }
    };
    if let Say::Nack { delays } = &mut say {
        *delays = match words.delay_ms {
            None => Vec::new(),
            Some(Delay::One(delay)) => vec![delay],
            Some(Delay::Many(delays)) => delays,
        };
        let most = NACK_DELAY_SET.as_millis() as u64;
        if delays.len() > GROUP_ATTEMPTS as usize || delays.iter().any(|delay| *delay > most) {
            return Err(bad(format!(
                "delay_ms is at most {most}, or a list of at most {GROUP_ATTEMPTS} such"
            )));
        }
    }
    let reason = words.reason.map(|mut reason| {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES));
        reason
    });
    Ok(Word { group: check_name(&group)?, say, which, reason, confirm: words.confirm.unwrap_or(false) })
}

/// The group that a frame is about, as far as it can be read.
pub fn group_of(body: &[u8]) -> Option<Box<str>> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        group: Text<'a>,
    }
    let named: Named<'_> = serde_json::from_slice(body).ok()?;
    Some(named.group.0).filter(|name| name.len() <= GROUP_NAME_BYTES).map(Into::into)
}

fn begin(out: &mut Vec<u8>, ack: &str, status: &str, group: &str) {
    out.extend_from_slice(
        format!("{{\"type\":\"ack\",\"ack\":\"{ack}\",\"status\":\"{status}\",\"group\":\"").as_bytes(),
    );
    string_body(out, group);
    out.push(b'"');
}

/// Appends the ack of a member of a group that has done with everything up to `cursor`; `differs` are options that the
/// group has otherwise than the member wished. A member that says which events it begins is told how long the group waits
/// for an answer, in milliseconds.
pub fn join_ack(
    out: &mut Vec<u8>,
    group: &str,
    (cursor, created): (u64, bool),
    differs: &[&str],
    begins: Option<u64>,
) {
    framed(out, |out| {
        begin(out, "subscribe", "ok", group);
        out.extend_from_slice(format!(",\"cursor\":{cursor},\"created\":{created}").as_bytes());
        if !differs.is_empty() {
            out.extend_from_slice(format!(",\"differs\":[\"{}\"]", differs.join("\",\"")).as_bytes());
        }
        if let Some(ms) = begins {
            out.extend_from_slice(format!(",\"begins\":true,\"ack_timeout_ms\":{ms}").as_bytes());
        }
        out.push(b'}');
    });
}

/// Appends the ack of a frame of a member: so many events were meant by it.
pub fn word_ack(out: &mut Vec<u8>, ack: &str, group: &str, events: usize) {
    framed(out, |out| {
        begin(out, ack, "ok", group);
        out.extend_from_slice(format!(",\"events\":{events}}}").as_bytes());
    });
}

/// Appends the ack of the end of a membership, or of what it is handed.
pub fn leave_ack(out: &mut Vec<u8>, group: &str, drain: bool) {
    framed(out, |out| {
        begin(out, "unsubscribe", "ok", group);
        out.extend_from_slice(if drain { b",\"drain\":true}" } else { b"}" });
    });
}

/// Appends an ack that refuses a frame about a group; `seq` is the event that it is about.
pub fn refused(out: &mut Vec<u8>, ack: &str, group: &str, seq: Option<u64>, why: &Refusal) {
    framed(out, |out| {
        begin(out, ack, "error", group);
        if let Some(seq) = seq {
            out.extend_from_slice(format!(",\"seq\":{seq}").as_bytes());
        }
        out.extend_from_slice(format!(",\"code\":\"{}\",\"reason\":\"", why.code).as_bytes());
        string_body(out, &why.reason);
        out.extend_from_slice(b"\"}");
    });
}

/// Appends the news that a membership ended without the member's wish.
pub fn ended(out: &mut Vec<u8>, group: &str, why: &Refusal) {
    framed(out, |out| {
        out.extend_from_slice(b"{\"type\":\"unsubscribed\",\"group\":\"");
        string_body(out, group);
        out.extend_from_slice(format!("\",\"code\":\"{}\",\"reason\":\"", why.code).as_bytes());
        string_body(out, &why.reason);
        out.extend_from_slice(b"\"}");
    });
}

/// How a delivery of this attempt begins: everything before `"seq":`.
pub fn delivery_head(group: &str, attempt: u32, max_attempts: u32) -> Box<[u8]> {
    let mut head = b"{\"type\":\"event\",\"group\":\"".to_vec();
    string_body(&mut head, group);
    head.extend_from_slice(format!("\",\"attempt\":{attempt},\"max_attempts\":{max_attempts},").as_bytes());
    head.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn join(body: &str) -> Result<Join, &'static str> {
        let patterns = vec![Pattern::parse("b").unwrap(), Pattern::parse("a").unwrap()];
        parse_join(body, patterns, From::Latest).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_group_and_its_options() {
        let wish = join(r#"{"group":"ops","topic":"t"}"#).unwrap();
        assert_eq!((&*wish.group, wish.max_in_flight), ("ops", 1000));
        let Spec { topics, batch, ack_timeout_ms, max_attempts, ordered_by_key, .. } = &wish.spec;
        assert_eq!(topics, &["a", "b"]);
        assert_eq!((*batch, *ack_timeout_ms, *max_attempts, *ordered_by_key), (100, 30_000, 5, false));
        let other = join(
            r#"{"group":"ops","batch":1,"ack_timeout_ms":1,"max_attempts":1,"ordered_by_key":true,
                "filter":{"headers":{"h":"1"},"tags":["z","y","z"]}}"#,
        )
        .unwrap();
        assert_eq!(other.spec.tags, ["y", "z"]);
        let all = ["filter", "batch", "ack_timeout_ms", "max_attempts", "ordered_by_key"];
        assert_eq!(wish.spec.differs(&other.spec), all);
        assert!(wish.spec.differs(&wish.spec).is_empty());
        let text = serde_json::to_string(&other.spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), other.spec);
        for bad in ["", ".", "a.", "a..b", "a b", "a>", "*", "ä", &"x".repeat(GROUP_NAME_BYTES + 1)] {
            assert_eq!(join(&format!(r#"{{"group":{bad:?}}}"#)).err(), Some("bad-group"), "{bad}");
        }
        for bad in [
            r#""batch":0"#,
            r#""batch":"1""#,
            r#""max_in_flight":0"#,
            r#""ack_timeout_ms":0"#,
            r#""max_attempts":0"#,
            r#""max_attempts":101"#,
            r#""filter":{"tag":["a"]}"#,
            r#""filter":[1]"#,
        ] {
            assert_eq!(join(&format!(r#"{{"group":"g",{bad}}}"#)).err(), Some("bad-field"), "{bad}");
        }
    }

    #[test]
    fn what_a_member_says() {
        let word = |body: &str, say| parse_word(body, say).map_err(|refusal| refusal.code);
        let ack = word(r#"{"group":"g","seqs":[3,1],"confirm":true}"#, Say::Ack).unwrap();
        assert_eq!((ack.which, ack.confirm), (Which::Seqs(vec![3, 1]), true));
        let nack = |delays| Say::Nack { delays };
        let said = word(r#"{"group":"g","id":"x","delay_ms":7,"reason":"no"}"#, nack(Vec::new())).unwrap();
        assert_eq!(
            (said.say, said.which, said.reason),
            (nack(vec![7]), Which::Id("x".into()), Some("no".into()))
        );
        let said = word(r#"{"group":"g","through":9,"delay_ms":[1,2]}"#, nack(Vec::new())).unwrap();
        assert_eq!((said.say, said.which), (nack(vec![1, 2]), Which::Through(9)));
        let long = format!(r#"{{"group":"g","seq":1,"reason":"{}"}}"#, "é".repeat(REASON_BYTES));
        assert!(word(&long, Say::Term).unwrap().reason.unwrap().len() <= REASON_BYTES);
        for bad in [
            r#"{"seq":1}"#,
            r#"{"group":"g"}"#,
            r#"{"group":"g","seq":1,"id":"x"}"#,
            r#"{"group":"g","seqs":[]}"#,
            r#"{"group":"g","seq":-1}"#,
            r#"{"group":"g","id":""}"#,
            r#"{"group":"g","seq":1,"delay_ms":99999999999}"#,
        ] {
            assert_eq!(word(bad, nack(Vec::new())).err(), Some("bad-field"), "{bad}");
        }
        assert_eq!(word(r#"{"group":"a b","seq":1}"#, Say::Ack).err(), Some("bad-group"));
    }

    proptest! {
        #[test]
        fn frames_are_frames(group in "[a-z.\"\\\\]{1,100}", n in any::<u64>(), reason in "\\PC{0,50}") {
            let mut out = Vec::new();
            let why = Refusal::new("not-held", reason);
            join_ack(&mut out, &group, (n, true), &["batch", "topics"], Some(n));
            word_ack(&mut out, "nack", &group, n as usize);
            leave_ack(&mut out, &group, true);
            refused(&mut out, "ack", &group, Some(n), &why);
            ended(&mut out, &group, &why);
            let mut body = delivery_head(&group, 2, 5).to_vec();
            body.extend_from_slice(b"\"seq\":1}");
            framed(&mut out, |out| out.extend_from_slice(&body));
            let mut rest = &out[..];
            for kind in ["ack", "ack", "ack", "ack", "unsubscribed", "event"] {
                let body = crate::core::wire::codec::first_frame(rest).unwrap().unwrap();
                let value: Value = serde_json::from_slice(body).unwrap();
                prop_assert_eq!((value["type"].as_str(), value["group"].as_str()), (Some(kind), Some(&*group)));
                rest = &rest[4 + body.len()..];
            }
            prop_assert!(rest.is_empty());
        }
    }
}
