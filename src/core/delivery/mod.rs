//! Delivery: what was published reaches who asked for it, at once when they keep up, from the journal when not.
//!
//! ```text
//! journal ─ commits ─▶ router ─ chunks ─▶ outlet of a session ─▶ its socket
//!    └──────── catch_up, at the reader's own pace ─────────────────▲
//! ```
//!
//! `patterns.rs` finds who wants a topic, `interest.rs` what a subscription wants and its frames, `router.rs` hands
//! commits out, `outlet.rs` is the queue to a session, `subscription.rs` what a session subscribes to, `catch_up.rs`
//! reads the journal. Always holds: no event is delivered before it is durable (invariant 1); slow means disk
//! (invariant 7). Owner: `broker.rs` makes one, [`super::bus::Bus`] has it.

pub mod catch_up;
pub mod interest;
pub mod outlet;
pub mod patterns;
pub mod router;
pub mod subscription;

use super::journal::Journal;
use super::journal::read::Mark;
use super::limits::CATCH_UP_READS;
use super::refusal::Refusal;
use super::wire::subscribe::From;
use catch_up::Step;
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
    reads: Arc<Semaphore>,
}

impl Delivery {
    /// Delivery of what stands in `journal`, whose commits `router` gets.
    pub fn new(journal: Arc<Journal>, router: Arc<Router>) -> Self {
        Delivery { router, journal, reads: Arc::new(Semaphore::new(CATCH_UP_READS)) }
    }

    /// The last durable event.
    pub fn head(&self) -> u64 {
        self.journal.map().durable_seq()
    }

    /// Where a subscription that begins at `from` begins.
    ///
    /// # Errors
    /// `seq-ahead`; `unknown-id`; `journal-unreadable`.
    pub async fn begin(&self, from: &From) -> Result<Beginning, Refusal> {
        let map = self.journal.map();
        let (first, head) = (map.first_seq(), map.durable_seq());
        let at = |next| Ok(Beginning { next, gap: None });
        match from {
            From::Latest => at(head + 1),
            From::Earliest => at(first),
            From::Seq(seq) if *seq > head + 1 => {
                let reason = format!("the newest event is {head}; 'seq' is {} at most", head + 1);
                Err(Refusal::new("seq-ahead", reason))
            }
            From::Seq(seq) if *seq < first => Ok(Beginning { next: first, gap: Some((*seq, first - 1)) }),
            From::Seq(seq) => at(*seq),
            From::Ts(ts) => {
                let ts = *ts;
                let found = self.look_up(move |journal| journal.seq_at(ts)).await?;
                Ok(Beginning { next: found.seq, gap: found.gap })
            }
            From::Id(id) => {
                let wanted = id.clone();
                match self.look_up(move |journal| journal.seq_after_id(&wanted)).await? {
                    Some(next) => at(next),
                    None => Err(Refusal::new(
                        "unknown-id",
                        format!("the journal has no event of the id '{id:.64}'"),
                    )),
                }
            }
        }
    }

    /// Looks something up in the journal, when its turn comes.
    async fn look_up<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Journal) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let journal = self.journal.clone();
        self.when_free(move || look(&journal)).await.map_err(|error| {
            tracing::error!(%error, "journal: cannot be read to find where a subscription begins");
            Refusal::new("journal-unreadable", format!("the journal cannot be read: {error}"))
        })
    }

    /// Runs what blocks, when its turn comes.
    fn when_free<T: Send + 'static, F: FnOnce() -> io::Result<T> + Send + 'static>(
        &self,
        read: F,
    ) -> impl Future<Output = io::Result<T>> + Send + use<T, F> {
        let reads = self.reads.clone();
        // A task of its own: when its turn comes, whoever waits for it may be waiting for another turn, or for the disk.
        // Dropped with whoever waits.
        let mut task = JoinSet::new();
        task.spawn(async move {
            // Held until the read is done, also when nobody waits for it any more.
            let permit = reads.acquire_owned().await;
            let run = move || {
                let result = read();
                drop(permit);
                result
            };
            tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?
        });
        async move {
            match task.join_next().await {
                Some(result) => result.map_err(io::Error::other)?,
                None => Err(io::ErrorKind::Other.into()),
            }
        }
    }

    /// Reads the journal for `plan`, when its turn comes; `mark` is where the last step ended.
    pub fn read(
        &self,
        plan: Plan,
        mark: Option<Mark>,
    ) -> impl Future<Output = io::Result<Step>> + Send + use<> {
        let journal = self.journal.clone();
        self.when_free(move || {
            let mut reader = journal.reader(plan.at);
            if let Some(mark) = mark {
                reader.resume(mark)?;
            }
            catch_up::read(&mut reader, &plan)
        })
    }
}
