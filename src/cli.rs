//! What can be typed, and nothing else: a file per command below `cli/`. Flags > environment >
//! castra.toml > defaults.

mod backup;
mod bench;
mod broker;
mod completions;
mod logs;
mod man;
mod publish;
mod status;
mod subscribe;
mod tail;
mod verify;
mod vm;

pub use backup::BackupArgs;
pub use bench::{
    BenchArgs, BenchCommand, BenchDeliverArgs, BenchFanoutArgs, BenchIdleArgs, BenchPublishArgs,
};
pub use broker::BrokerArgs;
pub use completions::CompletionsArgs;
pub use logs::LogsArgs;
pub use man::ManArgs;
pub use publish::PublishArgs;
pub use status::StatusArgs;
pub use subscribe::SubscribeArgs;
pub use tail::{Output, TailArgs};
pub use verify::VerifyArgs;
pub use vm::{ForgetArgs, VmCommand};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Above the options that every command has.
const EVERYWHERE: &str = "Options of every command";

/// What an exit code means, for `--help` and castra(1).
pub const EXIT_CODES: [(u8, &str); 11] = [
    (0, "ok"),
    (1, "ran but nothing matched or degraded"),
    (2, "usage"),
    (65, "bad data"),
    (69, "broker not reachable"),
    (73, "cannot create"),
    (74, "I/O"),
    (75, "try again later"),
    (77, "refused"),
    (78, "bad configuration"),
    (124, "timeout"),
];

fn exit_codes() -> String {
    let codes = EXIT_CODES.map(|(code, meaning)| format!("{code} {meaning}"));
    format!("Exit codes: {}.", codes.join(", "))
}

/// A message bus between virtual machines and their host: durable before acknowledged.
#[derive(Debug, Parser)]
#[command(name = "castra", version, after_help = exit_codes())]
pub struct Cli {
    /// Where everything of one broker is [default: $XDG_STATE_HOME/castra or ~/.local/state/castra]
    #[arg(long, global = true, value_parser = path(), hide_env_values = true, env = "CASTRA_STATE_ROOT", value_name = "DIR", help_heading = EVERYWHERE)]
    pub state_root: Option<PathBuf>,
    /// The settings [default: ~/.config/castra/castra.toml, else /etc/castra/castra.toml, if there]
    #[arg(long, global = true, value_parser = path(), hide_env_values = true, env = "CASTRA_CONFIG", value_name = "FILE", help_heading = EVERYWHERE)]
    pub config: Option<PathBuf>,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What was typed.
    ///
    /// # Errors
    /// It makes no sense, or asks for help.
    pub fn typed() -> Result<Self, clap::Error> {
        let mut command = Cli::command();
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        if let (Some(("broker", matches)), Some(command)) =
            (matches.subcommand(), command.find_subcommand_mut("broker"))
        {
            broker::check(command, matches)?;
        }
        Cli::from_arg_matches(&matches)
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the broker until SIGTERM or SIGINT
    #[command(after_help = broker::HELP)]
    Broker(BrokerArgs),
    /// Show which VMs are fresh; reads a file and never waits for the broker
    #[command(after_help = status::HELP)]
    Status(StatusArgs),
    /// Publish to the bus, or read it
    #[command(subcommand)]
    Bus(BusCommand),
    /// Print the broker's own log; works without a broker
    #[command(after_help = logs::HELP)]
    Logs(LogsArgs),
    /// What the broker remembers of VMs
    #[command(subcommand)]
    Vm(VmCommand),
    /// Read all of the journal and the logs, and say what is damaged
    #[command(after_help = verify::HELP)]
    Verify(VerifyArgs),
    /// Copy everything of a broker, running or not, to a folder
    #[command(after_help = backup::HELP)]
    Backup(BackupArgs),
    /// Load a broker, this one or another, and print how fast it is
    #[command(subcommand, after_help = bench::HELP)]
    Bench(BenchCommand),
    /// Print what makes a shell complete this program's commands and flags
    #[command(after_help = completions::HELP)]
    Completions(CompletionsArgs),
    /// Write the man pages
    #[command(after_help = man::HELP)]
    Man(ManArgs),
}

/// `castra bus`.
#[derive(Debug, Subcommand)]
pub enum BusCommand {
    /// Publish as the host; ends when it is durable and in the logs
    #[command(after_help = publish::HELP)]
    Publish(Box<PublishArgs>),
    /// Print events as they are published, or run a command for each; resumes by itself
    #[command(after_help = subscribe::HELP)]
    Subscribe(Box<SubscribeArgs>),
    /// Print the bus's logs; works without a broker and never waits for one
    #[command(after_help = tail::HELP)]
    Tail(TailArgs),
}

/// A path; an empty one, which a variable that is set to nothing is, counts as none.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// A time of up to ten years, so that no clock overflows.
fn parse_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if time > Duration::from_secs(10 * 366 * 24 * 3600) { Err("at most ten years".into()) } else { Ok(time) }
}

/// A time that is not nothing.
fn parse_some_time(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("more than nothing".into()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is no terminal help is 100 columns wide; what is written in columns is not to be wrapped.
    fn is_narrow(command: &clap::Command) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter(|_| command.get_name() != "castra") {
            assert!(line.chars().count() <= 98, "{}: {line}", command.get_name());
        }
        command.get_subcommands().for_each(is_narrow);
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        is_narrow(&Cli::command());
    }
}
