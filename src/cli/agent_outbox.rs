//! `castra agent outbox`, as it is typed.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Behind `--help`.
pub const OUTBOX_HELP: &str = "Examples:
  castra agent outbox ls
  castra agent outbox ls --state error
  castra agent outbox retry --all
  castra agent outbox purge --error

These work on the agent's files, whether it runs or not.

Exit codes: 0 ok, 1 nothing matched, 65 no outbox or a damaged one, 74 I/O, 75 try again later,
77 refused.";

/// Behind `ls --help`.
pub const LS_HELP: &str = r#"Examples:
  castra agent outbox ls
  castra agent outbox ls --state error -n 20
  castra agent outbox ls --json | jq -r 'select(.state == "pending").id'

States:
  pending  waits for the broker; the oldest is sent first
  sent     the broker has it (seq= in its journal); the last 1,000 are shown, without payload
  error    the broker refused it for good, or it was pending for too long: code and reason stand
           behind it; 'retry' makes it pending again

The last line sums up, and says why nothing is sent just now.

With --json one object a line: n, state, id, topic, ts, and where they apply sent_ts, seq,
duplicate, failed_ts, code, reason, event (the publish frame). The last one has counts and
last_error instead. What can be read of a file that was put aside is published again, each
event once, with

  castra agent outbox ls --file FILE --state pending --json | jq -c 'select(.event).event' |
    socat -t 10 - UNIX-CONNECT:/run/castra/agent.sock"#;

/// Behind `retry --help`.
pub const RETRY_HELP: &str = "Examples:
  castra agent outbox retry 0191f3aa-07c5-7d41-8f55-4a2d4f0c3c11
  castra agent outbox retry --all

An event whose id is pending or sent already is removed instead. With --json: retried, removed,
unknown (ids that no event in the state error has).";

/// Behind `purge --help`.
pub const PURGE_HELP: &str = "Examples:
  castra agent outbox purge --error
  castra agent outbox purge 0191f3aa-07c5-7d41-8f55-4a2d4f0c3c11";

/// Where the outbox is.
#[derive(Args, Debug)]
pub struct StateDirArgs {
    /// The agent's state directory
    #[arg(
        long,
        value_name = "DIR",
        env = "CASTRA_AGENT_STATE_DIR",
        hide_env_values = true,
        default_value = "/var/lib/castra-agent"
    )]
    pub state_dir: PathBuf,
    /// Print JSON objects, failures (on stderr) included
    #[arg(long)]
    pub json: bool,
}

/// What waits on this guest for the broker
#[derive(Args, Debug)]
pub struct OutboxArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: OutboxCommand,
}

impl OutboxArgs {
    /// Whether failures are printed as JSON.
    pub fn json(&self) -> bool {
        match &self.command {
            OutboxCommand::Ls(args) => args.at.json,
            OutboxCommand::Retry(args) => args.at.json,
            OutboxCommand::Purge(args) => args.at.json,
        }
    }
}

/// `castra agent outbox …`.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// List the events and where they stand
    #[command(after_help = LS_HELP)]
    Ls(OutboxLsArgs),
    /// Make events of the state error pending again, behind all others
    #[command(after_help = RETRY_HELP)]
    Retry(OutboxRetryArgs),
    /// Remove events
    #[command(after_help = PURGE_HELP)]
    Purge(OutboxPurgeArgs),
}

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutboxState {
    /// It waits for the broker.
    Pending,
    /// The broker has it.
    Sent,
    /// The broker refused it, or it was pending for too long.
    Error,
}

/// `castra agent outbox ls`.
#[derive(Args, Debug)]
pub struct OutboxLsArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub at: StateDirArgs,
    /// Only these
    #[arg(long, value_name = "STATE", value_enum)]
    pub state: Option<OutboxState>,
    /// Only the last so many
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<u64>,
    /// List this file instead, such as outbox.db.damaged-…
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `castra agent outbox retry`.
#[derive(Args, Debug)]
pub struct OutboxRetryArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub at: StateDirArgs,
    /// The ids of events in the state error
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
}

/// `castra agent outbox purge`.
#[derive(Args, Debug)]
pub struct OutboxPurgeArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub at: StateDirArgs,
    /// The ids of events, whatever their state: one that is pending is then never sent, unless it is under way
    #[arg(value_name = "ID", required_unless_present_any = ["sent", "error"], conflicts_with_all = ["sent", "error"])]
    pub ids: Vec<String>,
    /// All that are sent
    #[arg(long)]
    pub sent: bool,
    /// All in the state error
    #[arg(long)]
    pub error: bool,
}
