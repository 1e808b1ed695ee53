//! `castra agent publish`, as it is typed.

use super::{parse_header, parse_some_time, parse_ttl};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Behind `--help`.
pub const PUBLISH_HELP: &str = r#"Examples:
  castra agent publish build.done '{"version":7}'
  castra agent publish disk.full --key /var --tag urgent '"97 %"'
  df --output=pcent / | jq -Rs . | castra agent publish disk.free
  castra agent publish build.done --id build-7 --header commit=1f3a - < report.json

Prints 'id=…' once the agent has the event on its disk, whether the host is there or not; with
--json {"schema":1,"id":…,"topic":…}. The agent sends it on when the broker answers; 'castra
agent outbox ls' shows what waits. When no answer came, send it again with the same --id: the
broker stores it once.

Programs speak to the same socket themselves, one JSON object a line (docs/AGENT.md).

Exit codes:
  0    the agent has it
  65   what was given is wrong: no JSON, a bad topic, too large
  69   no agent answers
  74   stdin could not be read, or stdout not written
  75   not kept: outbox-full, outbox-disk-full, outbox-busy, outbox-failed, the agent is
      ending; try again
  77   refused: a topic of the broker's own, or a socket this user may not use
  124  the agent did not answer in time"#;

/// Publish an event through the agent of this guest
#[derive(Args, Debug)]
pub struct AgentPublishArgs {
    /// What the event is about
    #[arg(value_name = "TOPIC")]
    pub topic: String,
    /// JSON; - or nothing reads it from stdin
    #[arg(value_name = "JSON", allow_negative_numbers = true)]
    pub payload: Option<String>,
    /// An id of your own, to know the event by [default: a UUIDv7]
    #[arg(long)]
    pub id: Option<String>,
    /// What the event is the latest state of
    #[arg(long)]
    pub key: Option<String>,
    /// A header; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// A tag; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// The id of an event that led to this one; may be given several times
    #[arg(long, value_name = "ID")]
    pub caused_by: Vec<String>,
    /// The session, boot or run that it comes from, by a name of your own
    #[arg(long, value_name = "NAME")]
    pub sid: Option<String>,
    /// Not delivered later than so long after it was stored
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    pub ttl: Option<Duration>,
    /// Where the agent listens
    #[arg(
        long,
        value_name = "PATH",
        env = "CASTRA_AGENT_SOCKET",
        hide_env_values = true,
        default_value = "/run/castra/agent.sock"
    )]
    pub socket: PathBuf,
    /// Give up after so long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_some_time)]
    pub timeout: Duration,
    /// Print JSON objects, failures (on stderr) included
    #[arg(long)]
    pub json: bool,
}
