//! Delivery: what was published reaches who asked for it, at once when they keep up, from the journal when not.
//!
//! ```text
//! journal ─ commits ─▶ router ─ chunks ─▶ outlet of a session ─▶ its socket
//!    └──────── catch_up, at the reader's own pace ─────────────────▲
//! ```
//!
//! `patterns.rs` finds who wants a topic, `interest.rs` what a subscription wants and its frames, `router.rs` hands
//! commits out to whom `routes.rs` says, `outlet.rs` is the queue to a session, `subscription.rs` what a session subscribes to, `catch_up.rs`
//! reads the journal. Always holds: no event is delivered before it is durable (invariant 1); slow means disk
//! (invariant 7): few read at once, and whoever looks for where to begin is in nobody's way but of others who do.
//! Owner: `broker.rs` makes one, [`super::bus::Bus`] has it.

pub mod catch_up;
pub mod group;
pub mod groups;
pub mod interest;
pub mod outlet;
pub mod patterns;
pub mod redelivery;
pub mod router;
mod routes;
pub mod subscription;

use super::identity::VmName;
use super::journal::Journal;
use super::journal::read::Mark;
use super::latest::compaction::Compaction;
use super::limits::{CATCH_UP_READS, GROUPS_QUEUE_BYTES, Limits};
use super::refusal::Refusal;
use super::retention::Retention;
use super::wire::subscribe::From;
use catch_up::Step;
use outlet::{Outlet, Room};
use router::Router;
use std::future::Future;
use std::io;
use std::sync::Arc;
use subscription::Plan;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Where a subscription begins, and what was asked for before that and is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The first seq.
    pub next: u64,
    /// First and last seq that are gone.
    pub gap: Option<(u64, u64)>,
}

/// Everything that sessions need to be sent events.
pub struct Delivery {
    /// Who is sent what, as it is committed.
    pub router: Arc<Router>,
    journal: Arc<Journal>,
    /// What is passed over in reading.
    pub retention: Arc<Retention>,
    /// What has a state.
    compaction: Arc<Compaction>,
    room: Arc<Room>,
    /// That of groups, so that one of which nobody takes anything is in nobody's way.
    groups_room: Arc<Room>,
    reads: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

impl Delivery {
    /// Delivery of what stands in `journal`, whose commits `router` gets, and is of use.
    pub fn new(
        limits: &Limits,
        journal: Arc<Journal>,
        router: Arc<Router>,
        retention: Arc<Retention>,
        compaction: Compaction,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Delivery {
            router,
            journal,
            retention,
            compaction: Arc::new(compaction),
            room: Room::new(limits.queue_bytes_in_all),
            groups_room: Room::new(GROUPS_QUEUE_BYTES),
            reads: Arc::new(Semaphore::new((cores / 2).clamp(1, CATCH_UP_READS))),
            lookups: Arc::new(Semaphore::new(1)),
        }
    }

    /// A queue for one session.
    pub fn outlet(&self, limits: &Limits) -> Arc<Outlet> {
        Arc::new(Outlet::new(limits.queue_events, limits.queue_bytes, self.room.clone()))
    }

    /// A queue for one group.
    pub fn groups_outlet(&self, limits: &Limits) -> Arc<Outlet> {
        Arc::new(Outlet::new(limits.queue_events, limits.queue_bytes, self.groups_room.clone()))
    }

    /// Where a subscription that begins at `from` begins; `None` when that has to be looked up.
    ///
    /// # Errors
    /// `seq-ahead`.
    pub fn begin(&self, from: &From) -> Result<Option<Beginning>, Refusal> {
        let map = self.journal.map();
        let (first, head) = (map.first_seq(), map.durable_seq());
        let (next, gap) = match from {
            From::Latest => (head + 1, None),
            From::Earliest => (first, None),
            From::Seq(seq) if *seq > head + 1 => {
                let reason = format!("the newest event is {head}; 'seq' is {} at most", head + 1);
                return Err(Refusal::new("seq-ahead", reason));
            }
            From::Seq(seq) if *seq < first => (first, Some((*seq, first - 1))),
            From::Seq(seq) => (*seq, None),
            From::Ts(_) | From::Id(..) | From::Compacted(_) | From::State { .. } => return Ok(None),
        };
        Ok(Some(Beginning { next, gap }))
    }

    /// Looks for where a subscription begins that begins at a time or behind an id, when its turn comes: one after the
    /// other, for that may read the journal.
    ///
    /// # Errors
    /// `unknown-id`, `journal-unreadable`, and those of [`Delivery::begin`].
    pub fn look_up(&self, from: From) -> impl Future<Output = Result<Beginning, Refusal>> + Send + use<> {
        let journal = self.journal.clone();
        let wanted = from.clone();
        let found = when_free(&self.lookups, move || match &wanted {
            From::Ts(ts) => journal.seq_at(*ts).map(|at| Some(Beginning { next: at.seq, gap: at.gap })),
            From::Id(id, vm) => {
                let next = journal.seq_after_id(id, vm.as_ref().map(VmName::as_str))?;
                // The table of ids may know one whose event is gone, and more behind it.
                let first = journal.map().first_seq();
                let gap = |next| (next < first).then(|| (next, first - 1));
                Ok(next.map(|next| Beginning { next: next.max(first), gap: gap(next) }))
            }
            From::Latest | From::Earliest | From::Seq(_) | From::Compacted(_) | From::State { .. } => {
                Ok(None)
            }
        });
        async move {
            match found.await {
                Ok(Some(beginning)) => Ok(beginning),
                Ok(None) => {
                    let From::Id(id, vm) = from else {
                        return Err(Refusal::new("unknown-id", "no such event"));
                    };
                    let of = vm.map_or_else(String::new, |vm| format!(" of {:.64}", vm.as_str()));
                    Err(Refusal::new(
                        "unknown-id",
                        format!("the journal has no event{of} with the id '{id:.64}'"),
                    ))
                }
                Err(error) => {
                    tracing::error!(%error, "journal: cannot be read to find where a subscription begins");
                    Err(Refusal::new("journal-unreadable", format!("the journal cannot be read: {error}")))
                }
            }
        }
    }

    /// Reads the journal for `plan`, when its turn comes; `mark` is where the last step ended.
    pub fn read(
        &self,
        plan: Plan,
        mark: Option<Mark>,
    ) -> impl Future<Output = io::Result<Step>> + Send + use<> {
        let (journal, retention) = (self.journal.clone(), self.retention.clone());
        let compaction = self.compaction.clone();
        when_free(&self.reads, move || {
            let mut reader = journal.reader(plan.at);
            if let Some(mark) = mark {
                reader.resume(mark)?;
            }
            catch_up::read(&mut reader, &plan, &retention, &compaction, &journal.ages())
        })
    }
}

/// Runs what blocks, when one of `places` is free. It stands in line by itself, whether it is polled or not, so that
/// nobody who waits for something else keeps a place; dropped, it leaves the line.
pub(in crate::core) fn when_free<T: Send + 'static, F: FnOnce() -> io::Result<T> + Send + 'static>(
    places: &Arc<Semaphore>,
    read: F,
) -> impl Future<Output = io::Result<T>> + Send + use<T, F> {
    let (places, mut task) = (places.clone(), JoinSet::new());
    task.spawn(async move {
        let place = places.acquire_owned().await;
        let run = move || {
            let result = read();
            drop(place);
            result
        };
        tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?
    });
    async move {
        match task.join_next().await {
            Some(done) => done.map_err(io::Error::other)?,
            None => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}
