//! What `castra status` says, made of what the broker wrote and of who holds the lock.
//!
//! Always holds: a broker that does not run, or does not answer, has no session and reaches no VM; nothing
//! here reads a clock or a file. Pure. Owner: `app/status.rs`.

use super::awake::Pauses;
use super::counters::Counters;
use super::delivery::groups::figures::Figures;
use super::identity::Identity;
use super::limits::{REACHABLE_MS, UNRESPONSIVE_MS};
use super::state_root::Holder;
use super::status::{JournalStatus, LatestStatus, Now, ReloadRefused, SCHEMA, Snapshot, State};
use serde::Serialize;

/// What `castra status --json` prints; `castra status --help` documents every field.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented where operators read it")]
pub struct Report {
    pub schema: u32,
    pub broker: BrokerReport,
    pub reachable: bool,
    pub last_handshake_vm: Option<String>,
    pub last_handshake_age_ms: Option<i64>,
    pub vms: Vec<VmReport>,
    pub groups_count: u64,
    pub groups: Vec<Figures>,
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
    pub reload_refused: Option<ReloadRefused>,
    pub logs_stalled: Option<String>,
    pub latest: Option<LatestStatus>,
    pub signals_dropped: u64,
    pub counters: Counters,
    pub pauses: PausesReport,
}

/// The pauses of the broker's process since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented where operators read it")]
pub struct PausesReport {
    pub count: u64,
    pub total_ms: i64,
    pub last_ms: i64,
    pub last_age_ms: Option<i64>,
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
    pub bus_subscribed: bool,
    pub topics: Vec<String>,
    pub topics_more: u64,
    pub last_publish_age_ms: Option<i64>,
    pub last_heartbeat_age_ms: Option<i64>,
    pub queued: u64,
    pub lag: u64,
    pub in_flight: u64,
}

/// What to show at `now` of what the broker wrote, if anything; `holder` is who runs one.
pub fn report(snapshot: Option<&Snapshot>, holder: Holder, now: &Now) -> Report {
    let locked = holder != Holder::Nobody;
    let pid = match holder {
        Holder::Pid(pid) => Some(pid),
        Holder::Unknown => snapshot.map(|snapshot| snapshot.pid),
        Holder::Nobody | Holder::Beginning => None,
    };
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
                reload_refused: None,
                logs_stalled: None,
                latest: None,
                signals_dropped: 0,
                counters: Counters::default(),
                pauses: PausesReport::default(),
            },
            reachable: false,
            last_handshake_vm: None,
            last_handshake_age_ms: None,
            vms: Vec::new(),
            groups_count: 0,
            groups: Vec::new(),
        };
    };
    let state = match snapshot.state {
        _ if !locked => State::Offline,
        // It has not said anything yet: these are the words of the one before it.
        _ if pid != Some(snapshot.pid) => State::Starting,
        _ if snapshot.age(snapshot.boot_ms, now) > UNRESPONSIVE_MS => State::Unresponsive,
        said => said,
    };
    let said_by_it = pid == Some(snapshot.pid);
    let runs = said_by_it && state != State::Unresponsive;
    let age = |stamp: Option<i64>| stamp.map(|stamp| snapshot.age(stamp, now));
    let vms: Vec<VmReport> = snapshot
        .vms
        .iter()
        .map(|vm| {
            let handshake = age(vm.handshake);
            let silence = vm.handshake.map(|stamp| snapshot.age(stamp, now) - snapshot.paused_since(stamp));
            VmReport {
                name: vm.name.clone(),
                reachable: runs
                    && (vm.sessions > 0 || silence.is_some_and(|silence| silence <= REACHABLE_MS)),
                last_handshake_age_ms: handshake,
                capabilities: vm.capabilities.clone(),
                identity: Identity::meant(&vm.identity).as_str(),
                sessions: if runs { vm.sessions } else { 0 },
                bus_subscribed: runs && !vm.topics.is_empty(),
                topics: if runs { vm.topics.clone() } else { Vec::new() },
                topics_more: if runs { vm.topics_more } else { 0 },
                last_publish_age_ms: age(vm.publish),
                last_heartbeat_age_ms: age(vm.heartbeat),
                queued: if runs { vm.queued } else { 0 },
                lag: if runs { vm.lag } else { 0 },
                in_flight: if runs { vm.in_flight } else { 0 },
            }
        })
        .collect();
    let groups = snapshot.groups.iter().cloned().map(|group| match runs {
        true => group,
        false => Figures { members: 0, in_flight: 0, stalled: None, ..group },
    });
    let last =
        vms.iter().filter(|vm| vm.last_handshake_age_ms.is_some()).min_by_key(|vm| vm.last_handshake_age_ms);
    Report {
        schema: SCHEMA,
        broker: BrokerReport {
            state,
            pid,
            version: Some(snapshot.version.clone()),
            started_at: Some(snapshot.started_at.clone()),
            uptime_ms: said_by_it.then(|| snapshot.age(snapshot.started_boot_ms, now)),
            listeners: if said_by_it { snapshot.listeners.clone() } else { Vec::new() },
            journal: snapshot.journal.clone(),
            reload_refused: snapshot.reload_refused.clone(),
            logs_stalled: snapshot.logs_stalled.clone(),
            latest: snapshot.latest.clone(),
            signals_dropped: snapshot.signals_dropped,
            counters: snapshot.counters.clone(),
            pauses: {
                let Pauses { count, total_ms, last_ms, ended_boot_ms } = snapshot.pauses;
                let last_age_ms = (count > 0).then(|| snapshot.age(ended_boot_ms, now));
                PausesReport { count, total_ms, last_ms, last_age_ms }
            },
        },
        reachable: vms.iter().any(|vm| vm.reachable),
        last_handshake_vm: last.map(|vm| vm.name.clone()),
        last_handshake_age_ms: last.and_then(|vm| vm.last_handshake_age_ms),
        vms,
        groups_count: snapshot.groups_count,
        groups: groups.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::identity::VmName;
    use crate::core::status::VmTable;
    use crate::core::status::tests::snapshot;

    #[test]
    fn states_and_reach() {
        let table = VmTable::new(9);
        table.enter(&VmName::parse("dev").unwrap(), 1_000).unwrap();
        let silent = snapshot(&table, 1_000, 50_000);
        let at = |age: i64, holder: Holder| {
            let now = Now { boot_ms: 1_000 + age, wall_ms: 0, boot_id: "a".into() };
            // Refreshed lately, whatever the VM's age is.
            let fresh = Snapshot { boot_ms: now.boot_ms, ..silent.clone() };
            let report = report(Some(&fresh), holder, &now);
            (report.broker.state, report.vms[0].reachable, report.vms[0].last_handshake_age_ms)
        };
        assert_eq!(at(0, Holder::Pid(7)), (State::Running, true, Some(0)));
        assert_eq!(at(REACHABLE_MS, Holder::Pid(7)), (State::Running, true, Some(REACHABLE_MS)));
        assert!(!at(REACHABLE_MS + 1, Holder::Pid(7)).1);
        assert_eq!(at(0, Holder::Nobody), (State::Offline, false, Some(0)));
        // Another process holds the lock and has said nothing yet.
        assert_eq!(at(0, Holder::Pid(8)).0, State::Starting);
        assert_eq!(at(0, Holder::Beginning).0, State::Starting);
        // A full disk had no room for the pid.
        assert_eq!(at(0, Holder::Unknown).0, State::Running);
        // The broker was paused for a minute, and could not hear anybody.
        let paused = |stamp: i64| {
            let now = Now { boot_ms: 1_000 + REACHABLE_MS + 60_000, wall_ms: 0, boot_id: "a".into() };
            let pauses = Pauses { count: 1, total_ms: 60_000, last_ms: 60_000, ended_boot_ms: now.boot_ms };
            let mut fresh = Snapshot { boot_ms: now.boot_ms, pauses, ..silent.clone() };
            fresh.vms[0].handshake = Some(stamp);
            report(Some(&fresh), Holder::Pid(7), &now).vms[0].reachable
        };
        assert_eq!((paused(1_000), paused(999)), (true, false));
        let late = |ms| {
            let now = Now { boot_ms: 1_000 + ms, wall_ms: 0, boot_id: "a".into() };
            report(Some(&silent), Holder::Pid(7), &now).broker.state
        };
        assert_eq!((late(UNRESPONSIVE_MS), late(UNRESPONSIVE_MS + 1)), (State::Running, State::Unresponsive));
        let nothing = Now { boot_ms: 0, wall_ms: 0, boot_id: "a".into() };
        assert_eq!(report(None, Holder::Nobody, &nothing).broker.state, State::Offline);
        assert_eq!(report(None, Holder::Pid(7), &nothing).broker.state, State::Starting);
    }
}
