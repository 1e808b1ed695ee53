//! The commands of the host: the broker, and what an operator types beside it.

use super::{
    BackupArgs, BenchCommand, BrokerArgs, CompletionsArgs, ConfigCommand, DlqCommand, GroupCommand,
    LatestArgs, LogsArgs, ManArgs, PublishArgs, SnapshotArgs, StatusArgs, SubscribeArgs, TailArgs,
    VerifyArgs, VmCommand,
};
use clap::Subcommand;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Run the broker until SIGTERM or SIGINT
    #[command(after_help = super::broker::HELP)]
    Broker(Box<BrokerArgs>),
    /// Show which VMs are fresh; reads a file and never waits for the broker
    #[command(after_help = super::status::HELP)]
    Status(StatusArgs),
    /// Publish to the bus, or read it
    #[command(subcommand)]
    Bus(BusCommand),
    /// Print the broker's own log; works without a broker
    #[command(after_help = super::logs::HELP)]
    Logs(LogsArgs),
    /// Look at castra.toml
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What the broker remembers of VMs
    #[command(subcommand)]
    Vm(VmCommand),
    /// Read all of the journal and the logs, and say what is damaged
    #[command(after_help = super::verify::HELP)]
    Verify(VerifyArgs),
    /// Copy everything of a broker, running or not, to a folder
    #[command(after_help = super::backup::HELP)]
    Backup(BackupArgs),
    /// Load a broker, this one or another, and print how fast it is
    #[command(subcommand, after_help = super::bench::HELP)]
    Bench(BenchCommand),
    /// Print what makes a shell complete this program's commands and flags
    #[command(after_help = super::completions::HELP)]
    Completions(CompletionsArgs),
    /// Write the man pages
    #[command(after_help = super::man::HELP)]
    Man(ManArgs),
}

/// `castra bus`.
#[derive(Debug, Subcommand)]
pub enum BusCommand {
    /// Publish as the host; ends when it is durable and in the logs
    #[command(after_help = super::publish::HELP)]
    Publish(Box<PublishArgs>),
    /// Print events as they are published, or run a command for each; resumes by itself
    #[command(after_help = super::subscribe::HELP)]
    Subscribe(Box<SubscribeArgs>),
    /// Consumer groups: list, make, move and remove them
    #[command(subcommand, after_help = super::group::HELP)]
    Group(GroupCommand),
    /// Print the bus's logs; works without a broker and never waits for one
    #[command(after_help = super::tail::HELP)]
    Tail(TailArgs),
    /// Print the newest event of each key of a topic
    #[command(after_help = super::latest::LATEST_HELP)]
    Latest(LatestArgs),
    /// Publish the newest event of each key of a topic
    #[command(after_help = super::latest::SNAPSHOT_HELP)]
    Snapshot(SnapshotArgs),
    /// Look after events that groups gave up
    #[command(subcommand, after_help = super::dlq::HELP)]
    Dlq(DlqCommand),
}
