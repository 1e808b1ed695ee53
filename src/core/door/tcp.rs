//! The TCP door: guests behind QEMU's user network dial 10.0.2.2:7070 and arrive here from 127.0.0.1.
//!
//! TCP says nothing about which VM a peer is, so a name is only a name: the door opens on loopback and
//! nowhere else. Sockets set no-delay. Owner: `broker.rs`.

use super::{Connection, widen};
use crate::core::identity::Peer;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Listens on `addr`, which must be of the loopback.
///
/// # Errors
/// `PermissionDenied` for any other address; else why the socket cannot be had.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    refuse_open(addr)?;
    let listener = TcpListener::bind(addr).await?;
    widen(&listener)?;
    Ok(listener)
}

/// Takes a socket that somebody else bound.
///
/// # Errors
/// `PermissionDenied` unless it is of the loopback; else it is none that connections come in by.
pub fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    refuse_open(listener.local_addr()?)?;
    listener.set_nonblocking(true)?;
    widen(&listener)?;
    TcpListener::from_std(listener)
}

fn refuse_open(addr: SocketAddr) -> io::Result<()> {
    if addr.ip().is_loopback() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "only loopback addresses are served: over TCP a name is not proven and nothing is encrypted; use a tunnel",
    ))
}

/// The next connection.
///
/// # Errors
/// Those of accept(2).
pub async fn accept(listener: &TcpListener) -> io::Result<Connection> {
    let (stream, addr) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let peer = Peer { address: addr.to_string(), may_be_host: false };
    Ok(Connection { reader: Box::new(reader), writer: Box::new(writer), peer })
}
