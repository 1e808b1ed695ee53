//! The agent's subscription: what it asks the broker for, and how it hands events on to the handler.
//!
//! ```text
//!         ack                  no room                       room
//! Asked ───────▶ Taking ─── unsubscribe ───▶ Paused ─── subscribe ───▶ Asked
//! ```
//!
//! Always holds: events are handed on in order, each once in a journal; after a restart it goes on behind the cursor,
//! if the event that was handled last is still the one of that place. Another journal is begun at its earliest event:
//! none of its events was handled. Owner: the session.

use super::handler::SUB;
use super::outbox::{Cursor, Outbox, OutboxError};
use crate::core::follow::state::{Broken, Following, Mode};
use crate::core::follow::{Begin, News, Room, subscribe};
use crate::core::limits::FOLLOW_BYTES;
use crate::core::topic::Pattern;
use crate::core::wire::received::{Gap, Received};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

/// What is subscribed, and how far it has come.
pub struct Feed {
    patterns: Vec<Pattern>,
    begin: Begin,
    name: String,
    following: Following,
    mode: Mode,
    room: Room,
    /// Bounded by the room.
    lines: UnboundedSender<Vec<u8>>,
    /// Its cursor was read.
    is_known: bool,
    /// The place where it begins is to be remembered …
    is_new: bool,
    /// … and is this one, once it is known: nothing is handed on before it is written down.
    place: Option<Cursor>,
}

/// What is to be done after a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// The subscription is refused for good; a code and why.
    Refused(String, String),
    /// To be subscribed anew: the journal is another one.
    Anew,
}

/// The name of the cursor of these patterns.
pub fn cursor_name(patterns: &[Pattern]) -> String {
    let mut names: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" ")
}

impl Feed {
    /// Of these patterns; what comes is handed on through `lines`.
    pub fn new(patterns: Vec<Pattern>, begin: Begin, room: Room, lines: UnboundedSender<Vec<u8>>) -> Self {
        let (name, following, mode) = (cursor_name(&patterns), Following::default(), Mode::Asked);
        let (is_known, is_new, place) = (false, false, None);
        Feed { patterns, begin, name, following, mode, room, lines, is_known, is_new, place }
    }

    /// The frame that subscribes in a new session: behind the cursor of the patterns, or where it is told to begin.
    ///
    /// # Errors
    /// The cursor cannot be read now.
    pub async fn begin(&mut self, outbox: &Outbox) -> Result<Value, OutboxError> {
        if !self.is_known {
            let cursor = outbox.cursor(&self.name).await?;
            (self.is_known, self.is_new) = (true, cursor.is_none());
            let behind = |cursor: Cursor| Following::behind(cursor.seq, cursor.ts, cursor.id);
            self.following = cursor.map_or_else(Following::default, behind);
        }
        self.following.begin();
        Ok(self.ask())
    }

    fn ask(&mut self) -> Value {
        self.mode = Mode::Asked;
        subscribe(SUB, &self.patterns, self.following.place(&self.begin))
    }

    /// Takes a frame of the broker's that is about it.
    pub fn take(&mut self, received: Received<'_>) -> After {
        let (place, is_new) = (&mut self.place, self.is_new);
        self.following.take(received, &mut self.mode, &mut |news| match news {
            News::Subscribed(next) => {
                tracing::info!(from = next, "subscribed");
                if is_new && place.is_none() {
                    *place = Some(Cursor { seq: next.saturating_sub(1), ts: 0, id: String::new() });
                }
            }
            News::Gap(Gap { from, to }) => tracing::warn!(
                from, to, "events are gone, taken by retention or damage before they were received; some of them may have been of these topics"
            ),
            News::Events(_) | News::Anew | News::Lost(..) => {}
        });
        match self.following.closed.take() {
            None => After::Nothing,
            Some(Broken::OtherJournal { .. }) => self.anew(),
            Some(Broken::Refused { code, .. }) if code == "seq-ahead" && self.following.next.is_some() => {
                self.anew()
            }
            Some(Broken::Refused { code, reason }) => After::Refused(code, reason),
            // The session itself looks at what ends it.
            Some(Broken::Lost { .. }) => After::Nothing,
        }
    }

    fn anew(&mut self) -> After {
        tracing::warn!(
            "the broker's journal is not the one that was received from (an older backup was restored, or it is another broker); beginning at its earliest event"
        );
        self.following = Following::default();
        (self.begin, self.is_new, self.place) = (Begin::Earliest, true, None);
        After::Anew
    }

    /// The place that is still to be written down.
    pub fn place(&self) -> Option<&Cursor> {
        self.place.as_ref()
    }

    /// That place is written down.
    pub fn placed(&mut self) {
        (self.is_new, self.place) = (false, None);
    }

    /// Hands on what came.
    pub fn hand_on(&mut self) {
        // The handler moves the same cursor.
        if self.place.is_some() {
            return;
        }
        let (room, lines) = (&self.room, &self.lines);
        self.following.hand_out(room, &mut |news| {
            if let News::Events(bytes) = news {
                // A handler that is gone ends the agent.
                let _ = lines.send(bytes);
            }
        });
    }

    /// The frames that make the broker begin again, from the beginning of what is left.
    pub fn anew_frames(&mut self) -> [Value; 2] {
        [json!({"type": "unsubscribe", "sub": SUB}), self.ask()]
    }

    /// The frame that stops it, when there is no room for more, or its place is not written down.
    pub fn pause(&mut self) -> Option<Value> {
        let full = self.mode == Mode::Taking && (self.place.is_some() || self.room.used() >= FOLLOW_BYTES);
        full.then(|| {
            self.mode = Mode::Paused;
            json!({"type": "unsubscribe", "sub": SUB})
        })
    }

    /// The frame that lets it go on; pends while it is not paused, there is no room, or its
    /// place is not written down.
    pub async fn resumed(&self) {
        match self.mode {
            Mode::Paused if self.place.is_none() => self.room.freed().await,
            _ => std::future::pending().await,
        }
    }

    /// The frame that lets it go on.
    pub fn resume(&mut self) -> Value {
        self.ask()
    }

    /// The name of its cursor.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::agent::outbox::Bounds;
    use tokio::sync::mpsc::unbounded_channel;

    fn take(feed: &mut Feed, frame: &str) {
        let mut body = frame.as_bytes().to_vec();
        assert_eq!(feed.take(Received::parse(&mut body).unwrap()), After::Nothing);
    }

    #[tokio::test]
    async fn nothing_is_handed_on_before_its_place_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path(), Bounds::default()).unwrap().outbox;
        let (lines, mut handed) = unbounded_channel();
        let patterns = vec![Pattern::parse("t").unwrap()];
        let mut feed = Feed::new(patterns, Begin::Latest, Room::default(), lines);
        for _ in 0..2 {
            // It cannot be written, and the session is lost.
            let _ = feed.begin(&outbox).await.unwrap();
            take(&mut feed, r#"{"type":"ack","ack":"subscribe","status":"ok","next_seq":5}"#);
            assert_eq!(feed.place().unwrap().seq, 4);
            let event = r#"{"type":"event","sub":"agent","seq":5,"ts":1,"id":"x","vm":"a","topic":"t"}"#;
            take(&mut feed, event);
            feed.hand_on();
            assert!(handed.try_recv().is_err());
            assert!(feed.pause().is_some(), "nothing more is to come");
        }
        feed.placed();
        feed.resumed().await;
        feed.hand_on();
        assert!(handed.try_recv().unwrap().ends_with(b"}\n"));
        assert_eq!(feed.place(), None);
        outbox.close().await;
    }
}
