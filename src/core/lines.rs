//! Lines out of bytes that come in pieces.
//!
//! Always holds: any way to cut the input into pieces gives the same lines; no more than one line of the limit is
//! kept, however long the input's lines are (invariant 6). Pure. Owner: whoever reads the input.

use std::io::BufRead;

/// A line, without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Longer than the limit; what it said is gone.
    TooLong,
}

/// Cuts an input into lines.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    /// The beginning of a line whose end did not come yet.
    held: Vec<u8>,
    /// That line is over the limit already.
    too_long: bool,
    /// `held` was handed out.
    taken: bool,
    number: u64,
}

impl Lines {
    /// Lines of at most `limit` bytes, their ends not counted.
    pub fn new(limit: usize) -> Self {
        Lines { limit, held: Vec::new(), too_long: false, taken: false, number: 0 }
    }

    /// The next whole line and its number, from 1; takes it from the front of `input`. `None` when `input` is used
    /// up: then comes the next piece.
    pub fn next<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Option<(u64, Line<'s>)> {
        if std::mem::take(&mut self.taken) {
            self.held.clear();
        }
        let whole = *input;
        // A slice is read without errors.
        let length = input.skip_until(b'\n').unwrap_or(whole.len());
        let Some((b'\n', part)) = whole[..length].split_last() else {
            self.hold(whole);
            return None;
        };
        self.number += 1;
        if !self.held.is_empty() || self.too_long {
            self.hold(part);
            self.taken = true;
            let line =
                if std::mem::take(&mut self.too_long) { Line::TooLong } else { Line::Whole(&self.held) };
            return Some((self.number, line));
        }
        Some((self.number, if part.len() > self.limit { Line::TooLong } else { Line::Whole(part) }))
    }

    /// What stands behind the last line end, when the input is over.
    pub fn rest(&mut self) -> Option<(u64, Line<'_>)> {
        if std::mem::take(&mut self.taken) {
            self.held.clear();
        }
        let number = self.number + 1;
        match (self.too_long, self.held.is_empty()) {
            (true, _) => Some((number, Line::TooLong)),
            (false, true) => None,
            (false, false) => Some((number, Line::Whole(&self.held))),
        }
    }

    fn hold(&mut self, part: &[u8]) {
        if self.too_long || self.held.len() + part.len() > self.limit {
            self.too_long = true;
            self.held.clear();
        } else {
            self.held.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const LIMIT: usize = 12;

    /// The lines of `pieces`; `None` for one that is too long.
    fn read(pieces: &[&[u8]]) -> Vec<(u64, Option<Vec<u8>>)> {
        let (mut lines, mut found) = (Lines::new(LIMIT), Vec::new());
        let owned = |(number, line): (u64, Line<'_>)| match line {
            Line::Whole(bytes) => (number, Some(bytes.to_vec())),
            Line::TooLong => (number, None),
        };
        for piece in pieces {
            let mut input = *piece;
            while let Some(line) = lines.next(&mut input) {
                found.push(owned(line));
            }
            assert!(input.is_empty() && lines.held.capacity() <= 2 * LIMIT);
        }
        found.extend(lines.rest().map(owned));
        found
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same_lines(
            input in vec(prop_oneof![5 => Just(b'a'), 2 => Just(b'\n'), 1 => any::<u8>()], 0..200),
            cuts in vec(0usize..20, 1..40),
        ) {
            let mut want: Vec<(u64, Option<Vec<u8>>)> = (1..)
                .zip(input.split(|b| *b == b'\n'))
                .map(|(n, line)| (n, (line.len() <= LIMIT).then(|| line.to_vec())))
                .collect();
            want.pop_if(|(_, line)| line.as_ref().is_some_and(Vec::is_empty));
            let (mut pieces, mut rest) = (Vec::new(), &input[..]);
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = later;
            }
            pieces.push(rest);
            prop_assert_eq!(read(&pieces), want);
        }
    }
}
