//! `castra broker`: runs the broker until SIGTERM or SIGINT.
//!
//! Always holds: why a start failed is said on stderr, and in broker.log as soon as the state root is ours.
//! Owner: [`super::run`].

use super::config::Config as Configured;
use super::reload::{self, Reloader};
use super::service::{self, Service};
use super::{Exit, Failure, logging, stderr};
use crate::cli::BrokerArgs;
use crate::core::broker::{self, BrokerError, Config};
use crate::core::config::{LogFormat, Settings};
use crate::core::door::listen::Handed;
use crate::core::door::tcp::BindError;
use crate::core::events::Recorder;
use crate::core::journal::OpenError;
use crate::core::journal::aligned::BLOCK;
use crate::core::log_view::LogsError;
use crate::core::room;
use crate::core::state_root::{StateRoot, StateRootError};
use crate::core::threads;
use nix::libc::SIGXCPU;
use nix::unistd::geteuid;
use std::cell::Cell;
use std::io::{self, Write};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Prints what is in force, as a castra.toml.
pub fn print_config(root: &StateRoot, config: &Configured) -> Result<Exit, Failure> {
    io::stdout().lock().write_all(config.print(root)?.as_bytes())?;
    Ok(Exit::Ok)
}

pub fn run(root: StateRoot, config: Configured, args: BrokerArgs) -> Result<Exit, Failure> {
    // First: this changes the environment.
    let handed = service::handed()?;
    let json = config.settings.log_format == LogFormat::Json;
    stderr::start(json, |lost| {
        tracing::info!(target: logging::LOG_ONLY, lost, "stderr: it is read again");
    })
    .map_err(Failure::system)?;
    let service = Arc::new(Service::start(config.settings.log_format).map_err(Failure::system)?);
    let ended = serve(root, config, args, handed, &service);
    service.end(ended.as_ref().err());
    ended.map(|()| Exit::Ok)
}

fn serve(
    root: StateRoot,
    mut configured: Configured,
    args: BrokerArgs,
    handed: Handed,
    service: &Arc<Service>,
) -> Result<(), Failure> {
    let policy = configured.examine(&[geteuid().as_raw()]);
    configured.refuse_mistakes()?;
    let (in_force, policy) = watch::channel(Arc::new(policy));
    let Settings { tcp, unix, vsock, metrics, log_level, log_format, topics, mut limits, .. } =
        configured.settings.clone();
    // In whole blocks.
    limits.segment_bytes &= !(BLOCK as u64 - 1);
    let config = Config { root, tcp, unix, vsock, metrics, policy, handed, topics, limits };
    config.check()?;
    let runtime = threads::runtime(broker::THREADS).map_err(Failure::system)?;
    // From here on a signal ends nothing by itself.
    let signals = runtime.block_on(async { Signals::new() }).map_err(Failure::system)?;
    reload::release_signal();

    let (journal_id, lock) = config.root.open().map_err(BrokerError::from)?;
    // Held until the process is gone, and with it every thread that writes: then another broker may begin.
    std::mem::forget(lock);
    let recorder = Recorder::start(&config.root, config.limits.log_bytes).map_err(Failure::system)?;
    logging::start(recorder.clone(), log_level, log_format);
    configured.warnings.iter().for_each(|warning| tracing::warn!("config: {}", configured.line(warning)));
    let reloader = Reloader::new(configured, args, &config, in_force, service.clone(), recorder.clone());
    let ended = run_to_end(&runtime, config, &recorder, journal_id, reloader, signals);
    // What hangs in a view is left to the next start.
    runtime.shutdown_background();
    if let Err(failure) = &ended {
        tracing::error!(target: logging::LOG_ONLY, code = %failure.code, "broker: {}", failure.message);
    }
    recorder.stop();
    ended
}

fn run_to_end(
    runtime: &Runtime,
    config: Config,
    recorder: &Arc<Recorder>,
    journal_id: u128,
    reloader: Reloader,
    signals: Signals,
) -> Result<(), Failure> {
    let Signals { mut term, mut int, mut cpu, mut usr1, hup } = signals;
    let service = reloader.service();
    runtime.spawn(reloader.serve(hup));
    let reopened = recorder.clone();
    runtime.spawn(async move {
        while usr1.recv().await.is_some() {
            reopened.reopen();
            tracing::info!("broker: the log and the records are opened anew");
        }
    });
    let is_used_up = Cell::new(false);
    let shutdown = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = cpu.recv() => is_used_up.set(true),
        }
    };
    let ended = broker::run(config, recorder.clone(), journal_id, service, shutdown);
    runtime.block_on(ended)?;
    if is_used_up.get() { Err(Failure::no_processor_time()) } else { Ok(()) }
}

/// What a broker listens to beside its doors.
struct Signals {
    term: Signal,
    int: Signal,
    cpu: Signal,
    usr1: Signal,
    hup: Signal,
}

impl Signals {
    /// Within a runtime.
    fn new() -> io::Result<Self> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            cpu: signal(SignalKind::from_raw(SIGXCPU))?,
            usr1: signal(SignalKind::user_defined1())?,
            hup: signal(SignalKind::hangup())?,
        })
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        if let BrokerError::Io { error, .. } = &error
            && error.kind() == io::ErrorKind::WouldBlock
        {
            return Failure::no_threads(error);
        }
        let (exit, code) = match &error {
            BrokerError::StateRoot(error) => reason(error),
            BrokerError::Journal(OpenError::Unusable { .. }) => (Exit::BadData, "journal-unusable"),
            BrokerError::Journal(OpenError::Io { .. }) => (Exit::Io, "io"),
            BrokerError::Logs(LogsError::JournalBehind { .. }) => (Exit::BadData, "journal-behind"),
            BrokerError::Logs(LogsError::Io { .. }) => (Exit::Io, "io"),
            BrokerError::Listen(listen) => match &listen.error {
                BindError::NotLoopback => (Exit::BadConfig, "not-loopback"),
                BindError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    (Exit::Refused, "permission-denied")
                }
                BindError::Io(_) => (Exit::CannotCreate, "cannot-listen"),
            },
            BrokerError::Io { .. } => (Exit::Io, "io"),
            BrokerError::FileLimit { .. } => (Exit::CannotCreate, "file-limit"),
            BrokerError::JournalFailed(_) => (Exit::Io, "journal-failed"),
        };
        match system_error(&error) {
            Some(why) if room::is_limit(why) => {
                return Failure::new(exit, "file-limit", format!("{error}; {}", room::RAISE));
            }
            Some(why) if room::is_full(why) => {
                return Failure::new(exit, "disk-full", format!("{error}; {FREE_SPACE}"));
            }
            _ => {}
        }
        Failure::new(exit, code, error.to_string())
    }
}

/// After a crash logs are written on from the last checkpoint: 64 MiB of events, each in two or three of them.
const FREE_SPACE: &str = "the disk of the state root is full: free 256 MiB there, then start the broker again. Nothing that \
     was acknowledged is lost. Below the state root only rotated logs (logs/bus/*.log.1 and on) may be removed";

/// What the system said to it.
fn system_error(error: &BrokerError) -> Option<&io::Error> {
    match error {
        BrokerError::StateRoot(StateRootError::Io { error, .. })
        | BrokerError::Journal(OpenError::Io { error, .. })
        | BrokerError::Logs(LogsError::Io { error, .. })
        | BrokerError::Io { error, .. } => Some(error),
        _ => None,
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
