//! The files of the logs: appended in rounds, rotated, cut after a crash.
//!
//! Always holds: a file has whole lines in ascending `seq`, but for what a crash left behind its last
//! synced one, which [`LogFiles::cut`] removes; so many files are open at most, the longest unused is
//! closed first. Owner: the thread of `logs.rs`.

use super::append_file::{AppendFile, Look, say_changed};
use super::limits::LOG_FILES;
use super::rotation::{base, is_log, nth, rotate};
use super::state_root::sync_dir;
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// So much memory for lines is kept from round to round, in bytes.
const KEPT_BYTES: usize = 8 * 1024 * 1024;

/// A log is synced when so much of it was written, in bytes, and not all of it at once at the checkpoint: the journal's
/// commits stand in the same line at the disk.
const SYNC_BYTES: usize = 4 * 1024 * 1024;

struct Open {
    file: AppendFile,
    unsynced: usize,
    used: u64,
    /// That somebody else changes it was said.
    said: bool,
}

/// All logs of a folder.
pub struct LogFiles {
    dir: PathBuf,
    open: HashMap<Box<[u8]>, Open>,
    limit: usize,
    /// A file rotates at this size.
    log_bytes: u64,
    rounds: u64,
    /// Lines of this round, by log.
    pending: HashMap<Box<[u8]>, Vec<u8>>,
    /// Logs written since the last sync.
    dirty: BTreeSet<Box<[u8]>>,
    /// The folder has entries that are not durable.
    entries: bool,
    /// A sync failed: what it was about may be gone though it can still be read.
    suspect: bool,
    /// How often a file was not as it had been left.
    changed: u64,
}

impl LogFiles {
    /// The logs of `dir`, of which `limit` are open at most; a file rotates at `log_bytes`.
    pub fn new(dir: PathBuf, limit: usize, log_bytes: u64) -> Self {
        LogFiles {
            dir,
            open: HashMap::new(),
            limit,
            log_bytes,
            rounds: 0,
            pending: HashMap::new(),
            dirty: BTreeSet::new(),
            // Those of an earlier process: it may have been killed before it synced them.
            entries: true,
            suspect: false,
            changed: 0,
        }
    }

    fn path(&self, log: &[u8]) -> PathBuf {
        self.dir.join(format!("{}.log", String::from_utf8_lossy(log)))
    }

    /// Whether there is a log of that name.
    pub fn exists(&self, log: &[u8]) -> bool {
        self.open.contains_key(log) || self.path(log).exists()
    }

    /// Adds a line, newline included, to this round.
    pub fn push(&mut self, log: &[u8], line: &[u8]) {
        match self.pending.get_mut(log) {
            Some(lines) => lines.extend_from_slice(line),
            None => drop(self.pending.insert(log.into(), line.to_vec())),
        }
    }

    /// Writes the round's lines, one write a log.
    ///
    /// # Errors
    /// A write failed: some logs have the round's lines, some a part of them, some none; call
    /// [`LogFiles::cut`] before the next round.
    pub fn flush(&mut self) -> io::Result<()> {
        self.rounds += 1;
        let mut pending = std::mem::take(&mut self.pending);
        let mut written = Ok(());
        for (log, lines) in pending.iter_mut().filter(|(_, lines)| !lines.is_empty()) {
            written = self.append(log, lines);
            if written.is_err() {
                break;
            }
            lines.clear();
        }
        // The buffers are kept for the next round, unless they have become many or large.
        if written.is_ok() && pending.values().map(Vec::capacity).sum::<usize>() <= KEPT_BYTES {
            self.pending = pending;
        }
        written
    }

    fn append(&mut self, log: &[u8], lines: &[u8]) -> io::Result<()> {
        self.look(log)?;
        self.ensure_open(log)?;
        let log_bytes = self.log_bytes;
        if let Some(open) =
            self.open.get(log).filter(|o| o.file.size() > 0 && o.file.size() + lines.len() as u64 > log_bytes)
        {
            let synced = open.file.sync();
            self.suspect |= synced.is_err();
            synced?;
            self.entries = true;
            rotate(&self.path(log))?;
            self.open.remove(log);
            self.ensure_open(log)?;
        }
        if let Some(open) = self.open.get_mut(log) {
            open.file.append(lines)?;
            open.used = self.rounds;
            open.unsynced += lines.len();
            if open.unsynced >= SYNC_BYTES {
                let synced = open.file.sync();
                self.suspect |= synced.is_err();
                synced?;
                open.unsynced = 0;
            }
        }
        if !self.dirty.contains(log) {
            self.dirty.insert(log.into());
        }
        Ok(())
    }

    /// Looks what others did to an open log since the last round. One that was removed begins again.
    fn look(&mut self, log: &[u8]) -> io::Result<()> {
        let Some(open) = self.open.get_mut(log) else { return Ok(()) };
        match open.file.look()? {
            Look::Same => {}
            Look::Removed => drop(self.open.remove(log)),
            Look::Changed { expected, found } => {
                self.changed += 1;
                if !std::mem::replace(&mut open.said, true) {
                    say_changed(&self.path(log), Some(expected), found);
                }
            }
        }
        Ok(())
    }

    /// How often a file was not as it had been left, since this was asked last.
    pub fn take_changed(&mut self) -> u64 {
        std::mem::take(&mut self.changed)
    }

    fn ensure_open(&mut self, log: &[u8]) -> io::Result<()> {
        if self.open.contains_key(log) {
            return Ok(());
        }
        if self.open.len() >= self.limit
            && let Some(oldest) =
                self.open.iter().min_by_key(|(_, open)| open.used).map(|(log, _)| log.clone())
        {
            self.open.remove(&oldest);
        }
        let path = self.path(log);
        let file = AppendFile::open(&path)?;
        self.entries |= file.size() == 0;
        if file.is_torn() {
            // It was left with whole lines when it was closed.
            self.changed += 1;
            say_changed(&path, None, file.size());
        }
        let said = file.is_torn();
        self.open.insert(log.into(), Open { file, unsynced: 0, used: self.rounds, said });
        Ok(())
    }

    /// Makes everything that was flushed durable.
    ///
    /// # Errors
    /// A sync failed, now or since the last [`LogFiles::cut`]: a second one would say `Ok` of pages that
    /// the first one gave up.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.suspect {
            return Err(io::Error::other("an earlier sync of the logs failed"));
        }
        let synced = self.sync_all();
        self.suspect = synced.is_err();
        synced
    }

    fn sync_all(&mut self) -> io::Result<()> {
        for log in &self.dirty {
            match self.open.get(log) {
                Some(open) => open.file.sync()?,
                // Closed since, or removed by somebody.
                None => match File::open(self.path(log)) {
                    Ok(file) => file.sync_data()?,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                },
            }
        }
        if std::mem::take(&mut self.entries) {
            sync_dir(&self.dir)?;
        }
        self.dirty.clear();
        Ok(())
    }

    /// A sync failed: only what an earlier one made durable can be relied on.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Cuts every log behind its last whole line with a seq of at most `seq`. The logs that are seen to
    /// lack lines up to `seq`, each with the last that it has: `dense`, which has them all, and those that
    /// end with a part of such a line. Of those that were seen to before, `lacking` says what they have.
    ///
    /// # Errors
    /// The folder or a log cannot be read or cut.
    pub fn cut(
        &mut self,
        seq: u64,
        dense: &[u8],
        lacking: &HashMap<Box<[u8]>, u64>,
    ) -> io::Result<Vec<(Box<[u8]>, u64)>> {
        self.open.clear();
        self.pending.clear();
        self.entries = true;
        let mut found = Vec::new();
        for log in self.logs()? {
            let path = self.path(&log);
            let seq = lacking.get(&log).map_or(seq, |last| seq.min(*last));
            // The last line that is kept, of the newest file that has one.
            let (mut last, mut torn, mut is_short) = (0, false, false);
            for n in 0..=LOG_FILES {
                let path = nth(&path, n);
                let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
                let Some(cut) = cut_file(&path, seq).map_err(named)? else { continue };
                if n == 0 {
                    (torn, is_short) = (cut.torn, *log == *dense && cut.size > 0);
                    if cut.is_cut() {
                        self.dirty.insert(log.clone());
                    }
                } else if last == 0 || cut.is_cut() {
                    // Nothing is written to a rotated file that would sync it later. It may have been cut by an earlier
                    // process, which was killed before its sync.
                    File::open(&path).and_then(|file| file.sync_data()).map_err(named)?;
                }
                last = if last == 0 { cut.last } else { last };
            }
            if last < seq && (torn || is_short) {
                found.push((log, last));
            }
        }
        self.suspect = false;
        Ok(found)
    }

    /// The names of the logs that have a file.
    fn logs(&self) -> io::Result<BTreeSet<Box<[u8]>>> {
        let paths = std::fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path()));
        let paths = paths.collect::<io::Result<Vec<PathBuf>>>()?;
        let names = paths.iter().filter(|path| is_log(path)).filter_map(|path| path.file_name());
        Ok(names.map(|name| base(name.as_encoded_bytes()).into()).collect())
    }
}

/// What [`cut_file`] found.
struct Cut {
    /// How large it was.
    size: u64,
    /// The last seq that it has, 0 when none.
    last: u64,
    /// Where that line ends.
    end: u64,
    /// A part of a line that it should have was behind that.
    torn: bool,
}

impl Cut {
    fn is_cut(&self) -> bool {
        self.end < self.size
    }
}

/// Cuts a file behind its last whole line of at most `seq`; `None` when it is not there.
fn cut_file(path: &Path, seq: u64) -> io::Result<Option<Cut>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let size = file.metadata()?.len();
    let (end, last) = end_of_last(&file, size, seq)?;
    let mut torn = false;
    if end < size {
        let mut start = [0; 32];
        let n = (size - end).min(start.len() as u64) as usize;
        file.read_exact_at(&mut start[..n], end)?;
        torn = begins_at_most(&start[..n], seq);
        tracing::info!(log = %path.display(), bytes = size - end, "log: lines behind the checkpoint are cut; the journal has them");
        file.set_len(end)?;
    }
    Ok(Some(Cut { size, last, end, torn }))
}

/// Whether this is the beginning of a line with a seq of at most `seq`, as far as it can be seen.
fn begins_at_most(bytes: &[u8], seq: u64) -> bool {
    const BEGIN: &[u8] = b"{\"seq\":";
    let Some(rest) = bytes.strip_prefix(BEGIN) else { return !bytes.is_empty() && BEGIN.starts_with(bytes) };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let found = std::str::from_utf8(&rest[..digits]).ok().and_then(|text| text.parse::<u64>().ok());
    found.is_none_or(|found| found <= seq || digits == rest.len())
}

/// Where the last whole line with a seq of at most `seq` ends, and its seq; zeros when there is none. Reads
/// backwards.
pub(super) fn end_of_last(file: &File, size: u64, seq: u64) -> io::Result<(u64, u64)> {
    const STEP: u64 = 256 * 1024;
    // Bytes of the file from `at` on that belong to a line which begins before `at`.
    let (mut at, mut carried) = (size, Vec::new());
    while at > 0 {
        let from = at.saturating_sub(STEP);
        let mut bytes = vec![0; (at - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        bytes.extend_from_slice(&carried);
        let mut end = bytes.len();
        while let Some(newline) = bytes[..end].iter().rposition(|b| *b == b'\n') {
            let start = bytes[..newline].iter().rposition(|b| *b == b'\n').map(|i| i + 1);
            let whole = start.or((from == 0).then_some(0));
            match whole {
                Some(start) => match line_seq(&bytes[start..newline]).filter(|found| *found <= seq) {
                    Some(found) => return Ok((from + newline as u64 + 1, found)),
                    None if start > 0 => end = start,
                    None => return Ok((0, 0)),
                },
                None => {
                    end = newline + 1;
                    break;
                }
            }
        }
        // A line is at most an event; more than that without a newline is none of ours.
        bytes.truncate(end.min(4 * crate::core::limits::EVENT_BYTES));
        carried = bytes;
        at = from;
    }
    Ok((0, 0))
}

/// The seq of a line `{"seq":N,…}`.
pub fn line_seq(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"seq\":")?;
    let end = digits.iter().position(|b| *b == b',')?;
    if !line.ends_with(b"}") {
        return None;
    }
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// The files of a log, oldest first, that are there.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    (0..=LOG_FILES).rev().map(|n| nth(path, n)).filter(|p| p.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::limits::LOG_MIN_BYTES;
    use proptest::prelude::*;

    proptest! {
        /// Whatever a crash left behind the last line of at most `seq`: it goes, and nothing else.
        #[test]
        fn cut_keeps_exactly_the_whole_lines(
            lens in proptest::collection::vec(0usize..3000, 0..300), seq in 0u64..320, torn in prop_oneof![
                Just(Vec::new()), Just(vec![0u8; 5000]), Just(b"{\"seq\":1,\"half".to_vec()), Just(b"\n\n\n".to_vec())
            ]
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.log");
            let (mut bytes, mut want) = (Vec::new(), 0);
            for (i, len) in lens.iter().enumerate() {
                bytes.extend_from_slice(format!("{{\"seq\":{},\"p\":\"{}\"}}\n", i + 1, "x".repeat(*len)).as_bytes());
                if (i as u64) < seq {
                    want = bytes.len();
                }
            }
            bytes.extend_from_slice(&torn);
            std::fs::write(&path, &bytes).unwrap();
            LogFiles::new(dir.path().into(), 4, LOG_MIN_BYTES).cut(seq, b"bus", &HashMap::new()).unwrap();
            prop_assert_eq!(std::fs::read(&path).unwrap().len(), want);
        }
    }

    /// The kernel says once that pages could not be written, and forgets them.
    #[test]
    fn after_a_failed_sync_nothing_is_vouched_for_until_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = LogFiles::new(dir.path().into(), 4, LOG_MIN_BYTES);
        logs.push(b"a", b"{\"seq\":1}\n");
        logs.flush().unwrap();
        logs.suspect = true;
        assert!(logs.sync().is_err() && logs.is_suspect());
        assert_eq!(logs.cut(0, b"bus", &HashMap::new()).unwrap(), []);
        assert_eq!(std::fs::read(dir.path().join("a.log")).unwrap(), b"");
        logs.sync().unwrap();
    }

    #[test]
    fn cut_says_what_is_lacking() {
        let line = |seq: u64| format!("{{\"seq\":{seq},\"p\":1}}\n");
        let all = |to: u64| (1..=to).map(line).collect::<String>();
        for (name, text, lacks) in [
            ("bus", all(7), None),
            ("bus", all(9), None),
            ("bus", all(6), Some(6)),
            ("bus", all(6) + "\0\0\0", Some(6)),
            ("bus", String::new(), None),
            ("bus", all(7) + "{\"se", None),
            ("a", all(5), None),
            ("a", all(7) + "{\"seq\":", None),
            ("a", all(5) + "{\"seq\":6,\"p", Some(5)),
            ("a", all(5) + "{\"seq\":8,\"p", None),
            ("a", all(5) + "{\"se", Some(5)),
            ("a", "{\"seq\":1,".to_owned(), Some(0)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(format!("{name}.log")), &text).unwrap();
            let lacking =
                LogFiles::new(dir.path().into(), 4, LOG_MIN_BYTES).cut(7, b"bus", &HashMap::new()).unwrap();
            let want: Vec<(Box<[u8]>, u64)> =
                lacks.into_iter().map(|last| (name.as_bytes().into(), last)).collect();
            assert_eq!(lacking, want, "{name}: {text}");
        }
    }

    /// Rotated twice since the checkpoint: the last line that is kept stands two files back.
    #[test]
    fn cut_looks_through_all_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus.log");
        for (n, seqs) in [(2, 1..=7), (1, 8..=9), (0, 10..=11)] {
            let text: String = seqs.map(|seq| format!("{{\"seq\":{seq},\"p\":1}}\n")).collect();
            std::fs::write(nth(&path, n), text).unwrap();
        }
        let lacking = LogFiles::new(dir.path().into(), 4, LOG_MIN_BYTES).cut(7, b"bus", &HashMap::new());
        assert_eq!(lacking.unwrap(), []);
        let sizes = [0, 1, 2].map(|n| std::fs::metadata(nth(&path, n)).unwrap().len());
        assert_eq!((sizes[0], sizes[1], sizes[2] > 0), (0, 0, true));
    }

    #[test]
    fn rotates_and_begins_again_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = LogFiles::new(dir.path().into(), 1, LOG_MIN_BYTES);
        let path = dir.path().join("a.log");
        logs.push(b"a", b"{\"seq\":1}\n");
        logs.push(b"b", b"{\"seq\":1}\n");
        logs.flush().unwrap();
        let long = format!("{{\"seq\":2,\"p\":\"{}\"}}\n", "x".repeat(LOG_MIN_BYTES as usize - 30));
        logs.push(b"a", long.as_bytes());
        logs.push(b"b", b"{\"seq\":2}\n");
        logs.flush().unwrap();
        logs.push(b"a", b"{\"seq\":4}\n");
        logs.flush().unwrap();
        assert_eq!(files_of(&path), [nth(&path, 1), path.clone()]);
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"seq\":4}\n");
        std::fs::remove_file(&path).unwrap();
        logs.push(b"a", b"{\"seq\":5}\n");
        logs.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"seq\":5}\n");
        logs.sync().unwrap();
    }
}
