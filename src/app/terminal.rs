//! What a terminal can show: colour, its width, a line of progress.
//!
//! Always holds: where there is no terminal there is no colour, no progress and no cut line; NO_COLOR and
//! `TERM=dumb` are obeyed. Owner: the commands.

use super::stderr;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Progress is drawn so often at the most.
const REDRAW: Duration = Duration::from_millis(100);
/// The narrowest terminal that is believed.
const NARROW: usize = 10;

/// Whether colours may be written to `stream`.
pub fn has_color(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// How many columns stdout has; `None` when it is no terminal.
pub fn stdout_width() -> Option<usize> {
    width_of(io::stdout())
}

/// How many lines stdout has; `None` when it is no terminal.
pub fn stdout_height() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(_, height)| usize::from(height.0))
}

fn width_of(stream: impl std::os::fd::AsFd) -> Option<usize> {
    terminal_size::terminal_size_of(stream).map(|(width, _)| usize::from(width.0).max(NARROW))
}

/// The first so many characters of `text`; what is cut off is marked.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Prints an answer whose exit code says as much: a reader that is gone is no reason for another one.
///
/// # Errors
/// stdout cannot be written.
pub fn print_all(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// One line on stderr that is drawn over, as long as stderr is a terminal.
pub struct Progress {
    width: Option<usize>,
    drawn: Option<Instant>,
    begun: Instant,
}

impl Progress {
    /// Shows nothing yet.
    pub fn new() -> Self {
        let width = if stderr::is_terminal() { width_of(io::stderr()).or(Some(80)) } else { None };
        Progress { width, drawn: None, begun: Instant::now() }
    }

    /// Shows what `line` makes, when it is time to; short work shows nothing.
    pub fn show(&mut self, line: impl FnOnce() -> String) {
        let Some(width) = self.width else { return };
        if self.drawn.unwrap_or(self.begun).elapsed() < REDRAW {
            return;
        }
        self.drawn = Some(Instant::now());
        stderr::write(format!("\r\x1b[K{}", cut(&line(), width.saturating_sub(1))).as_bytes());
    }

    /// Takes the line away, so that something else can be said.
    pub fn clear(&mut self) {
        if self.drawn.take().is_some() {
            stderr::write(b"\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
