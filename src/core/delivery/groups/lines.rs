//! The events that a group holds, in the frames they came in: these are what members are sent.
//!
//! ```text
//! chunk: [frame][frame]…[frame]    each frame: length, head, line (`"seq":` to the last brace)
//! ```
//!
//! A chunk is kept as it came, without a copy, as long as enough of it is held; then what is held is copied out of it.
//! Always holds: what is counted is what is kept, frames and places, and of frames [`SPARSE`] times what is held at the
//! most; seqs ascend. Owner: [`super::handle::State`].

use crate::core::limits::{CATCH_UP_BYTES, GROUP_BYTES_HELD, GROUPS_BYTES_HELD, OUTPUT_BYTES};
use crate::core::wire::codec::LENGTH_BYTES;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A chunk of which less than this part is held is not kept.
const SPARSE: usize = 8;

/// An event, and where its frame is in the chunk; without length once it is forgotten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub seq: u64,
    pub at: u32,
    pub len: u32,
}

#[derive(Debug)]
struct Chunk {
    frames: Bytes,
    places: Box<[Place]>,
    /// What of it is held.
    events: usize,
    bytes: usize,
}

/// A frame where it lies.
#[derive(Debug)]
pub(super) struct Framed<'a> {
    pub chunk: &'a Bytes,
    pub at: usize,
    pub len: usize,
}

/// All of one group.
#[derive(Debug)]
pub(super) struct Lines {
    /// Where a line begins in its frame.
    line_at: usize,
    /// By the first seq.
    chunks: BTreeMap<u64, Chunk>,
    bytes: usize,
    /// The bytes of all groups.
    held: Arc<AtomicUsize>,
}

impl Chunk {
    fn place(&mut self, seq: u64) -> Option<&mut Place> {
        let at = self.places.binary_search_by_key(&seq, |place| place.seq).ok()?;
        self.places.get_mut(at).filter(|place| place.len > 0)
    }

    /// What is held of it, and nothing else.
    fn dense(&self) -> Chunk {
        let mut frames = Vec::with_capacity(self.bytes);
        let held = self.places.iter().filter(|place| place.len > 0);
        let places = held.map(|place| {
            let at = frames.len() as u32;
            frames.extend_from_slice(&self.frames[place.range()]);
            Place { at, ..*place }
        });
        let places = places.collect();
        Chunk { frames: frames.into(), places, ..*self }
    }

    /// What it takes, in bytes.
    fn kept(&self) -> usize {
        self.frames.len() + size_of_val(&*self.places)
    }

    fn is_sparse(&self) -> bool {
        self.bytes * SPARSE < self.frames.len()
    }
}

impl Place {
    fn range(&self) -> std::ops::Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }
}

impl Lines {
    /// None yet, of frames with a head of so many bytes; what is kept is counted in `held` as well.
    pub fn new(head: usize, held: Arc<AtomicUsize>) -> Self {
        Lines { line_at: LENGTH_BYTES + head, chunks: BTreeMap::new(), bytes: 0, held }
    }

    /// There is room for more; who has none may always have some.
    pub fn have_room(&self) -> bool {
        self.room() > 0
    }

    /// How much more may come at a time, in bytes: little when all groups together have much.
    pub fn room(&self) -> usize {
        match self.held.load(Relaxed) < GROUPS_BYTES_HELD {
            true if self.bytes < GROUP_BYTES_HELD => CATCH_UP_BYTES,
            false if self.is_empty() => OUTPUT_BYTES,
            _ => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Keeps the events of a chunk that are to be held, in order; they lie behind all others.
    pub fn keep(&mut self, frames: &Bytes, places: Vec<Place>) {
        let Some(first) = places.first().map(|place| place.seq) else { return };
        let (events, bytes) = (places.len(), places.iter().map(|place| place.len as usize).sum());
        let chunk = Chunk { frames: frames.clone(), places: places.into(), events, bytes };
        self.insert(first, if chunk.is_sparse() { chunk.dense() } else { chunk });
    }

    fn insert(&mut self, first: u64, chunk: Chunk) {
        self.bytes += chunk.kept();
        self.held.fetch_add(chunk.kept(), Relaxed);
        self.chunks.insert(first, chunk);
    }

    fn find(&self, seq: u64) -> Option<(&Chunk, &Place)> {
        let chunk = self.chunks.range(..=seq).next_back()?.1;
        let at = chunk.places.binary_search_by_key(&seq, |place| place.seq).ok()?;
        chunk.places.get(at).filter(|place| place.len > 0).map(|place| (chunk, place))
    }

    /// An event's frame, as that of its first delivery.
    pub fn frame(&self, seq: u64) -> Option<Framed<'_>> {
        let (chunk, place) = self.find(seq)?;
        Some(Framed { chunk: &chunk.frames, at: place.at as usize, len: place.len as usize })
    }

    /// An event's line.
    pub fn get(&self, seq: u64) -> Option<&[u8]> {
        let (chunk, place) = self.find(seq)?;
        chunk.frames[place.range()].get(self.line_at..)
    }

    /// Holds it no longer; false when it was not held.
    pub fn forget(&mut self, seq: u64) -> bool {
        let Some((&first, chunk)) = self.chunks.range_mut(..=seq).next_back() else { return false };
        let Some(place) = chunk.place(seq) else { return false };
        let len = std::mem::take(&mut place.len);
        chunk.bytes -= len as usize;
        chunk.events -= 1;
        if (chunk.events == 0 || chunk.is_sparse())
            && let Some(chunk) = self.chunks.remove(&first)
        {
            self.bytes -= chunk.kept();
            self.held.fetch_sub(chunk.kept(), Relaxed);
            if chunk.events > 0 {
                self.insert(first, chunk.dense());
            }
        }
        true
    }

    /// Holds none any more.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.held.fetch_sub(std::mem::take(&mut self.bytes), Relaxed);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "{\"type\":\"event\",";

    fn chunk(first: u64, lines: &[(bool, u8)]) -> (Bytes, Vec<Place>) {
        let (mut frames, mut places) = (Vec::new(), Vec::new());
        for (seq, (is_held, pad)) in (first..).zip(lines) {
            let (at, line) = (frames.len() as u32, line(seq, *pad));
            frames.extend_from_slice(&((HEAD.len() + line.len()) as u32).to_be_bytes());
            frames.extend_from_slice(HEAD.as_bytes());
            frames.extend_from_slice(line.as_bytes());
            if *is_held {
                places.push(Place { seq, at, len: frames.len() as u32 - at });
            }
        }
        (frames.into(), places)
    }

    fn line(seq: u64, pad: u8) -> String {
        format!("\"seq\":{seq},\"payload\":\"{}\"}}", "x".repeat(4 * usize::from(pad)))
    }

    proptest! {
        /// Whatever is forgotten in whatever order, the rest stays as it came, and no more is kept for it than is said.
        #[test]
        fn what_is_held_is_what_came(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<(bool, u8)>(), 1..30), 1..8),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 1..250),
        ) {
            let all = Arc::new(AtomicUsize::new(7));
            let mut lines = Lines::new(HEAD.len(), all.clone());
            let mut model = BTreeMap::new();
            let mut first = 5;
            for events in &chunks {
                let (frames, places) = chunk(first, events);
                model.extend(places.iter().map(|place| {
                    (place.seq, line(place.seq, events[(place.seq - first) as usize].1))
                }));
                lines.keep(&frames, places);
                first += events.len() as u64 + 3;
            }
            for at in order {
                let held: usize = model.values().map(|line| 4 + HEAD.len() + line.len()).sum();
                let frames: usize = lines.chunks.values().map(|chunk| chunk.frames.len()).sum();
                prop_assert!(frames <= SPARSE * held && frames <= lines.bytes);
                prop_assert_eq!(all.load(Relaxed), 7 + lines.bytes);
                prop_assert_eq!(lines.is_empty(), model.is_empty());
                let (mut out, mut expected) = (Frames::default(), Vec::new());
                for seq in 0..first {
                    prop_assert_eq!(lines.get(seq), model.get(&seq).map(String::as_bytes));
                    // What goes out a second time has the same head here.
                    if let Some(line) = model.get(&seq) {
                        expected.extend_from_slice(&((HEAD.len() + line.len()) as u32).to_be_bytes());
                        expected.extend_from_slice(HEAD.as_bytes());
                        expected.extend_from_slice(line.as_bytes());
                        match seq % 7 {
                            0 => out.again(HEAD.as_bytes(), line.as_bytes()),
                            _ => out.first(&lines.frame(seq).unwrap()),
                        }
                    }
                }
                let pieces = out.take();
                prop_assert_eq!(pieces.iter().map(|(_, events)| events).sum::<usize>(), model.len());
                let sent: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.iter().copied()).collect();
                prop_assert_eq!(sent, expected);
                let Some(seq) = (!model.is_empty()).then(|| *at.get(&model.keys().collect::<Vec<_>>())) else { break };
                let seq = *seq;
                prop_assert!(lines.forget(seq) && !lines.forget(seq));
                model.remove(&seq);
            }
            drop(lines);
            prop_assert_eq!(all.load(Relaxed), 7);
        }
    }

    #[test]
    fn what_lies_together_is_sent_without_a_copy() {
        let (frames, places) = chunk(1, &[(true, 9); 100]);
        let mut lines = Lines::new(HEAD.len(), Arc::default());
        lines.keep(&frames, places);
        let mut out = Frames::default();
        (1..=100).for_each(|seq| out.first(&lines.frame(seq).unwrap()));
        let pieces = out.take();
        assert_eq!(pieces.len(), 1);
        assert_eq!((pieces[0].0.as_ptr(), pieces[0].1), (frames.as_ptr(), 100));
    }
}
