//! What is asked of the thread castra-outbox, each with the way back for its answer.
//!
//! Always holds: a reply that is dropped says that the outbox is closed. Owner: [`super::Outbox`] asks, `writer.rs`
//! answers.

use super::{Cursor, Entry, Kept, Put, Sent};
use crate::core::refusal::Refusal;
use tokio::sync::oneshot;

/// What is asked of the thread.
pub(super) enum Request {
    Put { events: Vec<Put>, reply: oneshot::Sender<Result<Vec<Kept>, Refusal>> },
    Sent { acks: Vec<Sent>, reply: oneshot::Sender<()> },
    Failed { n: u64, code: String, reason: String, reply: oneshot::Sender<()> },
    Said { error: String, reply: oneshot::Sender<()> },
    SetCursor { name: String, cursor: Cursor, reply: oneshot::Sender<Result<(), Refusal>> },
    Cursor { name: String, reply: oneshot::Sender<Result<Option<Cursor>, Refusal>> },
    Pending { after: u64, limit: usize, bytes: usize, reply: oneshot::Sender<Vec<Entry>> },
    Close { reply: oneshot::Sender<()> },
}
