//! A broker without a process: a journal on the simulated disk, its router, real sessions behind a real door, and
//! pipes instead of sockets.
//!
//!     Peer ═ pipe of so many bytes ═ door ─ session ─┬─▶ journal (threads) ─▶ record, then router ─┐
//!                                                    └◀──────────── outlet ◀───────────────────────┘
//!
//! The clock stands still unless a test moves it ([`run`]); the journal's threads are real. Always holds: `record` has
//! every commit before the router does; a full pipe is a socket that takes nothing.

use crate::sim::{Call, Lies, Rng, SimDisk};
use castra::core::bus::{Bus, Ending};
use castra::core::delivery::Delivery;
use castra::core::delivery::groups::notes::Replay;
use castra::core::delivery::groups::{Dirty, Groups};
use castra::core::delivery::router::Router;
use castra::core::door::{Connection, Lobby};
use castra::core::event::Event;
use castra::core::events::Recorder;
use castra::core::identity::{Origin, Peer as Whose};
use castra::core::journal::read::Read;
use castra::core::journal::writer::Committed;
use castra::core::journal::{Journal, Opened, Reached};
use castra::core::latest::Latest;
use castra::core::latest::compaction::Compaction;
use castra::core::latest::snapshot::Snapshots;
use castra::core::limits::Limits;
use castra::core::log_view::LogView;
use castra::core::logs::Logs;
use castra::core::policy::Policy;
use castra::core::state_root::StateRoot;
use castra::core::status::VmTable;
use serde_json::Value;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{mpsc, watch};

/// How long a test may take by the real clock before it is said to hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who hands commits to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handing {
    /// The router's own thread, at once.
    Thread,
    /// The test, when it likes: [`World::hand_out`].
    Test,
}

/// What a world is made of.
pub struct Make {
    pub limits: Limits,
    pub handing: Handing,
    /// Every sync of the disk takes up to so long by the real clock, so that commits hold several publishes.
    pub sync_time: Duration,
    pub seed: u64,
    pub policy: Arc<Policy>,
}

impl Default for Make {
    fn default() -> Self {
        let limits = Limits { segment_bytes: 256 * 1024, sessions_per_vm: 10_000, ..Limits::default() };
        Make { limits, handing: Handing::Thread, sync_time: Duration::ZERO, seed: 1, policy: Arc::default() }
    }
}

/// An event as it was committed.
#[derive(Clone, Debug)]
pub struct Stored {
    pub seq: u64,
    pub ts: u64,
    pub id: String,
    pub topic: String,
    /// The log line, without its newline.
    pub line: Vec<u8>,
}

pub struct World {
    pub bus: Arc<Bus>,
    pub journal: Arc<Journal>,
    pub router: Arc<Router>,
    pub disk: SimDisk,
    pub root: PathBuf,
    pub ending: watch::Sender<Ending>,
    /// Everything committed, in order, as the observer of the journal got it.
    pub record: Arc<Mutex<Vec<Arc<Committed>>>>,
    /// The last seq of `record`.
    pub head: watch::Receiver<u64>,
    waiting: Arc<Mutex<VecDeque<Arc<Committed>>>>,
    door: mpsc::UnboundedSender<Connection>,
    gone: mpsc::Receiver<()>,
    logs: Arc<Logs>,
    recorder: Arc<Recorder>,
    _dir: TempDir,
}

impl World {
    pub fn new(make: Make) -> World {
        let Make { limits, handing, sync_time, seed, policy } = make;
        let mut rng = Rng(seed);
        // In memory where there is such a place: nothing here is about these files.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let root = StateRoot::resolve(Some(dir.path().to_owned()));
        let (id, _lock) = root.open().unwrap();
        let disk = SimDisk::new(rng.fork(), Lies::default());
        let opened = Opened::open(Arc::new(disk.clone()), id, limits.segment_bytes).unwrap();
        if !sync_time.is_zero() {
            let most = sync_time.as_micros() as u64;
            disk.hook(Box::new(move |_, call| {
                if call == Call::Sync {
                    std::thread::sleep(Duration::from_micros(rng.below(most)));
                }
            }));
        }
        let vms = Arc::new(VmTable::new(limits.vms));
        let view = LogView::open(&root, &limits, vms.clone(), (1, 0), &|seq| opened.reader(seq)).unwrap();
        let logs = Logs::start(view, &limits, opened.readers()).unwrap();
        // Nothing is compacted here: it does not run.
        let (map, readers) = (opened.map().clone(), opened.readers());
        let latest = Latest::start(root.latest(), Compaction::new([]), &limits, map, readers, false).unwrap();
        let router = match handing {
            Handing::Thread => Router::start(1, |error| panic!("{error}")).unwrap(),
            Handing::Test => Arc::new(Router::new(1)),
        };
        let record = Arc::<Mutex<Vec<Arc<Committed>>>>::default();
        let waiting = Arc::<Mutex<VecDeque<Arc<Committed>>>>::default();
        let (news, head) = watch::channel(0);
        let committed = {
            let (record, waiting, router) = (record.clone(), waiting.clone(), router.clone());
            move |commit: Arc<Committed>| {
                let Some(last) = commit.last_seq() else { return };
                record.lock().unwrap().push(commit.clone());
                match handing {
                    Handing::Thread => router.push(commit),
                    Handing::Test => waiting.lock().unwrap().push_back(commit),
                }
                news.send_replace(last);
            }
        };
        let failed = |why: String| panic!("the journal failed: {why}");
        // Nothing holds retention back.
        let reached = Reached { views: Arc::new(AtomicU64::new(u64::MAX)), ..Reached::default() };
        let dirty = Arc::<Dirty>::default();
        let journal = Arc::new(opened.start(&limits, committed, || {}, failed, reached).unwrap());
        let recorder = Recorder::start(&root, 64 << 20).unwrap();
        let (ending, ended) = watch::channel(Ending::No);
        let delivery = Arc::new(Delivery::new(
            &limits,
            journal.clone(),
            router.clone(),
            Arc::default(),
            Compaction::default(),
        ));
        let policy = watch::channel(policy).1;
        let replay = Replay::default();
        let groups =
            Groups::start(&limits, delivery.clone(), journal.clone(), replay, dirty, (latest.clone(), None));
        let snapshots = Snapshots::new(latest.clone(), journal.clone());
        let bus = Arc::new(Bus::new(
            limits,
            vms,
            recorder.clone(),
            logs.clone(),
            journal.clone(),
            (delivery, groups, latest, snapshots),
            (ended, policy),
        ));
        let (alive, gone) = mpsc::channel(1);
        let lobby = Lobby::new(bus.clone(), 1 << 20, alive);
        let (door, connections) = mpsc::unbounded_channel();
        let connections = Arc::new(tokio::sync::Mutex::new(connections));
        tokio::spawn(lobby.serve(move || {
            let connections = connections.clone();
            async move { connections.lock().await.recv().await.ok_or_else(|| io::ErrorKind::NotFound.into()) }
        }));
        let root = dir.path().to_owned();
        World {
            bus,
            journal,
            router,
            disk,
            root,
            ending,
            record,
            head,
            waiting,
            door,
            gone,
            logs,
            recorder,
            _dir: dir,
        }
    }

    /// The other end of a new connection, before its first byte; the pipe holds so many bytes each way.
    pub fn connect(&self, bytes: usize, may_be_host: bool) -> DuplexStream {
        let (ours, theirs) = duplex(bytes);
        let (reader, writer) = tokio::io::split(theirs);
        let origin = if may_be_host { Origin::Host } else { Origin::Local };
        let peer = Whose { address: "pipe".into(), origin };
        self.enter(Connection { reader: Box::new(reader), writer: Box::new(writer), peer, is_line: false });
        ours
    }

    /// Lets in what some door accepted.
    pub fn enter(&self, connection: Connection) {
        assert!(self.door.send(connection).is_ok(), "the door is open");
    }

    /// The last durable event.
    pub fn durable(&self) -> u64 {
        self.journal.map().durable_seq()
    }

    /// The oldest event that can be read.
    pub fn first(&self) -> u64 {
        self.journal.map().first_seq()
    }

    /// Commits that wait for [`World::hand_out`].
    pub fn waiting(&self) -> usize {
        self.waiting.lock().unwrap().len()
    }

    /// Hands the oldest `commits` that wait to the router in one go, but for the oldest `lost`.
    pub fn hand_out(&self, commits: usize, lost: usize) {
        let commits: Vec<_> = {
            let mut waiting = self.waiting.lock().unwrap();
            let commits = commits.min(waiting.len());
            waiting.drain(..commits).skip(lost).collect()
        };
        self.router.route(&commits);
    }

    /// Waits until everything durable is in `record`, and returns the last seq.
    pub async fn settled(&self) -> u64 {
        let durable = self.durable();
        self.head.clone().wait_for(|head| *head >= durable).await.unwrap();
        durable
    }

    /// Everything committed.
    pub fn stored(&self) -> Vec<Stored> {
        let record = self.record.lock().unwrap();
        let mut all = Vec::new();
        for event in record.iter().flat_map(|commit| commit.events()) {
            assert_eq!(event.seq, all.len() as u64 + 1, "seqs are dense");
            let line = event.line.strip_suffix(b"\n").unwrap().to_vec();
            let value: Value = serde_json::from_slice(&line).unwrap();
            let text = |field: &str| value[field].as_str().unwrap().to_owned();
            all.push(Stored { seq: event.seq, ts: event.ts, id: text("id"), topic: text("topic"), line });
        }
        all
    }

    /// Everything that is durable: seq, ts, id. [`World::stored`] may be a commit behind that.
    pub fn durable_events(&self) -> Vec<(u64, u64, String)> {
        let mut all: Vec<_> =
            self.stored().into_iter().map(|event| (event.seq, event.ts, event.id)).collect();
        let mut reader = self.journal.reader(all.len() as u64 + 1);
        loop {
            let mut each = |event: Event<'_>| {
                let value: Value = serde_json::from_slice(event.line).unwrap();
                all.push((event.seq, event.ts, value["id"].as_str().unwrap().to_owned()));
            };
            if matches!(reader.read(1 << 20, &mut each), Ok(Read::End) | Err(_)) {
                return all;
            }
        }
    }

    /// Whether any session is left of those that `limits.sessions` counts.
    pub fn sessions(&self) -> usize {
        self.bus.limits.sessions - self.bus.sessions.available_permits()
    }

    /// Waits until the sessions that ended have ended in the broker too, and left nothing.
    pub async fn emptied(&self) {
        while self.sessions() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.router.members(), 0, "the router knows nobody");
        for vm in self.bus.vms.records(self.durable()) {
            let left = (vm.sessions, vm.in_flight, vm.queued, vm.lag, vm.topics.len());
            assert_eq!(left, (0, 0, 0, 0, 0), "{vm:?}");
        }
    }

    /// The records of `bus-events.jsonl`, and the end of the world.
    pub fn end(self) -> Vec<Value> {
        self.stop();
        let text = std::fs::read_to_string(self.root.join("handshakes/bus-events.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Resolves when no connection is left, after the door was told to shut.
    pub async fn all_gone(&mut self) {
        assert!(self.gone.recv().await.is_none());
    }

    fn stop(&self) {
        self.journal.stop();
        self.router.stop();
        self.logs.stop();
        self.recorder.stop();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs `test` on one thread with a clock that stands still; a test that hangs fails and says what `stuck` says.
pub fn run<T>(stuck: impl Fn() -> String, test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let result = runtime.block_on(async {
        // As long as something blocks, the clock does not go on by itself when nothing else is to be done.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let holder = tokio::task::spawn_blocking(move || held.recv().is_ok());
        let (late, lateness) = tokio::sync::oneshot::channel();
        let (over, end) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            if end.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = late.send(());
            }
        });
        let result = tokio::select! {
            result = test => result,
            _ = lateness => panic!("it hangs: {}", stuck()),
        };
        drop((hold, over));
        holder.await.unwrap();
        result
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// Lets everything happen that can happen now, journal and readers included.
pub async fn settle() {
    for _ in 0..20 {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        // Threads run by the real clock.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_micros(200))).await.unwrap();
    }
}

/// Moves the clock on, `step` by `step`, and lets happen what falls due.
pub async fn pass(time: Duration, step: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let now = left.min(step);
        tokio::time::advance(now).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        left -= now;
    }
}
