//! `castra agent`: the guest's side.
//!
//! Always holds: programs can publish as long as it runs, whether the broker is there or not; it ends when it is told
//! to, and in order. Owner: [`super::main`].

mod given;
mod outbox;
mod publish;
mod service;

use super::stderr::{self, Stderr};
use super::{Exit, Failure};
use crate::cli::{AgentArgs, AgentCommand};
use crate::core::agent::dial::System;
use crate::core::agent::local::Door;
use crate::core::agent::outbox::{Opened, Outbox, OutboxError};
use crate::core::agent::{self, Plan, Standing, Tally};
use crate::core::awake;
use nix::libc::SIGXCPU;
use service::Service;
use std::cell::Cell;
use std::path::Path;
use std::str::FromStr;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::level_filters::LevelFilter;

pub fn run(mut args: AgentArgs, json: &mut bool) -> Result<Exit, Failure> {
    match args.command.take() {
        Some(AgentCommand::Publish(args)) => {
            *json = args.json;
            return publish::run(*args);
        }
        Some(AgentCommand::Outbox(args)) => {
            *json = args.json();
            return outbox::run(args);
        }
        None => {}
    }
    let (plan, bounds) = (given::plan(&args)?, given::bounds(&args)?);
    stderr::start(false, |_| ()).map_err(Failure::system)?;
    log(&args.log_level);
    let service = Service::start().map_err(Failure::system)?;
    // That a damaged one was put aside is said where it is done.
    let Opened { outbox, .. } = Outbox::open(&args.state_dir, bounds).map_err(|e| unopened(&e))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
    let result = runtime.block_on(serve(plan, &args.socket, &outbox, &service));
    runtime.block_on(outbox.close());
    // A name that is still looked up is not waited for.
    runtime.shutdown_background();
    result
}

async fn serve(plan: Plan, socket: &Path, outbox: &Outbox, service: &Service) -> Result<Exit, Failure> {
    let _watch = awake::watch();
    let (mut interrupt, mut terminate, mut cpu) = (
        signal(SignalKind::interrupt()).map_err(Failure::system)?,
        signal(SignalKind::terminate()).map_err(Failure::system)?,
        signal(SignalKind::from_raw(SIGXCPU)).map_err(Failure::system)?,
    );
    let is_used_up = Cell::new(false);
    let door = Door::bind(socket).map_err(|error| {
        let why =
            format!("no socket can be made at {}: {error}; --socket names another path", socket.display());
        Failure::new(Exit::CannotCreate, "cannot-listen", why)
    })?;
    let (stop, stopped) = watch::channel(false);
    let (standing, stands) = watch::channel(Standing::Away("looking for the broker".into()));
    let (tally, vm) = (Tally::default(), plan.identity.vm.clone());
    tracing::info!("the agent of {vm} runs; programs publish at {}", door.path().display());
    service.ready();
    let end = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let told = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = cpu.recv() => is_used_up.set(true),
        }
        tracing::info!("ending");
        service.stopping();
        stop.send_replace(true);
    };
    let work = async {
        let linked = agent::run(plan, System, outbox, standing, &tally, stopped.clone());
        tokio::join!(linked, door.serve(vm, outbox.clone(), end(stopped.clone())))
    };
    tokio::select! {
        _ = async { tokio::join!(work, told) } => {}
        () = service.report(stands, outbox.clone(), &tally) => {}
    }
    if is_used_up.get() { Err(Failure::no_processor_time()) } else { Ok(Exit::Ok) }
}

/// From here on everything that is traced is a line on stderr; journald has times of its own.
fn log(level: &str) {
    let level = LevelFilter::from_str(level).unwrap_or(LevelFilter::INFO);
    let lines = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_target(false);
    let lines = lines.with_writer(|| Stderr);
    // A second call would be a second agent in this process, which keeps the first one's.
    let _ = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => tracing::subscriber::set_global_default(lines.without_time().finish()),
        None => tracing::subscriber::set_global_default(lines.finish()),
    };
}

/// Why there is no outbox.
fn unopened(error: &OutboxError) -> Failure {
    if let OutboxError::Io { error, .. } = error
        && error.kind() == std::io::ErrorKind::WouldBlock
    {
        return Failure::no_threads(error);
    }
    let (exit, code) = match error {
        OutboxError::InUse { .. } => (Exit::CannotCreate, "in-use"),
        OutboxError::Foreign { .. } => (Exit::CannotCreate, "cannot-create"),
        OutboxError::NotOwned { .. } => (Exit::Refused, "not-owned"),
        OutboxError::Io { error, .. } => super::failure::of_io(error),
        OutboxError::Failed(refusal) => (Exit::Io, refusal.code),
    };
    Failure::new(exit, code, error.to_string())
}
