//! What is known of a state root before its journal is opened: so much must be there.
//!
//! The checkpoint and the status say what was durable and how far the logs were; the lock, whether a broker
//! writes. Always holds: nothing is written and nobody is asked, only files; what is said to be there was there
//! when this was read. Owner: `verify/mod.rs`, `repair.rs`,
//! `backup.rs`.

use super::{VerifyError, failed};
use crate::core::log_view::read_checkpoint;
use crate::core::state_root::{Holder, StateRoot};
use crate::core::status::{Snapshot, State};
use crate::core::status_file;
use std::time::{Duration, Instant};

/// A broker that is just starting is waited for so long.
const STARTING: Duration = Duration::from_secs(10);

/// What is known before anything is opened.
pub struct Known {
    /// Events up to here were durable.
    pub stored: u64,
    /// The logs have all up to here; `None` when nobody says so.
    pub logs: Option<u64>,
    /// What the broker said last, if it can be read.
    pub status: Option<Snapshot>,
    /// A broker runs: which, and since when.
    pub running: Option<(Holder, String)>,
    /// What is no damage and good to know.
    pub notes: Vec<String>,
}

impl Known {
    /// Of the state root's files, and of the lock, which is only asked.
    pub fn read(root: &StateRoot) -> Result<Self, VerifyError> {
        let until = Instant::now() + STARTING;
        loop {
            let known = Self::read_once(root)?;
            match known {
                Some(known) => return Ok(known),
                None if Instant::now() > until => return Err(VerifyError::Starting(root.path().into())),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The same by whoever holds the lock, so that no broker runs.
    pub fn of_stopped(root: &StateRoot) -> Result<Self, VerifyError> {
        Self::held_by(root, Holder::Nobody)?.ok_or_else(|| VerifyError::Starting(root.path().into()))
    }

    fn read_once(root: &StateRoot) -> Result<Option<Self>, VerifyError> {
        let holder = root.lock_holder().map_err(failed(root.lock().display()))?;
        Self::held_by(root, holder)
    }

    /// `None` while a broker is starting: it cuts its logs and writes them on.
    fn held_by(root: &StateRoot, holder: Holder) -> Result<Option<Self>, VerifyError> {
        let mut notes = Vec::new();
        let checkpoint = read_checkpoint(&root.checkpoint()).unwrap_or_else(|error| {
            notes.push(format!(
                "logs/checkpoint cannot be read ({error}): the next start writes the logs anew from the journal"
            ));
            None
        });
        let status = status_file::read(&root.status()).unwrap_or_else(|error| {
            notes.push(format!("status cannot be read ({error}): the end of the journal is taken as it is"));
            None
        });
        // Zeros while it starts: what the one before it said is gone.
        let said = status.as_ref().filter(|status| status.state != State::Starting);
        let stored = said.map_or(0, |status| status.journal.head_seq).max(checkpoint.unwrap_or(0));
        if holder == Holder::Nobody {
            return Ok(Some(Known { stored, logs: checkpoint, status, running: None, notes }));
        }
        let Some(said) = &status else {
            let running = Some((holder, String::new()));
            let stored = checkpoint.unwrap_or(0);
            return Ok(Some(Known { stored, logs: checkpoint, status: None, running, notes }));
        };
        let its_own = matches!(holder, Holder::Pid(pid) if pid == said.pid) || holder == Holder::Unknown;
        if !its_own || said.state == State::Starting {
            return Ok(None);
        }
        // Logs that cannot be written are cut behind their checkpoint and written anew.
        let written = said.logs_stalled.is_none().then_some(said.journal.logs_seq);
        let logs = Some(written.max(checkpoint).unwrap_or(0));
        let running = Some((holder, said.started_at.clone()));
        Ok(Some(Known { stored, logs, status, running, notes }))
    }

    /// The same broker runs, or none does, as before.
    pub fn still_holds(&self, root: &StateRoot) -> bool {
        let now = root.lock_holder().unwrap_or(Holder::Unknown);
        let since = || status_file::read(&root.status()).ok().flatten().map(|status| status.started_at);
        match &self.running {
            None => now == Holder::Nobody,
            Some((holder, started)) => {
                *holder == now && since().is_none_or(|since| since == *started || started.is_empty())
            }
        }
    }
}
