//! `castra broker`: runs the broker until SIGTERM or SIGINT.

use super::{Exit, Failure, logging};
use crate::cli::BrokerArgs;
use crate::core::broker::{self, BrokerError, Config};
use crate::core::events::Recorder;
use crate::core::journal::OpenError;
use crate::core::journal::aligned::BLOCK;
use crate::core::limits::Limits;
use crate::core::log_view::LogsError;
use crate::core::state_root::{StateRoot, StateRootError};
use std::io::{self, Write};
use tokio::signal::unix::{SignalKind, signal};

pub fn run(root: StateRoot, args: BrokerArgs) -> Result<Exit, Failure> {
    let mut limits = Limits::default();
    // In whole blocks.
    limits.segment_bytes = args.segment_bytes.unwrap_or(limits.segment_bytes) & !(BLOCK as u64 - 1);
    limits.retain_bytes = args.retain_bytes.unwrap_or(limits.retain_bytes);
    limits.retain_age = args.retain_age.unwrap_or(limits.retain_age);
    limits.idle_time = args.idle_time.unwrap_or(limits.idle_time);
    let tcp = if args.no_tcp { Vec::new() } else { args.tcp };
    let config = Config { root, tcp, unix: args.unix, limits };

    let (journal_id, lock) = config.root.open().map_err(BrokerError::from)?;
    // Held until the process is gone, and with it every thread that writes: then another broker may begin.
    std::mem::forget(lock);
    let recorder = Recorder::start(&config.root)?;
    logging::start(recorder.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        let ready = |listeners: &[String]| {
            // Nobody may be reading; the broker runs all the same.
            let _ = writeln!(io::stderr(), "castra: broker running, listening on {}", listeners.join(" "));
        };
        broker::run(config, recorder.clone(), journal_id, ready, shutdown).await.map_err(Failure::from)
    });
    // What hangs in a view is left to the next start.
    runtime.shutdown_background();
    recorder.stop();
    ended.map(|()| Exit::Ok)
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        let (exit, code) = match &error {
            BrokerError::StateRoot(error) => reason(error),
            BrokerError::Journal(OpenError::Unusable { .. }) => (Exit::BadData, "journal-unusable"),
            BrokerError::Journal(OpenError::Io { .. }) => (Exit::Io, "io"),
            BrokerError::Logs(LogsError::JournalBehind { .. }) => (Exit::BadData, "journal-behind"),
            BrokerError::Logs(LogsError::Io { .. }) => (Exit::Io, "io"),
            BrokerError::Listen { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                (Exit::BadConfig, "not-loopback")
            }
            BrokerError::Listen { .. } => (Exit::CannotCreate, "cannot-listen"),
            BrokerError::Io { .. } => (Exit::Io, "io"),
            BrokerError::JournalFailed(_) => (Exit::Io, "journal-failed"),
        };
        Failure::new(exit, code, error.to_string())
    }
}

impl From<StateRootError> for Failure {
    fn from(error: StateRootError) -> Self {
        let (exit, code) = reason(&error);
        Failure::new(exit, code, error.to_string())
    }
}

/// What a state root that cannot be used means to whoever typed the command.
pub fn reason(error: &StateRootError) -> (Exit, &'static str) {
    match error {
        StateRootError::InUse { .. } => (Exit::CannotCreate, "state-root-in-use"),
        StateRootError::Foreign { .. } => (Exit::CannotCreate, "state-root-foreign"),
        StateRootError::NotOwned { .. } => (Exit::Refused, "state-root-not-owned"),
        StateRootError::Newer { .. } => (Exit::BadData, "state-root-newer"),
        StateRootError::Damaged { .. } => (Exit::BadData, "state-root-damaged"),
        StateRootError::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
            (Exit::Refused, "permission-denied")
        }
        StateRootError::Io { what, .. } if *what == "create" => (Exit::CannotCreate, "cannot-create"),
        StateRootError::Io { .. } => (Exit::Io, "io"),
    }
}
