//! The file calls that the journal makes, and the real disk behind them.
//!
//! Always holds: the journal touches files only through [`Disk`] and [`DiskFile`], so a simulated disk
//! (`tests/journal/sim.rs`) can cut the power between any two calls. Owner: [`super::Journal`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// One directory.
pub trait Disk: Send + Sync {
    /// The names in the directory, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new, empty file, replacing one of that name.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// A file that is there.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Renames, replacing `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Unlinks.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that may still be written here.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One file, read and written at offsets.
pub trait DiskFile: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset` as far as the file goes; how many bytes that were.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// fdatasync: what was written, and the size, are durable when this returns `Ok`.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file, or grows it with zeros.
    fn set_size(&self, size: u64) -> io::Result<()>;
}

/// A real directory.
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
