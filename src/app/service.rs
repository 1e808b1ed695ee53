//! systemd: what it is told (`sd_notify`), and the sockets that it hands over.
//!
//! ```text
//! status, ready, alive ──queue──▶ castra-service (thread) ──datagrams──▶ $NOTIFY_SOCKET
//! ```
//!
//! Always holds: without a service manager nothing is sent and no thread is there; one that does not read delays
//! nobody but that thread; it is told that the start takes longer as long as it does. Owner: `app/broker.rs`.

use super::{Exit, Failure, stderr};
use crate::core::config::LogFormat;
use crate::core::door::listen::Handed;
use crate::core::service::Supervisor;
use crate::core::status::{Snapshot, State};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime};

/// A start that takes longer is said so often …
const EXTEND_EVERY: Duration = Duration::from_secs(2);
/// … to take so much longer.
const EXTEND_BY: Duration = Duration::from_secs(30);
/// The words of the status are sent so often at the most, unless the state is another.
const STATUS_EVERY: Duration = Duration::from_secs(3);
/// The end of the broker waits so long for the last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What may wait to be told; a status more is left out, the next one says it.
const QUEUED: usize = 16;

enum Told {
    Status(State, String),
    Ready,
    Alive,
    Reloading,
    /// What is wrong with the settings that were read, if anything.
    Reloaded(Option<String>),
    /// Why, if it is no orderly end.
    End(Option<String>, Sender<()>),
}

/// What stands between the broker and its service manager, if it has one.
pub struct Service {
    queue: Option<SyncSender<Told>>,
    patience: Option<Duration>,
    format: LogFormat,
}

impl Service {
    /// Looks in the environment for a service manager.
    ///
    /// # Errors
    /// There is one, and no thread to be had.
    pub fn start(format: LogFormat) -> io::Result<Self> {
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty());
        let mut service = Service { queue: None, patience: None, format };
        if is_there {
            let (queue, told) = sync_channel(QUEUED);
            std::thread::Builder::new().name("castra-service".into()).spawn(move || tell(&told))?;
            service.queue = Some(queue);
            service.patience = sd_notify::watchdog_enabled();
        }
        Ok(service)
    }

    /// The last words, with why, if it is no orderly end. Waits until they are said, for a second at most.
    pub fn end(&self, why: Option<&Failure>) {
        let (said, heard) = channel();
        // One line: the next one would be another variable.
        let why = why.map(|failure| failure.message.lines().next().unwrap_or_default().to_owned());
        if let Some(queue) = &self.queue
            && queue.try_send(Told::End(why, said)).is_ok()
        {
            let _ = heard.recv_timeout(LAST_WORDS);
        }
    }

    /// The settings are read anew. Waits until that is on its way, for a second at most.
    pub fn reloading(&self) {
        self.tell_surely(|| Told::Reloading);
    }

    /// They were; with what is wrong, if they were not taken. It is shown until they are. Waits like
    /// [`Service::reloading`].
    pub fn reloaded(&self, complaint: Option<String>) {
        self.tell_surely(|| Told::Reloaded(complaint.clone()));
    }

    /// A service manager waits for the word.
    fn tell_surely(&self, what: impl Fn() -> Told) {
        let until = Instant::now() + LAST_WORDS;
        if let Some(queue) = &self.queue {
            while queue.try_send(what()).is_err() && Instant::now() < until {
                std::thread::sleep(LAST_WORDS / 100);
            }
        }
    }

    fn tell(&self, what: impl FnOnce() -> Told) {
        if let Some(queue) = &self.queue {
            // A service manager that does not read misses something.
            let _ = queue.try_send(what());
        }
    }
}

impl Supervisor for Service {
    fn ready(&self, listeners: &[String]) {
        let text = format!("broker running, listening on {}", listeners.join(" "));
        match self.format {
            LogFormat::Text => stderr::say(&text),
            LogFormat::Json => {
                let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
                let line = serde_json::json!({"timestamp": now, "level": "INFO", "message": text, "listeners": listeners});
                stderr::write(format!("{line}\n").as_bytes());
            }
        }
        self.tell(|| Told::Ready);
    }

    fn status(&self, snapshot: &Snapshot) {
        self.tell(|| Told::Status(snapshot.state, words(snapshot)));
    }

    fn patience(&self) -> Option<Duration> {
        self.patience
    }

    fn alive(&self) {
        self.tell(|| Told::Alive);
    }
}

/// What `systemctl status` shows.
fn words(snapshot: &Snapshot) -> String {
    let journal = &snapshot.journal;
    let state = match snapshot.state {
        State::Starting => return "starting: reading the journal".to_owned(),
        State::DiskFull => "disk full, publishers are refused until there is room",
        State::Draining => "draining",
        _ => "running",
    };
    let sessions: u64 = snapshot.vms.iter().map(|vm| u64::from(vm.sessions)).sum();
    let vms = snapshot.vms.iter().filter(|vm| vm.sessions > 0).count();
    let events = match journal.head_seq {
        0 => "no events".to_owned(),
        head => format!("events {}..{head}", journal.first_seq),
    };
    let mut text = format!("{state}; {events}; sessions {sessions}, VMs {vms}");
    if snapshot.logs_stalled.is_some() {
        text.push_str("; the logs are not being written");
    }
    if snapshot.latest.as_ref().is_some_and(|latest| latest.stalled.is_some()) {
        text.push_str("; the newest events per key are not being written");
    }
    if !journal.damage.is_empty() {
        text.push_str("; the journal is damaged, see castra status");
    }
    text
}

fn tell(told: &Receiver<Told>) {
    let mut teller = Teller::default();
    let mut extended = Instant::now();
    loop {
        match told.recv_timeout(EXTEND_EVERY) {
            Ok(Told::Status(state, text)) => teller.status(state, text),
            Ok(Told::Ready) => teller.ready(),
            Ok(Told::Alive) => teller.send(&[NotifyState::Watchdog]),
            Ok(Told::Reloading) => teller.reloading(),
            Ok(Told::Reloaded(complaint)) => teller.reloaded(complaint),
            Ok(Told::End(why, said)) => {
                let why = why.map(|why| format!("failed: {why}"));
                teller.stopping(why.as_deref().unwrap_or("ended"));
                let _ = said.send(());
                return;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if !teller.ready && extended.elapsed() >= EXTEND_EVERY {
            extended = Instant::now();
            let by = u32::try_from(EXTEND_BY.as_micros()).unwrap_or(u32::MAX);
            teller.send(&[NotifyState::ExtendTimeoutUsec(by)]);
        }
    }
}

/// What was said last.
#[derive(Default)]
struct Teller {
    ready: bool,
    stopping: bool,
    silent: bool,
    state: Option<State>,
    text: String,
    at: Option<Instant>,
    /// What stands behind the words of the status.
    complaint: Option<String>,
}

impl Teller {
    fn status(&mut self, state: State, mut text: String) {
        if let Some(complaint) = &self.complaint {
            text = format!("{text}; {complaint}");
        }
        // Its own word may have been lost in a full queue.
        if matches!(state, State::Running | State::DiskFull) {
            self.ready();
        }
        let due = self.at.is_none_or(|at| at.elapsed() >= STATUS_EVERY) && self.text != text;
        if !due && self.state == Some(state) {
            return;
        }
        self.state = Some(state);
        if state == State::Draining {
            self.stopping(&text);
        } else {
            self.send(&[NotifyState::Status(&text)]);
        }
        (self.text, self.at) = (text, Some(Instant::now()));
    }

    fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.send(&[NotifyState::Ready]);
        }
    }

    /// Whoever waits for the first word is told nothing else.
    fn reloading(&mut self) {
        if self.ready && !self.stopping {
            // systemd compares when the reload began.
            let now = NotifyState::monotonic_usec_now().ok();
            let words: Vec<_> = [NotifyState::Reloading].into_iter().chain(now).collect();
            self.send(&words);
        }
    }

    fn reloaded(&mut self, complaint: Option<String>) {
        let shown = complaint.clone().unwrap_or_else(|| "castra.toml was read anew".to_owned());
        self.complaint = complaint;
        if self.ready && !self.stopping {
            self.send(&[NotifyState::Ready, NotifyState::Status(&shown)]);
            // The next status is shown again.
            self.text.clear();
        }
    }

    fn stopping(&mut self, text: &str) {
        let first = !std::mem::replace(&mut self.stopping, true);
        let status = NotifyState::Status(text);
        if first { self.send(&[NotifyState::Stopping, status]) } else { self.send(&[status]) }
    }

    fn send(&mut self, what: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(what)
            && !std::mem::replace(&mut self.silent, true)
        {
            tracing::info!(%error, "service: the service manager cannot be told how the broker is");
        }
    }
}

/// The sockets that were handed over. Once, and before there is a second thread: it takes the variables that say
/// so out of the environment.
pub fn handed() -> Result<Handed, Failure> {
    let (mut fds, mut handed) = (ListenFd::from_env(), Handed::default());
    for n in 0..fds.len() {
        if let Ok(Some(listener)) = fds.take_unix_listener(n) {
            handed.unix.push(listener);
            continue;
        }
        match fds.take_tcp_listener(n) {
            Ok(Some(listener)) => handed.tcp.push(listener),
            Ok(None) => {}
            Err(error) => {
                let why = format!(
                    "a socket that was handed over cannot be served: {error}; stream sockets of TCP and unix can (ListenStream=)"
                );
                return Err(Failure::new(Exit::BadConfig, "bad-socket", why));
            }
        }
    }
    Ok(handed)
}
