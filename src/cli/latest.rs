//! `castra bus latest` and `castra bus snapshot`, as they are typed.

use super::tail::Output;
use clap::Args;

/// Behind `castra bus latest --help`.
pub const LATEST_HELP: &str = r#"Examples:
  castra bus latest config.web                  the newest event of each key, in their order
  castra bus latest config.web port name -o raw the payloads of these two
  castra bus latest hosts -o json | jq .key     whole events

The topic is one that castra.toml compacts ([[topics]] with compaction = true), or one of dead
letters ($dlq.GROUP). Its keys are kept whatever retention removes; an event with the payload
null ends one. What is answered has everything that was acknowledged before it was asked. A
line of text shows time, seq, who published it, key and payload.

To follow changes as well: castra bus subscribe TOPIC --from state.

Exit code 0 when something was printed, 1 when nothing matched, 65 when TOPIC is no topic, 69
when no broker answers, 75 when the broker is just reading the journal for it, 77 when it may
not be read, 78 when TOPIC is not compacted."#;

/// Behind `castra bus snapshot --help`.
pub const SNAPSHOT_HELP: &str = r#"Examples:
  castra bus snapshot config.web

Publishes to TOPIC.snapshot, for each key of TOPIC, an event with that key and the payload
{"key":…,"seq":…,"ts":…,"payload":…}, and a last one without a key:
{"end":true,"keys":N,"through":SEQ}. Each key is as new as it was at SEQ, or newer. With
snapshot_every in castra.toml the broker does it by itself.

Exit code 0 when all of it is durable, 65 when TOPIC is no topic, 69 when no broker answers, 75
when the disk is full or the broker is just reading the journal for it, 78 when TOPIC is not
compacted."#;

/// `castra bus latest`.
#[derive(Args, Debug)]
pub struct LatestArgs {
    /// The topic
    #[arg(value_name = "TOPIC")]
    pub topic: String,
    /// Keys; none: all
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Print times in UTC
    #[arg(long)]
    pub utc: bool,
    /// As -o json, and failures as JSON objects, too
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
}

/// `castra bus snapshot`.
#[derive(Args, Debug)]
pub struct SnapshotArgs {
    /// The topic
    #[arg(value_name = "TOPIC")]
    pub topic: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
