//! The unix door: `castra.sock`, the host's own way in, and further sockets for guests.
//!
//! Always holds: a socket is 0600 from the moment it has its name; only on the host's socket may a peer of
//! the broker's own uid, or root, be the host (SO_PEERCRED). Owner: `listen.rs`, and `hybrid` for those of VMs.

use super::{Connection, widen};
use crate::core::identity::{Origin, Peer};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, SFlag, fchmod};
use nix::unistd::{Gid, Uid, fchownat, geteuid};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
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

/// A file, whatever it is called: device and inode.
pub type FileId = (u64, u64);

/// Which file stands at `path`; a link is one itself.
pub fn file_id(path: &Path) -> Option<FileId> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino())).ok()
}

/// A socket that was made.
pub struct Made {
    /// It listens, and never waits.
    pub listener: std::os::unix::net::UnixListener,
    /// Its file.
    pub file: FileId,
    /// Why it is still ours though somebody else should own it.
    pub not_given: Option<io::Error>,
}

/// Listens at `path`. A socket that an earlier broker left there gives way; anything else does not.
///
/// # Errors
/// The path is too long, is something else than a socket, is served by somebody, or cannot be made.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    UnixListener::from_std(make(path, None)?.listener)
}

/// The same, and gives the file to `owner`, who alone (and root) may connect. Only a socket of ours or of theirs gives
/// way.
///
/// # Errors
/// Those of [`bind`]. That it could not be given is none.
pub fn make(path: &Path, owner: Option<Uid>) -> io::Result<Made> {
    check_length(path)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    may_replace(path, owner)?;
    if is_served(path)? {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody else listens there"));
    }
    may_replace(&new, owner)?;
    let _ = std::fs::remove_file(&new);
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // A file gets the mode that its socket has: nobody else may connect at any moment.
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&new)?)?;
    let made = finish(&listener, &new, path, owner);
    if made.is_err() && may_replace(&new, owner).is_ok() {
        let _ = std::fs::remove_file(&new);
    }
    let (file, not_given) = made?;
    Ok(Made { listener: listener.into(), file, not_given })
}

/// Listens, gives the file away, and then its name to it.
fn finish(
    listener: &OwnedFd,
    new: &Path,
    path: &Path,
    owner: Option<Uid>,
) -> io::Result<(FileId, Option<io::Error>)> {
    widen(listener)?;
    let file = file_id(new).ok_or(io::ErrorKind::NotFound)?;
    let not_given = owner.filter(|owner| *owner != geteuid()).and_then(|owner| give(new, owner).err());
    std::fs::rename(new, path)?;
    Ok((file, not_given))
}

/// Gives the socket at `path` away.
fn give(path: &Path, owner: Uid) -> io::Result<()> {
    Ok(fchownat(&hold(path)?, "", Some(owner), None, AtFlags::AT_EMPTY_PATH)?)
}

/// Lets the members of `group` connect to the socket at `path`; where it is not ours to give to them, those of our own.
///
/// # Errors
/// It is not the one that we made, or its mode cannot be set.
pub fn share(path: &Path, group: Gid) -> io::Result<()> {
    let held = hold(path)?;
    let _ = fchownat(&held, "", None, Some(group), AtFlags::AT_EMPTY_PATH);
    // A descriptor that only holds a file has no fchmod; this name leads to that file and to nothing else.
    let held = format!("/proc/self/fd/{}", held.as_raw_fd());
    std::fs::set_permissions(held, Permissions::from_mode(0o660))
}

/// Holds the socket at `path`, which must be one of ours with no other name: the folder may be somebody else's, who
/// puts another file there meanwhile.
fn hold(path: &Path) -> io::Result<OwnedFd> {
    let held = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let is = nix::sys::stat::fstat(&held)?;
    let is_ours = is.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits()
        && is.st_uid == geteuid().as_raw()
        && is.st_nlink == 1;
    if !is_ours {
        return Err(io::Error::other("somebody put another file in its place"));
    }
    Ok(held)
}

/// Whether what is at `path` may be replaced or removed: a socket that belongs to us, or, where there is one, to
/// `owner`. Nothing at all may be replaced.
///
/// # Errors
/// Why not.
pub fn may_replace(path: &Path, owner: Option<Uid>) -> io::Result<()> {
    let is = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        is => is?,
    };
    if !is.file_type().is_socket() {
        let why = "there is a file of that name that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    let uid = Uid::from_raw(is.uid());
    if owner.is_some_and(|owner| uid != owner && uid != geteuid()) {
        let why = format!("there is a socket of uid {uid} of that name, which is left alone; remove it");
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    Ok(())
}

/// Whether a socket is at `path` that nobody listens at any more.
pub fn is_left(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket && is_served(path).is_ok_and(|is_served| !is_served)
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
    let trusted = cred.uid() == 0 || cred.uid() == geteuid().as_raw();
    let address = format!("unix:uid={},pid={}", cred.uid(), cred.pid().unwrap_or(0));
    let (reader, writer) = stream.into_split();
    let origin = if hosts && trusted { Origin::Host } else { Origin::Local };
    let peer = Peer { address, origin };
    Ok(Connection { reader: Box::new(reader), writer: Box::new(writer), peer, is_line: false })
}
