//! The broker's own lines: all to `logs/broker.log`, warnings and errors to stderr as well.
//!
//! Always holds: a line is whole, and whoever logs waits neither for the disk nor for stderr. Owner: `app/broker.rs`.

use super::stderr;
use crate::core::config::{LogFormat, LogLevel};
use crate::core::events::Recorder;
use crate::core::harmless::harmless;
use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// What is traced with this target is for the log alone: the command itself says it on stderr.
pub const LOG_ONLY: &str = "castra-log-only";

struct Lines(Arc<Recorder>);

/// Gathers one line; hands it over when it is dropped.
struct Line {
    recorder: Arc<Recorder>,
    aloud: bool,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;
    fn make_writer(&'a self) -> Line {
        Line { recorder: self.0.clone(), aloud: false, bytes: Vec::new() }
    }
    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        let aloud = *meta.level() <= Level::WARN && meta.target() != LOG_ONLY;
        Line { recorder: self.0.clone(), aloud, bytes: Vec::new() }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Others' words are in there, too.
        if let Ok(text) = std::str::from_utf8(&self.bytes) {
            let lines: Vec<_> = text.split('\n').map(harmless).collect();
            if lines.iter().any(|line| matches!(line, Cow::Owned(_))) {
                self.bytes = lines.join("\n").into_bytes();
            }
        }
        let counters = &self.recorder.counters;
        if self.aloud {
            // The log has it.
            if !stderr::write(&self.bytes) && counters.stderr_dropped.fetch_add(1, Relaxed) == 0 {
                tracing::warn!(target: LOG_ONLY, "stderr: nobody reads it; lines are dropped there, not here");
            }
        }
        self.recorder.log_line(std::mem::take(&mut self.bytes));
    }
}

/// From here on everything that is traced becomes a line. Once per process.
pub fn start(recorder: Arc<Recorder>, level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_target(false);
    let lines = lines.with_writer(Lines(recorder));
    // A second call would be a second broker in this process, which keeps the first one's.
    let _ = match format {
        LogFormat::Text => tracing::subscriber::set_global_default(lines.finish()),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            tracing::subscriber::set_global_default(lines.finish())
        }
    };
}
