//! `castra broker`, as it is typed.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra broker
  castra broker --state-root /srv/castra --tcp 127.0.0.1:7071
  castra broker --config castra.toml --print-config
  castra broker --vsock --trust proven
  castra broker --metrics 127.0.0.1:9464
  castra broker --retain-bytes 8GiB --retain-age 30days --log-format json

Guests reach it over TCP on loopback, vsock, and sockets; the host's commands over castra.sock
in the state root. What a flag does not say is taken from castra.toml; --print-config shows
all settings there are, and what is in force.

SIGTERM and SIGINT end it in order. SIGHUP reads castra.toml anew: trust, hybrid and [[vms]]
are in force at once, also for guests that are connected; a castra.toml that is wrong changes
nothing. SIGUSR1 opens logs/broker.log and handshakes/*.jsonl anew, for logrotate. Run by
systemd (Type=notify-reload) it says when it is ready and how it is, feeds the watchdog, and
serves the sockets that are handed over."#;

/// `castra broker`. What is left out is in castra.toml, or a default.
#[derive(Args, Debug)]
pub struct BrokerArgs {
    /// Listen on this address, of the loopback unless --trust says otherwise; may be given several times [default: 127.0.0.1:7070]
    #[arg(long, hide_env_values = true, env = "CASTRA_TCP", value_name = "ADDR", value_delimiter = ',')]
    pub tcp: Vec<SocketAddr>,
    /// Do not listen on TCP
    #[arg(long)]
    pub no_tcp: bool,
    /// A further socket, for guests; may be given several times
    #[arg(long, hide_env_values = true, env = "CASTRA_UNIX", value_name = "PATH", value_delimiter = ',')]
    pub unix: Vec<PathBuf>,
    /// Let guests in by vsock, on this port [default: 7070]; castra.toml says which VM has which cid
    #[arg(long, hide_env_values = true, env = "CASTRA_VSOCK", value_name = "PORT", num_args = 0..=1, default_missing_value = "7070")]
    pub vsock: Option<String>,
    /// Serve /metrics for Prometheus, /healthz and /readyz at this address, of the loopback unless --trust says otherwise [default: nowhere]
    #[arg(long, hide_env_values = true, env = "CASTRA_METRICS", value_name = "ADDR")]
    pub metrics: Option<String>,
    /// Whose names are taken: anybody's, those that castra.toml has, or proven ones [default: open]
    #[arg(long, hide_env_values = true, env = "CASTRA_TRUST", value_name = "TRUST", value_parser = ["open", "known", "proven"])]
    pub trust: Option<String>,
    /// Size of a journal segment, 1MiB to 4GiB [default: 64MiB]
    #[arg(long, hide_env_values = true, env = "CASTRA_SEGMENT_BYTES", value_name = "BYTES")]
    pub segment_bytes: Option<String>,
    /// Remove the oldest segments when the journal is larger [default: 1GiB]
    #[arg(long, hide_env_values = true, env = "CASTRA_RETAIN_BYTES", value_name = "BYTES")]
    pub retain_bytes: Option<String>,
    /// Remove segments whose events are all older (7d, 12h …) [default: 7d]
    #[arg(long, hide_env_values = true, env = "CASTRA_RETAIN_AGE", value_name = "TIME")]
    pub retain_age: Option<String>,
    /// End a session that sent no frame for so long [default: 60s]
    #[arg(long, hide_env_values = true, env = "CASTRA_IDLE_TIME", value_name = "TIME")]
    pub idle_time: Option<String>,
    /// How much logs/broker.log says [default: info]
    #[arg(long, hide_env_values = true, env = "CASTRA_LOG_LEVEL", value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub log_level: Option<String>,
    /// How it is written; json also goes for what is said on stderr [default: text]
    #[arg(long, hide_env_values = true, env = "CASTRA_LOG_FORMAT", value_name = "FORMAT", value_parser = ["text", "json"])]
    pub log_format: Option<String>,
    /// Print the configuration in force, a castra.toml with every setting and what it is, and end
    #[arg(long)]
    pub print_config: bool,
}

/// Refuses `--tcp` beside `--no-tcp` where both are typed. (`conflicts_with` would refuse CASTRA_TCP as well, which
/// a flag goes before.)
pub fn check(command: &mut Command, matches: &ArgMatches) -> Result<(), Error> {
    let typed = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    if typed("tcp") && typed("no_tcp") {
        let why = "the argument '--no-tcp' cannot be used with '--tcp <ADDR>'";
        return Err(command.error(ErrorKind::ArgumentConflict, why));
    }
    Ok(())
}
