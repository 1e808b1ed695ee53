//! The unix door: `castra.sock`, the host's own way in, and further sockets for guests.
//!
//! Always holds: a socket is 0600 from the moment it has its name; only on the host's socket may a peer of
//! the broker's own uid, or root, be the host (SO_PEERCRED). Owner: `broker.rs`.

use super::{Connection, widen};
use crate::core::identity::{Origin, Peer};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::fs::Permissions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// What the kernel takes for a path, in bytes.
const SUN_PATH_BYTES: usize = 107;
/// The longest path of a socket, in bytes: it is made as `<path>.new` and renamed.
pub const PATH_BYTES: usize = SUN_PATH_BYTES - 4;

/// Whether a socket can be made at `path`, as far as its length goes.
///
/// # Errors
/// `InvalidInput`: it is too long.
pub fn check_length(path: &Path) -> io::Result<()> {
    if path.as_os_str().len() <= PATH_BYTES {
        return Ok(());
    }
    let (has, why) = (path.as_os_str().len(), "the path of a socket is at most");
    let why = format!("{why} {PATH_BYTES} bytes, and this one has {has}; choose a shorter one");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Takes a socket that somebody else bound.
///
/// # Errors
/// It is none that connections come in by.
pub fn adopt(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    widen(&listener)?;
    UnixListener::from_std(listener)
}

/// Listens at `path`. A socket that an earlier broker left there gives way; anything else does not.
///
/// # Errors
/// The path is too long, is something else than a socket, is served by somebody, or cannot be made.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    check_length(path)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    if std::fs::symlink_metadata(path).is_ok_and(|m| !m.file_type().is_socket()) {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file of that name that is no socket",
        ));
    }
    if is_served(path)? {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody else listens there"));
    }
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    widen(&listener)?;
    std::fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// Whether anybody listens at `path`. Never waits.
///
/// # Errors
/// It cannot be told: what is there is not ours to replace.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(asking.as_raw_fd(), &UnixAddr::new(path)?) {
        // Its queue may be full.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The next connection. `hosts` says that this is the host's own socket.
///
/// # Errors
/// Those of accept(2).
pub async fn accept(listener: &UnixListener, hosts: bool) -> io::Result<Connection> {
    let (stream, _) = listener.accept().await?;
    let cred = stream.peer_cred()?;
    let trusted = cred.uid() == 0 || cred.uid() == nix::unistd::geteuid().as_raw();
    let address = format!("unix:uid={},pid={}", cred.uid(), cred.pid().unwrap_or(0));
    let (reader, writer) = stream.into_split();
    let origin = if hosts && trusted { Origin::Host } else { Origin::Local };
    let peer = Peer { address, origin };
    Ok(Connection { reader: Box::new(reader), writer: Box::new(writer), peer, is_line: false })
}
