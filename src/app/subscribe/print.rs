//! Prints events.
//!
//! Always holds: stdout has whole lines of events and nothing else; what came is flushed before more is waited for.
//! Owner: `mod.rs`.

use super::say::Sayer;
use super::work::Handle;
use crate::app::tail::event_text::Printer;
use crate::cli::Output;
use crate::core::tail::line::EventLine;
use jiff::tz::TimeZone;
use std::io::{self, BufWriter, StdoutLock, Write};

/// Prints to stdout.
pub struct Print {
    printer: Printer,
    out: BufWriter<StdoutLock<'static>>,
    sayer: Sayer,
}

impl Print {
    /// As was asked for.
    pub fn new(output: Output, utc: bool, sayer: Sayer) -> Self {
        let zone = if utc { TimeZone::UTC } else { TimeZone::system() };
        let out = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
        Print { printer: Printer::new(output, zone), out, sayer }
    }
}

impl Handle for Print {
    fn event(&mut self, line: &[u8]) -> io::Result<bool> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let Some(event) = EventLine::parse(line) else {
            self.sayer.warn("no-event", "something that is no event was received and left out", &[]);
            return Ok(false);
        };
        self.printer.print(&mut self.out, &event)?;
        Ok(true)
    }

    fn rest(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
