//! What can be typed, and nothing else: a file per command below `cli/`. Flags > environment >
//! castra.toml > defaults.

#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "agent")]
mod agent_outbox;
#[cfg(feature = "agent")]
mod agent_publish;
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
mod dlq;
#[cfg(feature = "broker")]
mod group;
#[cfg(feature = "broker")]
mod host;
#[cfg(feature = "broker")]
mod latest;
#[cfg(feature = "broker")]
mod logs;
#[cfg(feature = "broker")]
mod man;
#[cfg(feature = "broker")]
mod publish;
#[cfg(feature = "broker")]
mod status;
#[cfg(feature = "broker")]
mod subscribe;
#[cfg(feature = "broker")]
mod tail;
#[cfg(feature = "broker")]
mod verify;
#[cfg(feature = "broker")]
mod vm;

#[cfg(feature = "agent")]
pub use agent::{AgentArgs, AgentCommand};
#[cfg(feature = "agent")]
pub use agent_outbox::{
    OutboxArgs, OutboxCommand, OutboxLsArgs, OutboxPurgeArgs, OutboxRetryArgs, OutboxState, StateDirArgs,
};
#[cfg(feature = "agent")]
pub use agent_publish::AgentPublishArgs;
#[cfg(feature = "broker")]
pub use backup::BackupArgs;
#[cfg(feature = "broker")]
pub use bench::{
    BenchArgs, BenchCommand, BenchDeliverArgs, BenchFanoutArgs, BenchIdleArgs, BenchPublishArgs,
};
#[cfg(feature = "broker")]
pub use broker::BrokerArgs;
#[cfg(feature = "broker")]
pub use completions::CompletionsArgs;
#[cfg(feature = "broker")]
pub use config::{CheckArgs, ConfigCommand};
#[cfg(feature = "broker")]
pub use dlq::{DlqCommand, DlqLsArgs, DlqShowArgs, DlqWhichArgs};
#[cfg(feature = "broker")]
pub use group::{
    GroupArgs, GroupCommand, GroupCreateArgs, GroupLagArgs, GroupLsArgs, GroupRmArgs, GroupSeekArgs,
};
#[cfg(feature = "broker")]
pub use host::{BusCommand, HostCommand};
#[cfg(feature = "broker")]
pub use latest::{LatestArgs, SnapshotArgs};
#[cfg(feature = "broker")]
pub use logs::LogsArgs;
#[cfg(feature = "broker")]
pub use man::ManArgs;
#[cfg(feature = "broker")]
pub use publish::PublishArgs;
#[cfg(feature = "broker")]
pub use status::StatusArgs;
#[cfg(feature = "broker")]
pub use subscribe::SubscribeArgs;
#[cfg(feature = "broker")]
pub use tail::{Output, TailArgs};
#[cfg(feature = "broker")]
pub use verify::VerifyArgs;
#[cfg(feature = "broker")]
pub use vm::{ForgetArgs, VmCommand};

#[cfg(feature = "broker")]
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
#[cfg(feature = "broker")]
use std::path::PathBuf;
use std::time::Duration;

/// Above the options that every command has.
#[cfg(feature = "broker")]
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
    #[cfg(feature = "broker")]
    #[arg(long, global = true, value_parser = path(), hide_env_values = true, env = "CASTRA_STATE_ROOT", value_name = "DIR", help_heading = EVERYWHERE)]
    pub state_root: Option<PathBuf>,
    /// The settings [default: ~/.config/castra/castra.toml, else /etc/castra/castra.toml, if there]
    #[cfg(feature = "broker")]
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
        #[cfg(feature = "broker")]
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
    /// Of the guest.
    #[cfg(feature = "agent")]
    #[command(after_help = agent::HELP)]
    Agent(Box<AgentArgs>),
    /// Of the host.
    #[cfg(feature = "broker")]
    #[command(flatten)]
    Host(HostCommand),
}

/// A path; an empty one, which a variable that is set to nothing is, counts as none.
#[cfg(feature = "broker")]
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

/// How long an event is of use; as the bus has it.
fn parse_ttl(text: &str) -> Result<Duration, String> {
    parse_days(text, 3650)
}

/// A time that the bus counts in milliseconds: one of them, up to so many days.
fn parse_days(text: &str, days: u32) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if time < Duration::from_millis(1) {
        return Err("at least 1ms".into());
    }
    let unit = if days == 1 { "day" } else { "days" };
    if time > days * Duration::from_secs(24 * 3600) {
        Err(format!("at most {days} {unit}"))
    } else {
        Ok(time)
    }
}

/// The name ends at the first `=`; everything behind that is the value.
fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a header is NAME=VALUE".into()),
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
