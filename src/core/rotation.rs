//! Rotation: a log that is full becomes `<log>.1`, that `<log>.2` …, and the oldest goes.
//!
//! Always holds: so many rotated files at the most ([`LOG_FILES`]); whoever has one open keeps it; each rename is
//! durable before the next one, so that a power cut in between leaves every file under one name. Owner: the writers of
//! logs and records rotate; whoever reads a log asks for the names.

use super::limits::LOG_FILES;
use super::state_root::sync_dir;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the `n`-th rotated file: `<path>.n`.
pub fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

/// The `n`-th file of a log: `path` itself, and behind it the rotated ones.
pub fn nth(path: &Path, n: u32) -> PathBuf {
    if n == 0 { path.to_owned() } else { rotated(path, n) }
}

/// `path` becomes `path.1`, that `path.2` … and the oldest is replaced.
///
/// # Errors
/// A rename failed, or could not be made durable.
pub fn rotate(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    for n in (0..LOG_FILES).rev() {
        match std::fs::rename(nth(path, n), nth(path, n + 1)) {
            Ok(()) => sync_dir(dir)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The log that a file of that name belongs to.
pub(super) fn base(name: &[u8]) -> &[u8] {
    let digits = name.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let rotated = name[..name.len() - digits].strip_suffix(b".").filter(|_| digits > 0);
    rotated.unwrap_or(name).strip_suffix(b".log").unwrap_or(name)
}

/// Whether a file of that name is a log's.
pub(super) fn is_log(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.ends_with(".log") || (1..=LOG_FILES).any(|n| name.ends_with(&format!(".log.{n}")))
}
