//! What is dropped or refused again and again, said together.
//!
//! Always holds: nothing is dropped without a word; a flood is one line a minute. Owner: `writer.rs`.

use super::store::Gone;
use std::time::{Duration, Instant};

/// It is said so often at the most.
const FOLD: Duration = Duration::from_secs(60);

/// What waits between two times that it is said.
#[derive(Default)]
pub(super) struct Folded {
    gone: Gone,
    /// Puts that were refused.
    pub refused: u64,
    said: Option<Instant>,
}

impl Folded {
    /// These went.
    pub fn add(&mut self, gone: &Gone) {
        self.gone.pending += gone.pending;
        self.gone.error += gone.error;
    }

    /// Says it, if it is time to.
    pub fn say(&mut self) {
        if self.said.is_none_or(|said| said.elapsed() >= FOLD) {
            self.say_now();
        }
    }

    /// Says it, if there is anything.
    pub fn say_now(&mut self) {
        let Folded { gone, refused, .. } = &self;
        if *gone == Gone::default() && *refused == 0 {
            return;
        }
        if gone.pending > 0 {
            tracing::warn!("the outbox was full: its {} oldest pending events were dropped", gone.pending);
        }
        if gone.error > 0 {
            tracing::warn!(
                "the {} oldest events in the state error were dropped to keep their bound",
                gone.error
            );
        }
        if *refused > 0 {
            tracing::warn!("{refused} puts were refused: the outbox was full, or its disk failed");
        }
        *self = Folded { said: Some(Instant::now()), ..Folded::default() };
    }
}
