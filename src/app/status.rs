//! `castra status`: which VMs are fresh. Reads the status file and asks the lock; never waits.

use super::{Exit, Failure};
use crate::cli::StatusArgs;
use crate::core::clock;
use crate::core::state_root::StateRoot;
use crate::core::status::{Now, State};
use crate::core::status_file;
use crate::core::status_report::{Report, report};
use std::io::{self, Write};
use std::time::Duration;

pub fn run(root: &StateRoot, args: &StatusArgs) -> Result<Exit, Failure> {
    let path = root.status();
    let unreadable = |e: io::Error| Failure::new(Exit::Io, "io", format!("{}: {e}", path.display()));
    let holder = root.lock_holder().map_err(unreadable)?;
    let snapshot = status_file::read(&path).map_err(unreadable)?;
    let now = Now { boot_ms: clock::boot_ms(), wall_ms: clock::wall_ms(), boot_id: clock::boot_id() };
    let report = report(snapshot.as_ref(), holder, &now);
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        table(&mut out, &report)?;
    }
    Ok(if report.broker.state == State::Running { Exit::Ok } else { Exit::Degraded })
}

fn table(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let state = serde_json::to_value(report.broker.state)?;
    let journal = &report.broker.journal;
    writeln!(
        out,
        "broker {} · events {}..{} · logs at {}",
        state.as_str().unwrap_or("?"),
        journal.first_seq,
        journal.head_seq,
        journal.logs_seq
    )?;
    journal.damage.iter().try_for_each(|damage| writeln!(out, "damage: {damage}"))?;
    if let Some(why) = &report.broker.logs_stalled {
        writeln!(out, "logs are not being written: {why}")?;
    }
    let width = report.vms.iter().map(|vm| vm.name.len()).max().unwrap_or(0).max(2);
    writeln!(
        out,
        "{:width$}  {:9}  {:>8}  {:>12}  {:>12}",
        "VM", "REACHABLE", "SESSIONS", "HELLO", "PUBLISH"
    )?;
    for vm in &report.vms {
        let reachable = if vm.reachable { "yes" } else { "no" };
        let (hello, publish) = (age(vm.last_handshake_age_ms), age(vm.last_publish_age_ms));
        writeln!(out, "{:width$}  {reachable:9}  {:>8}  {hello:>12}  {publish:>12}", vm.name, vm.sessions)?;
    }
    Ok(())
}

fn age(ms: Option<i64>) -> String {
    match ms {
        None => "never".to_owned(),
        Some(ms) if ms < 1000 => format!("{ms}ms"),
        Some(ms) => humantime::format_duration(Duration::from_secs(ms.unsigned_abs() / 1000))
            .to_string()
            .split(' ')
            .take(2)
            .collect(),
    }
}
