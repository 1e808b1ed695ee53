//! What an outbox knows besides its events: counters, its clock, why nothing is drained.
//!
//! Always holds: every name stands here once. Owner: `store.rs`.

use super::Counts;
use super::age::Age;
use rusqlite::{Connection, OptionalExtension, params};

/// Counted over the life of the file, in its table `fact`.
pub(super) const COUNTERS: [&str; 6] = ["sent", "duplicate", "dropped", "refused", "expired", "lost"];

/// The counter of this name.
pub(super) fn counter<'c>(counts: &'c mut Counts, name: &str) -> &'c mut u64 {
    match name {
        "sent" => &mut counts.sent,
        "duplicate" => &mut counts.duplicate,
        "dropped" => &mut counts.dropped,
        "refused" => &mut counts.refused,
        "expired" => &mut counts.expired,
        _ => &mut counts.lost,
    }
}

/// A number of the table `fact`.
pub(super) fn read_number(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT value FROM fact WHERE name = ?1", [name], |row| row.get(0)).optional()
}

/// A text of the table `fact`.
pub(super) fn read_text(db: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM fact WHERE name = ?1", [name], |row| row.get(0)).optional()
}

/// Writes a number or a text.
pub(super) fn write_fact(db: &Connection, name: &str, value: &dyn rusqlite::ToSql) -> rusqlite::Result<()> {
    db.execute("INSERT OR REPLACE INTO fact (name, value) VALUES (?1, ?2)", params![name, value]).map(drop)
}

/// The outbox's clock now.
pub(super) fn read_age(db: &Connection) -> rusqlite::Result<Age> {
    let saved = Age {
        ms: read_number(db, "clock")?.unwrap_or(0),
        boot_ms: read_number(db, "clock_boot_ms")?.unwrap_or(0),
        boot_id: read_text(db, "clock_boot")?.unwrap_or_default(),
    };
    let mut age = saved.now();
    // Of the run of the machine before this one, what was not written down is at least as much.
    let newest = "SELECT since FROM event WHERE state = 0 ORDER BY n DESC LIMIT 1";
    let newest: Option<i64> = db.query_row(newest, [], |row| row.get(0)).optional()?;
    age.ms = age.ms.max(newest.unwrap_or(0));
    Ok(age)
}

/// Writes the clock down.
pub(super) fn write_age(db: &Connection, age: &Age) -> rusqlite::Result<()> {
    write_fact(db, "clock", &age.ms)?;
    write_fact(db, "clock_boot_ms", &age.boot_ms)?;
    write_fact(db, "clock_boot", &age.boot_id)
}
