//! Opens the doors: the addresses that are configured, and the sockets that somebody handed over.
//!
//! Always holds: all that have an address of their own are bound before one is served (sockets of VMs come and go, and
//! are opened right after); an address that was handed over is not opened again; only
//! what was bound here is removed at the end. Owner: `broker.rs`.

use super::tcp::BindError;
use super::{Lobby, hybrid, serial, tcp, unix, vsock};
use crate::core::policy::Policy;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_vsock::VsockListener;

/// What guests dial over vsock where nothing else is said.
pub const VSOCK_PORT: u32 = 7070;
/// The sockets of single VMs that are named among the listeners; of more, how many there are.
const NAMED: usize = 16;

/// Stands for the path of a socket that has none.
const UNNAMED: &str = "(unnamed)";

/// A door that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}{hint}", hint = hint(address, error))]
pub struct ListenError {
    /// Where.
    pub address: String,
    /// Why not.
    pub error: BindError,
}

impl ListenError {
    /// Why `address` cannot be had.
    pub fn new(address: String, error: impl Into<BindError>) -> Self {
        ListenError { address, error: error.into() }
    }
}

fn hint(address: &str, error: &BindError) -> &'static str {
    match error {
        BindError::Io(error)
            if !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) =>
        {
            ""
        }
        BindError::Io(_) if address.starts_with("metrics:") => "; another address is given with --metrics",
        BindError::Io(_) => "; another address is given with --tcp, --unix or --state-root",
        BindError::NotLoopback => "",
    }
}

fn failed<E: Into<BindError>>(address: String) -> impl FnOnce(E) -> ListenError {
    move |error| ListenError::new(address, error)
}

/// Sockets that were bound by whoever started this process. Nobody but guests comes in by them, except where
/// one has the name of the host's own.
#[derive(Debug, Default)]
pub struct Handed {
    /// Of TCP.
    pub tcp: Vec<std::net::TcpListener>,
    /// Of a path.
    pub unix: Vec<std::os::unix::net::UnixListener>,
}

/// Where guests come in.
pub struct Ways<'a> {
    /// TCP addresses.
    pub tcp: &'a [SocketAddr],
    /// Sockets for guests, beside the host's own.
    pub unix: &'a [PathBuf],
    /// The port of vsock.
    pub vsock: Option<u32>,
    /// The sockets and serial lines of VMs, as they come and go with it.
    pub policy: watch::Receiver<Arc<Policy>>,
}

/// Doors that are bound and not served yet.
#[derive(Default)]
pub struct Doors {
    tcp: Vec<TcpListener>,
    /// With whether it is the host's own.
    unix: Vec<(UnixListener, bool)>,
    vsock: Option<VsockListener>,
    /// What guests dial, also those of hybrid vsock.
    port: u32,
    /// `tcp:ADDR`, `unix:PATH`, `vsock:PORT`. Those of [`named`] come beside.
    pub listeners: Vec<String>,
    /// The sockets in the file system that are ours to remove.
    pub bound: Vec<PathBuf>,
}

impl Doors {
    /// Binds all of them; `own` is the host's socket.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub async fn open(ways: Ways<'_>, own: &Path, handed: Handed) -> Result<Self, ListenError> {
        let Ways { tcp, unix, vsock, policy } = ways;
        let trust = policy.borrow().trust;
        let mut doors = Doors { port: vsock.unwrap_or(VSOCK_PORT), ..Doors::default() };
        for listener in handed.tcp {
            let addr = listener.local_addr().map_err(failed("a TCP socket that was handed over".into()))?;
            doors.add_tcp(
                tcp::adopt(listener, trust).map_err(failed(format!("tcp:{addr}, handed over")))?,
                addr,
            );
        }
        let mut taken = Vec::new();
        for listener in handed.unix {
            let addr = listener.local_addr().map_err(failed("a unix socket that was handed over".into()))?;
            let path = addr.as_pathname().unwrap_or(Path::new(UNNAMED)).to_owned();
            let door = unix::adopt(listener);
            let door = door.map_err(failed(format!("unix:{}, handed over", path.display())))?;
            taken.push((door, path));
        }
        for addr in tcp {
            if !doors.tcp.iter().any(|door| door.local_addr().is_ok_and(|a| a == *addr)) {
                let door = tcp::bind(*addr, trust).await.map_err(failed(format!("tcp:{addr}")))?;
                doors.add_tcp(door, *addr);
            }
        }
        let handed_over = |path: &Path| taken.iter().any(|(_, handed)| is_same(handed, path));
        for path in
            [own].into_iter().chain(unix.iter().map(PathBuf::as_path)).filter(|path| !handed_over(path))
        {
            let door = unix::bind(path).map_err(failed(format!("unix:{}", path.display())))?;
            doors.unix.push((door, path == own));
            doors.listeners.push(name(path));
            doors.bound.push(path.to_owned());
        }
        for (door, path) in taken {
            doors.unix.push((door, is_same(&path, own)));
            doors.listeners.push(name(&path));
        }
        if let Some(port) = vsock {
            doors.vsock = vsock::bind(port).map_err(failed(format!("vsock:{port}")))?;
            doors.listeners.extend(doors.vsock.as_ref().map(|_| format!("vsock:{port}")));
        }
        Ok(doors)
    }

    fn add_tcp(&mut self, door: TcpListener, addr: SocketAddr) {
        self.listeners.push(format!("tcp:{}", door.local_addr().unwrap_or(addr)));
        self.tcp.push(door);
    }

    /// Lets everybody in, until the broker ends.
    pub fn serve(self, lobby: &Arc<Lobby>) {
        for door in self.tcp {
            let door = Arc::new(door);
            tokio::spawn(lobby.clone().serve(move || {
                let door = door.clone();
                async move { tcp::accept(&door).await }
            }));
        }
        for (door, hosts) in self.unix {
            let door = Arc::new(door);
            tokio::spawn(lobby.clone().serve(move || {
                let door = door.clone();
                async move { unix::accept(&door, hosts).await }
            }));
        }
        if let Some(door) = self.vsock {
            let door = Arc::new(door);
            tokio::spawn(lobby.clone().serve(move || {
                let door = door.clone();
                async move { vsock::accept(&door).await }
            }));
        }
        tokio::spawn(hybrid::keep(lobby.clone(), self.port));
        tokio::spawn(serial::keep(lobby.clone()));
    }
}

/// What a policy adds to the listeners: its globs, not the sockets that they match, which come and go, and the sockets
/// and lines of single VMs, as long as those are few.
pub fn named(policy: &Policy) -> Vec<String> {
    let globs = policy.hybrid.iter().map(|glob| format!("hybrid:{}", glob.display()));
    let some = |door: &str, paths: Vec<&PathBuf>| {
        let more = paths.len().checked_sub(NAMED).filter(|more| *more > 0);
        let named = paths.iter().take(NAMED).map(|path| format!("{door}:{}", path.display()));
        named.chain(more.map(|more| format!("{door}:+{more}"))).collect::<Vec<_>>()
    };
    let sockets = policy.vms().filter_map(|vm| vm.socket.as_ref()).collect();
    let lines = policy.vms().filter_map(|vm| vm.serial.as_ref()).collect();
    globs.chain(some("hybrid", sockets)).chain(some("serial", lines)).collect()
}

/// What a socket is called wherever its name is read: also in another folder.
fn name(path: &Path) -> String {
    let named = Some(path).filter(|path| *path != Path::new(UNNAMED));
    let whole = named.and_then(|path| std::path::absolute(path).ok());
    format!("unix:{}", whole.as_deref().unwrap_or(path).display())
}

/// Whether two paths are one file: a folder on the way may be a link.
fn is_same(a: &Path, b: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    a == b || file(a).is_some_and(|a| Some(a) == file(b))
}
