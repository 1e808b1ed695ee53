//! What becomes of events: a thread takes them one after the other, so that a slow one keeps nobody else.
//!
//! ```text
//! follow ─ lines ─▶ this thread: print.rs or exec.rs
//!    ▲                  │
//!    └──── Room ◀───────┘ done with
//! ```
//!
//! Always holds: events are taken in order; room is given back for what is done with. Owner: `mod.rs`.

use crate::core::follow::Room;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

/// What was done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Events that were printed, or handed to the command.
    pub done: u64,
    /// Commands that failed, and lines that were no events.
    pub failed: u64,
    /// Why it went no further.
    pub broken: Option<io::Error>,
}

/// Whether the thread is to end. Clones are the same one.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends it after the event that it has.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is to end.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What there is to do.
pub struct Work {
    /// Lines of events, each with its end.
    pub lines: Receiver<Vec<u8>>,
    /// Where they are given back.
    pub room: Room,
    /// Ends it early.
    pub stop: Stop,
    /// Ends it after so many.
    pub count: Option<u64>,
}

/// What is done with an event.
pub trait Handle {
    /// Does it; whether it went well.
    ///
    /// # Errors
    /// It cannot go on.
    fn event(&mut self, line: &[u8]) -> io::Result<bool>;

    /// Nothing more is there for now.
    ///
    /// # Errors
    /// It cannot go on.
    fn rest(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Work {
    /// Handles what comes until there is nothing more, or enough.
    pub fn run(self, handle: &mut impl Handle) -> Tally {
        let mut tally = Tally::default();
        tally.broken = self.all(handle, &mut tally).and_then(|()| handle.rest()).err();
        tally
    }

    fn all(&self, handle: &mut impl Handle, tally: &mut Tally) -> io::Result<()> {
        loop {
            let lines = match self.lines.try_recv() {
                Ok(lines) => lines,
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => {
                    handle.rest()?;
                    match self.lines.recv() {
                        Ok(lines) => lines,
                        Err(_) => return Ok(()),
                    }
                }
            };
            for line in lines.split_inclusive(|b| *b == b'\n') {
                if self.stop.is_stopped() {
                    return Ok(());
                }
                tally.failed += u64::from(!handle.event(line)?);
                tally.done += 1;
                self.room.give_back(line.len());
                if self.count == Some(tally.done) {
                    return Ok(());
                }
            }
        }
    }
}
