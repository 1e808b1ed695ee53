//! `castra bus dlq`: events that groups gave up, and what to do about them.
//!
//! Always holds: an event is published again and its letter taken away in one, or neither; a letter that cannot be
//! handled stays, and is said. Owner: the operator, or a script.

mod letter;
mod retry;

use super::asked::{Asked, PATIENCE};
use super::failure::{Exit, Failure};
use super::latest;
use super::stderr;
use super::tail::event_text::clock_text;
use super::words::count;
use crate::cli::{DlqCommand, DlqLsArgs, DlqShowArgs, DlqWhichArgs, Output};
use crate::core::harmless::harmless;
use crate::core::state_root::StateRoot;
use crate::core::tail::line::Stamp;
use crate::core::wire::group::check_name;
use jiff::tz::TimeZone;
use letter::{Letter, end, topic};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashSet;
use std::io::{self, Write};

/// So many letters are taken away in one publish.
const TOGETHER: usize = 500;

/// There is no dead letter of this event.
const NO_LETTER: &str = "no-letter";

#[derive(Deserialize)]
struct Topics {
    topics: Vec<Known>,
    more: bool,
}

#[derive(Deserialize)]
struct Known {
    topic: String,
    keys: u64,
    changed: u64,
    #[serde(default)]
    dropped: u64,
}

pub fn run(root: &StateRoot, command: &DlqCommand) -> Result<Exit, Failure> {
    let group = match command {
        DlqCommand::Ls(args) => args.group.as_ref(),
        DlqCommand::Show(args) => Some(&args.group),
        DlqCommand::Retry(args) | DlqCommand::Purge(args) => Some(&args.group),
    };
    if let Some(wrong) = group.and_then(|group| check_name(group).err()) {
        return Err(Failure::new(Exit::BadData, wrong.code, wrong.reason));
    }
    let mut asked = Asked::connect(root)?;
    match command {
        DlqCommand::Ls(args) => match &args.group {
            Some(group) => ls(&mut asked, group, args),
            None => groups(&mut asked, args),
        },
        DlqCommand::Show(args) => show(&mut asked, args),
        DlqCommand::Retry(args) => retry::run(&mut asked, args),
        DlqCommand::Purge(args) => purge(&mut asked, args),
    }
}

fn unreadable(error: serde_json::Error) -> Failure {
    Failure::new(Exit::BadData, "bad-letter", format!("what the broker has is no dead letter: {error}"))
}

fn groups(asked: &mut Asked, args: &DlqLsArgs) -> Result<Exit, Failure> {
    let (mut out, mut after, mut printed) = (io::stdout().lock(), String::new(), 0);
    loop {
        let frame = json!({"type": "latest_topics", "topic": "$dlq.>", "after": after});
        let body = asked.ask(&frame, PATIENCE)?;
        let page: Topics = serde_json::from_slice(&body).map_err(unreadable)?;
        for Known { topic, keys, changed, dropped } in page.topics {
            let group = topic.trim_start_matches("$dlq.");
            match args.json {
                true => writeln!(
                    out,
                    "{}",
                    json!({"schema": 1, "group": group, "letters": keys, "changed_seq": changed, "dropped": dropped})
                )?,
                false if dropped > 0 => {
                    writeln!(out, "{group}  {}, {dropped} older ones dropped", count(keys, "dead letter"))?;
                }
                false => writeln!(out, "{group}  {}", count(keys, "dead letter"))?,
            }
            printed += 1;
            after = topic;
        }
        if !page.more {
            return Ok(if printed == 0 { Exit::Degraded } else { Exit::Ok });
        }
    }
}

/// All events that a group gave up, in their order: their seqs, and those of their letters.
fn all(asked: &mut Asked, group: &str) -> Result<Vec<(u64, u64)>, Failure> {
    let mut seqs = Vec::new();
    latest::each(asked, &topic(group), &[], |key, line| {
        seqs.extend(key.parse::<u64>().ok().zip(Stamp::of(line.as_bytes()).map(|stamp| stamp.seq)));
        Ok(())
    })?;
    seqs.sort_unstable();
    Ok(seqs)
}

/// Takes away all letters of a group; how many there were.
///
/// # Errors
/// The broker does not answer, or refuses it.
pub fn purge_all(root: &StateRoot, group: &str) -> Result<u64, Failure> {
    let mut asked = Asked::connect(root)?;
    let there = all(&mut asked, group)?;
    take_away(&mut asked, group, &there)?;
    Ok(there.len() as u64)
}

/// Ends these letters: the seqs of their events, and their own.
fn take_away(asked: &mut Asked, group: &str, letters: &[(u64, u64)]) -> Result<(), Failure> {
    for part in letters.chunks(TOGETHER) {
        let ends: Vec<_> = part.iter().map(|(seq, own)| end(group, *seq, &format!("purged:{own}"))).collect();
        match asked.ask(&json!({"type": "publish", "events": ends}), PATIENCE) {
            Err(failure) if failure.code != "logs-behind" => return Err(failure),
            _ => {}
        }
    }
    Ok(())
}

/// Hands out the letters of these events, as their lines, in the order of the events.
fn letters(
    asked: &mut Asked,
    group: &str,
    seqs: &[u64],
    mut each: impl FnMut(&mut Asked, u64, Option<&str>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for seq in seqs {
        let mut line = None;
        latest::each(asked, &topic(group), &[seq.to_string()], |_, found| {
            line = Some(found.to_owned());
            Ok(())
        })?;
        each(asked, *seq, line.as_deref())?;
    }
    Ok(())
}

fn ls(asked: &mut Asked, group: &str, args: &DlqLsArgs) -> Result<Exit, Failure> {
    let mut found = Vec::new();
    latest::each(asked, &topic(group), &[], |_, line| {
        let letter: Letter = serde_json::from_str(line).map_err(unreadable)?;
        let (event, at) = (&letter.payload.event, letter.ts);
        found.push((
            event.seq,
            at,
            event.topic.clone(),
            event.vm.clone(),
            letter.payload.attempts,
            letter.reason(),
        ));
        Ok(())
    })?;
    found.sort_unstable_by_key(|(seq, ..)| *seq);
    let zone = if args.utc { TimeZone::UTC } else { TimeZone::system() };
    let mut out = io::stdout().lock();
    for (seq, at, topic, vm, attempts, reason) in &found {
        match args.json {
            true => {
                let object = json!({
                    "schema": 1, "group": group, "seq": seq, "ts": at, "topic": topic, "vm": vm,
                    "attempts": attempts, "reason": reason,
                });
                writeln!(out, "{object}")?;
            }
            false => {
                let attempts = count(u64::from(*attempts), "attempt");
                let time = clock_text(&zone, *at);
                writeln!(out, "{seq}  {time}  {}  {attempts}  {}", harmless(topic), harmless(reason))?;
            }
        }
    }
    Ok(if found.is_empty() { Exit::Degraded } else { Exit::Ok })
}

fn show(asked: &mut Asked, args: &DlqShowArgs) -> Result<Exit, Failure> {
    letters(asked, &args.group, &[args.seq], |_, seq, line| {
        let Some(line) = line else {
            let group = &args.group;
            let why = format!(
                "{group} has no dead letter {seq}; 'castra bus dlq ls {group}' shows those that it has"
            );
            return Err(Failure::new(Exit::Degraded, NO_LETTER, why));
        };
        let letter: Letter = serde_json::from_str(line).map_err(unreadable)?;
        let mut out = io::stdout().lock();
        match args.output {
            Output::Json => writeln!(out, "{line}")?,
            Output::Raw => writeln!(out, "{}", letter.payload.event.json())?,
            Output::Text => text(&mut out, &letter, args)?,
        }
        Ok(())
    })?;
    Ok(Exit::Ok)
}

fn text(out: &mut impl Write, letter: &Letter, args: &DlqShowArgs) -> io::Result<()> {
    let zone = if args.utc { TimeZone::UTC } else { TimeZone::system() };
    let event = &letter.payload.event;
    writeln!(out, "event     {} of {}", event.seq, clock_text(&zone, event.ts))?;
    writeln!(out, "id        {}", harmless(&event.id))?;
    writeln!(out, "vm        {}", event.vm)?;
    writeln!(out, "topic     {}", harmless(&event.topic))?;
    if let Some(key) = &event.key {
        writeln!(out, "key       {}", harmless(key))?;
    }
    for (name, value) in &event.headers {
        writeln!(out, "header    {}={}", harmless(name), harmless(value))?;
    }
    if !event.tags.is_empty() {
        writeln!(out, "tags      {}", harmless(&event.tags.join(" ")))?;
    }
    let attempts = count(u64::from(letter.payload.attempts), "attempt");
    writeln!(out, "given up  {} by {}, after {attempts}", clock_text(&zone, letter.ts), args.group)?;
    for failed in &letter.payload.failures {
        writeln!(out, "attempt {}  {} {}", failed.attempt, failed.cause, harmless(&failed.reason))?;
    }
    writeln!(out, "payload   {}", harmless(event.json()))
}

fn which(asked: &mut Asked, args: &DlqWhichArgs) -> Result<Vec<u64>, Failure> {
    if args.all {
        return Ok(all(asked, &args.group)?.into_iter().map(|(seq, _)| seq).collect());
    }
    // Each once, in the order they were typed.
    let mut seen = HashSet::new();
    Ok(args.seqs.iter().copied().filter(|seq| seen.insert(*seq)).collect())
}

fn purge(asked: &mut Asked, args: &DlqWhichArgs) -> Result<Exit, Failure> {
    let (mut there, mut left) = (Vec::new(), Vec::new());
    if args.all {
        there = all(asked, &args.group)?;
    }
    let seqs = if args.all { Vec::new() } else { which(asked, args)? };
    letters(asked, &args.group, &seqs, |_, seq, line| {
        match line.map(serde_json::from_str::<Letter>) {
            Some(Ok(letter)) => there.push((seq, letter.seq)),
            Some(Err(error)) => return Err(unreadable(error)),
            None => left.push((seq, NO_LETTER.to_owned(), "there is no such dead letter".to_owned())),
        }
        Ok(())
    })?;
    take_away(asked, &args.group, &there)?;
    let done: Vec<u64> = there.iter().map(|(seq, _)| *seq).collect();
    say(args, "purged", &done, &left)
}

fn say(
    args: &DlqWhichArgs,
    what: &str,
    done: &[u64],
    left: &[(u64, String, String)],
) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    if args.json {
        let left: Vec<_> = left
            .iter()
            .map(|(seq, code, reason)| json!({"seq": seq, "code": code, "reason": reason}))
            .collect();
        writeln!(out, "{}", json!({"schema": 1, "group": args.group, what: done, "left": left}))?;
    } else {
        writeln!(out, "{} of {} {what}", count(done.len() as u64, "dead letter"), args.group)?;
        for (seq, _, reason) in left {
            stderr::say(&format!("{seq}: {}", harmless(reason)));
        }
    }
    Ok(if left.is_empty() && !done.is_empty() { Exit::Ok } else { Exit::Degraded })
}
