//! `castra agent`, as it is typed.

use super::agent_outbox::{OUTBOX_HELP, OutboxArgs};
use super::agent_publish::{AgentPublishArgs, PUBLISH_HELP};
use super::parse_some_time;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra agent                                       name and broker are found
  castra agent --vm web --broker vsock:2:7070        this name, this way
  castra agent --broker tcp:10.0.2.2:7070 --token-file /etc/castra/token
  castra agent --broker serial                       the virtio-serial port org.castra.bus.0
  castra agent --subscribe vm:web --subscribe 'deploy.>' --exec 'jq .payload | ./deploy'

Programs of this VM publish with 'castra agent publish', or by one JSON object a line on the
socket. An event is on this VM's disk before they are told so; it is sent when the broker is
there, in order, each once. The agent holds one session, and looks for the broker again for as
long as it takes: after up to half a second at first, then up to 5 s; up to a minute after a
refusal that an operator has to mend.

The name is --vm, else castra.vm= of the kernel command line, else the host name. The broker is
at --broker, else castra.broker= of the kernel command line, else in the credential
castra.broker (systemd; fw_cfg of QEMU), else it is found: vsock:2:7070, then the virtio-serial
port org.castra.bus.0, then tcp:10.0.2.2:7070; what worked last is tried first. The token is in
--token-file, which nobody else may read, or in the credential castra.token.

--exec runs 'sh -c CMD' for each event of the patterns, in order, with the event's JSON line on
its stdin and CASTRA_SEQ, CASTRA_TS (milliseconds), CASTRA_ID, CASTRA_VM and CASTRA_TOPIC in its
environment. After a restart it goes on behind the last event that was handled: each is handled
at least once. A command that fails is run again, 5 times in all, with waits of 1 to 12 s; then
the event is passed over, which is said. A command that cannot be started because descriptors,
processes or memory are used up waits, and that is no failure. --from counts only where these
patterns have never been subscribed. In another journal than before (an older backup, another
broker) it begins at the earliest event.

SIGTERM and SIGINT end it in order: what is under way is waited for up to 2 s, a command that
runs up to 10 s, then it gets SIGTERM, and SIGKILL 5 s later. Under systemd (Type=notify) it says
that it is ready once programs can publish, whether the broker is there or not.

Exit codes:
  0    told to end
  2    usage: a --broker that is no address, no name for this VM
  65   a bad pattern
  73   the state directory or the socket is in use, or cannot be made
  74   I/O: the outbox cannot be opened
  77   refused: the state directory is somebody else's
  78   a token file that others can read, or that has no token; a castra.broker= that is no place"#;

/// The guest's side: hold a session with the broker, and keep what is published until it has it
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AgentArgs {
    /// This VM's name [default: castra.vm= of the kernel command line, else the host name]
    #[arg(long, hide_env_values = true, env = "CASTRA_VM", value_name = "NAME")]
    pub vm: Option<String>,
    /// The broker: auto, vsock:CID:PORT, serial or serial:NAME, tcp:HOST:PORT, unix:PATH [default: auto]
    #[arg(long, hide_env_values = true, env = "CASTRA_BROKER", value_name = "WHERE")]
    pub broker: Option<String>,
    /// Where the outbox and the cursor are
    #[arg(
        long,
        hide_env_values = true,
        env = "CASTRA_AGENT_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/castra-agent"
    )]
    pub state_dir: PathBuf,
    /// Where local programs publish
    #[arg(
        long,
        hide_env_values = true,
        env = "CASTRA_AGENT_SOCKET",
        value_name = "PATH",
        default_value = "/run/castra/agent.sock"
    )]
    pub socket: PathBuf,
    /// What proves this VM's name to the broker, if it asks for a proof
    #[arg(long, hide_env_values = true, env = "CASTRA_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Handle the events of this topic or pattern; may be given several times
    #[arg(long, value_name = "PATTERN", requires = "exec")]
    pub subscribe: Vec<String>,
    /// Run this command for each of them
    #[arg(long, value_name = "CMD", requires = "subscribe", value_parser = NonEmptyStringValueParser::new())]
    pub exec: Option<String>,
    /// Where a subscription that is new begins
    #[arg(long, value_name = "FROM", default_value = "latest", value_parser = ["latest", "earliest"])]
    pub from: String,
    /// What may wait in the outbox, in bytes [default: 64MiB]
    #[arg(long, hide_env_values = true, env = "CASTRA_OUTBOX_BYTES", value_name = "BYTES")]
    pub outbox_bytes: Option<String>,
    /// How long an event may wait there [default: 7d]
    #[arg(long, hide_env_values = true, env = "CASTRA_OUTBOX_AGE", value_name = "TIME", value_parser = parse_some_time)]
    pub outbox_age: Option<Duration>,
    /// What happens when it is full: new events are refused, or the oldest dropped
    #[arg(long, hide_env_values = true, env = "CASTRA_OUTBOX_FULL", value_name = "POLICY", default_value = "refuse", value_parser = ["refuse", "drop-oldest"])]
    pub outbox_full: String,
    /// Send a heartbeat when nothing was sent for so long [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    pub heartbeat: Option<Duration>,
    /// Give a host up that was not heard for so long [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    pub silence: Option<Duration>,
    /// How much is said on stderr
    #[arg(long, hide_env_values = true, env = "CASTRA_LOG_LEVEL", value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub log_level: String,
    /// What else there is to do.
    #[command(subcommand)]
    pub command: Option<AgentCommand>,
}

/// `castra agent …`, beside the agent itself.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Publish an event through the agent of this guest.
    #[command(after_help = PUBLISH_HELP)]
    Publish(Box<AgentPublishArgs>),
    /// What waits on this guest for the broker.
    #[command(after_help = OUTBOX_HELP)]
    Outbox(OutboxArgs),
}
