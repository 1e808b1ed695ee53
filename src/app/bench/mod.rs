//! `castra bench`: loads a broker and prints how fast it is.
//!
//! Always holds: stdout has one table or one object, at the end, also when it was ended early; progress is for
//! terminals. Owner: `app/mod.rs` calls [`run`]; the load is `core::bench`'s.

mod failure;
mod print;

use super::failure::{Exit, Failure};
use super::given::check_root;
use super::host::check_path;
use super::terminal::{Progress, print_all};
use super::words::grouped;
use super::{status, stderr};
use crate::cli::{BenchArgs, BenchCommand};
use crate::core::awake;
use crate::core::bench::idle::idle;
use crate::core::bench::load::{Audience, Load, deliver, load};
use crate::core::bench::stamp::{PAYLOAD_MIN, STAMPED_MIN, Template};
use crate::core::bench::{BenchError, Meter, Plan};
use crate::core::chance::chance;
use crate::core::client::Target;
use crate::core::descriptors::raise_descriptors;
use crate::core::state_root::StateRoot;
use crate::core::status::State;
use crate::core::threads;
use print::{Printed, Report};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Progress is looked at so often.
const LOOK: Duration = Duration::from_millis(100);
/// Descriptors for everything but sessions.
const OTHER_FILES: u64 = 32;

/// What was typed that all kinds have.
pub fn common(command: &BenchCommand) -> &BenchArgs {
    match command {
        BenchCommand::Publish(args) => &args.bench,
        BenchCommand::Deliver(args) => &args.bench,
        BenchCommand::Fanout(args) => &args.bench,
        BenchCommand::Idle(args) => &args.bench,
    }
}

pub fn run(root: &StateRoot, command: &BenchCommand) -> Result<Exit, Failure> {
    let args = common(command);
    stderr::start(args.json, |_| ()).map_err(Failure::system)?;
    let (stop, stopped) = watch::channel(false);
    let plan = Plan {
        target: target(root, args)?,
        topic: args.topic.clone(),
        duration: args.duration,
        stop: stopped,
        meter: Arc::new(Meter::default()),
    };
    let runtime = threads::runtime(0).map_err(Failure::system)?;
    let drive = Drive { root, plan: &plan, stop };
    let printed = runtime.block_on(async {
        let _watch = awake::watch();
        drive.run(command).await
    })?;
    let mut out = if args.json { format!("{}\n", printed.json) } else { printed.text };
    if drive.is_interrupted() && !args.json {
        out.push_str("interrupted: these are the figures so far\n");
    }
    print_all(out.as_bytes())?;
    failure::degraded(&printed.problems)
}

/// The broker that was named.
fn target(root: &StateRoot, args: &BenchArgs) -> Result<Target, Failure> {
    match &args.broker {
        Some(text) => text
            .parse()
            .map_err(|e| Failure::new(Exit::Usage, "usage", format!("--broker {text:?} names none: {e}"))),
        None => {
            check_root(root)?;
            check_path(root)?;
            Ok(Target::Unix(root.socket()))
        }
    }
}

/// A bench under way.
struct Drive<'a> {
    root: &'a StateRoot,
    plan: &'a Plan,
    stop: watch::Sender<bool>,
}

impl Drive<'_> {
    async fn run(&self, command: &BenchCommand) -> Result<Printed, Failure> {
        let plan = self.plan;
        match command {
            BenchCommand::Publish(args) => {
                // Each has a socket and an alarm.
                enough_files(args.connections, 2)?;
                let work = Load {
                    template: template(plan, args.size, PAYLOAD_MIN)?,
                    publishers: args.connections,
                    window: args.window as usize,
                    rate: args.rate,
                };
                let figures = self.watch(args.connections, load(plan, &work)).await?;
                Ok(self.report("publish", args.connections).published(&work, args.size, &figures).end())
            }
            BenchCommand::Deliver(args) => {
                let audience = Audience { subscribers: args.connections, stopped: 0, lead: None };
                let window = args.window as usize;
                self.deliver("deliver", audience, window, Some(args.rate), args.size).await
            }
            BenchCommand::Fanout(args) => {
                if args.stopped >= args.connections {
                    let why = format!(
                        "--stopped {} leaves none of {} subscribers that reads: ask for fewer",
                        args.stopped, args.connections
                    );
                    return Err(Failure::new(Exit::Usage, "usage", why));
                }
                let (subscribers, stopped) = (args.connections, args.stopped);
                let audience = Audience { subscribers, stopped, lead: Some(args.lead) };
                self.deliver("fanout", audience, args.window as usize, None, args.size).await
            }
            BenchCommand::Idle(args) => {
                enough_files(args.connections, 1)?;
                let pid = self.local_pid();
                let figures = self.watch(args.connections, idle(plan, args.connections, pid)).await?;
                Ok(self.report("idle", args.connections).idle(args.connections, pid, &figures).end())
            }
        }
    }

    async fn deliver(
        &self,
        kind: &'static str,
        audience: Audience,
        window: usize,
        rate: Option<u64>,
        size: usize,
    ) -> Result<Printed, Failure> {
        enough_files(audience.subscribers + 2, 1)?;
        let template = template(self.plan, size, STAMPED_MIN)?;
        let work = Load { template, publishers: 1, window, rate };
        let sessions = audience.subscribers + 1;
        let (figures, delivered) = self.watch(sessions, deliver(self.plan, &work, audience)).await?;
        let report = self.report(kind, audience.subscribers).published(&work, size, &figures);
        Ok(report.delivered(audience, size, &figures, &delivered).end())
    }

    /// Waits for the figures, shows progress, and ends it early when told so; told again it gives up.
    async fn watch<T>(
        &self,
        sessions: u64,
        work: impl Future<Output = Result<T, BenchError>>,
    ) -> Result<T, Failure> {
        let (mut line, mut began) = (Progress::new(), None);
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt()).map_err(Failure::system)?,
            signal(SignalKind::terminate()).map_err(Failure::system)?,
        );
        let mut look = tokio::time::interval(LOOK);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    line.clear();
                    return done.map_err(|error| failure::no_figures(self.root, &self.plan.target, error));
                }
                _ = look.tick() => line.show(|| self.progress(sessions, &mut began)),
                Some(()) = interrupt.recv() => if self.stop.send_replace(true) { break },
                Some(()) = terminate.recv() => if self.stop.send_replace(true) { break },
            }
        }
        line.clear();
        let why = "interrupted again: ended without figures";
        Err(Failure::new(Exit::Degraded, "interrupted", why))
    }

    fn progress(&self, sessions: u64, began: &mut Option<Instant>) -> String {
        let meter = &self.plan.meter;
        let connected = meter.connected.load(Relaxed);
        if connected < sessions {
            return format!("bench: {} of {} sessions", grouped(connected), grouped(sessions));
        }
        let time = began.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
        let (acked, delivered) = (meter.acked.load(Relaxed), meter.delivered.load(Relaxed));
        let rate = |n: u64| grouped((n as f64 / time.max(0.1)) as u64);
        let mut said = format!("bench: {time:.1} of {:?}", self.plan.duration);
        if acked > 0 {
            said += &format!(", {} acked, {}/s", grouped(acked), rate(acked));
        }
        if delivered > 0 {
            said += &format!(", {} delivered, {}/s", grouped(delivered), rate(delivered));
        }
        said
    }

    fn is_interrupted(&self) -> bool {
        *self.stop.borrow()
    }

    fn report(&self, kind: &'static str, connections: u64) -> Report {
        Report::new(kind, self.plan, connections, self.is_interrupted())
    }

    /// The process of the broker, when it is the one of the state root.
    fn local_pid(&self) -> Option<u32> {
        let broker = status::look(self.root).ok()?.broker;
        let target = &self.plan.target;
        let same =
            *target == Target::Unix(self.root.socket()) || broker.listeners.contains(&target.to_string());
        broker.pid.filter(|_| same && broker.state == State::Running)
    }
}

/// What is published.
fn template(plan: &Plan, size: usize, least: usize) -> Result<Arc<Template>, Failure> {
    if size < least {
        let why = format!("--size {size} has no room for what is looked at: {least} bytes at least");
        return Err(Failure::new(Exit::Usage, "usage", why));
    }
    let run = chance() as u32;
    Template::new(&plan.topic, size, run).map(Arc::new).map_err(|refusal| match refusal.code {
        "event-too-large" => {
            let why = format!("--size {size}: {refusal}; nothing was sent");
            Failure::new(Exit::Usage, refusal.code, why)
        }
        code => Failure::new(
            Exit::BadData,
            code,
            format!("--topic {:?}: {refusal}; nothing was sent", plan.topic),
        ),
    })
}

/// Whether so many connections can be had, each of which takes so many files.
fn enough_files(connections: u64, each: u64) -> Result<(), Failure> {
    let (needed, limit) = (connections * each + OTHER_FILES, raise_descriptors());
    if needed <= limit {
        return Ok(());
    }
    let why = format!(
        "{} connections need {needed} open files, and this process may have {limit}: ask for fewer, or raise the hard \
         limit ('ulimit -Hn {needed}' as root; LimitNOFILE= in a unit)",
        grouped(connections)
    );
    Err(Failure::new(Exit::Usage, "too-many-connections", why).with("needed", needed).with("limit", limit))
}
