//! SIGHUP: castra.toml is read anew while the broker runs.
//!
//! ```text
//! SIGHUP ─▶ castra.toml, token files ─┬ nothing is wrong ─▶ a new policy, in force at once
//!                                     └ something is ─▶ said; the old one stays in force
//! ```
//!
//! Always holds: a castra.toml that is wrong, or no regular file with something in it, changes nothing, nor does one that
//! lowers trust or drops all VMs without saying so; a SIGHUP ends no broker, however early it comes; only
//! trust, hybrid and the VMs change before the next start, and what else differs is said. Owner: `app/broker.rs`.

use super::config::{self, Config};
use super::service::Service;
use super::{Exit, Failure};
use crate::cli::BrokerArgs;
use crate::core::broker;
use crate::core::config::advice::{metrics_to_all, open_to_all};
use crate::core::config::trust_word;
use crate::core::door::tcp::is_loopback;
use crate::core::events::Recorder;
use crate::core::policy::{Policy, Trust, VmEntry};
use crate::core::status::ReloadRefused;
use nix::sys::signal::{SigSet, Signal as Sig};
use nix::unistd::geteuid;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::signal::unix::Signal;
use tokio::sync::watch;

/// SIGHUP waits from here on, until there is somebody to take it.
pub fn hold_signal() {
    let mut signals = SigSet::empty();
    signals.add(Sig::SIGHUP);
    // It cannot fail; a signal that is not held ends a broker that has not begun.
    let _ = signals.thread_block();
}

/// It comes, also one that waited.
pub fn release_signal() {
    let mut signals = SigSet::empty();
    signals.add(Sig::SIGHUP);
    let _ = signals.thread_unblock();
}

/// Puts a new policy in force.
pub struct Reloader {
    /// What the broker was started with.
    started: Config,
    args: BrokerArgs,
    /// What is wrong with trust = "open" for this broker: an address of it is not of the loopback.
    open: Option<String>,
    in_force: watch::Sender<Arc<Policy>>,
    service: Arc<Service>,
    recorder: Arc<Recorder>,
}

impl Reloader {
    /// For a broker that runs with `started`, and `args` before it.
    pub fn new(
        started: Config,
        args: BrokerArgs,
        broker: &broker::Config,
        in_force: watch::Sender<Arc<Policy>>,
        service: Arc<Service>,
        recorder: Arc<Recorder>,
    ) -> Self {
        let handed = broker.handed.tcp.iter().filter_map(|listener| listener.local_addr().ok());
        let is_open = |addr: &SocketAddr| !is_loopback(addr);
        let open = broker.tcp.iter().copied().chain(handed).find(is_open).map(|addr| open_to_all(&addr));
        let open = open.or_else(|| broker.metrics.filter(is_open).map(|addr| metrics_to_all(&addr)));
        Reloader { started, args, open, in_force, service, recorder }
    }

    /// Who is told.
    pub fn service(&self) -> Arc<Service> {
        self.service.clone()
    }

    /// Does it at each SIGHUP, as long as the broker runs.
    pub async fn serve(self, mut hangup: Signal) {
        let this = Arc::new(self);
        while hangup.recv().await.is_some() {
            let this = this.clone();
            // A disk may hang.
            if tokio::task::spawn_blocking(move || this.reload()).await.is_err() {
                return;
            }
        }
    }

    fn reload(&self) {
        self.service.reloading();
        let complaint = match self.read() {
            Ok((config, policy)) => {
                self.take(&config, policy);
                self.recorder.reload_refused(None);
                None
            }
            Err(failure) => {
                failure.message.lines().for_each(|line| tracing::error!("config: {line}"));
                tracing::error!("config: castra.toml was not taken; what was in force stays so");
                let reason = failure.message.lines().next().unwrap_or_default().to_owned();
                let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
                self.recorder.reload_refused(Some(ReloadRefused { at, reason }));
                Some("castra.toml is wrong and was not taken; `castra status` says why".to_owned())
            }
        };
        self.service.reloaded(complaint);
    }

    fn read(&self) -> Result<(Config, Policy), Failure> {
        let mut config = config::load_again(self.started.file.as_deref())?;
        config.take(&self.args)?;
        let policy = config.examine(&[geteuid().as_raw()]);
        config.refuse_mistakes()?;
        let (trust, has_vms) = {
            let old = self.in_force.borrow();
            (old.trust, old.vms().next().is_some())
        };
        if let Some(why) = config.weakens(trust, has_vms) {
            return Err(Failure::new(Exit::BadConfig, "weaker-config", why));
        }
        match &self.open {
            Some(why) if policy.trust == Trust::Open => {
                Err(Failure::new(Exit::BadConfig, "not-loopback", why.clone()))
            }
            _ => Ok((config, policy)),
        }
    }

    fn take(&self, config: &Config, policy: Policy) {
        config.warnings.iter().for_each(|warning| tracing::warn!("config: {}", config.line(warning)));
        let changes = Changes::between(&self.in_force.borrow(), &policy);
        let (trust, vms) = (trust_word(policy.trust), policy.vms().count());
        self.in_force.send_replace(Arc::new(policy));
        let Changes { added, removed, changed } = changes;
        tracing::info!(trust, vms, added, removed, changed, "config: castra.toml is read anew and in force");
        let later = self.started.differs(config);
        if !later.is_empty() {
            tracing::warn!("config: takes effect at the next start: {}", later.join(", "));
        }
    }
}

/// How many VMs are not what they were.
struct Changes {
    added: usize,
    removed: usize,
    changed: usize,
}

impl Changes {
    fn between(old: &Policy, new: &Policy) -> Self {
        let by_name = |policy: &Policy| -> BTreeMap<_, VmEntry> {
            policy.vms().map(|vm| (vm.name.clone(), vm.clone())).collect()
        };
        let (old, new) = (by_name(old), by_name(new));
        let is_new = |name| !old.contains_key(name);
        Changes {
            added: new.keys().filter(|name| is_new(*name)).count(),
            removed: old.keys().filter(|name| !new.contains_key(*name)).count(),
            changed: new.values().filter(|vm| old.get(&vm.name).is_some_and(|was| was != *vm)).count(),
        }
    }
}
