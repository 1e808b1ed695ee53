//! One socket that is served: the listener, its file, its way to the lobby.
//!
//! Always holds: a listener that waits for connections takes the place of none, and at most one that it accepted waits
//! for its own; no file is made or removed but in the folder that was found; one is removed only while it is ours.
//! Owner: `mod.rs`.

use super::plan::{Found, Standing};
use super::way::follow;
use crate::core::door::allotment::Allotment;
use crate::core::door::{ACCEPT_REST, Lobby, unix};
use nix::unistd::Uid;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Such a socket. Dropping it shuts it and leaves the file.
pub struct Served {
    /// As castra.toml or its glob has it.
    pub path: PathBuf,
    /// Its own path; no link that leads elsewhere by now is on it.
    pub place: PathBuf,
    owner: u32,
    file: unix::FileId,
    accepting: JoinHandle<()>,
    _permit: OwnedSemaphorePermit,
}

impl Served {
    /// Makes the socket and lets in what comes; it may not be possible to give it to its owner, which is said.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(
        lobby: &Arc<Lobby>,
        found: Found,
        allotment: Allotment,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<Self> {
        let Found { path, listen, place, owner, .. } = found;
        // What was a folder may be a link by now.
        let way = follow(&place)?;
        let held = way.held().filter(|_| way.path == place).ok_or(io::ErrorKind::NotFound)?;
        let unix::Made { listener, file, not_given } = unix::make(&held, Some(Uid::from_raw(owner)))?;
        if let Some(error) = not_given {
            tracing::warn!(
                socket = %listen.display(), uid = owner, %error,
                "hybrid: the socket cannot be given to the uid that the VM's has; its VMM can connect only as the \
                 broker's own uid or root"
            );
        }
        let listener = UnixListener::from_std(listener)?;
        let accepting = tokio::spawn(accept(lobby.clone(), listener, allotment));
        Ok(Served { path, place, owner, file, accepting, _permit: permit })
    }

    /// As it is now.
    pub fn standing(&self) -> Standing {
        let is_intact = self.is_ours(&self.place);
        Standing { place: self.place.clone(), owner: self.owner, is_intact }
    }

    /// Which file it is.
    pub fn file(&self) -> unix::FileId {
        self.file
    }

    /// Shuts it and removes its file. Connections go on.
    pub fn close(self) {
        let Ok(way) = follow(&self.place) else { return };
        if let Some(held) = way.held().filter(|held| way.path == self.place && self.is_ours(held)) {
            let _ = std::fs::remove_file(held);
        }
    }

    /// An inode alone does not say it: the next file may have that of one that was removed.
    fn is_ours(&self, path: &Path) -> bool {
        unix::file_id(path) == Some(self.file)
            && unix::may_replace(path, Some(Uid::from_raw(self.owner))).is_ok()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(lobby: Arc<Lobby>, listener: UnixListener, allotment: Allotment) {
    loop {
        let accepted = tokio::select! {
            () = lobby.ended() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let Some(place) = lobby.place().await else { return };
                let (lobby, connection) = (lobby.clone(), allotment.connection(stream, false));
                tokio::spawn(async move { lobby.attend(place, connection).await });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_REST).await;
            }
        }
    }
}
