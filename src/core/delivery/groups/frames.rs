//! Deliveries on their way to one member: first deliveries are sent from the chunk they came in, where many lie one behind
//! the other; all others are copied together.
//!
//! Always holds: they are in the order they were added. Pure. Owner: [`super::hand_out`].

use super::lines::Framed;
use bytes::Bytes;

/// Fewer bytes one behind the other are copied: a piece of its own costs about as much …
const SHARED_BYTES: usize = 4 * 1024;
/// … and a smaller part of its chunk is: whoever does not take it would keep all of the chunk.
const SHARED_PART: usize = 8;

/// First deliveries that lie one behind the other.
struct Run {
    chunk: Bytes,
    at: usize,
    end: usize,
    events: usize,
}

#[derive(Default)]
pub(super) struct Frames {
    /// Pieces, and how many events each is.
    done: Vec<(Bytes, usize)>,
    copied: Vec<u8>,
    events: usize,
    run: Option<Run>,
}

impl Frames {
    /// Adds an event that is delivered for the first time.
    pub fn first(&mut self, frame: &Framed<'_>) {
        if let Some(run) = &mut self.run
            && run.end == frame.at
            && run.chunk.as_ptr() == frame.chunk.as_ptr()
        {
            run.end += frame.len;
            run.events += 1;
            return;
        }
        self.end_run();
        self.run =
            Some(Run { chunk: frame.chunk.clone(), at: frame.at, end: frame.at + frame.len, events: 1 });
    }

    /// Adds an event that was delivered before, with the head that says so.
    pub fn again(&mut self, head: &[u8], line: &[u8]) {
        self.end_run();
        self.copied.extend_from_slice(&((head.len() + line.len()) as u32).to_be_bytes());
        self.copied.extend_from_slice(head);
        self.copied.extend_from_slice(line);
        self.events += 1;
    }

    fn end_run(&mut self) {
        let Some(Run { chunk, at, end, events }) = self.run.take() else { return };
        if end - at < SHARED_BYTES.max(chunk.len() / SHARED_PART) {
            self.copied.extend_from_slice(&chunk[at..end]);
            self.events += events;
        } else {
            self.end_copied();
            self.done.push((chunk.slice(at..end), events));
        }
    }

    fn end_copied(&mut self) {
        if self.events > 0 {
            let events = std::mem::take(&mut self.events);
            self.done.push((std::mem::take(&mut self.copied).into(), events));
        }
    }

    /// The pieces, and how many events each is.
    pub fn take(mut self) -> Vec<(Bytes, usize)> {
        self.end_run();
        self.end_copied();
        self.done
    }
}
