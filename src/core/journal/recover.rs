//! Opens a journal after any stop, and says what it found.
//!
//! Every start begins a new segment, so nothing that an earlier process wrote is ever written again.
//! Sealed segments were durable when the next one got its name; only the newest is walked here:
//!
//!     newest segment:  records …  | known durable | readable, perhaps not durable | torn
//!                      kept as is: damage inside  | rewritten into the new one    | left behind
//!                      is reported with its range |
//!
//! *Known durable* is what any valid record, or the header, says was synced. Always holds: a record known
//! durable is kept or reported, never dropped (invariant 5); what is served afterwards is durable in fact
//! and not just in the page cache, because the rest was rewritten and synced before anybody sees it
//! (invariants 1 and 2); a publish of several events comes back whole or not at all. Owner: [`super::Journal::open`].

use super::disk::Disk;
use super::record::{Head, Kind, encode, salt};
use super::scan::Scanner;
use super::segment::{HEADER_BYTES, Header, HeaderError, Map, Segment, activate, parse_name, segment_name};
use super::spare::{self, Spare};
use std::io;
use std::ops::Range;

/// Records that were durable and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file name.
    pub segment: String,
    /// Where in the file it begins.
    pub at: u64,
    /// The lost records' lsns; empty when only the header was hit.
    pub lsns: Range<u64>,
    /// The lost events' seqs; empty when only other records were hit.
    pub seqs: Range<u64>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Damage { segment, at, lsns, seqs } = self;
        if lsns.is_empty() {
            return write!(f, "journal/{segment}: its header is damaged; its records were found without it");
        }
        write!(f, "journal/{segment} at byte {at}: lsn {}..={} ", lsns.start, lsns.end - 1)?;
        match seqs.is_empty() {
            true => write!(f, "(no events) cannot be read"),
            false => write!(f, "(events {}..={}) cannot be read", seqs.start, seqs.end - 1),
        }
    }
}

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
    },
}

/// What opening a journal found and did.
#[derive(Debug, Default)]
pub struct Report {
    /// Known durable and unreadable.
    pub damage: Vec<Damage>,
    /// Records that were rewritten because they may not have been durable.
    pub rewritten: usize,
    /// Where the next segment begins.
    pub(super) next: Next,
}

/// Where a journal goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Next {
    pub lsn: u64,
    pub seq: u64,
    pub ts: u64,
}

pub(super) struct Recovered {
    pub map: Map,
    pub report: Report,
    /// The segment that the tail was rewritten into; it is the newest and goes on being written.
    pub rewritten: Option<(Spare, Segment)>,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    let what = what.into();
    |error| OpenError::Io { what, error }
}

/// Reads the headers, walks the newest segment, rewrites its tail.
pub(super) fn recover(disk: &dyn Disk, journal: u128, spare_bytes: u64) -> Result<Recovered, OpenError> {
    let mut report = Report::default();
    let segments = read_headers(disk, journal, &mut report)?;
    let Some((last, header)) = segments.last().copied() else {
        report.next = Next { lsn: 1, seq: 1, ts: 0 };
        return Ok(Recovered { map: Map::new(journal, Vec::new(), 0), report, rewritten: None });
    };
    let open = || {
        disk.open(&segment_name(last.first_lsn))
            .map_err(failed(format!("open {}", segment_name(last.first_lsn))))
    };
    let walked = walk(|| Ok(Scanner::new(open()?, salt(journal, last.first_lsn))), &last, &header)?;
    report.damage.extend(walked.damage.iter().cloned());
    report.next = walked.next;
    report.rewritten = walked.tail.len();

    let mut sealed: Vec<Segment> = segments.into_iter().map(|(segment, _)| segment).collect();
    if let Some(last) = sealed.last_mut() {
        last.end = walked.known_end;
    }
    if walked.tail.is_empty() {
        // Only its unused zeros and torn bytes go; not needed for anything but space.
        let _ = open()?.set_size(walked.known_end);
        return Ok(Recovered {
            map: Map::new(journal, sealed, walked.next.seq - 1),
            report,
            rewritten: None,
        });
    }
    let (spare, segment) = rewrite(disk, journal, spare_bytes, &walked)?;
    let map = Map::new(journal, sealed, walked.next.seq - 1);
    if segment.first_lsn != last.first_lsn {
        let _ = open()?.set_size(walked.known_end);
    }
    map.push(segment);
    Ok(Recovered { map, report, rewritten: Some((spare, segment)) })
}

fn read_headers(
    disk: &dyn Disk,
    journal: u128,
    report: &mut Report,
) -> Result<Vec<(Segment, Header)>, OpenError> {
    let mut lsns: Vec<u64> =
        disk.list().map_err(failed("list"))?.iter().filter_map(|name| parse_name(name)).collect();
    lsns.sort_unstable();
    let mut segments: Vec<(Segment, Header)> = Vec::new();
    for (i, &first_lsn) in lsns.iter().enumerate() {
        let name = segment_name(first_lsn);
        let file = disk.open(&name).map_err(failed(format!("open {name}")))?;
        let end = file.size().map_err(failed(format!("size of {name}")))?;
        let unusable = |why: String| OpenError::Unusable { segment: name.clone(), why };
        let header = match Header::read(&*file).map_err(failed(format!("read {name}")))? {
            Ok(header) if header.journal != journal => {
                return Err(unusable("it belongs to another journal; move it out of the folder".into()));
            }
            Ok(header) if header.first_lsn == first_lsn => header,
            Err(error @ HeaderError::Version(_)) => return Err(unusable(error.to_string())),
            // The name is wrong, or the header is: its records say which.
            _ => match guess_header(Scanner::new(file, salt(journal, first_lsn)), journal, first_lsn)
                .map_err(failed(format!("read {name}")))?
            {
                Some(header) => {
                    report.damage.push(Damage {
                        segment: name,
                        at: 0,
                        lsns: first_lsn..first_lsn,
                        seqs: 0..0,
                    });
                    header
                }
                None if i + 1 < lsns.len() => {
                    report.damage.push(Damage {
                        segment: name,
                        at: 0,
                        lsns: first_lsn..lsns[i + 1],
                        seqs: 0..0,
                    });
                    continue;
                }
                None => {
                    return Err(unusable(
                        "the newest segment has no readable header and no readable record; what it held is lost. \
                         Restore it from a backup, or move it away to go on without its events"
                            .into(),
                    ));
                }
            },
        };
        segments.push((Segment { first_lsn, first_seq: header.first_seq, end, ts: header.ts }, header));
    }
    Ok(segments)
}

/// The salt needs only the name: a segment whose header is damaged is as readable as before when its
/// first record is.
fn guess_header(mut scanner: Scanner, journal: u128, first_lsn: u64) -> io::Result<Option<Header>> {
    let mut events = 0;
    while let Some(record) = scanner.next()? {
        let head = record.head;
        if head.lsn != first_lsn + events {
            return Ok(None);
        }
        if head.kind == Kind::Event {
            return Ok(Some(Header {
                journal,
                first_lsn,
                first_seq: head.seq,
                synced_lsn: first_lsn - 1,
                synced_seq: head.seq - 1,
                ts: head.ts,
            }));
        }
        events += 1;
    }
    Ok(None)
}

struct Walked {
    damage: Vec<Damage>,
    /// Records behind the known durable ones, dense, whole publishes only.
    tail: Vec<(Head, Vec<u8>)>,
    /// The known durable records end here in the file.
    known_end: u64,
    /// Behind the known durable records.
    known: Next,
    /// Behind the tail.
    next: Next,
}

impl Walked {
    /// What lies behind the last record up to `lsn` and `seq` was durable and is lost.
    fn lose(&mut self, segment: &str, at: u64, lsn: u64, seq: u64) {
        let (lsns, seqs) = (self.next.lsn..lsn, self.next.seq..seq);
        self.damage.push(Damage { segment: segment.to_owned(), at, lsns, seqs });
        self.next = Next { lsn, seq, ts: self.next.ts };
        self.known = self.next;
        self.known_end = at;
    }
}

fn walk(
    scanner: impl Fn() -> Result<Scanner, OpenError>,
    segment: &Segment,
    header: &Header,
) -> Result<Walked, OpenError> {
    let name = segment_name(segment.first_lsn);
    let read = |e| failed(format!("read {name}"))(e);
    // What a segment of this size can hold at most; anything else is no lsn of it.
    let lsns = segment.first_lsn..segment.first_lsn + segment.end / 8;
    let mut known_lsn = header.synced_lsn;
    let mut pass = scanner()?;
    loop {
        while let Some(record) = pass.next().map_err(read)? {
            known_lsn = known_lsn.max(record.head.synced);
        }
        if !pass.resync(segment.end, lsns.clone()).map_err(read)? {
            break;
        }
    }

    let start = Next { lsn: segment.first_lsn, seq: segment.first_seq, ts: header.ts };
    let mut walked =
        Walked { damage: Vec::new(), tail: Vec::new(), known_end: HEADER_BYTES, known: start, next: start };
    let mut pass = scanner()?;
    loop {
        let at = pass.at();
        let expected = walked.next;
        match pass.next().map_err(read)? {
            Some(record) if record.head.lsn >= expected.lsn => {
                let head = record.head;
                if head.lsn > expected.lsn && expected.lsn > known_lsn {
                    break;
                }
                if head.lsn > known_lsn + 1 && head.lsn > expected.lsn {
                    // What lies between the damage and this record is torn, and how many events the damage
                    // held is not known: no fewer are given up than there can have been.
                    let seq =
                        if head.seq > 0 { head.seq } else { expected.seq + (known_lsn + 1 - expected.lsn) };
                    walked.lose(&name, at, known_lsn + 1, seq);
                    break;
                }
                if head.lsn > expected.lsn {
                    let first_seq = if head.kind == Kind::Event { head.seq } else { expected.seq };
                    let damage = Damage {
                        segment: name.clone(),
                        at: walked.known_end,
                        lsns: expected.lsn..head.lsn,
                        seqs: expected.seq..first_seq,
                    };
                    walked.damage.push(damage);
                }
                let seq = if head.kind == Kind::Event { head.seq + 1 } else { expected.seq };
                walked.next = Next { lsn: head.lsn + 1, seq, ts: expected.ts.max(head.ts) };
                if head.lsn <= known_lsn {
                    walked.known = walked.next;
                    walked.known_end = record.at + super::record::size(record.body.len()) as u64;
                } else {
                    walked.tail.push((head, record.body.to_vec()));
                }
            }
            // A place that repeats an lsn holds nothing of ours.
            Some(_) => {}
            None if expected.lsn > known_lsn => break,
            None => {
                pass.go(at);
                if !pass.resync(segment.end, expected.lsn..lsns.end).map_err(read)? {
                    // Only the header can say more than the last valid record: a rewritten tail.
                    let seq = expected.seq.max(header.synced_seq + 1);
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
    walked.next = walked.known;
    for (head, _) in &walked.tail {
        let seq = if head.kind == Kind::Event { head.seq + 1 } else { walked.next.seq };
        walked.next = Next { lsn: head.lsn + 1, seq, ts: walked.next.ts.max(head.ts) };
    }
    Ok(walked)
}

/// Writes the tail into a fresh segment, durable before it has its name.
fn rewrite(
    disk: &dyn Disk,
    journal: u128,
    spare_bytes: u64,
    walked: &Walked,
) -> Result<(Spare, Segment), OpenError> {
    let header = Header {
        journal,
        first_lsn: walked.known.lsn,
        first_seq: walked.known.seq,
        synced_lsn: walked.next.lsn - 1,
        synced_seq: walked.next.seq - 1,
        ts: walked.known.ts,
    };
    let mut bytes = Vec::new();
    for (head, body) in &walked.tail {
        encode(&mut bytes, header.salt(), head, [body, b""]);
    }
    let space = "make room for the rewritten tail (free some space on this file system)";
    let spare =
        spare::find_or_make(disk, spare_bytes, HEADER_BYTES + bytes.len() as u64).map_err(failed(space))?;
    spare.file.write_at(&bytes, HEADER_BYTES).map_err(failed("write the rewritten tail"))?;
    activate(disk, &*spare.file, spare.name, &header).map_err(failed("name the rewritten tail"))?;
    let end = HEADER_BYTES + bytes.len() as u64;
    let segment = Segment { first_lsn: header.first_lsn, first_seq: header.first_seq, end, ts: header.ts };
    Ok((spare, segment))
}

/// Checks every sealed segment of `map`; see [`super::Journal::check_sealed`].
pub(super) fn check_sealed(
    disk: &dyn Disk,
    map: &Map,
    mut pause: impl FnMut() -> bool,
    mut each: impl FnMut(Damage),
) {
    for pair in map.segments().windows(2) {
        if !pause() {
            return;
        }
        match check(disk, map.journal, &pair[0], &pair[1]) {
            Ok(damage) => damage.into_iter().for_each(&mut each),
            // Retention is allowed to be faster.
            Err(_) if map.after(pair[0].first_lsn).is_none() => {}
            Err(error) => {
                tracing::error!(segment = %segment_name(pair[0].first_lsn), %error, "journal: a sealed segment cannot be read");
            }
        }
    }
}

/// Reads every record of a sealed segment; what is missing up to `next`.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn check(
    disk: &dyn Disk,
    journal: u128,
    segment: &Segment,
    next: &Segment,
) -> io::Result<Vec<Damage>> {
    let name = segment_name(segment.first_lsn);
    let mut scanner = Scanner::new(disk.open(&name)?, salt(journal, segment.first_lsn));
    let mut damage = Vec::new();
    let (mut lsn, mut seq) = (segment.first_lsn, segment.first_seq);
    loop {
        let at = scanner.at();
        let found = scanner.next()?.map(|record| record.head);
        let (found_lsn, found_seq) = match found {
            Some(head) if head.lsn < lsn => continue,
            Some(head) => (head.lsn, Some(head.seq).filter(|seq| *seq > 0)),
            None if lsn < next.first_lsn && scanner.resync(segment.end, lsn..next.first_lsn)? => continue,
            None => (next.first_lsn, Some(next.first_seq)),
        };
        let found_lsn = found_lsn.min(next.first_lsn);
        if found_lsn > lsn {
            damage.push(Damage {
                segment: name.clone(),
                at,
                lsns: lsn..found_lsn,
                seqs: seq..found_seq.unwrap_or(seq),
            });
        }
        if found_lsn == next.first_lsn {
            return Ok(damage);
        }
        lsn = found_lsn + 1;
        seq = found_seq.map_or(seq, |s| s + 1);
    }
}
