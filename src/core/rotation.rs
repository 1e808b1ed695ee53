//! Rotation: a log that is full becomes `<log>.1`, that `<log>.2` …, and the oldest goes.
//!
//! Always holds: so many rotated files at the most ([`LOG_FILES`]); whoever has one open keeps it. Owner: the writers
//! of logs and records rotate; whoever reads a log asks for the names.

use super::limits::LOG_FILES;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the `n`-th rotated file: `<path>.n`.
pub fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

/// `path` becomes `path.1`, that `path.2` … and the oldest is replaced.
///
/// # Errors
/// A rename failed.
pub fn rotate(path: &Path) -> io::Result<()> {
    for n in (0..LOG_FILES).rev() {
        let from = if n == 0 { path.to_owned() } else { rotated(path, n) };
        match std::fs::rename(from, rotated(path, n + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
