//! `castra logs`, as it is typed.

use clap::Args;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra logs -n 50
  castra logs -f --grep 'WARN|ERROR'

Reads logs/broker.log in the state root and its rotated files; works without a broker. Exit
code 0 when something was printed, 1 when nothing matched or there is no log yet."#;

/// `castra logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Go on as lines come
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last N lines that match
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub lines: u64,
    /// Only lines that match this regular expression
    #[arg(long, value_name = "REGEX")]
    pub grep: Option<String>,
}
