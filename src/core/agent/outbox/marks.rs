//! What the broker said of events, until it is safe on the disk.
//!
//! Always holds: when events are handed out, at most [`UNSYNCED`] marks are in memory alone or committed and not synced,
//! so that the broker knows all that comes again after a power cut; where they cannot be kept nothing is handed out.
//! Owner: `writer.rs`.

use super::Sent;
use super::writer::Writer;

/// Marks (sent, failed) that a power cut may take, at the most when more is handed out. With what is under way then, 128,
/// fewer come again than the 256 ids of a VM that the broker remembers.
pub(super) const UNSYNCED: usize = 64;

/// What the broker said of an event and is not written down yet.
pub(super) enum Fate {
    Sent(Sent),
    Failed(String, String),
}

impl Writer {
    /// Writes down what is in memory alone.
    pub(super) fn write_owed(&mut self) {
        if self.owed.is_empty() || self.store.is_none() {
            return;
        }
        let owed = std::mem::take(&mut self.owed);
        let written = self.transact(false, |store, bounds, gone| {
            owed.iter().try_for_each(|(n, fate)| match fate {
                Fate::Sent(ack) => store.sent(&[*ack]),
                Fate::Failed(code, reason) => store.failed(*n, code, reason, bounds, gone),
            })
        });
        match written {
            Ok(()) => self.marked(owed.len(), false),
            Err(_) => self.owed = owed,
        }
    }

    /// Whether more may be handed out: what a power cut would take of the marks is little, or is made so. `anew`: also
    /// while it is ill.
    pub(super) fn may_hand_out(&mut self, anew: bool) -> bool {
        if self.owed.len() + self.unsynced > UNSYNCED && (anew || self.ill.is_none()) {
            self.write_owed();
            // A commit that writes nothing syncs nothing.
            if self.unsynced > UNSYNCED {
                let _ = self.transact(true, |store, _, _| store.save_clock());
            }
        }
        let may = self.owed.len() + self.unsynced <= UNSYNCED;
        if !may && !self.is_starved {
            let why = self.ill.as_ref().map_or_else(String::new, |ill| format!(": {ill}"));
            tracing::warn!(
                "what the broker took cannot be written down; nothing more is sent until it can be, so that it is \
                 not sent twice{why}"
            );
        }
        self.is_starved = !may;
        may
    }

    /// So many marks were committed.
    pub(super) fn marked(&mut self, marks: usize, durable: bool) {
        if !durable {
            self.unsynced += marks;
        }
    }
}
