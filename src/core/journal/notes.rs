//! Notes: what others keep in the journal beside the events, and where their replay begins.
//!
//! ```text
//! … Change  Change  SnapshotBegin SnapshotPart SnapshotPart SnapshotEnd  Change …
//!                   └ the newest whole snapshot: replay begins here
//! ```
//!
//! What stands in a note is its owner's business. A snapshot is all that its owner knows; it takes the place of every
//! note before it. Its notes follow each other: one with another note or damage in between is not whole, and counts
//! for nothing. Always holds: a [`Trail`] names no snapshot that is not whole, and none that a later whole one
//! replaced. Pure. Owner: [`super::Journal::note`] takes them, `commit.rs` and `writer.rs` write them, `replay.rs` reads.

use crate::core::limits::NOTE_BYTES;

/// What a note is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something changed since the note before.
    Change = 1,
    /// The first note of a snapshot …
    SnapshotBegin = 2,
    /// … any number of these …
    SnapshotPart = 3,
    /// … and its last.
    SnapshotEnd = 4,
}

impl Class {
    /// The one that a record's byte means.
    pub fn from_byte(byte: u8) -> Option<Self> {
        use Class::{Change, SnapshotBegin, SnapshotEnd, SnapshotPart};
        [Change, SnapshotBegin, SnapshotPart, SnapshotEnd].into_iter().find(|class| *class as u8 == byte)
    }
}

/// A note that is not written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    class: Class,
    body: Vec<u8>,
}

/// So many bytes are no note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a note of {0} bytes; it has {NOTE_BYTES} at the most")]
pub struct NoteTooLong(pub usize);

impl Note {
    /// One of that class with any bytes, [`NOTE_BYTES`] at the most.
    ///
    /// # Errors
    /// [`NoteTooLong`].
    pub fn new(class: Class, body: Vec<u8>) -> Result<Self, NoteTooLong> {
        if body.len() > NOTE_BYTES { Err(NoteTooLong(body.len())) } else { Ok(Note { class, body }) }
    }

    /// What it is.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Its bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Where the notes stand that are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// The lsn that replay begins at: the newest whole snapshot's begin, or the first note of all when there is no
    /// such snapshot. 0 when there are no notes.
    pub from: u64,
    /// The lsn of the begin of a snapshot that is not whole yet; 0 when the last note is of none.
    pub open: u64,
}

impl Trail {
    /// Behind a note.
    pub fn behind(self, lsn: u64, class: Class) -> Self {
        let from = if self.from == 0 { lsn } else { self.from };
        match class {
            Class::SnapshotBegin => Trail { from, open: lsn },
            Class::SnapshotPart => Trail { from, ..self },
            Class::SnapshotEnd if self.open > 0 => Trail { from: self.open, open: 0 },
            Class::Change | Class::SnapshotEnd => Trail { from, open: 0 },
        }
    }

    /// The same where there is nothing but snapshots: one that is not whole is not needed.
    pub fn behind_snapshot(self, lsn: u64, class: Class) -> Self {
        let behind = self.behind(lsn, class);
        let is_whole = class == Class::SnapshotEnd && self.open > 0;
        if is_whole { behind } else { Trail { from: self.from, ..behind } }
    }

    /// Behind something that cannot be read: a snapshot that it was in the middle of is not whole.
    pub fn broken(self) -> Self {
        Trail { open: 0, ..self }
    }
}

/// Hands notes on as they come, but those of a snapshot only when it is whole.
#[derive(Debug, Default)]
pub struct Gather {
    snapshot: Vec<(Class, Vec<u8>)>,
}

impl Gather {
    /// The next note.
    pub fn note(&mut self, class: Class, body: &[u8], each: &mut dyn FnMut(Class, &[u8])) {
        let begun = !self.snapshot.is_empty();
        match class {
            Class::Change => {
                self.broken();
                each(class, body);
            }
            Class::SnapshotBegin => self.snapshot = vec![(class, body.to_vec())],
            Class::SnapshotPart if begun => self.snapshot.push((class, body.to_vec())),
            Class::SnapshotEnd if begun => {
                self.snapshot.drain(..).for_each(|(class, body)| each(class, &body));
                each(class, body);
            }
            Class::SnapshotPart | Class::SnapshotEnd => {}
        }
    }

    /// Something could not be read.
    pub fn broken(&mut self) {
        self.snapshot.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::{Change, SnapshotBegin, SnapshotEnd, SnapshotPart};
    use proptest::prelude::*;

    /// A note, or something that cannot be read.
    fn steps() -> impl Strategy<Value = Vec<Option<Class>>> {
        let class = (1u8..5).prop_map(Class::from_byte);
        let whole = Just(vec![Some(SnapshotBegin), Some(SnapshotPart), Some(SnapshotEnd)]);
        let some = prop_oneof![
            6 => class.prop_map(|class| vec![class]),
            2 => whole,
            1 => Just(vec![None]),
        ];
        proptest::collection::vec(some, 0..20).prop_map(|parts| parts.concat())
    }

    /// The begin of the newest whole snapshot, found by looking at every end.
    fn newest_whole(steps: &[Option<Class>]) -> Option<usize> {
        let ends = (0..steps.len()).rev().filter(|end| steps[*end] == Some(SnapshotEnd));
        ends.into_iter().find_map(|end| {
            let parts = steps[..end].iter().rev().take_while(|step| **step == Some(SnapshotPart)).count();
            let begin = (end - parts).checked_sub(1)?;
            (steps[begin] == Some(SnapshotBegin)).then_some(begin)
        })
    }

    proptest! {
        #[test]
        fn replay_is_the_newest_whole_snapshot_and_the_changes_behind_it(steps in steps()) {
            let mut trail = Trail::default();
            for (lsn, step) in (1..).zip(&steps) {
                trail = step.map_or(trail.broken(), |class| trail.behind(lsn, class));
            }
            let first = steps.iter().position(Option::is_some);
            let whole = newest_whole(&steps);
            prop_assert_eq!(trail.from, whole.or(first).map_or(0, |at| at as u64 + 1));

            let (mut gather, mut got) = (Gather::default(), Vec::new());
            for (at, step) in steps.iter().enumerate().skip(trail.from.saturating_sub(1) as usize) {
                let mut each = |class, body: &[u8]| got.push((class, body.to_vec()));
                match *step {
                    Some(class) => gather.note(class, &[at as u8], &mut each),
                    None => gather.broken(),
                }
            }
            let end = whole.map(|begin| begin + steps[begin..].iter().position(|s| *s == Some(SnapshotEnd)).unwrap());
            let is_replayed = |at: usize| match (whole, end) {
                (Some(begin), Some(end)) if at <= end => at >= begin,
                _ => steps[at] == Some(Change),
            };
            let want = (0..steps.len()).filter(|at| is_replayed(*at));
            let want: Vec<_> = want.map(|at| (steps[at].unwrap(), vec![at as u8])).collect();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn a_note_has_its_bounds() {
        assert!(Note::new(Change, vec![0; NOTE_BYTES]).is_ok());
        assert_eq!(Note::new(Change, vec![0; NOTE_BYTES + 1]), Err(NoteTooLong(NOTE_BYTES + 1)));
        assert_eq!(
            (Class::from_byte(0), Class::from_byte(4), Class::from_byte(5)),
            (None, Some(SnapshotEnd), None)
        );
    }
}
