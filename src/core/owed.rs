//! What a session owes for the frames it took, and the acks that pay it.
//!
//! A [`Round`] is frames that were taken together: their events in one batch, and an answer for each frame.
//! Always holds: answers come in the order of their frames; a refusal counts against the session's window
//! like an event, so that nothing a peer sends grows without bound (invariant 6). Pure. Owner: the session.

use super::event::{Batch, Publish};
use super::identity::VmName;
use super::ids::IdSource;
use super::journal::{NotCommitted, Receipt};
use super::limits::REASON_BYTES;
use super::policy::Rules;
use super::refusal::Refusal;
use super::topic::Topic;
use super::wire::frame::{self, Frame};
use super::wire::group::{Join, Word, group_of};
use super::wire::latest::Ask;
use super::wire::manage::Manage;
use super::wire::subscribe::{Subscribe, Unsubscribe, sub_of};

/// What a refusal weighs in the window, in bytes; about what it and its ack take.
const REFUSAL_BYTES: usize = 2 * REASON_BYTES;

/// What is owed for some frames, in their order.
pub enum Answer {
    /// So many publishes of one event each.
    Events(usize),
    /// One publish of so many events.
    Group(usize),
    /// A refusal: the type of the frame, as far as it could be read, and why.
    Refused(&'static str, Box<Refusal>),
}

/// A frame that is answered at once: its answer waits for nobody's disk.
#[derive(Debug)]
pub enum Aside {
    /// A sign of life.
    Heartbeat,
    /// A wish to be sent events.
    Subscribe(Subscribe),
    /// A subscription or membership is to end.
    Unsubscribe(Unsubscribe),
    /// A wish to be a member of a group.
    Join(Box<Join>),
    /// What a member of a group says.
    Word(Box<Word>),
    /// What is asked of groups.
    Manage(Manage),
    /// What is asked of the newest events per key.
    Ask(Ask),
    /// A frame about a group, of this type, that cannot be read.
    RefusedGroup(&'static str, Box<str>, Box<Refusal>),
    /// A `subscribe` or `unsubscribe`, which of them, that cannot be read; and its name, if that can.
    Refused(&'static str, Option<Box<str>>, Box<Refusal>),
    /// This VM is to be remembered no longer.
    Forget(VmName),
}

/// Frames that were taken together.
#[derive(Default)]
pub struct Round {
    /// Their events.
    pub batch: Batch,
    /// An answer for each of them.
    pub answers: Vec<Answer>,
    refused: usize,
}

impl Round {
    /// A round that uses the memory of a batch that came back.
    pub fn reusing(batch: Option<Batch>) -> Self {
        Round { batch: batch.unwrap_or_default(), ..Round::default() }
    }

    /// Events and refusals.
    pub fn events(&self) -> usize {
        self.batch.len() + self.refused
    }

    /// What they weigh, in bytes.
    pub fn bytes(&self) -> usize {
        self.batch.bytes() + self.refused * REFUSAL_BYTES
    }

    /// Takes one frame of `vm`; `now` is wall time in milliseconds. What the round does not answer comes back.
    pub fn take(
        &mut self,
        body: &[u8],
        vm: &VmName,
        rules: &Rules,
        ids: &mut IdSource,
        now: u64,
    ) -> Option<Aside> {
        let from = self.batch.len();
        let mut push = |batch: &mut Batch, publish: &Publish<'_>| {
            rules.may_publish(publish.topic.as_ref().map_or(Topic::BROADCAST.as_str(), |topic| &topic.0))?;
            batch.push(vm, publish, |out| ids.write(now, out))
        };
        let taken = match frame::parse(body) {
            Ok(Frame::Heartbeat) => return Some(Aside::Heartbeat),
            Ok(Frame::Subscribe(wish)) => return Some(Aside::Subscribe(wish)),
            Ok(Frame::Unsubscribe(sub)) => return Some(Aside::Unsubscribe(sub)),
            Ok(Frame::Join(wish)) => return Some(Aside::Join(wish)),
            Ok(Frame::Manage(manage)) => return Some(Aside::Manage(manage)),
            Ok(Frame::Word(word)) => return Some(Aside::Word(word)),
            Ok(Frame::Ask(ask)) => return Some(Aside::Ask(ask)),
            Ok(Frame::Forget(vm)) => return Some(Aside::Forget(vm)),
            Ok(Frame::Publish(publish)) => push(&mut self.batch, &publish)
                .map(|()| Answer::Events(1))
                .map_err(|refusal| ("publish", refusal)),
            Ok(Frame::PublishAll(events)) => {
                let pushed = events.iter().try_for_each(|event| push(&mut self.batch, event));
                match pushed {
                    Ok(()) => {
                        self.batch.join(from);
                        Ok(Answer::Group(events.len()))
                    }
                    Err(refusal) => {
                        let which = self.batch.len() - from + 1;
                        let reason = format!("event {which} of {}: {}", events.len(), refusal.reason);
                        self.batch.truncate(from);
                        Err(("publish", Refusal::new(refusal.code, reason)))
                    }
                }
            }
            Err((kind, refusal))
                if !matches!(
                    kind,
                    "publish" | "frame" | "forget" | "latest" | "latest_topics" | "snapshot"
                ) =>
            {
                let refusal = Box::new(refusal);
                return Some(match group_of(body) {
                    Some(group) => Aside::RefusedGroup(kind, group, refusal),
                    None => Aside::Refused(kind, sub_of(kind, body), refusal),
                });
            }
            Err(refused) => Err(refused),
        };
        match (taken, self.answers.last_mut()) {
            (Ok(Answer::Events(more)), Some(Answer::Events(n))) => *n += more,
            (Ok(answer), _) => self.answers.push(answer),
            (Err((kind, refusal)), _) => {
                self.refused += 1;
                self.answers.push(Answer::Refused(kind, Box::new(refusal)));
            }
        }
        None
    }
}

/// Appends the acks of events that are durable.
pub fn answer(out: &mut Vec<u8>, answers: Vec<Answer>, receipt: &Receipt) {
    let mut drafts = receipt.batch.drafts().iter().zip(receipt.seqs.each());
    for answer in answers {
        match answer {
            Answer::Events(n) => {
                let acked = drafts.by_ref().take(n);
                acked.for_each(|(draft, (seq, repeat))| {
                    frame::publish_ack(out, &receipt.batch, draft, seq, repeat);
                });
            }
            Answer::Group(n) => frame::publish_all_ack(out, drafts.by_ref().take(n).map(|(_, seq)| seq)),
            Answer::Refused(kind, refusal) => frame::error_ack(out, kind, &refusal, None),
        }
    }
}

/// Appends the acks of events that are not durable, as far as is known.
pub fn answer_not_committed(out: &mut Vec<u8>, answers: Vec<Answer>, why: NotCommitted) {
    let why = match why {
        NotCommitted::DiskFull => Refusal::new(
            "disk-full",
            "the host's disk is full; nothing was stored. Send it again later, publishing resumes by itself",
        ),
        NotCommitted::Unknown => Refusal::new(
            "outcome-unknown",
            "the broker ended, or its disk failed, before the event was known to be durable; it may be stored or not. \
             Send it again with the same id",
        ),
    };
    for answer in answers {
        match answer {
            Answer::Events(n) => (0..n).for_each(|_| frame::error_ack(out, "publish", &why, None)),
            Answer::Group(_) => frame::error_ack(out, "publish", &why, None),
            Answer::Refused(kind, refusal) => frame::error_ack(out, kind, &refusal, None),
        }
    }
}

/// Appends the acks of events that are durable and not in the logs yet.
pub fn answer_behind(out: &mut Vec<u8>, answers: Vec<Answer>, receipt: &Receipt) {
    let mut seqs = receipt.seqs.each().map(|(seq, _)| seq);
    let why = Refusal::new(
        "logs-behind",
        "stored, do not send it again; the logs will show it when they have caught up",
    );
    for answer in answers {
        match answer {
            Answer::Events(n) => {
                seqs.by_ref().take(n).for_each(|seq| frame::error_ack(out, "publish", &why, Some(seq)));
            }
            Answer::Group(n) => {
                frame::error_ack(out, "publish", &why, seqs.next());
                seqs.by_ref().take(n - 1).for_each(drop);
            }
            Answer::Refused(kind, refusal) => frame::error_ack(out, kind, &refusal, None),
        }
    }
}
