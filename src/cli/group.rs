//! `castra bus group`, as it is typed.

use super::{parse_days, parse_header};
use clap::{Args, Subcommand};
use std::time::Duration;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra bus group ls
  castra bus group create mailers --topic 'jobs.mail.*' --from earliest --max-attempts 3
  castra bus group show mailers
  castra bus group lag --over 1000 || ./page
  castra bus group seek mailers 2h
  castra bus group rm mailers

A group is a durable, named set of consumers that share the events of its topics; each event is
delivered until a member acks it, or it is given up after --max-attempts and becomes a dead
letter ($dlq.GROUP). 'castra bus subscribe --group' is a member; so are agents and programs.

Exit codes:
  0    done
  1    no such group; with lag --over: one is above
  2    usage
  65   what was given is wrong: a bad name, topic, header or tag, a place to begin that is none,
       an event beyond the newest one, an id that is not there
  69   no broker answers
  75   try again later: with lag --over: too much to count in 10 s; another seek looks for its
       place, the journal could not be read, the disk is full, or the broker accepts nobody just
       now
  77   refused: too many groups, topics that are not for you, a state root of somebody else
  124  no answer"#;

/// Behind `ls --help`.
pub const LS_HELP: &str = r#"Examples:
  castra bus group ls
  castra bus group ls --json | jq -r '.groups[] | select(.stalled) | .group'

Columns: CURSOR everything up to this seq is done; LAG how many events the group has yet to do,
'>=N' where not all are counted; MEMBERS; HELD by them; WAITING for one, or behind another of
their key; DELAYED after a nack; DEAD given up, the dead letter not durable yet; EXPIRED taken by
retention before the group had them, since the broker started; STALLED why nothing is delivered.

With --json an object: schema, groups (each as in 'show --json')."#;

/// Behind `show --help`.
pub const SHOW_HELP: &str = r#"Examples:
  castra bus group show mailers
  castra bus group show mailers --json | jq .lag

With --json an object: schema, group, spec (what it is: topics, headers, tags, batch,
ack_timeout_ms, max_attempts, ordered_by_key), cursor, lag, lag_at_least (true: there may be
more; else left out), members, held, waiting, delayed, dead, expired_undelivered, stalled ("no
members", "in-flight full", "waiting full", "behind retention" or null)."#;

/// Behind `create --help`.
pub const CREATE_HELP: &str = r#"Examples:
  castra bus group create ops --topic heartbeat.received
  castra bus group create mailers --topic 'jobs.*' --topic vm:web --from 2h --ordered-by-key
  castra bus group create ci --topic 'build.>' --tag nightly --header host=ci-1

From then on the group keeps its place, whether it has members or not. One that is there stays as
it is: that is said, with what it has otherwise than was given here, and the exit code is 0. With
--json: schema, group, cursor, created, differs (of these: topics, filter, batch, ack_timeout_ms,
max_attempts, ordered_by_key; empty when the group is new, or is what was asked for)."#;

/// Behind `seek --help`.
pub const SEEK_HELP: &str = r#"Examples:
  castra bus group seek mailers earliest
  castra bus group seek mailers 2026-11-21T08:00:00Z
  castra bus group seek mailers seq:4711
  castra bus group seek mailers id:b-17 --id-vm devbox

TO is earliest, latest (what is published from now on), seq:N or @N (that event first), id:ID
(what follows the newest event of this id; ids are each VM's own: --id-vm says whose), or a TIME
as in 'castra bus tail --since' (10m, now, RFC 3339, a local time). What members hold is
forgotten, and so are failures: events between are delivered again, or never. With --json:
schema, group, cursor."#;

/// Behind `rm --help`.
pub const RM_HELP: &str = "Examples:
  castra bus group rm mailers
  castra bus group rm mailers --dead-letters

Its members are told and get nothing more; its place is forgotten. Its dead letters stay, and
'castra bus dlq ls' shows them; --dead-letters purges them. With --json: schema, removed;
with --dead-letters, dead_letters: how many were purged.";

/// Behind `lag --help`.
pub const LAG_HELP: &str = "Examples:
  castra bus group lag
  castra bus group lag mailers --over 1000 || ./page

A line for each group: its name, its lag, and why it is stalled if it is ('-' if not). The lag is
the number of events that the group has yet to do: of its topics, not expired, past its filter.
'>=N' is a lower bound: the broker has not counted all of them.

With --over N it ends with 1 when a lag is above N, and with 75 when that is not known after 10
seconds. With --json: schema, groups (group, lag, lag_at_least: true for a lower bound, stalled),
over: whether one is above, undecided: true when that is not known.";

/// `castra bus group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// List the groups and how they stand
    #[command(after_help = LS_HELP)]
    Ls(GroupLsArgs),
    /// Show all of one group
    #[command(after_help = SHOW_HELP)]
    Show(GroupArgs),
    /// Make a group, if it is not there
    #[command(after_help = CREATE_HELP)]
    Create(Box<GroupCreateArgs>),
    /// Remove a group, with its place
    #[command(after_help = RM_HELP)]
    Rm(GroupRmArgs),
    /// Have a group go on somewhere else
    #[command(after_help = SEEK_HELP)]
    Seek(GroupSeekArgs),
    /// Print how far groups are behind, for scripts and alarms
    #[command(after_help = LAG_HELP)]
    Lag(GroupLagArgs),
}

/// How long a member may hold an event; as the bus has it.
pub(super) fn parse_ack_timeout(text: &str) -> Result<Duration, String> {
    parse_days(text, 1)
}

impl GroupCommand {
    /// What is printed is an object.
    pub fn json(&self) -> bool {
        match self {
            GroupCommand::Ls(args) => args.json,
            GroupCommand::Show(args) => args.json,
            GroupCommand::Rm(args) => args.json,
            GroupCommand::Create(args) => args.json,
            GroupCommand::Seek(args) => args.json,
            GroupCommand::Lag(args) => args.json,
        }
    }
}

/// `castra bus group ls`.
#[derive(Args, Debug)]
pub struct GroupLsArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `castra bus group rm`.
#[derive(Args, Debug)]
pub struct GroupRmArgs {
    /// The group
    #[arg(value_name = "GROUP")]
    pub group: String,
    /// Purge its dead letters as well; without this they stay
    #[arg(long)]
    pub dead_letters: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `castra bus group show`.
#[derive(Args, Debug)]
pub struct GroupArgs {
    /// The group
    #[arg(value_name = "GROUP")]
    pub group: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `castra bus group create`.
#[derive(Args, Debug)]
pub struct GroupCreateArgs {
    /// Its name: tokens of A-Z a-z 0-9 _ - joined by dots
    #[arg(value_name = "GROUP")]
    pub group: String,
    /// Its topic, or a pattern; several are possible
    #[arg(short, long = "topic", value_name = "PATTERN", required = true)]
    pub topics: Vec<String>,
    /// Begin here: latest, earliest, seq:N, id:ID or TIME
    #[arg(long, value_name = "FROM", default_value = "latest", allow_hyphen_values = true)]
    pub from: String,
    /// With id:ID: the id is one of this VM's; else the newest event of that id, whoever published it
    #[arg(long, value_name = "NAME")]
    pub id_vm: Option<String>,
    /// Hand so many events to a member at a time [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub batch: Option<u32>,
    /// Deliver an event again that is not answered within this [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_ack_timeout)]
    pub ack_timeout: Option<Duration>,
    /// Give an event up after so many deliveries [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_attempts: Option<u32>,
    /// Only events that have this header; several are possible
    #[arg(long = "header", value_name = "K=V", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// Only events that have this tag; several are possible
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Events of one key one after the other, in order
    #[arg(long)]
    pub ordered_by_key: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `castra bus group seek`.
#[derive(Args, Debug)]
pub struct GroupSeekArgs {
    /// The group
    #[arg(value_name = "GROUP")]
    pub group: String,
    /// Where it goes on: earliest, latest, seq:N, id:ID or TIME
    #[arg(value_name = "TO")]
    pub to: String,
    /// With id:ID: the id is one of this VM's; else the newest event of that id, whoever published it
    #[arg(long, value_name = "NAME")]
    pub id_vm: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `castra bus group lag`.
#[derive(Args, Debug)]
pub struct GroupLagArgs {
    /// Only this group
    #[arg(value_name = "GROUP")]
    pub group: Option<String>,
    /// Exit with 1 when a lag is above this
    #[arg(long, value_name = "N")]
    pub over: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
