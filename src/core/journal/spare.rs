//! The spare: a zero-filled, durable file that becomes the next segment.
//!
//! ```text
//! filling (spare.new) ─fsync, rename, fsync dir─▶ ready (spare.0 | spare.1) ─header, fsync, rename─▶ segment
//!      └──ENOSPC──▶ failed: publishers get `disk-full`, tried again every 250 ms
//! ```
//!
//! Writing inside zeros that are really there makes a commit's fdatasync free of metadata, and reserves
//! the space a segment ahead (invariant 4). The two names take turns, so that a new spare never takes the name
//! of one that is just becoming a segment. Always holds: a spare is all zeros on the disk, or is not used.
//! Owner: the thread of [`Spares::run`] makes them, the writer takes them.

use super::disk::{Disk, DiskFile};
use super::segment::HEADER_BYTES;
use crate::core::limits::SEGMENT_MIN_BYTES;
use crate::core::room;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const NAMES: [&str; 2] = ["spare.0", "spare.1"];
const FILLING: &str = "spare.new";
const CHUNK: usize = 1024 * 1024;
const RETRY: Duration = Duration::from_millis(250);
/// How often [`Spares::run`] calls its `each` when nothing happens.
pub const KEEP: Duration = Duration::from_secs(10);

/// A file of zeros.
pub struct Spare {
    /// Its name.
    pub name: &'static str,
    /// Open for reading and writing.
    pub file: Box<dyn DiskFile>,
    /// Its size.
    pub bytes: u64,
}

/// The size of the next segment: `wanted`, or what leaves room for three more; `None` when the disk is full.
pub fn choose_bytes(wanted: u64, free: u64) -> Option<u64> {
    let smallest = wanted.min(SEGMENT_MIN_BYTES);
    let mut bytes = wanted;
    while bytes > smallest && free < 4 * bytes {
        bytes = (bytes / 2).max(smallest);
    }
    (free >= 2 * bytes).then_some(bytes)
}

/// Makes a spare; `turn` chooses its name, even or odd.
///
/// # Errors
/// `StorageFull` when there is no room; nothing is left behind then.
pub fn make(disk: &dyn Disk, wanted: u64, turn: usize) -> io::Result<Spare> {
    let name = NAMES[turn % 2];
    let bytes = choose_bytes(wanted, disk.free_bytes()?).ok_or(io::ErrorKind::StorageFull)?;
    let made = disk.create_zeros(FILLING, bytes).and_then(|file| {
        disk.rename(FILLING, name)?;
        disk.sync_dir()?;
        Ok(Spare { name, file, bytes })
    });
    if made.is_err() {
        let _ = disk.remove(FILLING);
    }
    made
}

/// The spare that an earlier process left, if it is of the right size and all zeros; else a new one.
///
/// # Errors
/// As [`make`].
pub fn find_or_make(disk: &dyn Disk, wanted: u64, at_least: u64) -> io::Result<Spare> {
    let mut found = None;
    for name in NAMES {
        let Ok(file) = disk.open(name) else { continue };
        let bytes = file.size()?;
        let fits = (at_least..=wanted).contains(&bytes) && found.is_none();
        if fits && is_zeros(&*file, bytes).unwrap_or(false) {
            found = Some(Spare { name, file: disk.open_blocks(name)?, bytes });
        } else {
            disk.remove(name)?;
        }
    }
    let _ = disk.remove(FILLING);
    match found {
        Some(spare) => Ok(spare),
        None => make(disk, wanted, 0),
    }
}

fn is_zeros(file: &dyn DiskFile, bytes: u64) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK.min(bytes as usize)];
    let mut at = 0;
    while at < bytes {
        let n = file.read_at(&mut chunk, at)?;
        if n == 0 || chunk[..n].iter().any(|b| *b != 0) {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(bytes > HEADER_BYTES)
}

enum State {
    Making,
    Ready(Spare),
    Failed,
    Stopped,
}

/// Hands spares from the thread that makes them to the writer.
pub struct Spares {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Spares {
    /// Nothing yet: [`Spares::run`] looks for one first.
    fn default() -> Self {
        Spares { state: Mutex::new(State::Making), changed: Condvar::new() }
    }
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the spare; `None` when the disk has no room for one.
    pub fn take(&self) -> Option<Spare> {
        let mut state = self.lock();
        while matches!(*state, State::Making) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !matches!(*state, State::Ready(_)) {
            return None;
        }
        let State::Ready(spare) = std::mem::replace(&mut *state, State::Making) else { return None };
        self.changed.notify_all();
        Some(spare)
    }

    /// The disk has no room for a spare.
    pub fn failed(&self) -> bool {
        matches!(*self.lock(), State::Failed)
    }

    /// Ends [`Spares::run`].
    pub fn stop(&self) {
        *self.lock() = State::Stopped;
        self.changed.notify_all();
    }

    /// Sees to it that there is a spare, until [`Spares::stop`]. `each` runs now and then: after every
    /// attempt, and every [`KEEP`].
    pub fn run(&self, disk: &dyn Disk, wanted: u64, mut each: impl FnMut()) {
        // None until the first: only then may what an earlier process left be looked at, for later it may be
        // the one that the writer is just making a segment.
        let mut turn = None;
        loop {
            let making = {
                let state = self.lock();
                let wait = match *state {
                    State::Making => Duration::ZERO,
                    State::Failed => RETRY,
                    State::Ready(_) => KEEP,
                    State::Stopped => return,
                };
                let waited = self
                    .changed
                    .wait_timeout_while(state, wait, |s| matches!(s, State::Ready(_) | State::Failed));
                let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                !matches!(*state, State::Ready(_) | State::Stopped)
            };
            if making {
                let made = match turn {
                    None => find_or_make(disk, wanted, HEADER_BYTES),
                    Some(turn) => make(disk, wanted, turn),
                };
                self.offer(made, &mut turn);
            }
            each();
        }
    }

    fn offer(&self, made: io::Result<Spare>, turn: &mut Option<usize>) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut *state, State::Failed);
        match (before, made) {
            (State::Stopped, _) => *state = State::Stopped,
            (before, Ok(spare)) => {
                if matches!(before, State::Failed) {
                    tracing::info!("journal: there is room for a segment again");
                }
                *turn = Some(usize::from(spare.name == NAMES[0]));
                *state = State::Ready(spare);
            }
            (State::Failed, Err(_)) => {}
            (_, Err(error)) => tracing::error!(
                %error,
                "journal: no room for the next segment; {}, until then publishers get disk-full when this one is full",
                room::advice(&error)
            ),
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_shrink_with_free_space() {
        const MIB: u64 = 1 << 20;
        for (free, bytes) in [
            (1000 * MIB, Some(64 * MIB)),
            (255 * MIB, Some(32 * MIB)),
            (60 * MIB, Some(8 * MIB)),
            (4 * MIB, Some(MIB)),
            (2 * MIB, Some(MIB)),
            (2 * MIB - 1, None),
            (0, None),
        ] {
            assert_eq!(choose_bytes(64 * MIB, free), bytes, "{free}");
        }
    }
}
