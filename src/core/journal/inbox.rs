//! The way into the commit thread: batches wait here for their turn.
//!
//! ```text
//! sessions ──submit(lane)──▶ Inbox ═ lanes ═ Rounds ──round by round──▶ commit.rs
//! groups   ──────note──────▶       ═ calls ═
//! look-ups ──────seen──────▶       ═ asked ═
//! ```
//!
//! Always holds: what was submitted before the end is handed out; what comes after it, and what waits when
//! [`Rounds`] is gone (a thread that panicked too), is dropped with its reply, which says so. Not bounded here:
//! every submission holds a permit of the bytes that may be under way; whoever writes notes has one call under way at a
//! time, and each round takes one. Owner: [`super::Journal`] has the one end,
//! `commit.rs` the other.

use super::commit::{NoteCall, SeenCall, Submission};
use super::turns::Turns;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Where batches are submitted. Its drop is the end.
pub(super) struct Inbox(Arc<Shared>);

/// Where they are taken, by the one commit thread.
pub(super) struct Rounds(Arc<Shared>);

/// What [`Rounds::next`] came to.
pub(super) enum Next {
    /// What waits in front.
    Round(Round),
    /// Nothing came for so long.
    Quiet,
    /// Nothing will come any more.
    End,
}

/// One submission of every lane that waits, one call of notes, and all that is asked.
#[derive(Default)]
pub(super) struct Round {
    pub batches: Vec<Submission>,
    pub notes: Option<NoteCall>,
    pub asked: Vec<SeenCall>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    turns: Turns<Submission>,
    notes: VecDeque<NoteCall>,
    asked: Vec<SeenCall>,
    probes: Vec<oneshot::Sender<()>>,
    ended: bool,
    /// Nobody takes any more.
    gone: bool,
    /// The commit thread waits and was not woken yet: so busy times cost no calls.
    sleeping: bool,
}

impl State {
    fn is_quiet(&self) -> bool {
        let is_empty = self.turns.is_empty() && self.notes.is_empty() && self.asked.is_empty();
        is_empty && self.probes.is_empty() && !self.ended
    }

    fn take(&mut self) -> Option<Round> {
        let (batches, notes, asked) =
            (self.turns.take(), self.notes.pop_front(), std::mem::take(&mut self.asked));
        if batches.is_none() && notes.is_none() && asked.is_empty() {
            return None;
        }
        Some(Round { batches: batches.unwrap_or_default(), notes, asked })
    }

    fn answer_probes(&mut self) {
        for alive in self.probes.drain(..) {
            // Who asked may be gone.
            let _ = alive.send(());
        }
    }
}

/// The two ends.
pub(super) fn open() -> (Inbox, Rounds) {
    let shared = Arc::new(Shared::default());
    (Inbox(shared.clone()), Rounds(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the commit thread when it sleeps.
    fn tell(&self, f: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        f(&mut state);
        let wake = std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
    }
}

impl Inbox {
    /// Puts it at the end of its lane.
    pub fn submit(&self, lane: u64, submission: Submission) {
        self.0.tell(|state| {
            if !state.ended {
                state.turns.push(lane, submission);
            }
        });
    }

    /// Puts notes behind those that wait.
    pub fn note(&self, call: NoteCall) {
        self.0.tell(|state| {
            if !state.ended {
                state.notes.push_back(call);
            }
        });
    }

    /// Asks for an id that was seen.
    pub fn ask(&self, call: SeenCall) {
        self.0.tell(|state| {
            if !state.ended {
                state.asked.push(call);
            }
        });
    }

    /// Is answered when the commit thread comes round.
    pub fn probe(&self, alive: oneshot::Sender<()>) {
        self.0.tell(|state| {
            if !state.gone {
                state.probes.push(alive);
            }
        });
    }

    /// Takes nothing more.
    pub fn end(&self) {
        self.0.tell(|state| state.ended = true);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.end();
    }
}

impl Rounds {
    /// Waits for the next round, and no longer than `patience` when there is one.
    pub fn next(&self, patience: Option<Duration>) -> Next {
        let mut state = self.0.lock();
        loop {
            state.answer_probes();
            if let Some(round) = state.take() {
                return Next::Round(round);
            }
            if state.ended {
                return Next::End;
            }
            state.sleeping = true;
            state = match patience {
                None => self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let waited = self.0.arrived.wait_timeout_while(state, time, |state| state.is_quiet());
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.sleeping = false;
            if patience.is_some() && state.is_quiet() {
                return Next::Quiet;
            }
        }
    }

    /// The next round, if anything waits.
    pub fn try_next(&self) -> Option<Round> {
        let mut state = self.0.lock();
        state.answer_probes();
        state.take()
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.ended, state.gone) = (true, true);
        let left = (
            std::mem::take(&mut state.turns),
            std::mem::take(&mut state.notes),
            std::mem::take(&mut state.asked),
            std::mem::take(&mut state.probes),
        );
        // Their receivers are woken without the lock.
        drop(state);
        drop(left);
    }
}
