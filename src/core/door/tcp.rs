//! The TCP door: guests behind QEMU's user network dial 10.0.2.2:7070 and arrive here from 127.0.0.1.
//!
//! TCP says nothing about which VM a peer is, so a name is only a name: the door opens on loopback and
//! nowhere else. Sockets set no-delay. Owner: `broker.rs`.

use super::{Connection, widen};
use crate::core::identity::{Origin, Peer};
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Why there is no listening at an address.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It is not of the loopback.
    #[error(
        "only loopback addresses are served: over TCP a name is not proven and nothing is encrypted; use a tunnel"
    )]
    NotLoopback,
    /// The socket cannot be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Listens on `addr`, which must be of the loopback.
///
/// # Errors
/// [`BindError`].
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    refuse_open(addr)?;
    let listener = TcpListener::bind(addr).await?;
    widen(&listener)?;
    Ok(listener)
}

/// Takes a socket that somebody else bound.
///
/// # Errors
/// It is not of the loopback, or none that connections come in by.
pub fn adopt(listener: std::net::TcpListener) -> Result<TcpListener, BindError> {
    refuse_open(listener.local_addr()?)?;
    listener.set_nonblocking(true)?;
    widen(&listener)?;
    Ok(TcpListener::from_std(listener)?)
}

fn refuse_open(addr: SocketAddr) -> Result<(), BindError> {
    if addr.ip().is_loopback() { Ok(()) } else { Err(BindError::NotLoopback) }
}

/// The next connection.
///
/// # Errors
/// Those of accept(2).
pub async fn accept(listener: &TcpListener) -> io::Result<Connection> {
    let (stream, addr) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let origin = if addr.ip().is_loopback() { Origin::Local } else { Origin::Remote };
    let peer = Peer { address: addr.to_string(), origin };
    Ok(Connection { reader: Box::new(reader), writer: Box::new(writer), peer, is_line: false })
}
