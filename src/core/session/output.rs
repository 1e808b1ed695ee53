//! What is to be written to the peer: frames of the session's own, and frames it shares with other sessions.
//!
//! Always holds: bytes go out in the order they were put in; shared bytes are not copied. Pure. Owner: the session.

use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;

/// So many pieces go into one write.
pub const SLICES: usize = 32;
/// Memory for own frames that is kept when they are written.
const KEPT: usize = 128 * 1024;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct Output {
    /// Sealed, in order.
    pieces: VecDeque<Bytes>,
    /// Own frames, behind the pieces.
    own: Vec<u8>,
    /// How much of the first piece, or of `own` when there is none, is written.
    written: usize,
    bytes: usize,
}

impl Output {
    /// Adds own frames.
    pub fn own<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let before = self.own.len();
        let result = write(&mut self.own);
        self.bytes += self.own.len() - before;
        result
    }

    /// Adds shared frames.
    pub fn share(&mut self, frames: Bytes) {
        if !self.own.is_empty() {
            let own = std::mem::take(&mut self.own);
            // What is written of it is not the first piece's.
            let own = Bytes::from(own);
            self.pieces.push_back(own);
        }
        self.bytes += frames.len();
        self.pieces.push_back(frames);
    }

    /// Bytes that are not written yet.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Everything is written.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The next bytes, for one write; how many slices.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let all = self.pieces.iter().map(|piece| &piece[..]).chain([&self.own[..]]);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(all) {
            let skip = if count == 0 { self.written } else { 0 };
            *slice = IoSlice::new(piece.get(skip..).unwrap_or_default());
            count += 1;
        }
        count
    }

    /// So many bytes were written.
    pub fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.written += written;
        while let Some(piece) = self.pieces.front() {
            if self.written < piece.len() {
                return;
            }
            self.written -= piece.len();
            self.pieces.pop_front();
        }
        if self.bytes == 0 {
            self.own.clear();
            self.written = 0;
            if self.own.capacity() > KEPT {
                self.own = Vec::new();
            }
        }
    }

    /// Gives memory back that a quiet session does not need.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            (self.own, self.pieces) = (Vec::new(), VecDeque::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_go_out_in_order(steps in vec((any::<bool>(), vec(any::<u8>(), 1..40), 0usize..90), 0..60)) {
            let (mut output, mut want, mut have) = (Output::default(), Vec::<u8>::new(), Vec::new());
            let write = |output: &mut Output, have: &mut Vec<u8>, most: usize| {
                let mut slices = [IoSlice::new(b""); SLICES];
                let count = output.slices(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).take(most).collect();
                let written = all.len();
                have.extend(all);
                output.advance(written);
            };
            for (own, bytes, most) in &steps {
                want.extend(bytes);
                if *own {
                    output.own(|out| out.extend(bytes));
                } else {
                    output.share(bytes.clone().into());
                }
                write(&mut output, &mut have, *most);
                prop_assert_eq!(output.len(), want.len() - have.len());
            }
            while !output.is_empty() {
                write(&mut output, &mut have, 64);
            }
            prop_assert_eq!(have, want);
        }
    }
}
