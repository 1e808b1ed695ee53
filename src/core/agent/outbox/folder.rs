//! The state directory: who may use it, that only one agent does, and where its files are.
//!
//! Always holds: the folder is 0700 and its owner's, `outbox.db` is 0600; while an agent runs it holds an
//! open-file-description lock on `agent.lock`; a file that is put aside keeps all its bytes. Owner: the outbox.

use super::OutboxError;
use crate::core::clock;
use crate::core::limits::OUTBOX_ASIDES;
use crate::core::state_root::{StateRootError, make_durable_dir, sync_dir, sync_path_to};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What an agent's files in its state directory are called, or begin with.
pub const STATE_DIR_FILES: [&str; 2] = ["outbox.db", "agent."];

/// What SQLite has beside a database.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutboxError {
    let path = path.to_owned();
    move |error| OutboxError::Io { what, path, error }
}

/// The database of a state directory.
pub(super) fn database(state_dir: &Path) -> PathBuf {
    state_dir.join("outbox.db")
}

pub(super) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// An open state directory.
pub(super) struct Folder {
    path: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: File,
}

impl Folder {
    /// Makes it if it is missing, and takes its lock.
    pub fn open(path: &Path) -> Result<Self, OutboxError> {
        make_durable_dir(path).map_err(|error| of_state_root(error, path))?;
        let owner = std::fs::metadata(path).map_err(failed("look at", path))?.uid();
        let uid = nix::unistd::geteuid().as_raw();
        if owner != uid {
            return Err(OutboxError::NotOwned { path: path.to_owned(), owner, uid });
        }
        refuse_foreign(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(failed("set the mode of", path))?;
        Ok(Folder { path: path.to_owned(), _lock: take_lock(path)? })
    }

    /// Its database.
    pub fn database(&self) -> PathBuf {
        database(&self.path)
    }

    /// Makes the database's file, for its owner alone; the mode of what is there is put right. SQLite gives the files
    /// beside it the same one.
    pub fn make_database(&self) -> Result<(), OutboxError> {
        let path = self.database();
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(failed("open", &path))?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed("set the mode of", &path))?;
        // A process that was killed may have made it, or the folder, and synced neither.
        if file.metadata().map_err(failed("look at", &path))?.len() == 0 {
            sync_dir(&self.path).map_err(failed("sync", &self.path))?;
            sync_path_to(&self.path).map_err(|error| of_state_root(error, &self.path))?;
        }
        Ok(())
    }

    /// Renames the database and what is beside it; what it is called now. SQLite finds the log beside the new name.
    pub fn put_aside(&self) -> Result<PathBuf, OutboxError> {
        let path = self.database();
        let asides = std::fs::read_dir(&self.path).map_err(failed("list", &self.path))?;
        let is_aside = |name: &std::ffi::OsStr| {
            let name = name.as_encoded_bytes();
            name.starts_with(b"outbox.db.damaged-")
                && !BESIDE.iter().any(|end| name.ends_with(end.as_bytes()))
        };
        let asides = asides.filter(|entry| entry.as_ref().is_ok_and(|entry| is_aside(&entry.file_name())));
        if asides.count() >= OUTBOX_ASIDES {
            let why =
                format!("{OUTBOX_ASIDES} damaged ones are there already; look at them, and remove them");
            return Err(failed("put aside", &path)(io::Error::other(why)));
        }
        let time = clock::wall_ms() / 1000;
        let free = |path: &PathBuf| std::fs::symlink_metadata(path).is_err();
        let aside = (0..1000)
            .map(|n| if n == 0 { format!(".damaged-{time}") } else { format!(".damaged-{time}-{n}") })
            .map(|suffix| with(&path, &suffix))
            .find(free)
            .ok_or_else(|| failed("put aside", &path)(io::ErrorKind::AlreadyExists.into()))?;
        // The log goes first: beside a new database it would be taken for its own.
        for suffix in BESIDE {
            match std::fs::rename(with(&path, suffix), with(&aside, suffix)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("put aside", &path)(e)),
                _ => {}
            }
        }
        sync_dir(&self.path).map_err(failed("sync", &self.path))?;
        std::fs::rename(&path, &aside).map_err(failed("put aside", &path))?;
        sync_dir(&self.path).map_err(failed("sync", &self.path))?;
        Ok(aside)
    }
}

fn of_state_root(error: StateRootError, path: &Path) -> OutboxError {
    match error {
        StateRootError::Io { what, path, error } => OutboxError::Io { what, path, error },
        other => failed("create", path)(io::Error::other(other.to_string())),
    }
}

/// A folder that has something in it and no outbox is taken only when all in it may be an agent's:
/// `--state-dir /tmp` would be shut to everybody else.
fn refuse_foreign(path: &Path) -> Result<(), OutboxError> {
    if database(path).exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(failed("list", path))? {
        let name = entry.map_err(failed("list", path))?.file_name();
        let ours = |begin: &&str| name.as_encoded_bytes().starts_with(begin.as_bytes());
        if name != "lost+found" && !STATE_DIR_FILES.iter().any(ours) {
            return Err(OutboxError::Foreign { path: path.to_owned(), name: name.display().to_string() });
        }
    }
    Ok(())
}

fn take_lock(dir: &Path) -> Result<File, OutboxError> {
    let path = dir.join("agent.lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed("open", &path))?;
    let (kind, whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    let lock = libc::flock { l_type: kind, l_whence: whence, l_start: 0, l_len: 1, l_pid: 0 };
    if let Err(error) = fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
        return Err(match error {
            nix::Error::EAGAIN | nix::Error::EACCES => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                let pid = text.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (pid {pid})"));
                OutboxError::InUse { path: dir.to_owned(), pid }
            }
            other => failed("lock", &path)(other.into()),
        });
    }
    // On a full disk it stays empty, and a second agent is told no pid.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}
