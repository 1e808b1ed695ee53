//! Walks the records of one segment, valid or not.
//!
//! Always holds: a record that is handed out has a right CRC for this segment; memory is one window of
//! [`WINDOW`] bytes; what the disk cannot read counts as no record. Owner: `read.rs` and `recover.rs`.

use super::disk::DiskFile;
use super::record::{ALIGN, BODY_BYTES, Decoded, HEAD_BYTES, Head, decode, peek_lsn, size};
use super::segment::HEADER_BYTES;
use crate::core::event::Event;
use std::io;

/// How much is read at a time, in bytes; more than the longest record.
pub const WINDOW: usize = 256 * 1024;
const PAGE: usize = 4096;

/// A valid record.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its fixed part.
    pub head: Head,
    /// An event's line, or a note's bytes; empty for others.
    pub body: &'a [u8],
    /// Where it begins in the file.
    pub at: u64,
}

impl<'a> Record<'a> {
    /// What it is when it is an event.
    pub fn event(&self) -> Event<'a> {
        let Head { seq, ts, layout, .. } = self.head;
        Event { seq, ts, line: self.body, layout }
    }
}

/// A place in a segment, from which records are read on.
pub struct Scanner {
    file: Box<dyn DiskFile>,
    salt: u32,
    window: Vec<u8>,
    window_at: u64,
    at: u64,
}

impl Scanner {
    /// At the first record of a segment.
    pub fn new(file: Box<dyn DiskFile>, salt: u32) -> Self {
        Scanner { file, salt, window: Vec::new(), window_at: HEADER_BYTES, at: HEADER_BYTES }
    }

    /// Where the next record is expected.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Goes to `at`, a multiple of [`ALIGN`].
    pub fn go(&mut self, at: u64) {
        self.at = at;
    }

    /// Forgets what was read: the file may have more by now.
    pub fn refresh(&mut self) {
        self.window.clear();
    }

    /// The record here, and goes behind it; `None`, and stays, when there is none.
    ///
    /// # Errors
    /// Only what makes all reading pointless: unreadable pages are no records.
    pub fn next(&mut self) -> io::Result<Option<Record<'_>>> {
        let mut need = HEAD_BYTES;
        let (head, length) = loop {
            let have = self.fill(need)?;
            if have < need {
                return Ok(None);
            }
            match decode(&self.window[self.offset()..], self.salt) {
                Decoded::Short(n) => need = n,
                Decoded::Blank | Decoded::Bad => return Ok(None),
                Decoded::Record(head, body, _) => break (head, body.len()),
            }
        };
        let (at, offset) = (self.at, self.offset());
        self.at += size(length) as u64;
        let body = &self.window[offset + HEAD_BYTES..offset + HEAD_BYTES + length];
        Ok(Some(Record { head, body, at }))
    }

    /// Goes to the next valid record behind this place and before `end` whose lsn is in `lsns`; false, and
    /// at `end`, when there is none.
    ///
    /// # Errors
    /// As [`Scanner::next`].
    pub fn resync(&mut self, end: u64, lsns: std::ops::Range<u64>) -> io::Result<bool> {
        self.at += ALIGN as u64;
        while self.at + HEAD_BYTES as u64 <= end {
            if self.fill(HEAD_BYTES)? < HEAD_BYTES {
                break;
            }
            // Most places are ruled out by their lsn alone.
            let window = &self.window[self.offset()..];
            let candidate = window
                .windows(HEAD_BYTES)
                .step_by(ALIGN)
                .position(|place| peek_lsn(place).is_some_and(|lsn| lsns.contains(&lsn)));
            let Some(steps) = candidate else {
                let places = (window.len() - HEAD_BYTES) / ALIGN + 1;
                self.at += (places * ALIGN) as u64;
                continue;
            };
            self.at += (steps * ALIGN) as u64;
            let here = self.at;
            if here + HEAD_BYTES as u64 > end {
                break;
            }
            if self.next()?.is_some() {
                self.at = here;
                return Ok(true);
            }
            self.at = here + ALIGN as u64;
        }
        self.at = end.max(self.at);
        Ok(false)
    }

    fn offset(&self) -> usize {
        (self.at - self.window_at) as usize
    }

    /// Makes `need` bytes from `at` on part of the window, as far as the file goes; how many there are.
    fn fill(&mut self, need: usize) -> io::Result<usize> {
        debug_assert!(need <= HEAD_BYTES + BODY_BYTES);
        let window_end = self.window_at + self.window.len() as u64;
        if self.at >= self.window_at && self.at + need as u64 <= window_end {
            return Ok((window_end - self.at) as usize);
        }
        self.window.resize(WINDOW, 0);
        self.window_at = self.at;
        let n = match self.file.read_at(&mut self.window, self.at) {
            Ok(n) => n,
            Err(_) => read_pages(&*self.file, &mut self.window, self.at)?,
        };
        self.window.truncate(n);
        Ok(n)
    }
}

/// Reads page by page; those that fail are left as 0xff, which is no record and not blank.
fn read_pages(file: &dyn DiskFile, window: &mut [u8], at: u64) -> io::Result<usize> {
    let size = file.size()?;
    let want = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX).min(window.len());
    let mut done = 0;
    while done < want {
        // The disk's pages, so that a bad one takes nothing of its neighbours with it.
        let page_end = PAGE - (at as usize + done) % PAGE;
        let page = &mut window[done..want.min(done + page_end)];
        if file.read_at(page, at + done as u64).is_err() {
            page.fill(0xff);
        }
        done += page.len();
    }
    Ok(want)
}
