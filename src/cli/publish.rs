//! `castra bus publish`, as it is typed.

use super::parse_time;
use clap::Args;
use std::time::Duration;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra bus publish deploy '{"version":7}'
  castra bus publish --topic vm:web --payload '"reload"'
  uptime | jq -R . | castra bus publish host.uptime -

Prints the event's seq and id. Exit code 75 with 'logs-behind' means: stored, do not send it again."#;

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
