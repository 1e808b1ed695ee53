//! Keeps the journal's timeline (`timeline.rs`): moves it by the machine's clock, and in a file beside the segments.
//!
//! The file `timeline` is a line `castra-timeline 1 CRC` (CRC-32C of what follows, in hex) and a JSON object. It is written
//! anew as `timeline.new`, synced and renamed. Always holds: a file that is lost, damaged or cannot be written is no
//! failure of the journal: events are younger then than they could be, never older. Owner: [`super::Journal`].

use super::ages::Ages;
use super::disk::Disk;
use super::segment::Map;
use super::timeline::{Counted, Moment, Saved, Timeline};
use crate::core::clock::{boot_id, boot_ms, wall_ms};
use crate::core::limits::AGE_SAVE;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

const NAME: &str = "timeline";
const NEW: &str = "timeline.new";
const MAGIC: &str = "castra-timeline 1 ";
/// A larger one is none.
const MOST_BYTES: u64 = 4 * 1024 * 1024;
/// Without new events it is written so many times more seldom.
const IDLE: i64 = 20;

/// The timeline of a journal that is open.
#[derive(Debug)]
pub(super) struct Timekeeper {
    line: Mutex<Timeline>,
    boot_id: String,
    file: Mutex<FileState>,
}

#[derive(Debug)]
struct FileState {
    /// The newest event then, and when that was.
    seq: u64,
    boot_ms: i64,
    has_failed: bool,
}

impl Timekeeper {
    /// That of the journal of this `map`, whose newest event has the time `newest_ts`.
    pub fn open(disk: &dyn Disk, map: &Map, newest_ts: u64) -> Self {
        let (boot_ms, boot_id, head) = (boot_ms(), boot_id(), map.durable_seq());
        let saved = load(disk).unwrap_or_else(|error| {
            tracing::warn!(%error, "journal: the file 'timeline' cannot be read; how old events are is not known exactly");
            None
        });
        let claims =
            map.segments().into_iter().skip(1).map(|next| (next.first_seq.saturating_sub(1), next.ts));
        let mut claims: Vec<(u64, u64)> =
            claims.chain([(head, newest_ts)]).filter(|(seq, _)| *seq > 0).collect();
        claims.dedup_by_key(|(seq, _)| *seq);
        let moment = Moment { boot_ms, boot_id: &boot_id, wall_ms: wall_ms() };
        let line = Mutex::new(Timeline::begin(saved, claims, head, &moment));
        Timekeeper { line, boot_id, file: Mutex::new(FileState { seq: head, boot_ms, has_failed: false }) }
    }

    /// The timeline now.
    fn line(&self) -> MutexGuard<'_, Timeline> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.tick(boot_ms());
        line
    }

    /// The event `seq` and those before it are durable. Called once a commit.
    pub fn committed(&self, seq: u64) {
        self.line().committed(seq);
    }

    /// How old events are.
    pub fn ages(&self) -> Ages {
        self.line().ages()
    }

    /// To be called now and then: counts a pause whose time has come, and writes the file when it is due.
    pub fn keep(&self, disk: &dyn Disk, map: &Map) -> Option<Counted> {
        let counted = {
            let mut line = self.line();
            line.forget(map.first_seq());
            line.count(wall_ms())
        };
        self.save(disk, map, counted.is_some());
        counted
    }

    /// Writes the file: at once, or when it is due.
    pub fn save(&self, disk: &dyn Disk, map: &Map, at_once: bool) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (seq, passed) = (map.durable_seq(), boot_ms() - file.boot_ms);
        let every = i64::try_from(AGE_SAVE.as_millis()).unwrap_or(i64::MAX);
        if !at_once && passed < if seq == file.seq { IDLE * every } else { every } {
            return;
        }
        let saved = {
            let line = self.line();
            line.save(&Moment { boot_ms: boot_ms(), boot_id: &self.boot_id, wall_ms: wall_ms() })
        };
        let written = store(disk, &saved);
        match &written {
            Err(error) if !file.has_failed => tracing::warn!(
                %error,
                "journal: the file 'timeline' cannot be written; after a crash events may be kept for longer"
            ),
            _ => {}
        }
        *file = FileState { seq, boot_ms: boot_ms(), has_failed: written.is_err() };
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is damaged")
}

fn load(disk: &dyn Disk) -> io::Result<Option<Saved>> {
    let file = match disk.open(NAME) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let size = file.size()?;
    if size > MOST_BYTES {
        return Err(damaged());
    }
    let mut bytes = vec![0; size as usize];
    let n = file.read_at(&mut bytes, 0)?;
    decode(&bytes[..n]).map(Some).ok_or_else(damaged)
}

fn decode(bytes: &[u8]) -> Option<Saved> {
    let rest = bytes.strip_prefix(MAGIC.as_bytes())?;
    let (crc, body) = rest.split_at_checked(9)?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.strip_suffix('\n')?, 16).ok()?;
    let saved: Saved = (crc32c::crc32c(body) == crc).then(|| serde_json::from_slice(body).ok())??;
    saved.is_sane().then_some(saved)
}

fn encode(saved: &Saved) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(saved)?;
    Ok([format!("{MAGIC}{:08x}\n", crc32c::crc32c(&body)).as_bytes(), &body].concat())
}

fn store(disk: &dyn Disk, saved: &Saved) -> io::Result<()> {
    let file = disk.create(NEW)?;
    file.write_at(&encode(saved)?, 0)?;
    file.sync()?;
    disk.rename(NEW, NAME)?;
    disk.sync_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_is_believed() {
        let moment = Moment { boot_ms: 5, boot_id: "a", wall_ms: 9 };
        let mut line = Timeline::begin(None, vec![(3, 7)], 3, &moment);
        line.committed(4);
        let saved = line.save(&moment);
        let bytes = encode(&saved).unwrap();
        assert_eq!(decode(&bytes), Some(saved.clone()));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // A letter of the CRC may be a capital one.
            assert!(decode(&flipped).is_none_or(|read| read == saved), "{bit}");
        }
        assert_eq!(decode(b""), None);
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
    }
}
