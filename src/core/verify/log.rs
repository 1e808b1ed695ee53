//! One log against the journal: event by event, line by line.
//!
//! ```text
//! journal:  5    6    7    8    9  …       each event of this log is met once, in order
//! log:      5    6    7x   9    9  …   ─▶  7 is altered, 8 is missing, 9 stands twice
//! ```
//!
//! Always holds: a line is right only when it is the journal's, byte for byte; up to [`Bounds::whole`] every
//! event must be there, from the log's first line on (`bus.log` must have a line at all). What the next start cuts and
//! writes anew is counted and no finding, but for lines of events that the journal does not have. Lines that the journal
//! cannot speak for (older, or lost by it) are counted. Owner: `pass.rs`.

use super::finding::{Finding, Kind};
use super::lines::{Line, Lines};
use crate::core::limits::{FINDINGS_SHOWN, LOG_FILES};
use crate::core::log_files::line_seq;
use serde::de::IgnoredAny;
use std::io;
use std::ops::Range;

/// The log that has every event.
pub const SHARED: &str = "bus";

/// What the journal can say about logs.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The journal's oldest event.
    pub first: u64,
    /// Its newest.
    pub head: u64,
    /// Every log has every event of its own up to here.
    pub whole: u64,
    /// The newest that is known durable: so far a log is written anew.
    pub durable: u64,
    /// Lines of later events are not looked at: a broker is writing them.
    pub newest: u64,
    /// A broker is writing.
    pub live: bool,
    /// Seqs that the journal has lost, as far as it was read.
    pub lost: Vec<Range<u64>>,
}

impl Bounds {
    fn has_lost(&self, seq: u64) -> bool {
        self.lost.iter().any(|range| range.contains(&seq))
    }

    /// After a disorderly stop the next start cuts what lies behind `whole`; after an orderly one nothing does.
    pub(super) fn is_unclean(&self) -> bool {
        !self.live && self.whole < self.head
    }
}

/// What stands at a place of the log.
enum Look {
    Event(u64),
    Garbage,
    /// The beginning of a line, of this event if that can be told.
    Unfinished(Option<u64>),
    End,
}

/// The check of one log.
pub struct LogCheck {
    /// The log's name.
    pub name: String,
    lines: Lines,
    /// The last line that was right, or could be.
    last: Option<u64>,
    /// The next line is of this event; no earlier one has to be looked for.
    ahead: u64,
    /// Nothing right stood behind the last finding.
    unbroken: bool,
    /// Missing before the first line, of a log that has every event.
    begins_late: Option<Finding>,
    /// Missing behind [`Bounds::whole`]: only wrong when more lines follow.
    pending: Option<Finding>,
    /// What was found, in order; [`FINDINGS_SHOWN`] at most.
    pub findings: Vec<Finding>,
    /// How many further lines something is wrong with.
    pub more: u64,
    /// Lines that are right.
    pub right: u64,
    /// Lines older than the journal.
    pub older: u64,
    /// Lines of events that the journal has lost.
    pub lost: u64,
    /// Bytes that the next start cuts.
    pub cut: u64,
    /// The first of these that no crash leaves: with no line before it the next start does not see what is missing.
    foreign: Option<Finding>,
    /// What is no damage and good to know.
    pub note: Option<String>,
    /// Takes the lines that are kept and the journal's.
    keep: Option<Box<Keep>>,
}

/// Takes a line that a repaired log has.
pub type Keep = dyn FnMut(&[u8]) -> io::Result<()>;

impl LogCheck {
    /// Of these lines. `keep` gets every line of a repaired log: good ones that the journal cannot speak for,
    /// and the journal's.
    pub fn new(name: String, lines: Lines, keep: Option<Box<Keep>>) -> Self {
        LogCheck {
            name,
            lines,
            last: None,
            ahead: 0,
            unbroken: false,
            begins_late: None,
            pending: None,
            findings: Vec::new(),
            more: 0,
            right: 0,
            older: 0,
            lost: 0,
            cut: 0,
            foreign: None,
            note: None,
            keep,
        }
    }

    /// How many files it has.
    pub fn files(&self) -> usize {
        self.lines.files()
    }

    /// Something is wrong.
    pub fn is_damaged(&self) -> bool {
        !self.findings.is_empty()
    }

    /// The journal has `line` as the event `seq` of this log, which must or may have it.
    ///
    /// # Errors
    /// A kept line cannot be written.
    pub fn meet(&mut self, seq: u64, line: &[u8], must: bool, bounds: &Bounds) -> io::Result<()> {
        if !self.find(seq, line, bounds)? && must {
            match self.last {
                Some(_) => self.misses(seq, bounds),
                None if self.name == SHARED && seq <= bounds.whole => match &mut self.begins_late {
                    Some(missing) => (missing.last_seq, missing.lines) = (Some(seq), missing.lines + 1),
                    None => self.begins_late = Some(self.finding(Kind::Missing, Some(seq))),
                },
                None => {}
            }
        }
        match &mut self.keep {
            Some(keep) if seq <= bounds.durable => keep(line),
            _ => Ok(()),
        }
    }

    /// Looks for the line of `seq`; whether there is one, right or not.
    fn find(&mut self, seq: u64, line: &[u8], bounds: &Bounds) -> io::Result<bool> {
        while seq >= self.ahead {
            if matches!(self.lines.is_cut(), Ok(false)) && matches!(self.lines.starts_with(line), Ok(true)) {
                self.lines.take(line.len());
                self.goes_on(seq);
                self.right += 1;
                return Ok(true);
            }
            match self.look(bounds) {
                (Look::End, _) => self.ahead = u64::MAX,
                // The end of the log; what must stand before it is missing.
                (Look::Unfinished(_), _) => self.ahead = u64::MAX,
                (Look::Garbage, bytes) => self.wrong(Kind::Garbage, None, bytes),
                (Look::Event(found), bytes) if found < seq => self.stale(found, bytes, bounds)?,
                (Look::Event(found), bytes) if found == seq => {
                    let unbroken = self.unbroken;
                    self.goes_on(seq);
                    self.unbroken = unbroken;
                    self.wrong(Kind::Altered, Some(seq), bytes);
                    return Ok(true);
                }
                (Look::Event(found), bytes) => {
                    // Of this line and the next one the greater is the odd one out.
                    let next = self.lines.behind(bytes).ok().flatten().and_then(line_seq);
                    match next.is_some_and(|next| (seq..found).contains(&next)) {
                        true => self.wrong(Kind::OutOfOrder, Some(found), bytes),
                        false => self.ahead = found,
                    }
                }
            }
        }
        Ok(false)
    }

    /// The journal was read to its end: no line is left that could be right.
    ///
    /// # Errors
    /// A kept line cannot be written.
    pub fn finish(&mut self, bounds: &Bounds) -> io::Result<()> {
        self.finish_lines(bounds)?;
        // Without a checkpoint the next start writes all of it anew, whatever stands there.
        if let Some(foreign) = self.foreign.take().filter(|_| self.last.is_none() && bounds.whole > 0) {
            self.add(foreign);
        }
        let Some(missing) = self.begins_late.take() else { return Ok(()) };
        // A running broker may have made it anew a moment ago.
        if self.last.is_none() && !(bounds.live && self.files() > 0) {
            self.unbroken = false;
            self.add(missing);
        } else if !self.is_damaged() && self.files() <= LOG_FILES as usize {
            // No rotation took them.
            let events = missing.events().unwrap_or_default();
            self.note = Some(format!(
                "{}.log begins later than the journal: {events} are not in it; it was removed, or a part of it, and began anew",
                self.name
            ));
        }
        Ok(())
    }

    fn finish_lines(&mut self, bounds: &Bounds) -> io::Result<()> {
        loop {
            match self.look(bounds) {
                (Look::End, _) => return Ok(()),
                (Look::Unfinished(begins), _)
                    if bounds.live && begins.is_none_or(|seq| seq > bounds.whole) =>
                {
                    return Ok(());
                }
                (Look::Unfinished(_) | Look::Garbage, bytes) => self.wrong(Kind::Garbage, None, bytes),
                (Look::Event(found), _) if found > bounds.newest => return Ok(()),
                (Look::Event(found), bytes) => self.stale(found, bytes, bounds)?,
            }
        }
    }

    /// What stands here, and how many bytes it is. What the next start cuts is passed over.
    fn look(&mut self, bounds: &Bounds) -> (Look, usize) {
        while matches!(self.lines.is_cut(), Ok(true)) {
            let (look, bytes) = self.look_here(bounds);
            match look {
                Look::End => return (Look::End, 0),
                // The logs have only what was durable: so the journal has lost it.
                Look::Event(seq) if seq > bounds.head => self.wrong(Kind::NotInJournal, Some(seq), bytes),
                Look::Garbage if self.foreign.is_none() && !self.has_zeros() => {
                    self.foreign = Some(self.finding(Kind::Garbage, None));
                    self.lines.take(bytes);
                }
                _ => self.lines.take(bytes),
            }
            self.cut += bytes as u64;
        }
        self.look_here(bounds)
    }

    /// Whether what stands here has a hole: a crash leaves such.
    fn has_zeros(&mut self) -> bool {
        match self.lines.line() {
            Ok(Line::Whole(line) | Line::Broken(line) | Line::Unfinished(line)) => line.contains(&0),
            Ok(Line::End) | Err(_) => false,
        }
    }

    fn look_here(&mut self, bounds: &Bounds) -> (Look, usize) {
        match self.lines.line() {
            Ok(Line::End) => (Look::End, 0),
            // A line that is being written begins like one.
            Ok(Line::Unfinished(line)) if !may_begin(line) => (Look::Garbage, line.len()),
            Ok(Line::Unfinished(line)) => (Look::Unfinished(begun_seq(line)), line.len()),
            Ok(Line::Broken(line)) => (Look::Garbage, line.len()),
            Ok(Line::Whole(line)) => {
                let seq = line_seq(&line[..line.len() - 1]).filter(|seq| *seq > 0);
                (seq.map_or(Look::Garbage, Look::Event), line.len())
            }
            Err(_) => {
                self.wrong(Kind::Unreadable, None, 0);
                self.lines.skip_file();
                self.look(bounds)
            }
        }
    }

    /// A line of an event that this log does not have here.
    fn stale(&mut self, seq: u64, bytes: usize, bounds: &Bounds) -> io::Result<()> {
        let lost = bounds.has_lost(seq);
        if self.last.is_some_and(|last| seq <= last) {
            let kind = if self.last == Some(seq) { Kind::Repeated } else { Kind::OutOfOrder };
            self.wrong(kind, Some(seq), bytes);
        } else if seq < bounds.first || lost {
            let Ok(Line::Whole(line)) = self.lines.line() else { return Ok(()) };
            // Nobody else can say what it was; so much it must be.
            if serde_json::from_slice::<IgnoredAny>(line).is_err() {
                self.wrong(Kind::Garbage, Some(seq), bytes);
                return Ok(());
            }
            if let Some(keep) = &mut self.keep {
                keep(line)?;
            }
            self.lines.take(bytes);
            self.goes_on(seq);
            *(if lost { &mut self.lost } else { &mut self.older }) += 1;
        } else if seq > bounds.head {
            self.wrong(Kind::NotInJournal, Some(seq), bytes);
        } else {
            self.wrong(Kind::Foreign, Some(seq), bytes);
        }
        Ok(())
    }

    /// There is a line of this log here.
    fn goes_on(&mut self, seq: u64) {
        let pending = self.pending.take();
        pending.into_iter().for_each(|missing| self.add(missing));
        (self.last, self.unbroken) = (Some(seq), false);
    }

    fn misses(&mut self, seq: u64, bounds: &Bounds) {
        if seq <= bounds.whole {
            return self.wrong(Kind::Missing, Some(seq), 0);
        }
        match &mut self.pending {
            Some(missing) => (missing.last_seq, missing.lines) = (Some(seq), missing.lines + 1),
            None => self.pending = Some(self.finding(Kind::Missing, Some(seq))),
        }
    }

    /// The next `bytes` are wrong.
    fn wrong(&mut self, kind: Kind, seq: Option<u64>, bytes: usize) {
        let finding = self.finding(kind, seq);
        self.lines.take(bytes);
        self.add(finding);
    }

    fn finding(&self, kind: Kind, seq: Option<u64>) -> Finding {
        let (path, at) = self.lines.place();
        let log = self.name.clone();
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let file = file.unwrap_or_else(|| format!("{log}.log"));
        Finding { log, file, at, kind, lines: 1, first_seq: seq, last_seq: seq }
    }

    fn add(&mut self, finding: Finding) {
        let full = self.findings.len() >= FINDINGS_SHOWN;
        match self.findings.last_mut() {
            Some(last) if self.unbroken && last.kind == finding.kind && last.file == finding.file => {
                last.lines += finding.lines;
                last.last_seq = finding.last_seq;
            }
            _ if full => {
                self.more += finding.lines;
                // Nothing that is shown goes on with what comes next.
                self.unbroken = false;
                return;
            }
            _ => self.findings.push(finding),
        }
        self.unbroken = true;
    }
}

/// Whether this may be the beginning of a line.
fn may_begin(bytes: &[u8]) -> bool {
    const BEGIN: &[u8] = b"{\"seq\":";
    bytes.starts_with(BEGIN) || BEGIN.starts_with(bytes)
}

/// The seq of a line that may end in the middle.
fn begun_seq(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"seq\":")?.split(|b| *b == b',');
    let digits: Vec<&[u8]> = digits.take(2).collect();
    // A comma behind it says that it is whole.
    std::str::from_utf8(digits.first().filter(|_| digits.len() == 2)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::fs::File;

    /// Event `seq` of the journal; every third one is another log's.
    fn event(seq: u64) -> Option<String> {
        let text = format!("{{\"seq\":{seq},\"p\":\"{}\"}}\n", "x".repeat((seq * 7 % 40) as usize));
        (!seq.is_multiple_of(3)).then_some(text)
    }

    /// What is found in a log with these files, oldest first, of a journal of `first..=head`.
    fn check(files: &[&[u8]], bounds: &Bounds) -> LogCheck {
        let dir = tempfile::tempdir().unwrap();
        let open = |(i, bytes): (usize, &&[u8])| {
            let path = dir.path().join(i.to_string());
            std::fs::write(&path, bytes).unwrap();
            (path.clone(), File::open(path).unwrap())
        };
        let files = files.iter().enumerate().map(open).collect();
        let mut lines = Lines::new(files, 64);
        if bounds.is_unclean() {
            lines.end_at(bounds.whole).unwrap();
        }
        let mut check = LogCheck::new("a".into(), lines, None);
        for seq in bounds.first..=bounds.head {
            if let Some(line) = event(seq).filter(|_| seq <= bounds.newest) {
                check.meet(seq, line.as_bytes(), true, bounds).unwrap();
            }
        }
        check.finish(bounds).unwrap();
        check
    }

    #[derive(Clone, Debug)]
    enum Blow {
        Flip(Index, u8),
        Remove(Index),
        Repeat(Index, Index),
        Insert(Index, Vec<u8>),
        Cut(Index),
    }

    fn blow() -> impl Strategy<Value = Blow> {
        let index = any::<Index>;
        prop_oneof![
            (index(), 1u8..).prop_map(|(at, with)| Blow::Flip(at, with)),
            index().prop_map(Blow::Remove),
            (index(), index()).prop_map(|(from, to)| Blow::Repeat(from, to)),
            (index(), proptest::collection::vec(any::<u8>(), 1..90))
                .prop_map(|(at, what)| Blow::Insert(at, what)),
            index().prop_map(Blow::Cut),
        ]
    }

    proptest! {
        /// A log that begins anywhere, rotated anywhere, and ends anywhere behind what is vouched for, has nothing
        /// wrong; one blow to what is vouched for, and it has.
        #[test]
        fn right_is_right_and_one_blow_is_found(
            first in 1u64..9, events in 1u64..60, begin in 1u64..25, vouched in any::<Index>(), live: bool,
            end in any::<Index>(), rotated in any::<Index>(), blow in blow(),
        ) {
            let head = first + events - 1;
            let whole = first - 1 + vouched.index(events as usize + 1) as u64;
            let newest = if live { head - (head - whole) / 2 } else { u64::MAX };
            let bounds = Bounds { first, head, whole, durable: whole, newest, live, lost: Vec::new() };
            let lines: Vec<(u64, String)> = (begin..=head).filter_map(|seq| Some((seq, event(seq)?))).collect();
            let text = |lines: &[(u64, String)]| lines.iter().map(|(_, line)| line.as_str()).collect::<String>().into_bytes();
            let must = lines.partition_point(|(seq, _)| *seq <= whole);
            let (vouched, all) = (text(&lines[..must]), text(&lines));
            // Behind what is vouched for it may end anywhere, if anything is to come.
            let clean = whole == head && !live;
            let end = vouched.len() + if clean { 0 } else { end.index(all.len() - vouched.len() + 1) };
            let starts: Vec<usize> = std::iter::once(0).chain(lines.iter().scan(0, |at, (_, line)| { *at += line.len(); Some(*at) })).collect();
            let turn = starts[rotated.index(must + 1)];
            let found = check(&[&all[..turn], &all[turn..end]], &bounds);
            prop_assert!(!found.is_damaged(), "{:?}", found.findings);
            prop_assert_eq!(found.older, lines.iter().take_while(|(seq, line)| *seq < first && starts[0] + line.len() <= end).count() as u64);

            // Lines that the journal cannot speak for may be anything that is a line.
            let own: Vec<&(u64, String)> = lines[..must].iter().filter(|(seq, _)| *seq >= first).collect();
            if own.len() < 2 {
                return Ok(());
            }
            let from = vouched.len() - own.iter().map(|(_, line)| line.len()).sum::<usize>();
            let mut hit = all[..end].to_vec();
            let line = |i: usize| {
                let at = from + own[..i].iter().map(|(_, line)| line.len()).sum::<usize>();
                at..at + own[i].1.len()
            };
            match &blow {
                Blow::Flip(at, with) => hit[from + at.index(vouched.len() - from)] ^= with,
                // The first line may be gone: the log begins later.
                Blow::Remove(i) => drop(hit.drain(line(1 + i.index(own.len() - 1)))),
                Blow::Repeat(i, to) => {
                    let (again, to) = (hit[line(i.index(own.len()))].to_vec(), line(to.index(own.len())).end);
                    hit.splice(to..to, again);
                }
                Blow::Insert(at, what) => {
                    let to = line(at.index(own.len() - 1)).end;
                    hit.splice(to..to, [what, &b"\n"[..]].concat());
                }
                Blow::Cut(at) => hit.truncate(line(own.len() - 1).start + at.index(own[own.len() - 1].1.len())),
            }
            let found = check(&[&hit], &bounds);
            prop_assert!(found.is_damaged(), "{:?}: {}", blow, String::from_utf8_lossy(&hit));
        }
    }
}
