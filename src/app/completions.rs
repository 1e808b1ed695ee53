//! `castra completions`: what makes a shell complete commands and flags. Owner: the operator, and `deploy/deb`.

use super::{Exit, Failure};
use crate::cli::{Cli, CompletionsArgs};
use clap::CommandFactory;
use std::io::{self, Write};

pub fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    // Into memory: it takes a closed pipe for a fault.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "castra", &mut script);
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(Exit::Ok)
}
