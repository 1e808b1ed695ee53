//! What a subscription knows beyond its connections: what was seen, what comes next, and whether the journal is still
//! the same one.
//!
//! Always holds: in a new session nothing is handed out before the last event that was seen came again, with the same
//! id and ts, or is known to be gone. Owner: `follow.rs`, and the agent's `feed.rs`.

use super::News;
use crate::core::client::ClientError;
use crate::core::follow::Room;
use crate::core::wire::received::{Ack, Gap, Received};
use serde::Deserialize;
use std::time::Duration;

/// Between which frames a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) enum Mode {
    Asked,
    Taking,
    Paused,
}

/// How a session ended.
pub(in crate::core) enum Broken {
    Lost { error: ClientError, retry_after: Duration },
    Refused { code: String, reason: String },
    OtherJournal { seq: u64, next: u64 },
}

impl From<ClientError> for Broken {
    fn from(error: ClientError) -> Self {
        Broken::Lost { error, retry_after: Duration::ZERO }
    }
}

/// What tells an event from another one of the same seq.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Seen {
    seq: u64,
    ts: u64,
    #[serde(default)]
    id: String,
}

impl Seen {
    fn of(line: &[u8]) -> Option<Seen> {
        serde_json::from_slice(line).ok()
    }
}

/// What outlives a session.
#[derive(Default)]
pub(in crate::core) struct Following {
    /// The seq to go on with; none before the first ack.
    pub next: Option<u64>,
    /// The session ends.
    pub closed: Option<Broken>,
    /// The broker asked for a sign of life.
    pub is_asked: bool,
    /// The last event that was handed out.
    last: Option<Seen>,
    /// That event has to come first.
    is_checking: bool,
    /// The newest events per key come first, and there are more of them.
    is_state: bool,
    /// Lines that came together.
    lines: Vec<u8>,
}

impl Following {
    /// Goes on behind this event; one without an id is only a place.
    #[cfg_attr(not(feature = "agent"), allow(dead_code, reason = "only the agent remembers"))]
    pub fn behind(seq: u64, ts: u64, id: String) -> Self {
        let last = (!id.is_empty()).then_some(Seen { seq, ts, id });
        Following { next: Some(seq.saturating_add(1)), last, ..Following::default() }
    }

    /// There is a new session.
    pub fn begin(&mut self) {
        // The last event may be the newest of its key no longer, and does not come again then.
        self.is_checking = self.last.is_some() && !self.is_state;
        self.is_asked = false;
    }

    /// Where to subscribe from: the last event itself, as long as it was not seen in this session.
    pub fn from(&self) -> Option<u64> {
        match &self.last {
            Some(last) if self.is_checking => Some(last.seq),
            _ => self.next,
        }
    }

    /// Behind which seq the newest events per key are still to come.
    pub fn state(&self) -> Option<u64> {
        self.next.filter(|_| self.is_state).map(|next| next - 1)
    }

    pub fn take(&mut self, received: Received<'_>, mode: &mut Mode, news: &mut impl FnMut(News<'_>)) {
        match (received, self.next) {
            // Nothing counts behind the end.
            _ if self.closed.is_some() => {}
            (Received::Event { seq, line, .. }, Some(next)) if *mode == Mode::Taking => {
                self.event(seq, &line, next);
            }
            (Received::Gap { from, to, .. }, Some(next)) if *mode == Mode::Taking => {
                self.gone(Gap { from, to }, next, news);
            }
            (Received::Ack(ack), _) if *mode == Mode::Asked && is_answer(&ack) => {
                if !ack.is_ok() {
                    let code = ack.code.map_or_else(|| "refused".into(), |code| code.0.into_owned());
                    let reason = ack.reason.map_or_else(|| "no reason given".into(), |r| r.0.into_owned());
                    self.closed = Some(Broken::Refused { code, reason });
                    return;
                }
                if let Some(gap) = ack.gap {
                    self.gone(gap, self.next.unwrap_or(0), news);
                }
                let next = self.next.max(ack.next_seq).unwrap_or(1);
                self.next = Some(next);
                self.is_state = ack.state.is_some();
                *mode = Mode::Taking;
                news(News::Subscribed(next));
            }
            (Received::Close { reason, retry_after_ms }, _) => {
                let retry_after = Duration::from_millis(retry_after_ms);
                let error = ClientError::Closed(reason.into_owned());
                self.closed = Some(Broken::Lost { error, retry_after });
            }
            (Received::Unsubscribed { code, reason, .. }, _) => {
                let (code, reason) = (code.into_owned(), reason.into_owned());
                self.closed = Some(Broken::Refused { code, reason });
            }
            (Received::State { .. }, _) => self.is_state = false,
            (Received::Heartbeat, _) => self.is_asked = true,
            // Repeats, what is dropped, and what later brokers send.
            _ => {}
        }
    }

    fn event(&mut self, seq: u64, line: &[u8], next: u64) {
        if self.is_same(seq, line, next) && seq >= next {
            self.lines.extend_from_slice(line);
            self.lines.push(b'\n');
            self.next = Some(seq.saturating_add(1));
        }
    }

    /// Whether this is an event of the journal that was followed; if it is of another one that is the end.
    fn is_same(&mut self, seq: u64, line: &[u8], next: u64) -> bool {
        let Some(last) = self.last.as_ref().filter(|last| self.is_checking && seq >= last.seq) else {
            return true;
        };
        if seq == last.seq && Seen::of(line).as_ref() == Some(last) {
            self.is_checking = false;
            return true;
        }
        self.closed = Some(Broken::OtherJournal { seq: last.seq, next });
        false
    }

    /// These events are gone; what was received of them is no loss.
    fn gone(&mut self, gap: Gap, next: u64, news: &mut impl FnMut(News<'_>)) {
        if self.last.as_ref().is_some_and(|last| (gap.from..=gap.to).contains(&last.seq)) {
            self.is_checking = false;
        }
        if gap.to >= next {
            self.next = Some(gap.to.saturating_add(1));
            news(News::Gap(Gap { from: gap.from.max(next), to: gap.to }));
        }
    }

    /// Everything that came so far.
    pub fn hand_out(&mut self, room: &Room, news: &mut impl FnMut(News<'_>)) {
        let Some(end) = self.lines.len().checked_sub(1) else { return };
        let begin = self.lines[..end].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.last = Seen::of(&self.lines[begin..end]);
        room.take(self.lines.len());
        news(News::Events(std::mem::take(&mut self.lines)));
    }
}

/// Whether an ack is of our `subscribe`: a broker that knows none acks a `frame`.
fn is_answer(ack: &Ack<'_>) -> bool {
    ack.is_of("subscribe") || (ack.is_of("frame") && !ack.is_ok())
}
