//! A journal as it is: every event that can be read and every range that cannot, in order.
//!
//! The same look as recovery takes, on files that are held open, so that it works beside a broker, on a copy
//! and on a disk that is mounted read-only. Always holds: nothing is written; nothing is called damage that was
//! not known durable when the look was taken. Owner: `verify/pass.rs` and `backup.rs`.

use super::damage::{Damage, Found, check};
use super::disk::DiskFile;
use super::held::Held;
use super::look::{Look, Next, OpenError, Walked, look};
use super::record::{Kind, size};
use super::segment::{HEADER_BYTES, Segment, segment_name};
use crate::core::event::Event;
use std::io;

/// A journal that is only read.
pub struct Inspection {
    held: Held,
    journal: u128,
    segments: Vec<Segment>,
    /// Damaged headers.
    headers: Vec<Damage>,
    walked: Option<Walked>,
    /// What is missing at the end, as others say.
    lost: Option<Damage>,
    /// Why the next start will refuse it.
    unusable: Option<OpenError>,
}

impl Inspection {
    /// Looks at the segments that are held. Events up to `stored` are known to have been durable; 0 when
    /// nobody says so.
    ///
    /// # Errors
    /// [`OpenError`]: a segment cannot be read at all, or must not be.
    pub fn open(held: Held, journal: u128, stored: u64) -> Result<Self, OpenError> {
        let (mut held, mut unreadable, mut unusable) = (held, None, None);
        let Look { mut segments, mut damage, walked } = loop {
            match look(&held, journal) {
                // The newest says nothing of itself; the one before it is all there is to go by.
                Err(OpenError::Unusable { segment, lost: true, why }) => {
                    held = held.without(&segment);
                    unreadable = Some(segment.clone());
                    unusable = Some(OpenError::Unusable { segment, why, lost: true });
                }
                look => break look?,
            }
        };
        if let (Some(last), Some(walked)) = (segments.last_mut(), &walked) {
            last.end = walked.valid_end;
        }
        damage.retain(|damage| damage.lsns.is_empty());
        let next = walked.as_ref().map_or(Next { lsn: 1, seq: 1, ..Next::default() }, |walked| walked.next);
        let mut lost = None;
        if unreadable.is_some() || next.seq <= stored {
            let newest = segments.last().map_or(segment_name(1), |last| segment_name(last.first_lsn));
            let at = if unreadable.is_some() { 0 } else { segments.last().map_or(0, |last| last.end) };
            let seqs = next.seq..next.seq.max(stored.saturating_add(1));
            let lsns = next.lsn..next.lsn.saturating_add((seqs.end - seqs.start).max(1));
            lost = Some(Damage { segment: unreadable.unwrap_or(newest), at, lsns, seqs });
        }
        Ok(Inspection { held, journal, segments, headers: damage, walked, lost, unusable })
    }

    /// Why no broker starts on it, though what else there is can be read.
    pub fn take_unusable(&mut self) -> Option<OpenError> {
        self.unusable.take()
    }

    /// The segments, oldest first; the newest ends behind its last valid record.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// The oldest event that there may be.
    pub fn first_seq(&self) -> u64 {
        self.segments.first().map_or(1, |segment| segment.first_seq)
    }

    /// The newest event that the next start would find.
    pub fn head_seq(&self) -> u64 {
        self.walked.as_ref().map_or(0, |walked| walked.next.seq - 1)
    }

    /// The newest event that the journal itself says was durable.
    pub fn durable_seq(&self) -> u64 {
        self.walked.as_ref().map_or(0, |walked| walked.known.seq - 1)
    }

    /// Events behind that one, which the next start makes durable.
    pub fn tail(&self) -> u64 {
        self.head_seq() - self.durable_seq()
    }

    /// The bytes of the records that the next start writes anew.
    pub fn tail_bytes(&self) -> u64 {
        self.walked.iter().flat_map(|walked| &walked.tail).map(|(_, body)| size(body.len()) as u64).sum()
    }

    /// How many bytes behind the last record are not zero: what a stop in the middle of a write left.
    ///
    /// # Errors
    /// The newest segment cannot be read.
    pub fn torn_bytes(&self) -> io::Result<u64> {
        const STEP: u64 = 1024 * 1024;
        let (Some(walked), Some(last)) = (&self.walked, self.segments.last()) else { return Ok(0) };
        let end = (walked.known_end + self.tail_bytes()).max(walked.used_end).max(HEADER_BYTES);
        let Some(file) = self.held.file(&segment_name(last.first_lsn)) else { return Ok(0) };
        let (mut at, mut bytes) = (file.size()?, Vec::new());
        while at > end {
            let from = at.saturating_sub(STEP).max(end);
            bytes.resize((at - from) as usize, 0);
            let n = file.read_at(&mut bytes, from)?;
            if let Some(last) = bytes[..n].iter().rposition(|b| *b != 0) {
                return Ok(from + last as u64 + 1 - end);
            }
            at = from;
        }
        Ok(0)
    }

    /// Hands out everything, in order, until `each` fails.
    ///
    /// # Errors
    /// What `each` says, or a segment that cannot be read at all.
    pub fn read(&self, each: &mut dyn FnMut(Found<'_>) -> io::Result<()>) -> io::Result<()> {
        for (i, segment) in self.segments.iter().enumerate() {
            let name = segment_name(segment.first_lsn);
            for damage in self.headers.iter().filter(|damage| damage.segment == name) {
                each(Found::Lost(damage.clone()))?;
            }
            let next = match (self.segments.get(i + 1), &self.walked) {
                (Some(next), _) => (next.first_lsn, next.first_seq),
                (None, Some(walked)) => (walked.known.lsn, walked.known.seq),
                (None, None) => (segment.first_lsn, segment.first_seq),
            };
            check(&self.held, self.journal, segment, next, each)?;
        }
        // As they were seen: a broker that finds its disk full may take back what it has not promised.
        for (head, body) in self.walked.iter().flat_map(|walked| &walked.tail) {
            if head.kind == Kind::Event {
                let event = Event { seq: head.seq, ts: head.ts, line: body, layout: head.layout };
                each(Found::Event(event))?;
            }
        }
        self.lost.iter().try_for_each(|lost| each(Found::Lost(lost.clone())))
    }

    /// The files that were looked at.
    pub fn held(&self) -> &Held {
        &self.held
    }
}
