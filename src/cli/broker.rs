//! `castra broker`, as it is typed.

use super::parse_time;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra broker
  castra broker --state-root /srv/castra --tcp 127.0.0.1:7071

Guests reach it over TCP on loopback; the host's commands over castra.sock in the state root."#;

/// `castra broker`.
#[derive(Args, Debug)]
pub struct BrokerArgs {
    /// Listen on this loopback address; may be given several times
    #[arg(
        long,
        env = "CASTRA_TCP",
        value_name = "ADDR",
        default_value = "127.0.0.1:7070",
        value_delimiter = ','
    )]
    pub tcp: Vec<SocketAddr>,
    /// Do not listen on TCP
    #[arg(long)]
    pub no_tcp: bool,
    /// A further socket, for guests; may be given several times
    #[arg(long, env = "CASTRA_UNIX", value_name = "PATH", value_delimiter = ',')]
    pub unix: Vec<PathBuf>,
    /// Size of a journal segment, at least 1 MiB
    #[arg(long, env = "CASTRA_SEGMENT_BYTES", value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1024 * 1024..=4 * 1024 * 1024 * 1024))]
    pub segment_bytes: Option<u64>,
    /// Remove the oldest segments when the journal is larger
    #[arg(long, env = "CASTRA_RETAIN_BYTES", value_name = "BYTES")]
    pub retain_bytes: Option<u64>,
    /// Remove segments whose events are all older (7d, 12h …)
    #[arg(long, env = "CASTRA_RETAIN_AGE", value_name = "TIME", value_parser = parse_time)]
    pub retain_age: Option<Duration>,
    /// End a session that sent no frame for so long
    #[arg(long, env = "CASTRA_IDLE_TIME", value_name = "TIME", value_parser = parse_time)]
    pub idle_time: Option<Duration>,
}
