//! `castra bench`, as it is typed.

use super::parse_some_time;
use clap::{Args, Subcommand};
use std::time::Duration;

/// Behind `castra bench --help`.
pub const HELP: &str = "Examples:
  castra bench publish
  castra bench publish --connections 64 --duration 10s
  castra bench deliver --rate 1000 --broker tcp:127.0.0.1:7070
  castra bench fanout --connections 100 --json
  castra bench idle --connections 5000

A bench is a guest, or many of them: bench-1, bench-2 …, and bench-publisher. A publisher of
'bench publish' is a VM of its own; of subscribers and idle sessions 32 are of one VM. What it
publishes is published: its events go to the disk, stay in the journal and in the logs of that
broker (logs/bus/bench-1.log …, bus.log), and count in what is retained, as everybody's do. Its
guests stay behind as VMs in 'castra status'; 'castra vm forget bench-1' ends that. A broker
remembers so many VMs, and forgets those that are gone longest for new ones: to leave one as it
is, start another one: 'castra broker --state-root DIR --tcp 127.0.0.1:0'.

Never more load than was asked for: it ends after --duration, and earlier at Ctrl-C, with the
figures so far; a second Ctrl-C ends it without.";

/// What is said of every kind's output and exit codes.
macro_rules! ends {
    () => {
        "Exit codes:
  0    everything was acknowledged and came as it should
  1    it ran, and something was refused, lost or came twice, or a session ended early; the
       figures are printed, and stderr says what it was
  2    usage: more connections than files may be open, an event that is too large
  65   a topic that cannot be
  69   no broker answers
  75   the broker gives no session just now: too many, or it is ending
  77   refused: the topic may not be subscribed, or the broker is too old to deliver
  124  the broker did not answer in time"
    };
}

/// Behind `castra bench publish --help`.
pub const PUBLISH_HELP: &str = concat!(
    "Examples:
  castra bench publish                                   one event at a time: the latency
  castra bench publish --window 1000                     many in flight: the rate
  castra bench publish --connections 64                  64 VMs, one in flight each
  castra bench publish --rate 2000 --window 100 --size 1024

Publishes from each connection as long as fewer than --window events are not acknowledged, and
checks every ack. Latency is from sending to ack; with --rate from the moment the event was due,
so that a broker that stalls is charged for all that had to wait.

--json prints one object: schema, bench, broker, topic, size, connections, window, rate,
duration_ms, elapsed_ms, interrupted, sessions_ended (reasons and how often), and publish: sent,
acked, per_s (acked), mb_per_s (10^6 bytes of payload), refused (codes and how often),
out_of_order (acks), unanswered, unsent (were due, and the window was full), latency_ms with
p50, p99, p999, max. What is not known is null.

",
    ends!()
);

/// Behind `castra bench deliver --help`.
pub const DELIVER_HELP: &str = concat!(
    "Examples:
  castra bench deliver
  castra bench deliver --rate 20000 --connections 10 --duration 30s

One publisher, and subscribers that check that each event comes once and in order. Latency is
from the moment the event was due to its arrival at a subscriber. After the last event it is
waited for what is still under way, until nothing has come for 2 s; what is missing then is lost.

--json prints one object: what 'castra bench publish --json' prints, and deliver: received (by
all subscribers), per_s, lost, repeated, out_of_order (behind a later one), per_subscriber_per_s
with min and max, latency_ms with p50, p99, p999, max.

",
    ends!()
);

/// Behind `castra bench fanout --help`.
pub const FANOUT_HELP: &str = concat!(
    "Examples:
  castra bench fanout
  castra bench fanout --connections 100 --stopped 1      one of them does not read

One publisher, as fast as --window and --lead allow, and many subscribers that check that each
event comes once and in order. Those that are --stopped subscribe and never read: what they
lose is not counted, what the others lose is, and how fast they are. Lost is what did not come
while something came, until 2 s of silence.

--json prints one object: what 'castra bench deliver --json' prints, and stopped and lead; the
deliver part has no latency_ms.

",
    ends!()
);

/// Behind `castra bench idle --help`.
pub const IDLE_HELP: &str = concat!(
    "Examples:
  castra bench idle --connections 5000 --duration 1m

Opens sessions that subscribe and then say nothing but heartbeats, and asks each of them at the
end whether it is still there. When the broker runs on this machine and is the one of the state
root (--state-root), its memory before and with them is shown, and how much each of them takes.
A broker that has held more sessions before takes no new memory for these: start a fresh one.
What stays behind is a VM for each 32 sessions (bench-1 …) in 'castra status'.

--json prints one object: schema, bench, broker, topic, connections, duration_ms, elapsed_ms,
interrupted, sessions_ended (reasons and how often), connect_ms (until all were subscribed),
alive (that answered at the end), broker_pid, memory_before_bytes, memory_bytes,
memory_per_session_bytes. What is not known is null.

",
    ends!()
);

/// `castra bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Acknowledged events a second, and how long an ack takes
    #[command(after_help = PUBLISH_HELP)]
    Publish(BenchPublishArgs),
    /// How long an event takes from its publisher to its subscribers
    #[command(after_help = DELIVER_HELP)]
    Deliver(BenchDeliverArgs),
    /// How many deliveries a second one publisher causes
    #[command(after_help = FANOUT_HELP)]
    Fanout(BenchFanoutArgs),
    /// What sessions cost that only are
    #[command(after_help = IDLE_HELP)]
    Idle(BenchIdleArgs),
}

/// What all kinds have.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Which broker: tcp:HOST:PORT or unix:PATH [default: the one of the state root]
    #[arg(long, value_name = "WHERE")]
    pub broker: Option<String>,
    /// For so long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_some_time)]
    pub duration: Duration,
    /// What the events are about
    #[arg(long, default_value = "bench")]
    pub topic: String,
    /// Print one JSON object; a failure is one on stderr
    #[arg(long)]
    pub json: bool,
}

/// `castra bench publish`.
#[derive(Args, Debug)]
pub struct BenchPublishArgs {
    /// What all kinds have.
    #[command(flatten)]
    pub bench: BenchArgs,
    /// Publishers, each of a VM of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = connections())]
    pub connections: u64,
    /// Events of each that may be not acknowledged yet
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = window())]
    pub window: u64,
    /// Events a second, of all publishers together [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = rate())]
    pub rate: Option<u64>,
    /// Bytes of each payload, a JSON string; 2 at least
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub size: usize,
}

/// `castra bench deliver`.
#[derive(Args, Debug)]
pub struct BenchDeliverArgs {
    /// What all kinds have.
    #[command(flatten)]
    pub bench: BenchArgs,
    /// Subscribers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = connections())]
    pub connections: u64,
    /// Events a second
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = rate())]
    pub rate: u64,
    /// Events that may be not acknowledged yet
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = window())]
    pub window: u64,
    /// Bytes of each payload, a JSON string; 40 at least
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub size: usize,
}

/// `castra bench fanout`.
#[derive(Args, Debug)]
pub struct BenchFanoutArgs {
    /// What all kinds have.
    #[command(flatten)]
    pub bench: BenchArgs,
    /// Subscribers, those that are stopped included
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = connections())]
    pub connections: u64,
    /// Subscribers that do not read; fewer than all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub stopped: u64,
    /// Events that may be not acknowledged yet
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = window())]
    pub window: u64,
    /// Events that the publisher may be ahead of the average of those that read
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    pub lead: u64,
    /// Bytes of each payload, a JSON string; 40 at least
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub size: usize,
}

/// `castra bench idle`.
#[derive(Args, Debug)]
pub struct BenchIdleArgs {
    /// What all kinds have.
    #[command(flatten)]
    pub bench: BenchArgs,
    /// Sessions, 32 of each VM
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = connections())]
    pub connections: u64,
}

/// Connections.
fn connections() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=100_000)
}

/// Events in flight.
fn window() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=65_536)
}

/// Events a second.
fn rate() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=10_000_000)
}
