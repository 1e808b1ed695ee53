//! The status file: two slots written in place in turn.
//!
//! ```text
//! slot = file size / 2:  "castra\0S" | u64 sequence | u32 length | u32 CRC-32C | JSON | …   (little-endian)
//! ```
//!
//! The CRC is over sequence, length and JSON. Always holds: one slot is whole at any moment, whatever the
//! writer is doing; writing needs no space (the slots are preallocated) and causes no flush. Owner: the
//! broker's status thread writes, `castra status` reads.

use super::state_root::StateRoot;
use super::status::{SCHEMA, Snapshot};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"castra\0S";
const HEAD: usize = 24;
const SLOT_MIN: usize = 64 * 1024;
/// A slot of more is no status file: 10,000 VMs take about 3 MiB.
const SLOT_MAX: usize = 64 * 1024 * 1024;

fn crc(head: &[u8], json: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[8..20]), json)
}

/// Writes one broker's status.
#[derive(Debug)]
pub struct StatusWriter {
    path: PathBuf,
    file: File,
    slot: usize,
    sequence: u64,
}

impl StatusWriter {
    /// Opens or makes the file; what it says stays until the first [`StatusWriter::write`].
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open(root: &StateRoot) -> io::Result<Self> {
        let path = root.status();
        let old = OpenOptions::new().read(true).write(true).open(&path);
        if let Ok(file) = old {
            let slot = slot_bytes(&file)?;
            if (SLOT_MIN..=SLOT_MAX).contains(&slot) {
                let newest =
                    [0, 1].into_iter().filter_map(|i| read_slot(&file, slot, i)).map(|(s, _)| s).max();
                return Ok(StatusWriter { path, file, slot, sequence: newest.unwrap_or(0) });
            }
        }
        let file = preallocate(&path, SLOT_MIN, None)?;
        Ok(StatusWriter { path, file, slot: SLOT_MIN, sequence: 0 })
    }

    /// Writes the slot that is older. Makes the file larger when the snapshot needs it, and anew when
    /// somebody removed it.
    ///
    /// # Errors
    /// A write failed, there is no room for larger slots, or the snapshot is larger than a slot may be; the other
    /// slot says what it said.
    pub fn write(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let mut bytes = vec![0; HEAD];
        serde_json::to_writer(&mut bytes, snapshot)?;
        if bytes.len() > SLOT_MAX {
            // A file that no reader takes would be worse than an old one.
            return Err(io::Error::other(format!("{} bytes are more than it may have", bytes.len())));
        }
        let sequence = self.sequence + 1;
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        let length = (bytes.len() - HEAD) as u32;
        bytes[16..20].copy_from_slice(&length.to_le_bytes());
        let crc = crc(&bytes[..HEAD], &bytes[HEAD..]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        let removed = self.file.metadata().map_or(true, |m| m.nlink() == 0);
        if bytes.len() > self.slot || removed {
            let slot = bytes.len().next_power_of_two().max(self.slot);
            self.file = preallocate(&self.path, slot, Some((&bytes, sequence)))?;
            self.slot = slot;
        } else {
            self.file.write_all_at(&bytes, slot_at(sequence, self.slot))?;
        }
        // A slot that could not be written is the one to write next: the other is whole.
        self.sequence = sequence;
        Ok(())
    }
}

fn slot_at(sequence: u64, slot: usize) -> u64 {
    sequence % 2 * slot as u64
}

fn slot_bytes(file: &File) -> io::Result<usize> {
    Ok(usize::try_from(file.metadata()?.len() / 2).unwrap_or(usize::MAX))
}

/// A file of two slots of zeros that are really there, with one status in it, in place of the old one.
fn preallocate(path: &Path, slot: usize, status: Option<(&[u8], u64)>) -> io::Result<File> {
    let new = path.with_extension("new");
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all_at(&vec![0; 2 * slot], 0)?;
    if let Some((bytes, sequence)) = status {
        file.write_all_at(bytes, slot_at(sequence, slot))?;
    }
    std::fs::rename(&new, path)?;
    Ok(file)
}

fn read_slot(file: &File, slot: usize, index: usize) -> Option<(u64, Vec<u8>)> {
    let at = (index * slot) as u64;
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, at).ok()?;
    let sequence = u64::from_le_bytes(head[8..16].try_into().ok()?);
    let length = u32::from_le_bytes(head[16..20].try_into().ok()?) as usize;
    if head[..8] != MAGIC[..] || length > slot - HEAD {
        return None;
    }
    let mut json = vec![0; length];
    file.read_exact_at(&mut json, at + HEAD as u64).ok()?;
    (crc(&head, &json) == u32::from_le_bytes(head[20..24].try_into().ok()?)).then_some((sequence, json))
}

/// A later castra may mean something else by the same names; what it only adds is of the same schema.
fn decode(json: &[u8]) -> io::Result<Snapshot> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    let Version { schema } = serde_json::from_slice(json)?;
    if schema != SCHEMA {
        let why = format!(
            "it has schema {schema}, this castra reads {SCHEMA}; use the castra that the broker was started with"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(serde_json::from_slice(json)?)
}

/// The newest whole snapshot; `None` when no broker ever wrote one. Never waits.
///
/// # Errors
/// The file is there and cannot be read, or has no whole slot, or is of another version.
pub fn read(path: &Path) -> io::Result<Option<Snapshot>> {
    // The writer may pass by once while both slots are read; not twice.
    for _ in 0..3 {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let slot = slot_bytes(&file)?;
        if !(SLOT_MIN..=SLOT_MAX).contains(&slot) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no status file"));
        }
        let slots = [0, 1].into_iter().filter_map(|i| read_slot(&file, slot, i));
        if let Some((_, json)) = slots.max_by_key(|(sequence, _)| *sequence) {
            return decode(&json).map(Some);
        }
    }
    let mut file = File::open(path)?;
    let mut first = [0; 8];
    let blank = io::Read::read_exact(&mut file, &mut first).is_ok() && first == [0; 8];
    if blank {
        Ok(None)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "neither of its slots is whole"))
    }
}
