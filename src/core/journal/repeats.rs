//! Which events of a batch are repeats, and the seqs that all of them have.
//!
//! Always holds: each event is compared with what was stored before it and with those before it in its batch; a
//! repeat takes no seq. Pure. Owner: `writer.rs`, which writes the others.

use super::seen::Seen;
use crate::core::event::{Batch, Draft};

/// Which seqs the events of a batch have: one after the other, and a repeat that of the event it repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seqs {
    /// What the first one has that is no repeat, or would have.
    first: u64,
    /// Which of them are repeats, in order, and of which event.
    repeats: Vec<(usize, u64)>,
}

impl Seqs {
    /// Those of `batch`, from `next` on, at the time `ts`. The ids of what is no repeat are added to `seen`.
    pub fn give(batch: &Batch, next: u64, ts: u64, seen: &mut Seen) -> Self {
        let (mut repeats, mut seq) = (Vec::new(), next);
        for (i, draft) in batch.drafts().iter().enumerate() {
            // What has the broker's own id costs nothing here.
            let first = match draft.own_id {
                true => seen.find_or_add(publisher(batch, draft), batch.id(draft), seq, ts),
                false => None,
            };
            match first {
                Some(first) => repeats.push((i, first)),
                None => seq += 1,
            }
        }
        Seqs { first: next, repeats }
    }

    /// Those of `batch` when all of it repeats, at the time `ts`, events before `pending`.
    pub fn of_repeats(batch: &Batch, pending: u64, ts: u64, seen: &Seen) -> Option<Self> {
        let repeat = |(i, draft): (usize, &Draft)| {
            let first =
                if draft.own_id { seen.find(publisher(batch, draft), batch.id(draft), ts) } else { None };
            first.filter(|first| *first < pending).map(|first| (i, first))
        };
        let repeats: Option<Vec<_>> = batch.drafts().iter().enumerate().map(repeat).collect();
        Some(Seqs { first: pending, repeats: repeats? })
    }

    /// The seq of each, and whether it is a repeat. It does not end: the batch knows how many there are.
    pub fn each(&self) -> impl Iterator<Item = (u64, bool)> + '_ {
        let (mut next, mut repeats) = (self.first, self.repeats.iter().peekable());
        (0..).map(move |i| match repeats.next_if(|(at, _)| *at == i) {
            Some((_, first)) => (*first, true),
            None => {
                next += 1;
                (next - 1, false)
            }
        })
    }

    /// How many are repeats.
    pub fn repeats(&self) -> usize {
        self.repeats.len()
    }

    /// The highest of the first `events`; 0 of none.
    pub fn highest(&self, events: usize) -> u64 {
        let written = events.saturating_sub(self.repeats.len()) as u64;
        let own = if written > 0 { self.first + written - 1 } else { 0 };
        self.repeats.iter().map(|(_, first)| *first).max().unwrap_or(0).max(own)
    }

    /// Whether the publish that the draft `i` is in has a later event that is no repeat: one that ends in repeats
    /// ends with what is written of it.
    pub(super) fn goes_on(&self, drafts: &[Draft], i: usize) -> bool {
        let behind = self.repeats.partition_point(|(at, _)| *at <= i);
        let later = (i + 1..).zip(&self.repeats[behind..]).take_while(|(next, (at, _))| next == at);
        drafts[i].joined && later.map(|(next, _)| next).all(|next| drafts[next].joined)
    }
}

fn publisher<'a>(batch: &'a Batch, draft: &Draft) -> &'a [u8] {
    whose(batch.vm(draft), batch.topic(draft))
}

/// How the topics of dead letters begin.
pub(super) const LETTERS: &[u8] = b"$dlq.";

/// Whose ids an event's is one of: the VM's, but dead letters, which the host writes, take no place of the host's own.
pub(super) fn whose<'a>(vm: &'a [u8], topic: &[u8]) -> &'a [u8] {
    if topic.starts_with(LETTERS) { b"$dlq" } else { vm }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn seqs_go_on_past_repeats(first in 1u64..1000, repeats in proptest::collection::vec(proptest::option::of(1u64..1000), 0..40)) {
            let at: Vec<(usize, u64)> =
                repeats.iter().enumerate().filter_map(|(i, seq)| Some((i, (*seq)?))).collect();
            let seqs = Seqs { first, repeats: at };
            let mut next = first..;
            let want: Vec<(u64, bool)> = repeats
                .iter()
                .map(|repeat| repeat.map_or_else(|| (next.next().unwrap(), false), |seq| (seq, true)))
                .collect();
            prop_assert_eq!(seqs.each().take(want.len()).collect::<Vec<_>>(), want.clone());
            prop_assert_eq!(seqs.highest(want.len()), want.iter().map(|(seq, _)| *seq).max().unwrap_or(0));
        }
    }
}
