//! The vsock door: guests dial the host's CID 2, and the kernel says which CID a connection comes from.
//!
//! ```text
//! accept ─▶ (stream, cid, port) ─▶ Connection, Origin::Cid ─▶ lobby
//!            a kernel needed │ not from here on
//! ```
//!
//! Always holds: a machine without vsock is told once and served by the other doors; what castra.toml says of a CID
//! decides who it is, never this door. Owner: `listen.rs`.

use super::{Connection, widen};
use crate::core::identity::{Origin, Peer};
use nix::errno::Errno;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

/// Listens on `port` for guests of every CID. `None`: this machine has no vsock, which is said.
///
/// # Errors
/// The port is taken, or may not be had.
pub fn bind(port: u32) -> io::Result<Option<VsockListener>> {
    let bound = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port));
    match bound {
        Ok(listener) => {
            widen(&listener)?;
            Ok(Some(listener))
        }
        Err(error) if is_missing(&error) => {
            tracing::warn!(
                %error,
                port,
                "vsock: this machine has none (a host needs the module vhost_vsock); the other doors are served"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether the kernel says that there is no such thing here: no such family, or nothing below it.
fn is_missing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::EAFNOSUPPORT
                | Errno::EPROTONOSUPPORT
                | Errno::ESOCKTNOSUPPORT
                | Errno::EADDRNOTAVAIL
                | Errno::ENODEV
                | Errno::ENXIO
                | Errno::ENOENT
                | Errno::EOPNOTSUPP
        )
    )
}

/// The next connection.
///
/// # Errors
/// Those of accept(2).
pub async fn accept(listener: &VsockListener) -> io::Result<Connection> {
    let (stream, addr) = listener.accept().await?;
    Ok(connection(stream.into_split(), addr.cid(), addr.port()))
}

/// What came from `cid`, whatever the stream is.
pub fn connection<R, W>((reader, writer): (R, W), cid: u32, port: u32) -> Connection
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let peer = Peer { address: format!("vsock:cid={cid},port={port}"), origin: Origin::Cid(cid) };
    Connection { reader: Box::new(reader), writer: Box::new(writer), peer, is_line: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_without_vsock_is_one() {
        let is_missing = |errno: Errno| is_missing(&errno.into());
        for errno in [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL, Errno::ENODEV, Errno::ENOENT] {
            assert!(is_missing(errno), "{errno}");
        }
        for errno in [Errno::EADDRINUSE, Errno::EACCES, Errno::EPERM, Errno::EMFILE, Errno::EINVAL] {
            assert!(!is_missing(errno), "{errno}");
        }
    }
}
