//! The segments that a journal has at one moment, all of them open for reading only.
//!
//! Retention unlinks and rotation adds, but what is open stays. Always holds: the segments that are held follow
//! each other without a hole that was not there; nothing can be written through them. Owner: whoever looks at
//! a journal that is not its own (`inspect.rs`, `verify/pass.rs`, `backup.rs`).

use super::disk::{Disk, DiskFile};
use super::segment::parse_name;
use crate::core::state_root::open_plain;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Open segments, by name.
#[derive(Clone, Debug, Default)]
pub struct Held {
    files: BTreeMap<String, Arc<File>>,
}

impl Held {
    /// Opens every segment in `dir`; a folder that is not there has none.
    ///
    /// # Errors
    /// The folder cannot be listed or a segment cannot be opened; too many open files is one reason.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        // A listing may miss what is named while it is made. One that shows nothing new missed nothing that
        // is older than what it shows.
        loop {
            let (mut found, mut gone) = (false, None);
            for name in list(dir)? {
                if files.contains_key(&name) {
                    continue;
                }
                found = true;
                match open_plain(&dir.join(&name)) {
                    Ok(file) => drop(files.insert(name, Arc::new(file))),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => gone = gone.max(Some(name)),
                    Err(e) => return Err(io::Error::new(e.kind(), format!("{name}: {e}"))),
                }
            }
            // Retention is from the oldest on: what is older than one that is gone is as good as gone.
            if let Some(gone) = gone {
                files.retain(|name, _| *name > gone);
            }
            if !found {
                return Ok(Held { files });
            }
        }
    }

    /// The same without one of them.
    pub fn without(mut self, name: &str) -> Self {
        self.files.remove(name);
        self
    }

    /// The open file of that name.
    pub fn file(&self, name: &str) -> Option<&File> {
        self.files.get(name).map(Arc::as_ref)
    }

    /// The names, oldest first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

fn list(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.as_ref().map_or(true, |name| parse_name(name).is_some())).collect()
}

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "held for reading only"))
}

impl Disk for Held {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names().map(str::to_owned).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(HeldFile(file.clone())))
    }

    fn create(&self, _name: &str) -> io::Result<Box<dyn DiskFile>> {
        read_only()
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        read_only()
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self) -> io::Result<()> {
        read_only()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }
}

struct HeldFile(Arc<File>);

impl DiskFile for HeldFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        DiskFile::read_at(&*self.0, buf, offset)
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        read_only()
    }

    fn sync(&self) -> io::Result<()> {
        read_only()
    }

    fn set_size(&self, _size: u64) -> io::Result<()> {
        read_only()
    }
}
