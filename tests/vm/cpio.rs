//! An archive that the kernel unpacks as its first file system ("newc"): no root and no `cpio` is needed to write one.

use std::collections::HashSet;

/// The archive, while it grows.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    dirs: HashSet<String>,
}

impl Archive {
    /// A folder, and those it is in.
    pub fn dir(&mut self, path: &str) {
        self.folders_of(path);
        if self.dirs.insert(path.to_owned()) {
            self.entry(path, 0o040_755, (0, 0), b"");
        }
    }

    pub fn program(&mut self, path: &str, bytes: &[u8]) {
        self.folders_of(path);
        self.entry(path, 0o100_755, (0, 0), bytes);
    }

    /// A character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.folders_of(path);
        self.entry(path, 0o020_600, (major, minor), b"");
    }

    /// The whole of it.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    /// The kernel makes none by itself.
    fn folders_of(&mut self, path: &str) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.dir(folder);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), bytes: &[u8]) {
        self.entries += 1;
        let (size, name) = (bytes.len() as u32, path.len() as u32 + 1);
        // Inode, mode, links, uid, gid, mtime, size, device, the device it is, length of the name, checksum.
        let fields = [self.entries, mode, 1, 0, 0, 0, size, 0, 0, major, minor, name, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        self.bytes.extend(path.bytes().chain([0]));
        self.pad();
        self.bytes.extend(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
