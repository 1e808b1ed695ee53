//! `castra bus tail`, as it is typed.

use clap::{Args, ValueEnum};

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra bus tail -n 20
  castra bus tail --vm web -f
  castra bus tail -f -o json | jq .payload"#;

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
