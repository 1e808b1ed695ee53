//! Copies a state root beside a broker that may be writing it, without asking it.
//!
//! ```text
//! newest events per key, checkpoint, status ─▶ all segments opened, the newest scanned ─▶ segments copied ─▶ logs, records copied
//!   ─▶ fsync ─▶ recovery of the copy ─▶ verify of the copy ─▶ DIR.partial becomes DIR
//! ```
//!
//! Why the order is right:
//! * What was acked before the backup began was durable then, so it stands in a segment that is opened, before
//!   the end that the scan finds. Retention may unlink a segment; what is open stays.
//! * The newest segment is copied up to the last record that the scan saw. Every byte before that was there
//!   then, or is of a commit that nobody was told of: so no record that is copied calls durable what was read too
//!   early to be there.
//! * The newest events per key are copied by SQLite, as of one moment, before the segments are opened: they have no event
//!   that is not copied, and what the journal has lost since is seen by its first seq; then they are copied again.
//! * The checkpoint is older than every log that is copied, so all it vouches for is in them.
//! * Lines of a running broker's logs are copied up to the last event that is known durable, and such an event
//!   is in a segment that was opened before: every line that is copied has its event.
//!
//! Always holds: nothing in the source is written, but for what SQLite keeps beside a database that is read; DIR is there whole and verified, or not at all. Owner:
//! `app/backup.rs`.

use super::descriptors::raise_descriptors;
use super::journal::disk::RealDisk;
use super::journal::held::Held;
use super::journal::inspect::Inspection;
use super::journal::segment::segment_name;
use super::journal::{OpenError, Opened};
use super::latest::copy;
use super::limits::SEGMENT_MIN_BYTES;
use super::log_files::end_of_last;
use super::state_root::{StateRoot, open_plain, sync_dir};
use super::status_file::StatusWriter;
use super::tail::scan::whole_end;
use super::verify::known::Known;
use super::verify::lines::open_log;
use super::verify::{Report, VerifyError, logs_of, verify};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// So much is copied before progress is said, in bytes.
const STEP: u64 = 8 * 1024 * 1024;
/// The newest events per key are copied so often at the most, while retention overtakes the copy.
const COPIES: usize = 5;
/// Room for what is not counted: folders, the status, a record or two that came meanwhile.
const SLACK: u64 = 4 * 1024 * 1024;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The source cannot be read, or the copy not be checked.
    #[error(transparent)]
    Source(#[from] VerifyError),
    /// It cannot be made there.
    #[error("{path}: {why}", path = .path.display())]
    Target {
        /// Where.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// There is no room.
    #[error("{path}: the backup needs {need} bytes and {free} are free there; make room or choose another place", path = .path.display())]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// Bytes that it takes.
        need: u64,
        /// Bytes that there are.
        free: u64,
    },
    /// A broker could not start on the copy.
    #[error(transparent)]
    Unusable(#[from] OpenError),
    /// A call failed.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// On what.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::Io { path, error }
}

/// A backup that was made.
#[derive(Debug)]
pub struct Backup {
    /// Where it is.
    pub dir: PathBuf,
    /// What the copy has, and what is damaged in it because it was in the source.
    pub report: Report,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes are copied.
    Copy,
    /// The copy's journal is read against its logs.
    Verify,
}

/// Copies `root` to `dir`. `progress` hears how many bytes of how many a step has done.
///
/// # Errors
/// [`BackupError`]; nothing is left behind.
pub fn backup(
    root: &StateRoot,
    dir: &Path,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<Backup, BackupError> {
    let journal = root.journal_id().map_err(VerifyError::from)?;
    let journal = journal.ok_or_else(|| VerifyError::NoJournal(root.path().into()))?;
    let (dir, partial) = place(root, dir)?;
    DirBuilder::new().mode(0o700).create(&partial).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Target {
            path: partial.clone(),
            why: "it is of a backup that was interrupted, or still runs; remove it if none runs".into(),
        },
        _ => cannot_create(&partial, error),
    })?;
    let made = Source::look(root, journal, &dir, &partial).and_then(|source| {
        let report = source.copy_to(&partial, journal, progress)?;
        let bytes = tree_bytes(&partial).map_err(failed(&partial))?;
        std::fs::rename(&partial, &dir).map_err(failed(&dir))?;
        let parent = dir.parent().unwrap_or(Path::new("/"));
        sync_dir(parent).map_err(failed(parent))?;
        Ok(Backup { dir, report, bytes })
    });
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    made
}

/// Where the backup goes, and the name that it has until it is whole.
fn place(root: &StateRoot, dir: &Path) -> Result<(PathBuf, PathBuf), BackupError> {
    let refuse = |why: &str| BackupError::Target { path: dir.to_owned(), why: why.to_owned() };
    let (dir, parent) = match dir.canonicalize() {
        Ok(there) => (there.clone(), there.parent().unwrap_or(Path::new("/")).to_owned()),
        Err(_) => {
            let name = dir.file_name().ok_or_else(|| refuse("it is no name for a folder"))?;
            let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let parent = parent.canonicalize().map_err(|e| refuse(&format!("the folder above it: {e}")))?;
            (parent.join(name), parent)
        }
    };
    let own = root.path().canonicalize().map_err(failed(root.path()))?;
    if dir.starts_with(&own) {
        return Err(refuse("it is inside the state root; choose a folder elsewhere"));
    }
    if let Ok(meta) = std::fs::symlink_metadata(&dir) {
        if !meta.is_dir() {
            return Err(refuse("it is there and no folder"));
        }
        if std::fs::read_dir(&dir).map_err(failed(&dir))?.next().is_some() {
            return Err(refuse("it is not empty; name a folder that is empty or does not exist"));
        }
        if std::fs::metadata(&parent).is_ok_and(|above| above.dev() != meta.dev()) || dir == parent {
            return Err(refuse("it is a mount point; name a folder inside it"));
        }
    }
    let mut partial = dir.clone().into_os_string();
    partial.push(".partial");
    Ok((dir, PathBuf::from(partial)))
}

fn cannot_create(path: &Path, error: io::Error) -> BackupError {
    BackupError::Target { path: path.to_owned(), why: format!("it cannot be made: {error}") }
}

fn has_room(root: &StateRoot, inspection: &Inspection, dir: &Path) -> Result<(), BackupError> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    // Recovery writes the tail once more, into a segment of its own.
    let tail = SEGMENT_MIN_BYTES + inspection.tail_bytes();
    let mut need = inspection.bytes() + 3 * tail + SLACK;
    for dir in [root.bus_logs(), root.handshakes()] {
        need += tree_bytes(&dir).unwrap_or(0);
    }
    let stat = nix::sys::statvfs::statvfs(parent).map_err(|e| failed(parent)(e.into()))?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    if free < need { Err(BackupError::NoRoom { path: parent.to_owned(), need, free }) } else { Ok(()) }
}

/// The bytes of all files below a folder.
fn tree_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // Gone meanwhile: rotated away.
        let Ok(meta) = entry.metadata() else { continue };
        bytes += if meta.is_dir() { tree_bytes(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}

/// What is copied, as it was looked at.
struct Source<'a> {
    root: &'a StateRoot,
    inspection: Inspection,
    checkpoint: Option<Vec<u8>>,
    known: Known,
}

impl<'a> Source<'a> {
    /// Copies the newest events per key to `partial`, then opens all that is to be copied behind them.
    fn look(root: &'a StateRoot, journal: u128, dir: &Path, partial: &Path) -> Result<Self, BackupError> {
        raise_descriptors();
        let mut attempt = 0;
        loop {
            let to = StateRoot::resolve(Some(partial.to_owned())).latest();
            let latest = copy::copy(&root.latest(), &to).map_err(failed(&root.latest()))?;
            let checkpoint = match std::fs::read(root.checkpoint()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                read => Some(read.map_err(failed(&root.checkpoint()))?),
            };
            let known = Known::read(root)?;
            let held = Held::open(&root.journal()).map_err(failed(&root.journal()))?;
            let mut inspection = Inspection::open(held, journal, known.stored).map_err(VerifyError::from)?;
            if let Some(unusable) = inspection.take_unusable() {
                return Err(unusable.into());
            }
            attempt += 1;
            // Retention went on meanwhile, behind the view and not behind its copy.
            let first = inspection.segments().first().map_or(0, |segment| segment.first_seq);
            if attempt < COPIES && latest.is_some_and(|seq| seq + 1 < first) {
                std::fs::remove_file(&to).map_err(failed(&to))?;
                continue;
            }
            has_room(root, &inspection, dir)?;
            return Ok(Source { root, inspection, checkpoint, known });
        }
    }

    fn copy_to(
        &self,
        to: &Path,
        journal: u128,
        progress: &mut dyn FnMut(Step, u64, u64),
    ) -> Result<Report, BackupError> {
        let root = StateRoot::resolve(Some(to.to_owned()));
        for dir in [root.journal(), root.logs(), root.bus_logs(), root.handshakes()] {
            DirBuilder::new().mode(0o700).create(&dir).map_err(failed(&dir))?;
        }
        let mut total = self.inspection.bytes();
        for dir in [self.root.bus_logs(), self.root.handshakes()] {
            total += tree_bytes(&dir).unwrap_or(0);
        }
        let mut copied = 0;
        let mut progress_of_copy = |bytes| {
            copied += bytes;
            progress(Step::Copy, copied, total.max(copied));
        };
        self.copy_small(&root)?;
        self.copy_journal(&root, &mut progress_of_copy)?;
        self.copy_logs(&root, &mut progress_of_copy)?;
        for dir in [root.journal(), root.bus_logs(), root.logs(), root.handshakes(), to.to_owned()] {
            sync_dir(&dir).map_err(failed(&dir))?;
        }
        // As a broker would open it: what is refused now would be refused then.
        let tail = (self.inspection.tail_bytes() + 4096).next_multiple_of(SEGMENT_MIN_BYTES);
        drop(Opened::open(Arc::new(RealDisk::new(root.journal())), journal, tail)?);
        let report = verify(&root, &mut |done, total| progress(Step::Verify, done, total))?;
        if !report.is_whole() && !self.known.still_holds(self.root) {
            return Err(VerifyError::Changed(self.root.path().into()).into());
        }
        Ok(report)
    }

    /// Files of a few bytes: what the journal is, how far the logs were, which VMs are known.
    fn copy_small(&self, to: &StateRoot) -> Result<(), BackupError> {
        let from = self.root.path().join("format");
        let file = open_plain(&from).map_err(failed(&from))?;
        let size = file.metadata().map_err(failed(&from))?.len();
        copy_file(&file, size, &to.path().join("format"), &mut |_| {})?;
        if let Some(bytes) = &self.checkpoint {
            let file = create(&to.checkpoint())?;
            file.write_all_at(bytes, 0).and_then(|()| file.sync_all()).map_err(failed(&to.checkpoint()))?;
        }
        // One that this castra cannot read holds nothing that it could use.
        if let Some(status) = &self.known.status {
            let path = to.status();
            let mut writer = StatusWriter::open(to).map_err(failed(&path))?;
            writer.write(status).map_err(failed(&path))?;
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn copy_journal(&self, to: &StateRoot, each: &mut dyn FnMut(u64)) -> Result<(), BackupError> {
        let segments = self.inspection.segments();
        for (i, segment) in segments.iter().enumerate() {
            let name = segment_name(segment.first_lsn);
            let from = self.root.journal().join(&name);
            let Some(file) = self.inspection.held().file(&name) else { continue };
            let path = to.journal().join(&name);
            let written = copy_file(file, segment.end, &path, each)?;
            // Cut meanwhile because the disk was full: what lay behind was refused, and is stored nowhere.
            let size = file.metadata().map_err(failed(&from))?.len();
            if i + 1 == segments.len() && size < segment.end {
                written.set_len(size).and_then(|()| written.sync_all()).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    fn copy_logs(&self, to: &StateRoot, each: &mut dyn FnMut(u64)) -> Result<(), BackupError> {
        let newest = self.inspection.durable_seq().max(self.known.stored);
        let live = self.known.running.is_some();
        let logs = logs_of(self.root)?.into_iter().map(|name| (format!("bus/{name}.log"), true));
        let logs =
            logs.chain([("broker.log".into(), false)]).map(|(name, bus)| (format!("logs/{name}"), bus));
        let records = ["handshake-events.jsonl", "bus-events.jsonl"];
        let records = records.map(|name| (format!("handshakes/{name}"), false));
        for (name, of_events) in logs.chain(records) {
            let path = self.root.path().join(&name);
            for (from, file) in open_log(&path).map_err(failed(&path))? {
                let size = file.metadata().map_err(failed(&from))?.len();
                let end = match (live, of_events) {
                    // What a stop left is copied as it is: the next start knows what to do.
                    (false, _) => size,
                    (true, true) => end_of_last(&file, size, newest).map_err(failed(&from))?.0,
                    (true, false) => whole_end(&file).map_err(failed(&from))?,
                };
                // A log that begins behind what is copied is none yet.
                if end > 0 || size == 0 {
                    let below = from.strip_prefix(self.root.path()).unwrap_or(&from);
                    copy_file(&file, end, &to.path().join(below), each)?;
                }
            }
        }
        Ok(())
    }
}

fn create(path: &Path) -> Result<File, BackupError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(failed(path))
}

/// Copies the first `bytes` of a file, durably.
fn copy_file(from: &File, bytes: u64, path: &Path, each: &mut dyn FnMut(u64)) -> Result<File, BackupError> {
    let to = create(path)?;
    let mut from = from;
    let mut copy_all = || {
        from.seek(SeekFrom::Start(0))?;
        let mut left = bytes;
        while left > 0 {
            let n = io::copy(&mut from.take(left.min(STEP)), &mut &to)?;
            if n == 0 {
                break;
            }
            left -= n;
            each(n);
        }
        to.sync_all()
    };
    copy_all().map_err(failed(path))?;
    Ok(to)
}
