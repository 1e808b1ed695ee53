//! Looks at a journal as some process left it, or as it is being written, and changes nothing.
//!
//! The headers say where each segment begins; the newest segment is walked twice, for nobody has said yet
//! where it ends. First for the highest `synced` of any valid record or the header: all up to there was
//! durable. Then record by record. Always holds: nothing is written; whatever a broker writes meanwhile is
//! no damage, because what a record calls durable was there before that record was. Owner: `recover.rs`, which
//! goes on from what was found, and `inspect.rs`, which only reads.

use super::damage::Damage;
use super::disk::Disk;
use super::notes::Trail;
use super::record::{Head, Kind, salt, size};
use super::replay::trails_before;
use super::scan::Scanner;
use super::segment::{HEADER_BYTES, Header, HeaderError, Segment, parse_name, segment_name};
use std::io;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A call failed.
    #[error("journal: {what}: {error}")]
    Io {
        /// The call.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// Files that this program must not touch.
    #[error("journal/{segment}: {why}")]
    Unusable {
        /// The segment's file name.
        segment: String,
        /// What is wrong with it.
        why: String,
        /// Nothing in it can be read, as opposed to: it must not be.
        lost: bool,
    },
}

/// Where a journal goes on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Next {
    pub lsn: u64,
    pub seq: u64,
    pub ts: u64,
    /// Where the notes before it stand.
    pub notes: Trail,
    /// The same of the ids that were seen.
    pub ids: Trail,
}

impl Next {
    /// Behind a record, and behind what is lost when it is not the one that was expected.
    pub fn behind(self, head: &Head) -> Self {
        let Next { mut notes, mut ids, .. } = if head.lsn == self.lsn { self } else { self.broken() };
        match head.kind {
            Kind::Note(class) => notes = notes.behind(head.lsn, class),
            Kind::Ids(class) => ids = ids.behind_snapshot(head.lsn, class),
            Kind::Event | Kind::Marker => {}
        }
        Next { lsn: head.lsn + 1, seq: head.seq + 1, ts: self.ts.max(head.ts), notes, ids }
    }

    /// Behind something that cannot be read.
    fn broken(self) -> Self {
        Next { notes: self.notes.broken(), ids: self.ids.broken(), ..self }
    }
}

pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    let what = what.into();
    |error| OpenError::Io { what, error }
}

/// What a look at a journal found.
pub(super) struct Look {
    /// Oldest first; each ends where its file does.
    pub segments: Vec<Segment>,
    /// Of headers, and in the newest segment.
    pub damage: Vec<Damage>,
    /// The newest segment; `None` when there is none.
    pub walked: Option<Walked>,
}

/// Reads the headers, walks the newest segment.
pub(super) fn look(disk: &dyn Disk, journal: u128) -> Result<Look, OpenError> {
    let mut damage = Vec::new();
    let found = read_headers(disk, journal, &mut damage)?;
    let walked = match found.last() {
        Some((last, header)) => {
            let whole = |header: &Header| !damage.iter().any(|damage| damage.segment == header.name());
            let (notes, ids) =
                trails_before(disk, journal, &found, whole).map_err(failed("read the notes"))?;
            Some(walk(disk, last, &Header { notes, ids, ..*header })?)
        }
        None => None,
    };
    damage.extend(walked.iter().flat_map(|walked| walked.damage.iter().cloned()));
    Ok(Look { segments: found.into_iter().map(|(segment, _)| segment).collect(), damage, walked })
}

fn read_headers(
    disk: &dyn Disk,
    journal: u128,
    damage: &mut Vec<Damage>,
) -> Result<Vec<(Segment, Header)>, OpenError> {
    let mut found = Vec::new();
    for name in disk.list().map_err(failed("list"))? {
        let Some(first_lsn) = parse_name(&name) else { continue };
        let file = disk.open(&name).map_err(failed(format!("open {name}")))?;
        let end = file.size().map_err(failed(format!("size of {name}")))?;
        let unusable = |why: String| Err(OpenError::Unusable { segment: name.clone(), why, lost: false });
        let header = match Header::read(&*file) {
            Ok(Ok(header)) if header.journal != journal => {
                return unusable("it belongs to another journal; move it out of the folder".into());
            }
            Ok(Err(error @ HeaderError::Version(_))) => return unusable(error.to_string()),
            Ok(Ok(header)) if header.first_lsn == first_lsn => Some(header),
            // The name is wrong, or the header is, or it cannot be read: the records say which.
            _ => None,
        };
        found.push((first_lsn, end, header));
    }
    found.sort_unstable_by_key(|(first_lsn, ..)| *first_lsn);
    let mut segments: Vec<(Segment, Header)> = Vec::new();
    // From the newest on: what one cannot say of itself, the one after it says.
    for (i, &(first_lsn, end, header)) in found.iter().enumerate().rev() {
        let header = match header {
            Some(header) => header,
            None => {
                let name = segment_name(first_lsn);
                let before = i.checked_sub(1).map(|i| found[i]);
                let after = segments.last().map(|(_, header)| *header);
                let header = guess_header(disk, journal, (first_lsn, end), before, after)
                    .map_err(failed(format!("read {name}")))?;
                let (lsns, seqs) = (first_lsn..first_lsn, 0..0);
                damage.push(Damage { segment: name.clone(), at: 0, lsns, seqs });
                header.ok_or_else(|| OpenError::Unusable {
                    segment: name,
                    why: "the newest segment has no readable header and no readable record; what it held is lost. \
                          Restore it from a backup, or move it away to go on without its events"
                        .into(),
                    lost: true,
                })?
            }
        };
        segments.push((Segment { first_lsn, first_seq: header.first_seq, end, ts: header.ts }, header));
    }
    segments.reverse();
    damage.reverse();
    Ok(segments)
}

/// What a header must have said. The salt needs only the name, so the records are as readable as before;
/// the first one that is says where the segment is in the journal, or else the segment after it does.
/// When records before that one are lost, the segment before it says how many of them were events; if its end is lost
/// too, all that lies between counts as lost there.
fn guess_header(
    disk: &dyn Disk,
    journal: u128,
    (first_lsn, end): (u64, u64),
    before: Option<(u64, u64, Option<Header>)>,
    after: Option<Header>,
) -> io::Result<Option<Header>> {
    let first = record(disk, journal, (first_lsn, end), first_lsn + end / 8, true)?;
    let (lsn, seq, ts) = match (first, after) {
        (Some(head), _) => (head.lsn, head.first_seq(), head.ts),
        (None, Some(after)) => (after.first_lsn, after.first_seq, after.ts),
        (None, None) => return Ok(None),
    };
    let mut first_seq = seq;
    if lsn > first_lsn {
        // No fewer events than there can have been.
        first_seq = seq.saturating_sub(lsn - first_lsn).max(1);
        // Where the journal begins is no guess, whatever the segments after it say.
        if first_lsn == 1 {
            first_seq = 1;
        }
        if let Some((before_lsn, end, _)) = before {
            first_seq = match record(disk, journal, (before_lsn, end), first_lsn, false)? {
                Some(last) if last.lsn + 1 == first_lsn => last.seq + 1,
                // Whichever of the two has lost them: no seq is used twice.
                _ => seq,
            };
        }
    }
    let (synced_lsn, synced_seq) = (first_lsn - 1, first_seq - 1);
    let (notes, ids) = (Trail::default(), Trail::default());
    Ok(Some(Header { journal, first_lsn, first_seq, synced_lsn, synced_seq, ts, notes, ids }))
}

/// The first valid record of a segment, or the last, below an lsn.
fn record(
    disk: &dyn Disk,
    journal: u128,
    (first_lsn, end): (u64, u64),
    below: u64,
    first: bool,
) -> io::Result<Option<Head>> {
    let file = disk.open(&segment_name(first_lsn))?;
    let mut scanner = Scanner::new(file, salt(journal, first_lsn));
    let mut found = None;
    loop {
        match scanner.next()?.map(|record| record.head) {
            Some(head) if head.lsn < below => found = Some(head),
            None if scanner.resync(end, first_lsn..below)? => continue,
            _ => return Ok(found),
        }
        if first {
            return Ok(found);
        }
    }
}

/// The newest segment, record by record.
pub(super) struct Walked {
    pub damage: Vec<Damage>,
    /// Records behind the known durable ones, dense, whole publishes only.
    pub tail: Vec<(Head, Vec<u8>)>,
    /// The known durable records end here in the file.
    pub known_end: u64,
    /// Nothing behind this place of the file is of use.
    pub used_end: u64,
    /// Behind the last valid record, wherever it stood when the file was first read through.
    pub valid_end: u64,
    /// Behind the known durable records.
    pub known: Next,
    /// Behind the tail.
    pub next: Next,
}

impl Walked {
    /// What lies behind the last record up to `lsn` and `seq` was durable and is lost.
    fn lose(&mut self, segment: &str, at: u64, lsn: u64, seq: u64) {
        let (lsns, seqs) = (self.next.lsn..lsn, self.next.seq..seq);
        self.damage.push(Damage { segment: segment.to_owned(), at, lsns, seqs });
        self.next = Next { lsn, seq, ..self.next.broken() };
        self.known = self.next;
        self.known_end = at;
    }
}

fn walk(disk: &dyn Disk, segment: &Segment, header: &Header) -> Result<Walked, OpenError> {
    let name = segment_name(segment.first_lsn);
    let scanner = || {
        let file = disk.open(&name).map_err(failed(format!("open {name}")))?;
        Ok::<_, OpenError>(Scanner::new(file, salt(header.journal, segment.first_lsn)))
    };
    let read = |e| failed(format!("read {name}"))(e);
    // What a segment of this size can hold at most; anything else is no lsn of it.
    let lsns = segment.first_lsn..segment.first_lsn + segment.end / 8;
    let mut known_lsn = header.synced_lsn;
    let (mut pass, mut valid_end) = (scanner()?, HEADER_BYTES);
    loop {
        while let Some(record) = pass.next().map_err(read)? {
            known_lsn = known_lsn.max(record.head.synced);
            valid_end = record.at + size(record.body.len()) as u64;
        }
        if !pass.resync(segment.end, lsns.clone()).map_err(read)? {
            break;
        }
    }

    let Header { ts, notes, ids, .. } = *header;
    let start = Next { lsn: segment.first_lsn, seq: segment.first_seq, ts, notes, ids };
    let mut walked = Walked {
        damage: Vec::new(),
        tail: Vec::new(),
        known_end: HEADER_BYTES,
        used_end: 0,
        valid_end,
        known: start,
        next: start,
    };
    let (mut pass, mut tail_end) = (scanner()?, 0);
    loop {
        let at = pass.at();
        let expected = walked.next;
        // A broker may be writing: what it wrote behind the place that was reached before is not looked at.
        if at >= valid_end && expected.lsn > known_lsn {
            break;
        }
        match pass.next().map_err(read)? {
            Some(record) if record.head.lsn >= expected.lsn => {
                let head = record.head;
                if head.lsn > expected.lsn && expected.lsn > known_lsn {
                    break;
                }
                if head.lsn > known_lsn + 1 && head.lsn > expected.lsn {
                    // What lies between the damage and this record is torn, and which of the events before it
                    // are damage is not known: all of them are given up, so that no seq is used twice.
                    walked.lose(&name, at, known_lsn + 1, head.first_seq());
                    break;
                }
                if head.lsn > expected.lsn {
                    let (segment, at) = (name.clone(), walked.known_end);
                    let (lsns, seqs) = (expected.lsn..head.lsn, expected.seq..head.first_seq());
                    walked.damage.push(Damage { segment, at, lsns, seqs });
                    walked.known = Next { lsn: head.lsn, seq: head.first_seq(), ..expected.broken() };
                    walked.known_end = record.at;
                }
                walked.next = expected.behind(&head);
                if head.lsn <= known_lsn {
                    walked.known = walked.next;
                    walked.known_end = record.at + size(record.body.len()) as u64;
                } else {
                    walked.tail.push((head, record.body.to_vec()));
                    tail_end = record.at + size(record.body.len()) as u64;
                }
            }
            // A place that repeats an lsn holds nothing of ours.
            Some(_) => {}
            None if expected.lsn > known_lsn => break,
            None => {
                pass.go(at);
                if !pass.resync(segment.end, expected.lsn..lsns.end).map_err(read)? {
                    // Said by the header, or by records of a rewritten tail whose header is damaged too: then
                    // how many events are lost is not known, and no fewer are given up than there can be.
                    let seq = match known_lsn == header.synced_lsn {
                        true => header.synced_seq + 1,
                        false => expected.seq + (known_lsn + 1 - expected.lsn),
                    };
                    walked.lose(&name, at, known_lsn + 1, seq);
                    break;
                }
            }
        }
    }
    // A publish of several events that is not whole was never acked.
    while walked.tail.last().is_some_and(|(head, _)| head.joined) {
        walked.tail.pop();
    }
    // A marker holds nothing to rewrite. It stays in the file for what it says; its lsn is given again.
    if walked.tail.iter().all(|(head, _)| head.kind == Kind::Marker) {
        walked.tail.clear();
        walked.used_end = tail_end;
    }
    walked.next = walked.known;
    for (head, _) in &walked.tail {
        walked.next = walked.next.behind(head);
    }
    Ok(walked)
}
