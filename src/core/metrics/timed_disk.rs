//! The journal's disk, with a clock at its fdatasync.
//!
//! Always holds: every call is the disk's own, with its result; only what is there to be written is looked at. The zeros
//! of spares are synced within the disk and take nobody's time: they are not counted. Owner: `broker.rs`, when there are
//! metrics.

use crate::core::journal::disk::{Disk, DiskFile};
use prometheus_client::metrics::histogram::Histogram;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// A disk whose syncs are timed.
pub struct TimedDisk {
    disk: Arc<dyn Disk>,
    syncs: Histogram,
}

impl TimedDisk {
    /// `disk`, the seconds of whose syncs go to `syncs`.
    pub fn new(disk: Arc<dyn Disk>, syncs: Histogram) -> Self {
        TimedDisk { disk, syncs }
    }

    fn timed(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(TimedFile { file, syncs: self.syncs.clone() })
    }
}

impl Disk for TimedDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(name).map(|file| self.timed(file))
    }

    fn create_zeros(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create_zeros(name, bytes).map(|file| self.timed(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(name)
    }

    fn open_blocks(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open_blocks(name).map(|file| self.timed(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

struct TimedFile {
    file: Box<dyn DiskFile>,
    syncs: Histogram,
}

impl DiskFile for TimedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let since = Instant::now();
        let synced = self.file.sync();
        self.syncs.observe(since.elapsed().as_secs_f64());
        synced
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_size(size)
    }
}
