//! What is asked of the connection's task.
//!
//! Always holds: whoever waits for an answer gets one, be it that there is none. Owner: [`super::task`].

use super::error::Error;
use super::nack::Nack;
use super::publish::Published;
use super::queue::{Queue, Unanswered};
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Where an answer goes.
pub(super) type To<T> = oneshot::Sender<Result<T, Error>>;

/// What waits for a turn.
#[derive(Debug)]
pub(super) enum Command {
    Publish(Publishing),
    Ask(Asking),
    Join(Joining),
    /// All that is under way is to be ended.
    Close(oneshot::Sender<()>),
}

/// An event on its way.
#[derive(Debug)]
pub(super) struct Publishing {
    pub id: String,
    /// The caller gave the id: it may have been published before.
    pub is_given: bool,
    pub frame: Bytes,
    pub answer: To<Published>,
    pub permit: OwnedSemaphorePermit,
}

/// A frame that is answered by an ack of its type.
#[derive(Debug)]
pub(super) struct Asking {
    pub kind: String,
    /// The group it is about; the answer says it.
    pub group: Option<String>,
    pub frame: Bytes,
    /// The body of the ack.
    pub answer: To<Bytes>,
    /// It was sent, in this session.
    pub is_sent: bool,
    /// It was sent in an earlier session, too.
    pub is_again: bool,
}

/// Somebody wants to be a member.
#[derive(Debug)]
pub(super) struct Joining {
    pub number: u64,
    pub group: Box<str>,
    pub frame: Bytes,
    pub queue: Arc<Queue>,
    pub max_in_flight: usize,
    /// How long the group waits for an answer, if it does not say.
    pub ack_timeout: Duration,
    pub answer: To<Value>,
}

/// What a consumer says. There are no more than events that it holds.
#[derive(Debug)]
pub(super) enum Word {
    Say {
        member: u64,
        seq: u64,
        id: Arc<str>,
        say: Say,
        answer: To<()>,
        unanswered: Option<Unanswered>,
    },
    /// The program is to have it, once the broker's socket took that it begins.
    Begin {
        member: u64,
        seq: u64,
        id: Arc<str>,
        /// Dropped when there is nothing to wait for.
        sent: oneshot::Sender<()>,
    },
    /// The program let go of it and says nothing: it was not begun.
    Forget {
        member: u64,
        seq: u64,
        id: Arc<str>,
    },
    /// It takes what it has, and nothing more.
    Drain {
        member: u64,
    },
    Leave {
        member: u64,
        answer: Option<oneshot::Sender<()>>,
    },
}

/// What becomes of an event.
#[derive(Clone, Debug)]
pub(super) enum Say {
    Ack,
    Nack(Nack),
    InProgress,
}

impl Say {
    pub fn kind(&self) -> &'static str {
        match self {
            Say::Ack => "ack",
            Say::Nack(nack) if nack.is_final => "term",
            Say::Nack(_) => "nack",
            Say::InProgress => "in_progress",
        }
    }
}
