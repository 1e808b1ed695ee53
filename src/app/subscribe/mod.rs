//! `castra bus subscribe`: prints events as they are published, or runs a command for each.
//!
//! Always holds: stdout has events and nothing else; a broker that goes away is waited for; an end that was asked for
//! is not kept up by whoever reads stdout, only by a command that runs. Owner: the operator, or a script in a guest.

mod exec;
mod given;
mod member;
mod member_exec;
mod member_print;
mod print;
mod say;
mod work;

use super::words::list;
use super::{Exit, Failure, stderr};
use crate::cli::{Output, SubscribeArgs};
use crate::core::exec::Running;
use crate::core::follow::{News, Room};
use crate::core::state_root::StateRoot;
use exec::Exec;
use given::Given;
use nix::sys::signal::Signal;
use print::Print;
use say::{Sayer, ended};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use work::{Stop, Tally, Work};

/// Whoever reads stdout has so long to take what was received, when this is to end.
const LAST_LINES: Duration = Duration::from_secs(1);
/// A command that runs when time is over has so long to end when it is asked to.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub fn run(root: &StateRoot, args: &SubscribeArgs) -> Result<Exit, Failure> {
    let given = Given::new(root, args)?;
    stderr::start(args.json, |_| ()).map_err(Failure::system)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
    let result = match &args.group {
        Some(group) => runtime.block_on(member::consume(&given, group, args)),
        None => runtime.block_on(subscribe(&given, args)),
    };
    // A name that is still looked up is not waited for.
    runtime.shutdown_background();
    result
}

/// Why it ends.
enum Why {
    /// Enough events, or none can be handled any more.
    Done(Tally),
    /// SIGINT or SIGTERM.
    Told,
    /// `--timeout`.
    Time(Duration),
    /// It cannot go on.
    Failed(Failure),
    /// Nobody holds the other end of stdout.
    HungUp,
}

async fn subscribe(given: &Given<'_>, args: &SubscribeArgs) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let mut told = Told::new().map_err(Failure::system)?;
    let sayer = Sayer::new(args.json, args.verbose);
    let (room, stop, running) = (Room::default(), Stop::default(), Running::default());
    let (lines, to_do) = channel();
    let work = Work { lines: to_do, room: room.clone(), stop: stop.clone(), count: args.count };
    let mut done = start(work, args, sayer, &running).map_err(Failure::system)?;
    let gaps = Cell::new(0);

    let why = {
        let mut following = pin!(follow(given, sayer, &room, lines, &gaps));
        tokio::select! {
            biased;
            () = told.next() => Why::Told,
            tally = &mut done => Why::Done(tally.map_err(|_| ended_early())?),
            Err(failure) = &mut following => Why::Failed(failure),
            limit = time_over(begun, args.timeout) => Why::Time(limit),
            () = nobody_reads(), if args.exec.is_none() => Why::HungUp,
        }
    };
    let is_command = args.exec.is_some();
    match &why {
        Why::Told => {
            stop.stop();
            running.give_up();
        }
        Why::Time(_) if is_command => {
            stop.stop();
            running.give_up();
        }
        _ => {}
    }
    // What was received before it failed is not lost; else only a command that runs is waited for, within the time.
    let limit = (!is_command && !matches!(why, Why::Failed(_))).then_some(LAST_LINES);
    let is_told = matches!(why, Why::Told);
    let time_is_over = args.timeout.filter(|_| is_command).map(|limit| begun + limit);
    let mut end = async || {
        if is_told && running.is_any() {
            sayer.note("waiting", "the command that runs is waited for; once more ends it", &[]);
        }
        last(&mut done, &mut told, &stop, &running, limit, time_is_over).await
    };
    let tally = match why {
        Why::Done(tally) => tally,
        Why::HungUp => return Ok(Exit::Ok),
        Why::Failed(failure) => {
            end().await;
            return Err(failure);
        }
        Why::Told => match end().await {
            // Who waits for events must not take this for them.
            tally if args.count.is_some_and(|count| tally.done < count) => return Ok(Exit::Degraded),
            tally => tally,
        },
        Why::Time(limit) => {
            let (limit, n) = (humantime::format_duration(limit), end().await.done);
            let what = if is_command { "handed to the command" } else { "printed" };
            let why = format!("time ran out after {limit}, {n} events were {what}");
            return Err(Failure::new(Exit::Timeout, "timeout", why).with("events", n));
        }
    };
    match tally.broken {
        Some(error) if is_command => Err(Failure::new(Exit::Io, "no-command", error.to_string())),
        Some(error) => Err(error.into()),
        None if gaps.get() + tally.failed > 0 => Ok(Exit::Degraded),
        None => Ok(Exit::Ok),
    }
}

/// Starts the thread that handles events; what it did comes at its end.
fn start(
    work: Work,
    args: &SubscribeArgs,
    sayer: Sayer,
    running: &Running,
) -> io::Result<oneshot::Receiver<Tally>> {
    let (ended, done) = oneshot::channel();
    let (output, utc) = (if args.json { Output::Json } else { args.output }, args.utc);
    let (running, runtime) = (running.clone(), Handle::current());
    let exec = args.exec.clone().map(|command| Exec { command, sayer, running, runtime });
    Builder::new().spawn(move || {
        let tally = match exec {
            Some(mut exec) => work.run(&mut exec),
            None => work.run(&mut Print::new(output, utc, sayer)),
        };
        // Nobody may be waiting any more.
        let _ = ended.send(tally);
    })?;
    Ok(done)
}

/// Connects and follows, until that cannot go on.
async fn follow(
    given: &Given<'_>,
    sayer: Sayer,
    room: &Room,
    lines: Sender<Vec<u8>>,
    gaps: &Cell<u64>,
) -> Result<Infallible, Failure> {
    let client = given.connect().await?;
    let topics: Vec<String> = given.follow.patterns.iter().map(|p| p.as_str().to_owned()).collect();
    let mut is_back = false;
    let failed = given.follow.run(client, room, |news| match news {
        // When it listens no more, this ends at once.
        News::Events(bytes) => _ = lines.send(bytes),
        News::Subscribed(next) => {
            let again = if is_back { " again" } else { "" };
            let text = format!("subscribed{again} to {} from event {next} on", list(&topics));
            let say = if is_back { Sayer::warn } else { Sayer::note };
            say(&sayer, "subscribed", &text, &[("next_seq", next)]);
            is_back = false;
        }
        News::Gap(gap) => {
            gaps.set(gaps.get() + 1);
            let text = format!(
                "events {} to {} are gone, taken by retention or damage before they were received; some of them may have \
                 been of these topics",
                gap.from, gap.to
            );
            sayer.warn("gap", &text, &[("from", gap.from), ("to", gap.to)]);
        }
        News::Anew => {
            is_back = true;
            gaps.set(gaps.get() + 1);
            let text = "the broker does not know any more which keys ended; its state is read anew, and keys that it \
                        lacks are ended";
            sayer.warn("state-expired", text, &[]);
        }
        News::Lost(error, next) => {
            is_back = true;
            let text = format!("{error}; connecting again, to go on with event {next}");
            sayer.warn("connection-lost", &text, &[("next_seq", next)]);
        }
    });
    Err(ended(failed.await, |error| given.no_session(error)))
}

/// Waits for the thread's end, `limit` at the most; who insists ends a command, or does not wait for a reader. When
/// time is over a command is ended as well.
async fn last(
    done: &mut oneshot::Receiver<Tally>,
    told: &mut Told,
    stop: &Stop,
    running: &Running,
    limit: Option<Duration>,
    time_is_over: Option<Instant>,
) -> Tally {
    let ends = time_is_over.map(|at| [(at, Signal::SIGTERM), (at + LAST_WORDS, Signal::SIGKILL)]);
    let mut ends = ends.into_iter().flatten().peekable();
    let mut over = pin!(async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => pending().await,
        }
    });
    let mut signals = [Signal::SIGTERM].into_iter();
    loop {
        tokio::select! {
            tally = &mut *done => return tally.unwrap_or_default(),
            () = &mut over => return Tally::default(),
            signal = signal_at(ends.peek().copied()) => {
                ends.next();
                stop.stop();
                running.signal_all(signal);
            }
            () = told.next() => match running.is_any() {
                false => return Tally::default(),
                true if stop.is_stopped() => running.signal(signals.next().unwrap_or(Signal::SIGKILL)),
                true => stop.stop(),
            },
        }
    }
}

async fn signal_at(end: Option<(Instant, Signal)>) -> Signal {
    match end {
        Some((at, signal)) => {
            sleep_until(at).await;
            signal
        }
        None => pending().await,
    }
}

/// SIGINT and SIGTERM.
struct Told([tokio::signal::unix::Signal; 2]);

impl Told {
    fn new() -> io::Result<Self> {
        Ok(Told([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

async fn time_over(begun: Instant, limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            sleep_until(begun + limit).await;
            limit
        }
        None => pending().await,
    }
}

/// Resolves when nobody holds the other end of stdout, where that can be known.
async fn nobody_reads() {
    let Ok(fd) = io::stdout().as_fd().try_clone_to_owned() else { return pending().await };
    // Only asked whether it failed; what is no pipe, and cannot be asked, is not.
    let Ok(out) = pipe::Sender::from_owned_fd_unchecked(fd) else { return pending().await };
    while let Ok(ready) = out.ready(Interest::ERROR).await {
        if ready.is_error() {
            return;
        }
    }
    pending().await
}

fn ended_early() -> Failure {
    Failure::new(Exit::Io, "internal", "a thread of this command ended early")
}
