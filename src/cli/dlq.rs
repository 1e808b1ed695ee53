//! `castra bus dlq`, as it is typed.

use super::tail::Output;
use clap::{ArgGroup, Args, Subcommand};

/// Behind `castra bus dlq --help`.
pub const HELP: &str = r#"Examples:
  castra bus dlq ls                      groups with dead letters
  castra bus dlq ls builds               those of one group, oldest first
  castra bus dlq show builds 4711        one of them: what was tried, and the event
  castra bus dlq retry builds 4711 4712  publish these events again, for this group alone
  castra bus dlq retry builds --all
  castra bus dlq purge builds 4711       it is seen to; forget it

A dead letter is an event that a group gave up: after its last attempt, or because a member said
so. It stays until it is retried or purged, whatever retention removes. SEQ is the event's own.

retry publishes the event to its topic again, as the host, with the header castra-retry: GROUP
and caused_by its id, and takes the letter away, both or neither. The group delivers it anew, from
attempt 1; other groups pass it by, plain subscribers see it. It changes no state of a compacted
topic: what is newer stays. The same retry again, after a lost answer, is stored once. A letter
stays when the group does not take the event, its topics or its filter being others by now, or
when the header does not fit it.

Exit codes:
  0    done; ls and show: something was printed
  1    nothing matched: no such dead letter, or for retry no such group; or some of what was to be
       retried or purged stays, each is said with the reason
  65   what was given is no name of a group
  69   no broker answers
  75   the disk is full, or the broker is just reading the journal
  77   another user's broker"#;

/// `castra bus dlq`.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List groups with dead letters, or the letters of one
    #[command(after_help = "Examples:\n  castra bus dlq ls\n  castra bus dlq ls builds --json | jq .seq")]
    Ls(DlqLsArgs),
    /// Show a dead letter
    #[command(after_help = "Examples:\n  castra bus dlq show builds 4711")]
    Show(DlqShowArgs),
    /// Publish events again, for the group that gave them up
    #[command(
        override_usage = "castra bus dlq retry [OPTIONS] <GROUP> <SEQ...|--all>",
        after_help = "Examples:\n  castra bus dlq retry builds 4711 4712\n  castra bus dlq retry builds --all"
    )]
    Retry(DlqWhichArgs),
    /// Forget dead letters
    #[command(
        override_usage = "castra bus dlq purge [OPTIONS] <GROUP> <SEQ...|--all>",
        after_help = "Examples:\n  castra bus dlq purge builds 4711\n  castra bus dlq purge builds --all"
    )]
    Purge(DlqWhichArgs),
}

/// `castra bus dlq ls`.
#[derive(Args, Debug)]
pub struct DlqLsArgs {
    /// The group; none: all groups that have some
    #[arg(value_name = "GROUP")]
    pub group: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Print times in UTC
    #[arg(long)]
    pub utc: bool,
}

/// `castra bus dlq show`.
#[derive(Args, Debug)]
pub struct DlqShowArgs {
    /// The group
    #[arg(value_name = "GROUP")]
    pub group: String,
    /// The event
    #[arg(value_name = "SEQ")]
    pub seq: u64,
    /// How to print: the letter as text or JSON, or the event's payload
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Print times in UTC
    #[arg(long)]
    pub utc: bool,
}

/// Which letters of a group.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("which").args(["seqs", "all"]).required(true))]
pub struct DlqWhichArgs {
    /// The group
    #[arg(value_name = "GROUP")]
    pub group: String,
    /// The events
    #[arg(value_name = "SEQ")]
    pub seqs: Vec<u64>,
    /// All that the group has
    #[arg(long)]
    pub all: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
