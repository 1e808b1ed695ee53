//! The file beside the database that SQLite maps into memory has its place on the disk.
//!
//! Whoever writes to a mapped page that finds no place on a full disk is ended (SIGBUS), and with it the broker. SQLite
//! sees to one byte of each page, which is not all of it where a disk's blocks are smaller. Where a disk writes each page
//! to a new place (btrfs) no file can have its place for good: there a full disk may still end it. Always holds: the
//! file is not closed before the last connection to the database that this module has, for a close takes all locks
//! that this process has on it. Owner: [`super::Latest`].

use super::open::{Wrong, connect_beside, with};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use rusqlite::Connection;
use std::fs::{File, OpenOptions, symlink_metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// For a write-ahead log of 1 GiB: what much that is read changes at once is three hundred MiB, and a copy that is being
/// made keeps some more.
const BYTES: u64 = 2 * 1024 * 1024;
/// How its name ends, behind the database's.
const END: &str = "-shm";
/// Blocks of a page or more have all of it.
const PAGE: u64 = 4096;

/// That file of the newest database.
#[derive(Default)]
pub(super) struct Mapped {
    /// As long as it is open nobody begins the file anew: not the thread, when it opens the database again.
    anchor: Option<Connection>,
    held: Option<Held>,
}

struct Held {
    file: File,
    /// Of the database and of this file.
    inodes: [(u64, u64); 2],
}

impl Mapped {
    /// Whether the database at `path` may be opened: SQLite begins the file, if this process has none.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn may_begin(&mut self, path: &Path) -> Result<(), Wrong> {
        let is_held = |held: &Held| inodes(path).is_ok_and(|now| now == held.inodes);
        if self.anchor.is_some() && self.held.as_ref().is_some_and(is_held) {
            return Ok(());
        }
        // One of them was removed or put aside.
        *self = Mapped::default();
        let disk = statvfs(path.parent().unwrap_or(path)).map_err(io::Error::from)?;
        let (block, free) =
            (disk.fragment_size(), disk.blocks_available().saturating_mul(disk.fragment_size()));
        if block < PAGE && free < 2 * BYTES {
            return Err(Wrong::Failed(format!("the disk is full: it has only {free} bytes that are free")));
        }
        Ok(())
    }

    /// Takes the place for it; the database at `path` is open.
    ///
    /// # Errors
    /// There is none.
    pub fn reserve(&mut self, path: &Path) -> Result<(), Wrong> {
        let inodes = inodes(path)?;
        let held = match &self.held {
            Some(held) if held.inodes == inodes => held,
            _ => {
                // What was before is put aside or removed.
                *self = Mapped::default();
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(nix::libc::O_NOFOLLOW);
                self.held.insert(Held { file: options.open(with(path, END))?, inodes })
            }
        };
        match fallocate(&held.file, FallocateFlags::empty(), 0, BYTES as i64) {
            // Not every file system can; what SQLite does has to be enough there.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if self.anchor.is_none() {
            self.anchor = Some(connect_beside(path)?);
        }
        Ok(())
    }

    /// The thread ends: who is the last one to have the database folds its log in.
    pub fn let_go(&mut self) {
        self.anchor = None;
    }
}

/// Of the database and of this file.
fn inodes(path: &Path) -> io::Result<[(u64, u64); 2]> {
    let inode = |path: &Path| symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()));
    Ok([inode(path)?, inode(&with(path, END))?])
}
