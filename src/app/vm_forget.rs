//! `castra vm forget`: a VM that is gone for good is shown no longer.
//!
//! ```text
//! a broker runs ─▶ it is asked over castra.sock ─▶ the status file is looked at until the VM is not in it
//! none runs     ─▶ the lock is taken, the status file written without the VM
//! ```
//!
//! Always holds: when it says so, `castra status` shows the VM no more. Owner: the operator.

use super::failure::{Exit, Failure};
use super::given::vm_name;
use super::{host, status};
use crate::cli::ForgetArgs;
use crate::core::client::Client;
use crate::core::state_root::{Holder, StateRoot, StateRootError};
use crate::core::status_file::{self, StatusWriter};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// The broker answers at once, or something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The status shows it within a tenth of a second; on a full machine later.
const SHOWN: Duration = Duration::from_secs(2);

pub fn run(root: &StateRoot, args: &ForgetArgs) -> Result<Exit, Failure> {
    let name = vm_name(&args.name)?;
    let name = name.as_str();
    let holder = root.lock_holder().map_err(|e| Failure::unreadable(&root.lock(), &e))?;
    if holder == Holder::Nobody {
        forget_offline(root, name)?;
    } else {
        ask(root, name)?;
        let until = Instant::now() + SHOWN;
        while Instant::now() < until && status::look(root)?.vms.iter().any(|vm| vm.name == name) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let said = match args.json {
        true => serde_json::json!({"schema": 1, "forgotten": name}).to_string(),
        false => format!("{name} is forgotten; its logs stay"),
    };
    Ok(writeln!(io::stdout(), "{said}").map(|()| Exit::Ok)?)
}

fn unknown(name: &str) -> Failure {
    let why = format!("no VM {name} is remembered; 'castra status' shows those that are");
    Failure::new(Exit::Degraded, "unknown-vm", why)
}

fn forget_offline(root: &StateRoot, name: &str) -> Result<(), Failure> {
    let path = root.status();
    let unreadable = |e: io::Error| Failure::unreadable(&path, &e);
    let known = || match status_file::read(&path).map_err(unreadable)? {
        Some(snapshot) if snapshot.vms.iter().any(|vm| vm.name == name) => Ok(snapshot),
        _ => Err(unknown(name)),
    };
    // Before the lock, which makes a state root of any folder.
    known()?;
    // Until this ends no broker starts, which would take in what is being written; and what another one of these,
    // or a broker, wrote before is read again.
    let (_, _lock) = root.open().map_err(|error| match error {
        StateRootError::InUse { .. } => {
            let why = "a broker, or another of these commands, has just taken this state root; try it again";
            Failure::new(Exit::TryAgain, "busy", why)
        }
        error => error.into(),
    })?;
    let mut snapshot = known()?;
    snapshot.vms.retain(|vm| vm.name != name);
    StatusWriter::open(root).and_then(|mut writer| writer.write(&snapshot)).map_err(unreadable)
}

fn ask(root: &StateRoot, name: &str) -> Result<(), Failure> {
    let body = serde_json::json!({"type": "forget", "vm": name}).to_string();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
    let asked = async {
        let mut client: Client = host::connect(root).await?;
        let lost = |error| Failure::new(Exit::TryAgain, "connection-lost", format!("{error}; try it again"));
        client.send(body.as_bytes()).await.map_err(lost)?;
        client.receive().await.map_err(lost)
    };
    let reply = runtime.block_on(async { host::within(PATIENCE, asked).await }).map_err(|_| {
        let why = format!("no answer within {PATIENCE:?}; 'castra status' says how the broker is");
        Failure::new(Exit::Timeout, "timeout", why)
    })??;
    if reply.status == "ok" {
        return Ok(());
    }
    let code = reply.code.unwrap_or_default();
    let exit = match code.as_str() {
        "unknown-vm" => return Err(unknown(name)),
        "vm-has-sessions" => Exit::Refused,
        _ => Exit::BadData,
    };
    let why = format!("{code}: {}", reply.reason.unwrap_or_default());
    Err(Failure::new(exit, code, why))
}
