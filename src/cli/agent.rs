//! `castra agent`, as it is typed.

use clap::Args;

/// Behind `--help`.
pub const HELP: &str = "Examples:
  castra agent --vm web --broker tcp:10.0.2.2:7070";

/// The guest's side: hold a session with the broker, and keep what is published until it has it
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// This guest's name
    #[arg(long, value_name = "NAME")]
    pub vm: String,
}
