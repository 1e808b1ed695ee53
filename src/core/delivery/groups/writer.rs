//! Writes down what changes in groups: one call to the journal at a time, for all of them together.
//!
//! Always holds: what changed while a call was under way is in the next one; answers are sent once theirs is durable;
//! when a segment begins the next call has all groups whole; on a disk that is full even for this it is tried again.
//! Owner: [`super::Groups`].

use super::Groups;
use super::handle::{Handle, Unwritten};
use crate::core::journal::{Class, NotCommitted, Note};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;

/// A full disk is tried again after so long.
const AGAIN: Duration = Duration::from_millis(250);

/// Groups of which something is to be written.
#[derive(Default)]
pub struct Dirty {
    handles: Mutex<Vec<Arc<Handle>>>,
    changed: Notify,
    /// A segment has begun.
    rotated: AtomicBool,
}

impl Dirty {
    pub(super) fn add(&self, handle: &Arc<Handle>) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle.clone());
        self.changed.notify_one();
    }

    /// A segment has begun: all groups are to be written down in it.
    pub fn rotated(&self) {
        self.rotated.store(true, Relaxed);
        self.changed.notify_one();
    }

    fn take(&self) -> Vec<Arc<Handle>> {
        std::mem::take(&mut self.handles.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Until the journal ends.
pub(super) async fn run(groups: Arc<Groups>) {
    loop {
        groups.dirty.changed.notified().await;
        let (handles, mut notes, mut answers) = (groups.dirty.take(), Vec::new(), Vec::new());
        let mut note = |class, body: Vec<u8>| match Note::new(class, body) {
            Ok(note) => notes.push(note),
            // What a group is and what changes is bounded: there is none so long.
            Err(error) => tracing::error!(%error, "groups: a record is not written"),
        };
        for handle in &handles {
            let Unwritten { records, answers: mut more } = handle.unwritten();
            records.iter().for_each(|record| note(Class::Change, record.encode()));
            answers.append(&mut more);
        }
        // Without groups as well, once there were some: what was written of them is needed no longer then.
        if groups.dirty.rotated.swap(false, Relaxed) && groups.is_used.load(Relaxed) {
            note(Class::SnapshotBegin, Vec::new());
            for record in groups.all().iter().flat_map(|handle| handle.snapshot()) {
                note(Class::SnapshotPart, record.encode());
            }
            note(Class::SnapshotEnd, Vec::new());
        }
        if !notes.is_empty() && !write(&groups, notes).await {
            return;
        }
        handles.iter().for_each(|handle| handle.written());
        for (outlet, member, out) in answers {
            outlet.hold(member, out.into(), 0);
        }
    }
}

/// Whether they are durable; if not, the broker ends.
async fn write(groups: &Groups, notes: Vec<Note>) -> bool {
    loop {
        match groups.journal.note(notes.clone()).await {
            Ok(Ok(())) => return true,
            Ok(Err(NotCommitted::DiskFull)) => sleep(AGAIN).await,
            Ok(Err(NotCommitted::Unknown)) | Err(_) => return false,
        }
    }
}
