//! The program: parse, run, exit code.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    castra::app::run(castra::cli::Cli::parse())
}
