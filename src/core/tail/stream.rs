//! The lines of a log from a place on, as if it were one file that only grows.
//!
//! ```text
//! read on ─▶ no more ─▶ is this still the log? ── yes ─▶ wait (whoever reads does that)
//!    ▲                          │ no: rotated, removed
//!    └── the next younger file ◀┘
//! ```
//!
//! Always holds: of a log whose lines have seqs, no line is given twice and they ascend, whatever is done to
//! its files: only another journal begins anew; a line that stands in a file when it is looked at is not passed
//! by, but for files that are gone by then. Owner: the command that prints.

use super::chain::{Chain, FileId, LogFile, Place, named};
use super::line::Stamp;
use super::scan::{self, Forward, Read};
use crate::core::events::rotated;
use crate::core::limits::LOG_FILES;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// So much of the last line is remembered, to know the file again by: more than the stamp.
const MARK_BYTES: usize = 56;
/// A log that is rotated meanwhile is looked at again so often, before the next look.
const TRIES: usize = 16;

/// What orders the lines of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Their seq.
    Seq,
    /// Nothing but the file: the broker's own log.
    Written,
}

/// Names the journal that a log is of; `None` when nobody can say.
pub type Journal = Box<dyn Fn() -> Option<u128>>;

struct Open {
    file: LogFile,
    forward: Forward,
    /// Where the last line began that was read, and its first bytes.
    mark: Option<(u64, Vec<u8>)>,
}

impl Open {
    fn new(place: Place) -> Self {
        Open { file: place.file, forward: Forward::new(place.at), mark: None }
    }

    /// Whether what was read of the file still stands in it: it was not cut, or was completed as it had been.
    fn is_intact(&self) -> io::Result<bool> {
        let file = &self.file.file;
        if file.metadata()?.len() < self.forward.at() {
            return Ok(false);
        }
        let Some((at, mark)) = &self.mark else { return Ok(true) };
        let mut bytes = [0; MARK_BYTES];
        let n = file.read_at(&mut bytes[..mark.len()], *at)?;
        Ok(bytes[..n] == mark[..])
    }
}

/// Reads a log, and on as it grows.
pub struct Stream {
    path: PathBuf,
    order: Order,
    open: Option<Open>,
    /// The last seq that was given.
    seen: Option<u64>,
    journal: Journal,
    known: Option<u128>,
}

impl Stream {
    /// The log at `path` from `place` on, or from the oldest line of a log that is not there yet. Lines with
    /// a seq of at most `seen` are not given.
    pub fn new(path: &Path, order: Order, place: Option<Place>, seen: Option<u64>, journal: Journal) -> Self {
        let known = journal();
        Stream { path: path.to_owned(), order, open: place.map(Open::new), seen, journal, known }
    }

    /// The file that is being read, if there is one: the one to wait for.
    pub fn file(&self) -> Option<&LogFile> {
        self.open.as_ref().map(|open| &open.file)
    }

    /// Gives the lines of one read to `each`. [`Read::End`]: nothing more is there for now.
    ///
    /// # Errors
    /// A file cannot be opened or read; the error names it.
    pub fn read(&mut self, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<Read> {
        for _ in 0..TRIES {
            let Some(open) = &mut self.open else {
                match self.begin_again()? {
                    Some(place) => self.open = Some(Open::new(place)),
                    None => return Ok(Read::End),
                }
                continue;
            };
            let read = if open.is_intact().map_err(|e| named(&self.path, e))? {
                self.lines(each)?
            } else {
                self.find_place()?;
                Read::More
            };
            if read != Read::End {
                return Ok(read);
            }
            match self.successor()? {
                Next::None => return Ok(Read::End),
                Next::LookAgain => {}
                Next::Place(place) => {
                    // Nothing is written to a rotated file: it has no more than this last look shows.
                    let read = self.lines(each)?;
                    if read != Read::End {
                        return Ok(read);
                    }
                    self.open = Some(Open::new(place));
                    return Ok(Read::More);
                }
            }
        }
        Ok(Read::More)
    }

    fn lines(&mut self, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<Read> {
        let Some(open) = &mut self.open else { return Ok(Read::End) };
        let (seen, order) = (&mut self.seen, self.order);
        let mut last = None;
        let read = open.forward.read(&open.file.file, &mut |at, line| {
            match &mut last {
                None => last = Some((at, line[..line.len().min(MARK_BYTES)].to_vec())),
                Some((place, mark)) => {
                    *place = at;
                    mark.clear();
                    mark.extend_from_slice(&line[..line.len().min(MARK_BYTES)]);
                }
            }
            if order == Order::Seq
                && let Some(stamp) = Stamp::of(line)
            {
                if seen.is_some_and(|seen| stamp.seq <= seen) {
                    return ControlFlow::Continue(());
                }
                *seen = Some(stamp.seq);
            }
            each(line)
        });
        if last.is_some() {
            open.mark = last;
        }
        read.map_err(|e| named(&self.path, e))
    }

    /// The file was cut or written anew: where in it to go on.
    fn find_place(&mut self) -> io::Result<()> {
        let (seen, order) = (self.seen, self.order);
        if let Some(open) = &mut self.open {
            let behind = |line: &[u8]| Stamp::of(line).map(|stamp| Some(stamp.seq) <= seen);
            let at = match order {
                Order::Seq => scan::first_not(&open.file.file, &behind),
                Order::Written => Ok(0),
            };
            open.forward.seek(at.map_err(|e| named(&self.path, e))?);
            open.mark = None;
        }
        Ok(())
    }

    /// What to read when the open file has no more.
    fn successor(&mut self) -> io::Result<Next> {
        let Some(open) = &self.open else { return Ok(Next::None) };
        let own = open.file.id;
        if id_of(&self.path) == Some(own) {
            return Ok(Next::None);
        }
        // A file only ever gets a higher number, so looking upwards does not miss it.
        let name = |n: u32| if n == 0 { self.path.clone() } else { rotated(&self.path, n) };
        let Some(n) = (1..=LOG_FILES).find(|n| id_of(&name(*n)) == Some(own)) else {
            return Ok(self.begin_again()?.map_or(Next::None, Next::Place));
        };
        for younger in (0..n).rev() {
            if let Some(file) = LogFile::open(&name(younger))? {
                // As long as this one kept its name, so did the next one.
                let same = id_of(&name(n)) == Some(own) && file.id != own;
                return Ok(if same { Next::Place(Place { file, at: 0 }) } else { Next::LookAgain });
            }
        }
        Ok(Next::None)
    }

    /// Where to go on without a file to go on from: there was none yet, or it was removed.
    fn begin_again(&mut self) -> io::Result<Option<Place>> {
        let journal = (self.journal)();
        if journal.is_some() && self.known.is_some() && journal != self.known {
            // What is in the logs now was not given, whatever its seqs are.
            self.seen = None;
        }
        self.known = journal.or(self.known);
        let own = self.open.as_ref().map(|open| open.file.file.clone());
        match (self.order, own) {
            (Order::Seq, own) => {
                let seen = self.seen;
                let place = Chain::open(&self.path)?.first_not(&|stamp| Some(stamp.seq) <= seen)?;
                // The log is removed and not there again: there is nothing to go on to.
                Ok(place.filter(|_| own.is_none() || id_of(&self.path).is_some()))
            }
            (Order::Written, None) => Ok(Chain::open(&self.path)?.oldest()),
            (Order::Written, Some(own)) => self.written_after(&own),
        }
    }

    /// The oldest file that was written after `own`, which is none of the log's files any more.
    fn written_after(&self, own: &File) -> io::Result<Option<Place>> {
        let time = |file: &File| file.metadata().map(|is| (is.mtime(), is.mtime_nsec()));
        let last = time(own)?;
        for n in (1..=LOG_FILES).rev() {
            if let Some(file) = LogFile::open(&rotated(&self.path, n))?
                && time(&file.file)? > last
            {
                return Ok(Some(Place { file, at: 0 }));
            }
        }
        Ok(LogFile::open(&self.path)?.map(|file| Place { file, at: 0 }))
    }
}

enum Next {
    None,
    LookAgain,
    Place(Place),
}

fn id_of(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|is| (is.dev(), is.ino()))
}
