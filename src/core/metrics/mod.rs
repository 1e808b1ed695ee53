//! Metrics: what Prometheus is told of the broker, and whoever asks whether it is well.
//!
//! ```text
//! commits, fdatasyncs ─▶ histograms ─┐
//! groups ─▶ groups.rs ────────────────┤
//! logs' thread ─▶ topics.rs ─────────┼─▶ registry ─▶ text.rs ─▶ GET /metrics
//! counters, standings, journal ──────┘ gauges.rs      state ──▶ GET /healthz, /readyz
//! ```
//!
//! `serve.rs` has the address, `request.rs` what is asked there. Always holds: without `--metrics` nothing is counted
//! here; with it the commit thread counts a commit and not its events, and waits for nobody; whoever asks is answered
//! from what is known, and delays nothing but its own answer (invariant 8); labels are bounded (invariant 6). Owner:
//! `broker.rs`. A metric more is a field of [`Metrics`] and a line in [`Metrics::new`], or, when what it says is known
//! anyway, a line in `gauges.rs`; and a row in docs/OPERATIONS.md.

mod gauges;
pub mod groups;
pub mod request;
pub mod serve;
pub mod text;
pub mod timed_disk;
pub mod topics;

use super::awake::timeout;
use super::bus::Ending;
use super::clock;
use super::delivery::groups::Groups;
use super::events::Recorder;
use super::journal::Journal;
use super::journal::disk::Disk;
use super::journal::writer::Committed;
use super::latest::Latest;
use super::limits::METRICS_TIME;
use super::logs::Logs;
use super::status::{State, VmTable};
use gauges::{Gauges, Published};
use groups::{Grouped, Table};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use text::Form;
use timed_disk::TimedDisk;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::sleep;
use topics::Topics;

/// The bounds of the histograms' buckets: events of a commit …
const EVENTS: [f64; 9] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];
/// … and seconds of an fdatasync.
const SECONDS: [f64; 16] =
    [5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The state root's disk is asked for its free bytes again when nobody is asking; until then the last answer stands.
const UNKNOWN: u64 = u64::MAX;

/// What there is to look at once the broker runs.
pub struct Running {
    /// The journal.
    pub journal: Arc<Journal>,
    /// Its logs.
    pub logs: Arc<Logs>,
    /// The newest event of each key.
    pub latest: Arc<Latest>,
    /// Consumer groups.
    pub groups: Arc<Groups>,
    /// Whether it ends.
    pub ending: watch::Receiver<Ending>,
}

/// What metrics are made of.
struct Sources {
    recorder: Arc<Recorder>,
    vms: Arc<VmTable>,
    root: PathBuf,
    /// Wall time at the start, in milliseconds.
    started_ms: u64,
    running: OnceLock<Running>,
    /// Bytes that may still be written to the state root; [`UNKNOWN`] before the first answer.
    free: AtomicU64,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

impl Sources {
    fn state(&self) -> State {
        match self.running.get() {
            None => State::Starting,
            Some(running) if *running.ending.borrow() != Ending::No => State::Draining,
            Some(running) if running.journal.is_full() => State::DiskFull,
            Some(_) => State::Running,
        }
    }
}

/// All metrics of one broker.
pub struct Metrics {
    /// The topics that have a name.
    pub topics: Arc<Topics>,
    /// The groups that have one.
    pub groups: Arc<Table>,
    commits: Counter,
    commit_events: Histogram,
    syncs: Histogram,
    registry: Registry,
    sources: Arc<Sources>,
    /// The commit thread was asked and has not answered yet.
    probe: Mutex<Option<oneshot::Receiver<()>>>,
    /// Somebody asks the disk.
    asking: Arc<Mutex<()>>,
}

impl Metrics {
    /// Of a broker that is about to start on the state root at `root`.
    pub fn new(recorder: Arc<Recorder>, vms: Arc<VmTable>, root: PathBuf) -> Arc<Self> {
        let (running, free) = (OnceLock::new(), AtomicU64::new(UNKNOWN));
        let sources = Sources { recorder, vms, root, started_ms: clock::wall_ms(), running, free };
        let (topics, sources) = (Arc::<Topics>::default(), Arc::new(sources));
        let (commits, commit_events, syncs) =
            (Counter::default(), Histogram::new(EVENTS), Histogram::new(SECONDS));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Published(topics.clone())));
        let groups = Table::new(&topics);
        registry.register_collector(Box::new(Grouped(groups.clone(), sources.clone())));
        registry.register("castra_commits", "Commits of the journal, an fdatasync each", commits.clone());
        registry.register("castra_commit_events", "Events of a commit", commit_events.clone());
        registry.register("castra_fsync_seconds", "Time of an fdatasync of the journal", syncs.clone());
        registry.register_collector(Box::new(Gauges(sources.clone())));
        let (probe, asking) = (Mutex::default(), Arc::default());
        Arc::new(Metrics { topics, groups, commits, commit_events, syncs, registry, sources, probe, asking })
    }

    /// The journal's disk, whose syncs are timed from here on.
    pub fn timed(&self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(TimedDisk::new(disk, self.syncs.clone()))
    }

    /// The doors are open.
    pub fn runs(&self, running: Running) {
        // It begins to run once.
        let _ = self.sources.running.set(running);
    }

    /// Counts a commit, on the thread that made it.
    pub fn committed(&self, commit: &Committed) {
        self.commits.inc();
        // Seqs are dense.
        let events = commit.first_seq().zip(commit.last_seq()).map_or(0, |(first, last)| last - first + 1);
        self.commit_events.observe(events as f64);
    }

    /// All of them.
    pub async fn text(&self, form: Form) -> String {
        self.look_at_disk().await;
        let mut text = String::with_capacity(16 * 1024);
        // Into a string: cannot fail.
        let _ = encode(&mut text, &self.registry);
        match form {
            Form::OpenMetrics => text,
            Form::Text => text::prometheus(&text),
        }
    }

    /// Asks the disk for its free bytes, unless it still owes an answer.
    async fn look_at_disk(&self) {
        let Ok(asking) = self.asking.clone().try_lock_owned() else { return };
        let sources = self.sources.clone();
        let look = tokio::task::spawn_blocking(move || {
            let stat = nix::sys::statvfs::statvfs(&sources.root);
            let free = stat.map_or(UNKNOWN, |s| s.blocks_available() * s.fragment_size());
            sources.free.store(free, Relaxed);
            drop(asking);
        });
        let _ = timeout(METRICS_TIME / 5, look).await;
    }

    /// What the broker says of itself, and whether it takes publishes.
    pub fn ready(&self) -> (bool, &'static str) {
        let state = self.sources.state();
        (state == State::Running, state.as_str())
    }

    /// Whether the process serves: the commit thread comes round, or the logs that it waits for come on. There is none
    /// to ask during a start.
    pub async fn healthy(&self) -> Result<&'static str, &'static str> {
        let Some(Running { journal, logs, .. }) = self.sources.running.get() else { return Ok("starting") };
        let seen = logs.seq();
        let asked = async {
            // One question at a time, however many want to know: one that is not answered is not asked again.
            let mut probe = self.probe.lock().await;
            let answer = probe.get_or_insert_with(|| journal.probe()).await;
            *probe = None;
            answer
        };
        let come_on = async {
            while logs.seq() == seen {
                sleep(METRICS_TIME / 50).await;
            }
        };
        tokio::pin!(asked);
        match timeout(METRICS_TIME / 5, &mut asked).await {
            Ok(Ok(())) => return Ok("ok"),
            Ok(Err(_)) => return Err("the journal has ended"),
            Err(_) => {}
        }
        tokio::select! {
            answer = asked => answer.map(|()| "ok").map_err(|_| "the journal has ended"),
            () = come_on => Ok("ok, and the logs are behind"),
            () = sleep(METRICS_TIME / 2) => Err("the commit thread does not come round: is the disk stuck?"),
        }
    }
}
