//! After a start: the ids that were seen, read from the journal.
//!
//! ```text
//!   … ids of before │ snapshot: each VM's last │ events since      │ end
//!                   │◀── their ids are added ──│──────────────────▶│
//!        │◀────────────── the last SEEN_BYTES: the window of all ─▶│
//! ```
//!
//! Each segment begins with a snapshot (`snapshot.rs`); the newest whole one and the ids of the events behind it are the
//! table that was lost with the process, however far back an id lies. The window of all VMs is in no snapshot: the last
//! [`SEEN_BYTES`] of records make it, and give what they have of VMs that the snapshot had no room for. Always holds:
//! only what is durable is read. Owner: [`super::Opened::open`].

use super::disk::Disk;
use super::notes::Class;
use super::read::{Read, Reader, first_record, seek};
use super::record::{Kind, salt};
use super::repeats::whose;
use super::scan::{Scanner, WINDOW};
use super::seen::Seen;
use super::segment::{HEADER_BYTES, Header, Map, Segment, segment_name};
use super::snapshot::Reading;
use crate::core::limits::SEEN_BYTES;
use std::io;
use std::sync::Arc;

/// The table as the process left it that wrote the journal.
pub(super) fn refill(disk: &Arc<dyn Disk>, map: &Arc<Map>) -> io::Result<Seen> {
    let from = begin(&**disk, map)?;
    let (mut seen, from) = match newest(&**disk, map)? {
        Some((seen, whole_to)) => (seen, from.min(whole_to + 1)),
        None => (Seen::new(disk.secret().to_le_bytes()), from),
    };
    let (mut reader, mut ts) = (Reader::new(disk.clone(), map.clone(), from), 0);
    loop {
        let read = reader.read(WINDOW, &mut |event| {
            if event.layout.own_id {
                seen.add(whose(event.vm(), event.topic()), event.id(), event.seq, event.ts);
            }
            ts = event.ts;
        })?;
        // So that it does not outgrow its bound.
        seen.keep(ts);
        if read == Read::End {
            return Ok(seen);
        }
    }
}

/// The newest whole snapshot, and up to which seq it has everything. One that is damaged by now gives way to the one
/// before it.
fn newest(disk: &dyn Disk, map: &Map) -> io::Result<Option<(Seen, u64)>> {
    let (segments, mut lsn) = (map.segments(), map.ids().from);
    while lsn > 0
        && let Some(i) = segments.partition_point(|segment| segment.first_lsn <= lsn).checked_sub(1)
    {
        let (segment, end_lsn) = (&segments[i], segments.get(i + 1).map_or(u64::MAX, |next| next.first_lsn));
        let file = disk.open(&segment_name(segment.first_lsn))?;
        let header = Header::read(&*file);
        let mut scanner = Scanner::new(file, salt(map.journal, segment.first_lsn));
        if let Some(found) = read_at(&mut scanner, segment, lsn..end_lsn)? {
            return Ok(Some(found));
        }
        tracing::warn!(
            segment = %segment_name(segment.first_lsn),
            "journal: its snapshot of ids cannot be read; the one before it is used, and old repeats may be stored again"
        );
        lsn = header.ok().and_then(Result::ok).map_or(0, |header| header.ids.from).min(lsn - 1);
    }
    Ok(None)
}

/// The snapshot that begins at the first of these lsns.
fn read_at(
    scanner: &mut Scanner,
    segment: &Segment,
    lsns: std::ops::Range<u64>,
) -> io::Result<Option<(Seen, u64)>> {
    seek(scanner, segment.end, &(segment.first_lsn..lsns.end), |head| head.lsn <= lsns.start)?;
    let mut reading: Option<Reading> = None;
    loop {
        let Some(record) = scanner.next()? else {
            // What is damaged before it is none of it.
            if reading.is_none() && scanner.resync(segment.end, lsns.clone())? {
                continue;
            }
            break;
        };
        let (head, body) = (record.head, record.body);
        if head.lsn >= lsns.end {
            break;
        }
        match (head.kind, reading.as_mut()) {
            (Kind::Ids(Class::SnapshotBegin), None) if head.lsn == lsns.start => {
                reading = Reading::begin(body, head.seq);
            }
            (Kind::Ids(Class::SnapshotPart), Some(parts)) => {
                if parts.part(body).is_none() {
                    break;
                }
            }
            (Kind::Ids(Class::SnapshotEnd), Some(_)) => return Ok(reading.and_then(Reading::end)),
            (_, None) if head.lsn < lsns.start => {}
            _ => break,
        }
    }
    Ok(None)
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
