//! The file calls that the journal makes, and the real disk behind them.
//!
//! Always holds: the journal touches files only through [`Disk`] and [`DiskFile`], so a simulated disk
//! (`tests/journal/sim.rs`) can cut the power between any two calls. Owner: [`super::Journal`].

use super::aligned::{Aligned, BLOCK};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// How much of a spare is written at a time, in bytes.
const ZEROS: usize = 1024 * 1024;

/// One directory.
pub trait Disk: Send + Sync {
    /// The names in the directory, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new, empty file, replacing one of that name.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// A file of so many zeros that are really there, replacing one of that name; durable but for its name.
    fn create_zeros(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = self.create(name)?;
        fill(&*file, bytes, true)?;
        Ok(file)
    }
    /// A file that is there.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// The same, for writing whole blocks.
    fn open_blocks(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.open(name)
    }
    /// Renames, replacing `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Unlinks.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that may still be written here.
    fn free_bytes(&self) -> io::Result<u64>;
    /// A number that nobody can guess.
    fn secret(&self) -> u128 {
        uuid::Uuid::new_v4().as_u128()
    }
}

/// One file, read and written at offsets.
pub trait DiskFile: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset` as far as the file goes; how many bytes that were.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`. A file from [`Disk::create_zeros`] or [`Disk::open_blocks`] takes only
    /// whole blocks from aligned memory ([`Aligned`]).
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// fdatasync: what was written, and the size, are durable when this returns `Ok`.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file, or grows it with zeros.
    fn set_size(&self, size: u64) -> io::Result<()>;
}

/// Writes zeros chunk by chunk. Each is synced when they go through the page cache, so that a commit in
/// between waits for one chunk and not for all.
fn fill(file: &dyn DiskFile, bytes: u64, sync_each: bool) -> io::Result<()> {
    let mut zeros = Aligned::zeros(ZEROS.min(bytes as usize));
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(ZEROS as u64);
        file.write_at(&zeros.blocks()[..n as usize], at)?;
        at += n;
        if sync_each || at == bytes {
            file.sync()?;
        }
    }
    Ok(())
}

/// A real directory. Segments are written past the page cache (O_DIRECT) where the file system can: a commit
/// then costs no copy and no page, and the zeros of a spare push nothing else out of memory. Readers read
/// through the page cache all the same; the kernel keeps the two coherent.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// The directory `dir`, which exists.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        RealDisk { dir: dir.into() }
    }
}

impl RealDisk {
    /// The file, past the page cache; `None` where the file system cannot, or wants larger blocks than ours.
    fn open_direct(&self, name: &str) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(nix::libc::O_DIRECT);
        let file = match options.open(self.dir.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            file => file?,
        };
        // Reading has the rules of writing; which they are is seen only by trying.
        match FileExt::read_at(&file, Aligned::zeros(BLOCK).blocks_mut(), 0) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(None),
            _ => Ok(Some(file)),
        }
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let names =
            std::fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Box::new(options.open(self.dir.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        // Readers of a copy on a read-only disk need no more than reading.
        let file = match file {
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
            other => other,
        };
        Ok(Box::new(file?))
    }

    fn create_zeros(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let cached = self.create(name)?;
        match self.open_direct(name)? {
            Some(file) => fill(&file, bytes, false).map(|()| Box::new(file) as Box<dyn DiskFile>),
            None => fill(&*cached, bytes, true).map(|()| cached),
        }
    }

    fn open_blocks(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        match self.open_direct(name)? {
            Some(file) => Ok(Box::new(file)),
            None => self.open(name),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.dir)?;
        Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match FileExt::read_at(self, &mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }
}
