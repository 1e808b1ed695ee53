//! Keeps the status file fresh: what the broker says of itself and of the VMs.
//!
//! Always holds: it is written when something changed, within a tenth of a second, and about once a second
//! anyway; whether that works stops nothing (invariant 11); it asks nobody who could keep it waiting.
//! Owner: `broker.rs`; one thread writes.

use super::awake::{self, Pauses};
use super::clock;
use super::counters::Counters;
use super::delivery::groups::Groups;
use super::events::Recorder;
use super::journal::Journal;
use super::latest::Latest;
use super::limits::{DAMAGE_SHOWN, GROUPS_SHOWN};
use super::logs::Logs;
use super::service::Supervisor;
use super::state_root::StateRoot;
use super::status::{
    GraceStatus, JournalStatus, LatestStatus, Now, RemovedStatus, SCHEMA, Snapshot, State, VmTable,
};
use super::status_file::{self, StatusWriter};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Status is looked at so often, and written when something changed …
const STATUS_TICK: Duration = Duration::from_millis(100);
/// … or after so many looks.
const STATUS_TICKS: u32 = 8;

/// What the status thread writes, and the others tell it.
pub struct StatusKeeper {
    vms: Arc<VmTable>,
    recorder: Arc<Recorder>,
    supervisor: Arc<dyn Supervisor>,
    inner: Mutex<Inner>,
}

struct Inner {
    writer: StatusWriter,
    snapshot: Snapshot,
    running: Option<(Arc<Journal>, Arc<Logs>, Arc<Latest>)>,
    groups: Option<Arc<Groups>>,
    write_failed: bool,
    ended: bool,
}

impl StatusKeeper {
    /// Takes in what an earlier broker remembered, says `starting`, and keeps the file fresh from here on; the
    /// supervisor is told the same.
    ///
    /// # Errors
    /// The file cannot be written, or there is no thread to be had.
    pub fn start(
        root: &StateRoot,
        vms: Arc<VmTable>,
        recorder: Arc<Recorder>,
        supervisor: Arc<dyn Supervisor>,
    ) -> io::Result<Arc<Self>> {
        let now = Now { boot_ms: clock::boot_ms(), wall_ms: clock::wall_ms(), boot_id: clock::boot_id() };
        let mut journal = JournalStatus::default();
        match status_file::read(&root.status()) {
            Ok(Some(old)) => {
                vms.remember(&old.vms, now.boot_ms, |stamp| old.age(stamp, &now));
                // Until the journal is open; a start that fails leaves it so.
                journal = JournalStatus {
                    ts_ahead_ms: 0,
                    ids_left_out: 0,
                    removed: RemovedStatus::default(),
                    grace: None,
                    damage: Vec::new(),
                    ..old.journal
                };
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "status: what the last broker remembered of VMs cannot be read")
            }
        }
        let started = std::time::UNIX_EPOCH + Duration::from_millis(now.wall_ms);
        let snapshot = Snapshot {
            schema: SCHEMA,
            boot_id: now.boot_id,
            boot_ms: now.boot_ms,
            wall_ms: now.wall_ms,
            state: State::Starting,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: humantime::format_rfc3339_millis(started).to_string(),
            started_boot_ms: now.boot_ms,
            listeners: Vec::new(),
            journal,
            signals_dropped: 0,
            counters: Counters::default(),
            pauses: Pauses::NONE,
            reload_refused: None,
            logs_stalled: None,
            latest: None,
            groups_count: 0,
            groups: Vec::new(),
            vms: vms.records(0),
        };
        let mut writer = StatusWriter::open(root)?;
        writer.write(&snapshot)?;
        let inner =
            Inner { writer, snapshot, running: None, groups: None, write_failed: false, ended: false };
        let status = Arc::new(StatusKeeper { vms, recorder, supervisor, inner: Mutex::new(inner) });
        let keeper = status.clone();
        let keep = move || {
            for tick in 0u32.. {
                std::thread::sleep(STATUS_TICK);
                if !keeper.refresh(tick % STATUS_TICKS == 0) {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("castra-status".into()).spawn(keep)?;
        Ok(status)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A range of the journal cannot be read.
    pub fn damaged(&self, what: &str) {
        tracing::error!("journal: damage: {what}");
        self.with(|inner| {
            if inner.snapshot.journal.damage.len() < DAMAGE_SHOWN {
                inner.snapshot.journal.damage.push(what.to_owned());
            }
        });
    }

    /// From here on the journal and its views are shown.
    pub fn attach(&self, journal: Arc<Journal>, logs: Arc<Logs>, latest: Arc<Latest>) {
        self.with(|inner| inner.running = Some((journal, logs, latest)));
    }

    /// From here on consumer groups are shown.
    pub fn attach_groups(&self, groups: Arc<Groups>) {
        self.with(|inner| inner.groups = Some(groups));
    }

    /// The broker is in another state.
    pub fn say(&self, state: State, listeners: &[String]) {
        self.with(|inner| (inner.snapshot.state, inner.snapshot.listeners) = (state, listeners.to_vec()));
        self.refresh(true);
    }

    /// The last word; the thread ends.
    pub fn end(&self) {
        self.refresh(true);
        self.with(|inner| inner.ended = true);
    }

    /// Writes the status when it changed, or always; false after the end.
    fn refresh(&self, always: bool) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { writer, snapshot, running, groups, write_failed, ended } = &mut *inner;
        if *ended {
            return false;
        }
        let mut changed = self.vms.take_changed() || always;
        if let Some((journal, logs, latest)) = running {
            let map = journal.map();
            let (segments, removed) = (map.segments(), journal.removed());
            let now = JournalStatus {
                first_seq: map.first_seq(),
                head_seq: map.durable_seq(),
                logs_seq: logs.seq(),
                segments: segments.len(),
                bytes: segments.iter().map(|s| s.end).sum(),
                ts_ahead_ms: map.newest_ts().saturating_sub(clock::wall_ms()),
                ids_left_out: map.ids_left_out(),
                removed: RemovedStatus {
                    size: removed.by_size,
                    age: removed.by_age,
                    topics: removed.by_topics,
                },
                grace: journal.ages().uncounted().map(|pause| GraceStatus {
                    through: pause.through,
                    pause_ms: pause.pause_ms,
                    left_ms: pause.left_ms,
                }),
                damage: std::mem::take(&mut snapshot.journal.damage),
            };
            let state = match snapshot.state {
                State::Running | State::DiskFull if journal.is_full() => State::DiskFull,
                State::DiskFull => State::Running,
                other => other,
            };
            changed |= now.head_seq != snapshot.journal.head_seq
                || now.logs_seq != snapshot.journal.logs_seq
                || state != snapshot.state;
            (snapshot.journal, snapshot.state, snapshot.logs_stalled) = (now, state, logs.stalled());
            let kept = latest.letters();
            let view = |seq| LatestStatus {
                seq,
                lost: latest.lost(),
                letters: kept.letters,
                letters_bytes: kept.bytes,
                letters_dropped: kept.dropped,
                stalled: latest.stalled(),
            };
            snapshot.latest = latest.seq().map(view);
        }
        if !changed {
            return true;
        }
        // Of each group a look: not ten times a second.
        if always && let Some(groups) = groups {
            (snapshot.groups_count, snapshot.groups) = groups.worst(GROUPS_SHOWN);
        }
        (snapshot.signals_dropped, snapshot.counters) =
            (self.recorder.dropped(), self.recorder.counters.read());
        snapshot.pauses = awake::pauses();
        snapshot.reload_refused = self.recorder.last_reload_refused();
        (snapshot.boot_ms, snapshot.wall_ms) = (clock::boot_ms(), clock::wall_ms());
        snapshot.vms = self.vms.records(snapshot.journal.head_seq);
        let written = writer.write(snapshot);
        match &written {
            Err(error) if !*write_failed => tracing::error!(%error, "status: cannot be written"),
            Ok(()) if *write_failed => tracing::info!("status: written again"),
            _ => {}
        }
        *write_failed = written.is_err();
        self.supervisor.status(snapshot);
        true
    }
}
