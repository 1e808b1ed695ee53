//! A buffer that begins at a block's boundary and is written in whole blocks.
//!
//! Direct I/O asks for both; and whole blocks never make the kernel read a block to change a part of it.
//! Always holds: [`Aligned::blocks`] begins at a multiple of [`BLOCK`] in memory and is a multiple of it long,
//! zeros behind what was pushed. Owner: whoever writes to a [`super::disk::DiskFile`].

/// What disks are written in, in bytes.
pub const BLOCK: usize = 4096;

/// Bytes on their way to a disk.
#[derive(Default)]
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// So many zeros.
    pub fn zeros(len: usize) -> Self {
        let mut zeros = Aligned::default();
        zeros.reserve(len);
        zeros.len = len;
        zeros
    }

    /// Forgets what was pushed.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let at = self.start + self.len;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// What was pushed, and zeros up to the end of its last block.
    pub fn blocks(&mut self) -> &[u8] {
        let (end, padded) = (self.start + self.len, self.start + self.len.next_multiple_of(BLOCK));
        self.memory[end..padded].fill(0);
        &self.memory[self.start..padded]
    }

    /// The same blocks, to read into.
    pub fn blocks_mut(&mut self) -> &mut [u8] {
        let padded = self.start + self.len.next_multiple_of(BLOCK);
        &mut self.memory[self.start..padded]
    }

    /// What was pushed behind the last whole block.
    pub fn rest(&self) -> &[u8] {
        let whole = self.len - self.len % BLOCK;
        &self.memory[self.start + whole..self.start + self.len]
    }

    fn reserve(&mut self, more: usize) {
        let need = (self.len + more).next_multiple_of(BLOCK);
        if self.start + need <= self.memory.len() {
            return;
        }
        let memory = vec![0; need.next_power_of_two() + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        let old = std::mem::replace(&mut self.memory, memory);
        self.memory[start..start + self.len].copy_from_slice(&old[self.start..self.start + self.len]);
        self.start = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whole_aligned_blocks_with_what_was_pushed(parts in proptest::collection::vec(proptest::collection::vec(1u8.., 0..9000), 0..6)) {
            let mut buffer = Aligned::zeros(100);
            buffer.clear();
            parts.iter().for_each(|part| buffer.push(part));
            let pushed = parts.concat();
            let rest = buffer.rest().to_vec();
            let blocks = buffer.blocks();
            prop_assert_eq!(blocks.as_ptr().align_offset(BLOCK), 0);
            prop_assert_eq!(blocks.len(), pushed.len().next_multiple_of(BLOCK));
            prop_assert_eq!(&blocks[..pushed.len()], &pushed[..]);
            prop_assert!(blocks[pushed.len()..].iter().all(|b| *b == 0));
            prop_assert_eq!(&pushed[pushed.len() - pushed.len() % BLOCK..], &rest[..]);
        }
    }
}
