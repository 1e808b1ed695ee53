//! What a program said of the events that it holds, until the broker has answered.
//!
//! Always holds: whoever waits for an answer gets one. Pure. Owner: [`super::member`].

use super::error::Error;
use super::queue::Unanswered;
use super::word::{Say, To};
use crate::core::wire::codec::FrameCodec;
use bytes::BytesMut;
use serde_json::Value;
use std::sync::Arc;
use tokio_util::codec::Encoder;

/// What the program is done with.
pub(super) struct Done {
    pub seq: u64,
    pub id: Arc<str>,
    /// Nothing behind it came since: it may come again.
    pub is_open: bool,
}

/// A frame that is not answered.
pub(super) struct Asked {
    pub kind: &'static str,
    pub said: Vec<Said>,
}

pub(super) struct Said {
    pub seq: u64,
    pub id: Arc<str>,
    pub say: Say,
    pub answer: Option<To<()>>,
    pub unanswered: Option<Unanswered>,
}

impl Said {
    pub fn answer(self, result: Result<(), Error>) {
        drop(self.unanswered);
        // Nobody may be waiting.
        self.answer.map(|answer| answer.send(result));
    }
}

/// Appends a small frame.
pub(super) fn write(frame: &Value, out: &mut BytesMut) {
    // Some numbers and short strings: it fits.
    let _ = FrameCodec.encode(frame.to_string().as_bytes(), out);
}
