//! Writes damaged logs anew: lines older than the journal as they are, the rest from the journal.
//!
//! ```text
//! logs/repair.new/  files being written ─fsync, rename─▶ logs/repair/  complete, with a manifest
//!   ─▶ logs/damaged/<time>/  a second name for every file that gives way
//!   ─▶ logs/bus/  each file replaced by a rename, the oldest first
//!   ─▶ logs/repair.new/  once more, and removed
//! ```
//!
//! A crash before `logs/repair/` changes nothing; one behind it is finished by the next repair. Always holds:
//! a name in `logs/bus` has its old file or its new one at any moment; nothing that was there is deleted;
//! only whoever holds the state root's lock does this. Owner: `app/verify.rs`.

use super::clock::wall_ms;
use super::limits::LOG_FILES;
use super::rotation::nth;
use super::state_root::{StateRoot, make_dir, sync_dir};
use super::verify::known::Known;
use super::verify::log::Keep;
use super::verify::pass::Pass;
use super::verify::{Report, VerifyError, failed, verify_known};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

/// Lines of one log that wait to be written, in bytes.
const BUFFER: usize = 16 * 1024;

/// What was done.
#[derive(Debug, Default)]
pub struct Repaired {
    /// The logs that were written anew.
    pub logs: Vec<String>,
    /// Where their damaged files are now, below the state root.
    pub damaged: Vec<String>,
}

/// What is in `logs/repair`.
#[derive(Debug, Deserialize, Serialize)]
struct Manifest {
    /// The folder in `logs/damaged`.
    damaged: String,
    /// How many files each log has.
    logs: BTreeMap<String, u32>,
}

/// Checks everything, writes the damaged logs anew in files of `log_bytes`, and checks once more. Takes the lock of the state root.
///
/// # Errors
/// [`VerifyError`]; `InUse` when a broker runs. Logs that were not replaced are as they were.
pub fn repair_logs(
    root: &StateRoot,
    log_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Report, Repaired), VerifyError> {
    if root.journal_id()?.is_none() {
        return Err(VerifyError::NoJournal(root.path().into()));
    }
    let (journal, _lock) = root.open()?;
    let mut repaired = Repaired::default();
    let (staged, unfinished) = (root.logs().join("repair"), root.logs().join("repair.new"));
    remove_dir(&unfinished).map_err(failed(unfinished.display()))?;
    match staged.join("manifest").try_exists().map_err(failed(staged.display()))? {
        true => repaired.add(replace_logs(root, &staged, &unfinished).map_err(failed(staged.display()))?),
        // Its files are in their places.
        false => remove_dir(&staged).map_err(failed(staged.display()))?,
    }

    let known = Known::of_stopped(root)?;
    let report = verify_known(root, journal, &known, progress)?;
    if report.damaged_logs.is_empty() {
        return Ok((report, repaired));
    }
    let written = write_anew(root, journal, &known, &report.damaged_logs, (&unfinished, log_bytes), progress);
    if written.is_err() {
        // What was written is worth nothing; on a full disk it is in the way.
        let _ = remove_dir(&unfinished);
    }
    written?;
    let replaced = std::fs::rename(&unfinished, &staged)
        .and_then(|()| sync_dir(&root.logs()))
        .and_then(|()| replace_logs(root, &staged, &unfinished));
    repaired.add(replaced.map_err(failed(staged.display()))?);
    Ok((verify_known(root, journal, &known, progress)?, repaired))
}

impl Repaired {
    fn add(&mut self, (manifest, kept): (Manifest, bool)) {
        self.logs.extend(manifest.logs.into_keys());
        self.damaged.extend(kept.then(|| format!("logs/damaged/{}", manifest.damaged)));
    }
}

/// Writes these logs into `dir`, durably.
fn write_anew(
    root: &StateRoot,
    journal: u128,
    known: &Known,
    names: &[String],
    (dir, log_bytes): (&Path, u64),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), VerifyError> {
    make_dir(dir)?;
    let mut manifest = Manifest { damaged: free_name(&root.logs().join("damaged")), logs: BTreeMap::new() };
    let mut pass = Pass::open(root, journal, known)?;
    let bytes = pass.inspection.bytes();
    let groups: Vec<&[String]> = names.chunks(pass.at_once()).collect();
    let total = bytes * groups.len() as u64;
    for (i, group) in groups.iter().enumerate() {
        let (mut checks, mut parts) = (Vec::new(), Vec::new());
        for name in *group {
            let part = Rc::new(RefCell::new(Parts::new(dir, name, log_bytes)));
            let writer = part.clone();
            let keep: Box<Keep> = Box::new(move |line| writer.borrow_mut().push(line));
            checks.extend(pass.open_log(name, Some(keep), group.len())?);
            parts.push((name, part));
        }
        let before = bytes * i as u64;
        pass.read(&mut checks, &mut |read| progress(before + read, total))?;
        for (name, part) in parts {
            let files = part.borrow_mut().finish().map_err(failed(dir.display()))?;
            manifest.logs.insert(name.clone(), files);
        }
    }
    let write = || {
        let mut file = create(&dir.join("manifest"))?;
        file.write_all(serde_json::json!(manifest).to_string().as_bytes())?;
        file.sync_all()?;
        sync_dir(dir)
    };
    write().map_err(failed(dir.display()))
}

/// One log as it is written: files of `log_bytes`, of which the newest are kept, as rotation keeps them.
struct Parts {
    path: PathBuf,
    log_bytes: u64,
    file: Option<BufWriter<File>>,
    size: u64,
    /// The files that there are: from, to.
    kept: (u32, u32),
}

impl Parts {
    fn new(dir: &Path, name: &str, log_bytes: u64) -> Self {
        Parts { path: dir.join(format!("{name}.log")), log_bytes, file: None, size: 0, kept: (0, 0) }
    }

    /// By the order they are written in. A file `.log.N` has another name.
    fn part(&self, n: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".part{n}"));
        PathBuf::from(name)
    }

    fn push(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size + line.len() as u64 > self.log_bytes {
            self.close()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = create(&self.part(self.kept.1))?;
                self.kept.1 += 1;
                if self.kept.1 - self.kept.0 > LOG_FILES + 1 {
                    std::fs::remove_file(self.part(self.kept.0))?;
                    self.kept.0 += 1;
                }
                self.file.insert(BufWriter::with_capacity(BUFFER, file))
            }
        };
        self.size += line.len() as u64;
        file.write_all(line)
    }

    fn close(&mut self) -> io::Result<()> {
        self.size = 0;
        match self.file.take() {
            Some(file) => file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Gives the files the names that they will have; how many there are.
    fn finish(&mut self) -> io::Result<u32> {
        self.close()?;
        let (from, to) = self.kept;
        for part in from..to {
            std::fs::rename(self.part(part), nth(&self.path, to - 1 - part))?;
        }
        Ok(to - from)
    }
}

/// Puts the files of `staged` in their places and removes it, under the name of something unfinished: so the
/// manifest is there as long as it is needed. Whether a file had to give way: a log may have been gone.
fn replace_logs(root: &StateRoot, staged: &Path, unfinished: &Path) -> io::Result<(Manifest, bool)> {
    let text = std::fs::read(staged.join("manifest"))?;
    let manifest: Manifest = serde_json::from_slice(&text)?;
    let (bus, all) = (root.bus_logs(), root.logs().join("damaged"));
    let damaged = all.join(&manifest.damaged);
    make_dir(&damaged).map_err(io::Error::other)?;
    for (name, files) in &manifest.logs {
        let (from, to) = (staged.join(format!("{name}.log")), bus.join(format!("{name}.log")));
        // Those that are replaced, or have none to replace them.
        for n in (0..=LOG_FILES).filter(|n| n >= files || nth(&from, *n).exists()) {
            keep_a_name(&nth(&to, n), &damaged)?;
        }
    }
    for dir in [&damaged, &all, &root.logs()] {
        sync_dir(dir)?;
    }
    for (name, files) in &manifest.logs {
        let (from, to) = (staged.join(format!("{name}.log")), bus.join(format!("{name}.log")));
        for n in (0..=LOG_FILES).rev() {
            let done = match n >= *files {
                true => std::fs::remove_file(nth(&to, n)),
                false => std::fs::rename(nth(&from, n), nth(&to, n)),
            };
            // Done before a crash.
            done.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        }
    }
    sync_dir(&bus)?;
    std::fs::rename(staged, unfinished)?;
    sync_dir(&root.logs())?;
    remove_dir(unfinished)?;
    // It goes when nothing is in it.
    let kept = std::fs::remove_dir(&damaged).is_err();
    Ok((manifest, kept))
}

/// Gives the file at `path`, if there is one, a second name in `dir`.
fn keep_a_name(path: &Path, dir: &Path) -> io::Result<()> {
    let Ok(own) = std::fs::metadata(path) else { return Ok(()) };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for n in 1.. {
        let kept = dir.join(if n == 1 { name.clone() } else { format!("{name}~{n}") });
        match std::fs::hard_link(path, &kept) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // Named before a crash.
                if std::fs::metadata(&kept)?.ino() == own.ino() {
                    break;
                }
            }
            Ok(()) => break,
            // A file system without second names.
            Err(_) => {
                std::fs::copy(path, &kept)?;
                File::open(&kept)?.sync_all()?;
                break;
            }
        }
    }
    Ok(())
}

/// A folder's name that says now, in UTC, and is not there in `dir`.
fn free_name(dir: &Path) -> String {
    let now = UNIX_EPOCH + Duration::from_millis(wall_ms());
    let now = humantime::format_rfc3339_seconds(now).to_string().replace(':', "-");
    let names = std::iter::once(now.clone()).chain((2..).map(|n| format!("{now}.{n}")));
    names.into_iter().find(|name| !dir.join(name).exists()).unwrap_or(now)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
