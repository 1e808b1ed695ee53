//! `castra bus latest` prints the newest event of each key, `castra bus snapshot` has them published.
//!
//! Always holds: stdout has events and nothing else; what is printed has all that was acknowledged before. Owner: the
//! operator, or a script.

use super::asked::{Asked, PATIENCE};
use super::failure::{Exit, Failure};
use super::tail::event_text::Printer;
use super::words::count;
use crate::cli::{LatestArgs, Output, SnapshotArgs};
use crate::core::state_root::StateRoot;
use crate::core::tail::line::EventLine;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

/// A snapshot of many keys takes its time.
const LONG: Duration = Duration::from_secs(3600);
/// So many keys are asked for at a time: with their names they fit a frame.
const KEYS: usize = 200;

/// The ack of a `latest`.
#[derive(Deserialize)]
pub struct Page<'a> {
    /// The events, as their lines.
    #[serde(borrow)]
    pub events: Vec<&'a RawValue>,
    /// There are others.
    pub more: bool,
}

#[derive(Deserialize)]
struct Keyed<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Taken {
    keys: u64,
    through: u64,
    first_seq: u64,
    last_seq: u64,
}

/// Hands out the newest events of a topic, of these keys or of all, in the order of their keys: key and line.
///
/// # Errors
/// The broker refuses it, `each` fails.
pub fn each(
    asked: &mut Asked,
    topic: &str,
    keys: &[String],
    mut each: impl FnMut(&str, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    keys.dedup();
    let mut parts: Vec<Option<&[String]>> = keys.chunks(KEYS).map(Some).collect();
    if parts.is_empty() {
        parts.push(None);
    }
    for part in parts {
        let mut after = String::new();
        loop {
            let mut frame = json!({"type": "latest", "topic": topic, "after": after});
            if let Some(keys) = part {
                frame["keys"] = keys.into();
            }
            let body = asked.ask(&frame, PATIENCE)?;
            let bad = |e| Failure::new(Exit::TryAgain, "protocol", format!("the answer cannot be read: {e}"));
            let page: Page<'_> = serde_json::from_slice(&body).map_err(bad)?;
            for event in &page.events {
                let Keyed { key } = serde_json::from_str(event.get()).map_err(bad)?;
                each(&key, event.get())?;
                after = key.into_owned();
            }
            if !page.more || page.events.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

pub fn run(root: &StateRoot, args: &LatestArgs) -> Result<Exit, Failure> {
    let zone = if args.utc { TimeZone::UTC } else { TimeZone::system() };
    let output = if args.json { Output::Json } else { args.output };
    let printer = Printer::new(output, zone);
    let mut asked = Asked::connect(root)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut printed = 0;
    each(&mut asked, &args.topic, &args.keys, |key, line| {
        let Some(mut event) = EventLine::parse(line.as_bytes()) else { return Ok(()) };
        if output == Output::Text {
            // The topic is known.
            event.topic = key.into();
        }
        printed += 1;
        Ok(printer.print(&mut out, &event)?)
    })?;
    out.flush()?;
    Ok(if printed == 0 { Exit::Degraded } else { Exit::Ok })
}

pub fn snapshot(root: &StateRoot, args: &SnapshotArgs) -> Result<Exit, Failure> {
    let mut asked = Asked::connect(root)?;
    let body = asked.ask(&json!({"type": "snapshot", "topic": args.topic}), LONG)?;
    let bad = |e| Failure::new(Exit::TryAgain, "protocol", format!("the answer cannot be read: {e}"));
    let Taken { keys, through, first_seq, last_seq } = serde_json::from_slice(&body).map_err(bad)?;
    let topic = format!("{}.snapshot", args.topic);
    let said = match args.json {
        true => json!({
            "schema": 1, "topic": topic, "keys": keys, "through": through,
            "first_seq": first_seq, "last_seq": last_seq,
        })
        .to_string(),
        false => format!("{} published to {topic}, as events {first_seq} to {last_seq}", count(keys, "key")),
    };
    Ok(writeln!(io::stdout(), "{said}").map(|()| Exit::Ok)?)
}
