//! `castra config`, as it is typed.

use clap::{Args, Subcommand};

/// Behind `castra config check --help`.
pub const CHECK_HELP: &str = "Examples:
  castra config check
  castra config check --config ./castra.toml && systemctl reload castra

Prints what is in force, as a castra.toml, and on stderr what is wrong, with line and column.

Exit codes:
  0    nothing is wrong
  78   something is; a broker would not start with it";

/// `castra config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print what is in force and what is wrong, with line numbers
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),
}

/// `castra config check`.
#[derive(Args, Debug)]
pub struct CheckArgs {}
