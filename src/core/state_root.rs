//! The state root: where everything of one broker is, who may use it, and that only one broker does.
//!
//! Always holds: the folder is 0700 and its owner's; `format` names the version and the journal's id and is
//! durable before the first segment; while a broker runs it holds an open-file-description lock on
//! `broker.lock`, which others only query. Owner: `broker.rs` opens it; the commands read below it.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The version of the state root's layout.
pub const FORMAT: u32 = 1;

/// Who holds a state root's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No broker runs.
    Nobody,
    /// One that has not said its pid yet.
    Beginning,
    /// One that could not: the disk is full.
    Unknown,
    /// This process.
    Pid(u32),
}

/// The byte of `broker.lock` that a running broker locks …
const RUNNING: i64 = 0;
/// … and the one that it locks once its pid stands in the file.
const NAMED: i64 = 1;

/// Why a state root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateRootError {
    /// A broker holds the lock.
    #[error("{path} is in use by another broker{pid}; stop that one, or give this one a --state-root of its own", path = .path.display())]
    InUse {
        /// The state root.
        path: PathBuf,
        /// ` (pid 123)`, or nothing.
        pid: String,
    },
    /// Somebody else's.
    #[error("{path} belongs to uid {owner}, this broker runs as uid {uid}; run it as its owner, or choose another --state-root", path = .path.display())]
    NotOwned {
        /// The state root.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        uid: u32,
    },
    /// A folder that is something else.
    #[error("{path} is no state root of castra: it holds {name} and no format; choose an empty folder, or one that does not exist", path = .path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        name: String,
    },
    /// `format` is of a later castra.
    #[error("{path} has format {found}, this castra knows {FORMAT}; run the castra that wrote it, or a newer one", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// `format` cannot be read as one.
    #[error("{path} is damaged ({why}); restore it from a backup: it names the journal, and without it no segment can be trusted", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A call failed.
    #[error("{what} {path}: {error}", path = .path.display())]
    Io {
        /// The call.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateRootError {
    let path = path.to_owned();
    move |error| StateRootError::Io { what, path, error }
}

/// The paths of one state root.
#[derive(Clone, Debug)]
pub struct StateRoot {
    path: PathBuf,
}

/// What `format` says.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Format {
    format: u32,
    journal: String,
}

impl StateRoot {
    /// The one that was given (by a flag, `$CASTRA_STATE_ROOT` or castra.toml, which `app` has read already), else
    /// `$XDG_STATE_HOME/castra`, else `~/.local/state/castra`.
    pub fn resolve(given: Option<PathBuf>) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = given
            .or_else(|| set("XDG_STATE_HOME").map(|p| p.join("castra")))
            .unwrap_or_else(|| set("HOME").unwrap_or_else(|| PathBuf::from("/")).join(".local/state/castra"));
        StateRoot { path }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The lock that a running broker holds.
    pub fn lock(&self) -> PathBuf {
        self.path.join("broker.lock")
    }
    /// The host's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("castra.sock")
    }
    /// What `castra status` reads.
    pub fn status(&self) -> PathBuf {
        self.path.join("status")
    }
    /// The segments' folder.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }
    /// The logs' folder.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }
    /// The folder of `<vm>.log` and `bus.log`.
    pub fn bus_logs(&self) -> PathBuf {
        self.path.join("logs/bus")
    }
    /// How far the logs are durable.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("logs/checkpoint")
    }
    /// The newest event of each key.
    pub fn latest(&self) -> PathBuf {
        self.path.join("latest.db")
    }
    /// The folder of the signals' records.
    pub fn handshakes(&self) -> PathBuf {
        self.path.join("handshakes")
    }

    /// Makes what is missing, takes the lock, reads or writes `format`. The journal's id, and the lock,
    /// which lasts as long as the file is open.
    ///
    /// # Errors
    /// [`StateRootError`].
    pub fn open(&self) -> Result<(u128, File), StateRootError> {
        make_durable_dir(&self.path)?;
        let owner = std::fs::metadata(&self.path).map_err(failed("look at", &self.path))?.uid();
        let uid = nix::unistd::geteuid().as_raw();
        if owner != uid {
            return Err(StateRootError::NotOwned { path: self.path.clone(), owner, uid });
        }
        self.refuse_foreign()?;
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o700))
            .map_err(failed("set the mode of", &self.path))?;
        let lock = self.take_lock()?;
        for dir in [self.journal(), self.logs(), self.bus_logs(), self.handshakes()] {
            make_dir(&dir)?;
        }
        let journal = self.open_format()?;
        sync_dir(&self.path).map_err(failed("sync", &self.path))?;
        Ok((journal, lock))
    }

    /// A folder with something in it and without a `format` is taken only when all in it may be a
    /// broker's: `--state-root /tmp` would be shut to everybody else.
    fn refuse_foreign(&self) -> Result<(), StateRootError> {
        const OURS: [&str; 9] = [
            "broker.lock",
            "castra.sock",
            "format.new",
            "handshakes",
            "journal",
            "logs",
            "lost+found",
            "status",
            "status.new",
        ];
        if self.path.join("format").exists() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.path).map_err(failed("list", &self.path))? {
            let name = entry.map_err(failed("list", &self.path))?.file_name();
            if !OURS.iter().any(|ours| name == *ours) {
                return Err(StateRootError::Foreign {
                    path: self.path.clone(),
                    name: name.display().to_string(),
                });
            }
        }
        Ok(())
    }

    fn take_lock(&self) -> Result<File, StateRootError> {
        let path = self.lock();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed("open", &path))?;
        if let Err(error) = fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(RUNNING, libc::F_WRLCK))) {
            return Err(match error {
                nix::Error::EAGAIN | nix::Error::EACCES => {
                    let mut text = String::new();
                    let _ = file.read_to_string(&mut text);
                    let pid = text.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (pid {pid})"));
                    StateRootError::InUse { path: self.path.clone(), pid }
                }
                other => failed("lock", &path)(other.into()),
            });
        }
        // On a full disk it stays empty, and whoever asks is told no pid.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        let named = fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(NAMED, libc::F_WRLCK)));
        named.map_err(|e| failed("lock", &path)(e.into()))?;
        Ok(file)
    }

    fn open_format(&self) -> Result<u128, StateRootError> {
        match self.journal_id()? {
            Some(id) => Ok(id),
            None => sync_path_to(&self.path).and_then(|()| self.write_format(&self.path.join("format"))),
        }
    }

    /// The journal's id, as `format` says it; `None` when no broker ever used this state root. Changes nothing.
    ///
    /// # Errors
    /// `format` cannot be read, is damaged, is missing beside a journal, or is of a later castra.
    pub fn journal_id(&self) -> Result<Option<u128>, StateRootError> {
        let path = self.path.join("format");
        let damaged = |why: String| StateRootError::Damaged { path: path.clone(), why };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            // Asked for once more: a first start names it before there is a segment.
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.has_segments()? && !path.exists() => {
                return Err(damaged("it is missing, and there is a journal".into()));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        match value["format"].as_u64() {
            Some(found) if found > u64::from(FORMAT) => {
                return Err(StateRootError::Newer { path, found: u32::try_from(found).unwrap_or(u32::MAX) });
            }
            Some(found) if found == u64::from(FORMAT) => {}
            _ => return Err(damaged("it says no format".into())),
        }
        let format: Format = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        let journal = uuid::Uuid::parse_str(&format.journal).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(journal.as_u128()))
    }

    fn has_segments(&self) -> Result<bool, StateRootError> {
        let journal = self.journal();
        let mut entries = match std::fs::read_dir(&journal) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries.map_err(failed("list", &journal))?,
        };
        let is_segment = |name: std::ffi::OsString| name.to_string_lossy().ends_with(".seg");
        Ok(entries.any(|entry| entry.is_ok_and(|entry| is_segment(entry.file_name()))))
    }

    fn write_format(&self, path: &Path) -> Result<u128, StateRootError> {
        let journal = uuid::Uuid::new_v4();
        let format = Format { format: FORMAT, journal: journal.to_string() };
        let text = serde_json::json!(format).to_string() + "\n";
        replace(path, text.as_bytes()).map_err(failed("write", path))?;
        Ok(journal.as_u128())
    }

    /// Who holds the lock. Never waits.
    ///
    /// # Errors
    /// The lock file is there and cannot be asked.
    pub fn lock_holder(&self) -> io::Result<Holder> {
        let file = match File::open(self.lock()) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
            Err(e) => return Err(e),
        };
        let held = |which| {
            let mut lock = byte(which, libc::F_RDLCK);
            fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).map(|_| i32::from(lock.l_type) != libc::F_UNLCK)
        };
        if !held(RUNNING)? {
            return Ok(Holder::Nobody);
        }
        if !held(NAMED)? {
            // The pid that stands there is of the broker before this one.
            return Ok(Holder::Beginning);
        }
        let mut text = String::new();
        let _ = (&file).read_to_string(&mut text);
        Ok(text.trim().parse().map_or(Holder::Unknown, Holder::Pid))
    }
}

fn byte(which: i64, kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: which, l_len: 1, l_pid: 0 }
}

/// Makes a folder and those above it, for its owner alone.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(path: &Path) -> Result<(), StateRootError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))
}

/// The same, and makes the entries on the way to it durable: without them a power cut takes all below.
///
/// # Errors
/// It cannot be made, or not synced.
pub fn make_durable_dir(path: &Path) -> Result<(), StateRootError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    make_dir(path)?;
    for dir in missing.iter().rev() {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent).map_err(failed("sync", parent))?;
    }
    Ok(())
}

/// Makes the entries that lead to `path` durable: whoever made them may not have synced them.
///
/// # Errors
/// A folder above it cannot be synced.
pub fn sync_path_to(path: &Path) -> Result<(), StateRootError> {
    let whole = std::fs::canonicalize(path).map_err(failed("look at", path))?;
    for dir in whole.ancestors().skip(1) {
        let synced = sync_dir(dir);
        if synced.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
            // A folder that may be passed and not be read cannot be synced alone: then all of the file system is.
            let all = File::open(path).and_then(|file| Ok(nix::unistd::syncfs(&file)?));
            return all.map_err(failed("sync", path));
        }
        synced.map_err(failed("sync", dir))?;
    }
    Ok(())
}

/// Makes the entries of `dir` durable.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Opens a file of a state root for reading, as it is there: no link, which could lead root to anything, and no
/// pipe, which could keep it waiting.
///
/// # Errors
/// It cannot be opened, or is no plain file.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let odd = || {
        io::Error::new(io::ErrorKind::InvalidInput, "it is a link, or no plain file; a state root has none")
    };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => Err(odd()),
        Ok(file) if !file.metadata()?.is_file() => Err(odd()),
        opened => opened,
    }
}

/// Replaces the file at `path`, all of it or nothing, durable when this returns `Ok`.
///
/// # Errors
/// Any call's; the file is as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}
