//! `castra backup`: a verified copy of a state root, beside a broker that goes on.
//!
//! Always holds: one line on stdout when there is a backup, none when there is not; exit 0 means that it is whole.
//! Owner: `app/mod.rs` calls [`run`].

use super::failure::of_io;
use super::terminal::{Progress, print_all};
use super::verify::{as_json, events, print, say_more};
use super::words::{count, percent, size};
use super::{Exit, Failure};
use crate::cli::BackupArgs;
use crate::core::backup::{Backup, BackupError, Step, backup};
use crate::core::journal::OpenError;
use crate::core::room;
use crate::core::state_root::StateRoot;
use std::io::Write;

pub fn run(root: &StateRoot, args: &BackupArgs) -> Result<Exit, Failure> {
    let mut line = Progress::new();
    let mut progress = |step, done, total| {
        line.show(|| match step {
            Step::Copy => format!("backup: copying, {}", percent(done, total)),
            Step::Verify => format!("backup: verifying the copy, {}", percent(done, total)),
        });
    };
    let Backup { dir, report, bytes } = backup(root, &args.dir, &mut progress)?;
    line.clear();
    let mut out = Vec::new();
    let whole = report.is_whole();
    if args.json {
        let mut object = as_json(&report);
        object["dir"] = dir.to_string_lossy().into();
        object["bytes"] = bytes.into();
        writeln!(out, "{object}")?;
    } else {
        let verified = if whole { "verified" } else { "with the damage of its source" };
        writeln!(
            out,
            "backup of {} in {} ({}, {}, {verified})",
            events(&report),
            dir.display(),
            size(bytes),
            count(report.segments as u64, "segment"),
        )?;
        if !whole {
            print(&mut out, &report)?;
        }
    }
    print_all(&out)?;
    if !whole && !args.json {
        say_more(&report, false);
    }
    Ok(if whole { Exit::Ok } else { Exit::Degraded })
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        let (exit, code) = match error {
            BackupError::Source(error) => return error.into(),
            BackupError::Target { .. } => (Exit::CannotCreate, "cannot-create"),
            BackupError::NoRoom { .. } => (Exit::TryAgain, "disk-full"),
            BackupError::Unusable(OpenError::Unusable { .. }) => (Exit::BadData, "journal-unusable"),
            BackupError::Unusable(OpenError::Io { ref error, .. }) | BackupError::Io { ref error, .. } => {
                of_io(error)
            }
        };
        let raise = if code == "file-limit" { format!("; {}", room::RAISE) } else { String::new() };
        Failure::new(exit, code, format!("{error}{raise}"))
    }
}
