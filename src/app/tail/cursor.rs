//! `--cursor`: remembers what was printed, for the next run.
//!
//! Always holds: it says no more than was flushed to stdout before; a cursor of another journal is refused
//! before an event is printed. Owner: `mod.rs`.

use crate::app::failure::{Exit, Failure};
use crate::core::state_root::StateRoot;
use crate::core::tail::cursor::{Cursor, CursorFile};
use crate::core::tail::line::Stamp;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// While events keep coming it is written so often.
const OFTEN: Duration = Duration::from_secs(1);

/// A cursor's file and what it will say.
pub struct Keeper {
    file: CursorFile,
    /// What it said at the start.
    found: Option<Cursor>,
    /// It was seen to be of this journal.
    checked: bool,
    printed: Option<(u64, Option<u64>)>,
    /// Where the first run began: what comes behind it is not to be passed over, though nothing was printed.
    begun: bool,
    written: Instant,
}

impl Keeper {
    /// Reads the cursor at `path`, which need not be there yet.
    ///
    /// # Errors
    /// It cannot be read, will not be writable, is no cursor, or one of another journal.
    pub fn open(root: &StateRoot, path: &Path) -> Result<Keeper, Failure> {
        let file = CursorFile::new(path);
        let shown = path.display();
        let found = file.read().map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                let why = format!(
                    "{shown} is no cursor ({e}); name another file, or remove it to begin with the oldest event"
                );
                Failure::new(Exit::BadData, "bad-cursor", why)
            }
            io::ErrorKind::PermissionDenied => {
                let why = format!("the cursor {shown} cannot be read: {e}; run this as its owner");
                Failure::new(Exit::Refused, "permission-denied", why)
            }
            io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
                let why = format!("the cursor {shown} can be no file ({e}); name one in a folder that is there");
                Failure::new(Exit::CannotCreate, "cannot-create", why)
            }
            _ => Failure::new(Exit::Io, "io", format!("the cursor {shown} cannot be read: {e}")),
        })?;
        file.probe().map_err(|e| unwritable(path, &e))?;
        let mut keeper =
            Keeper { file, found, checked: false, printed: None, begun: false, written: Instant::now() };
        keeper.check(root)?;
        Ok(keeper)
    }

    /// The seq behind which to go on.
    pub fn after(&self) -> Option<u64> {
        self.found.map(|cursor| cursor.seq)
    }

    /// Compares the cursor with the journal, as soon as there is one.
    ///
    /// # Errors
    /// It is of another one, or that cannot be said.
    pub fn check(&mut self, root: &StateRoot) -> Result<(), Failure> {
        if self.checked {
            return Ok(());
        }
        let Some(journal) = root.journal_id()? else { return Ok(()) };
        if let Some(cursor) = self.found.filter(|cursor| cursor.journal != journal) {
            let id = uuid::Uuid::from_u128;
            let why = format!(
                "the cursor {} is of another journal ({}; {} has {}): its seq means nothing here; name another file, \
                 or remove it to begin with the oldest event",
                self.file.path().display(),
                id(cursor.journal),
                root.path().display(),
                id(journal),
            );
            return Err(Failure::new(Exit::BadData, "foreign-cursor", why));
        }
        self.checked = true;
        Ok(())
    }

    /// Compares the cursor with `stamp`, of the last event that the log has up to it.
    ///
    /// # Errors
    /// It is of another event: a backup was restored since.
    pub fn check_event(&self, stamp: Stamp) -> Result<(), Failure> {
        let Some(Cursor { seq, ts: Some(ts), .. }) = self.found else { return Ok(()) };
        if stamp.seq != seq || stamp.ts == ts {
            return Ok(());
        }
        let why = format!(
            "the cursor {} is behind an event {seq} that is not the one in the log: a backup was restored since it was \
             written; remove it, or name the seq to go on from with --since @SEQ and another file",
            self.file.path().display()
        );
        Err(Failure::new(Exit::BadData, "foreign-cursor", why))
    }

    /// The first run begins behind this event; said once, and nothing to a later run.
    pub fn begin(&mut self, seq: u64) {
        if self.found.is_none() && !self.begun {
            self.begun = true;
            self.printed = Some((seq, None));
        }
    }

    /// This event was printed, and is not flushed yet.
    pub fn printed(&mut self, stamp: Stamp) {
        self.printed = Some((stamp.seq, Some(stamp.ts)));
    }

    /// Whether it should be written though more events wait.
    pub fn is_due(&self) -> bool {
        self.printed.is_some() && self.written.elapsed() >= OFTEN
    }

    /// Writes it, when there is something new; everything printed was flushed.
    ///
    /// # Errors
    /// It cannot be written, or the journal's id cannot be read.
    pub fn save(&mut self, root: &StateRoot) -> Result<(), Failure> {
        let Some((seq, ts)) = self.printed.take() else { return Ok(()) };
        let Some(journal) = root.journal_id()? else {
            let why = format!(
                "{} says no journal id, so a cursor cannot be of it; read these logs without --cursor",
                root.path().join("format").display()
            );
            return Err(Failure::new(Exit::BadData, "no-journal", why));
        };
        self.written = Instant::now();
        self.file.write(Cursor { journal, seq, ts }).map_err(|e| unwritable(self.file.path(), &e))
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let why = format!(
        "the cursor {} cannot be written: {error}; what was printed since will be printed again",
        path.display()
    );
    match error.kind() {
        NotFound | NotADirectory | IsADirectory | PermissionDenied | ReadOnlyFilesystem => {
            Failure::new(Exit::CannotCreate, "cannot-create", why)
        }
        _ => Failure::new(Exit::Io, "io", why),
    }
}
