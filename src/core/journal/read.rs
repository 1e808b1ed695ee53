//! Reads events from any seq on, at the reader's own pace.
//!
//! A reader finds its segment in the map and its place in the segment by bisection: it looks in the
//! middle, goes on to the next valid record there, and compares seqs; no index is kept or written, and
//! nothing is read from the start. Always holds: no event beyond `durable_seq` is handed out (invariant 1);
//! what is missing or damaged is a gap with its range, never silence and never a wrong event (invariant 5).
//! Owner: whoever reads; readers share nothing but the map.

use super::disk::Disk;
use super::record::{Head, Kind, salt};
use super::scan::{Record, Scanner, WINDOW};
use super::segment::{HEADER_BYTES, Map, Segment, segment_name};
use crate::core::event::Event;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What a call of [`Reader::read`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many events were handed out; there may be more.
    Events(usize),
    /// These seqs cannot be read: removed by retention, or damaged.
    Gap {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Everything durable was read.
    End,
}

/// Reads the journal from one seq on.
pub struct Reader {
    disk: Arc<dyn Disk>,
    map: Arc<Map>,
    next_seq: u64,
    place: Option<Place>,
}

struct Place {
    segment: Segment,
    /// The one after it, when it is sealed: whatever the file holds from its first lsn on is not the
    /// segment's (a torn tail, a batch that was refused).
    next: Option<Segment>,
    scanner: Scanner,
}

/// Where in a segment a reader was: the next one need not look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    seq: u64,
    first_lsn: u64,
    at: u64,
}

impl Place {
    fn end_lsn(&self) -> u64 {
        self.next.map_or(u64::MAX, |next| next.first_lsn)
    }
}

impl Reader {
    pub(super) fn new(disk: Arc<dyn Disk>, map: Arc<Map>, next_seq: u64) -> Self {
        Reader { disk, map, next_seq: next_seq.max(1), place: None }
    }

    /// The seq that comes next.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Where it is, for a reader that goes on later.
    pub fn mark(&self) -> Option<Mark> {
        let place = self.place.as_ref()?;
        Some(Mark { seq: self.next_seq, first_lsn: place.segment.first_lsn, at: place.scanner.at() })
    }

    /// Goes where an earlier reader of the same journal was, if that helps.
    ///
    /// # Errors
    /// The segment cannot be opened.
    pub fn resume(&mut self, mark: Mark) -> io::Result<()> {
        if mark.seq == self.next_seq
            && let Some((segment, next)) = self.map.after(mark.first_lsn)
        {
            let file = match self.disk.open(&segment_name(segment.first_lsn)) {
                Ok(file) => file,
                // Retention took it: the first read says so.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            };
            let mut scanner = Scanner::new(file, salt(self.map.journal, segment.first_lsn));
            scanner.go(mark.at);
            self.place = Some(Place { segment, next, scanner });
        }
        Ok(())
    }

    /// Hands durable events to `each`, in order, until about `bytes` of them were handed out.
    ///
    /// # Errors
    /// A segment cannot be opened or read; the place is kept.
    pub fn read(&mut self, bytes: usize, each: &mut dyn FnMut(Event<'_>)) -> io::Result<Read> {
        let durable = self.map.durable_seq();
        if self.next_seq > durable {
            return Ok(Read::End);
        }
        if self.place.is_none()
            && let Some(oldest) = self.open()?
        {
            return Ok(self.gap(oldest.min(durable + 1)));
        }
        let Some(place) = &mut self.place else { return Ok(Read::End) };
        if place.next.is_none() {
            // After `durable` was read: either it is sealed by now, or all up to `durable` is in it.
            let Some((segment, next)) = self.map.after(place.segment.first_lsn) else {
                // Retention took it.
                self.place = None;
                return Ok(Read::Events(0));
            };
            (place.segment, place.next) = (segment, next);
        }
        let end_lsn = place.end_lsn();
        let (mut count, mut handed, mut refreshed) = (0, 0, false);
        while handed < bytes && self.next_seq <= durable {
            match place.scanner.next()? {
                Some(record) if record.head.lsn >= end_lsn => {
                    let at = record.at;
                    place.scanner.go(at);
                    if count > 0 {
                        break;
                    }
                    return self.step_over(durable);
                }
                Some(record) if record.head.kind != Kind::Event || record.head.seq < self.next_seq => {}
                Some(record) if record.head.seq == self.next_seq => {
                    let head = record.head;
                    each(Event { seq: head.seq, ts: head.ts, line: record.body, layout: head.layout });
                    (count, handed, self.next_seq) = (count + 1, handed + record.body.len(), head.seq + 1);
                    refreshed = false;
                }
                // A valid record further on: what lies between was stepped over as damage.
                Some(record) => {
                    let (at, seq) = (record.at, record.head.seq);
                    place.scanner.go(at);
                    if count > 0 {
                        break;
                    }
                    return Ok(self.gap(seq.min(durable + 1)));
                }
                None if count > 0 => break,
                // The window may be older than what is durable by now.
                None if !refreshed => {
                    place.scanner.refresh();
                    refreshed = true;
                }
                None => return self.step_over(durable),
            }
        }
        Ok(Read::Events(count))
    }

    /// There is no record here though one is durable: the segment ends here, or it is damaged.
    fn step_over(&mut self, durable: u64) -> io::Result<Read> {
        let Some(place) = &mut self.place else { return Ok(Read::Events(0)) };
        let end_seq = place.next.map_or(durable + 1, |next| next.first_seq);
        let lsns = place.segment.first_lsn..place.end_lsn();
        if self.next_seq < end_seq && place.scanner.resync(place.segment.end, lsns)? {
            // The next call sees a seq beyond the one it wants, and says the gap.
            return Ok(Read::Events(0));
        }
        self.place = None;
        if self.next_seq < end_seq { Ok(self.gap(end_seq)) } else { Ok(Read::Events(0)) }
    }

    fn gap(&mut self, next_seq: u64) -> Read {
        let from = self.next_seq;
        self.next_seq = next_seq.max(from);
        if self.next_seq > from { Read::Gap { from, to: self.next_seq - 1 } } else { Read::Events(0) }
    }

    /// Finds the place of `next_seq`. `Some(seq)` when nothing before `seq` can be read.
    fn open(&mut self) -> io::Result<Option<u64>> {
        loop {
            let Some((segment, next)) = self.map.find(self.next_seq) else {
                return Ok(Some(self.map.first_seq()));
            };
            match self.disk.open(&segment_name(segment.first_lsn)) {
                Ok(file) => {
                    let mut scanner = Scanner::new(file, salt(self.map.journal, segment.first_lsn));
                    let lsns = segment.first_lsn..next.map_or(u64::MAX, |next| next.first_lsn);
                    seek(&mut scanner, segment.end, &lsns, |head| head.first_seq() <= self.next_seq)?;
                    self.place = Some(Place { segment, next, scanner });
                    return Ok(None);
                }
                // Removed by retention in this moment: look again.
                Err(e)
                    if e.kind() == io::ErrorKind::NotFound && self.map.after(segment.first_lsn).is_none() => {
                }
                // Removed by somebody else.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Ok(Some(next.map_or(u64::MAX, |next| next.first_seq)));
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// Goes to a record that is `before`, at most about a window before the first that is not; the seq of the first event
/// there. `None`, and at the segment's first record, when there is no such record or no more than a window. `before`
/// must hold for all records up to some place and for none behind it. What is damaged is not asked: it lies before the
/// place only if a valid record behind it does.
pub(super) fn seek(
    scanner: &mut Scanner,
    end: u64,
    lsns: &Range<u64>,
    before: impl Fn(&Head) -> bool,
) -> io::Result<Option<u64>> {
    // A file that was cut may end before its records begin.
    let (mut low, mut high, mut seq) = (HEADER_BYTES, end.max(HEADER_BYTES), None);
    while high - low > WINDOW as u64 {
        let middle = (low + (high - low) / 2) & !7;
        match first_record(scanner, middle, high, lsns)? {
            Some((at, head)) if before(&head) => (low, seq) = (at, Some(head.first_seq())),
            _ => high = middle,
        }
    }
    scanner.go(low);
    Ok(seq)
}

/// The first record at or behind `from`, before `end`, and its place.
pub(super) fn first_record(
    scanner: &mut Scanner,
    from: u64,
    end: u64,
    lsns: &Range<u64>,
) -> io::Result<Option<(u64, Head)>> {
    scanner.go(from - 8);
    if !scanner.resync(end, lsns.clone())? {
        return Ok(None);
    }
    // None is behind the segment's records.
    let record = scanner.next()?.filter(|record| record.at < end && lsns.contains(&record.head.lsn));
    Ok(record.map(|Record { head, at, .. }| (at, head)))
}
