//! Why a handler did not do what was to be done, and when to try again.
//!
//! Always holds: whatever can be printed is a reason; none is longer than the broker takes. Pure. Owner: the handler.

use crate::core::limits::{GROUP_ATTEMPTS, NACK_DELAY_SET, REASON_BYTES};
use std::fmt::Display;
use std::time::Duration;

/// Not now: the event comes again, until its attempts are over.
///
/// Everything that can be printed becomes one, so that `?` works in a handler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nack {
    pub(super) reason: String,
    pub(super) delays: Vec<u64>,
    pub(super) is_final: bool,
}

impl Nack {
    /// For this reason, which the dead letter has if it comes to that; what is longer than 256 bytes is cut off.
    pub fn new(reason: impl Display) -> Self {
        let mut reason = reason.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES));
        Nack { reason, ..Nack::default() }
    }

    /// Given up at once: it is never to be tried again.
    pub fn term(reason: impl Display) -> Self {
        Nack { is_final: true, ..Nack::new(reason) }
    }

    /// To come again after this time, a day at the most, instead of 500 ms that double with each attempt up to 30 s.
    pub fn after(self, delay: Duration) -> Self {
        self.delays([delay])
    }

    /// To come again after the delay of these that is its attempt's; later ones take the last.
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        let ms = |delay: Duration| delay.min(NACK_DELAY_SET).as_millis() as u64;
        self.delays = delays.into_iter().map(ms).take(GROUP_ATTEMPTS as usize).collect();
        self
    }
}

impl<E: Display> From<E> for Nack {
    fn from(reason: E) -> Self {
        Nack::new(reason)
    }
}
