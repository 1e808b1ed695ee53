//! What an operator sees: a file per command. Printing happens here and nowhere else.
//!
//! Always holds: stdout is data; an error goes to stderr and says what happened and what to do; the exit
//! code is one of DESIGN section 6. Owner: `main.rs` calls [`main`].

#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "broker")]
mod asked;
#[cfg(feature = "broker")]
mod backup;
#[cfg(feature = "broker")]
mod bench;
#[cfg(feature = "broker")]
mod broker;
#[cfg(feature = "broker")]
mod completions;
#[cfg(feature = "broker")]
mod config;
#[cfg(feature = "broker")]
mod config_check;
#[cfg(feature = "broker")]
mod dlq;
mod failure;
#[cfg(feature = "broker")]
mod given;
#[cfg(feature = "broker")]
mod group;
#[cfg(feature = "broker")]
mod host;
#[cfg(feature = "broker")]
mod latest;
#[cfg(feature = "broker")]
mod logging;
#[cfg(feature = "broker")]
mod logs;
#[cfg(feature = "broker")]
mod man;
#[cfg(feature = "broker")]
mod operator;
#[cfg(feature = "broker")]
mod publish;
#[cfg(feature = "broker")]
mod reload;
#[cfg(feature = "broker")]
mod service;
#[cfg(feature = "broker")]
mod status;
#[cfg(feature = "broker")]
mod status_groups;
#[cfg(feature = "broker")]
mod status_table;
mod stderr;
#[cfg(feature = "broker")]
mod subscribe;
#[cfg(feature = "broker")]
mod tail;
#[cfg(feature = "broker")]
mod terminal;
#[cfg(feature = "broker")]
mod verify;
#[cfg(feature = "broker")]
mod vm_forget;
#[cfg(feature = "broker")]
mod words;

use crate::cli::{Cli, Command};
use crate::core::room;
use failure::{Exit, Failure};
use std::process::ExitCode;

/// Runs what was typed to its end.
pub fn main() -> ExitCode {
    room::outlive_limit();
    let cli = match Cli::typed() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            let text = error.to_string();
            let why = text.trim_end().strip_prefix("error: ").unwrap_or(&text);
            return end(&Failure::new(Exit::Usage, "usage", why), true);
        }
        // Help and version come this way, too. A closed pipe has enough.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let mut json = false;
    let ended = match cli.command {
        #[cfg(feature = "agent")]
        Command::Agent(args) => agent::run(*args, &mut json),
        #[cfg(feature = "broker")]
        Command::Host(command) => operator::run(command, cli.state_root, cli.config, &mut json),
    };
    let code = match ended {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => end(&failure, json),
    };
    stderr::finish();
    code
}

/// Says why, and ends with its code.
fn end(failure: &Failure, json: bool) -> ExitCode {
    if failure.exit != Exit::Ok {
        match json {
            true => {
                stderr::write(format!("{}\n", failure.json()).as_bytes());
            }
            false => failure.message.lines().for_each(stderr::say),
        }
    }
    ExitCode::from(failure.exit as u8)
}
