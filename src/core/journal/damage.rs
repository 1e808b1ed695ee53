//! Damage: what was durable and cannot be read, and the check that finds it in sealed segments.
//!
//! Always holds: a range that is handed out names every lost event between two readable places and none
//! that can be read (invariant 5). Nothing is written. Owner: `recover.rs` for the newest segment,
//! whoever calls [`super::Journal::check_sealed`] for the others.

use super::disk::Disk;
use super::record::{salt, size};
use super::scan::Scanner;
use super::segment::{HEADER_BYTES, Map, Segment, segment_name};
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
            return write!(f, "journal/{segment}: its header is damaged; its records are read without it");
        }
        write!(f, "journal/{segment} at byte {at}: lsn {}..={} ", lsns.start, lsns.end - 1)?;
        match seqs.is_empty() {
            true => write!(f, "(no events) cannot be read"),
            false => write!(f, "(events {}..={}) cannot be read", seqs.start, seqs.end - 1),
        }
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
        match check(disk, map.journal, &pair[0], &pair[1]) {
            Ok(damage) => damage.into_iter().for_each(&mut each),
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

/// Reads every record of a sealed segment; what is missing up to `next`.
fn check(disk: &dyn Disk, journal: u128, segment: &Segment, next: &Segment) -> io::Result<Vec<Damage>> {
    let name = segment_name(segment.first_lsn);
    let mut scanner = Scanner::new(disk.open(&name)?, salt(journal, segment.first_lsn));
    let mut damage = Vec::new();
    let (mut at, mut lsn, mut seq) = (HEADER_BYTES, segment.first_lsn, segment.first_seq);
    while lsn < next.first_lsn {
        let here = scanner.next()?.map(|record| (record.head, record.at + size(record.body.len()) as u64));
        let found = match here {
            Some((head, _)) if head.lsn < lsn => continue,
            None if scanner.resync(segment.end, lsn..next.first_lsn)? => continue,
            found => found.filter(|(head, _)| head.lsn < next.first_lsn),
        };
        let here = found.map_or((next.first_lsn, next.first_seq), |(head, _)| (head.lsn, head.first_seq()));
        if here.0 > lsn {
            let (segment, lsns, seqs) = (name.clone(), lsn..here.0, seq..here.1.max(seq));
            damage.push(Damage { segment, at, lsns, seqs });
        }
        let Some((head, end)) = found else { break };
        (at, lsn, seq) = (end, head.lsn + 1, head.seq + 1);
    }
    Ok(damage)
}
