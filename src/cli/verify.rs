//! `castra verify`, as it is typed.

use clap::Args;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra verify
  castra verify --state-root /backup/castra --json | jq .journal.damage
  castra verify --repair-logs

Works beside a running broker and writes nothing, but for --repair-logs. That needs the
broker stopped: it writes every damaged log anew from the journal (lines older than the
journal are kept as they are) and keeps the damaged files in logs/damaged/<time>. Damage of
the journal itself cannot be repaired, for it is the only copy: restore a backup (castra
backup).

Exit code 0 when all is whole, 1 when something is damaged; 65 when there is no journal."#;

/// `castra verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Write damaged logs anew from the journal; the broker must be stopped
    #[arg(long)]
    pub repair_logs: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
