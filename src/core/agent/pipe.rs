//! A connection's bytes out and in, for a loop that does both at once.
//!
//! Always holds: what was pushed is written in order and kept no longer, neither way waits for the other, whole frames at a time are taken out, and dropping a step loses
//! nothing. Owner: the session, or the hello before it.

use crate::core::stream::{Reader, Writer};
use crate::core::wire::codec::{CodecError, LENGTH_BYTES, first_frame};
use bytes::{Buf, BytesMut};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const READ_BYTES: usize = 16 * 1024;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes came.
    Read,
    /// Bytes were taken.
    Wrote,
}

/// Both halves and what is on its way.
pub struct Pipe {
    reader: Reader,
    writer: Writer,
    /// What came and is not taken yet.
    pub input: BytesMut,
    /// What was pushed and is not written yet.
    out: BytesMut,
}

impl Pipe {
    /// Of a connection; `input` was read of it already.
    pub fn new(reader: Reader, writer: Writer, input: BytesMut) -> Self {
        Pipe { reader, writer, input, out: BytesMut::new() }
    }

    /// Whether all that was pushed is written.
    pub fn is_written(&self) -> bool {
        self.out.is_empty()
    }

    /// Writes these bytes, later.
    pub fn push(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Writes a frame of this body, later.
    pub fn push_frame(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        self.push(&length.to_be_bytes());
        self.out.extend_from_slice(body);
    }

    /// What was not written yet is not written any more.
    pub fn forget(&mut self) {
        self.out = BytesMut::new();
    }

    /// Reads or writes something, whichever is possible first.
    ///
    /// # Errors
    /// The connection failed or ended.
    pub async fn step(&mut self) -> io::Result<Step> {
        self.input.reserve(READ_BYTES);
        tokio::select! {
            n = self.reader.read_buf(&mut self.input) => match n? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(Step::Read),
            },
            n = self.writer.write(&self.out), if !self.out.is_empty() => {
                self.out.advance(n?);
                Ok(Step::Wrote)
            }
        }
    }

    /// The next whole frame's body.
    ///
    /// # Errors
    /// The framing is broken.
    pub fn frame(&mut self) -> Result<Option<BytesMut>, CodecError> {
        let Some(length) = first_frame(&self.input)?.map(<[u8]>::len) else { return Ok(None) };
        self.input.advance(LENGTH_BYTES);
        Ok(Some(self.input.split_to(length)))
    }

    /// Ends writing.
    pub async fn shutdown(&mut self) {
        // Whoever is gone does not mind.
        let _ = self.writer.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::split;

    #[tokio::test]
    async fn what_is_written_is_not_kept() {
        let (ours, mut theirs) = tokio::io::duplex(10_000);
        let (reader, writer) = split(ours);
        let mut pipe = Pipe::new(Box::new(reader), Box::new(writer), BytesMut::new());
        let mut bytes = [0; 10_000];
        // There is always something that waits.
        pipe.push(&[1; 100_000]);
        for _ in 0..1000 {
            assert_eq!(pipe.step().await.unwrap(), Step::Wrote);
            theirs.read_exact(&mut bytes).await.unwrap();
            pipe.push(&[1; 10_000]);
        }
        assert!(!pipe.is_written() && pipe.out.capacity() < 500_000, "{}", pipe.out.capacity());
    }
}
