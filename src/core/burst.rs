//! Lines that are sent together, on their way to the broker.
//!
//! Always holds: one more burst always fits an empty window; a line that is not sent has its turn like the others.
//! Owner: whoever reads lines fills it, `pipeline.rs` empties it.

use super::limits::{PIPELINE_BYTES, PIPELINE_EVENTS};
use super::refusal::Refusal;
use super::wire::codec::{CodecError, FrameCodec};
use bytes::BytesMut;
use tokio_util::codec::Encoder;

/// What an event takes of the window at least: so that both of its bounds are one number.
const LEAST_WEIGHT: usize = PIPELINE_BYTES / PIPELINE_EVENTS;
/// A burst goes when it weighs this much; one more frame always fits the window.
const BURST_WEIGHT: usize = 64 * 1024;

/// A line on its way.
#[derive(Debug)]
pub struct Sent {
    /// Its number.
    pub line: u64,
    /// What it takes of the window.
    pub weight: u32,
    /// Its id.
    pub id: Box<str>,
    /// Its topic.
    pub topic: Box<str>,
    /// It was refused before it was sent.
    pub refusal: Option<Box<Refusal>>,
}

/// Lines that are sent together.
#[derive(Debug, Default)]
pub struct Burst {
    /// Their frames.
    pub frames: BytesMut,
    /// What they are, in order.
    pub sent: Vec<Sent>,
    /// What they take of the window.
    pub weight: usize,
    /// The last line that was looked at; it may be an empty one.
    pub last_line: u64,
}

impl Burst {
    /// Adds the event of line `line`: a publish frame's body, and the id and topic that it says.
    ///
    /// # Errors
    /// The body fits no frame; nothing was added.
    pub fn event(&mut self, line: u64, id: &str, topic: &str, body: &[u8]) -> Result<(), CodecError> {
        FrameCodec.encode(body, &mut self.frames)?;
        self.push(line, body.len(), id, topic, None);
        Ok(())
    }

    /// Adds a line that is not sent, for this reason: it is said in its turn.
    pub fn refused(&mut self, line: u64, refusal: Refusal) {
        self.push(line, 0, "", "", Some(Box::new(refusal)));
    }

    /// Everything up to this line is in this burst or an earlier one.
    pub fn read_to(&mut self, line: u64) {
        self.last_line = line;
    }

    fn push(&mut self, line: u64, bytes: usize, id: &str, topic: &str, refusal: Option<Box<Refusal>>) {
        let weight = bytes.max(LEAST_WEIGHT);
        self.sent.push(Sent { line, weight: weight as u32, id: id.into(), topic: topic.into(), refusal });
        self.weight += weight;
        self.last_line = line;
    }

    /// It should go before more is added.
    pub fn is_full(&self) -> bool {
        self.weight >= BURST_WEIGHT
    }

    /// Nothing to send or to say.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}
