//! What an operator sees: a file per command. Printing happens here and nowhere else.
//!
//! Always holds: stdout is data; an error goes to stderr and says what happened and what to do; the exit
//! code is one of DESIGN section 6. Owner: `main.rs` calls [`main`].

mod backup;
mod bench;
mod broker;
mod completions;
mod config;
mod failure;
mod given;
mod host;
mod logging;
mod logs;
mod man;
mod publish;
mod service;
mod status;
mod status_table;
mod subscribe;
mod tail;
mod terminal;
mod verify;
mod vm_forget;
mod words;

use crate::cli::{BusCommand, Cli, Command, VmCommand};
use crate::core::config::LogFormat;
use failure::{Exit, Failure};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs what was typed to its end.
pub fn main() -> ExitCode {
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
    let mut json = wants_json(&cli.command);
    match run_command(cli, &mut json) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => end(&failure, json),
    }
}

/// Says why, and ends with its code.
fn end(failure: &Failure, json: bool) -> ExitCode {
    if failure.exit != Exit::Ok {
        // A closed stderr leaves the exit code.
        let _ = match json {
            true => writeln!(io::stderr(), "{}", failure.json()),
            false => writeln!(io::stderr(), "castra: {}", failure.message),
        };
    }
    ExitCode::from(failure.exit as u8)
}

fn run_command(cli: Cli, json: &mut bool) -> Result<Exit, Failure> {
    // These two work also where the configuration is wrong.
    match cli.command {
        Command::Completions(args) => return completions::run(&args),
        Command::Man(args) => return man::run(&args),
        _ => {}
    }
    let mut config = config::load(named(cli.config).as_deref())?;
    let root = config.state_root(named(cli.state_root));
    let looks_itself = matches!(
        cli.command,
        Command::Broker(_)
            | Command::Bench(_)
            | Command::Bus(BusCommand::Publish(_) | BusCommand::Subscribe(_))
    );
    if !looks_itself {
        given::check_root(&root)?;
    }
    match cli.command {
        Command::Broker(args) => {
            config.take(&args)?;
            *json |= config.settings.log_format == LogFormat::Json && !args.print_config;
            if args.print_config {
                broker::print_config(&root, &config)
            } else {
                broker::run(root, config.settings)
            }
        }
        Command::Bus(BusCommand::Publish(args)) => publish::run(&root, *args),
        Command::Bus(BusCommand::Subscribe(args)) => subscribe::run(&root, &args),
        Command::Bus(BusCommand::Tail(args)) => tail::run(&root, &args),
        Command::Completions(args) => completions::run(&args),
        Command::Logs(args) => logs::run(&root, &args),
        Command::Man(args) => man::run(&args),
        Command::Status(args) => status::run(&root, &args),
        Command::Verify(args) => verify::run(&root, &args),
        Command::Backup(args) => backup::run(&root, &args),
        Command::Bench(command) => bench::run(&root, &command),
        Command::Vm(VmCommand::Forget(args)) => vm_forget::run(&root, &args),
    }
}

/// A path that is not empty.
fn named(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Whether a failure is said as an object.
fn wants_json(command: &Command) -> bool {
    match command {
        Command::Status(args) => args.json,
        Command::Broker(args) => args.log_format.as_deref() == Some("json"),
        Command::Bus(BusCommand::Publish(args)) => args.json,
        Command::Bus(BusCommand::Subscribe(args)) => args.json,
        Command::Vm(VmCommand::Forget(args)) => args.json,
        Command::Verify(args) => args.json,
        Command::Backup(args) => args.json,
        Command::Bench(command) => bench::common(command).json,
        Command::Bus(BusCommand::Tail(_)) | Command::Completions(_) | Command::Logs(_) | Command::Man(_) => {
            false
        }
    }
}
