//! Reads every record of a journal, and every line of the logs against it; says what is damaged.
//!
//! ```text
//! checkpoint, status ─▶ what is known durable ─▶ segments, all opened ─▶ one pass: events ─▶ bus.log, <vm>.log …
//! ```
//!
//! What must be there is fixed before the first file is opened, so a broker that writes meanwhile adds
//! only what is not asked for. Always holds: not a byte is written; memory is bounded by the number of logs.
//! Owner: `app/verify.rs`; `repair.rs` makes the same pass over the logs that it writes anew.

pub mod finding;
pub(super) mod known;
pub(super) mod lines;
pub mod log;
pub(super) mod pass;

use super::journal::inspect::Inspection;
use super::journal::{Damage, OpenError};
use super::limits::FINDINGS_SHOWN;
use super::rotation::{base, is_log};
use super::state_root::{StateRoot, StateRootError};
use finding::Finding;
use known::Known;
use log::SHARED;
use pass::Pass;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The state root cannot be used.
    #[error(transparent)]
    StateRoot(#[from] StateRootError),
    /// Nobody ever ran a broker there.
    #[error("no journal in {path}: give the --state-root of a broker", path = .0.display())]
    NoJournal(PathBuf),
    /// A segment must not be read.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// A broker is coming up.
    #[error("the broker in {path} is just starting; try again when it runs", path = .0.display())]
    Starting(PathBuf),
    /// A broker began or ended during the check.
    #[error("a broker was started or ended in {path} meanwhile, and something did not fit; try again", path = .0.display())]
    Changed(PathBuf),
    /// A call failed.
    #[error("{what}: {error}")]
    Io {
        /// On what.
        what: String,
        /// Why.
        error: io::Error,
    },
}

pub(super) fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> VerifyError {
    move |error| VerifyError::Io { what: what.to_string(), error }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// The oldest event of the journal.
    pub first_seq: u64,
    /// Its newest.
    pub head_seq: u64,
    /// Its segments.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What the journal has lost; [`FINDINGS_SHOWN`] ranges at most.
    pub damage: Vec<Damage>,
    /// How many ranges more.
    pub more_damage: u64,
    /// Files of logs.
    pub log_files: u64,
    /// Lines that are right.
    pub log_lines: u64,
    /// Lines older than the journal.
    pub older_lines: u64,
    /// Lines of events that the journal has lost.
    pub lost_lines: u64,
    /// What is wrong with lines.
    pub log_damage: Vec<Finding>,
    /// How many lines more.
    pub more_log_damage: u64,
    /// The logs that have something wrong.
    pub damaged_logs: Vec<String>,
    /// What is no damage and good to know.
    pub notes: Vec<String>,
}

impl Report {
    /// Nothing is damaged.
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.log_damage.is_empty()
    }
}

/// Checks everything in `root`. `progress` hears how many bytes of the journal were read, and of how many.
///
/// # Errors
/// [`VerifyError`]: then nothing is said of what is damaged.
pub fn verify(root: &StateRoot, progress: &mut dyn FnMut(u64, u64)) -> Result<Report, VerifyError> {
    let journal = root.journal_id()?.ok_or_else(|| VerifyError::NoJournal(root.path().into()))?;
    let known = Known::read(root)?;
    let report = verify_known(root, journal, &known, progress)?;
    if !report.is_whole() && !known.still_holds(root) {
        return Err(VerifyError::Changed(root.path().into()));
    }
    Ok(report)
}

pub(super) fn verify_known(
    root: &StateRoot,
    journal: u128,
    known: &Known,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, VerifyError> {
    let mut pass = Pass::open(root, journal, known)?;
    let mut report = Report {
        first_seq: pass.inspection.first_seq(),
        head_seq: pass.inspection.head_seq(),
        segments: pass.inspection.segments().len(),
        bytes: pass.inspection.bytes(),
        notes: known.notes.clone(),
        ..Report::default()
    };
    if known.running.is_none() {
        notes(&mut report.notes, &pass.inspection, known)?;
    }
    let names = logs_of(root)?;
    pass.look_for_logs_beside(&names);
    let groups: Vec<&[String]> = names.chunks(pass.at_once()).collect();
    let total = report.bytes * groups.len() as u64;
    let (mut cut, mut cut_logs) = (0, 0u64);
    for (i, group) in groups.iter().enumerate() {
        let mut checks = Vec::new();
        for name in *group {
            checks.extend(pass.open_log(name, None, group.len())?);
        }
        let before = report.bytes * i as u64;
        let lost = pass.read(&mut checks, &mut |bytes| progress(before + bytes, total))?;
        if i == 0 {
            report.more_damage = (lost.len() as u64).saturating_sub(FINDINGS_SHOWN as u64);
            report.damage = lost.into_iter().take(FINDINGS_SHOWN).collect();
        }
        for check in checks {
            report.log_files += check.files() as u64;
            report.log_lines += check.right;
            report.older_lines += check.older;
            report.lost_lines += check.lost;
            report.more_log_damage += check.more;
            (cut, cut_logs) = (cut + check.cut, cut_logs + u64::from(check.cut > 0));
            report.notes.extend(check.note.clone());
            if check.is_damaged() {
                report.damaged_logs.push(check.name);
                report.log_damage.extend(check.findings);
            }
        }
    }
    if cut > 0 {
        let logs = if cut_logs == 1 { "1 log".to_owned() } else { format!("{cut_logs} logs") };
        report.notes.push(format!("{cut} bytes at the end of {logs} are behind the checkpoint: the next start cuts them and writes these events anew from the journal"));
    }
    if let Some(names) = pass.without_log()? {
        report.notes.push(format!("these have events in the journal and no log: {names}; a log that was removed begins anew with the next event"));
    }
    Ok(report)
}

/// What a stop that was not in order left, and the next start puts right.
fn notes(notes: &mut Vec<String>, inspection: &Inspection, known: &Known) -> Result<(), VerifyError> {
    let torn = inspection.torn_bytes().map_err(failed("journal"))?;
    if torn > 0 {
        notes.push(format!("{torn} bytes behind the journal's last record are of a write that was cut off; the next start leaves them out"));
    }
    if inspection.tail() > 0 {
        let (tail, head) = (inspection.tail(), inspection.head_seq());
        notes.push(format!("the last {tail} events, up to {head}, are not known to be durable yet; the next start writes them anew"));
    }
    let head = inspection.head_seq();
    match known.logs {
        Some(logs) if logs < head => notes.push(format!(
            "no checkpoint vouches for the logs behind event {logs}; the next start writes them on from there"
        )),
        None if head > 0 => {
            notes.push(
                "there is no logs/checkpoint: the next start writes the logs anew from the journal".into(),
            );
        }
        _ => {}
    }
    Ok(())
}

/// The names of all logs; that of all events is one, there or not.
pub(super) fn logs_of(root: &StateRoot) -> Result<Vec<String>, VerifyError> {
    let dir = root.bus_logs();
    let mut names = BTreeSet::from([SHARED.to_owned()]);
    let entries = match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.map_err(failed(dir.display()))?),
    };
    for entry in entries.into_iter().flatten() {
        let path = entry.map_err(failed(dir.display()))?.path();
        let name = path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
        if is_log(&path)
            && path.is_file()
            && let Ok(name) = String::from_utf8(base(name).to_vec())
        {
            names.insert(name);
        }
    }
    Ok(names.into_iter().collect())
}
