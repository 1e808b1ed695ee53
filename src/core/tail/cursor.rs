//! How far a reader has come, in a file of its own.
//!
//! Always holds: the file is whole at any moment: it is replaced, never written into; it names the journal,
//! for a seq means nothing in another one. Owner: `app/tail/`.

use crate::core::state_root::sync_dir;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The last event that was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Of which journal.
    pub journal: u128,
    /// Its seq.
    pub seq: u64,
    /// Its ts, when it was printed: a journal that was restored from a backup has other events of the same seqs.
    pub ts: Option<u64>,
}

#[derive(Deserialize, Serialize)]
struct Text {
    journal: String,
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ts: Option<u64>,
}

/// A cursor's file.
#[derive(Debug)]
pub struct CursorFile {
    path: PathBuf,
}

impl CursorFile {
    /// The cursor at `path`; what a link leads to is replaced, not the link.
    pub fn new(path: &Path) -> Self {
        CursorFile { path: std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says; `None` when there is none yet.
    ///
    /// # Errors
    /// It cannot be read, or (`InvalidData`) it is no cursor.
    pub fn read(&self) -> io::Result<Option<Cursor>> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let no_cursor =
            |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let Text { journal, seq, ts } = serde_json::from_slice(&text).map_err(|e| no_cursor(&e))?;
        let journal = uuid::Uuid::parse_str(&journal).map_err(|e| no_cursor(&e))?;
        Ok(Some(Cursor { journal: journal.as_u128(), seq, ts }))
    }

    /// Whether it will be possible to write it.
    ///
    /// # Errors
    /// It will not.
    pub fn probe(&self) -> io::Result<()> {
        let (_, new) = self.create()?;
        std::fs::remove_file(new)
    }

    /// A new file beside it. Its name cannot be guessed, and what is there already is not opened: in a folder of
    /// somebody else's it could be a link to anything.
    fn create(&self) -> io::Result<(File, PathBuf)> {
        let mut new = OsString::from(&self.path);
        new.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
        let new = PathBuf::from(new);
        Ok((OpenOptions::new().write(true).create_new(true).open(&new)?, new))
    }

    /// Replaces the file: it says the old or the new, whatever happens meanwhile.
    ///
    /// # Errors
    /// Any call's; it says what it said.
    pub fn write(&self, cursor: Cursor) -> io::Result<()> {
        let journal = uuid::Uuid::from_u128(cursor.journal).to_string();
        let mut text = serde_json::to_vec(&Text { journal, seq: cursor.seq, ts: cursor.ts })?;
        text.push(b'\n');
        let (mut file, new) = self.create()?;
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        let replaced = written.and_then(|()| std::fs::rename(&new, &self.path));
        replaced.inspect_err(|_| _ = std::fs::remove_file(&new))?;
        // Without its entry the next run would begin where a first one does.
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match sync_dir(dir) {
            // A folder that may be written and not be read.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        }
    }
}
