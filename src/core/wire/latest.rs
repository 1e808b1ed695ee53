//! What is asked of the newest events per key, and the answers.
//!
//! Always holds: an answer fits a frame; whatever is wrong with a question is a [`Refusal`]. Pure. Owner:
//! `session/asking.rs`, and `latest` for the answers.

use super::frame::{framed, refusal};
use crate::core::event::{Text, string_body};
use crate::core::limits::{FRAME_BYTES, LATEST_KEYS};
use crate::core::refusal::Refusal;
use crate::core::topic::Pattern;
use serde::Deserialize;
use serde_json::{Value, json};

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// The newest events of a topic.
    Latest {
        /// Which.
        topic: Pattern,
        /// Of these keys, sorted; none: of all.
        keys: Option<Vec<String>>,
        /// Only keys behind this one.
        after: String,
    },
    /// Which topics there are, of which some key is known.
    Topics {
        /// Of these.
        topics: Pattern,
        /// Only those behind this one.
        after: String,
    },
    /// The newest events of this topic are to be published.
    Snapshot(Pattern),
}

impl Ask {
    /// The type of its frame.
    pub fn kind(&self) -> &'static str {
        match self {
            Ask::Latest { .. } => "latest",
            Ask::Topics { .. } => "latest_topics",
            Ask::Snapshot(_) => "snapshot",
        }
    }

    /// What it is about.
    pub fn topic(&self) -> &Pattern {
        match self {
            Ask::Latest { topic, .. } | Ask::Snapshot(topic) | Ask::Topics { topics: topic, .. } => topic,
        }
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    topic: Option<Text<'a>>,
    #[serde(borrow, default)]
    keys: Option<Vec<Text<'a>>>,
    #[serde(borrow, default)]
    after: Option<Text<'a>>,
}

/// Reads the body of a frame of this type.
///
/// # Errors
/// `bad-field`, `duplicate-field`, `bad-topic`, `bad-pattern`, `too-many-keys`.
pub fn parse_ask(body: &str, kind: &str) -> Result<Ask, Refusal> {
    let Fields { topic, keys, after } = serde_json::from_str(body).map_err(|e| refusal(&e))?;
    let Some(Text(topic)) = topic else {
        return Err(Refusal::new("bad-field", format!("{kind} has a 'topic'")));
    };
    let code = if kind == "latest_topics" { "bad-pattern" } else { "bad-topic" };
    let pattern = Pattern::parse(&topic).map_err(|e| Refusal::new(code, format!("'{topic:.64}': {e}")))?;
    let after = after.map(|Text(after)| after.into_owned()).unwrap_or_default();
    if kind == "latest_topics" {
        return Ok(Ask::Topics { topics: pattern, after });
    }
    if !pattern.is_plain() {
        return Err(Refusal::new("bad-topic", format!("'{topic:.64}': one topic is wanted, no pattern")));
    }
    if kind == "snapshot" {
        return Ok(Ask::Snapshot(pattern));
    }
    if keys.as_ref().is_some_and(|keys| keys.len() > LATEST_KEYS) {
        return Err(Refusal::new(
            "too-many-keys",
            format!("at most {LATEST_KEYS} keys are asked for at a time"),
        ));
    }
    let sorted = |keys: Vec<Text<'_>>| {
        let mut keys: Vec<String> = keys.into_iter().map(|Text(key)| key.into_owned()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    Ok(Ask::Latest { topic: pattern, keys: keys.map(sorted), after })
}

/// The events of one answer, as they are put together.
#[derive(Debug, Default)]
pub struct Events {
    bytes: Vec<u8>,
    is_more: bool,
}

/// What stands around the events of an answer, in bytes, at the most.
const AROUND: usize = 128;

impl Events {
    /// Adds an event's line, if it fits; after one that does not nothing more is added.
    pub fn add(&mut self, line: &[u8]) -> bool {
        let line = line.trim_ascii_end();
        if self.is_more || self.bytes.len() + line.len() + AROUND > FRAME_BYTES {
            self.is_more = true;
            return false;
        }
        if !self.bytes.is_empty() {
            self.bytes.push(b',');
        }
        self.bytes.extend_from_slice(line);
        true
    }

    /// Appends the answer, which has everything up to the seq `through`.
    pub fn ack(&self, out: &mut Vec<u8>, through: u64) {
        framed(out, |out| {
            let head =
                format!(r#"{{"type":"ack","ack":"latest","status":"ok","through":{through},"events":["#);
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&self.bytes);
            out.extend_from_slice(format!("],\"more\":{}}}", self.is_more).as_bytes());
        });
    }
}

/// A topic of which some key is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub topic: String,
    /// How many keys.
    pub keys: u64,
    /// The seq of what changed it last.
    pub changed: u64,
    /// Of dead letters: how many were dropped.
    pub dropped: u64,
}

/// Appends the answer to which topics there are.
pub fn topics_ack(out: &mut Vec<u8>, topics: &[Known], is_more: bool) {
    let topics: Vec<Value> = topics
        .iter()
        .map(|known| {
            let mut said = json!({"topic": known.topic, "keys": known.keys, "changed": known.changed});
            if known.dropped > 0 {
                said["dropped"] = known.dropped.into();
            }
            said
        })
        .collect();
    let ack = json!({"topics": topics, "more": is_more});
    super::manage::report(out, "latest_topics", &ack);
}

/// A snapshot that was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// How many keys.
    pub keys: u64,
    /// It has everything up to this seq.
    pub through: u64,
    /// The first of its events, and the last, which is its end.
    pub seqs: (u64, u64),
}

/// Appends the answer to a `snapshot`.
pub fn snapshot_ack(out: &mut Vec<u8>, topic: &str, snapshot: &Snapshot) {
    framed(out, |out| {
        let Snapshot { keys, through, seqs: (first, last) } = snapshot;
        out.extend_from_slice(br#"{"type":"ack","ack":"snapshot","status":"ok","topic":""#);
        string_body(out, topic);
        let rest = format!(r#"","keys":{keys},"through":{through},"first_seq":{first},"last_seq":{last}}}"#);
        out.extend_from_slice(rest.as_bytes());
    });
}
