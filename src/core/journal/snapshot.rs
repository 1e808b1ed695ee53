//! The ids that were seen as records: what every segment begins with, so that the next start knows them.
//!
//! ```text
//! begin  the key (16 bytes), how many VMs follow (u32)
//! part   of each VM the length of its name (u8), its name, how many ids (u16), and of each, oldest first,
//!        its hash (two u64) and its event's seq (u64); as many whole VMs as a record holds
//! end    nothing
//! ```
//!
//! All numbers little-endian. Always holds: it takes no more room than it was given, and then lacks the VMs whose newest
//! id is the oldest; no bytes panic; what is not whole is no snapshot. Pure. Owner: `writer.rs` writes it, `refill.rs`
//! reads it.

use super::notes::Class;
use super::record::size;
use super::seen::{Known, Ring, Seen};
use crate::core::limits::{NAME_BYTES, NOTE_BYTES, SEEN_IDS};
use std::cmp::Reverse;

const BEGIN_BYTES: usize = 20;
const ID_BYTES: usize = 24;

/// Hands out the bodies of the records of `seen`, which take `most` bytes at the most; how many VMs had no room.
pub fn write(seen: &Seen, most: u64, each: &mut dyn FnMut(Class, &[u8])) -> usize {
    let mut vms: Vec<(&[u8], &Ring)> = seen.vms().filter(|(_, ring)| ring.newest() > 0).collect();
    vms.sort_by_cached_key(|(_, ring)| Reverse(ring.newest()));
    let parts = pack(&vms, most.saturating_sub((size(BEGIN_BYTES) + size(0)) as u64));
    let count = parts.last().map_or(0, |part| part.end);
    let mut body = seen.key().to_vec();
    body.extend_from_slice(&(count as u32).to_le_bytes());
    each(Class::SnapshotBegin, &body);
    for part in parts {
        body.clear();
        for (vm, ring) in &vms[part] {
            let known = ring.known();
            body.push(vm.len() as u8);
            body.extend_from_slice(vm);
            body.extend_from_slice(&(known.len() as u16).to_le_bytes());
            for Known { hash, seq } in known {
                [hash[0], hash[1], seq].iter().for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
            }
        }
        each(Class::SnapshotPart, &body);
    }
    each(Class::SnapshotEnd, b"");
    vms.len() - count
}

/// Which of the VMs stand in each part, from the first on, as long as their records fit `left`.
fn pack(vms: &[(&[u8], &Ring)], left: u64) -> Vec<std::ops::Range<usize>> {
    let (mut parts, mut begin, mut before, mut body) = (Vec::new(), 0, 0, 0);
    let mut end = 0;
    for (vm, ring) in vms {
        let bytes = 3 + vm.len() + ID_BYTES * ring.known().len();
        if body + bytes > NOTE_BYTES {
            parts.push(begin..end);
            (begin, before, body) = (end, before + size(body) as u64, 0);
        }
        if before + size(body + bytes) as u64 > left {
            break;
        }
        (end, body) = (end + 1, body + bytes);
    }
    if end > begin {
        parts.push(begin..end);
    }
    parts
}

/// A snapshot that is read.
#[derive(Debug)]
pub struct Reading {
    seen: Seen,
    left: u32,
    seq: u64,
}

impl Reading {
    /// Of this begin, behind the event `seq`; `None` when it is none.
    pub fn begin(body: &[u8], seq: u64) -> Option<Self> {
        let mut rest = body;
        let (key, left) = (take(&mut rest)?, take(&mut rest).map(u32::from_le_bytes)?);
        rest.is_empty().then(|| Reading { seen: Seen::new(key), left, seq })
    }

    /// The next part; `None` when it is none.
    pub fn part(&mut self, body: &[u8]) -> Option<()> {
        let mut rest = body;
        while !rest.is_empty() {
            let [length] = take(&mut rest)?;
            let (vm, behind) =
                rest.split_at_checked(length.into()).filter(|_| (length as usize) <= NAME_BYTES)?;
            rest = behind;
            let count = usize::from(u16::from_le_bytes(take(&mut rest)?));
            let (ids, behind) = rest.split_at_checked(count * ID_BYTES).filter(|_| count <= SEEN_IDS)?;
            rest = behind;
            let known = ids.chunks_exact(ID_BYTES).map(|id| {
                let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| id[at + i]));
                Known { hash: [word(0), word(8)], seq: word(16) }
            });
            self.seen.restore(vm, known, self.seq);
            self.left = self.left.checked_sub(1)?;
        }
        Some(())
    }

    /// The table, and up to which seq it has everything; `None` when something is missing.
    pub fn end(self) -> Option<(Seen, u64)> {
        (self.left == 0).then_some((self.seen, self.seq))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn read(notes: &[(Class, Vec<u8>)], seq: u64) -> Option<Seen> {
        let (begin, others) = notes.split_first()?;
        let (end, parts) = others.split_last()?;
        let mut reading = Reading::begin(&begin.1, seq)?;
        parts.iter().try_for_each(|(_, body)| reading.part(body))?;
        (begin.0 == Class::SnapshotBegin && end.0 == Class::SnapshotEnd).then_some(())?;
        reading.end().map(|(seen, _)| seen)
    }

    /// So many ids of each VM, in turn: VM 0 has the oldest and the newest.
    fn table(ids: &[usize]) -> (Seen, Vec<Vec<u64>>) {
        let (mut seen, mut seqs, mut seq) = (Seen::new([9; 16]), vec![Vec::new(); ids.len()], 0);
        for n in 0..ids.iter().max().copied().unwrap_or(0) {
            for (vm, _) in ids.iter().enumerate().filter(|(_, count)| n < **count) {
                seq += 1;
                assert_eq!(seen.find_or_add(&[vm as u8; 100], &n.to_le_bytes(), seq, 0), None);
                seqs[vm].push(seq);
            }
        }
        seen.keep(u64::MAX);
        (seen, seqs)
    }

    proptest! {
        #[test]
        fn what_had_room_comes_back(ids in vec(1usize..600, 1..30), most in 0u64..200_000) {
            let (seen, seqs) = table(&ids);
            let (mut notes, mut bytes) = (Vec::new(), 0);
            let left_out = write(&seen, most, &mut |class, body| {
                bytes += size(body.len()) as u64;
                assert!(body.len() <= NOTE_BYTES);
                notes.push((class, body.to_vec()));
            });
            prop_assert!(bytes <= most.max(120));
            let again = read(&notes, 1_000_000).unwrap();
            let mut order: Vec<usize> = (0..ids.len()).collect();
            order.sort_by_key(|vm| Reverse(seqs[*vm].last().copied()));
            for (place, vm) in order.iter().enumerate() {
                let is_in = place < ids.len() - left_out;
                let count = ids[*vm];
                for (n, seq) in seqs[*vm].iter().enumerate().take(count) {
                    let want = (is_in && n + SEEN_IDS >= count).then_some(*seq);
                    prop_assert_eq!(again.find(&[*vm as u8; 100], &n.to_le_bytes(), u64::MAX), want);
                }
            }
            // Little more would not have been enough for the next one.
            if left_out > 0 {
                let next = ids[order[ids.len() - left_out]].min(SEEN_IDS) * ID_BYTES + 103;
                prop_assert!(bytes + (size(next) as u64) + 8 > most, "{} of {} and {}", bytes, most, next);
            }
            if notes.len() > 2 {
                notes.remove(1);
                prop_assert!(read(&notes, 1).is_none());
            }
        }

        #[test]
        fn no_bytes_panic(begin in vec(any::<u8>(), 0..24), part in vec(0u8..4, 0..200)) {
            let reading = Reading::begin(&begin, 5);
            prop_assert_eq!(reading.is_some(), begin.len() == BEGIN_BYTES);
            if let Some(mut reading) = reading {
                let _ = reading.part(&part).and_then(|()| reading.end());
            }
        }
    }
}
