//! `castra bus subscribe --group`: a member of a group, which prints events or runs a command for each.
//!
//! ```text
//! Consumer ─▶ member_print.rs (a thread)            printed and flushed ─▶ ack
//!          └▶ member_exec.rs (a thread a command)   exit 0 ─▶ ack, else nack
//! ```
//!
//! Always holds: an event is acked after it was printed, or its command ended well; whoever is told to end leaves once
//! what was answered is durable. Owner: `mod.rs`.

use super::given::Given;
use super::say::{Sayer, exit_of};
use super::work::Tally;
use super::{LAST_LINES, LAST_WORDS, Told, member_exec, member_print, nobody_reads, time_over};
use crate::app::failure::{Exit, Failure};
use crate::app::host;
use crate::app::words::list;
use crate::cli::{Output, SubscribeArgs};
use crate::core::awake::timeout;
use crate::core::client::{Bus, ClientError, Consumer, Delivery, Error};
use nix::sys::signal::Signal;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

/// What a member holds that runs commands, if it does not say: then others have the rest.
const COMMANDS: u32 = 1;
/// The same for one that prints: as much as is flushed and acked together.
const LINES: u32 = 256;

/// What takes events.
enum Taker {
    Print(std::sync::mpsc::Sender<Delivery>),
    Exec(member_exec::Exec),
}

/// Why no more are taken.
enum Why {
    Told,
    Time(Duration),
    HungUp,
    /// stdout cannot be written, or no command be run.
    Broken,
    Ended(Error),
}

pub async fn consume(given: &Given<'_>, group: &str, args: &SubscribeArgs) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let mut told = Told::new().map_err(Failure::system)?;
    let sayer = Sayer::new(args.json, args.verbose);
    let (mut hung_up, mut time_over) = (pin!(hung_up(args)), pin!(time_over(begun, args.timeout)));
    let (bus, mut consumer, timeout_ms) = tokio::select! {
        biased;
        () = told.next() => return Ok(Exit::Ok),
        limit = &mut time_over => return Err(out_of_time(args, limit, 0)),
        () = &mut hung_up => return Ok(Exit::Ok),
        member = become_one(given, group, args, sayer) => member?,
    };
    // The thread that prints, and each command, says at its end what it did.
    let (ended, mut tallies) = mpsc::unbounded_channel();
    let mut taker = match &args.exec {
        Some(command) => {
            let half = Duration::from_millis(timeout_ms) / 2;
            Taker::Exec(member_exec::Exec::new(command, group, sayer, half, ended).map_err(Failure::system)?)
        }
        None => {
            let output = if args.json { Output::Json } else { args.output };
            Taker::Print(member_print::start(output, args.utc, sayer, ended).map_err(Failure::system)?)
        }
    };
    let mut tally = Tally::default();
    let (mut lost, mut is_lost) = (bus.lost(), false);
    let why = loop {
        tokio::select! {
            biased;
            () = told.next() => break Why::Told,
            limit = &mut time_over => break Why::Time(limit),
            () = &mut hung_up => break Why::HungUp,
            Some(more) = tallies.recv() => {
                add(&mut tally, more);
                if tally.broken.is_some() {
                    break Why::Broken;
                }
            }
            Ok(()) = lost.changed() => say_lost(&mut lost, &mut is_lost, sayer),
            delivery = consumer.next() => match delivery {
                Ok(delivery) => taker.take(delivery),
                Err(error) => break Why::Ended(error),
            },
        }
    };
    // What its answers make room for would be delivered in vain.
    consumer.drain();
    let is_out_of_time = matches!(why, Why::Time(_));
    finish(taker, &mut tallies, &mut tally, &mut told, is_out_of_time, sayer).await;
    // A broker that is gone knows that nobody is there.
    let unconfirmed = consumer.leave_within(LAST_WORDS).await;
    if unconfirmed > 0 {
        say_unconfirmed(unconfirmed, sayer);
    }
    let is_command = args.exec.is_some();
    match (why, tally.broken) {
        (Why::HungUp, _) => Ok(Exit::Ok),
        (Why::Ended(error), _) => Err(over(given, error)),
        (_, Some(error)) if is_command => Err(Failure::new(Exit::Io, "no-command", error.to_string())),
        (_, Some(error)) => Err(error.into()),
        (Why::Time(limit), None) => Err(out_of_time(args, limit, tally.done)),
        (Why::Told | Why::Broken, None) if tally.failed > 0 || unconfirmed > 0 => Ok(Exit::Degraded),
        (Why::Told | Why::Broken, None) => Ok(Exit::Ok),
    }
}

fn out_of_time(args: &SubscribeArgs, limit: Duration, events: u64) -> Failure {
    let limit = humantime::format_duration(limit);
    let what = if args.exec.is_some() { "handed to the command" } else { "printed" };
    let why = format!("time ran out after {limit}, {events} events were {what}");
    Failure::new(Exit::Timeout, "timeout", why).with("events", events)
}

/// Connects and becomes a member, however long a broker takes for that.
async fn become_one(
    given: &Given<'_>,
    group: &str,
    args: &SubscribeArgs,
    sayer: Sayer,
) -> Result<(Bus, Consumer, u64), Failure> {
    given.check()?;
    let follow = &given.follow;
    let connected = Bus::connect_as(&follow.target, &follow.hello, follow.times).await;
    let bus = connected.map_err(|error| over(given, error))?;
    let (consumer, timeout_ms) = join(&bus, given, group, args, sayer).await?;
    Ok((bus, consumer, timeout_ms))
}

/// Becomes a member; how long the group lets an event be held, in milliseconds.
async fn join(
    bus: &Bus,
    given: &Given<'_>,
    group: &str,
    args: &SubscribeArgs,
    sayer: Sayer,
) -> Result<(Consumer, u64), Failure> {
    let topics: Vec<String> = given.follow.patterns.iter().map(|p| p.as_str().to_owned()).collect();
    let (first, rest) = topics.split_first().map_or((">", &[][..]), |(first, rest)| (first.as_str(), rest));
    let usual = if args.exec.is_some() { COMMANDS } else { LINES };
    let max_in_flight = args.max_in_flight.unwrap_or(usual);
    let mut wish = bus.consume(first, group).topics(rest.iter().cloned());
    wish = wish.from(given.follow.begin.clone()).max_in_flight(max_in_flight);
    if let Some(time) = args.ack_timeout {
        wish = wish.ack_timeout(time);
    }
    if let Some(attempts) = args.max_attempts {
        wish = wish.max_attempts(attempts);
    }
    if args.exec.is_none() {
        // What is printed or not was no attempt at it.
        wish = wish.as_buffer();
    }
    let consumer = wish.await.map_err(|error| over(given, error))?;
    let joined = consumer.joined();
    let stands = bus.group(group).await.map_err(|error| over(given, error))?;
    let spec = stands.map(|group| group.spec);
    let topics = spec.as_ref().map_or(&topics, |spec| &spec.topics);
    // What is not said here is not wished for either.
    let is_wish = |name: &&str| match *name {
        "ack_timeout_ms" => args.ack_timeout.is_some(),
        "max_attempts" => args.max_attempts.is_some(),
        "topics" => !args.patterns.is_empty(),
        _ => false,
    };
    let differs: Vec<&str> = joined.differs.iter().map(String::as_str).filter(is_wish).collect();
    if !differs.is_empty() {
        let text = format!(
            "group {group} was there already and keeps its own {}; 'castra bus group show {group}'",
            differs.join(", ")
        );
        sayer.warn("differs", &text, &[]);
    }
    let new = if joined.created { "the new group" } else { "group" };
    let text = format!(
        "subscribed to {} as a member of {new} {group}, behind event {}",
        list(topics),
        joined.cursor
    );
    sayer.note("subscribed", &text, &[("cursor", joined.cursor)]);
    let timeout_ms = spec.map_or(30_000, |spec| spec.ack_timeout_ms);
    Ok((consumer, timeout_ms))
}

impl Taker {
    fn take(&mut self, delivery: Delivery) {
        match self {
            // A thread that ended says why, and what it left is nacked.
            Taker::Print(lines) => _ = lines.send(delivery),
            Taker::Exec(exec) => exec.start(delivery),
        }
    }
}

/// Waits for what is being done: lines for a moment, commands until they end; who insists ends them. When time is over
/// they are ended as well.
async fn finish(
    taker: Taker,
    tallies: &mut mpsc::UnboundedReceiver<Tally>,
    tally: &mut Tally,
    told: &mut Told,
    is_out_of_time: bool,
    sayer: Sayer,
) {
    // Its end is that of the thread, or the last command's.
    let commands = match taker {
        Taker::Print(lines) => {
            drop(lines);
            None
        }
        Taker::Exec(exec) => Some((exec.running(), exec.finish())),
    };
    let Some((running, rest)) = commands else {
        let all = async {
            while let Some(more) = tallies.recv().await {
                add(tally, more);
            }
        };
        let _ = timeout(LAST_LINES, all).await;
        return;
    };
    running.give_up();
    if running.is_any() && !is_out_of_time {
        sayer.note("waiting", "the commands that run are waited for; once more ends them", &[]);
    }
    if is_out_of_time {
        running.signal(Signal::SIGTERM);
    }
    let mut signals = [Signal::SIGTERM].into_iter();
    let mut kill = pin!(async {
        match is_out_of_time {
            true => sleep(LAST_WORDS).await,
            false => pending().await,
        }
    });
    let mut is_killed = false;
    loop {
        tokio::select! {
            more = tallies.recv() => match more {
                Some(more) => add(tally, more),
                None => break,
            },
            () = told.next() => running.signal(signals.next().unwrap_or(Signal::SIGKILL)),
            () = &mut kill, if !is_killed => {
                is_killed = true;
                running.signal(Signal::SIGKILL);
            }
        }
    }
    rest.write_within(LAST_LINES).await;
}

fn add(tally: &mut Tally, more: Tally) {
    tally.done += more.done;
    tally.failed += more.failed;
    tally.broken = tally.broken.take().or(more.broken);
}

async fn hung_up(args: &SubscribeArgs) {
    match args.exec {
        Some(_) => pending().await,
        None => nobody_reads().await,
    }
}

fn say_lost(lost: &mut watch::Receiver<Option<Arc<ClientError>>>, is_lost: &mut bool, sayer: Sayer) {
    let now = lost.borrow_and_update().clone();
    if let Some(error) = &now {
        let text = format!("{error}; connecting again, what is held goes on meanwhile");
        sayer.warn("connection-lost", &text, &[]);
    } else if *is_lost {
        sayer.warn("subscribed", "connected again", &[]);
    }
    *is_lost = now.is_some();
}

fn say_unconfirmed(count: usize, sayer: Sayer) {
    let text = match count {
        1 => "1 answer did not reach the broker, as far as is known; its event comes again".to_owned(),
        n => format!("{n} answers did not reach the broker, as far as is known; their events come again"),
    };
    sayer.warn("not-confirmed", &text, &[("answers", count as u64)]);
}

/// Why there is nothing more.
fn over(given: &Given<'_>, error: Error) -> Failure {
    match error {
        Error::NoSession(error) => given.no_session(host::own(error)),
        Error::Refused { code, reason } => {
            Failure::new(exit_of(&code), code.clone(), format!("{code}: {reason}"))
        }
        error => host::lost(&error),
    }
}
