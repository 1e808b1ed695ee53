//! After a start: the ids that were seen, read from the journal's end.
//!
//! Whether an id is its publisher's own stands in the record, so the last [`SEEN_BYTES`] of records, in their
//! order, make the table that was lost with the process. Always holds: only what is durable is read. A VM whose
//! ids lie further back than that is not known any more: a repeat that comes so late, across a restart, is stored
//! again. A snapshot of the table in each segment will close that gap. Owner: [`super::Opened::open`].

use super::disk::Disk;
use super::read::{Read, Reader, first_record};
use super::record::salt;
use super::scan::{Scanner, WINDOW};
use super::seen::Seen;
use super::segment::{HEADER_BYTES, Map, segment_name};
use crate::core::limits::SEEN_BYTES;
use std::io;
use std::sync::Arc;

/// The table as the process left it that wrote the journal.
pub(super) fn refill(disk: &Arc<dyn Disk>, map: &Arc<Map>) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let mut reader = Reader::new(disk.clone(), map.clone(), begin(&**disk, map)?);
    loop {
        let read = reader.read(WINDOW, &mut |event| {
            if event.layout.own_id {
                seen.add(event.vm(), event.id(), event.seq);
            }
        })?;
        // So that it does not outgrow its bound.
        seen.keep();
        if read == Read::End {
            return Ok(seen);
        }
    }
}

/// The first event of the last [`SEEN_BYTES`].
fn begin(disk: &dyn Disk, map: &Map) -> io::Result<u64> {
    let (segments, mut left) = (map.segments(), SEEN_BYTES);
    for (i, segment) in segments.iter().enumerate().rev() {
        let held = segment.end.saturating_sub(HEADER_BYTES);
        if held < left {
            left -= held;
            continue;
        }
        let next = segments.get(i + 1);
        let lsns = segment.first_lsn..next.map_or(u64::MAX, |next| next.first_lsn);
        let file = disk.open(&segment_name(segment.first_lsn))?;
        let mut scanner = Scanner::new(file, salt(map.journal, segment.first_lsn));
        let first = first_record(&mut scanner, (segment.end - left) & !7, segment.end, &lsns)?;
        let behind = next.map_or(map.durable_seq() + 1, |next| next.first_seq);
        return Ok(first.map_or(behind, |(_, head)| head.first_seq()));
    }
    Ok(1)
}
