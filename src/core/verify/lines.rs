//! The lines of one log, oldest first, from files that were all opened at one moment.
//!
//! A rotation meanwhile renames files that are open here and misleads nobody. Always holds: memory is a few
//! lines, whatever stands in the files; every byte is part of a line, or of something that is none. Nothing is
//! written. Owner: `pass.rs` and `log.rs`; `backup.rs` opens logs with it.

use crate::core::limits::{EVENT_BYTES, LOG_FILES};
use crate::core::log_files::end_of_last;
use crate::core::rotation::nth;
use crate::core::state_root::open_plain;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A line is at most an event and its newline.
const LINE_BYTES: usize = EVENT_BYTES + 1;
/// A log that rotates faster than its names can be read twice is tried so often.
const TRIES: usize = 1000;

/// What stands at a place of a log.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line with its newline.
    Whole(&'a [u8]),
    /// Bytes that no newline follows: a file ends, or there are more than a line can have.
    Broken(&'a [u8]),
    /// The same at the end of the newest file: somebody may be writing it.
    Unfinished(&'a [u8]),
    /// Everything was read.
    End,
}

/// A place in a log, from which lines are read on.
pub struct Lines {
    files: Vec<(PathBuf, File)>,
    current: usize,
    /// The file was read up to here …
    read_to: u64,
    /// … and there is no more.
    eof: bool,
    /// Bytes of the file before `read_to`, those from `start` on not yet taken.
    bytes: Vec<u8>,
    start: usize,
    step: usize,
    /// For each file, where that ends which is vouched for; what lies behind it is cut by the next start.
    ends: Vec<u64>,
}

/// Opens the files of a log, oldest first, so that they are those of one moment.
///
/// # Errors
/// A file cannot be opened, or the log rotates all the time.
pub fn open_log(path: &Path) -> io::Result<Vec<(PathBuf, File)>> {
    let paths: Vec<PathBuf> = (0..=LOG_FILES).rev().map(|n| nth(path, n)).collect();
    for _ in 0..TRIES {
        let mut files = Vec::new();
        for path in &paths {
            match open_plain(path) {
                Ok(file) => files.push((path.clone(), file)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        // A rotation gives every file another name, and an inode that is open is nobody else's.
        let opened = files.iter().map(|(path, file)| Ok((path, file.metadata()?.ino())));
        let opened = opened.collect::<io::Result<Vec<_>>>()?;
        let inode = |path| std::fs::metadata(path).ok().map(|m| m.ino());
        let there = paths.iter().filter_map(|path| Some((path, inode(path)?)));
        if there.eq(opened) {
            return Ok(files);
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "it is rotated faster than it can be opened"))
}

impl Lines {
    /// The lines of these files, oldest first; `step` bytes are read at a time.
    pub fn new(files: Vec<(PathBuf, File)>, step: usize) -> Self {
        Lines {
            files,
            current: 0,
            read_to: 0,
            eof: false,
            bytes: Vec::new(),
            start: 0,
            step,
            ends: Vec::new(),
        }
    }

    /// Marks what the next start cuts: in each file what lies behind its last whole line of at most `seq`. The start
    /// looks for that with the same function.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn end_at(&mut self, seq: u64) -> io::Result<()> {
        let end = |(_, file): &(PathBuf, File)| Ok(end_of_last(file, file.metadata()?.len(), seq)?.0);
        self.ends = self.files.iter().map(end).collect::<io::Result<_>>()?;
        Ok(())
    }

    /// Whether the next start cuts what stands here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_cut(&mut self) -> io::Result<bool> {
        self.fill(1)?;
        let (_, at) = self.place();
        Ok(self.ends.get(self.current).is_some_and(|end| at >= *end))
    }

    /// How many files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The file that is being read, and where in it.
    pub fn place(&self) -> (&Path, u64) {
        let at = self.read_to - (self.bytes.len() - self.start) as u64;
        self.files.get(self.current).map_or((Path::new(""), 0), |(path, _)| (path.as_path(), at))
    }

    /// Whether the next bytes are these.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn starts_with(&mut self, line: &[u8]) -> io::Result<bool> {
        self.fill(1)?;
        self.fill(line.len())?;
        Ok(self.bytes[self.start..].starts_with(line))
    }

    /// What stands here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn line(&mut self) -> io::Result<Line<'_>> {
        self.fill(1)?;
        let mut seen = 0;
        loop {
            let here = &self.bytes[self.start..];
            if let Some(i) = here[seen..].iter().position(|b| *b == b'\n') {
                return Ok(Line::Whole(&self.bytes[self.start..=self.start + seen + i]));
            }
            seen = here.len();
            if seen >= LINE_BYTES {
                return Ok(Line::Broken(&self.bytes[self.start..self.start + LINE_BYTES]));
            }
            if self.eof {
                let last = self.current + 1 >= self.files.len();
                let here = &self.bytes[self.start..];
                return Ok(match (here.is_empty(), last) {
                    (true, _) => Line::End,
                    (false, true) => Line::Unfinished(here),
                    (false, false) => Line::Broken(here),
                });
            }
            self.fill(seen + 1)?;
        }
    }

    /// The line behind the next `bytes`, if it is of the same file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn behind(&mut self, bytes: usize) -> io::Result<Option<&[u8]>> {
        self.fill(bytes + LINE_BYTES)?;
        let behind = self.bytes.get(self.start + bytes..).unwrap_or_default();
        Ok(behind.iter().position(|b| *b == b'\n').map(|end| &behind[..end]))
    }

    /// Takes so many bytes, which were seen.
    pub fn take(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.bytes.len());
    }

    /// Gives the rest of the file up.
    pub fn skip_file(&mut self) {
        (self.eof, self.start) = (true, self.bytes.len());
        if self.current + 1 >= self.files.len() {
            self.files.clear();
            self.ends.clear();
        }
    }

    /// Makes `need` bytes of one file available, as far as it goes; at its end the next one begins.
    fn fill(&mut self, need: usize) -> io::Result<()> {
        while self.bytes.len() - self.start < need {
            if self.eof {
                if self.start < self.bytes.len() || self.current + 1 >= self.files.len() {
                    return Ok(());
                }
                (self.current, self.read_to, self.eof) = (self.current + 1, 0, false);
            }
            let Some((_, file)) = self.files.get(self.current) else {
                self.eof = true;
                return Ok(());
            };
            self.bytes.drain(..self.start);
            self.start = 0;
            let have = self.bytes.len();
            self.bytes.resize(have + self.step, 0);
            let read = loop {
                match file.read_at(&mut self.bytes[have..], self.read_to) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    read => break read,
                }
            };
            self.bytes.truncate(have + read.as_ref().map_or(0, |n| *n));
            let n = read?;
            self.read_to += n as u64;
            self.eof = n == 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever stands in the files, and however little is read at a time: every byte once, in order.
        #[test]
        fn every_byte_is_part_of_one_line(
            parts in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..90), 1..4),
            long in prop_oneof![Just(0usize), Just(LINE_BYTES - 1), Just(LINE_BYTES * 2 + 5)], step in 1usize..40,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let step = if long > 0 { 4096 } else { step };
            let mut files = Vec::new();
            for (i, part) in parts.iter().enumerate() {
                let path = dir.path().join(i.to_string());
                std::fs::write(&path, [part.as_slice(), &vec![b'x'; long]].concat()).unwrap();
                files.push((path.clone(), File::open(path).unwrap()));
            }
            let mut lines = Lines::new(files, step);
            let mut read = vec![Vec::new(); parts.len()];
            loop {
                let (bytes, ends) = match lines.line().unwrap() {
                    Line::End => break,
                    Line::Whole(line) => (line.to_vec(), true),
                    Line::Broken(line) | Line::Unfinished(line) => (line.to_vec(), false),
                };
                prop_assert_eq!(bytes.ends_with(b"\n"), ends);
                prop_assert!(bytes[..bytes.len() - 1].iter().all(|b| *b != b'\n'));
                prop_assert!(lines.starts_with(&bytes).unwrap());
                let (path, at) = lines.place();
                let file: usize = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                prop_assert_eq!(at, read[file].len() as u64);
                read[file].extend_from_slice(&bytes);
                lines.take(bytes.len());
            }
            for (part, read) in parts.iter().zip(read) {
                prop_assert_eq!([part.as_slice(), &vec![b'x'; long]].concat(), read);
            }
        }
    }
}
