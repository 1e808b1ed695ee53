//! What an operator sees: a file per command. Printing happens here and nowhere else.
//!
//! Always holds: stdout is data; an error goes to stderr and says what happened and what to do; the exit
//! code is one of DESIGN section 6. Owner: `main.rs` calls [`run`].

mod backup;
mod broker;
mod bus_publish;
mod bus_tail;
mod failure;
mod logging;
mod status;
mod terminal;
mod verify;

use crate::cli::{BusCommand, Cli, Command};
use crate::core::state_root::StateRoot;
use failure::{Exit, Failure};
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs one command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let root = StateRoot::resolve(cli.state_root);
    let json = wants_json(&cli.command);
    let result = match cli.command {
        Command::Broker(args) => broker::run(root, args),
        Command::Bus(BusCommand::Publish(args)) => bus_publish::run(&root, args),
        Command::Bus(BusCommand::Tail(args)) => bus_tail::run(&root, &args),
        Command::Status(args) => status::run(&root, &args),
        Command::Verify(args) => verify::run(&root, &args),
        Command::Backup(args) => backup::run(&root, &args),
    };
    let exit = result.unwrap_or_else(|failure| {
        if failure.exit != Exit::Ok {
            // A closed stderr leaves the exit code.
            let _ = match json {
                true => writeln!(io::stderr(), "{}", failure.json()),
                false => writeln!(io::stderr(), "castra: {}", failure.message),
            };
        }
        failure.exit
    });
    ExitCode::from(exit as u8)
}

/// Whether a failure is said as an object.
fn wants_json(command: &Command) -> bool {
    match command {
        Command::Status(args) => args.json,
        Command::Verify(args) => args.json,
        Command::Backup(args) => args.json,
        Command::Broker(_) | Command::Bus(_) => false,
    }
}
