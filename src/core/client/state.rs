//! All that is under way on a bus, beyond its connections.
//!
//! ```text
//! publishes   sent in order, answered in order; in doubt, sent again in the next session with the same id
//! asks        answered by their type and group, of which one is under way; sent again
//! members     member.rs; they join again
//! ```
//!
//! Always holds: what was not answered in one session is in the next one, before anything new. It waits for nothing. Owner:
//! [`super::task`].

use super::connection::ClientError;
use super::error::Error;
use super::member::Membership;
use super::publish::Published;
use super::queue::Arrived;
use super::said::{Said, write};
use super::word::{Asking, Command, Joining, Publishing, Word};
use crate::core::awake::Instant;
use crate::core::event::Text;
use crate::core::wire::received::{Ack, Received};
use bytes::BytesMut;
use serde_json::Value;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes that wait to be sent, and questions; with more nothing new is taken.
const MOST_BYTES: usize = 256 * 1024;
const MOST_ASKED: usize = 64;

#[derive(Default)]
pub(super) struct State {
    /// Frames to be sent.
    pub out: BytesMut,
    /// Who waits until they are sent.
    pub begun: Vec<oneshot::Sender<()>>,
    /// The broker closed the session: why, and how long to stay away.
    pub closed: Option<(ClientError, Duration)>,
    publishes: VecDeque<Publishing>,
    /// Their session answered that it does not know.
    again: VecDeque<Publishing>,
    asks: VecDeque<Asking>,
    members: Vec<Membership>,
    session: u64,
    closing: Option<oneshot::Sender<()>>,
}

impl State {
    /// Whether it takes something new.
    pub fn has_room(&self) -> bool {
        self.out.len() < MOST_BYTES && self.asks.len() < MOST_ASKED && self.closing.is_none()
    }

    /// It is being closed, and nothing is under way any more.
    pub fn is_over(&self) -> bool {
        let is_idle = self.publishes.is_empty() && self.again.is_empty() && self.asks.is_empty();
        self.closing.is_some() && is_idle && self.members.is_empty()
    }

    /// An error once the broker has closed the session.
    pub fn still_open(&self) -> Result<(), ClientError> {
        match &self.closed {
            Some((error, _)) => Err(ClientError::Closed(error.to_string())),
            None => Ok(()),
        }
    }

    /// There is a new session: all that was not answered is sent.
    pub fn begin(&mut self) {
        self.out.clear();
        self.closed = None;
        self.again.append(&mut self.publishes);
        self.publishes = std::mem::take(&mut self.again);
        let publishes = self.publishes.iter().map(|publishing| &publishing.frame);
        publishes.for_each(|frame| self.out.extend_from_slice(frame));
        self.send_asks();
        self.members.iter().for_each(|member| self.out.extend_from_slice(&member.frame));
    }

    /// The session is lost.
    pub fn lost(&mut self) {
        self.begun.clear();
        self.session += 1;
        let session = self.session;
        self.members.retain_mut(|member| member.lost(session));
        for asking in &mut self.asks {
            asking.is_again |= std::mem::take(&mut asking.is_sent);
        }
    }

    /// Takes something new.
    pub fn command(&mut self, command: Command) {
        match command {
            Command::Publish(publishing) => {
                self.out.extend_from_slice(&publishing.frame);
                self.publishes.push_back(publishing);
            }
            Command::Ask(asking) => {
                self.asks.push_back(asking);
                self.send_asks();
            }
            Command::Join(joining) => self.join(joining),
            Command::Close(answer) => {
                self.closing = Some(answer);
                self.members.iter().for_each(Membership::stop);
            }
        }
    }

    /// Sends the asks whose turn it is. Two of the same type and group could not be told apart by their answers: a refusal
    /// may overtake an answer that waits for the disk.
    fn send_asks(&mut self) {
        for at in 0..self.asks.len() {
            let asking = &self.asks[at];
            let is_same = |other: &Asking| other.kind == asking.kind && other.group == asking.group;
            if !asking.is_sent && !self.asks.range(..at).any(is_same) {
                self.out.extend_from_slice(&asking.frame);
                self.asks[at].is_sent = true;
            }
        }
    }

    fn join(&mut self, joining: Joining) {
        if self.members.iter().any(|member| member.group == joining.group) {
            let why =
                format!("this bus is a member of '{}' already; another bus can be as well", joining.group);
            let _ = joining.answer.send(Err(Error::refused("sub-exists", why)));
            return;
        }
        self.out.extend_from_slice(&joining.frame);
        self.members.push(Membership::new(joining, self.session));
    }

    /// Takes what consumers say, all that they said by now.
    pub fn words(&mut self, words: impl Iterator<Item = Word>) {
        for word in words {
            match word {
                Word::Say { member, seq, id, say, answer, unanswered } => {
                    match self.members.iter_mut().find(|one| one.number == member) {
                        Some(one) => {
                            one.say(Said { seq, id, say, answer: Some(answer), unanswered }, &mut self.out)
                        }
                        None => _ = answer.send(Err(Error::Closed)),
                    }
                }
                Word::Begin { member, seq, id, sent } => {
                    let member = self.members.iter_mut().find(|one| one.number == member);
                    if member.is_some_and(|member| member.begin(seq, &id)) {
                        self.begun.push(sent);
                    }
                }
                Word::Forget { member, seq, id } => {
                    let member = self.members.iter_mut().find(|one| one.number == member);
                    member.into_iter().for_each(|member| member.forget(seq, &id));
                }
                Word::Drain { member } => {
                    let member = self.members.iter_mut().find(|one| one.number == member);
                    member.into_iter().for_each(|member| member.drain(&mut self.out));
                }
                Word::Leave { member, answer } => {
                    match self.members.iter_mut().find(|one| one.number == member) {
                        Some(one) => one.leave(answer),
                        None => _ = answer.map(|answer| answer.send(())),
                    }
                }
            }
        }
        self.members.iter_mut().for_each(|member| member.flush(&mut self.out));
    }

    /// Returns when a member is to extend the time of what it holds and has not begun.
    pub fn extends_at(&self) -> Option<Instant> {
        self.members.iter().map(Membership::extends_at).min()
    }

    /// Extends that time where it is due.
    pub fn extend(&mut self, now: Instant) {
        self.members.iter_mut().for_each(|member| member.extend(now, &mut self.out));
    }

    /// Says that it lives.
    pub fn beat(&mut self) {
        write(&serde_json::json!({"type": "heartbeat"}), &mut self.out);
    }

    /// Takes a frame of the broker's.
    ///
    /// # Errors
    /// It is none.
    pub fn take(&mut self, body: &mut [u8]) -> Result<(), ClientError> {
        let wrong = |e: serde_json::Error| ClientError::Protocol(e.to_string());
        match Received::parse(body).map_err(wrong)? {
            Received::Delivery { group, attempt, max_attempts, line, .. } => {
                let member = self.members.iter_mut().find(|member| *member.group == *group);
                match (member, Arrived::of(&line, attempt, max_attempts)) {
                    (Some(member), Some(arrived)) => member.delivered(arrived, &mut self.out),
                    (Some(_), None) => tracing::warn!(%group, "what was delivered is no event; left out"),
                    (None, _) => {}
                }
                return Ok(());
            }
            Received::Unsubscribed { group: Some(group), code, reason, .. } => {
                let why = Error::refused(code, reason);
                if let Some(at) = self.members.iter().position(|member| *member.group == *group) {
                    self.members.swap_remove(at).end(&why);
                }
                return Ok(());
            }
            Received::Close { reason, retry_after_ms } => {
                let why = ClientError::Closed(reason.into_owned());
                self.closed = Some((why, Duration::from_millis(retry_after_ms)));
                return Ok(());
            }
            Received::Heartbeat => {
                self.beat();
                return Ok(());
            }
            Received::Ack(ack) if ack.is_of("publish") => {
                self.published(&ack);
                return Ok(());
            }
            Received::Ack(ack) if ["ack", "nack", "in_progress", "term"].iter().any(|of| ack.is_of(of)) => {
                self.said(&ack);
                return Ok(());
            }
            Received::Ack(ack) if ack.is_of("heartbeat") => return Ok(()),
            Received::Ack(_) => {}
            _ => return Ok(()),
        }
        self.answered(&serde_json::from_slice(body).map_err(wrong)?, body);
        Ok(())
    }

    fn published(&mut self, ack: &Ack<'_>) {
        let Some(publishing) = self.publishes.pop_front() else { return };
        let result = match (ack.is_ok(), ack.code.as_ref().map(|code| code.0.as_ref())) {
            // Stored all the same.
            (true, _) | (_, Some("logs-behind")) => Ok(Published {
                seq: ack.seq.unwrap_or(0),
                id: publishing.id,
                // It may have been ours, sent twice.
                duplicate: ack.duplicate && publishing.is_given,
            }),
            (_, Some("outcome-unknown")) => return self.again.push_back(publishing),
            _ => Err(refusal(ack)),
        };
        drop(publishing.permit);
        // Nobody may be waiting.
        let _ = publishing.answer.send(result);
    }

    /// What became of something that a consumer said.
    fn said(&mut self, ack: &Ack<'_>) {
        let Some(group) = &ack.group else { return };
        let Some(member) = self.members.iter_mut().find(|member| *member.group == *group.0) else { return };
        let kind = ack.ack.as_ref().map_or("", |kind| kind.0.as_ref());
        match ack.is_ok() {
            true => member.confirmed(kind, &mut self.out),
            false => member.refused(kind, ack.seq, &refusal(ack), &mut self.out),
        }
    }

    /// What became of anything else.
    fn answered(&mut self, ack: &Ack<'_>, body: &[u8]) {
        let text =
            |text: &Option<Text<'_>>| text.as_ref().map_or_else(String::new, |text| text.0.to_string());
        let (kind, group, is_ok) = (text(&ack.ack), text(&ack.group), ack.is_ok());
        // The payloads of others are left as they are: not all that is JSON is a `Value`.
        let said = || serde_json::from_slice::<Value>(body).unwrap_or_default();
        // A refusal that does not say which group is that of whoever waits longest.
        let is_any = group.is_empty() && !is_ok;
        let member = match is_any {
            true => self.waits_longest(&kind),
            false => self.members.iter().position(|member| *member.group == *group),
        };
        match (kind.as_str(), member) {
            ("subscribe", Some(at)) if is_ok => self.members[at].joined(said(), &mut self.out),
            ("subscribe", Some(at)) => self.members.swap_remove(at).end(&refusal(ack)),
            ("unsubscribe", Some(_)) if is_ok && said()["drain"] == true => {}
            ("unsubscribe", Some(at)) => self.members.swap_remove(at).end(&Error::Closed),
            _ => {
                let is_it = |asking: &Asking| {
                    let is_of_it = is_any || asking.group.as_ref().is_none_or(|of| *of == group);
                    // A broker that does not know the type at all says so of the frame.
                    let is_unknown = kind == "frame" && !is_ok;
                    asking.is_sent && (is_unknown || (asking.kind == kind && is_of_it))
                };
                let Some(asking) = self.asks.iter().position(is_it).and_then(|at| self.asks.remove(at))
                else {
                    return;
                };
                let is_done = asking.is_again && kind == "group_remove" && text(&ack.code) == "unknown-group";
                let answer = if is_ok || is_done { Ok(body.to_vec().into()) } else { Err(refusal(ack)) };
                let _ = asking.answer.send(answer);
                self.send_asks();
            }
        }
    }

    /// The oldest member that waits for an answer of this kind.
    fn waits_longest(&self, kind: &str) -> Option<usize> {
        let waiting = self.members.iter().enumerate().filter(|(_, member)| member.waits_for(kind));
        waiting.min_by_key(|(_, member)| member.number).map(|(at, _)| at)
    }

    /// Nothing more comes, for this reason.
    pub fn end(self, why: &Error) {
        let State { publishes, again, asks, members, closing, .. } = self;
        publishes.into_iter().chain(again).for_each(|one| _ = one.answer.send(Err(why.clone())));
        asks.into_iter().for_each(|one| _ = one.answer.send(Err(why.clone())));
        members.into_iter().for_each(|member| member.end(why));
        closing.map(|closing| closing.send(()));
    }
}

fn refusal(ack: &Ack<'_>) -> Error {
    let text = |text: &Option<Text<'_>>, none: &str| {
        text.as_ref().map_or_else(|| none.to_owned(), |text| text.0.clone().into_owned())
    };
    Error::refused(text(&ack.code, "refused"), text(&ack.reason, "no reason given"))
}
