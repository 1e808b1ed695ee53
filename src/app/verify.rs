//! `castra verify`: what is damaged in a journal and its logs; writes damaged logs anew when told to.
//!
//! Always holds: findings go to stdout, one line each and then one for all; what to know and to do goes to stderr;
//! exit 0 means that nothing is damaged. Owner: `app/mod.rs` calls [`run`]; `backup.rs` prints its report with this.

use super::failure::of_io;
use super::stderr::say;
use super::terminal::{Progress, print_all};
use super::words::{count, percent, size};
use super::{Exit, Failure, broker};
use crate::cli::VerifyArgs;
use crate::core::journal::{Damage, OpenError};
use crate::core::repair::{Repaired, repair_logs};
use crate::core::state_root::{StateRoot, StateRootError};
use crate::core::verify::{Report, VerifyError, verify};
use serde_json::{Value, json};
use std::io::{self, Write};

pub fn run(root: &StateRoot, log_bytes: u64, args: &VerifyArgs) -> Result<Exit, Failure> {
    let mut line = Progress::new();
    let mut progress = |done, total| line.show(|| format!("verify: {}", percent(done, total)));
    let (report, repaired) = match args.repair_logs {
        true => {
            repair_logs(root, log_bytes, &mut progress).map(|(report, repaired)| (report, Some(repaired)))
        }
        false => verify(root, &mut progress).map(|report| (report, None)),
    }?;
    line.clear();
    let mut out = Vec::new();
    if args.json {
        let mut object = as_json(&report);
        if let Some(Repaired { logs, damaged }) = &repaired {
            object["repaired"] = json!({ "logs": logs, "damaged_files": damaged });
        }
        writeln!(out, "{object}")?;
    } else {
        if let Some(Repaired { logs, damaged }) = repaired.as_ref().filter(|r| !r.logs.is_empty()) {
            write!(out, "written anew: {}", logs.join(" "))?;
            if !damaged.is_empty() {
                write!(out, "; the damaged files are in {}", damaged.join(" and "))?;
            }
            writeln!(out)?;
        }
        print(&mut out, &report)?;
    }
    print_all(&out)?;
    if !args.json {
        say_more(&report, repaired.is_some());
    }
    Ok(if report.is_whole() { Exit::Ok } else { Exit::Degraded })
}

/// A line for each finding, and one for all.
pub fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    report.damage.iter().try_for_each(|damage| writeln!(out, "{damage}"))?;
    if report.more_damage > 0 {
        writeln!(out, "and {} ranges of the journal more", report.more_damage)?;
    }
    report.log_damage.iter().try_for_each(|finding| writeln!(out, "{finding}"))?;
    if report.more_log_damage > 0 {
        writeln!(out, "and {} lines of logs more", report.more_log_damage)?;
    }
    let Report { segments, bytes, log_files, log_lines, older_lines, .. } = report;
    let ranges = report.damage.len() as u64 + report.more_damage;
    let damaged = report.damaged_logs.len();
    let found = match report.is_whole() {
        true => "whole".to_owned(),
        false => {
            format!("damaged: {} of the journal, {}", count(ranges, "range"), count(damaged as u64, "log"))
        }
    };
    write!(
        out,
        "{found} · {} in {} of {}",
        events(report),
        count(*segments as u64, "segment"),
        size(*bytes)
    )?;
    write!(out, " · {} in {}", count(*log_lines, "log line"), count(*log_files, "file"))?;
    if *older_lines > 0 {
        write!(out, ", {older_lines} more are older than the journal")?;
    }
    if report.lost_lines > 0 {
        write!(out, ", {} of what the journal has lost", count(report.lost_lines, "line"))?;
    }
    writeln!(out)
}

/// What to know and what to do; for people, so on stderr.
pub fn say_more(report: &Report, repaired: bool) {
    let mut notes = report.notes.clone();
    if !report.damaged_logs.is_empty() {
        notes.push(match repaired {
            true => "these logs could not be written anew from the journal".into(),
            false => "'castra verify --repair-logs' writes damaged logs anew from the journal; stop the broker first".into(),
        });
    }
    if !report.damage.is_empty() {
        notes.push("what the journal has lost cannot be repaired, for it is the only copy: restore a backup, or go on without it".into());
    }
    for note in notes {
        // Nobody may be reading.
        say(&note);
    }
}

/// What `--json` says.
pub fn as_json(report: &Report) -> Value {
    json!({
        "schema": 1,
        "ok": report.is_whole(),
        "journal": {
            "first_seq": report.first_seq,
            "head_seq": report.head_seq,
            "segments": report.segments,
            "bytes": report.bytes,
            "damage": report.damage.iter().map(damage_as_json).collect::<Vec<_>>(),
            "more_damage": report.more_damage,
        },
        "logs": {
            "files": report.log_files,
            "lines": report.log_lines,
            "older_than_journal": report.older_lines,
            "lost_by_journal": report.lost_lines,
            "damaged": report.damaged_logs,
            "damage": report.log_damage,
            "more_damage": report.more_log_damage,
        },
        "notes": report.notes,
    })
}

fn damage_as_json(damage: &Damage) -> Value {
    let Damage { segment, at, lsns, seqs } = damage;
    let ends = |range: &std::ops::Range<u64>| match range.is_empty() {
        true => (None, None),
        false => (Some(range.start), Some(range.end - 1)),
    };
    let ((first_lsn, last_lsn), (first_seq, last_seq)) = (ends(lsns), ends(seqs));
    json!({
        "segment": segment, "at": at, "first_lsn": first_lsn, "last_lsn": last_lsn,
        "first_seq": first_seq, "last_seq": last_seq,
    })
}

/// Which events the journal has.
pub fn events(report: &Report) -> String {
    let Report { first_seq, head_seq, .. } = report;
    if head_seq < first_seq { "no events".into() } else { format!("events {first_seq}..{head_seq}") }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        let (exit, code) = match &error {
            VerifyError::StateRoot(StateRootError::InUse { path, pid }) => {
                let message = format!(
                    "a broker{pid} runs in {}: stop the broker first, logs are written anew only while none does",
                    path.display()
                );
                return Failure::new(Exit::TryAgain, "broker-running", message);
            }
            VerifyError::StateRoot(error) => broker::reason(error),
            VerifyError::NoJournal(_) => (Exit::BadData, "no-journal"),
            VerifyError::Journal(OpenError::Unusable { .. }) => (Exit::BadData, "journal-unusable"),
            VerifyError::Journal(OpenError::Io { error, .. }) | VerifyError::Io { error, .. } => of_io(error),
            VerifyError::Starting(_) => (Exit::TryAgain, "broker-starting"),
            VerifyError::Changed(_) => (Exit::TryAgain, "changed-meanwhile"),
        };
        Failure::new(exit, code, error.to_string())
    }
}
