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
        let exit = match &error {
            BrokerError::StateRoot(StateRootError::InUse { .. } | StateRootError::Foreign { .. }) => {
                Exit::CannotCreate
            }
            BrokerError::StateRoot(StateRootError::NotOwned { .. }) => Exit::Refused,
            BrokerError::StateRoot(StateRootError::Newer { .. } | StateRootError::Damaged { .. }) => {
                Exit::BadData
            }
            BrokerError::StateRoot(StateRootError::Io { error, .. })
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::Refused
            }
            BrokerError::StateRoot(StateRootError::Io { what, .. }) if *what == "create" => {
                Exit::CannotCreate
            }
            BrokerError::StateRoot(StateRootError::Io { .. }) => Exit::Io,
            BrokerError::Journal(OpenError::Unusable { .. }) => Exit::BadData,
            BrokerError::Journal(OpenError::Io { .. }) => Exit::Io,
            BrokerError::Logs(LogsError::JournalBehind { .. }) => Exit::BadData,
            BrokerError::Logs(LogsError::Io { .. }) => Exit::Io,
            BrokerError::Listen { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                Exit::BadConfig
            }
            BrokerError::Listen { .. } => Exit::CannotCreate,
            BrokerError::Io { .. } | BrokerError::JournalFailed(_) => Exit::Io,
        };
        Failure::new(exit, error.to_string())
    }
}
