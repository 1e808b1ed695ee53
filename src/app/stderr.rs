//! What the program says on stderr.
//!
//! ```text
//! tracing, say, panics ──lines──▶ queue (256 KiB) ──▶ castra-stderr (thread) ──▶ stderr
//! ```
//!
//! Always holds: after [`start`] nobody but that thread waits for a stderr that nobody reads; a line is written whole or
//! not at all; what finds no room is counted and said when stderr takes lines again; the end of the process waits for
//! the queue for [`LAST_LINES`] at most. Commands that are over soon do not start it and write themselves. Owner:
//! [`super::main`], and each command that runs long starts it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Lines that wait for stderr have so many bytes together; as much again is being written.
const QUEUED_BYTES: usize = 256 * 1024;
/// The end of the process waits so long for lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

#[derive(Default)]
struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    waiting: Vec<u8>,
    /// Lines that found no room since the last ones that were written.
    lost: u64,
    writing: bool,
    json: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room.
    fn push(&self, line: &[u8]) -> bool {
        let mut lines = self.lock();
        // Whoever was told nothing for long is first told how much is missing.
        let fits = lines.lost == 0 && lines.waiting.len() + line.len() <= QUEUED_BYTES;
        if fits {
            lines.waiting.extend_from_slice(line);
        } else {
            lines.lost += 1;
        }
        drop(lines);
        self.changed.notify_all();
        fits
    }

    /// Writes what waits, for ever.
    fn write(&self, out: &mut impl Write, on_lost: impl Fn(u64)) {
        let mut lines = self.lock();
        loop {
            while lines.waiting.is_empty() && lines.lost == 0 {
                lines = self.changed.wait(lines).unwrap_or_else(PoisonError::into_inner);
            }
            let mut bytes = std::mem::take(&mut lines.waiting);
            let lost = std::mem::take(&mut lines.lost);
            lines.writing = true;
            if lost > 0 {
                bytes.extend_from_slice(missing(lost, lines.json).as_bytes());
            }
            drop(lines);
            // Nobody may be reading any more.
            let _ = out.write_all(&bytes);
            if lost > 0 {
                on_lost(lost);
            }
            lines = self.lock();
            lines.writing = false;
            self.changed.notify_all();
        }
    }
}

/// What stands in the place of lines that found no room.
fn missing(lost: u64, json: bool) -> String {
    let text = format!("stderr was not read for a while: lines dropped here: {lost}");
    match json {
        true => format!("{}\n", serde_json::json!({"level": "WARN", "message": text, "dropped": lost})),
        false => format!("castra: {text}\n"),
    }
}

/// From here on nobody waits for stderr but a thread of its own; `json`: the lines are objects. Panics are lines, too.
/// `on_lost` is told how many lines were dropped, as soon as stderr takes lines again. Once per process.
///
/// # Errors
/// There is no thread to be had.
pub fn start(json: bool, on_lost: impl Fn(u64) + Send + 'static) -> io::Result<()> {
    let queue = Arc::<Queue>::default();
    queue.lock().json = json;
    let written = queue.clone();
    std::thread::Builder::new()
        .name("castra-stderr".into())
        .spawn(move || written.write(&mut io::stderr(), on_lost))?;
    // A second call would be a second command in this process, which keeps the first one's.
    let _ = QUEUE.set(queue);
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let mut text = format!("panic in thread {}: {panic}", thread.name().unwrap_or("without a name"));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            text.push_str(&format!("\n{trace}"));
        }
        if tracing::dispatcher::has_been_set() {
            tracing::error!("{text}");
        } else {
            write(format!("castra: {text}\n").as_bytes());
        }
    }));
    Ok(())
}

/// Writes whole lines; false when they found no room. Waits only where no thread was started.
pub fn write(lines: &[u8]) -> bool {
    match QUEUE.get() {
        Some(queue) => queue.push(lines),
        // Nobody may be reading.
        None => {
            let _ = io::stderr().write_all(lines);
            true
        }
    }
}

/// Writes them when stderr takes them: for a thread of its own, whose lines are not to be dropped.
#[cfg(feature = "broker")]
pub fn write_waiting(lines: &[u8]) {
    // Nobody may be reading.
    let _ = io::stderr().write_all(lines);
}

/// Says a sentence to whoever typed the command.
pub fn say(text: &str) {
    write(format!("castra: {text}\n").as_bytes());
}

/// Where lines of text are written to, each with one call.
#[cfg(feature = "agent")]
pub struct Stderr;

#[cfg(feature = "agent")]
impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether somebody looks at it.
#[cfg(feature = "broker")]
pub fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

/// Waits until all is written that was said, for a moment at most.
pub fn finish() {
    if let Some(queue) = QUEUE.get() {
        let pending = |lines: &mut Lines| lines.writing || !lines.waiting.is_empty() || lines.lost > 0;
        let _ = queue.changed.wait_timeout_while(queue.lock(), LAST_LINES, pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_said_in_its_place() {
        let queue = Queue::default();
        let line = [b'x'; 1024];
        let fits = (0..1000).filter(|_| queue.push(&line)).count();
        assert_eq!((fits, queue.lock().lost), (256, 744));
        // A short one does not go past those that are missing.
        assert!(!queue.push(b"y\n"));
        assert_eq!(missing(745, false), "castra: stderr was not read for a while: lines dropped here: 745\n");
        let object: serde_json::Value = serde_json::from_str(&missing(745, true)).expect("an object");
        assert_eq!(object["dropped"], 745);
    }
}
