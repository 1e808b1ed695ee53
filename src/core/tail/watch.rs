//! Sleeps until a log may have changed.
//!
//! ```text
//! the file that is read: written to ─────────────┐
//! its folder, or the next one up that is there: ─┼─▶ inotify ─▶ poll ◀─ whoever reads our output is gone
//!   the log appears                              ┘
//! ```
//!
//! Always holds: what other logs of the folder get wakes nobody; a folder that is moved or removed is noticed
//! at the next look; where there is no inotify, it is looked every `LOOK`. Owner: the command that follows.

use super::chain::{FileId, LogFile};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A log that cannot be watched is looked at so often.
const LOOK: Duration = Duration::from_millis(50);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There may be something, or the time is over.
    Look,
    /// Nobody reads what is printed any more.
    HungUp,
}

struct Folder {
    watch: WatchDescriptor,
    id: FileId,
    /// What has to appear in it.
    name: OsString,
}

/// Watches one log.
#[derive(Default)]
pub struct Watch {
    inotify: Option<Inotify>,
    file: Option<(WatchDescriptor, FileId)>,
    folder: Option<Folder>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok();
        Watch { inotify, ..Watch::default() }
    }

    /// Watches `file`, which is read, and where the log at `path` will appear. Whether that is more than
    /// before: then something may have happened between the last look and now.
    pub fn arm(&mut self, path: &Path, file: Option<&LogFile>) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut more = false;
        let mut watched = Ok(());
        if self.file.map(|(_, id)| id) != file.map(|file| file.id) {
            if let Some((watch, _)) = self.file.take() {
                let _ = inotify.rm_watch(watch);
            }
            if let Some(file) = file {
                // By its descriptor: the name may be another file's by now.
                let name = format!("/proc/self/fd/{}", file.file.as_raw_fd());
                watched = inotify
                    .add_watch(name.as_str(), AddWatchFlags::IN_MODIFY)
                    .map(|watch| self.file = Some((watch, file.id)));
                more = true;
            }
        }
        let there = path.ancestors().zip(path.ancestors().skip(1)).find_map(|(child, folder)| {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let is = std::fs::metadata(folder).ok()?;
            Some((folder, (is.dev(), is.ino()), child.file_name().unwrap_or(OsStr::new(""))))
        });
        if let Some((folder, id, name)) = there
            && self.folder.as_ref().is_none_or(|known| known.id != id || known.name != name)
        {
            if let Some(known) = self.folder.take() {
                let _ = inotify.rm_watch(known.watch);
            }
            let flags = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            watched = watched.and(inotify.add_watch(folder, flags).map(|watch| {
                self.folder = Some(Folder { watch, id, name: name.to_owned() });
            }));
            more = true;
        }
        if watched.is_err() || self.folder.is_none() {
            // No more watches for this user, or a folder that may not be read: look now and then.
            *self = Watch::default();
        }
        more
    }

    /// Sleeps until there may be something, for `limit` at the most; ends early when nobody holds the other
    /// end of `output`.
    ///
    /// # Errors
    /// It is not possible to wait.
    pub fn wait(&mut self, output: BorrowedFd<'_>, limit: Duration) -> io::Result<Woken> {
        let limit = if self.inotify.is_some() { limit } else { limit.min(LOOK) };
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Not a moment too early, to come back at once.
            let timeout =
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let mut fds = vec![PollFd::new(output, PollFlags::empty())];
            if let Some(inotify) = &self.inotify {
                fds.push(PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
            }
            let ready = match poll(&mut fds, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => return Ok(Woken::Look),
                Err(error) => return Err(error.into()),
            };
            if ready == 0 {
                return Ok(Woken::Look);
            }
            let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
            if fds[0].revents().is_some_and(|events| events.intersects(gone)) {
                return Ok(Woken::HungUp);
            }
            if self.take_events()? {
                return Ok(Woken::Look);
            }
        }
    }

    /// Takes what inotify says; whether it is about this log.
    fn take_events(&mut self) -> io::Result<bool> {
        let Some(inotify) = &self.inotify else { return Ok(true) };
        let events = match inotify.read_events() {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            events => events?,
        };
        let mut ours = false;
        for event in events {
            let lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            if lost || self.file.is_some_and(|(watch, _)| watch == event.wd) {
                ours = true;
            } else if let Some(folder) = self.folder.as_ref().filter(|folder| folder.watch == event.wd) {
                ours |= event.name.as_ref().is_none_or(|name| *name == folder.name);
                if event.name.is_none() {
                    // It was moved or removed: the next look finds another one.
                    self.folder = None;
                }
            }
        }
        Ok(ours)
    }
}
