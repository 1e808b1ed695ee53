//! A way in that the host allotted to one VM, and its end when the operator takes it back.
//!
//! Always holds: a connection that came by it ends soon after it was taken back, whatever the peer does; a socket that
//! merely vanished takes nothing back. Owner: `hybrid` and `serial`.

use super::Connection;
use crate::core::identity::{Origin, Peer, VmName};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// One VM's way in.
#[derive(Clone)]
pub(super) struct Allotment {
    peer: Peer,
    taken_back: CancellationToken,
    /// Held by each connection.
    users: Arc<()>,
}

impl Allotment {
    /// Of `vm`; `address` is for people and records.
    pub fn new(vm: VmName, address: String) -> Self {
        let peer = Peer { address, origin: Origin::Allotted(vm) };
        Allotment { peer, taken_back: CancellationToken::new(), users: Arc::default() }
    }

    /// What comes by it.
    pub fn connection(&self, stream: UnixStream, is_line: bool) -> Connection {
        let (reader, writer) = stream.into_split();
        let taken_back = Box::pin(self.taken_back.clone().cancelled_owned());
        let reader = Revocable { reader, taken_back: Some(taken_back), _user: self.users.clone() };
        Connection { reader: Box::new(reader), writer: Box::new(writer), peer: self.peer.clone(), is_line }
    }

    /// The operator does not allot it any more.
    pub fn take_back(&self) {
        self.taken_back.cancel();
    }

    /// Resolves when it was taken back.
    pub async fn taken_back(&self) {
        self.taken_back.cancelled().await;
    }

    /// Whether this is the only handle, and no connection is left.
    pub fn is_unused(&self) -> bool {
        Arc::strong_count(&self.users) == 1
    }
}

/// A read fails once, as not permitted, when the way was taken back: a session ends by that, `identity-revoked`.
struct Revocable<R> {
    reader: R,
    taken_back: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _user: Arc<()>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Revocable<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken_back.as_mut().is_some_and(|taken_back| taken_back.as_mut().poll(cx).is_ready()) {
            self.taken_back = None;
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}
