//! The states of a session, as `docs/BUS.md` has them.
//!
//! ```text
//! greeting ──granted──▶ open ──the end comes──▶ settling ──acks owed are sent──▶ closing ──close frame, linger──▶ over
//!     └─refused──▶ over   └───────────────┬────────┴────────────────┬───────────────┘
//!                                         └ the socket failed, or takes nothing ──▶ over
//! ```
//!
//! Always holds: only what is in [`State::next`] leads from one to another; nothing leads out of over. Pure. Owner: the
//! door for greeting, the session from open on.

use crate::core::end::End;

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Connected, and no hello was granted yet.
    Greeting,
    /// Frames are taken and answered, events are sent.
    Open,
    /// Nothing is read and no event is sent; the acks that are owed are waited for.
    Settling,
    /// The last frame is sent, and read on for a moment.
    Closing,
    /// Nothing is left of it.
    Over,
}

/// What leads from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A hello with `bus-v1` was let in.
    Granted,
    /// Any other hello, or none.
    Refused,
    /// Something ends it.
    Ended(End),
    /// All acks that were owed are sent.
    Settled,
    /// The close frame is sent, and the peer had its time to read it.
    Closed,
}

impl State {
    /// All of them.
    pub const ALL: [State; 5] = [State::Greeting, State::Open, State::Settling, State::Closing, State::Over];

    /// As the specification calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Greeting => "greeting",
            State::Open => "open",
            State::Settling => "settling",
            State::Closing => "closing",
            State::Over => "over",
        }
    }

    /// The state that `input` leads to; this one when it has no meaning here.
    pub fn next(self, input: Input) -> State {
        match (self, input) {
            (State::Greeting, Input::Granted) => State::Open,
            (State::Greeting, Input::Refused) => State::Over,
            (
                State::Open | State::Settling | State::Closing,
                Input::Ended(End::IoError | End::SlowConsumer),
            ) => State::Over,
            (State::Open, Input::Ended(_)) => State::Settling,
            (State::Settling, Input::Settled) => State::Closing,
            (State::Closing, Input::Closed) => State::Over,
            (state, _) => state,
        }
    }
}
