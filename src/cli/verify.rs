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

--json prints one object. Ranges have their first and last; null is what cannot be told.
  schema, ok          1; whether nothing is damaged
  journal             first_seq, head_seq, segments, bytes; head_seq < first_seq: no events
    damage            what is lost: segment, at (byte), first_lsn, last_lsn, first_seq, last_seq
    more_damage       how many ranges of damage are not shown
  logs                files, lines (those that are right), damaged (names of logs)
    older_than_journal, lost_by_journal     lines that the journal cannot speak for
    damage            log, file, at (byte), kind, lines (how many), first_seq, last_seq; kind is
                      altered, missing, garbage, out-of-order, repeated, foreign (another
                      log's), not-in-journal or unreadable
    more_damage       how many lines with damage are not shown
  notes               what is no damage and good to know, for people
  repaired            with --repair-logs: logs (written anew), damaged_files (folders)

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
