//! The lines of one file: on from a place, back from its end, and by halves to where a condition turns.
//!
//! Always holds: only whole lines are given, without their end; what is held in memory is a few times
//! `LINE_BYTES` at most, and a longer line is left out; a file that shrinks meanwhile ends earlier. Owner:
//! `chain.rs` and `stream.rs`.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

/// The longest line that is read, in bytes: far more than an event has.
const LINE_BYTES: usize = 1024 * 1024;
/// So much is read at a time where few lines are wanted …
const STEP: usize = 64 * 1024;
/// … and where all are.
const STRIDE: usize = 512 * 1024;

/// What a [`Forward`] came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Something was read; there may be more.
    More,
    /// No whole line is left.
    End,
    /// Whoever took the lines has enough.
    Enough,
}

/// Reads the lines of a file, one after the other.
#[derive(Debug)]
pub struct Forward {
    at: u64,
    /// What comes next is the rest of a line that is left out.
    skipping: bool,
    buffer: Vec<u8>,
    longest: usize,
}

impl Forward {
    /// Begins at `at`, where a line begins.
    pub fn new(at: u64) -> Self {
        Forward { at, skipping: false, buffer: vec![0; STRIDE], longest: LINE_BYTES }
    }

    /// Where the next line begins that was not given yet.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Goes on at `at`, where a line begins.
    pub fn seek(&mut self, at: u64) {
        (self.at, self.skipping) = (at, false);
    }

    /// Gives the next lines of `file` to `each`, with where each begins: those of one read.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(
        &mut self,
        file: &File,
        each: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> io::Result<Read> {
        let n = file.read_at(&mut self.buffer, self.at)?;
        let (mut start, base) = (0, self.at);
        while let Some(length) = self.buffer[start..n].iter().position(|b| *b == b'\n') {
            let line = &self.buffer[start..start + length];
            let place = base + start as u64;
            start += length + 1;
            self.at = base + start as u64;
            if !std::mem::take(&mut self.skipping) && each(place, line).is_break() {
                return Ok(Read::Enough);
            }
        }
        if start > 0 {
            return Ok(Read::More);
        }
        if self.skipping {
            self.at += n as u64;
            return Ok(if n > 0 { Read::More } else { Read::End });
        }
        if n < self.buffer.len() {
            return Ok(Read::End);
        }
        if n < self.longest {
            self.buffer.resize((2 * n).min(self.longest), 0);
        } else {
            self.skipping = true;
        }
        Ok(Read::More)
    }
}

/// Gives the lines that end at or before `end` to `each`, the last one first, with where each begins.
///
/// # Errors
/// The file cannot be read.
pub fn backward(
    file: &File,
    end: u64,
    each: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    backward_by(file, end, (STEP, LINE_BYTES), each)
}

fn backward_by(
    file: &File,
    end: u64,
    (step, longest): (usize, usize),
    each: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    // `bytes` begins at `at`. Once its end is the end of a line, it stays so.
    let (mut at, mut bytes, mut aligned) = (end, Vec::new(), false);
    loop {
        if !aligned {
            let newline = bytes.iter().rposition(|b| *b == b'\n');
            bytes.truncate(newline.map_or(0, |i| i + 1));
            aligned = newline.is_some();
        }
        while let Some(body) = bytes.len().checked_sub(1) {
            let start = bytes[..body].iter().rposition(|b| *b == b'\n').map(|i| i + 1);
            let Some(start) = start.or((at == 0).then_some(0)) else { break };
            if body - start < longest && each(at + start as u64, &bytes[start..body]).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            bytes.truncate(start);
        }
        if at == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        if bytes.len() > longest {
            // Too long; what is left of it is dropped like a torn end.
            bytes.clear();
            aligned = false;
        }
        let from = at.saturating_sub(step as u64);
        let mut more = vec![0; (at - from) as usize];
        match file.read_exact_at(&mut more, from) {
            Ok(()) => more.extend_from_slice(&bytes),
            // The file was cut: what is behind its new end is gone, and so may be what was read of it.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                (more, aligned) = (Vec::new(), false);
            }
            Err(e) => return Err(e),
        }
        (at, bytes) = (from, more);
    }
}

/// Where the last whole line of a file ends.
///
/// # Errors
/// The file cannot be read.
pub fn whole_end(file: &File) -> io::Result<u64> {
    let mut at = file.metadata()?.len();
    let mut bytes = vec![0; STEP];
    while at > 0 {
        let from = at.saturating_sub(STEP as u64);
        let n = file.read_at(&mut bytes[..(at - from) as usize], from)?;
        if let Some(newline) = bytes[..n].iter().rposition(|b| *b == b'\n') {
            return Ok(from + newline as u64 + 1);
        }
        at = from;
    }
    Ok(0)
}

/// Where the first line begins that is not `behind`, or the last whole line ends. The lines that `behind` can
/// tell of are in order: those that are come first. What it cannot tell of is passed over.
///
/// # Errors
/// The file cannot be read.
pub fn first_not(file: &File, behind: &dyn Fn(&[u8]) -> Option<bool>) -> io::Result<u64> {
    first_not_by(file, (STEP / 4, LINE_BYTES), behind)
}

fn first_not_by(
    file: &File,
    (step, longest): (usize, usize),
    behind: &dyn Fn(&[u8]) -> Option<bool>,
) -> io::Result<u64> {
    let mut answer = whole_end(file)?;
    // Lines that begin before `low` are behind, the first that is not begins before `high` or at `answer`.
    let (mut low, mut high) = (0, answer);
    let mut reader = Forward { at: 0, skipping: false, buffer: vec![0; step], longest };
    while low < high {
        let (middle, near) = (low + (high - low) / 2, high - low <= step as u64);
        let from = if near { low } else { middle };
        reader.seek(from);
        // From anywhere in a line: the next one is the first that counts.
        reader.skipping = !near;
        let (mut found, mut end) = (None, false);
        loop {
            let read = reader.read(file, &mut |at, line| {
                end = at >= high;
                found = if end { None } else { behind(line).map(|b| (b, at, at + line.len() as u64 + 1)) };
                // Near the end of the search it is the first that is not behind.
                let enough = found.is_some_and(|(behind, ..)| !(behind && near));
                if end || enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if read != Read::More || reader.at >= high {
                break;
            }
        }
        match found {
            Some((false, at, _)) => {
                answer = at;
                high = if near { low } else { middle + 1 };
            }
            _ if near => high = low,
            Some((true, _, next)) => low = next,
            None => high = middle + 1,
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: (usize, usize) = (16, 40);

    fn number(line: &[u8]) -> Option<u64> {
        std::str::from_utf8(line).ok()?.strip_prefix('n')?.split(' ').next()?.parse().ok()
    }

    /// The lines of a text, as reading it through gives them: where each begins, without the torn end and
    /// what is too long.
    fn through(text: &[u8], longest: usize) -> Vec<(u64, Vec<u8>)> {
        let mut at = 0;
        let mut lines = Vec::new();
        for line in text.split_inclusive(|b| *b == b'\n') {
            if let Some(body) = line.strip_suffix(b"\n").filter(|body| body.len() < longest) {
                lines.push((at, body.to_vec()));
            }
            at += line.len() as u64;
        }
        lines
    }

    /// Ascending numbers in lines of any length, among garbage, and a torn end.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            5 => (0u64..3, 0usize..30).prop_map(|(step, pad)| Some((step, pad))),
            1 => Just(None),
        ];
        let garbage = prop_oneof!["[a-m]{0,12}", "\u{0}{20,120}"];
        (proptest::collection::vec((line, garbage), 0..60), "(n99 x)?[a-z]{0,50}").prop_map(
            |(lines, torn)| {
                let (mut n, mut text) = (0, Vec::new());
                for (line, garbage) in lines {
                    match line {
                        Some((step, pad)) => {
                            n += step;
                            text.extend_from_slice(format!("n{n} {}\n", "x".repeat(pad)).as_bytes());
                        }
                        None => text.extend_from_slice(format!("{garbage}\n").as_bytes()),
                    }
                }
                text.extend_from_slice(torn.as_bytes());
                text
            },
        )
    }

    fn file(text: &[u8]) -> File {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file
    }

    proptest! {
        /// On, back and by halves: the same lines as by reading through.
        #[test]
        fn all_ways_agree(text in text(), wanted in 0u64..80, longest in prop_oneof![Just(40usize), Just(200)]) {
            let file = file(&text);
            let want = through(&text, longest);
            let mut forward = Forward { at: 0, skipping: false, buffer: vec![0; SMALL.0], longest };
            let mut on = Vec::new();
            while forward.read(&file, &mut |at, line| {
                on.push((at, line.to_vec()));
                ControlFlow::Continue(())
            }).unwrap() == Read::More {}
            prop_assert_eq!(&on, &want);

            let mut back = Vec::new();
            let end = text.len() as u64;
            _ = backward_by(&file, end, (SMALL.0, longest), &mut |at, line| {
                back.insert(0, (at, line.to_vec()));
                ControlFlow::Continue(())
            }).unwrap();
            prop_assert_eq!(&back, &want);

            let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |i| i as u64 + 1);
            prop_assert_eq!(whole_end(&file).unwrap(), whole);
            let first = want.iter().find(|(_, line)| number(line).is_some_and(|n| n >= wanted));
            let found = first_not_by(&file, (SMALL.0, longest), &|line| Some(number(line)? < wanted)).unwrap();
            prop_assert_eq!(found, first.map_or(whole, |(at, _)| *at));
        }

        /// Whoever has enough gets no more, and what comes next is what was not given.
        #[test]
        fn it_goes_on_where_it_was_left(text in text(), takes in proptest::collection::vec(1usize..5, 1..40)) {
            let file = file(&text);
            let mut forward = Forward { at: 0, skipping: false, buffer: vec![0; SMALL.0], longest: 200 };
            let (mut on, mut takes) = (Vec::new(), takes.into_iter().cycle());
            loop {
                let mut left = takes.next().unwrap();
                let read = forward.read(&file, &mut |at, line| {
                    on.push((at, line.to_vec()));
                    left -= 1;
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }).unwrap();
                if read == Read::End {
                    break;
                }
            }
            prop_assert_eq!(on, through(&text, 200));
        }
    }
}
