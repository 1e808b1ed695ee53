//! The program: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    castra::app::run(castra::cli::Cli::typed())
}
