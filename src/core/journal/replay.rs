//! Reads notes back after a start.
//!
//! ```text
//! segment  │ Change … Begin Part │ Part End  Change … │ Change …
//!                     └ Trail::from: this segment and those behind it are read
//! ```
//!
//! The header of each segment says where the notes before it stand ([`Trail`]), and the newest one is walked anyway, so
//! nothing is looked for. A snapshot in every segment makes the rest one segment, two at the worst. Always holds: what
//! is handed out is durable and in the order in which it was written; a snapshot is handed out whole or not at all.
//! Owner: [`super::Opened`], and `look.rs` where a header is damaged.

use super::damage::{Damage, Found, check};
use super::disk::Disk;
use super::look::Next;
use super::notes::{Class, Gather, Trail};
use super::segment::{Header, Map, Segment};
use std::io;

/// Hands out the notes from the newest whole snapshot on; what of the segments that were read is damaged.
pub(super) fn replay(
    disk: &dyn Disk,
    map: &Map,
    end: &Next,
    each: &mut dyn FnMut(Class, &[u8]),
) -> io::Result<Vec<Damage>> {
    let (from, segments) = (map.notes().from, map.segments());
    let (mut gather, mut damage) = (Gather::default(), Vec::new());
    if from == 0 {
        return Ok(damage);
    }
    let first = segments.partition_point(|segment| segment.first_lsn <= from).saturating_sub(1);
    for (i, segment) in segments.iter().enumerate().skip(first) {
        let next = segments.get(i + 1).map_or((end.lsn, end.seq), |next| (next.first_lsn, next.first_seq));
        check(disk, map.journal, segment, next, &mut |found| {
            match found {
                Found::Note(lsn, class, body) if lsn >= from => gather.note(class, body, each),
                Found::Lost(lost) => {
                    gather.broken();
                    damage.push(lost);
                }
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(damage)
}

/// Where the notes before the newest segment stand, and the ids: its header says it, or else the one before it and the
/// records since.
pub(super) fn trails_before(
    disk: &dyn Disk,
    journal: u128,
    found: &[(Segment, Header)],
    whole: impl Fn(&Header) -> bool,
) -> io::Result<(Trail, Trail)> {
    let known = found.iter().rposition(|(_, header)| whole(header));
    let (mut notes, mut ids) = known.map_or_else(Default::default, |i| (found[i].1.notes, found[i].1.ids));
    for pair in found[known.unwrap_or(0)..].windows(2) {
        let next = (pair[1].1.first_lsn, pair[1].1.first_seq);
        check(disk, journal, &pair[0].0, next, &mut |found| {
            match found {
                Found::Note(lsn, class, _) => notes = notes.behind(lsn, class),
                Found::Ids(lsn, class) => ids = ids.behind_snapshot(lsn, class),
                Found::Lost(_) => (notes, ids) = (notes.broken(), ids.broken()),
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok((notes, ids))
}
