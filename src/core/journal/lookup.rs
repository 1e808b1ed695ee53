//! Where to begin reading: at a time, or behind an id.
//!
//! `ts` never goes back along seq, so a time is found as a seq is: by the segments' own `ts`, then by bisection in
//! one of them (`read.rs`), then by reading a window on. An id is looked for from the newest segment back: that one is
//! read, the others have an index (`index.rs`). One that is in none of them may be in the table of ids that
//! were seen (`seen.rs`), though its event is gone: whoever has that table is asked then. Always
//! holds: what is answered is exact for the events that can be read; those that cannot, removed or damaged, are a
//! gap where they may have been meant; no lock is held while files are read. Owner: `delivery`, off the tokio
//! workers.

use super::disk::Disk;
use super::index::{Answer, Sealed, Wanted};
use super::read::{Read, Reader, seek};
use super::record::salt;
use super::scan::{Scanner, WINDOW};
use super::segment::{Map, segment_name};
use crate::core::event::string_body;
use crate::core::limits::ID_BYTES;
use std::io;
use std::sync::Arc;

/// Where reading from a time on begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqAt {
    /// The first event at or after that time that can be read; the last durable event's seq and one when none is.
    pub seq: u64,
    /// The first and last of the events directly before it that cannot be read any more and may have been at or
    /// after that time: removed by retention (then the first is 1: which of them, nothing says), or damaged.
    pub gap: Option<(u64, u64)>,
}

pub(super) fn seq_at(disk: &Arc<dyn Disk>, map: &Arc<Map>, ts: u64) -> io::Result<SeqAt> {
    let begin = seq_before(&**disk, map, ts)?;
    let mut reader = Reader::new(disk.clone(), map.clone(), begin);
    let (mut found, mut gap) = (None, None);
    loop {
        let read = reader.read(WINDOW, &mut |event| match found {
            None if event.ts >= ts => found = Some(event.seq),
            // What is missing before an older event is older too.
            None => gap = None,
            Some(_) => {}
        })?;
        match (read, found) {
            (_, Some(seq)) => return Ok(SeqAt { seq, gap }),
            (Read::Gap { from, to }, None) => gap = Some((gap.map_or(from, |(first, _)| first), to)),
            (Read::Events(_), None) => {}
            (Read::End, None) => return Ok(SeqAt { seq: reader.next_seq(), gap }),
        }
    }
}

/// A seq that no event at or after `ts` is before, and that is little before the first such event.
fn seq_before(disk: &dyn Disk, map: &Map, ts: u64) -> io::Result<u64> {
    loop {
        let segments = map.segments();
        let Some(i) = segments.iter().rposition(|segment| segment.ts < ts) else {
            // Events that were removed may be meant as well; the reader says so.
            return Ok(1);
        };
        let segment = segments[i];
        match disk.open(&segment_name(segment.first_lsn)) {
            Ok(file) => {
                let mut scanner = Scanner::new(file, salt(map.journal, segment.first_lsn));
                let end_lsn = segments.get(i + 1).map_or(u64::MAX, |next| next.first_lsn);
                let lsns = segment.first_lsn..end_lsn;
                let seq = seek(&mut scanner, segment.end, &lsns, |head| head.ts < ts)?;
                return Ok(seq.unwrap_or(segment.first_seq));
            }
            // Removed by retention in this moment: look again.
            Err(e) if e.kind() == io::ErrorKind::NotFound && map.after(segment.first_lsn).is_none() => {}
            // Removed by somebody else: a gap.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(segment.first_seq),
            Err(e) => return Err(e),
        }
    }
}

pub(super) fn seq_after_id(
    disk: &Arc<dyn Disk>,
    map: &Arc<Map>,
    id: &str,
    vm: Option<&str>,
    seen: impl FnOnce(Vec<u8>, Option<&str>) -> io::Result<Option<u64>>,
) -> io::Result<Option<u64>> {
    if id.is_empty() || id.len() > ID_BYTES {
        return Ok(None);
    }
    let mut encoded = Vec::new();
    string_body(&mut encoded, id);
    let wanted = Wanted { id: &encoded, vm: vm.map(str::as_bytes) };
    let mut end = (u64::MAX, map.durable_seq() + 1);
    for segment in map.segments().into_iter().rev() {
        let is_newest = end.0 == u64::MAX;
        let sealed = Sealed { journal: map.journal, segment, end };
        let answer = if is_newest { Answer::Unknown } else { sealed.find(&**disk, map, &wanted)? };
        let found = match answer {
            Answer::Found(seq) => Some(seq),
            Answer::Nowhere => None,
            Answer::Unknown => read_through(disk, map, &sealed, &wanted)?,
        };
        if let Some(seq) = found {
            return Ok(Some(seq + 1));
        }
        end = (segment.first_lsn, end.1.min(segment.first_seq));
    }
    // What is newer than all that was found would have been found, so nothing is missed by asking last.
    Ok(seen(encoded, vm)?.map(|seq| seq + 1))
}

/// The newest event of that id in the segment, found by reading all of it.
fn read_through(
    disk: &Arc<dyn Disk>,
    map: &Arc<Map>,
    sealed: &Sealed,
    wanted: &Wanted<'_>,
) -> io::Result<Option<u64>> {
    let mut reader = Reader::new(disk.clone(), map.clone(), sealed.segment.first_seq);
    let mut found = None;
    while reader.next_seq() < sealed.end.1 {
        reader.read(WINDOW, &mut |event| {
            // A segment that was removed meanwhile is a gap, and what is read then is of the next ones.
            if event.seq < sealed.end.1 && wanted.is(&event) {
                found = Some(event.seq);
            }
        })?;
    }
    Ok(found)
}
