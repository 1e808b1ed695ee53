//! How an event looks: a line of text, its JSON, or its payload.
//!
//! Always holds: one line an event; on a terminal nothing that a guest published can do more than be read.
//! Owner: `mod.rs` and `logs.rs`.

use crate::app::terminal::has_color;
use crate::cli::Output;
use crate::core::harmless::harmless;
use crate::core::tail::line::EventLine;
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::TimeZone;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

const TIME: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

/// Writes events.
pub struct Printer {
    output: Output,
    zone: TimeZone,
    color: bool,
    terminal: bool,
}

impl Printer {
    /// For stdout.
    pub fn new(output: Output, zone: TimeZone) -> Self {
        let stdout = io::stdout();
        Printer { output, zone, color: has_color(&stdout), terminal: stdout.is_terminal() }
    }

    /// Writes one event and the end of its line.
    ///
    /// # Errors
    /// `out` takes no more.
    pub fn print(&self, out: &mut impl Write, event: &EventLine<'_>) -> io::Result<()> {
        let safe = |text| if self.terminal { harmless(text) } else { Cow::Borrowed(text) };
        match self.output {
            Output::Json => out.write_all(safe(event.text).as_bytes())?,
            Output::Raw => out.write_all(safe(event.payload.get()).as_bytes())?,
            Output::Text => {
                let (seq, vm) = (event.seq, &event.vm);
                let (topic, payload) = (safe(&event.topic), safe(event.payload.get()));
                let time = self.time(event.ts);
                if self.color {
                    write!(
                        out,
                        "\x1b[2m{time} {seq}\x1b[0m \x1b[36m{vm}\x1b[0m \x1b[32m{topic}\x1b[0m {payload}"
                    )?;
                } else {
                    write!(out, "{time} {seq} {vm} {topic} {payload}")?;
                }
            }
        }
        out.write_all(b"\n")
    }

    fn time(&self, ts: u64) -> String {
        clock_text(&self.zone, ts)
    }
}

/// RFC 3339 with milliseconds and the zone's offset at that time; `Z` where that is none.
pub fn clock_text(zone: &TimeZone, ts: u64) -> String {
    {
        let at = i64::try_from(ts).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let Some(at) = at else { return format!("@{ts}") };
        let offset = zone.to_offset(at);
        let mut text = String::with_capacity(32);
        // Writing to a string does not fail.
        let _ = match offset.seconds() {
            0 => TIME.print_timestamp(&at, &mut text),
            _ => TIME.print_timestamp_with_offset(&at, offset, &mut text),
        };
        text
    }
}
