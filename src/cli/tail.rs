//! `castra bus tail`, as it is typed.

use super::parse_time;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra bus tail                                   the last 10 events
  castra bus tail 'build.*' vm:web                  the last 10 about these topics
  castra bus tail --vm web -f                       what web publishes and is sent
  castra bus tail --since 10m --grep '"code":[45]'  of the last ten minutes
  castra bus tail --since '2026-11-21 08:00' --until '2026-11-21 09:00' -o json
  castra bus tail -f -n 0 -c 1 --timeout 30s deploy.done && ./next    wait for an event
  castra bus tail -f --cursor seen.json -o json | ./work    go on where the last run ended

TIME is how long ago (10m, 2h 30m, 3d), now, RFC 3339 (2026-11-21T08:00:00Z), a local time
('2026-11-21 08:00'), or the seq of an event (@4711).

Events go to stdout; how the VM stands (or the broker, without --vm) goes to stderr, with -f
again when that changes, and so does what is missing: events that were rotated away before
they were read.

With --cursor FILE an event may be printed again after a crash, but none is passed over. The
first run begins at the oldest event, or where -n or --since says; later runs go on behind
the last printed event, and -n and --since are not looked at.

Exit code 0 when something was printed, 1 when nothing matched or there is no log yet, 124
when --timeout ran out first."#;

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
    /// Only events about these topics: names or patterns (* is one token, a last > is one or more)
    #[arg(value_name = "TOPIC")]
    pub patterns: Vec<String>,
    /// What this VM published, and what was sent to its mailbox
    #[arg(long, value_name = "NAME", conflicts_with = "shared")]
    pub vm: Option<String>,
    /// What everybody published (the default)
    #[arg(long)]
    pub shared: bool,
    /// Go on as events come
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last N events that match [default: 10, or all with --since or --cursor]
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<u64>,
    /// Begin here
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// End here, this included
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub until: Option<String>,
    /// End when N events were printed
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Only events whose JSON line matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub grep: Option<String>,
    /// Follow for so long at the most; then the exit code is 124
    #[arg(long, value_name = "TIME", requires = "follow", value_parser = parse_time)]
    pub timeout: Option<Duration>,
    /// Remember in FILE what was printed last, and go on behind it
    #[arg(long, value_name = "FILE")]
    pub cursor: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Print times in UTC
    #[arg(long)]
    pub utc: bool,
    /// Do not say how the VM stands
    #[arg(short, long)]
    pub quiet: bool,
}
