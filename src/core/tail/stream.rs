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
use crate::core::limits::LOG_FILES;
use crate::core::rotation::rotated;
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
    /// The last seq that was read.
    seen: Option<u64>,
    /// What comes next may have been given already: up to `seen` it is passed over.
    again: bool,
    journal: Journal,
    known: Option<u128>,
}

impl Stream {
    /// The log at `path` from `place` on, or from the oldest line of a log that is not there yet. Lines with
    /// a seq of at most `seen` are not given.
    pub fn new(path: &Path, order: Order, place: Option<Place>, seen: Option<u64>, journal: Journal) -> Self {
        let known = journal();
        Stream { path: path.to_owned(), order, open: place.map(Open::new), seen, again: true, journal, known }
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
                    Some(place) => (self.open, self.again) = (Some(Open::new(place)), true),
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
                // Somebody moved the log away and made it anew; until the broker has opened the new one it writes
                // to the old one, which is closed by then.
                Next::Place(place)
                    if self.order == Order::Written && place.file.file.metadata()?.len() == 0 =>
                {
                    return Ok(Read::End);
                }
                Next::Place(place) => {
                    // Nothing is written to a rotated file: it has no more than this last look shows.
                    let read = self.lines(each)?;
                    if read != Read::End {
                        return Ok(read);
                    }
                    self.open = Some(Open::new(place));
                    self.again = true;
                    return Ok(Read::More);
                }
            }
        }
        Ok(Read::More)
    }

    fn lines(&mut self, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<Read> {
        let Some(open) = &mut self.open else { return Ok(Read::End) };
        let (seen, again, order) = (&mut self.seen, &mut self.again, self.order);
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
                if *again && seen.is_some_and(|seen| stamp.seq <= seen) {
                    return ControlFlow::Continue(());
                }
                // One line with a wrong seq takes no other with it.
                (*seen, *again) = (Some(stamp.seq), false);
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
        self.again = true;
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
            (Order::Seq, _) => {
                let seen = self.seen;
                Chain::open(&self.path)?.first_not(&|stamp| Some(stamp.seq) <= seen)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::rotation::rotate;
    use proptest::prelude::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    /// What may happen to a log between two looks.
    #[derive(Clone, Debug)]
    enum Act {
        Append(usize),
        /// The next line comes in two writes.
        Half,
        Rotate,
        /// A broker that starts after a crash cuts the log and writes the same lines again …
        Cut(usize),
        /// … and is looked at in between.
        CutAndLook(usize),
        /// … and writes them to the next file.
        CutAndRotate(usize),
        Remove,
        Empty,
        Look,
        /// One read, with more to come.
        Glance,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            6 => (1usize..30).prop_map(Act::Append),
            2 => Just(Act::Half),
            3 => Just(Act::Rotate),
            2 => (1usize..40).prop_map(Act::Cut),
            1 => (1usize..40).prop_map(Act::CutAndLook),
            1 => (1usize..40).prop_map(Act::CutAndRotate),
            1 => Just(Act::Remove),
            1 => Just(Act::Empty),
            3 => Just(Act::Look),
            2 => Just(Act::Glance),
        ];
        proptest::collection::vec(act, 0..40)
    }

    struct Log {
        path: PathBuf,
        seq: u64,
        half: bool,
        rotations: u32,
    }

    impl Log {
        fn line(seq: u64) -> String {
            let pad = "x".repeat((seq as usize * 37) % 300);
            format!("{{\"seq\":{seq},\"ts\":{seq},\"vm\":\"a\",\"topic\":\"t\",\"payload\":\"{pad}\"}}\n")
        }

        fn write(&self, text: &str) {
            let mut file = OpenOptions::new().append(true).create(true).open(&self.path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        /// The rest of a half line, and `n` lines.
        fn append(&mut self, n: usize) {
            let mut text = String::new();
            if std::mem::take(&mut self.half) {
                text.push_str(&Self::line(self.seq)[30..]);
            }
            for _ in 0..n {
                self.seq += 1;
                text.push_str(&Self::line(self.seq));
            }
            self.write(&text);
        }

        /// Cuts the last `n` lines; what was cut.
        fn cut(&mut self, n: usize) -> String {
            let Ok(text) = std::fs::read_to_string(&self.path) else { return String::new() };
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            let keep = lines[..lines.len().saturating_sub(n)].iter().map(|l| l.len()).sum::<usize>();
            OpenOptions::new().write(true).open(&self.path).unwrap().set_len(keep as u64).unwrap();
            text[keep..].to_owned()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Whatever happens to the files, every line is given once and in order.
        #[test]
        fn nothing_is_lost_or_repeated(acts in acts(), from_start in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.log");
            let mut log = Log { path: path.clone(), seq: 0, half: false, rotations: 0 };
            if from_start {
                log.append(3);
            }
            let place = Chain::open(&path).unwrap().oldest();
            let mut stream = Stream::new(&path, Order::Seq, place, None, Box::new(|| Some(1)));
            let mut given = Vec::new();
            let read = |stream: &mut Stream, given: &mut Vec<u64>| {
                stream.read(&mut |line| {
                    given.extend(Stamp::of(line).map(|stamp| stamp.seq));
                    ControlFlow::Continue(())
                }).unwrap()
            };
            for act in acts.into_iter().chain([Act::Append(1), Act::Look]) {
                let mut look = |log: &mut Log| {
                    while read(&mut stream, &mut given) != Read::End {}
                    log.rotations = 0;
                };
                match act {
                    Act::Append(n) => log.append(n),
                    Act::Half => {
                        log.append(1);
                        log.seq += 1;
                        log.half = true;
                        log.write(&Log::line(log.seq)[..30]);
                    }
                    Act::Rotate => {
                        if log.rotations == LOG_FILES {
                            look(&mut log);
                        }
                        log.append(0);
                        log.rotations += 1;
                        rotate(&path).unwrap();
                    }
                    Act::Cut(n) => {
                        log.append(0);
                        let text = log.cut(n);
                        log.write(&text);
                    }
                    Act::CutAndRotate(n) => {
                        log.append(0);
                        if log.rotations == LOG_FILES {
                            look(&mut log);
                        }
                        let text = log.cut(n);
                        log.rotations += 1;
                        rotate(&path).unwrap();
                        log.write(&text);
                    }
                    Act::CutAndLook(n) => {
                        log.append(0);
                        let text = log.cut(n);
                        look(&mut log);
                        log.write(&text);
                    }
                    Act::Remove | Act::Empty => {
                        log.append(0);
                        look(&mut log);
                        let _ = match act {
                            Act::Remove => std::fs::remove_file(&path),
                            _ => std::fs::write(&path, ""),
                        };
                    }
                    Act::Look => look(&mut log),
                    Act::Glance => _ = read(&mut stream, &mut given),
                }
            }
            prop_assert_eq!(given, (1..=log.seq).collect::<Vec<u64>>());
        }
    }

    /// A log without seqs: rotated, removed and emptied under its reader.
    #[test]
    fn a_log_without_seqs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker.log");
        let mut stream = Stream::new(&path, Order::Written, None, None, Box::new(|| None));
        let mut look = || {
            let mut given = String::new();
            while stream
                .read(&mut |line| {
                    given.push_str(std::str::from_utf8(line).unwrap());
                    given.push(' ');
                    ControlFlow::Continue(())
                })
                .unwrap()
                != Read::End
            {}
            given
        };
        let write = |text: &str| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        assert_eq!(look(), "");
        write("a\nb\nhal");
        assert_eq!(look(), "a b ");
        write("f\n");
        rotate(&path).unwrap();
        write("c\n");
        rotate(&path).unwrap();
        assert_eq!(look(), "half c ");
        write("d\n");
        assert_eq!(look(), "d ");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look(), "");
        write("e\n");
        assert_eq!(look(), "e ");
        std::fs::write(&path, "").unwrap();
        assert_eq!(look(), "");
        write("g\n");
        assert_eq!(look(), "g ");
        // More than are kept: those that are still there.
        for n in 0..8 {
            write(&format!("{n}\n"));
            rotate(&path).unwrap();
            // Files are told apart by when they were written.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(look(), "0 4 5 6 7 ");
    }

    #[test]
    fn another_journal_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::fs::write(&path, Log::line(7)).unwrap();
        let journal = std::rc::Rc::new(std::cell::Cell::new(1));
        let says = journal.clone();
        let place = Chain::open(&path).unwrap().oldest();
        let mut stream = Stream::new(&path, Order::Seq, place, None, Box::new(move || Some(says.get())));
        let mut look = || {
            let mut given = Vec::new();
            while stream
                .read(&mut |line| {
                    given.push(Stamp::of(line).unwrap().seq);
                    ControlFlow::Continue(())
                })
                .unwrap()
                != Read::End
            {}
            given
        };
        assert_eq!(look(), [7]);
        for (name, want) in [(1, &[8][..]), (2, &[1, 2, 8])] {
            std::fs::remove_file(&path).unwrap();
            assert!(look().is_empty());
            journal.set(name);
            std::fs::write(&path, Log::line(1) + &Log::line(2) + &Log::line(8)).unwrap();
            assert_eq!(look(), want);
        }
    }
}
