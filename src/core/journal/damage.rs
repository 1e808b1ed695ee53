//! Damage: what was durable and cannot be read, and the check that finds it in sealed segments.
//!
//! Always holds: a range that is handed out names every lost event between two readable places and none
//! that can be read (invariant 5). Nothing is written. Owner: `look.rs` for the newest segment, whoever calls
//! [`super::Journal::check_sealed`] for the others, `inspect.rs` for all.

use super::disk::Disk;
use super::notes::Class;
use super::record::{Kind, salt, size};
use super::scan::Scanner;
use super::segment::{HEADER_BYTES, Map, Segment, segment_name};
use crate::core::event::Event;
use std::io;
use std::ops::Range;

/// Progress is said about so often, in bytes.
const SAY_BYTES: u64 = 4 * 1024 * 1024;

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
            return write!(f, "journal/{segment}: its header is damaged; its records are read without it");
        }
        write!(f, "journal/{segment} at byte {at}: lsn {} ", from_to(lsns))?;
        match seqs.end.saturating_sub(seqs.start) {
            0 => write!(f, "(no events) cannot be read"),
            1 => write!(f, "(event {}) cannot be read", from_to(seqs)),
            _ => write!(f, "(events {}) cannot be read", from_to(seqs)),
        }
    }
}

/// `5 to 7`, or the only one; of a range that is not empty.
fn from_to(range: &Range<u64>) -> String {
    match range.end - range.start {
        1 => range.start.to_string(),
        _ => format!("{} to {}", range.start, range.end - 1),
    }
}

/// Checks every sealed segment of `map`; `pause` runs before each and ends it when it returns false.
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
        let next = (pair[1].first_lsn, pair[1].first_seq);
        let mut damage = Vec::new();
        let checked = check(disk, map.journal, &pair[0], next, &mut |found| {
            damage.extend(if let Found::Lost(lost) = found { Some(lost) } else { None });
            Ok(())
        });
        match checked {
            Ok(()) => damage.into_iter().for_each(&mut each),
            // Retention is allowed to be faster.
            Err(_) if map.after(pair[0].first_lsn).is_none() => {}
            Err(error) => {
                let segment = segment_name(pair[0].first_lsn);
                tracing::error!(%segment, %error, "journal: a sealed segment cannot be read");
                let (lsns, seqs) =
                    (pair[0].first_lsn..pair[1].first_lsn, pair[0].first_seq..pair[1].first_seq);
                each(Damage { segment, at: 0, lsns, seqs });
            }
        }
    }
}

/// What stands in a journal, or should.
#[derive(Debug)]
pub enum Found<'a> {
    /// An event that can be read.
    Event(Event<'a>),
    /// A note that can be read, and its lsn.
    Note(u64, Class, &'a [u8]),
    /// A record of ids that can be read, and its lsn.
    Ids(u64, Class),
    /// Records that were durable and cannot be read.
    Lost(Damage),
    /// So many bytes of segments were read since the last time this was said.
    Bytes(u64),
}

/// Reads every record of a segment that comes before `next`, an lsn and a seq, and hands out in order what is
/// there and what is missing.
pub(super) fn check(
    disk: &dyn Disk,
    journal: u128,
    segment: &Segment,
    next: (u64, u64),
    each: &mut dyn FnMut(Found<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let name = segment_name(segment.first_lsn);
    let mut scanner = Scanner::new(disk.open(&name)?, salt(journal, segment.first_lsn));
    let lost = |at, lsns, seqs| Found::Lost(Damage { segment: name.clone(), at, lsns, seqs });
    let (mut at, mut lsn, mut seq, mut said) = (HEADER_BYTES, segment.first_lsn, segment.first_seq, 0);
    while lsn < next.0 {
        match scanner.next()? {
            Some(record) if record.head.lsn < lsn => {}
            Some(record) if record.head.lsn < next.0 => {
                let head = record.head;
                if head.lsn > lsn {
                    each(lost(at, lsn..head.lsn, seq..head.first_seq().max(seq)))?;
                }
                (at, lsn, seq) = (record.at + size(record.body.len()) as u64, head.lsn + 1, head.seq + 1);
                match head.kind {
                    Kind::Event => {
                        let (line, layout) = (record.body, head.layout);
                        each(Found::Event(Event { seq: head.seq, ts: head.ts, line, layout }))?;
                    }
                    Kind::Note(class) => each(Found::Note(head.lsn, class, record.body))?,
                    Kind::Ids(class) => each(Found::Ids(head.lsn, class))?,
                    Kind::Marker => {}
                }
                if at - said >= SAY_BYTES {
                    each(Found::Bytes(at - said))?;
                    said = at;
                }
            }
            Some(_) => break,
            None => {
                if !scanner.resync(segment.end, lsn..next.0)? {
                    break;
                }
            }
        }
    }
    if lsn < next.0 {
        each(lost(at, lsn..next.0, seq..next.1.max(seq)))?;
    }
    each(Found::Bytes(segment.end.saturating_sub(said)))
}
