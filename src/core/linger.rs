//! The end of a connection: last words that arrive.
//!
//! Always holds: it takes as long as the limits say at most. Owner: whoever ends a connection.

use super::limits::Limits;
use super::session::{Reader, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Ends writing and reads on for a moment: a close with unread bytes would be a reset, and the last words
/// would be lost.
pub async fn linger(limits: &Limits, reader: &mut Reader, writer: &mut Writer) {
    let until = Instant::now() + limits.linger_time;
    if !matches!(timeout_at(until, writer.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let (mut left, mut sink) = (limits.linger_bytes, [0; 4096]);
    while left > 0 {
        match timeout_at(until, reader.read(&mut sink)).await {
            Ok(Ok(n)) if n > 0 => left = left.saturating_sub(n),
            _ => return,
        }
    }
}
