//! The TCP door: guests behind QEMU's user network dial 10.0.2.2:7070 and arrive here from 127.0.0.1.
//!
//! TCP says nothing about which VM a peer is: where any name is taken as it comes (`trust = "open"`), the door opens on
//! loopback and nowhere else. Sockets set no-delay. Owner: `listen.rs`.

use super::{Connection, widen};
use crate::core::identity::{Origin, Peer};
use crate::core::policy::Trust;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Why there is no listening at an address.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It is not of the loopback, and any name would be taken.
    #[error(
        "not a loopback address, and with trust = \"open\" anybody there could call itself any VM; say trust = \"known\" or \
         \"proven\" in castra.toml, or stay on loopback and lead guests here by a tunnel (nothing is encrypted)"
    )]
    NotLoopback,
    /// The socket cannot be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Listens on `addr`, which must be of the loopback where `trust` is open.
///
/// # Errors
/// [`BindError`].
pub async fn bind(addr: SocketAddr, trust: Trust) -> Result<TcpListener, BindError> {
    refuse_open(addr, trust)?;
    let listener = TcpListener::bind(addr).await?;
    widen(&listener)?;
    Ok(listener)
}

/// Takes a socket that somebody else bound.
///
/// # Errors
/// It is not of the loopback where `trust` is open, or none that connections come in by.
pub fn adopt(listener: std::net::TcpListener, trust: Trust) -> Result<TcpListener, BindError> {
    refuse_open(listener.local_addr()?, trust)?;
    listener.set_nonblocking(true)?;
    widen(&listener)?;
    Ok(TcpListener::from_std(listener)?)
}

/// Whether only this machine reaches `addr`; that it may be an address of IPv4 written as one of IPv6 makes no difference.
pub fn is_loopback(addr: &SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

fn refuse_open(addr: SocketAddr, trust: Trust) -> Result<(), BindError> {
    if is_loopback(&addr) || trust != Trust::Open { Ok(()) } else { Err(BindError::NotLoopback) }
}

/// The next connection.
///
/// # Errors
/// Those of accept(2).
pub async fn accept(listener: &TcpListener) -> io::Result<Connection> {
    let (stream, addr) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let origin = if is_loopback(&addr) { Origin::Local } else { Origin::Remote };
    let peer = Peer { address: addr.to_string(), origin };
    Ok(Connection { reader: Box::new(reader), writer: Box::new(writer), peer, is_line: false })
}
