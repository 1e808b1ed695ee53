//! What a [`Bus`](super::Bus) says when something could not be done.
//!
//! Always holds: `Refused` has a code of `docs/BUS.md`; `InDoubt` and `Gap` end nothing. Owner: whoever gets it.

use super::connection::ClientError;
use crate::core::wire::group::check_name;
use std::sync::Arc;

/// Why something was not done, or nobody knows.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no session, and there cannot be one: the first one failed, or the broker gives none any more.
    #[error("{0}")]
    NoSession(Arc<ClientError>),
    /// The broker refused it.
    #[error("{code}: {reason}")]
    Refused {
        /// A code of `docs/BUS.md`.
        code: String,
        /// A sentence.
        reason: String,
    },
    /// The connection was lost before the broker answered: an event that was answered for may be delivered again.
    #[error("the connection was lost before the broker answered; the event may be delivered again")]
    InDoubt,
    /// Events from this seq to this one are gone, taken by retention or damage before they were received; what comes
    /// next is behind them.
    #[error("events {from} to {to} are gone, taken by retention or damage before they were received")]
    Gap {
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// What was to be published cannot be written as JSON.
    #[error("the payload cannot be written as JSON: {0}")]
    Payload(Arc<serde_json::Error>),
    /// The bus was closed, or is no more.
    #[error("the bus is closed")]
    Closed,
}

impl Error {
    pub(super) fn refused(code: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Refused { code: code.into(), reason: reason.into() }
    }

    /// The code of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// Whether this can be the name of a group: a broker cannot say whom it means by one that is too long.
pub(super) fn check_group(name: &str) -> Result<(), Error> {
    check_name(name).map(drop).map_err(|why| Error::refused(why.code, why.reason))
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        Error::NoSession(Arc::new(error))
    }
}
