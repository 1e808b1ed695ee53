//! Writes down what changes in groups: one call to the journal at a time, for all of them together.
//!
//! Always holds: what changed while a call was under way is in the next one; answers are sent once theirs is durable;
//! when a segment begins the next call has all groups whole; on a disk that is full even for this it is tried again.
//! Owner: [`super::Groups`].

use super::Groups;
use super::handle::Handle;
use super::ledger::Unwritten;
use crate::core::journal::{Class, NotCommitted, Note};
use crate::core::limits::GROUP_NOTE_BYTES;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
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
    /// Who waits for all that has changed by now to be written.
    settling: Mutex<Vec<oneshot::Sender<()>>>,
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

    /// Resolves when all that has changed by now is written.
    pub fn settle(&self) -> oneshot::Receiver<()> {
        let (settled, answer) = oneshot::channel();
        self.settling.lock().unwrap_or_else(PoisonError::into_inner).push(settled);
        self.changed.notify_one();
        answer
    }

    fn is_clean(&self) -> bool {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn take(&self) -> Vec<Arc<Handle>> {
        std::mem::take(&mut self.handles.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Until the journal ends.
pub(super) async fn run(groups: Arc<Groups>) {
    let mut left = VecDeque::new();
    loop {
        if left.is_empty() {
            groups.shared.dirty.changed.notified().await;
        }
        let settling =
            std::mem::take(&mut *groups.shared.dirty.settling.lock().unwrap_or_else(PoisonError::into_inner));
        left.extend(groups.shared.dirty.take());
        let (mut handles, mut notes, mut answers, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut note = |class, body: Vec<u8>| match Note::new(class, body) {
            Ok(note) => notes.push(note),
            // What a group is and what changes is bounded: there is none so long.
            Err(error) => tracing::error!(%error, "groups: a record is not written"),
        };
        // What does not go into this call goes into the next one: a group with much to say keeps nobody waiting.
        while bytes < GROUP_NOTE_BYTES
            && let Some(handle) = left.pop_front()
        {
            let Unwritten { records, answers: mut more } = handle.unwritten();
            for record in records {
                let body = record.encode();
                bytes += body.len();
                note(Class::Change, body);
            }
            answers.append(&mut more);
            handles.push(handle);
        }
        // Without groups as well, once there were some: what was written of them is needed no longer then.
        if groups.shared.dirty.rotated.swap(false, Relaxed) && groups.is_used.load(Relaxed) {
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
        for (awaited, member, out) in answers {
            awaited.outlet().hold(member, out.into(), 0);
        }
        // Whatever is left, or was listed meanwhile, may be theirs.
        match left.is_empty() && groups.shared.dirty.is_clean() {
            true => {
                for settled in settling {
                    // Whoever asked may be gone.
                    let _ = settled.send(());
                }
            }
            false => {
                groups.shared.dirty.settling.lock().unwrap_or_else(PoisonError::into_inner).extend(settling)
            }
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
