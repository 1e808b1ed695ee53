//! The bus: all that a door and a session see of the broker.
//!
//! Always holds: what comes in through [`Bus::publish`] is bounded by a byte permit held until its outcome
//! (invariant 6). Owner: `broker.rs` makes one and shares it.

use super::delivery::Delivery;
use super::event::Batch;
use super::events::Recorder;
use super::identity::{Role, VmName};
use super::journal::{Journal, Outcome};
use super::limits::Limits;
use super::logs::Logs;
use super::refusal::Refusal;
use super::status::{Forgotten, VmTable};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::{Semaphore, oneshot, watch};

/// Bytes per permit of [`Bus::unacked`], so that 64 MiB and more fit a semaphore of 32 bits with ease.
const PERMIT_BYTES: usize = 1024;

/// Why sessions must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Not at all.
    No,
    /// The broker shuts down.
    Draining,
    /// The disk failed.
    JournalFailed,
}

/// What doors and sessions share.
pub struct Bus {
    /// The bounds in force.
    pub limits: Limits,
    /// Presence: who was heard of when.
    pub vms: Arc<VmTable>,
    /// Where signals go, and are counted.
    pub recorder: Arc<Recorder>,
    /// The copies that a host's publisher waits for.
    pub logs: Arc<Logs>,
    /// Places for sessions.
    pub sessions: Arc<Semaphore>,
    /// Tells every connection when it has to end.
    pub ending: watch::Receiver<Ending>,
    /// The way to whoever subscribes.
    pub delivery: Arc<Delivery>,
    journal: Arc<Journal>,
    unacked: Arc<Semaphore>,
    session_ids: AtomicU64,
}

impl Bus {
    /// A bus on a running journal.
    pub fn new(
        limits: Limits,
        vms: Arc<VmTable>,
        recorder: Arc<Recorder>,
        logs: Arc<Logs>,
        journal: Arc<Journal>,
        delivery: Arc<Delivery>,
        ending: watch::Receiver<Ending>,
    ) -> Self {
        Bus {
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            unacked: Arc::new(Semaphore::new(limits.unacked_bytes_in_all / PERMIT_BYTES)),
            session_ids: AtomicU64::new(0),
            limits,
            vms,
            recorder,
            logs,
            ending,
            delivery,
            journal,
        }
    }

    /// Hands a batch to the journal. Waits for a place among the bytes under way; what comes back gets the
    /// outcome once the batch is durable or refused.
    pub async fn publish(&self, batch: Batch) -> oneshot::Receiver<Outcome> {
        let permits = u32::try_from(batch.bytes().div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        match self.unacked.clone().acquire_many_owned(permits).await {
            Ok(permit) => self.journal.submit(batch, permit),
            // Never closed; a receiver without a sender says that the outcome is unknown.
            Err(_) => oneshot::channel().1,
        }
    }

    /// Remembers a VM no longer, when the host says so and it has no session. Its logs stay.
    ///
    /// # Errors
    /// `host-only`, `unknown-vm`, `vm-has-sessions`.
    pub fn forget(&self, role: Role, name: &VmName) -> Result<(), Refusal> {
        if role != Role::Host {
            return Err(Refusal::new("host-only", "only the host may have a VM forgotten"));
        }
        match self.vms.forget(name) {
            Forgotten::Done => {
                tracing::info!(vm = %name, "status: forgotten, as the host wished");
                Ok(())
            }
            Forgotten::Unknown => Err(Refusal::new("unknown-vm", format!("no VM {name} is remembered"))),
            Forgotten::HasSessions => {
                let reason = format!("{name} has a session; end it first, or it would come back at once");
                Err(Refusal::new("vm-has-sessions", reason))
            }
        }
    }

    /// A number for the next session, for records; it is no secret.
    pub fn next_session_id(&self) -> u64 {
        self.session_ids.fetch_add(1, Relaxed) + 1
    }
}
