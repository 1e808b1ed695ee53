//! `castra agent outbox`: what waits on this guest for the broker, and what to do about it.
//!
//! Always holds: it reads and changes the files themselves, beside an agent that runs or without one. Owner:
//! [`super::run`].

use crate::app::failure::{Exit, Failure};
use crate::app::stderr;
use crate::cli::{OutboxArgs, OutboxCommand, OutboxLsArgs, OutboxPurgeArgs, OutboxRetryArgs, OutboxState};
use crate::core::agent::outbox::edit::{self, Retried, Row, State, Summary, Which};
use crate::core::refusal::Refusal;
use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub fn run(args: OutboxArgs) -> Result<Exit, Failure> {
    match args.command {
        OutboxCommand::Ls(args) => ls(&args),
        OutboxCommand::Retry(args) => retry(&args),
        OutboxCommand::Purge(args) => purge(&args),
    }
}

fn find(state_dir: &Path) -> Result<PathBuf, Failure> {
    edit::find(state_dir).map_err(|refusal| {
        if std::fs::metadata(state_dir).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
            || refusal.reason.contains("Permission denied")
        {
            let why = format!("{}; run this as the agent's user or root", refusal.reason);
            return Failure::new(Exit::Refused, "permission-denied", why);
        }
        if refusal.code != "no-outbox" {
            return failed(state_dir)(refusal);
        }
        let why =
            format!("no outbox: {}; --state-dir must name the folder that the agent uses", refusal.reason);
        Failure::new(Exit::BadData, refusal.code, why)
    })
}

fn failed(path: &Path) -> impl Fn(Refusal) -> Failure {
    move |refusal| {
        let exit = match refusal.code {
            "outbox-disk-full" | "outbox-busy" => Exit::TryAgain,
            "outbox-damaged" => Exit::BadData,
            _ => Exit::Io,
        };
        Failure::new(exit, refusal.code, format!("{}: {}", path.display(), refusal.reason))
    }
}

fn ls(args: &OutboxLsArgs) -> Result<Exit, Failure> {
    let path = match &args.file {
        Some(file) => file.clone(),
        None => find(&args.at.state_dir)?,
    };
    let state = args.state.map(|state| match state {
        OutboxState::Pending => State::Pending,
        OutboxState::Sent => State::Sent,
        OutboxState::Error => State::Error,
    });
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut broken = None;
    let print = |row: Row| match writeln!(out, "{}", if args.at.json { as_json(&row) } else { as_text(&row) })
    {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            broken = Some(error);
            ControlFlow::Break(())
        }
    };
    let listed = edit::list(&path, state, args.last, print);
    let summary = edit::summary(&path);
    if let Some(error) = broken {
        return Err(error.into());
    }
    if let Ok(summary) = &summary {
        writeln!(out, "{}", if args.at.json { sum_json(summary) } else { sum_text(summary) })?;
    }
    out.flush()?;
    listed.map_err(failed(&path))?;
    summary.map_err(failed(&path))?;
    Ok(Exit::Ok)
}

fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| format!("{time:.3}"))
}

fn as_text(row: &Row) -> String {
    let Row { n, topic, id, .. } = row;
    let head = format!("{n:>8}  {:<7}  {}  {topic}  id={id}", row.state.name(), time(row.put_ts));
    match (row.state, row.seq) {
        (State::Sent, Some(seq)) => {
            format!("{head}  seq={seq}{}", if row.duplicate { " (duplicate)" } else { "" })
        }
        (State::Error, _) => {
            let (code, reason) = (row.code.as_deref(), row.reason.as_deref());
            format!("{head}  {}: {}", code.unwrap_or("refused"), reason.unwrap_or_default())
        }
        _ => head,
    }
}

fn as_json(row: &Row) -> String {
    let mut object = json!({
        "schema": 1, "n": row.n, "state": row.state.name(), "id": row.id, "topic": row.topic, "ts": row.put_ts,
    });
    match row.state {
        State::Pending => {}
        State::Sent => {
            object["sent_ts"] = json!(row.end_ts);
            object["seq"] = json!(row.seq);
            object["duplicate"] = json!(row.duplicate);
        }
        State::Error => {
            object["failed_ts"] = json!(row.end_ts);
            object["code"] = json!(row.code);
            object["reason"] = json!(row.reason);
        }
    }
    let mut text = object.to_string();
    // The frame passes through as it is. It is read here only to know that it is JSON on one line.
    if let Some(frame) =
        row.frame.as_deref().and_then(|frame| serde_json::from_slice::<&RawValue>(frame).ok())
    {
        let frame = frame.get().replace(['\n', '\r'], " ");
        text.truncate(text.len() - 1);
        text += &format!(",\"event\":{frame}}}");
    }
    text
}

fn sum_json(summary: &Summary) -> String {
    let counts = &summary.counts;
    let object: Value = json!({
        "schema": 1,
        "counts": {
            "pending": counts.pending, "bytes": counts.bytes, "error": counts.error, "sent": counts.sent,
            "duplicate": counts.duplicate, "dropped": counts.dropped, "refused": counts.refused,
            "expired": counts.expired, "lost": counts.lost,
        },
        "last_error": summary.said,
    });
    object.to_string()
}

fn sum_text(summary: &Summary) -> String {
    let counts = &summary.counts;
    let mut text = format!(
        "{} pending ({} bytes), {} in error, {} sent",
        counts.pending, counts.bytes, counts.error, counts.sent
    );
    for (number, what) in [
        (counts.duplicate, "of them duplicates"),
        (counts.expired, "expired"),
        (counts.dropped, "dropped"),
        (counts.refused, "refused"),
        (counts.lost, "lost with a file that was damaged or removed"),
    ] {
        if number > 0 {
            text += &format!(", {number} {what}");
        }
    }
    match &summary.said {
        Some(said) => format!("{text}; last error: {said}"),
        None => text,
    }
}

fn retry(args: &OutboxRetryArgs) -> Result<Exit, Failure> {
    let path = find(&args.at.state_dir)?;
    let which = if args.all { Which::All(State::Error) } else { Which::Ids(&args.ids) };
    let Retried { retried, removed, unknown } = edit::retry(&path, which).map_err(failed(&path))?;
    let counts = [("retried", retried), ("removed", removed)];
    let words = match removed {
        0 => format!("retried {retried}"),
        _ => format!("retried {retried}, removed {removed} that are pending or sent already"),
    };
    say(args.at.json, &counts, &words, &unknown, "in the state error")
}

fn purge(args: &OutboxPurgeArgs) -> Result<Exit, Failure> {
    let path = find(&args.at.state_dir)?;
    let states = [(args.sent, State::Sent), (args.error, State::Error)];
    let (mut purged, mut unknown) = (0, Vec::new());
    if !args.ids.is_empty() {
        (purged, unknown) = edit::purge(&path, Which::Ids(&args.ids)).map_err(failed(&path))?;
    }
    for (_, state) in states.into_iter().filter(|(given, _)| *given) {
        purged += edit::purge(&path, Which::All(state)).map_err(failed(&path))?.0;
    }
    say(args.at.json, &[("purged", purged)], &format!("purged {purged}"), &unknown, "in the outbox")
}

/// Says what was done; 1 when nothing, or not all that was named, was there.
fn say(
    json: bool,
    counts: &[(&str, u64)],
    words: &str,
    unknown: &[String],
    place: &str,
) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    if json {
        let mut object = json!({"schema": 1, "unknown": unknown});
        for (done, number) in counts {
            object[done] = json!(number);
        }
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{words}")?;
        for id in unknown {
            stderr::say(&format!("no event {place} has the id {id}"));
        }
    }
    let is_nothing = counts.iter().all(|(_, number)| *number == 0);
    Ok(if is_nothing || !unknown.is_empty() { Exit::Degraded } else { Exit::Ok })
}
