//! Freshness: which VM was heard of when. What the broker maintains and `castra status` shows.
//!
//! ```text
//! sessions ──stamps──▶ VmTable ──every ≤ 1 s──▶ Snapshot ──status_file──▶ `report` ──▶ `castra status`
//! ```
//!
//! Always holds: nothing here reads a clock, a stamp is milliseconds of CLOCK_BOOTTIME and an age is
//! computed by the reader (invariants 8 and 9); a stamp costs a session one relaxed store. Pure. Owner: the
//! broker owns the table; the command owns the report.

use super::identity::VmName;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A VM without a session is reachable for so long after a handshake, in milliseconds.
pub const REACHABLE_MS: i64 = 45_000;
/// A broker that holds its lock and has not refreshed for so long is unresponsive, in milliseconds.
pub const UNRESPONSIVE_MS: i64 = 5_000;
/// The version of what `castra status --json` prints.
pub const SCHEMA: u32 = 1;
const NEVER: i64 = i64::MIN;

/// What is known of one VM. Shared with its sessions.
#[derive(Debug)]
pub struct Vm {
    /// Its name.
    pub name: VmName,
    handshake: AtomicI64,
    publish: AtomicI64,
    heartbeat: AtomicI64,
    sessions: AtomicU32,
    in_flight: AtomicI64,
    capabilities: Mutex<Vec<String>>,
    changed: Arc<AtomicBool>,
}

impl Vm {
    fn new(name: VmName, changed: Arc<AtomicBool>) -> Self {
        Vm {
            name,
            handshake: AtomicI64::new(NEVER),
            publish: AtomicI64::new(NEVER),
            heartbeat: AtomicI64::new(NEVER),
            sessions: AtomicU32::new(0),
            in_flight: AtomicI64::new(0),
            capabilities: Mutex::default(),
            changed,
        }
    }

    fn stamp(&self, at: &AtomicI64, now: i64) {
        at.store(now, Relaxed);
        self.changed.store(true, Relaxed);
    }

    /// It said hello.
    pub fn handshake(&self, capabilities: &[String], now: i64) {
        *self.capabilities.lock().unwrap_or_else(PoisonError::into_inner) = capabilities.to_vec();
        self.stamp(&self.handshake, now);
    }

    /// It published, and so many more events wait for their ack.
    pub fn published(&self, events: usize, now: i64) {
        self.in_flight.fetch_add(events as i64, Relaxed);
        self.stamp(&self.publish, now);
    }

    /// So many events were acked or refused.
    pub fn answered(&self, events: usize) {
        self.in_flight.fetch_sub(events as i64, Relaxed);
        self.changed.store(true, Relaxed);
    }

    /// It sent a heartbeat.
    pub fn heartbeat(&self, now: i64) {
        self.stamp(&self.heartbeat, now);
    }

    /// Begins a session, unless it has `limit` already.
    pub fn open_session(self: &Arc<Self>, limit: usize) -> Option<Presence> {
        let more = |n: u32| ((n as usize) < limit).then_some(n + 1);
        self.sessions.fetch_update(Relaxed, Relaxed, more).ok()?;
        self.changed.store(true, Relaxed);
        Some(Presence(self.clone()))
    }

    fn record(&self) -> VmRecord {
        let stamp = |at: &AtomicI64| Some(at.load(Relaxed)).filter(|at| *at != NEVER);
        VmRecord {
            name: self.name.as_str().to_owned(),
            handshake: stamp(&self.handshake),
            publish: stamp(&self.publish),
            heartbeat: stamp(&self.heartbeat),
            sessions: self.sessions.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed).max(0) as u64,
            capabilities: self.capabilities.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// A session of a VM, as long as it lives.
#[derive(Debug)]
pub struct Presence(Arc<Vm>);

impl Presence {
    /// Whose.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.0
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
        self.0.changed.store(true, Relaxed);
    }
}

/// All VMs that are remembered.
#[derive(Debug)]
pub struct VmTable {
    vms: RwLock<HashMap<VmName, Arc<Vm>>>,
    host: Arc<Vm>,
    limit: usize,
    changed: Arc<AtomicBool>,
}

impl VmTable {
    /// At most `limit` VMs; the longest unreachable goes first.
    pub fn new(limit: usize) -> Self {
        let changed = Arc::<AtomicBool>::default();
        let host = Arc::new(Vm::new(VmName::host(), changed.clone()));
        VmTable { vms: RwLock::default(), host, limit, changed }
    }

    /// The host: it has sessions like a VM, and is none.
    pub fn host(&self) -> Arc<Vm> {
        self.host.clone()
    }

    /// The VM of that name, new or known. `None` when all that are remembered have sessions.
    pub fn enter(&self, name: &VmName) -> Option<Arc<Vm>> {
        if let Some(vm) = self.vms.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Some(vm.clone());
        }
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        if vms.len() >= self.limit && !vms.contains_key(name) {
            let gone = vms.values().filter(|vm| vm.sessions.load(Relaxed) == 0);
            let gone = gone.min_by_key(|vm| vm.handshake.load(Relaxed))?.name.clone();
            vms.remove(&gone);
        }
        let new = || Arc::new(Vm::new(name.clone(), self.changed.clone()));
        Some(vms.entry(name.clone()).or_insert_with(new).clone())
    }

    /// Whether a VM of that name is remembered.
    pub fn knows(&self, name: &VmName) -> bool {
        self.vms.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Whether anything changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Relaxed)
    }

    /// Every VM, by name.
    pub fn records(&self) -> Vec<VmRecord> {
        let vms = self.vms.read().unwrap_or_else(PoisonError::into_inner);
        let mut records: Vec<VmRecord> = vms.values().map(|vm| vm.record()).collect();
        records.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// Takes in what an earlier broker remembered; `age` makes a stamp of now from one of then.
    pub fn remember(&self, records: &[VmRecord], now: i64, age: impl Fn(i64) -> i64) {
        for record in records.iter().take(self.limit) {
            let Some(vm) = VmName::parse(&record.name).ok().and_then(|name| self.enter(&name)) else {
                continue;
            };
            let stamp = |at: &AtomicI64, then: Option<i64>| {
                at.store(then.map_or(NEVER, |then| now - age(then)), Relaxed)
            };
            stamp(&vm.handshake, record.handshake);
            stamp(&vm.publish, record.publish);
            stamp(&vm.heartbeat, record.heartbeat);
            *vm.capabilities.lock().unwrap_or_else(PoisonError::into_inner) = record.capabilities.clone();
        }
    }
}

/// A VM as the status file has it; stamps are CLOCK_BOOTTIME milliseconds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[allow(missing_docs, reason = "as in VmReport")]
pub struct VmRecord {
    pub name: String,
    pub handshake: Option<i64>,
    pub publish: Option<i64>,
    pub heartbeat: Option<i64>,
    pub sessions: u32,
    pub in_flight: u64,
    pub capabilities: Vec<String>,
}

/// The states that a broker says of itself.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Recovering; no door listens yet.
    Starting,
    /// All is well.
    Running,
    /// Publishers are refused until there is room.
    DiskFull,
    /// Ending.
    Draining,
    /// Holds its lock and has not refreshed for 5 s. Said by the reader only.
    Unresponsive,
    /// Nobody holds the lock. Said by the reader only.
    Offline,
}

/// The journal in numbers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct JournalStatus {
    /// The oldest event that can be read.
    pub first_seq: u64,
    /// The newest durable event.
    pub head_seq: u64,
    /// How far the logs have come.
    pub logs_seq: u64,
    /// How many segments.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Ranges that were durable and cannot be read, for people; the broker's log has them all.
    pub damage: Vec<String>,
}

/// What the broker writes into the status file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which run of the machine the stamps are of.
    pub boot_id: String,
    /// When this was written, CLOCK_BOOTTIME milliseconds.
    pub boot_ms: i64,
    /// The same moment as wall time.
    pub wall_ms: u64,
    /// What the broker says of itself.
    pub state: State,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started, RFC 3339.
    pub started_at: String,
    /// The same as a stamp.
    pub started_boot_ms: i64,
    /// `tcp:ADDR`, `unix:PATH`.
    pub listeners: Vec<String>,
    /// The journal.
    pub journal: JournalStatus,
    /// Signals that were dropped because their queue was full.
    pub signals_dropped: u64,
    /// Why the logs are not being written, if so.
    pub logs_stalled: Option<String>,
    /// The VMs.
    pub vms: Vec<VmRecord>,
}

/// What `castra status --json` prints; `docs/BUS.md` and `--help` document every field.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented where operators read it")]
pub struct Report {
    pub schema: u32,
    pub broker: BrokerReport,
    pub reachable: bool,
    pub last_handshake_vm: Option<String>,
    pub last_handshake_age_ms: Option<i64>,
    pub vms: Vec<VmReport>,
}

/// The broker's part of a [`Report`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented where operators read it")]
pub struct BrokerReport {
    pub state: State,
    pub pid: Option<u32>,
    pub version: Option<String>,
    pub started_at: Option<String>,
    pub uptime_ms: Option<i64>,
    pub listeners: Vec<String>,
    pub journal: JournalStatus,
    pub logs_stalled: Option<String>,
    pub signals_dropped: u64,
}

/// One VM of a [`Report`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented where operators read it")]
pub struct VmReport {
    pub name: String,
    pub reachable: bool,
    pub last_handshake_age_ms: Option<i64>,
    pub capabilities: Vec<String>,
    pub identity: &'static str,
    pub sessions: u32,
    pub last_publish_age_ms: Option<i64>,
    pub last_heartbeat_age_ms: Option<i64>,
    pub in_flight: u64,
}

/// The reader's moment.
#[derive(Clone, Debug)]
pub struct Now {
    /// CLOCK_BOOTTIME milliseconds.
    pub boot_ms: i64,
    /// Wall time in milliseconds.
    pub wall_ms: u64,
    /// Which run of the machine.
    pub boot_id: String,
}

impl Snapshot {
    /// How old a stamp of this snapshot is; by wall time when the machine was restarted since.
    pub fn age(&self, stamp: i64, now: &Now) -> i64 {
        let since = if self.boot_id == now.boot_id {
            now.boot_ms - self.boot_ms
        } else {
            i64::try_from(now.wall_ms.saturating_sub(self.wall_ms)).unwrap_or(i64::MAX)
        };
        since.saturating_add(self.boot_ms.saturating_sub(stamp)).max(0)
    }
}

/// What to show at `now` of what the broker wrote, if anything; `holder` is the process that runs one, 0
/// when nobody knows which.
pub fn report(snapshot: Option<&Snapshot>, holder: Option<u32>, now: &Now) -> Report {
    let locked = holder.is_some();
    let pid = holder.filter(|pid| *pid != 0);
    let Some(snapshot) = snapshot else {
        let state = if locked { State::Starting } else { State::Offline };
        return Report {
            schema: SCHEMA,
            broker: BrokerReport {
                state,
                pid,
                version: None,
                started_at: None,
                uptime_ms: None,
                listeners: Vec::new(),
                journal: JournalStatus::default(),
                logs_stalled: None,
                signals_dropped: 0,
            },
            reachable: false,
            last_handshake_vm: None,
            last_handshake_age_ms: None,
            vms: Vec::new(),
        };
    };
    let state = match snapshot.state {
        _ if !locked => State::Offline,
        // It has not said anything yet: these are the words of the one before it.
        _ if pid.is_some_and(|pid| pid != snapshot.pid) => State::Starting,
        _ if snapshot.age(snapshot.boot_ms, now) > UNRESPONSIVE_MS => State::Unresponsive,
        said => said,
    };
    let said_by_it = locked && pid.is_none_or(|pid| pid == snapshot.pid);
    let runs = said_by_it && state != State::Unresponsive;
    let age = |stamp: Option<i64>| stamp.map(|stamp| snapshot.age(stamp, now));
    let vms: Vec<VmReport> = snapshot
        .vms
        .iter()
        .map(|vm| {
            let handshake = age(vm.handshake);
            VmReport {
                name: vm.name.clone(),
                reachable: runs && (vm.sessions > 0 || handshake.is_some_and(|age| age <= REACHABLE_MS)),
                last_handshake_age_ms: handshake,
                capabilities: vm.capabilities.clone(),
                identity: "name",
                sessions: if runs { vm.sessions } else { 0 },
                last_publish_age_ms: age(vm.publish),
                last_heartbeat_age_ms: age(vm.heartbeat),
                in_flight: if runs { vm.in_flight } else { 0 },
            }
        })
        .collect();
    let last =
        vms.iter().filter(|vm| vm.last_handshake_age_ms.is_some()).min_by_key(|vm| vm.last_handshake_age_ms);
    Report {
        schema: SCHEMA,
        broker: BrokerReport {
            state,
            pid: locked.then_some(pid.unwrap_or(snapshot.pid)),
            version: Some(snapshot.version.clone()),
            started_at: Some(snapshot.started_at.clone()),
            uptime_ms: said_by_it.then(|| snapshot.age(snapshot.started_boot_ms, now)),
            listeners: if said_by_it { snapshot.listeners.clone() } else { Vec::new() },
            journal: snapshot.journal.clone(),
            logs_stalled: snapshot.logs_stalled.clone(),
            signals_dropped: snapshot.signals_dropped,
        },
        reachable: vms.iter().any(|vm| vm.reachable),
        last_handshake_vm: last.map(|vm| vm.name.clone()),
        last_handshake_age_ms: last.and_then(|vm| vm.last_handshake_age_ms),
        vms,
    }
}
