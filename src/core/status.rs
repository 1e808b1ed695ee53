//! Freshness: which VM was heard of when. What the broker maintains and `castra status` shows.
//!
//! ```text
//! sessions ──stamps, standings──▶ VmTable ──every ≤ 1 s──▶ Snapshot ──status_file──▶ `report` ──▶ `castra status`
//! ```
//!
//! Always holds: nothing here reads a clock, a stamp is milliseconds of CLOCK_BOOTTIME and an age is
//! computed by the reader (invariants 8 and 9); a stamp costs a session one relaxed store; what a session stands
//! for is gone with it, at once. Pure. Owner: the broker owns the table; the command owns the report.

mod latest;
mod snapshot;
mod totals;

use super::identity::{Identity, VmName};
use super::limits::{TOPIC_BYTES, TOPICS_SHOWN_BYTES};
use super::standing::{Standing, Together};
pub use latest::LatestStatus;
use serde::{Deserialize, Serialize};
pub use snapshot::{GraceStatus, JournalStatus, Now, ReloadRefused, RemovedStatus, Snapshot, State};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

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
    sessions: Mutex<Vec<Arc<Standing>>>,
    in_flight: AtomicI64,
    capabilities: Mutex<Vec<String>>,
    /// What proved its name the last time.
    identity: Mutex<Identity>,
    changed: Arc<AtomicBool>,
}

impl Vm {
    fn new(name: VmName, changed: Arc<AtomicBool>) -> Self {
        Vm {
            name,
            handshake: AtomicI64::new(NEVER),
            publish: AtomicI64::new(NEVER),
            heartbeat: AtomicI64::new(NEVER),
            sessions: Mutex::default(),
            in_flight: AtomicI64::new(0),
            capabilities: Mutex::default(),
            identity: Mutex::new(Identity::Name),
            changed,
        }
    }

    fn stamp(&self, at: &AtomicI64, now: i64) {
        at.store(now, Relaxed);
        self.changed.store(true, Relaxed);
    }

    /// What it can do, as it says.
    pub fn says(&self, capabilities: &[String]) {
        *self.capabilities.lock().unwrap_or_else(PoisonError::into_inner) = capabilities.to_vec();
        self.changed.store(true, Relaxed);
    }

    /// What proved its name when it said hello; it stands for the VM while there is no session.
    pub fn proved(&self, identity: Identity) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
        self.changed.store(true, Relaxed);
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
        let standing = {
            let mut sessions = self.sessions();
            if sessions.len() >= limit {
                return None;
            }
            let standing = Arc::new(Standing::new(self.changed.clone()));
            sessions.push(standing.clone());
            standing
        };
        self.changed.store(true, Relaxed);
        Some(Presence { vm: self.clone(), standing })
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Arc<Standing>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, head_seq: u64, topic_bytes: usize) -> VmRecord {
        let stamp = |at: &AtomicI64| Some(at.load(Relaxed)).filter(|at| *at != NEVER);
        let sessions = self.sessions();
        let said = || *self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let Together { topics, topics_more, queued, lag, identity } =
            Together::of(&sessions, head_seq, topic_bytes);
        VmRecord {
            name: self.name.as_str().to_owned(),
            handshake: stamp(&self.handshake),
            publish: stamp(&self.publish),
            heartbeat: stamp(&self.heartbeat),
            sessions: u32::try_from(sessions.len()).unwrap_or(u32::MAX),
            in_flight: self.in_flight.load(Relaxed).max(0) as u64,
            capabilities: self.capabilities.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            identity: identity.unwrap_or_else(said).as_str().to_owned(),
            topics,
            topics_more,
            queued,
            lag,
        }
    }
}

/// One session of a VM, as long as it lives.
#[derive(Debug)]
pub struct Presence {
    vm: Arc<Vm>,
    standing: Arc<Standing>,
}

impl Presence {
    /// Whose.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Where this session stands; to be told.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.vm.sessions().retain(|standing| !Arc::ptr_eq(standing, &self.standing));
        self.vm.changed.store(true, Relaxed);
    }
}

/// What became of the wish to forget a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// It is not remembered any more.
    Done,
    /// It never was.
    Unknown,
    /// It has a session, or is about to.
    HasSessions,
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

    /// The VM of that name, new or known, which said hello `now`: so it is not the next to go. `None` when all
    /// that are remembered have sessions.
    pub fn enter(&self, name: &VmName, now: i64) -> Option<Arc<Vm>> {
        if let Some(vm) = self.vms.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            vm.stamp(&vm.handshake, now);
            return Some(vm.clone());
        }
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        if vms.len() >= self.limit && !vms.contains_key(name) {
            let gone = vms.values().filter(|vm| !is_held(vm));
            let gone = gone.min_by_key(|vm| vm.handshake.load(Relaxed))?.name.clone();
            vms.remove(&gone);
        }
        let new = || Arc::new(Vm::new(name.clone(), self.changed.clone()));
        let vm = vms.entry(name.clone()).or_insert_with(new);
        vm.stamp(&vm.handshake, now);
        Some(vm.clone())
    }

    /// Whether a VM of that name is remembered.
    pub fn knows(&self, name: &VmName) -> bool {
        self.vms.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Forgets a VM that has no session.
    pub fn forget(&self, name: &VmName) -> Forgotten {
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        let Some(vm) = vms.get(name) else { return Forgotten::Unknown };
        if is_held(vm) {
            return Forgotten::HasSessions;
        }
        vms.remove(name);
        self.changed.store(true, Relaxed);
        Forgotten::Done
    }

    /// Whether anything changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Relaxed)
    }

    /// Every VM, by name, while `head_seq` is the newest event.
    pub fn records(&self, head_seq: u64) -> Vec<VmRecord> {
        let vms = self.vms.read().unwrap_or_else(PoisonError::into_inner);
        let share = (TOPICS_SHOWN_BYTES / vms.len().max(1)).max(TOPIC_BYTES);
        let mut records: Vec<VmRecord> = vms.values().map(|vm| vm.record(head_seq, share)).collect();
        records.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// Takes in what an earlier broker remembered; `age` makes a stamp of now from one of then.
    pub fn remember(&self, records: &[VmRecord], now: i64, age: impl Fn(i64) -> i64) {
        for record in records.iter().take(self.limit) {
            let Some(vm) = VmName::parse(&record.name).ok().and_then(|name| self.enter(&name, now)) else {
                continue;
            };
            let stamp = |at: &AtomicI64, then: Option<i64>| {
                at.store(then.map_or(NEVER, |then| now - age(then)), Relaxed)
            };
            stamp(&vm.handshake, record.handshake);
            stamp(&vm.publish, record.publish);
            stamp(&vm.heartbeat, record.heartbeat);
            *vm.capabilities.lock().unwrap_or_else(PoisonError::into_inner) = record.capabilities.clone();
            vm.proved(Identity::meant(&record.identity));
        }
    }
}

/// Whoever holds a VM besides the table has a session of it or is just opening one.
fn is_held(vm: &Arc<Vm>) -> bool {
    Arc::strong_count(vm) > 1
}

/// A VM as the status file has it; stamps are CLOCK_BOOTTIME milliseconds. What an older broker did not
/// write yet is as if it were nothing.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "as in VmReport")]
pub struct VmRecord {
    pub name: String,
    pub handshake: Option<i64>,
    pub publish: Option<i64>,
    pub heartbeat: Option<i64>,
    pub sessions: u32,
    pub in_flight: u64,
    pub capabilities: Vec<String>,
    pub identity: String,
    pub topics: Vec<String>,
    pub topics_more: u64,
    pub queued: u64,
    pub lag: u64,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn name(text: &str) -> VmName {
        VmName::parse(text).unwrap()
    }

    #[test]
    fn the_longest_unreachable_vm_gives_way() {
        let table = VmTable::new(2);
        let old = table.enter(&name("old"), 1).unwrap();
        table.enter(&name("young"), 2).unwrap();
        let presence = old.open_session(1).unwrap();
        assert!(old.open_session(1).is_none(), "one session of a VM, as the limit says");
        table.enter(&name("third"), 3).unwrap();
        assert!(table.knows(&name("old")) && table.knows(&name("third")) && !table.knows(&name("young")));
        let held = table.enter(&name("third"), 4).unwrap().open_session(1);
        assert!(held.is_some() && table.enter(&name("fourth"), 5).is_none(), "all have sessions");
        drop((presence, old));
        assert!(table.enter(&name("fourth"), 6).is_some() && !table.knows(&name("old")));
    }

    #[test]
    fn what_a_session_stands_for_goes_with_it() {
        let table = VmTable::new(9);
        let vm = table.enter(&name("dev"), 1).unwrap();
        let sessions: Vec<Presence> = (0..3).map(|_| vm.open_session(3).unwrap()).collect();
        assert!(vm.open_session(3).is_none());
        for (n, topic) in ["b", "a", "b"].into_iter().enumerate() {
            sessions[n].standing().topics(vec![topic.into()]);
            sessions[n].standing().queued(10);
            sessions[n].standing().behind(Some(98 + n as u64));
        }
        let shown = || {
            let record = table.records(100).remove(0);
            (record.sessions, record.topics.join(" "), record.queued, record.lag)
        };
        assert_eq!(shown(), (3, "a b".into(), 30, 3));
        // Who still holds its standing shows nothing of it.
        let held = sessions[0].standing().clone();
        let mut sessions = sessions.into_iter();
        table.take_changed();
        drop(sessions.next());
        assert!(table.take_changed());
        held.queued(1_000);
        assert_eq!(shown(), (2, "a b".into(), 20, 2));
        drop(sessions.next());
        assert_eq!(shown(), (1, "b".into(), 10, 1));
        drop(sessions);
        assert_eq!(shown(), (0, "".into(), 0, 0));
        assert!(vm.open_session(1).is_some(), "its places are free again");
    }

    #[test]
    fn many_vms_with_many_topics_fit_the_status() {
        let table = VmTable::new(10_000);
        let topics: Vec<Box<str>> = (0..64).map(|n| format!("{n:0>250}").into()).collect();
        let enter = |n: usize| {
            let presence = table.enter(&name(&format!("vm-{n}")), 1).unwrap().open_session(1).unwrap();
            presence.standing().topics(topics.clone());
            presence
        };
        let few: Vec<Presence> = (0..60).map(enter).collect();
        assert!(table.records(0).iter().all(|vm| vm.topics.len() == 64 && vm.topics_more == 0));
        let many: Vec<Presence> = (60..10_000).map(enter).collect();
        let records = table.records(0);
        assert!(records.iter().all(|vm| vm.topics.len() == 1 && vm.topics_more == 63));
        drop((few, many));
    }

    #[test]
    fn states_are_called_what_the_json_calls_them() {
        use State::{DiskFull, Draining, Offline, Running, Starting, Unresponsive};
        for state in [Starting, Running, DiskFull, Draining, Unresponsive, Offline] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn ages_are_of_this_boot_or_of_the_wall() {
        let table = VmTable::new(9);
        table.enter(&name("dev"), 700).unwrap();
        let snapshot = snapshot(&table, 1_000, 50_000);
        let now = |boot_ms, wall_ms, boot_id: &str| Now { boot_ms, wall_ms, boot_id: boot_id.into() };
        // The same boot: the wall may do what it likes.
        assert_eq!(snapshot.age(700, &now(1_500, 1, "a")), 800);
        // Another boot: the wall counts, and an age is never negative.
        assert_eq!(snapshot.age(700, &now(5, 52_000, "b")), 2_300);
        assert_eq!(snapshot.age(2_000, &now(5, 1, "b")), 0);

        let later = VmTable::new(9);
        later.remember(&snapshot.vms, 10_000, |stamp| snapshot.age(stamp, &now(1_500, 1, "a")));
        assert_eq!(later.records(0)[0].handshake, Some(9_200));
    }

    /// What a broker with pid 7 on boot "a" would write.
    pub(in crate::core) fn snapshot(table: &VmTable, boot_ms: i64, wall_ms: u64) -> Snapshot {
        Snapshot {
            schema: SCHEMA,
            boot_id: "a".into(),
            boot_ms,
            wall_ms,
            state: State::Running,
            pid: 7,
            version: "1".into(),
            started_at: "then".into(),
            started_boot_ms: 0,
            listeners: Vec::new(),
            journal: JournalStatus::default(),
            signals_dropped: 0,
            counters: crate::core::counters::Counters::default(),
            pauses: crate::core::awake::Pauses::NONE,
            reload_refused: None,
            logs_stalled: None,
            latest: None,
            groups_count: 0,
            groups: Vec::new(),
            vms: table.records(0),
        }
    }
}
