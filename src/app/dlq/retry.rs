//! `castra bus dlq retry`: events that go to their group once more.
//!
//! Always holds: nothing is published that the group would pass by; whatever stays a letter is said, with what is left to
//! do with it. Owner: `mod.rs`.

use super::letter::Letter;
use super::{NO_LETTER, letters, say, unreadable, which};
use crate::app::asked::{Asked, PATIENCE};
use crate::app::failure::{Exit, Failure};
use crate::app::words::list;
use crate::cli::DlqWhichArgs;
use crate::core::limits::FRAME_BYTES;
use crate::core::topic::Pattern;
use crate::core::wire::group::Spec;
use serde::Deserialize;
use serde_json::json;

/// A group, as far as it says what it takes.
#[derive(Deserialize)]
struct Taker {
    spec: Spec,
}

impl Taker {
    /// Why the group does not take the event of `letter`, if so.
    fn passes_by(&self, letter: &Letter, group: &str) -> Option<String> {
        let (spec, event) = (&self.spec, &letter.payload.event);
        let mut patterns = spec.topics.iter().filter_map(|topic| Pattern::parse(topic).ok());
        let what = if !patterns.any(|pattern| pattern.matches(&event.topic)) {
            format!("the topic {}: it takes {}", event.topic, list(&spec.topics))
        } else if spec.headers.iter().any(|(name, value)| event.headers.get(name) != Some(value))
            || spec.tags.iter().any(|tag| !event.tags.contains(tag))
        {
            "an event of these headers and tags: its filter wants others".to_owned()
        } else {
            return None;
        };
        let way = format!("{}, or create the group anew so that it takes it", way_out(group, event.seq));
        Some(format!("{group} does not take {what}; {way}"))
    }
}

const TOO_LARGE: &str = "be larger than an event may be";
const TOO_MANY: &str = "have more headers, or more in them, than an event may have";

/// What is left to do with an event that cannot be retried.
fn way_out(group: &str, seq: u64) -> String {
    format!(
        "'castra bus dlq show {group} {seq} -o raw' prints its payload, to be published by hand, and 'castra bus dlq purge {group} {seq}' forgets it"
    )
}

/// Why the header of a retry does not fit an event, which would `what` with it.
fn no_room(what: &str, group: &str, seq: u64) -> String {
    format!("with the header castra-retry it would {what}; {}", way_out(group, seq))
}

pub fn run(asked: &mut Asked, args: &DlqWhichArgs) -> Result<Exit, Failure> {
    // Nobody would take the events that are published for it.
    let found = asked.ask(&json!({"type": "group", "group": args.group}), PATIENCE).map_err(|failure| {
        let hint = "make it again, or publish by hand what 'castra bus dlq show' prints; show and purge work without it";
        match &*failure.code {
            "unknown-group" => {
                Failure::new(Exit::Degraded, failure.code, format!("{}; {hint}", failure.message))
            }
            _ => failure,
        }
    })?;
    let taker: Taker = serde_json::from_slice(&found)
        .map_err(|e| Failure::new(Exit::TryAgain, "protocol", format!("the answer cannot be read: {e}")))?;
    let seqs = which(asked, args)?;
    let (mut done, mut left) = (Vec::new(), Vec::new());
    letters(asked, &args.group, &seqs, |asked, seq, line| {
        let Some(line) = line else {
            left.push((seq, NO_LETTER.to_owned(), "there is no such dead letter".to_owned()));
            return Ok(());
        };
        let letter: Letter = serde_json::from_str(line).map_err(unreadable)?;
        let group = &args.group;
        if let Some(why) = taker.passes_by(&letter, group) {
            left.push((seq, "not-taken".to_owned(), why));
            return Ok(());
        }
        let body = letter.again(group);
        if body.len() > FRAME_BYTES {
            left.push((seq, "event-too-large".to_owned(), no_room(TOO_LARGE, group, seq)));
            return Ok(());
        }
        match asked.ask_text("publish", &body, PATIENCE) {
            Ok(_) => done.push(seq),
            // What is wrong with one is not wrong with the next.
            Err(failure) if failure.exit == Exit::BadData => {
                let why = match &*failure.code {
                    "event-too-large" | "frame-too-large" => no_room(TOO_LARGE, group, seq),
                    "bad-headers" => no_room(TOO_MANY, group, seq),
                    _ => format!("{}; {}", failure.message, way_out(group, seq)),
                };
                left.push((seq, failure.code.into_owned(), why));
            }
            // It is stored, and the logs are behind.
            Err(failure) if failure.code == "logs-behind" => done.push(seq),
            Err(failure) => return Err(failure),
        }
        Ok(())
    })?;
    say(args, "retried", &done, &left)
}
