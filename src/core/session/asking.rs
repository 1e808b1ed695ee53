//! What a session asks of the newest events per key, and of a group, one question after the other.
//!
//! Always holds: answers come in the order of the questions, and each when it is known; so many wait at the most, then the
//! session is not read on (invariant 6); nothing else of the session waits for them. Owner: the session.

use super::Session;
use crate::core::identity::Role;
use crate::core::latest::snapshot::Snapshots;
use crate::core::limits::LATEST_ASKED;
use crate::core::refusal::Refusal;
use crate::core::wire::frame::error_ack;
use crate::core::wire::latest::{Ask, snapshot_ack};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

type Answer = Pin<Box<dyn Future<Output = Vec<u8>> + Send>>;

/// Questions that are not answered yet.
#[derive(Default)]
pub(super) struct Asking {
    /// Only the first one has begun.
    waiting: VecDeque<Answer>,
}

impl Asking {
    /// No more are taken.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= LATEST_ASKED
    }

    /// One more.
    pub fn add(&mut self, answer: impl Future<Output = Vec<u8>> + Send + 'static) {
        self.waiting.push_back(Box::pin(answer));
    }

    /// The answer to the first one, when it is known.
    pub async fn answer(&mut self) -> Vec<u8> {
        poll_fn(|cx| match self.waiting.front_mut() {
            None => Poll::Pending,
            Some(first) => first.as_mut().poll(cx).map(|answer| {
                self.waiting.pop_front();
                answer
            }),
        })
        .await
    }
}

impl Session<'_> {
    /// Sees to it that a question is answered.
    pub(super) fn ask(&mut self, ask: Ask) {
        let answer: Answer = match self.may_ask(&ask) {
            Err(refusal) => Box::pin(async move { refused(&ask, &refusal) }),
            Ok(()) if matches!(ask, Ask::Snapshot(_)) => {
                let snapshots = self.bus.snapshots.clone();
                Box::pin(async move { take_snapshot(snapshots, &ask).await })
            }
            Ok(()) => {
                let latest = self.bus.latest.clone();
                Box::pin(async move { latest.answer(&ask).await.unwrap_or_else(|why| refused(&ask, &why)) })
            }
        };
        self.asking.add(answer);
    }

    fn may_ask(&self, ask: &Ask) -> Result<(), Refusal> {
        match ask {
            Ask::Snapshot(_) if self.rights.role != Role::Host => {
                Err(Refusal::new("host-only", "only the host may have a snapshot published"))
            }
            Ask::Snapshot(topic) => self.bus.latest.check(topic),
            _ => self.check_rights(std::slice::from_ref(ask.topic())),
        }
    }
}

fn refused(ask: &Ask, refusal: &Refusal) -> Vec<u8> {
    let mut out = Vec::new();
    error_ack(&mut out, ask.kind(), refusal, None);
    out
}

/// A snapshot that has begun is made, whoever asked for it is there or not.
async fn take_snapshot(snapshots: Arc<Snapshots>, ask: &Ask) -> Vec<u8> {
    let topic = ask.topic().as_str().to_owned();
    let taken = tokio::spawn(async move { (snapshots.take(&topic).await, topic) }).await;
    match taken {
        Ok((Ok(snapshot), topic)) => {
            let mut out = Vec::new();
            snapshot_ack(&mut out, &topic, &snapshot);
            out
        }
        Ok((Err(why), _)) => refused(ask, &why),
        Err(error) => {
            refused(ask, &Refusal::new("outcome-unknown", format!("the snapshot was cut off: {error}")))
        }
    }
}
