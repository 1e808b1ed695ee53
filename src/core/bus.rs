//! The bus: all that a door and a session see of the broker.
//!
//! Always holds: what comes in through [`Bus::publish`] is bounded by a byte permit held until its outcome
//! (invariant 6); sessions that keep to [`Bus::window_bytes`] leave room for whoever comes. Owner: `broker.rs` makes one and shares it.

use super::delivery::Delivery;
use super::delivery::groups::Groups;
use super::event::Batch;
use super::events::Recorder;
use super::identity::{Role, VmName};
use super::instances::Instances;
use super::journal::{Journal, Outcome};
use super::latest::Latest;
use super::latest::snapshot::Snapshots;
use super::limits::{Limits, WINDOW_SHARE};
use super::logs::Logs;
use super::policy::Policy;
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
    /// Programs that have one session at a time.
    pub instances: Arc<Instances>,
    /// Places for sessions.
    pub sessions: Arc<Semaphore>,
    /// Tells every connection when it has to end.
    pub ending: watch::Receiver<Ending>,
    /// Who may do what; a new one when the operator says so.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// The way to whoever subscribes.
    pub delivery: Arc<Delivery>,
    /// Those who share what must be done.
    pub groups: Arc<Groups>,
    /// The newest event of each key.
    pub latest: Arc<Latest>,
    /// The same, published.
    pub snapshots: Arc<Snapshots>,
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
        (delivery, groups, latest, snapshots): (Arc<Delivery>, Arc<Groups>, Arc<Latest>, Arc<Snapshots>),
        (ending, policy): (watch::Receiver<Ending>, watch::Receiver<Arc<Policy>>),
    ) -> Self {
        Bus {
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            unacked: Arc::new(Semaphore::new(limits.unacked_bytes_in_all / PERMIT_BYTES)),
            session_ids: AtomicU64::new(0),
            instances: Arc::default(),
            limits,
            vms,
            recorder,
            logs,
            ending,
            policy,
            delivery,
            groups,
            latest,
            snapshots,
            journal,
        }
    }

    /// Hands a batch of the session `lane` to the journal. Waits for a place among the bytes under way; what
    /// comes back gets the outcome once the batch is durable or refused. A session's batches keep their order,
    /// and its first is in the next commit that begins, whatever other sessions have waiting.
    pub async fn publish(&self, lane: u64, batch: Batch) -> oneshot::Receiver<Outcome> {
        let permits = u32::try_from(batch.bytes().div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        match self.unacked.clone().acquire_many_owned(permits).await {
            Ok(permit) => self.journal.submit(lane, batch, permit),
            // Never closed; a receiver without a sender says that the outcome is unknown.
            Err(_) => oneshot::channel().1,
        }
    }

    /// How many bytes a session may have under way at this moment, beside its own limit: it takes no further frame
    /// while it has as many. At least 1, so that a session with nothing under way always gets its next frame.
    ///
    /// It is a share of what is free of the bytes of all, so it shrinks as others take theirs: N sessions that
    /// send all they can settle at N / (N + [`WINDOW_SHARE`]) of the whole, the same for each, and the rest is free
    /// for whoever sends little. 64 of them that come while no commit goes through leave 6 MiB of 64.
    pub fn window_bytes(&self) -> usize {
        window(self.unacked.available_permits() * PERMIT_BYTES)
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

fn window(free: usize) -> usize {
    (free / WINDOW_SHARE).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However many flood, in whatever order they come and with frames of whatever size, while nothing gets
        /// through: there is room left, and none has much more than its share.
        #[test]
        fn a_flood_leaves_room(
            sessions in 1usize..=64,
            turns in proptest::collection::vec((any::<proptest::sample::Index>(), 1usize..=64 << 10), 0..3000),
        ) {
            const WHOLE: usize = 64 << 20;
            const FRAME: usize = 64 << 10;
            let (mut free, mut under_way) = (WHOLE, vec![0; sessions]);
            let mut take = |who: usize, frame: usize| {
                let may = under_way[who] < window(free);
                if may {
                    free -= frame;
                    under_way[who] += frame;
                }
                may
            };
            for (who, frame) in turns {
                take(who.index(sessions), frame);
            }
            for who in 0..sessions {
                while take(who, FRAME) {}
            }
            prop_assert!(free >= 6 << 20, "{free}");
            prop_assert!(under_way.iter().all(|own| (window(free)..=WHOLE / WINDOW_SHARE + FRAME).contains(own)));
        }
    }

    #[test]
    fn a_session_with_nothing_under_way_gets_its_next_frame() {
        assert_eq!((window(64 << 20), window(32), window(31), window(0)), (2 << 20, 1, 1, 1));
    }
}
