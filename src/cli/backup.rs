//! `castra backup`, as it is typed.

use clap::Args;
use std::path::PathBuf;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra backup /backup/castra-monday
  castra broker --state-root /backup/castra-monday     restores it

Works beside a running broker: every event that was acknowledged before the backup began is
in it. The copy is opened as a broker would open it, and verified, before it gets its name;
until then it is DIR.partial, and so it is left by an interruption.

--json prints one object: dir (where the copy is), bytes (of all its files), and of the copy
what 'castra verify --json' says: schema, ok, journal, logs, notes (see castra verify --help).

Exit code 0 when the copy is whole, 1 when it has damage that was in the source, 73 when DIR
cannot be used, 75 when there is no room."#;

/// `castra backup`.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// A folder that is empty or does not exist
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
