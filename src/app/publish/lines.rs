//! The lines of an input as events to be published.
//!
//! Always holds: every line that is not empty is an event or a refusal, with its number; a line is kept only as far
//! as a frame may be long. Owner: `jsonl.rs`.

use crate::core::chance::chance;
use crate::core::clock;
use crate::core::event::Text;
use crate::core::ids::IdSource;
use crate::core::limits::FRAME_BYTES;
use crate::core::lines::{Line, Lines};
use crate::core::refusal::Refusal;
use crate::core::topic::Topic;
use crate::core::wire::frame;
use crate::core::wire::publish::{Defaults, write_body};
use std::borrow::Cow;
use std::io::{self, Read};
use std::ops::ControlFlow;

/// So much is read at a time.
const PIECE: usize = 64 * 1024;

/// What an input says next.
pub enum Said<'a> {
    /// A line is this event.
    Event {
        /// Its id: the line's, or a new one.
        id: Cow<'a, str>,
        /// Its topic, as the line says it.
        topic: Cow<'a, str>,
        /// The body of its frame.
        body: &'a [u8],
    },
    /// A line is none.
    Refused(Refusal),
    /// What was there is read; the next read may wait.
    Pause,
}

/// Reads `input` to its end, or until `each` breaks; `each` is told the number of the line, too.
pub fn read_events(
    mut input: impl Read,
    defaults: &Defaults,
    mut each: impl FnMut(u64, Said<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let (mut lines, mut piece, mut number) = (Lines::new(FRAME_BYTES), vec![0; PIECE], 0);
    let mut maker = Maker { defaults, ids: IdSource::new(chance()), id: Vec::new(), body: Vec::new() };
    loop {
        let length = match input.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let mut rest = &piece[..length];
        while let Some((n, line)) = lines.next(&mut rest) {
            number = n;
            if maker.line(n, line, false, &mut each).is_break() {
                return Ok(());
            }
        }
        if length == 0 {
            break;
        }
        if each(number, Said::Pause).is_break() {
            return Ok(());
        }
    }
    if let Some((n, line)) = lines.rest() {
        let _ = maker.line(n, line, true, &mut each);
    }
    Ok(())
}

struct Maker<'d> {
    defaults: &'d Defaults,
    ids: IdSource,
    id: Vec<u8>,
    body: Vec<u8>,
}

impl Maker<'_> {
    fn line(
        &mut self,
        number: u64,
        line: Line<'_>,
        is_last: bool,
        each: &mut impl FnMut(u64, Said<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Line::Whole(line) = line else {
            let why = format!("the line is over {FRAME_BYTES} bytes");
            return each(number, Said::Refused(Refusal::new("event-too-large", why)));
        };
        if line.trim_ascii().is_empty() {
            return ControlFlow::Continue(());
        }
        match self.event(line) {
            Ok(event) => each(number, event),
            Err(refusal) => {
                let cut_off = is_last && matches!(refusal.code, "bad-json" | "not-an-object" | "not-utf8");
                let reason = in_this_line(&refusal.reason);
                let refusal = if cut_off {
                    let why = format!("the input ends in half a line, which is not taken ({reason})");
                    Refusal::new("half-line", why)
                } else {
                    Refusal::new(refusal.code, reason)
                };
                each(number, Said::Refused(refusal))
            }
        }
    }

    fn event<'a>(&'a mut self, line: &'a [u8]) -> Result<Said<'a>, Refusal> {
        let mut event = self.defaults.fill(frame::parse_event(line)?);
        if event.id.is_none() {
            self.id.clear();
            self.ids.write(clock::wall_ms(), &mut self.id);
            event.id = Some(Text(String::from_utf8_lossy(&self.id)));
        }
        self.body.clear();
        write_body(&mut self.body, &event)?;
        let text = |text: Option<Text<'a>>, without| text.map_or(Cow::Borrowed(without), |Text(text)| text);
        Ok(Said::Event {
            id: text(event.id, ""),
            topic: text(event.topic, Topic::BROADCAST.as_str()),
            body: &self.body,
        })
    }
}

/// A parser of one line counts lines, too; the number of ours is said already.
fn in_this_line(reason: &str) -> String {
    match reason.rsplit_once(" at line 1 column ") {
        Some((what, column)) => format!("{what} in column {column}"),
        None => reason.to_owned(),
    }
}
