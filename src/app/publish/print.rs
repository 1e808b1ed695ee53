//! What `castra bus publish --jsonl` says while it runs: a line for each event, and for each line that is refused.
//!
//! Always holds: stdout has what is stored, in order, and nothing else; what was printed is given back to the window,
//! so that a slow reader of stdout slows the publishing and loses nothing. Owner: `jsonl.rs`.

use super::failure::exit_of;
use crate::app::failure::{Exit, Failure};
use crate::app::stderr;
use crate::app::terminal::Progress;
use crate::app::words::grouped;
use crate::core::event::string_body;
use crate::core::pipeline::{Fate, Settled, Window};
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// So much is gathered at the most before it is written, in bytes.
const GATHER: usize = 64 * 1024;

/// What was said.
#[derive(Debug)]
pub struct Tally {
    /// Lines that are stored.
    pub stored: u64,
    /// Of these, the ones that were not in the logs yet.
    pub behind: u64,
    /// Lines that are refused.
    pub refused: u64,
    /// The worst exit code of a refused line.
    pub worst: Exit,
    /// Why stdout takes no more.
    pub broken: Option<io::Error>,
}

/// Prints.
pub struct Printer {
    json: bool,
    out: Vec<u8>,
    tally: Tally,
    progress: Option<Progress>,
    begun: Instant,
}

impl Printer {
    /// Prints JSON objects, or text.
    pub fn new(json: bool) -> Self {
        // Where the events themselves pass by, there is progress enough.
        let progress = (!io::stdout().is_terminal()).then(Progress::new);
        let tally = Tally { stored: 0, behind: 0, refused: 0, worst: Exit::Ok, broken: None };
        Printer { json, out: Vec::new(), tally, progress, begun: Instant::now() }
    }

    /// Says what becomes of lines until there are no more; stops `window` when nobody can be told.
    pub fn run(mut self, settled: &Receiver<Vec<Settled>>, window: &Window) -> Tally {
        while let Ok(lines) = settled.recv() {
            let weight = lines.iter().map(|line| line.weight as usize).sum();
            for Settled { line, fate, .. } in lines {
                match fate {
                    Fate::Stored { seq, id, topic, in_logs, duplicate } => {
                        self.tally.behind += u64::from(!in_logs);
                        self.stored(line, seq, &id, &topic, duplicate);
                    }
                    Fate::Refused(code, reason) => self.refused(line, &code, &reason),
                    Fate::Open => {}
                }
            }
            self.flush();
            if self.is_broken() {
                window.stop();
            }
            window.give_back(weight);
            self.show_progress();
        }
        self.end()
    }

    fn stored(&mut self, line: u64, seq: u64, id: &str, topic: &str, duplicate: bool) {
        self.tally.stored += 1;
        let (out, mut digits) = (&mut self.out, itoa::Buffer::new());
        if self.json {
            out.extend_from_slice(b"{\"schema\":1,\"line\":");
            out.extend_from_slice(digits.format(line).as_bytes());
            out.extend_from_slice(b",\"seq\":");
            out.extend_from_slice(digits.format(seq).as_bytes());
            out.extend_from_slice(b",\"id\":\"");
            string_body(out, id);
            out.extend_from_slice(b"\",\"topic\":\"");
            string_body(out, topic);
            out.extend_from_slice(if duplicate { b"\",\"duplicate\":true}\n" } else { b"\"}\n" });
        } else {
            out.extend_from_slice(b"seq=");
            out.extend_from_slice(digits.format(seq).as_bytes());
            out.extend_from_slice(b" id=");
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(if duplicate { b" duplicate\n" } else { b"\n" });
        }
    }

    /// Prints an event that was only checked.
    pub fn valid(&mut self, event: &[u8]) {
        self.tally.stored += 1;
        self.out.extend_from_slice(event);
        if self.out.len() > GATHER {
            self.flush();
            self.show_progress();
        }
    }

    /// Says that a line is refused.
    pub fn refused(&mut self, line: u64, code: &str, reason: &str) {
        self.flush();
        self.tally.refused += 1;
        let exit = exit_of(code);
        if self.tally.worst != Exit::Refused {
            self.tally.worst = exit;
        }
        if let Some(progress) = &mut self.progress {
            progress.clear();
        }
        let failure = Failure::new(exit, code.to_owned(), format!("line {line}: {code}: {reason}"));
        match self.json {
            true => {
                stderr::write(format!("{}\n", failure.with("line", line).json()).as_bytes());
            }
            false => stderr::say(&failure.message),
        }
    }

    /// Writes what was gathered.
    pub fn flush(&mut self) {
        if !self.is_broken() && !self.out.is_empty() {
            self.tally.broken = io::stdout().write_all(&self.out).and_then(|()| io::stdout().flush()).err();
        }
        self.out.clear();
    }

    /// Whether stdout takes no more.
    pub fn is_broken(&self) -> bool {
        self.tally.broken.is_some()
    }

    /// What was said in all.
    pub fn end(mut self) -> Tally {
        self.flush();
        self.tally
    }

    fn show_progress(&mut self) {
        let Tally { stored, refused, .. } = self.tally;
        let rate = (stored as f64 / self.begun.elapsed().as_secs_f64()) as u64;
        if let Some(progress) = &mut self.progress {
            progress.show(|| {
                format!("{} stored, {} refused, {}/s", grouped(stored), grouped(refused), grouped(rate))
            });
        }
    }
}
