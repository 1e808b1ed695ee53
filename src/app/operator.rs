//! The host's commands, from what was typed to the file that runs each.
//!
//! Always holds: castra.toml is read before a command begins, and one that is wrong ends it (78). Owner: [`super::main`].

use super::failure::{Exit, Failure};
use super::{
    backup, bench, broker, completions, config, config_check, dlq, given, group, latest, logs, man, publish,
    reload, status, subscribe, tail, verify, vm_forget,
};
use crate::cli::{BusCommand, ConfigCommand, DlqCommand, HostCommand, VmCommand};
use crate::core::config::LogFormat;
use std::path::PathBuf;

/// Runs a command to its end; `json` says whether a failure is said as an object.
pub fn run(
    command: HostCommand,
    state_root: Option<PathBuf>,
    config: Option<PathBuf>,
    json: &mut bool,
) -> Result<Exit, Failure> {
    *json = wants_json(&command);
    // These work also where the configuration is wrong.
    match command {
        HostCommand::Completions(args) => return completions::run(&args),
        HostCommand::Man(args) => return man::run(&args),
        HostCommand::Config(ConfigCommand::Check(args)) => {
            return config_check::run(&args, named(config), named(state_root));
        }
        // From its first moment on it is told things by signals.
        HostCommand::Broker(_) => reload::hold_signal(),
        _ => {}
    }
    let mut config = config::load(named(config).as_deref())?;
    let root = config.state_root(named(state_root));
    let looks_itself = matches!(
        command,
        HostCommand::Broker(_)
            | HostCommand::Bench(_)
            | HostCommand::Bus(
                BusCommand::Publish(_)
                    | BusCommand::Subscribe(_)
                    | BusCommand::Latest(_)
                    | BusCommand::Snapshot(_)
                    | BusCommand::Dlq(_)
                    | BusCommand::Group(_)
            )
    );
    if !looks_itself {
        given::check_root(&root)?;
    }
    match command {
        HostCommand::Broker(args) => {
            config.take(&args)?;
            *json |= config.settings.log_format == LogFormat::Json && !args.print_config;
            if args.print_config {
                broker::print_config(&root, &config)
            } else {
                broker::run(root, config, *args)
            }
        }
        HostCommand::Bus(BusCommand::Publish(args)) => publish::run(&root, *args),
        HostCommand::Bus(BusCommand::Subscribe(args)) => subscribe::run(&root, &args),
        HostCommand::Bus(BusCommand::Group(command)) => group::run(&root, &command),
        HostCommand::Bus(BusCommand::Tail(args)) => tail::run(&root, &args),
        HostCommand::Bus(BusCommand::Latest(args)) => latest::run(&root, &args),
        HostCommand::Bus(BusCommand::Snapshot(args)) => latest::snapshot(&root, &args),
        HostCommand::Bus(BusCommand::Dlq(command)) => dlq::run(&root, &command),
        HostCommand::Completions(args) => completions::run(&args),
        HostCommand::Logs(args) => logs::run(&root, &args),
        HostCommand::Man(args) => man::run(&args),
        HostCommand::Status(args) => status::run(&root, &args),
        HostCommand::Verify(args) => verify::run(&root, config.settings.limits.log_bytes, &args),
        HostCommand::Backup(args) => backup::run(&root, &args),
        HostCommand::Bench(command) => bench::run(&root, &command),
        HostCommand::Vm(VmCommand::Forget(args)) => vm_forget::run(&root, &args),
        HostCommand::Config(ConfigCommand::Check(args)) => config_check::run(&args, config.file, None),
    }
}

/// A path that is not empty.
fn named(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Whether a failure is said as an object.
fn wants_json(command: &HostCommand) -> bool {
    match command {
        HostCommand::Status(args) => args.json,
        HostCommand::Broker(args) => args.log_format.as_deref() == Some("json"),
        HostCommand::Bus(BusCommand::Publish(args)) => args.json,
        HostCommand::Bus(BusCommand::Subscribe(args)) => args.json,
        HostCommand::Bus(BusCommand::Latest(args)) => args.json,
        HostCommand::Bus(BusCommand::Snapshot(args)) => args.json,
        HostCommand::Bus(BusCommand::Dlq(command)) => match command {
            DlqCommand::Ls(args) => args.json,
            DlqCommand::Retry(args) | DlqCommand::Purge(args) => args.json,
            DlqCommand::Show(_) => false,
        },
        HostCommand::Bus(BusCommand::Group(command)) => command.json(),
        HostCommand::Vm(VmCommand::Forget(args)) => args.json,
        HostCommand::Verify(args) => args.json,
        HostCommand::Backup(args) => args.json,
        HostCommand::Bench(command) => bench::common(command).json,
        HostCommand::Bus(BusCommand::Tail(_))
        | HostCommand::Completions(_)
        | HostCommand::Config(_)
        | HostCommand::Logs(_)
        | HostCommand::Man(_) => false,
    }
}
