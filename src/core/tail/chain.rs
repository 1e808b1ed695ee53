//! A log with its rotated files, and where in them to begin.
//!
//! Always holds: files are opened once and told apart by what they are, not by their names, so a rotation
//! meanwhile neither hides a file nor shows one twice. Owner: `stream.rs`, and the commands at their start.

use super::line::Stamp;
use super::scan;
use crate::core::limits::LOG_FILES;
use crate::core::rotation::rotated;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What tells one file from another: device and inode.
pub type FileId = (u64, u64);

/// One file of a log, open.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// What is read.
    pub file: Arc<File>,
    /// What it is.
    pub id: FileId,
}

impl LogFile {
    /// Opens a file; `None` when it is not there.
    ///
    /// # Errors
    /// It is there and cannot be opened; the error names it.
    pub fn open(path: &Path) -> io::Result<Option<LogFile>> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((is, file)) => Ok(Some(LogFile { file: Arc::new(file), id: (is.dev(), is.ino()) })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(named(path, e)),
        }
    }
}

/// The same error, naming the file.
pub fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A file, and where in it a line begins.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub file: LogFile,
    /// Where in it.
    pub at: u64,
}

/// What [`Chain::last`] is told of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It counts.
    Keep,
    /// It does not.
    Pass,
    /// Neither this line nor one before it counts.
    Stop,
}

/// The files of a log, oldest first.
#[derive(Debug)]
pub struct Chain {
    path: PathBuf,
    files: Vec<LogFile>,
}

impl Chain {
    /// Opens what there is of the log at `path`; nothing at all is no error.
    ///
    /// # Errors
    /// A file is there and cannot be opened.
    pub fn open(path: &Path) -> io::Result<Chain> {
        let mut files: Vec<LogFile> = Vec::new();
        // From the youngest on: a rotation meanwhile shows a file again, and never passes one by.
        for path in std::iter::once(path.to_owned()).chain((1..=LOG_FILES).map(|n| rotated(path, n))) {
            if let Some(file) = LogFile::open(&path)?
                && files.iter().all(|known| known.id != file.id)
            {
                files.insert(0, file);
            }
        }
        Ok(Chain { path: path.to_owned(), files })
    }

    /// Whether there is no file of this log.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn named<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|e| named(&self.path, e))
    }

    /// Before the oldest line; `None` when there is no file.
    pub fn oldest(&self) -> Option<Place> {
        self.files.first().map(|file| Place { file: file.clone(), at: 0 })
    }

    /// Behind the last whole line; `None` when there is no file.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn end(&self) -> io::Result<Option<Place>> {
        let Some(file) = self.files.last() else { return Ok(None) };
        let at = self.named(scan::whole_end(&file.file))?;
        Ok(Some(Place { file: file.clone(), at }))
    }

    /// Before the first line that is not `behind`, or the end; `None` when there is no file. Reads a few
    /// lines of each file.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn first_not(&self, behind: &dyn Fn(Stamp) -> bool) -> io::Result<Option<Place>> {
        let mut found = None;
        // The youngest file that has a line which is behind has the first that is not, or it ends with the former.
        for file in self.files.iter().rev() {
            let at = self.named(scan::first_not(&file.file, &|line| Stamp::of(line).map(behind)))?;
            let end = self.named(scan::whole_end(&file.file))?;
            if found.is_none() || at < end {
                found = Some(Place { file: file.clone(), at });
            }
            if self.named(has_stamp_before(file, at))? {
                break;
            }
        }
        Ok(found)
    }

    /// Before the first of the last `n` lines that count, of those before `end`; `end` when none does.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn last(&self, n: u64, end: &Place, look: &mut dyn FnMut(&[u8]) -> Look) -> io::Result<Place> {
        let mut place = end.clone();
        let mut left = n;
        for file in self.up_to(end) {
            if left == 0 {
                break;
            }
            let from = if file.id == end.file.id { end.at } else { self.named(scan::whole_end(&file.file))? };
            let flow = self.named(scan::backward(&file.file, from, &mut |at, line| {
                match look(line) {
                    Look::Pass => return ControlFlow::Continue(()),
                    Look::Stop => left = 0,
                    Look::Keep => {
                        place = Place { file: file.clone(), at };
                        left -= 1;
                    }
                }
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }))?;
            if flow.is_break() {
                break;
            }
        }
        Ok(place)
    }

    /// The stamp of the last line before `end` that has one.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn stamp_before(&self, end: &Place) -> io::Result<Option<Stamp>> {
        let mut found = None;
        self.last(1, end, &mut |line| {
            found = Stamp::of(line);
            if found.is_some() { Look::Keep } else { Look::Pass }
        })?;
        Ok(found)
    }

    /// The files up to that of `end`, youngest first.
    fn up_to<'a>(&'a self, end: &Place) -> impl Iterator<Item = &'a LogFile> {
        let last = self.files.iter().position(|file| file.id == end.file.id);
        self.files[..last.map_or(0, |i| i + 1)].iter().rev()
    }
}

fn has_stamp_before(file: &LogFile, end: u64) -> io::Result<bool> {
    let mut found = false;
    _ = scan::backward(&file.file, end, &mut |_, line| {
        found = Stamp::of(line).is_some();
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    fn line(seq: u64, pad: usize) -> String {
        let payload = "x".repeat(pad);
        format!(
            "{{\"seq\":{seq},\"ts\":{},\"vm\":\"a\",\"topic\":\"t\",\"payload\":\"{payload}\"}}\n",
            seq / 3
        )
    }

    /// Every line from a place on, over all files.
    fn from(chain: &Chain, place: &Place) -> Vec<String> {
        let first = chain.files.iter().position(|file| file.id == place.file.id).unwrap();
        let mut lines = Vec::new();
        for (i, file) in chain.files[first..].iter().enumerate() {
            let mut bytes = vec![0; file.file.metadata().unwrap().len() as usize];
            file.file.read_exact_at(&mut bytes, 0).unwrap();
            let at = if i == 0 { place.at as usize } else { 0 };
            let text = String::from_utf8(bytes[at..].to_vec()).unwrap();
            lines.extend(text.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(str::to_owned));
        }
        lines
    }

    proptest! {
        /// Wherever a log was rotated and whatever stands at the ends of its files: beginning somewhere shows
        /// what reading through shows from there on.
        #[test]
        fn places_agree_with_reading_through(
            files in proptest::collection::vec(
                (proptest::collection::vec((1u64..4, 0usize..300), 0..40), prop_oneof![Just(""), Just("{\"seq\":1,"), Just("\nno event\n")]),
                0..6),
            wanted in 0u64..200, ts in 0u64..70, n in 0u64..60, odd in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.log");
            let (mut seq, mut all) = (0, Vec::new());
            for (i, (lines, end)) in files.iter().enumerate() {
                let mut text = String::new();
                for (step, pad) in lines {
                    seq += step;
                    text.push_str(&line(seq, *pad));
                }
                text.push_str(end);
                all.extend(text.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(str::to_owned));
                let name = files.len() - 1 - i;
                if name <= LOG_FILES as usize {
                    std::fs::write(if name == 0 { path.clone() } else { rotated(&path, name as u32) }, text).unwrap();
                } else {
                    all.clear();
                }
            }
            let chain = Chain::open(&path).unwrap();
            prop_assert_eq!(chain.is_empty(), files.is_empty());
            let Some(oldest) = chain.oldest() else { return Ok(()) };
            prop_assert_eq!(from(&chain, &oldest), all.clone());
            let end = chain.end().unwrap().unwrap();
            prop_assert_eq!(from(&chain, &end), Vec::<String>::new());
            let stamp = |line: &String| Stamp::of(line.trim_end().as_bytes());
            prop_assert_eq!(chain.stamp_before(&end).unwrap(), all.iter().rev().find_map(stamp));

            for behind in [&|s: Stamp| s.seq < wanted, &|s: Stamp| s.ts < ts] as [&dyn Fn(Stamp) -> bool; 2] {
                let place = chain.first_not(behind).unwrap().unwrap();
                let first = all.iter().position(|l| stamp(l).is_some_and(|s| !behind(s))).unwrap_or(all.len());
                let shown: Vec<String> = from(&chain, &place).into_iter().filter(|l| stamp(l).is_some()).collect();
                let want: Vec<String> = all[first..].iter().filter(|l| stamp(l).is_some()).cloned().collect();
                prop_assert_eq!(shown, want);
            }
            let counts = |l: &String| stamp(l).is_some_and(|s| !odd || s.seq % 2 == 1);
            let place = chain.last(n, &end, &mut |line| match Stamp::of(line) {
                Some(stamp) if stamp.seq < wanted / 2 => Look::Stop,
                Some(stamp) if !odd || stamp.seq % 2 == 1 => Look::Keep,
                _ => Look::Pass,
            }).unwrap();
            let shown: Vec<String> = from(&chain, &place).into_iter().filter(counts).collect();
            let all: Vec<String> = all.into_iter().filter(|l| counts(l) && stamp(l).unwrap().seq >= wanted / 2).collect();
            prop_assert_eq!(shown, all[all.len().saturating_sub(n as usize)..].to_vec());
        }
    }
}
