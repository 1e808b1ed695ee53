//! `castra status`: which VMs are fresh. Reads the status file and asks the lock; never waits.

use super::failure::{Exit, Failure};
use super::status_table;
use crate::cli::StatusArgs;
use crate::core::clock;
use crate::core::state_root::StateRoot;
use crate::core::status::{Now, State};
use crate::core::status_file;
use crate::core::status_report::{Report, report};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// `--watch` looks so often.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(root: &StateRoot, args: &StatusArgs) -> Result<Exit, Failure> {
    let mut first = true;
    loop {
        let mut report = look(root)?;
        if let Some(vm) = &args.vm {
            only(&mut report, vm)?;
        }
        if !args.quiet {
            show(&report, args, first)?;
        }
        if !args.watch {
            let good = match &args.vm {
                Some(_) => report.reachable,
                None => report.broker.state == State::Running,
            };
            return Ok(if good { Exit::Ok } else { Exit::Degraded });
        }
        first = false;
        std::thread::sleep(LOOK);
    }
}

/// What there is to say now.
pub fn look(root: &StateRoot) -> Result<Report, Failure> {
    let (lock, path) = (root.lock(), root.status());
    let holder = root.lock_holder().map_err(|e| Failure::unreadable(&lock, &e))?;
    let snapshot = status_file::read(&path).map_err(|e| Failure::unreadable(&path, &e))?;
    let now = Now { boot_ms: clock::boot_ms(), wall_ms: clock::wall_ms(), boot_id: clock::boot_id() };
    Ok(report(snapshot.as_ref(), holder, &now))
}

/// Leaves one VM in the report.
fn only(report: &mut Report, name: &str) -> Result<(), Failure> {
    report.vms.retain(|vm| vm.name == name);
    let Some(vm) = report.vms.first() else {
        let why = format!("no VM {name} is remembered; 'castra status' shows those that are");
        return Err(Failure::new(Exit::Degraded, "unknown-vm", why));
    };
    report.reachable = vm.reachable;
    report.last_handshake_vm = vm.last_handshake_age_ms.map(|_| vm.name.clone());
    report.last_handshake_age_ms = vm.last_handshake_age_ms;
    Ok(())
}

fn show(report: &Report, args: &StatusArgs, first: bool) -> Result<(), Failure> {
    // All of it in one write: a screen that is drawn anew does not flicker.
    let mut text = Vec::new();
    if args.json {
        serde_json::to_writer(&mut text, report).map_err(io::Error::from)?;
        text.push(b'\n');
    } else {
        if args.watch && io::stdout().is_terminal() {
            text.extend_from_slice(b"\x1b[H\x1b[2J");
        } else if !first {
            text.push(b'\n');
        }
        status_table::write(&mut text, report)?;
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}
