//! What an operator sees: a file per command. Printing happens here and nowhere else.
//!
//! Always holds: stdout is data; an error goes to stderr and says what happened and what to do; the exit
//! code is one of DESIGN section 6. Owner: `main.rs` calls [`run`].

mod broker;
mod bus_publish;
mod bus_tail;
mod logging;
mod status;

use crate::cli::{BusCommand, Cli, Command};
use crate::core::state_root::StateRoot;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// Exit codes (sysexits where they fit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Ok = 0,
    Degraded = 1,
    BadData = 65,
    NoBroker = 69,
    CannotCreate = 73,
    Io = 74,
    TryAgain = 75,
    Refused = 77,
    BadConfig = 78,
    Timeout = 124,
}

/// Why a command failed: what happened, what to do, which exit code.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever read our output has enough.
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Ok } else { Exit::Io };
        Failure::new(exit, error.to_string())
    }
}

/// Runs one command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let root = StateRoot::resolve(cli.state_root);
    let result = match cli.command {
        Command::Broker(args) => broker::run(root, args),
        Command::Bus(BusCommand::Publish(args)) => bus_publish::run(&root, args),
        Command::Bus(BusCommand::Tail(args)) => bus_tail::run(&root, &args),
        Command::Status(args) => status::run(&root, &args),
    };
    let exit = result.unwrap_or_else(|failure| {
        if failure.exit != Exit::Ok {
            // A closed stderr leaves the exit code.
            let _ = writeln!(io::stderr(), "castra: {failure}");
        }
        failure.exit
    });
    ExitCode::from(exit as u8)
}
