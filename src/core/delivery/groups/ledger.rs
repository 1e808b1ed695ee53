//! The way from a group to the journal: what changed, who waits for that, and the letters of the dead.
//!
//! ```text
//! given up ──▶ dying ── the attempts are taken to be written ──▶ burying ── durable ──▶ letters ── durable ──▶ done
//! ```
//!
//! Always holds: an answer is taken only when all before it is; a dead letter is written only when the journal has the
//! attempts that made it one, so that a crash makes no second chance of it. Owner: [`super::writer`].

use super::handle::{Handle, Stage, State};
use super::letters;
use super::notes::{Record, What};
use crate::core::delivery::group::progress::CHANGE_BYTES;
use crate::core::delivery::outlet::PendingAnswer;
use crate::core::event::Batch;
use crate::core::limits::GROUP_NOTE_BYTES;
use std::sync::Arc;

/// What the writer takes.
#[derive(Default)]
pub(super) struct Unwritten {
    pub records: Vec<Record>,
    pub answers: Vec<(PendingAnswer, u64, Vec<u8>)>,
}

impl Handle {
    /// What is to be written, and who waits for it.
    pub fn unwritten(self: &Arc<Self>) -> Unwritten {
        let mut state = self.lock();
        state.is_listed = false;
        let what = match state.stage {
            Stage::Searching | Stage::Writing | Stage::Gone => return Unwritten::default(),
            Stage::Begun => {
                state.stage = Stage::Writing;
                while state.machine.take_changes().is_some() {}
                self.whole(&mut state)
            }
            Stage::Removed => {
                state.stage = Stage::Gone;
                vec![What::Gone(true)]
            }
            Stage::Durable => changes(&mut state),
        };
        let mut answers = Vec::new();
        if state.stage == Stage::Durable && state.machine.has_changes() {
            // The rest comes with the next call, and with it whoever waits.
            self.list(&mut state);
        } else {
            answers = std::mem::take(&mut state.answers);
            let dying = std::mem::take(&mut state.dying);
            state.burying.extend(dying);
        }
        Unwritten { records: self.records(what), answers }
    }

    /// All of it, for a snapshot; what changed until now is in it.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut state = self.lock();
        // Of one that is being written the call has the beginning, which a snapshot in the same call makes void.
        if !matches!(state.stage, Stage::Writing | Stage::Durable) {
            return Vec::new();
        }
        while state.machine.take_changes().is_some() {}
        let what = self.whole(&mut state);
        self.records(what)
    }

    fn whole(&self, state: &mut State) -> Vec<What> {
        state.is_life_written = true;
        let (saved, by) = (state.machine.saved(), self.by.clone());
        let begins = What::Begins { spec: self.spec.clone(), cursor: saved.cursor(), by, life: state.life };
        [begins].into_iter().chain(saved.changes().into_iter().map(What::Changed)).collect()
    }

    fn records(&self, what: Vec<What>) -> Vec<Record> {
        what.into_iter().map(|what| Record { group: self.name.clone(), what }).collect()
    }

    /// What was taken to be written is durable.
    pub fn written(self: &Arc<Self>) {
        let mut state = self.lock();
        let buried = std::mem::take(&mut state.burying);
        if !buried.is_empty() {
            state.letters.extend(buried);
            self.rouse(&mut state);
        }
        if state.stage == Stage::Writing {
            state.stage = Stage::Durable;
            for (i, (outlet, differs)) in std::mem::take(&mut state.creators).into_iter().enumerate() {
                self.say_created(&state, &outlet, i == 0, &differs);
            }
            self.welcome(&mut state, true);
        }
    }

    /// The next dead letter that is to be written.
    pub fn letter(&self) -> Option<(u64, Batch)> {
        let mut state = self.lock();
        loop {
            let (seq, failures) = state.letters.front()?;
            if let Some(line) = state.lines.get(*seq) {
                return Some((*seq, letters::letter(&self.name, state.life, *seq, line, failures)));
            }
            state.letters.pop_front();
        }
    }

    /// A dead letter is durable.
    pub fn buried(self: &Arc<Self>, seq: u64) {
        let mut state = self.lock();
        // Unless it went elsewhere meanwhile.
        if state.letters.front().is_some_and(|(dead, _)| *dead == seq) {
            state.letters.pop_front();
        }
        state.machine.buried(seq);
        state.counting.iter().for_each(|counting| counting.dead_letter());
        state.forget(seq);
        self.act(&mut state);
    }
}

/// What changed, as much as goes into one call.
fn changes(state: &mut State) -> Vec<What> {
    let mut what = Vec::new();
    if !std::mem::replace(&mut state.is_life_written, true) {
        what.push(What::Life(state.life));
    }
    if std::mem::take(&mut state.wants_cursor) {
        what.extend(state.machine.take_cursor().map(What::Changed));
    }
    while what.len() < GROUP_NOTE_BYTES / CHANGE_BYTES
        && let Some(change) = state.machine.take_changes()
    {
        what.push(What::Changed(change));
    }
    what
}
