//! `castra config`, as it is typed.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Behind `castra config check --help`.
pub const CHECK_HELP: &str = "Examples:
  castra config check
  castra config check ./castra.toml && systemctl reload castra
  castra config check --json | jq '.errors'

Prints what is in force, as a castra.toml, and on stderr what is wrong and what deserves a
word, with line and column. Token files are looked at and not shown. Flags and variables of
castra broker are not looked at.

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
pub struct CheckArgs {
    /// The castra.toml [default: that of --config, else the usual one]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Print what is wrong as an object, and not what is in force
    #[arg(long)]
    pub json: bool,
}
