//! `castra bus publish --jsonl`: one event a line, pipelined.
//!
//! A thread reads, this one sends and receives, a third one prints: none of them waits for another one but for room.
//! Always holds: at the end every line is stored, or refused and said, or counted in the last sentence, which says
//! where to go on. Owner: `mod.rs`.

use super::failure::{disk_full, no_answer};
use super::lines::{Said, read_events};
use super::print::{Printer, Tally};
use super::{open, unreadable};
use crate::app::failure::{Exit, Failure};
use crate::app::host::{connect, within};
use crate::app::stderr;
use crate::cli::PublishArgs;
use crate::core::burst::Burst;
use crate::core::client::ClientError;
use crate::core::pipeline::{self, End, Why, Window};
use crate::core::refusal::Refusal;
use crate::core::state_root::StateRoot;
use crate::core::wire::publish::{Defaults, stored};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tokio::sync::mpsc;

/// Bursts that were read ahead.
const READ_AHEAD: usize = 2;

pub fn run(root: &StateRoot, args: &PublishArgs, defaults: Defaults) -> Result<Exit, Failure> {
    let path = args.file.as_deref().unwrap_or(Path::new("-"));
    let input = open(path)?;
    if args.dry_run {
        return check(path, input, &defaults, Printer::new(args.json));
    }
    stderr::start(args.json, |_| ()).map_err(Failure::system)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
    let client = runtime
        .block_on(async { within(args.timeout, connect(root)).await })
        .unwrap_or_else(|_| Err(no_answer(args.timeout, None)))?;
    let (window, printer) = (Window::new(), Printer::new(args.json));
    let (bursts, ahead) = mpsc::channel(READ_AHEAD);
    let reader = Builder::new().spawn(move || read(input, &defaults, &bursts)).map_err(Failure::system)?;
    let (settled, to_say) = std::sync::mpsc::channel();
    let room = window.clone();
    let printing = Builder::new().spawn(move || printer.run(&to_say, &room)).map_err(Failure::system)?;
    let end = runtime.block_on(pipeline::run(client, ahead, &window, args.timeout, |lines| {
        // It listens until the last line.
        let _ = settled.send(lines);
    }));
    drop(settled);
    let tally = join(printing)?;
    // One that waits for its input is not waited for.
    let input = if matches!(end.why, Why::Done) { join(reader)? } else { Ok(()) };
    if let Err(error) = input {
        let mut failure = unreadable(path, &error);
        failure.message = format!("{}; {}", failure.message, place(&end, &tally));
        return Err(at(counted(failure, &tally), &end));
    }
    conclude(root, args.timeout, &end, &tally)
}

fn join<T>(thread: JoinHandle<T>) -> Result<T, Failure> {
    thread.join().map_err(|_| Failure::new(Exit::Io, "internal", "a thread of this command ended early"))
}

/// Reads events into bursts, until there are no more or nobody takes them.
fn read(input: impl Read, defaults: &Defaults, bursts: &mpsc::Sender<Burst>) -> io::Result<()> {
    let mut burst = Burst::default();
    let send = |burst: &mut Burst| match bursts.blocking_send(std::mem::take(burst)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    read_events(input, defaults, |line, said| {
        match said {
            Said::Event { id, topic, body } => {
                if let Err(error) = burst.event(line, &id, &topic, body) {
                    burst.refused(line, Refusal::new("event-too-large", error.to_string()));
                }
            }
            Said::Refused(refusal) => burst.refused(line, refusal),
            Said::Pause if burst.is_empty() => return ControlFlow::Continue(()),
            Said::Pause => {
                burst.read_to(line);
                return send(&mut burst);
            }
        }
        if burst.is_full() { send(&mut burst) } else { ControlFlow::Continue(()) }
    })?;
    if !burst.is_empty() {
        let _ = send(&mut burst);
    }
    Ok(())
}

/// `--dry-run`: every line is checked as the broker does, and printed as it would be stored.
fn check(path: &Path, input: impl Read, fields: &Defaults, mut printer: Printer) -> Result<Exit, Failure> {
    read_events(input, fields, |line, said| {
        match said {
            Said::Event { body, .. } => match stored(body) {
                Ok(event) => printer.valid(&event),
                Err(refusal) => printer.refused(line, refusal.code, &refusal.reason),
            },
            Said::Refused(refusal) => printer.refused(line, refusal.code, &refusal.reason),
            Said::Pause => printer.flush(),
        }
        if printer.is_broken() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .map_err(|error| unreadable(path, &error))?;
    let tally = printer.end();
    match tally.broken {
        Some(error) => Err(error.into()),
        None if tally.refused > 0 => {
            let why = format!(
                "{} of {} lines would be refused; each is said above with its number",
                tally.refused,
                tally.refused + tally.stored
            );
            let failure = Failure::new(tally.worst, "lines-refused", why);
            Err(failure.with("valid", tally.stored).with("refused", tally.refused))
        }
        None => Ok(Exit::Ok),
    }
}

/// The last sentence.
fn conclude(root: &StateRoot, limit: Duration, end: &End, tally: &Tally) -> Result<Exit, Failure> {
    let Tally { stored, behind, refused, worst, .. } = *tally;
    // Whoever closed our output has enough.
    let broken = tally.broken.as_ref().filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
    if let (Why::Stopped | Why::Done, Some(error)) = (&end.why, broken) {
        let why = format!("stdout cannot be written: {error}; {}", place(end, tally));
        return Err(at(counted(Failure::new(Exit::Io, "io", why), tally), end));
    }
    let failure = match &end.why {
        Why::Stopped => return Ok(Exit::Ok),
        Why::Done if refused > 0 => {
            let lines = format!(
                "{refused} of {} lines were refused, each is said above with its number",
                refused + stored
            );
            let rest = match behind {
                0 if stored == 0 => "nothing is stored".to_owned(),
                0 => "the others are stored".to_owned(),
                _ => format!("the others are stored, {behind} of them not in the logs yet"),
            };
            let failure = Failure::new(worst, "lines-refused", format!("{lines}; {rest}"));
            return Err(counted(failure, tally));
        }
        Why::Done if behind > 0 => {
            let why = format!(
                "logs-behind: {behind} of {stored} events were not in the logs yet; all are stored, do not send them again"
            );
            return Err(counted(Failure::new(Exit::TryAgain, "logs-behind", why), tally));
        }
        Why::Done => return Ok(Exit::Ok),
        Why::Refused(code) => {
            let what = match code.as_str() {
                "disk-full" => disk_full(root),
                _ => "the broker ended, or its disk failed".to_owned(),
            };
            Failure::new(Exit::TryAgain, code.clone(), format!("{code}: {what}; {}", place(end, tally)))
        }
        Why::Lost(ClientError::Closed(reason)) if end.unknown.is_empty() => {
            let why = format!("{reason}: the broker closed the session; {}", place(end, tally));
            Failure::new(Exit::TryAgain, reason.clone(), why)
        }
        Why::Lost(error) => {
            let code = if end.unknown.is_empty() { "connection-lost" } else { "outcome-unknown" };
            Failure::new(Exit::TryAgain, code, format!("{code}: {error}; {}", place(end, tally)))
        }
        Why::Stalled => {
            Failure::new(Exit::Timeout, "timeout", format!("no ack within {limit:?}; {}", place(end, tally)))
        }
    };
    Err(at(counted(failure, tally), end))
}

/// Where to go on, and what is open before that.
fn place(end: &End, tally: &Tally) -> String {
    let mut said = Vec::new();
    if !end.not_stored.is_empty() {
        let range = |(first, last): &(u64, u64)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let ranges: Vec<String> = end.not_stored.iter().map(range).collect();
        said.push(format!(
            "send these again first, they are not stored though later ones are: line {} ('sed -n {}p')",
            ranges.join(", "),
            ranges.join("p;").replace('-', ","),
        ));
    }
    if let (Some((first, id)), Some((last, _))) = (end.unknown.first(), end.unknown.last()) {
        let lines = match first == last {
            true => format!("line {first} may be stored or not"),
            false => format!("lines {first}-{last} may be stored or not (some from the front, or none)"),
        };
        let look = "before you send that again, look for the id of line";
        said.push(format!("{lines}: {look} {first} with 'castra bus tail --grep {id}'"));
    }
    let resume = end.resume;
    said.push(format!("nothing from line {resume} on is stored: go on with 'tail -n +{resume}'"));
    said.push(format!("stored {}, refused {}", tally.stored, tally.refused));
    said.join("; ")
}

/// The counts, for scripts.
fn counted(failure: Failure, tally: &Tally) -> Failure {
    failure.with("stored", tally.stored).with("refused", tally.refused)
}

/// The same as [`place`], for scripts.
fn at(failure: Failure, end: &End) -> Failure {
    let ranges: Vec<[u64; 2]> = end.not_stored.iter().map(|(first, last)| [*first, *last]).collect();
    let failure = failure.with("resume_line", end.resume).with("not_stored", serde_json::json!(ranges));
    match (end.unknown.first(), end.unknown.last()) {
        (Some((first, first_id)), Some((last, last_id))) => failure.with(
            "unknown",
            serde_json::json!({"lines": [first, last], "first_id": first_id, "last_id": last_id}),
        ),
        _ => failure,
    }
}
