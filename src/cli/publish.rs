//! `castra bus publish`, as it is typed.

use super::{parse_header, parse_time, parse_ttl};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra bus publish deploy '{"version":7}'
  castra bus publish --topic vm:web --payload '"reload"'
  castra bus publish build.done --file report.json --key web --tag ci --header commit=1f3a
  uptime | jq -R . | castra bus publish host.uptime -
  castra bus publish deploy '{"version":7}' --dry-run
  castra bus publish --jsonl --file events.jsonl > stored.txt
  castra bus tail -o json | castra --state-root /srv/other bus publish --jsonl

Prints 'seq=… id=…' once the event is durable and in the logs; with --json
{"schema":1,"seq":…,"id":…,"topic":…}.

An --id that is one of the last 256 that the host gave, or one of the last 100,000 of two
minutes of all, is a repeat: nothing is stored again, 'duplicate' (with --json
"duplicate":true) is printed with the seq of the first one.

With --jsonl each line of stdin (or of --file) is a JSON object with the fields of an event:
topic, payload, id, key, headers, tags, caused_by, sid, ttl_ms. Other fields (seq, ts, vm,
type) are ignored and empty lines are skipped. A field that a line leaves out is taken from
TOPIC, --key, --header, --tag, --caused-by, --sid and --ttl. Lines are sent without waiting
for each other, and are stored in their order. What is stored is printed in that order; a
line that is refused is said on stderr with its number, and the others go on. When the
broker can take no more (its disk is full, it ends, the connection is lost) publishing
stops, and the last sentence says from which line to go on. When nobody reads stdout any
more it stops behind what is under way.

--timeout is for connection and answer together; with --jsonl for the connection, and then
for each time that events are under way and the broker acknowledges none.

--dry-run checks an event as the broker does, and prints it as it would be stored, without
seq and ts. Nothing is sent and no broker is needed.

Exit codes:
  0    stored (or, with --dry-run, valid)
  65   what was given is wrong: no JSON, a bad topic, too large; with --jsonl: lines were
       refused, the others stored
  69   no broker answers
  74   the input could not be read, or stdout not written
  75   disk-full: not stored, publishing resumes by itself; logs-behind: stored, do not send
       it again; outcome-unknown: send it again with the same --id; too many sessions, or the
       broker is ending
  77   refused: a topic of the broker's own, or a state root that belongs to somebody else
  124  the broker did not answer in time"#;

/// `castra bus publish`.
#[derive(Args, Debug)]
pub struct PublishArgs {
    /// What the event is about [default: broadcast]
    #[arg(value_name = "TOPIC", conflicts_with = "topic_flag")]
    pub topic: Option<String>,
    /// JSON, or - to read it from stdin [default: null]
    #[arg(value_name = "PAYLOAD", conflicts_with = "payload_flag", allow_negative_numbers = true)]
    pub payload: Option<String>,
    /// The topic, as a flag
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topic_flag: Option<String>,
    /// The payload, as a flag
    #[arg(long = "payload", value_name = "JSON", allow_negative_numbers = true)]
    pub payload_flag: Option<String>,
    /// Read the payload (with --jsonl: the lines) from a file; - is stdin
    #[arg(long, value_name = "PATH", conflicts_with_all = ["payload", "payload_flag"])]
    pub file: Option<PathBuf>,
    /// An id of your own, to know the event by: with the same one again it is stored once [default: a UUIDv7]
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
    /// Publish one event a line
    #[arg(long, conflicts_with_all = ["payload", "payload_flag", "id"])]
    pub jsonl: bool,
    /// Check it as the broker does and print it; send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give up after so long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub timeout: Duration,
    /// Print JSON objects, failures (on stderr) included
    #[arg(long)]
    pub json: bool,
}
