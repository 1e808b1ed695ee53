//! A file that lines are appended to, and that somebody else may cut, write to or remove meanwhile.
//!
//! Always holds: a line begins at the start of a line, whatever an earlier write or another process left at the end;
//! one fstat a write says whether the file is as it was left. Owner: the writers of logs and records
//! (`log_files.rs`, `events.rs`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// An open file and its expected size.
#[derive(Debug)]
pub struct AppendFile {
    file: File,
    size: u64,
    /// The last byte is not a line end.
    torn: bool,
}

/// What [`AppendFile::look`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The file is as it was left.
    Same,
    /// Another process cut it or wrote to it.
    Changed {
        /// The size that it should have, in bytes.
        expected: u64,
        /// The size that it has.
        found: u64,
    },
    /// It has no name any more.
    Removed,
}

impl AppendFile {
    /// Opens the file, or makes it for its owner alone.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        let torn = is_torn(&file, size)?;
        Ok(AppendFile { file, size, torn })
    }

    /// Compares the file with how it was left.
    ///
    /// # Errors
    /// Its end cannot be read.
    pub fn look(&mut self) -> io::Result<Look> {
        let Some(is) = self.file.metadata().ok().filter(|is| is.nlink() > 0) else {
            return Ok(Look::Removed);
        };
        if is.len() == self.size {
            return Ok(Look::Same);
        }
        let (expected, found) = (self.size, is.len());
        self.torn = is_torn(&self.file, found)?;
        self.size = found;
        Ok(Look::Changed { expected, found })
    }

    /// Appends whole lines, behind a line end if the file does not end in one.
    ///
    /// # Errors
    /// A write failed; a part of the lines may be there.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let joined;
        let bytes = match self.torn {
            false => lines,
            true => {
                joined = [b"\n", lines].concat();
                &joined
            }
        };
        self.file.write_all(bytes)?;
        (self.torn, self.size) = (false, self.size + bytes.len() as u64);
        Ok(())
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether its last line has no end.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// It could not be made durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Says that somebody else changed a file, and what to do.
pub(super) fn say_changed(path: &Path, expected: Option<u64>, found: u64) {
    tracing::warn!(
        file = %path.display(),
        expected,
        found,
        "logs: another process changed this file; the next line begins on a line of its own. 'castra verify' says whether \
         lines are missing, and 'castra verify --repair-logs' writes them anew"
    );
}

fn is_torn(file: &File, size: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if size > 0 {
        // A file that shrinks meanwhile is looked at again at the next write.
        let _ = file.read_at(&mut last, size - 1)?;
    }
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Act {
        Append(u8),
        Cut(proptest::sample::Index),
        Foreign(String),
        Reopen,
    }

    proptest! {
        /// Whatever others do to the file between two writes, every line that is appended stands whole in it.
        #[test]
        fn no_line_is_swallowed(acts in proptest::collection::vec(prop_oneof![
            4 => (1u8..4).prop_map(Act::Append),
            1 => any::<proptest::sample::Index>().prop_map(Act::Cut),
            1 => "[a-z\n]{0,6}".prop_map(Act::Foreign),
            1 => Just(Act::Reopen),
        ], 0..30)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.log");
            let mut file = AppendFile::open(&path).unwrap();
            let mut n = 0;
            for act in acts {
                match act {
                    Act::Append(lines) => {
                        let text: String = (0..lines).map(|i| format!("<{n}.{i}>\n")).collect();
                        let before = std::fs::read(&path).unwrap();
                        let same = file.size() == before.len() as u64;
                        prop_assert_eq!(matches!(file.look().unwrap(), Look::Same), same);
                        let torn = !before.is_empty() && !before.ends_with(b"\n");
                        // Cut and filled up to the same size: one fstat cannot tell.
                        let unseen = same && torn != file.is_torn();
                        file.append(text.as_bytes()).unwrap();
                        let want = [&before[..], if torn { b"\n" } else { b"" }, text.as_bytes()].concat();
                        prop_assert!(unseen || std::fs::read(&path).unwrap() == want);
                        n += 1;
                    }
                    Act::Cut(to) => {
                        let size = std::fs::metadata(&path).unwrap().len();
                        let to = to.index(size as usize + 1) as u64;
                        File::options().write(true).open(&path).unwrap().set_len(to).unwrap();
                    }
                    Act::Foreign(text) => {
                        File::options().append(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
                    }
                    Act::Reopen => file = AppendFile::open(&path).unwrap(),
                }
            }
        }
    }
}
