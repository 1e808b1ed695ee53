//! `castra vm`, as it is typed.

use clap::{Args, Subcommand};

/// Behind `castra vm forget --help`.
pub const FORGET_HELP: &str = "Examples:
  castra vm forget old-devbox

A VM that has a session is not forgotten (exit code 77): it would come back at once. Works
without a broker as well. The VM's logs stay below logs/bus; when it says hello again it is
remembered again.";

/// `castra vm`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Show a VM no longer that is gone for good
    #[command(after_help = FORGET_HELP)]
    Forget(ForgetArgs),
}

/// `castra vm forget`.
#[derive(Args, Debug)]
pub struct ForgetArgs {
    /// The VM
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
