//! Bytes to frames and back: u32 big-endian length, then that many bytes. Next: `session/mod.rs`.
//!
//! Always holds: any split of the bytes into reads gives the same frames; no more than one frame is
//! asked room for; after an error the stream has no next frame. Owner: whoever reads the stream; sessions
//! look at frames in place with [`first_frame`], clients take them out with the [`Decoder`].

use crate::core::limits::FRAME_BYTES;
use bytes::{Buf, BufMut, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// The length in front of a frame, in bytes.
pub const LENGTH_BYTES: usize = 4;

/// Framing that is broken: the stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A length of 0.
    #[error("a frame has at least 1 byte")]
    Empty,
    /// A length over [`FRAME_BYTES`].
    #[error("a frame has at most {FRAME_BYTES} bytes, this one says {0}")]
    TooLarge(u32),
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// The body of the first frame in `bytes`; `None` while it is not whole.
///
/// # Errors
/// [`CodecError`]: the length is 0 or too large.
pub fn first_frame(bytes: &[u8]) -> Result<Option<&[u8]>, CodecError> {
    let Some((head, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head);
    match length as usize {
        0 => Err(CodecError::Empty),
        n if n > FRAME_BYTES => Err(CodecError::TooLarge(length)),
        n => Ok(rest.get(..n)),
    }
}

/// The codec of both directions. It has no state: what is not whole yet stays in the buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCodec;

impl Decoder for FrameCodec {
    type Item = BytesMut;
    type Error = CodecError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<BytesMut>, CodecError> {
        let Some(length) = first_frame(buf)?.map(<[u8]>::len) else {
            if let Some(head) = buf.first_chunk::<LENGTH_BYTES>() {
                let whole = LENGTH_BYTES + u32::from_be_bytes(*head) as usize;
                buf.reserve(whole - buf.len());
            }
            return Ok(None);
        };
        buf.advance(LENGTH_BYTES);
        Ok(Some(buf.split_to(length)))
    }
}

impl Encoder<&[u8]> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, body: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        match body.len() {
            0 => return Err(CodecError::Empty),
            n if n > FRAME_BYTES => return Err(CodecError::TooLarge(length)),
            _ => {}
        }
        out.reserve(LENGTH_BYTES + body.len());
        out.put_u32(length);
        out.extend_from_slice(body);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Every frame up to the first error, and that error.
    fn drain(codec: &mut FrameCodec, buf: &mut BytesMut, frames: &mut Vec<Vec<u8>>) -> Option<CodecError> {
        loop {
            match codec.decode(buf) {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(bodies in vec(vec(any::<u8>(), 1..300), 0..20), cuts in vec(1usize..40, 1..50)) {
            let mut stream = BytesMut::new();
            for body in &bodies {
                FrameCodec.encode(body, &mut stream).unwrap();
            }
            let (mut buf, mut frames, mut rest) = (BytesMut::new(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                buf.extend_from_slice(now);
                prop_assert!(drain(&mut FrameCodec, &mut buf, &mut frames).is_none());
                rest = later;
            }
            prop_assert_eq!(frames, bodies);
            prop_assert!(buf.is_empty());
        }

        #[test]
        fn no_bytes_panic_or_ask_for_more_than_a_frame(bytes in vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..600)) {
            let (mut buf, mut frames) = (BytesMut::from(&bytes[..]), Vec::new());
            drain(&mut FrameCodec, &mut buf, &mut frames);
            prop_assert!(frames.iter().all(|f| (1..=FRAME_BYTES).contains(&f.len())));
            prop_assert!(buf.capacity() <= bytes.len() + 2 * (FRAME_BYTES + LENGTH_BYTES));
        }
    }

    #[test]
    fn the_bounds_of_a_length() {
        let error = |length: u32| {
            drain(&mut FrameCodec, &mut BytesMut::from(&length.to_be_bytes()[..]), &mut Vec::new())
        };
        assert!(matches!(error(0), Some(CodecError::Empty)));
        assert!(error(65_536).is_none());
        assert!(matches!(error(65_537), Some(CodecError::TooLarge(65_537))));
    }
}
