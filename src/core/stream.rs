//! A connection's two halves, whatever the door, and its end: last words that arrive.
//!
//! Always holds: an end takes as long as the limits say at most. Owner: whoever holds the connection.

use super::awake::{Instant, timeout_at};
use super::limits::Limits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A socket's reading half.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// A socket's writing half.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

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
