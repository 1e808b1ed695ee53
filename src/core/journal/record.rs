//! Records: what a segment is made of.
//!
//! ```text
//!  0  u32  CRC-32C of bytes 4 … 48+length, begun with the segment's salt
//!  4  u32  length of the body
//!  8  u64  lsn         16  u64  seq; of a record that is no event, the last event's before it
//! 24  u64  ts          32  u64  synced: the last lsn known durable when this was written
//! 40  u8   kind        41  u8   flags (1: joined with the next record, both or none;
//!                             2: the publisher gave the id; 4: the event has a ttl_ms)
//! 42  u16  vm at       44  u16  topic length      46  u8  vm length     47  u8  class of a note or of ids
//! 48       body, then zeros up to a multiple of 8
//! ```
//!
//! All numbers little-endian. The body of an event is its line ([`crate::core::event`]), newline included;
//! that of a note ([`super::notes`]) its owner's bytes, that of ids what `snapshot.rs` says; a marker has none. Always holds: no bytes panic; a record that decodes is one that was encoded with
//! this salt, but for one chance in 2^32. Pure. Owner: `commit.rs` writes, `scan.rs` reads.

use super::notes::Class;
use crate::core::event::Layout;
use crate::core::limits::LETTER_BYTES;

/// The fixed part, in bytes.
pub const HEAD_BYTES: usize = 48;
/// Records begin at multiples of this.
pub const ALIGN: usize = 8;
/// The longest body, in bytes.
pub const BODY_BYTES: usize = LETTER_BYTES + 1;
const JOINED: u8 = 1;
const OWN_ID: u8 = 2;
const EXPIRES: u8 = 4;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An event, with a seq.
    Event,
    /// Nothing but its `synced`: carries durability over the last batch when the journal falls idle.
    Marker,
    /// What somebody else keeps here.
    Note(Class),
    /// Of a snapshot of the ids that were seen, which the journal keeps itself.
    Ids(Class),
}

impl Kind {
    /// The bytes 40 and 47.
    fn bytes(self) -> (u8, u8) {
        match self {
            Kind::Event => (1, 0),
            Kind::Marker => (2, 0),
            Kind::Note(class) => (3, class as u8),
            Kind::Ids(class) => (4, class as u8),
        }
    }

    fn from_bytes(kind: u8, class: u8) -> Option<Self> {
        match kind {
            1 => Some(Kind::Event),
            2 => Some(Kind::Marker),
            3 => Class::from_byte(class).map(Kind::Note),
            4 => Class::from_byte(class).map(Kind::Ids),
            _ => None,
        }
    }
}

/// A record's fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Dense over all records.
    pub lsn: u64,
    /// Dense over events; others repeat the last event's before them, so that any record tells where
    /// it stands among the events.
    pub seq: u64,
    /// Wall time in milliseconds, never going back.
    pub ts: u64,
    /// The last lsn known durable when this record was written.
    pub synced: u64,
    /// What it is.
    pub kind: Kind,
    /// This and the next record are one publish.
    pub joined: bool,
    /// Where an event's line has its VM and topic, and whose its id is.
    pub layout: Layout,
}

impl Head {
    /// The seq of the first event here or behind.
    pub fn first_seq(&self) -> u64 {
        if self.kind == Kind::Event { self.seq } else { self.seq + 1 }
    }
}

/// What stands at some place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A valid record: its head, its body, and how many bytes it takes.
    Record(Head, &'a [u8], usize),
    /// Zeros: nothing was written here.
    Blank,
    /// It may be a record; this many bytes are needed to tell.
    Short(usize),
    /// No record.
    Bad,
}

/// The CRC's beginning for all records of one segment, so that bytes of another journal or segment are
/// no records of this one.
pub fn salt(journal: u128, first_lsn: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&journal.to_le_bytes()), &first_lsn.to_le_bytes())
}

/// How many bytes a record with such a body takes.
pub fn size(body: usize) -> usize {
    (HEAD_BYTES + body).next_multiple_of(ALIGN)
}

/// Appends a record whose body is the `parts` one after the other.
pub fn encode(out: &mut Vec<u8>, salt: u32, head: &Head, parts: [&[u8]; 2]) {
    let at = out.len();
    let length = parts[0].len() + parts[1].len();
    let mut fixed = [0u8; HEAD_BYTES];
    fixed[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    fixed[8..16].copy_from_slice(&head.lsn.to_le_bytes());
    fixed[16..24].copy_from_slice(&head.seq.to_le_bytes());
    fixed[24..32].copy_from_slice(&head.ts.to_le_bytes());
    fixed[32..40].copy_from_slice(&head.synced.to_le_bytes());
    (fixed[40], fixed[47]) = head.kind.bytes();
    let flags = [(head.joined, JOINED), (head.layout.own_id, OWN_ID), (head.layout.expires, EXPIRES)];
    fixed[41] = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
    fixed[42..44].copy_from_slice(&head.layout.vm_at.to_le_bytes());
    fixed[44..46].copy_from_slice(&head.layout.topic_len.to_le_bytes());
    fixed[46] = head.layout.vm_len;
    out.extend_from_slice(&fixed);
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
    let crc = crc32c::crc32c_append(salt, &out[at + 4..]);
    out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(at + size(length), 0);
}

/// The lsn that stands where a record's would; a cheap first look before [`decode`].
pub fn peek_lsn(bytes: &[u8]) -> Option<u64> {
    bytes.get(8..16)?.try_into().ok().map(u64::from_le_bytes)
}

/// Reads what begins at `bytes`.
pub fn decode(bytes: &[u8], salt: u32) -> Decoded<'_> {
    let Some(fixed) = bytes.first_chunk::<HEAD_BYTES>() else { return Decoded::Short(HEAD_BYTES) };
    if fixed.iter().all(|b| *b == 0) {
        return Decoded::Blank;
    }
    let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
    let u16_at = |at: usize| u16::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
    let length = u32_at(4) as usize;
    let Some(kind) = Kind::from_bytes(fixed[40], fixed[47]) else { return Decoded::Bad };
    if length > BODY_BYTES || (kind == Kind::Event && u64_at(16) == 0) {
        return Decoded::Bad;
    }
    let Some(whole) = bytes.get(..HEAD_BYTES + length) else { return Decoded::Short(HEAD_BYTES + length) };
    if crc32c::crc32c_append(salt, &whole[4..]) != u32_at(0) {
        return Decoded::Bad;
    }
    let head = Head {
        lsn: u64_at(8),
        seq: u64_at(16),
        ts: u64_at(24),
        synced: u64_at(32),
        kind,
        joined: fixed[41] & JOINED != 0,
        layout: Layout {
            vm_at: u16_at(42),
            topic_len: u16_at(44),
            vm_len: fixed[46],
            // Not set by those who wrote journals before it meant something.
            own_id: fixed[41] & OWN_ID != 0,
            expires: fixed[41] & EXPIRES != 0,
        },
    };
    Decoded::Record(head, &whole[HEAD_BYTES..], size(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn head(lsn: u64, kind: Kind) -> Head {
        let layout = Layout {
            vm_at: 60,
            vm_len: 9,
            topic_len: 300,
            own_id: lsn.is_multiple_of(3),
            expires: lsn.is_multiple_of(5),
        };
        Head { lsn, seq: lsn, ts: lsn + 5, synced: lsn - 1, kind, joined: lsn.is_multiple_of(2), layout }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_nothing_else(
            body in vec(any::<u8>(), 0..200), lsn in 1u64.., class in 0u8..6, salt in any::<u32>(), bit in any::<proptest::sample::Index>(), cut in any::<proptest::sample::Index>()
        ) {
            let lsn = lsn.min(u64::MAX - 5);
            let mut out = Vec::new();
            let kind = Class::from_byte(class).map_or(if class == 0 { Kind::Event } else { Kind::Marker }, Kind::Note);
            encode(&mut out, salt, &head(lsn, kind), [&body[..body.len() / 2], &body[body.len() / 2..]]);
            prop_assert_eq!(out.len(), size(body.len()));
            prop_assert_eq!(decode(&out, salt), Decoded::Record(head(lsn, kind), &body, out.len()));
            prop_assert_eq!(peek_lsn(&out), Some(lsn));
            prop_assert_eq!(decode(&out, salt ^ 1), Decoded::Bad);
            let written = HEAD_BYTES + body.len();
            let short = cut.index(written);
            prop_assert!(matches!(decode(&out[..short], salt), Decoded::Short(n) if n > short && n <= written));
            let bit = bit.index(written * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(decode(&out, salt), Decoded::Record(..)));
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..120), salt in any::<u32>()) {
            let _ = decode(&bytes, salt);
        }
    }

    #[test]
    fn zeros_are_blank() {
        assert_eq!(decode(&[0; 64], 7), Decoded::Blank);
        assert_eq!(decode(&[0; 47], 7), Decoded::Short(48));
    }
}
