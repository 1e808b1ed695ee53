//! `<first lsn>.ids`: where in a sealed segment the event of an id stands.
//!
//! Blocks of 4,096 bytes, all numbers little-endian:
//!
//! ```text
//!  0  u32  CRC-32C of bytes 4 … 4096, begun with the segment's salt
//!  4  u32  version: 1              8  u32  number of this block, from 0     12  u32  how many blocks there are
//! 16  u64  the segment's end: the next segment's first lsn                  24  u32  entries here        28  zeros
//! 32       entries, in order over all blocks: u64 hash of the id, u32 hash of the VM's name, u32 place in the
//!          segment, in units of 8 bytes; then zeros
//! ```
//!
//! It is made when an id is first looked for in the segment, and costs nobody anything before. Always holds: it is no
//! truth: a block whose checksum, number or segment is another counts for nothing, and what an entry says is compared
//! with the event; so it needs no sync. One that is missing or damaged is made anew; where it cannot be kept, or the
//! segment is damaged, the segment is read instead. Making it takes memory for [`INDEX_EVENTS`] entries. Owner:
//! `lookup.rs`; `retain.rs` removes it with its segment.

use super::disk::{Disk, DiskFile};
use super::record::{Kind, salt};
use super::scan::Scanner;
use super::segment::{Map, Segment, parse_name, segment_name};
use crate::core::event::Event;
use crate::core::limits::INDEX_EVENTS;
use siphasher::sip::SipHasher13;
use std::io;

const BLOCK: usize = 4096;
const HEAD: usize = 32;
const ENTRY: usize = 16;
/// Entries of a block.
const ENTRIES: usize = (BLOCK - HEAD) / ENTRY;
const VERSION: u32 = 1;

/// The file's name.
pub(super) fn index_name(first_lsn: u64) -> String {
    format!("{first_lsn:020}.ids")
}

/// What is looked for.
pub(super) struct Wanted<'a> {
    /// The id, as an event's line has it.
    pub id: &'a [u8],
    /// Whose; anybody's when there is none.
    pub vm: Option<&'a [u8]>,
}

impl Wanted<'_> {
    /// This event is one.
    pub fn is(&self, event: &Event<'_>) -> bool {
        event.has_id(self.id) && self.vm.is_none_or(|vm| vm == event.vm())
    }
}

/// A sealed segment.
pub(super) struct Sealed {
    pub journal: u128,
    pub segment: Segment,
    /// The next one's first lsn and seq.
    pub end: (u64, u64),
}

/// Hash of the id, hash of the VM's name, place.
type Entry = (u64, u32, u32);

/// What the index says.
pub(super) enum Answer {
    /// The newest event of that id in the segment has this seq.
    Found(u64),
    /// None in the segment has it.
    Nowhere,
    /// There is no index.
    Unknown,
}

impl Sealed {
    /// Looks in the index; makes it before that when there is none.
    pub fn find(&self, disk: &dyn Disk, map: &Map, wanted: &Wanted<'_>) -> io::Result<Answer> {
        let answer = match self.ask(disk, wanted) {
            Ok(Answer::Unknown) if self.make(disk, map).unwrap_or(false) => self.ask(disk, wanted),
            asked => asked,
        };
        match answer {
            // Retention took the segment in this moment.
            Err(_) if map.after(self.segment.first_lsn).is_none() => Ok(Answer::Nowhere),
            answer => answer,
        }
    }

    fn ask(&self, disk: &dyn Disk, wanted: &Wanted<'_>) -> io::Result<Answer> {
        let Ok(file) = disk.open(&index_name(self.segment.first_lsn)) else { return Ok(Answer::Unknown) };
        let mut blocks = Blocks { file, salt: self.salt(), end_lsn: self.end.0, bytes: vec![0; BLOCK] };
        let (id, vm) = (self.hash(wanted.id), wanted.vm.map(|vm| self.hash(vm) as u32));
        let Some(places) = blocks.places(id, vm) else { return Ok(Answer::Unknown) };
        let mut scanner = self.scanner(disk)?;
        for place in places {
            scanner.go(u64::from(place) * 8);
            if let Some(record) = scanner.next()?
                && record.head.kind == Kind::Event
                && record.head.lsn < self.end.0
                && wanted.is(&record.event())
            {
                return Ok(Answer::Found(record.head.seq));
            }
        }
        Ok(Answer::Nowhere)
    }

    /// Makes it, as far as that can be kept; false when it is not.
    fn make(&self, disk: &dyn Disk, map: &Map) -> io::Result<bool> {
        let first_lsn = self.segment.first_lsn;
        let events = self.end.1.saturating_sub(self.segment.first_seq);
        // The next segments come first.
        let room = 4 * self.segment.end + events * ENTRY as u64;
        if self.segment.end / 8 > u64::from(u32::MAX) || disk.free_bytes()? < room {
            return Ok(false);
        }
        let (name, new) = (index_name(first_lsn), format!("{}.new", index_name(first_lsn)));
        let kept = self.fill(disk, &new, events).and_then(|whole| {
            if whole {
                disk.rename(&new, &name)?;
            }
            Ok(whole)
        });
        if !matches!(kept, Ok(true)) {
            let _ = disk.remove(&new);
        }
        if map.after(first_lsn).is_none() {
            // Retention took the segment meanwhile.
            let _ = disk.remove(&name);
        }
        kept
    }

    /// Writes all blocks; false when some of the segment cannot be read.
    fn fill(&self, disk: &dyn Disk, name: &str, events: u64) -> io::Result<bool> {
        let file = disk.create(name)?;
        let passes = events.div_ceil(INDEX_EVENTS as u64).max(1);
        let blocks = u32::try_from(events.div_ceil(ENTRIES as u64).max(1)).map_err(io::Error::other)?;
        let (mut writer, mut left) = (Writer { sealed: self, file, blocks, number: 0 }, events);
        let (mut entries, mut bytes): (Vec<Entry>, Vec<u8>) = (Vec::new(), Vec::new());
        for pass in 0..passes {
            let from = entries.len();
            if !self.collect(
                disk,
                |hash| (u128::from(hash) * u128::from(passes)) >> 64 == u128::from(pass),
                &mut entries,
            )? {
                return Ok(false);
            }
            left = left.saturating_sub((entries.len() - from) as u64);
            entries[from..].sort_unstable_by_key(|(id, _, place)| (*id, *place));
            // What does not fill a block waits for the next pass.
            let whole = if pass + 1 == passes { entries.len() } else { entries.len() / ENTRIES * ENTRIES };
            writer.write(&entries[..whole], &mut bytes)?;
            entries.drain(..whole);
        }
        Ok(left == 0 && writer.number == blocks)
    }

    /// The entries of all events whose id's hash is `meant`; false when some of the segment cannot be read.
    fn collect(
        &self,
        disk: &dyn Disk,
        meant: impl Fn(u64) -> bool,
        entries: &mut Vec<Entry>,
    ) -> io::Result<bool> {
        let (mut scanner, mut lsn) = (self.scanner(disk)?, self.segment.first_lsn);
        while lsn < self.end.0 {
            let Some(record) = scanner.next()? else { return Ok(false) };
            if record.head.lsn != lsn {
                return Ok(false);
            }
            lsn += 1;
            if record.head.kind == Kind::Event {
                let event = record.event();
                let id = self.hash(event.id());
                if meant(id) {
                    entries.push((id, self.hash(event.vm()) as u32, (record.at / 8) as u32));
                }
            }
        }
        Ok(true)
    }

    fn scanner(&self, disk: &dyn Disk) -> io::Result<Scanner> {
        Ok(Scanner::new(disk.open(&segment_name(self.segment.first_lsn))?, self.salt()))
    }

    fn salt(&self) -> u32 {
        salt(self.journal, self.segment.first_lsn)
    }

    /// Nobody who publishes knows the journal's id.
    fn hash(&self, bytes: &[u8]) -> u64 {
        SipHasher13::new_with_key(&self.journal.to_le_bytes()).hash(bytes)
    }
}

struct Writer<'a> {
    sealed: &'a Sealed,
    file: Box<dyn DiskFile>,
    blocks: u32,
    number: u32,
}

impl Writer<'_> {
    /// The next blocks, all but the last of them full.
    fn write(&mut self, entries: &[Entry], bytes: &mut Vec<u8>) -> io::Result<()> {
        const TOGETHER: usize = 64;
        for blocks in entries.chunks(ENTRIES * TOGETHER).chain(self.is_empty(entries)) {
            let at = u64::from(self.number) * BLOCK as u64;
            bytes.clear();
            if blocks.is_empty() {
                self.block(&[], bytes);
            }
            blocks.chunks(ENTRIES).for_each(|entries| self.block(entries, bytes));
            self.file.write_at(bytes, at)?;
        }
        Ok(())
    }

    /// A segment without events has one block.
    fn is_empty<'e>(&self, entries: &'e [Entry]) -> Option<&'e [Entry]> {
        (entries.is_empty() && self.number == 0 && self.blocks == 1).then_some(entries)
    }

    fn block(&mut self, entries: &[Entry], out: &mut Vec<u8>) {
        let at = out.len();
        for word in [0, VERSION, self.number, self.blocks] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.sealed.end.0.to_le_bytes());
        out.extend_from_slice(&(entries.len() as u64).to_le_bytes());
        for (id, vm, place) in entries {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&vm.to_le_bytes());
            out.extend_from_slice(&place.to_le_bytes());
        }
        out.resize(at + BLOCK, 0);
        let crc = crc32c::crc32c_append(self.sealed.salt(), &out[at + 4..]);
        out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        self.number += 1;
    }
}

/// An index that is read.
struct Blocks {
    file: Box<dyn DiskFile>,
    salt: u32,
    end_lsn: u64,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Where events of that id may stand, the last first; `None` when the index cannot be used.
    fn places(&mut self, id: u64, vm: Option<u32>) -> Option<Vec<u32>> {
        let size = self.file.size().ok()?;
        let blocks = u32::try_from(size / BLOCK as u64).ok().filter(|_| size.is_multiple_of(BLOCK as u64))?;
        // Behind the last block that begins at or before it.
        let (mut low, mut high) = (0, blocks);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.read(middle, blocks)?.first() {
                Some((first, ..)) if *first <= id => low = middle,
                _ => high = middle,
            }
        }
        let mut places = Vec::new();
        for number in (0..high).rev() {
            let entries = self.read(number, blocks)?;
            let same = entries.iter().rev().filter(|entry| entry.0 == id);
            places.extend(same.filter(|entry| vm.is_none_or(|vm| vm == entry.1)).map(|entry| entry.2));
            if entries.first().is_some_and(|first| first.0 < id) {
                break;
            }
        }
        (blocks > 0).then_some(places)
    }

    /// The entries of a block; `None` when it is none.
    fn read(&mut self, number: u32, blocks: u32) -> Option<Vec<Entry>> {
        let n = self.file.read_at(&mut self.bytes, u64::from(number) * BLOCK as u64).ok()?;
        let bytes = &self.bytes;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let is_whole = n == BLOCK && crc32c::crc32c_append(self.salt, &bytes[4..]) == u32_at(0);
        let is_it =
            [u32_at(4), u32_at(8), u32_at(12)] == [VERSION, number, blocks] && u64_at(16) == self.end_lsn;
        let count = u32_at(24) as usize;
        (is_whole && is_it && count <= ENTRIES).then(|| {
            let entry = |at| (u64_at(at), u32_at(at + 8), u32_at(at + 12));
            (0..count).map(|i| entry(HEAD + i * ENTRY)).collect()
        })
    }
}

/// Removes what is of no segment, of one that is still written, or was not finished.
pub(super) fn clean(disk: &dyn Disk, map: &Map) -> io::Result<()> {
    let segments = map.segments();
    let sealed = segments.split_last().map_or(&[][..], |(_, sealed)| sealed);
    for name in disk.list()? {
        let Some((lsn, rest)) = name.split_once('.').filter(|(_, rest)| rest.starts_with("ids")) else {
            continue;
        };
        let lsn = parse_name(&format!("{lsn}.seg"));
        let is_known = lsn.is_some_and(|lsn| sealed.iter().any(|segment| segment.first_lsn == lsn));
        if lsn.is_some() && !(rest == "ids" && is_known) {
            disk.remove(&name)?;
        }
    }
    Ok(())
}
