//! `castra status`: which VMs are fresh.
//!
//! Always holds: it reads the status file and asks the lock, and never waits for the broker (invariant 8). Owner: the
//! operator; `tail/standing.rs` and `vm_forget.rs` look as well.

use super::failure::{Exit, Failure};
use super::given::vm_name;
use super::status_table::{self, Look};
use super::stderr::{self, say};
use crate::cli::StatusArgs;
use crate::core::clock;
use crate::core::state_root::{Holder, StateRoot};
use crate::core::status::{Now, State};
use crate::core::status_file;
use crate::core::status_report::{Report, report};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// `--watch` looks so often.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(root: &StateRoot, args: &StatusArgs) -> Result<Exit, Failure> {
    if args.watch {
        stderr::start(args.json, |_| ()).map_err(Failure::system)?;
    }
    let mut first = true;
    loop {
        let mut report = look_all_the_same(root, first)?;
        if let Some(vm) = &args.vm {
            only(&mut report, vm_name(vm)?.as_str())?;
        }
        if !args.quiet {
            show(root, &report, args, first)?;
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
    let (holder, path) = (holder(root)?, root.status());
    let snapshot = status_file::read(&path).map_err(|e| Failure::unreadable(&path, &e))?;
    Ok(report(snapshot.as_ref(), holder, &now()))
}

/// The same without what the last broker remembered, when that cannot be read and nobody will mend it before the
/// next start: that no broker runs is known all the same. What was unreadable is said once.
fn look_all_the_same(root: &StateRoot, first: bool) -> Result<Report, Failure> {
    match look(root) {
        Err(failure) if failure.exit == Exit::BadData && holder(root)? == Holder::Nobody => {
            let why = "the VMs that the last broker knew are not shown; the next start begins anew";
            if first {
                say(&format!("{}; {why}", failure.message));
            }
            Ok(report(None, Holder::Nobody, &now()))
        }
        looked => looked,
    }
}

fn holder(root: &StateRoot) -> Result<Holder, Failure> {
    root.lock_holder().map_err(|e| Failure::unreadable(&root.lock(), &e))
}

fn now() -> Now {
    Now { boot_ms: clock::boot_ms(), wall_ms: clock::wall_ms(), boot_id: clock::boot_id() }
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

fn show(root: &StateRoot, report: &Report, args: &StatusArgs, first: bool) -> Result<(), Failure> {
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
        let look = Look { watch: args.watch, one: args.vm.is_some() };
        status_table::write(&mut text, report, root.path(), look)?;
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}
