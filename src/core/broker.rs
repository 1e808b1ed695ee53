//! The composition root: opens everything in order, runs it, and drains it.
//!
//! ```text
//! starting: lock ─▶ status ─▶ journal recovered ─▶ logs up to date ─▶ doors ─▶ running ⇄ disk-full
//! running ──SIGTERM, SIGINT──▶ draining: doors shut, sessions settle, journal and logs end ─▶ Ok
//! running ──the disk failed──▶ sessions are told, nothing more is written ─▶ JournalFailed
//! ```
//!
//! Always holds: no door listens before recovery and the logs are done (invariant 2); after a failed fsync
//! the process ends (invariant 3). Owner: `app/broker.rs` calls [`run`].

use super::awake::{self, Instant, timeout, timeout_at};
use super::bus::{Bus, Ending};
use super::config::topics::{Keep, TopicSetting};
use super::delivery::Delivery;
use super::delivery::groups::figures::asks_without;
use super::delivery::groups::notes::Replay;
use super::delivery::groups::{Dirty, Groups};
use super::delivery::router::Router;
use super::descriptors;
use super::door::listen::{Doors, Handed, ListenError, Ways, named};
use super::door::{Lobby, unix};
use super::events::Recorder;
use super::journal::disk::{Disk, RealDisk};
use super::journal::writer::Committed;
use super::journal::{Damage, Journal, OpenError, Opened, Reached};
use super::latest::Latest;
use super::latest::compaction::Compaction;
use super::latest::snapshot::Snapshots;
use super::limits::{Limits, METRICS_CONNECTIONS};
use super::log_view::{LogView, LogsError};
use super::logs::Logs;
use super::metrics::{self, Metrics};
use super::policy::Policy;
use super::retention::{Retention, Rule, sweep};
use super::room;
use super::service::{self, Supervisor};
use super::state_root::{StateRoot, StateRootError};
use super::status::{State, VmTable};
use super::status_keeper::StatusKeeper;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The threads that [`run`] and its [`Recorder`] start, beside those of the runtime: `castra-events`, `-status`, `-logs`,
/// `-latest`, `-router`, `-commit`, `-keeper` and `-check`.
pub const THREADS: usize = 8;

/// What a broker is told.
#[derive(Debug)]
pub struct Config {
    /// Where everything is.
    pub root: StateRoot,
    /// TCP addresses to listen on; loopback only.
    pub tcp: Vec<SocketAddr>,
    /// Sockets for guests, beside the host's own.
    pub unix: Vec<PathBuf>,
    /// The port for guests that come over vsock.
    pub vsock: Option<u32>,
    /// Where metrics are served; loopback only where trust is open.
    pub metrics: Option<SocketAddr>,
    /// Who may do what. A new one takes effect at once, also for sessions that are open.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Sockets that are bound already.
    pub handed: Handed,
    /// What is said of topics.
    pub topics: Vec<TopicSetting>,
    /// The bounds.
    pub limits: Limits,
}

/// Why a broker did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The state root cannot be used.
    #[error(transparent)]
    StateRoot(#[from] StateRootError),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// The logs cannot be brought up to date.
    #[error(transparent)]
    Logs(#[from] LogsError),
    /// A door cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A file or thread that the broker needs cannot be had.
    #[error("{what}: {error}")]
    Io {
        /// Which.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The system lets this process write no files of the size that they have.
    #[error(
        "this process may write files of {allowed} bytes at the most (RLIMIT_FSIZE), and its files have {needed}: {}",
        room::RAISE
    )]
    FileLimit {
        /// By the system.
        allowed: u64,
        /// The size of a segment, or of a log.
        needed: u64,
    },
    /// The disk failed while the broker ran.
    #[error(
        "the journal could not be made durable: {0}. Nothing was retried: look at the disk, then start the broker again"
    )]
    JournalFailed(String),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BrokerError {
    move |error| BrokerError::Io { what, error }
}

impl Config {
    /// What can be known to be wrong before anything is made.
    ///
    /// # Errors
    /// The path of a socket is too long; files may not have the size that they have.
    pub fn check(&self) -> Result<(), BrokerError> {
        let (allowed, needed) = (room::largest_file(), self.limits.segment_bytes.max(self.limits.log_bytes));
        if allowed < needed {
            return Err(BrokerError::FileLimit { allowed, needed });
        }
        for path in self.unix.iter().chain([&self.root.socket()]) {
            let address = format!("unix:{}", path.display());
            unix::check_length(path).map_err(|error| ListenError::new(address, error))?;
        }
        Ok(())
    }
}

/// Runs a broker on a state root that the caller has locked, until `shutdown` resolves; its threads may
/// outlive the call, so the lock stays until the process is gone.
///
/// # Errors
/// [`BrokerError`]; after an orderly end there is none.
pub async fn run(
    config: Config,
    recorder: Arc<Recorder>,
    journal_id: u128,
    supervisor: Arc<dyn Supervisor>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), BrokerError> {
    let _watch = awake::watch();
    let mut config = config;
    if config.metrics.is_some() {
        // A listener, and who asks there.
        config.limits.reserved_descriptors += METRICS_CONNECTIONS as u64 + 1;
    }
    let places = descriptors::share(&mut config.limits);
    let Config { root, limits, tcp, unix, vsock, metrics, policy, handed, topics } = &mut config;
    let retention = Arc::new(Retention::new(rules(topics)));
    let vms = Arc::new(VmTable::new(limits.vms));
    let status = StatusKeeper::start(root, vms.clone(), recorder.clone(), supervisor.clone());
    let status = status.map_err(failed("status"))?;
    // From here on, so that whoever waits for the doors sees the start.
    let trust = policy.borrow().trust;
    let (metrics, metrics_at) = match *metrics {
        None => (None, None),
        Some(addr) => {
            let (listener, at) = metrics::serve::bind(addr, trust).await?;
            tracing::info!(at, "metrics: served");
            let metrics = Metrics::new(recorder.clone(), vms.clone(), root.path().to_owned());
            tokio::spawn(metrics::serve::serve(listener, metrics.clone(), limits.clone()));
            (Some(metrics), Some(at))
        }
    };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(root.journal()));
    let disk = metrics.iter().fold(disk, |disk, metrics| metrics.timed(disk));

    // Until the doors open nobody was told anything: a shutdown needs no drain.
    let recovery = {
        let (root, limits, vms, status) = (root.clone(), limits.clone(), vms.clone(), status.clone());
        tokio::task::spawn_blocking(move || recover(disk, &root, &limits, journal_id, vms, &status))
    };
    tokio::pin!(shutdown);
    let (opened, mut view, replay) = tokio::select! {
        recovered = recovery => recovered.map_err(|e| failed("recovery")(io::Error::other(e)))??,
        () = &mut shutdown => {
            status.end();
            return Ok(());
        }
    };
    view.count_changes(recorder.clone());
    if let Some(metrics) = &metrics {
        view.count(metrics.topics.tally(opened.map().durable_seq()));
    }
    let logs = Logs::start(view, limits, opened.readers()).map_err(failed("logs"))?;
    let compacted = topics.iter().filter(|topic| topic.compaction).map(|topic| topic.topic.clone());
    let (map, readers) = (opened.map().clone(), opened.readers());
    let latest =
        Latest::start(root.latest(), Compaction::new(compacted), limits, map, readers, replay.is_any)
            .map_err(failed("latest"))?;
    let (ending, ended) = watch::channel(Ending::No);
    let ending = Arc::new(ending);
    let failure = Arc::new(Mutex::new(None::<String>));
    let on_failure = {
        let (ending, failure) = (ending.clone(), failure.clone());
        move |error: String| {
            tracing::error!(%error, "journal: not durable; the broker ends");
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            ending.send_replace(Ending::JournalFailed);
        }
    };
    let dirty = Arc::<Dirty>::default();
    let router =
        Router::start(opened.map().durable_seq() + 1, on_failure.clone()).map_err(failed("router"))?;
    let (owners, without) = asks_without(vms.clone());
    let (journal, known) = {
        let logs = logs.clone();
        let reached = Reached { views: latest.floor(logs.floor()), useless: retention.useless(), without };
        let view = latest.clone();
        let commits = router.clone();
        let metrics = metrics.clone();
        let committed = move |commit: Arc<Committed>| {
            if let Some(metrics) = &metrics {
                metrics.committed(&commit);
            }
            commits.push(commit.clone());
            view.push(&commit);
            logs.push(commit);
        };
        let known = opened.report.damage.clone();
        let rotated = {
            let dirty = dirty.clone();
            move || dirty.rotated()
        };
        let journal =
            opened.start(limits, committed, rotated, on_failure, reached).map_err(failed("journal"))?;
        (Arc::new(journal), known)
    };
    status.attach(journal.clone(), logs.clone(), latest.clone());

    let delivery = Arc::new(Delivery::new(
        limits,
        journal.clone(),
        router.clone(),
        retention.clone(),
        latest.compaction().clone(),
    ));
    tokio::spawn(sweep::run(retention, journal.clone()));
    let counts = metrics.as_ref().map(|metrics| metrics.groups.clone());
    let views = (latest.clone(), counts);
    let groups = Groups::start(limits, delivery.clone(), journal.clone(), replay, dirty, views);
    let _ = owners.set(Arc::downgrade(&groups));
    status.attach_groups(groups.clone());
    let snapshots = Snapshots::new(latest.clone(), journal.clone());
    tokio::spawn(snapshots.clone().schedule(std::mem::take(topics)));
    let bus = Bus::new(
        limits.clone(),
        vms,
        recorder,
        logs.clone(),
        journal.clone(),
        (delivery, groups.clone(), latest.clone(), snapshots),
        (ended.clone(), policy.clone()),
    );
    let (alive, mut all_gone) = mpsc::channel(1);
    let lobby = Lobby::new(Arc::new(bus), places, alive);
    let ways = Ways { tcp, unix, vsock: *vsock, policy: policy.clone() };
    let doors = Doors::open(ways, &root.socket(), std::mem::take(handed)).await?;
    let own: Vec<String> = doors.listeners.iter().cloned().chain(metrics_at).collect();
    let bound = doors.bound.clone();
    let listeners = |policy: &Policy| [own.clone(), named(policy)].concat();
    doors.serve(&lobby);
    drop(lobby);
    if let Some(metrics) = metrics {
        let (journal, logs, latest, groups) = (journal.clone(), logs.clone(), latest.clone(), groups.clone());
        metrics.runs(metrics::Running { journal, logs, latest, groups, ending: ended.clone() });
    }
    let said = listeners(&policy.borrow_and_update());
    status.say(State::Running, &said);
    tracing::info!(
        listeners = said.join(" "),
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        "broker: running"
    );
    supervisor.ready(&said);
    tokio::spawn(service::feed(journal.clone(), logs.clone(), supervisor));
    check_sealed(&journal, known, &status, ended.clone());

    let mut ended = ended;
    loop {
        tokio::select! {
            () = &mut shutdown => {
                groups.drain();
                ending.send_replace(Ending::Draining);
            }
            _ = ended.wait_for(|e| *e != Ending::No) => {}
            Ok(()) = policy.changed() => {
                status.say(State::Running, &listeners(&policy.borrow_and_update()));
                continue;
            }
        }
        break;
    }
    status.say(State::Draining, &listeners(&policy.borrow()));
    tracing::info!("broker: draining");
    // The doors are shut: somebody else may have these names from here on.
    for socket in &bound {
        let _ = std::fs::remove_file(socket);
    }
    // Sessions get the first half, so that the views have the other; what is left is for the status.
    let until = Instant::now() + limits.drain_time.mul_f32(0.9);
    if timeout(limits.drain_time / 2, all_gone.recv()).await.is_err() {
        tracing::warn!("broker: some sessions did not end in time and are cut off");
    }
    if timeout(limits.drain_time / 10, groups.settle()).await.is_err() {
        tracing::warn!("broker: not all that members of groups said is written; those events come again");
    }
    let end = tokio::task::spawn_blocking(move || {
        journal.stop();
        router.stop();
        logs.stop();
        latest.stop();
    });
    if timeout_at(until, end).await.is_err() {
        tracing::warn!("broker: the logs did not finish in time; the next start writes them on");
    }
    status.end();
    let failure = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    failure.map_or(Ok(()), |error| Err(BrokerError::JournalFailed(error)))
}

/// The rules of retention, in the order of the file.
fn rules(topics: &[TopicSetting]) -> Vec<Rule> {
    let rule = |topic: &TopicSetting| {
        let Keep { age, bytes, events } = topic.retention;
        let age_ms = age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Rule { topic: topic.topic.clone(), age_ms, bytes, count: events }
    };
    // One without a bound is one too: what it matches no other takes away.
    topics.iter().map(rule).collect()
}

/// Opens the journal and brings the logs up to date. Blocks.
fn recover(
    disk: Arc<dyn Disk>,
    root: &StateRoot,
    limits: &Limits,
    journal_id: u128,
    vms: Arc<VmTable>,
    status: &StatusKeeper,
) -> Result<(Opened, LogView, Replay), BrokerError> {
    let opened = Opened::open(disk, journal_id, limits.segment_bytes)?;
    let (map, report) = (opened.map().clone(), &opened.report);
    let reach = (map.first_seq(), map.durable_seq());
    let (rewritten, damage) = (report.rewritten, report.damage.len());
    tracing::info!(first_seq = reach.0, head_seq = reach.1, rewritten, damage, "journal: open");
    report.damage.iter().for_each(|damage| status.damaged(&damage.to_string()));
    let view = LogView::open(root, limits, vms, reach, &|seq| opened.reader(seq))?;
    let mut replay = Replay::default();
    let read = opened.notes(|class, body| replay.take(class, body)).map_err(failed("groups"))?;
    read.iter().for_each(|damage| status.damaged(&damage.to_string()));
    Ok((opened, view, replay))
}

/// Reads the sealed segments once, in the background, and says what is damaged and not `known`.
fn check_sealed(
    journal: &Arc<Journal>,
    known: Vec<Damage>,
    status: &Arc<StatusKeeper>,
    ended: watch::Receiver<Ending>,
) {
    let (journal, status) = (journal.clone(), status.clone());
    let check = move || {
        // One segment, then a rest: half of one core at the most, and half of the disk.
        let mut since = std::time::Instant::now();
        let pause = || {
            std::thread::sleep(since.elapsed().min(Duration::from_secs(1)));
            since = std::time::Instant::now();
            *ended.borrow() == Ending::No
        };
        journal.check_sealed(pause, |damage| {
            if !known.contains(&damage) {
                status.damaged(&damage.to_string());
            }
        });
    };
    if let Err(error) = std::thread::Builder::new().name("castra-check".into()).spawn(check) {
        tracing::warn!(%error, "journal: sealed segments are not checked");
    }
}
