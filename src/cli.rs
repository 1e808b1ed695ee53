//! What can be typed, and nothing else. Flags > environment > defaults.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 ran but nothing matched or degraded, 2 usage, 65 bad data, 69 broker not \
reachable, 73 cannot create, 74 I/O, 75 try again later, 77 refused, 78 bad configuration, 124 timeout.";

/// A message bus between virtual machines and their host: durable before acknowledged.
#[derive(Debug, Parser)]
#[command(name = "castra", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where everything of one broker is [default: $XDG_STATE_HOME/castra or ~/.local/state/castra]
    #[arg(long, global = true, env = "CASTRA_STATE_ROOT", value_name = "DIR")]
    pub state_root: Option<PathBuf>,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the broker until SIGTERM or SIGINT
    #[command(
        after_help = "Examples:\n  castra broker\n  castra broker --state-root /srv/castra --tcp 127.0.0.1:7071\n\n\
        Guests reach it over TCP on loopback; the host's commands over castra.sock in the state root."
    )]
    Broker(BrokerArgs),
    /// Publish to the bus, or read it
    #[command(subcommand)]
    Bus(BusCommand),
    /// Show which VMs are fresh; reads a file and never waits for the broker
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
}

const STATUS_HELP: &str = "\
Examples:
  castra status
  castra status --json | jq '.vms[] | select(.reachable) | .name'

Exit code 0 when the broker is running, else 1.

Fields of --json (ages are milliseconds, null when never):
  schema                       1; a field keeps its name and meaning within a schema
  broker.state                 starting, running, disk-full, draining, unresponsive (5 s without a sign), offline
  broker.pid, version          of the broker; version, started_at and journal are those of the last one
                               that spoke when it is offline
  broker.started_at            RFC 3339
  broker.uptime_ms             since then
  broker.listeners             tcp:ADDR and unix:PATH
  broker.journal.first_seq     the oldest event that can be read
  broker.journal.head_seq      the newest durable event
  broker.journal.logs_seq      how far the logs have come
  broker.journal.segments      how many files the journal has
  broker.journal.bytes         their size
  broker.journal.ts_ahead_ms   the clock was set back: ts stands still until it gets there; else 0
  broker.journal.damage        ranges that were durable and cannot be read (at most 16;
                               logs/broker.log has all)
  broker.logs_stalled          why the logs are not being written, or null
  broker.signals_dropped       handshakes, bus events and log lines that were not recorded: too many at
                               once, or the file could not be written
  reachable                    any VM is
  last_handshake_vm, last_handshake_age_ms   the VM that said hello last
  vms[].name                   as it said in its hello
  vms[].reachable              the broker runs, and it has a session or said hello at most 45 s ago
  vms[].last_handshake_age_ms, last_publish_age_ms, last_heartbeat_age_ms
  vms[].capabilities           of its last hello
  vms[].identity               what proves its name: name (nothing)
  vms[].sessions               open bus sessions
  vms[].in_flight              publishes that wait for the disk";

/// A time of up to ten years, so that no clock overflows.
fn parse_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if time > Duration::from_secs(10 * 366 * 24 * 3600) { Err("at most ten years".into()) } else { Ok(time) }
}

/// `castra broker`.
#[derive(Args, Debug)]
pub struct BrokerArgs {
    /// Listen on this loopback address; may be given several times
    #[arg(
        long,
        env = "CASTRA_TCP",
        value_name = "ADDR",
        default_value = "127.0.0.1:7070",
        value_delimiter = ','
    )]
    pub tcp: Vec<SocketAddr>,
    /// Do not listen on TCP
    #[arg(long)]
    pub no_tcp: bool,
    /// A further socket, for guests; may be given several times
    #[arg(long, env = "CASTRA_UNIX", value_name = "PATH", value_delimiter = ',')]
    pub unix: Vec<PathBuf>,
    /// Size of a journal segment, at least 1 MiB
    #[arg(long, env = "CASTRA_SEGMENT_BYTES", value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1024 * 1024..=4 * 1024 * 1024 * 1024))]
    pub segment_bytes: Option<u64>,
    /// Remove the oldest segments when the journal is larger
    #[arg(long, env = "CASTRA_RETAIN_BYTES", value_name = "BYTES")]
    pub retain_bytes: Option<u64>,
    /// Remove segments whose events are all older (7d, 12h …)
    #[arg(long, env = "CASTRA_RETAIN_AGE", value_name = "TIME", value_parser = parse_time)]
    pub retain_age: Option<Duration>,
    /// End a session that sent no frame for so long
    #[arg(long, env = "CASTRA_IDLE_TIME", value_name = "TIME", value_parser = parse_time)]
    pub idle_time: Option<Duration>,
}

/// `castra bus`.
#[derive(Debug, Subcommand)]
pub enum BusCommand {
    /// Publish one event as the host; ends when it is durable and in the logs
    #[command(
        after_help = "Examples:\n  castra bus publish deploy '{\"version\":7}'\n  castra bus publish --topic vm:web --payload '\"reload\"'\n  \
        uptime | jq -R . | castra bus publish host.uptime -\n\nPrints the event's seq and id. Exit code 75 with 'logs-behind' \
        means: stored, do not send it again."
    )]
    Publish(PublishArgs),
    /// Print the bus's logs; works without a broker and never waits for one
    #[command(
        after_help = "Examples:\n  castra bus tail -n 20\n  castra bus tail --vm web -f\n  castra bus tail -f -o json | jq .payload"
    )]
    Tail(TailArgs),
}

/// `castra bus publish`.
#[derive(Args, Debug)]
pub struct PublishArgs {
    /// What the event is about [default: broadcast]
    #[arg(value_name = "TOPIC", conflicts_with = "topic_flag")]
    pub topic: Option<String>,
    /// JSON, or - to read it from stdin [default: null]
    #[arg(value_name = "PAYLOAD", conflicts_with = "payload_flag", allow_hyphen_values = true)]
    pub payload: Option<String>,
    /// The topic, as a flag
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topic_flag: Option<String>,
    /// The payload, as a flag
    #[arg(long = "payload", value_name = "JSON", allow_hyphen_values = true)]
    pub payload_flag: Option<String>,
    /// An id of your own, to know the event by
    #[arg(long)]
    pub id: Option<String>,
    /// Give up after so long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub timeout: Duration,
}

/// How `castra bus tail` prints an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Time, seq, VM, topic, payload
    Text,
    /// The event, one JSON object a line
    Json,
    /// The payload alone
    Raw,
}

/// `castra bus tail`.
#[derive(Args, Debug)]
pub struct TailArgs {
    /// What this VM published, and what was sent to its mailbox
    #[arg(long, value_name = "NAME", conflicts_with = "shared")]
    pub vm: Option<String>,
    /// What everybody published (the default)
    #[arg(long)]
    pub shared: bool,
    /// Go on as events come
    #[arg(short, long)]
    pub follow: bool,
    /// Begin so many events before the end
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub lines: usize,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `castra status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
