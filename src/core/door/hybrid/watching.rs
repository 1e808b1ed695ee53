//! Wakes when something comes or goes in a folder.
//!
//! Always holds: it only hurries: whatever it misses (a link on the way that changed, no watch to be had) the next look
//! sees. Owner: `mod.rs`.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use tokio::net::unix::pipe::Receiver;

/// Read at once of what inotify says; what it is does not matter.
const EVENT_BYTES: usize = 4096;

/// Watches folders.
pub struct Watch {
    /// The same descriptor twice: once to watch, once to wait for. Reading it is like reading a pipe.
    inotify: Option<(Inotify, Receiver)>,
    watched: HashSet<WatchDescriptor>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let made = || -> io::Result<(Inotify, Receiver)> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let events = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
            Ok((inotify, events))
        };
        let inotify = made().inspect_err(|error| {
            tracing::warn!(%error, "hybrid: folders cannot be watched; they are looked at once a second");
        });
        Watch { inotify: inotify.ok(), watched: HashSet::new() }
    }

    /// Watches these and no others. Whether there is one among them that was not watched: it may have changed between
    /// the look and now.
    pub fn set(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let Some((inotify, _)) = &self.inotify else { return false };
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        // One folder has one watch, however often it is asked for.
        let now: HashSet<_> =
            folders.iter().filter_map(|folder| inotify.add_watch(folder, flags).ok()).collect();
        for gone in self.watched.difference(&now) {
            // One whose folder is gone is gone by itself.
            let _ = inotify.rm_watch(*gone);
        }
        let more = !now.is_subset(&self.watched);
        self.watched = now;
        more
    }

    /// Resolves when something came or went.
    pub async fn changed(&self) {
        let ready = match &self.inotify {
            Some((_, events)) => events.readable().await.is_ok(),
            None => false,
        };
        // Where nothing can be waited for, time brings the next look.
        if !ready {
            std::future::pending::<()>().await;
        }
    }

    /// Takes what has come, so that it does not wake again.
    pub fn drain(&self) {
        if let Some((_, events)) = &self.inotify {
            while events.try_read(&mut [0; EVENT_BYTES]).is_ok_and(|read| read > 0) {}
        }
    }
}
