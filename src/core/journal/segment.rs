//! Segments: files of records, named by their first lsn.
//!
//! Bytes 0 … 4096 of `<first lsn, 20 digits>.seg` are the header, all numbers little-endian:
//!
//! ```text
//!  0  8 bytes  "castra\0J"    8  u32  format version     12  u32  CRC-32C of 8 … 12 and 16 … 72
//! 16  u128     journal id    32  u64  first lsn          40  u64  first seq
//! 48  u64      synced lsn    56  u64  synced seq         64  u64  ts
//! 72  u64      notes lsn     80  u64  snapshot lsn       88  u64  ids lsn    96  u64  ids snapshot lsn
//! 104 u32      CRC-32C of 72 … 104, begun with that at 12
//! ```
//!
//! `synced …`: what was durable, in this file or before it, when the file got its name; `ts`: no event
//! before this segment is younger; `notes lsn` and `snapshot lsn`: the [`Trail`] of the notes before this segment; the
//! other two: that of the ids. Version 2 has no ids, and the CRC of its notes at 88; version 1 ends before them. Both are
//! read, and no longer written. The first CRC leaves out what came later, so that a program that knows only an older
//! version sees a whole header of a later one, and refuses it. Always holds: a file has its name only after its header is durable;
//! a segment's records end where the next segment begins, whatever bytes follow in the file; segments are
//! sealed by the next one and never written again. Owner: `writer.rs` adds, `retain.rs` removes.

use super::aligned::Aligned;
use super::disk::{Disk, DiskFile};
use super::look::Next;
use super::notes::Trail;
use super::record::salt;
use std::io;
use std::sync::{PoisonError, RwLock};

/// Before the first record, in bytes.
pub const HEADER_BYTES: u64 = 4096;
/// The version of segments and records that are written.
pub const VERSION: u32 = 3;
/// The oldest that is read.
const OLDEST: u32 = 1;
const MAGIC: &[u8; 8] = b"castra\0J";
/// What every version has.
const COMMON: usize = 72;
/// Where the trails end that a version has.
const TRAILS_2: usize = 88;
const TRAILS: usize = 104;
const WRITTEN: usize = TRAILS + 4;

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The journal it belongs to.
    pub journal: u128,
    /// The lsn of its first record.
    pub first_lsn: u64,
    /// The seq of its first event.
    pub first_seq: u64,
    /// The last lsn that was durable when it got its name.
    pub synced_lsn: u64,
    /// The last seq that was.
    pub synced_seq: u64,
    /// No event before it has a later ts.
    pub ts: u64,
    /// Where the notes before it stand.
    pub notes: Trail,
    /// Where the snapshot of the ids before it stands.
    pub ids: Trail,
}

/// Why a header cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not castra's, or flipped bits.
    #[error("its header is damaged")]
    Damaged,
    /// Of a format this program does not know.
    #[error("it has format version {0}, this castra reads {OLDEST} to {VERSION}")]
    Version(u32),
}

impl Header {
    /// The file's name.
    pub fn name(&self) -> String {
        segment_name(self.first_lsn)
    }

    /// The salt of its records.
    pub fn salt(&self) -> u32 {
        salt(self.journal, self.first_lsn)
    }

    /// The bytes that stand at the file's beginning.
    pub fn encode(&self) -> [u8; WRITTEN] {
        let mut out = [0; WRITTEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.journal.to_le_bytes());
        let numbers = [self.first_lsn, self.first_seq, self.synced_lsn, self.synced_seq, self.ts];
        for (i, number) in numbers.iter().enumerate() {
            out[32 + 8 * i..40 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
        let trails = [self.notes.from, self.notes.open, self.ids.from, self.ids.open];
        for (i, number) in trails.iter().enumerate() {
            out[COMMON + 8 * i..COMMON + 8 * i + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        let trails = crc32c::crc32c_append(crc, &out[COMMON..TRAILS]);
        out[TRAILS..].copy_from_slice(&trails.to_le_bytes());
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`HeaderError`]; a version is believed only when the rest is whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let fixed = bytes.first_chunk::<COMMON>().ok_or(HeaderError::Damaged)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
        if fixed[..8] != MAGIC[..] || crc(fixed) != u32_at(12) {
            return Err(HeaderError::Damaged);
        }
        let end = match u32_at(8) {
            1 => COMMON,
            2 => TRAILS_2,
            VERSION => TRAILS,
            other => return Err(HeaderError::Version(other)),
        };
        let [notes, ids] = trails(bytes, end, u32_at(12)).ok_or(HeaderError::Damaged)?;
        Ok(Header {
            journal: u128::from_le_bytes(std::array::from_fn(|i| fixed[16 + i])),
            first_lsn: u64_at(32),
            first_seq: u64_at(40),
            synced_lsn: u64_at(48),
            synced_seq: u64_at(56),
            ts: u64_at(64),
            notes,
            ids,
        })
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// The file cannot be read; inside, [`HeaderError`].
    pub fn read(file: &dyn DiskFile) -> io::Result<Result<Self, HeaderError>> {
        let mut bytes = [0; WRITTEN];
        let n = file.read_at(&mut bytes, 0)?;
        Ok(Header::decode(&bytes[..n]))
    }
}

/// Of what every version has.
fn crc(header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[8..12]), &header[16..COMMON])
}

/// What later versions have behind it, up to `end`: of the notes and of the ids. What is not there is none.
fn trails(header: &[u8], end: usize, crc: u32) -> Option<[Trail; 2]> {
    let mut trails = [Trail::default(); 2];
    if end == COMMON {
        return Some(trails);
    }
    let said = header.get(end..end + 4)?;
    let numbers = header.get(COMMON..end)?;
    for (trail, pair) in trails.iter_mut().zip(numbers.chunks_exact(16)) {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| pair[at + i]));
        *trail = Trail { from: u64_at(0), open: u64_at(8) };
    }
    (crc32c::crc32c_append(crc, numbers).to_le_bytes() == said).then_some(trails)
}

/// `<first lsn, 20 digits>.seg`.
pub fn segment_name(first_lsn: u64) -> String {
    format!("{first_lsn:020}.seg")
}

/// The first lsn of a segment of that name.
pub fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// What is known of a segment without reading its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The lsn of its first record; names the file.
    pub first_lsn: u64,
    /// The seq of its first event.
    pub first_seq: u64,
    /// Where its records end in the file.
    pub end: u64,
    /// No event before it has a later ts.
    pub ts: u64,
}

#[derive(Debug)]
struct State {
    segments: Vec<Segment>,
    durable_seq: u64,
    newest_ts: u64,
    notes: Trail,
    ids: Trail,
    /// There are ids, and no snapshot of them.
    bare: bool,
    /// VMs that the newest snapshot of ids that this process made had no room for.
    left_out: usize,
}

/// The journal's map: which segments there are and how far they are durable. Shared by the one writer
/// and all readers.
#[derive(Debug)]
pub struct Map {
    /// The journal's id.
    pub journal: u128,
    state: RwLock<State>,
}

impl Map {
    /// A map of these segments, oldest first; all before `next` is durable.
    pub(super) fn new(journal: u128, segments: Vec<Segment>, next: &Next) -> Self {
        let Next { seq, notes, ids, .. } = *next;
        let state =
            State { segments, durable_seq: seq - 1, newest_ts: 0, notes, ids, bare: false, left_out: 0 };
        Map { journal, state: RwLock::new(state) }
    }

    fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The last event covered by an fdatasync that returned 0 (invariant 1); 0 when there is none.
    pub fn durable_seq(&self) -> u64 {
        self.read(|s| s.durable_seq)
    }

    /// The newest ts that this process gave, in milliseconds; 0 when it gave none.
    pub fn newest_ts(&self) -> u64 {
        self.read(|s| s.newest_ts)
    }

    /// Where the notes stand that are durable.
    pub fn notes(&self) -> Trail {
        self.read(|s| s.notes)
    }

    /// Where the snapshot of the ids stands that is durable.
    pub fn ids(&self) -> Trail {
        self.read(|s| s.ids)
    }

    /// The first lsn that the next start needs, of notes or ids; 0 when it needs none. Ids without a snapshot may be in any
    /// segment.
    pub fn needed(&self) -> u64 {
        let needed = self.read(|s| [s.notes.from, if s.bare { 1 } else { s.ids.from }]);
        needed.into_iter().filter(|lsn| *lsn > 0).min().unwrap_or(0)
    }

    /// There are ids that were seen, or not.
    pub(super) fn has_ids(&self, has_ids: bool) {
        self.write(|s| s.bare = has_ids && s.ids.from == 0);
    }

    /// The newest snapshot of ids has no room for those of so many VMs.
    pub(super) fn leaves_out(&self, vms: usize) {
        self.write(|s| s.left_out = vms);
    }

    /// VMs whose newest ids would not be known after a restart but for what the end of the journal has of them; 0 until
    /// this process began a segment.
    pub fn ids_left_out(&self) -> usize {
        self.read(|s| s.left_out)
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<Segment> {
        self.read(|s| s.segments.clone())
    }

    /// The segment that `seq` is in, or would be, and the one after it. `None` when `seq` is older than all.
    pub fn find(&self, seq: u64) -> Option<(Segment, Option<Segment>)> {
        self.read(|s| {
            let i = s.segments.partition_point(|segment| segment.first_seq <= seq).checked_sub(1)?;
            Some((s.segments[i], s.segments.get(i + 1).copied()))
        })
    }

    /// The segment of that first lsn, and the one after it.
    pub fn after(&self, first_lsn: u64) -> Option<(Segment, Option<Segment>)> {
        self.read(|s| {
            let i = s.segments.binary_search_by_key(&first_lsn, |segment| segment.first_lsn).ok()?;
            Some((s.segments[i], s.segments.get(i + 1).copied()))
        })
    }

    /// The seq of the oldest event that may be read.
    pub fn first_seq(&self) -> u64 {
        self.read(|s| s.segments.first().map_or(s.durable_seq + 1, |segment| segment.first_seq))
    }

    /// The newest segment's records end at `end`, and those before `next` are durable.
    pub(super) fn advance(&self, end: u64, next: &Next) {
        self.write(|s| {
            (s.durable_seq, s.newest_ts) = (next.seq - 1, next.ts);
            (s.notes, s.ids) = (next.notes, next.ids);
            if let Some(last) = s.segments.last_mut() {
                last.end = end;
            }
        });
    }

    /// A new newest segment. One without records, of the same name, gives way.
    pub(super) fn push(&self, segment: Segment) {
        self.write(|s| {
            s.segments.retain(|old| old.first_lsn < segment.first_lsn);
            s.segments.push(segment);
        });
    }

    /// Forgets the oldest segment.
    pub(super) fn forget_oldest(&self) {
        self.write(|s| drop(s.segments.drain(..s.segments.len().min(1))));
    }

    /// What was forgotten is there after all.
    pub(super) fn remember_oldest(&self, segment: Segment) {
        self.write(|s| s.segments.insert(0, segment));
    }
}

/// Gives `file`, which is `name` and zeros, its header and its name as a segment. When this returns `Ok`
/// everything in the file is durable under the new name.
///
/// # Errors
/// Any call's; the file may then be there under either name. `StorageFull` only when it has its old one.
pub fn activate(disk: &dyn Disk, file: &dyn DiskFile, name: &str, header: &Header) -> io::Result<()> {
    let mut block = Aligned::default();
    block.push(&header.encode());
    file.write_at(block.blocks(), 0)?;
    file.sync()?;
    disk.rename(name, &header.name())?;
    // From here on the next start may find the new name, whatever the reason of a failure.
    disk.sync_dir().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header = Header {
            journal: 7 << 90,
            first_lsn: 42,
            first_seq: 40,
            synced_lsn: 45,
            synced_seq: 41,
            ts: 9,
            notes: Trail { from: 30, open: 41 },
            ids: Trail { from: 20, open: 31 },
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(
            (header.name().as_str(), parse_name(&header.name())),
            ("00000000000000000042.seg", Some(42))
        );
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&flipped), Err(HeaderError::Damaged));
        }
        let mut newer = bytes;
        newer[8] = 4;
        let crc = crc(&newer);
        newer[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&newer), Err(HeaderError::Version(4)));
        for cut in [71, 72, 107] {
            assert_eq!(Header::decode(&bytes[..cut]), Err(HeaderError::Damaged));
        }
        // As it was written before there were ids.
        let mut older = bytes;
        older[8] = 2;
        let crc = super::crc(&older);
        older[12..16].copy_from_slice(&crc.to_le_bytes());
        let notes = crc32c::crc32c_append(crc, &older[72..88]);
        older[88..92].copy_from_slice(&notes.to_le_bytes());
        let without = Header { ids: Trail::default(), ..header };
        assert_eq!(Header::decode(&older), Ok(without));
        assert_eq!(Header::decode(&older[..92]), Ok(without));
        older[80] ^= 1;
        assert_eq!(Header::decode(&older), Err(HeaderError::Damaged));
        // As it was written before there were notes: nothing behind its 72 bytes counts.
        let mut older = bytes;
        older[8] = 1;
        let crc = super::crc(&older);
        older[12..16].copy_from_slice(&crc.to_le_bytes());
        let without = Header { notes: Trail::default(), ids: Trail::default(), ..header };
        assert_eq!(Header::decode(&older), Ok(without));
        assert_eq!(Header::decode(&older[..72]), Ok(without));
        for name in ["spare", "42.seg", "0000000000000000004x.seg", "00000000000000000042.seg2"] {
            assert_eq!(parse_name(name), None);
        }
    }
}
