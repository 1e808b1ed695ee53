//! The consumer groups in `castra status`, for people.
//!
//! Always holds: a line is no wider than the terminal; without groups there is nothing. Owner: `status_table.rs`.

use super::terminal::cut;
use super::words::{at_least, count};
use crate::core::delivery::groups::figures::Figures;
use crate::core::status_report::Report;
use std::io::{self, Write};

const COLUMNS: [&str; 7] = ["GROUP", "LAG", "MEMBERS", "IN FLIGHT", "DEAD", "EXPIRED", "STALLED"];
/// A name takes so many columns at the most.
const NAME_WIDTH: usize = 40;

/// Writes the groups that the status has, the worst first; what is at the end of a line that is too long is cut.
pub fn write(
    out: &mut Vec<u8>,
    report: &Report,
    width: usize,
    head: impl Fn(&str) -> String,
) -> io::Result<()> {
    if report.groups.is_empty() {
        return Ok(());
    }
    let rows: Vec<[String; COLUMNS.len()]> = report.groups.iter().map(cells).collect();
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0).max(COLUMNS[i].len()))
        .collect();
    let line = |cells: &[&str]| {
        let cell = |(i, text): (usize, &&str)| match i {
            // Words to the left, numbers to the right.
            0 => format!("{text:<0$}", widths[i]),
            _ if i + 1 == COLUMNS.len() => (*text).to_owned(),
            _ => format!("{text:>0$}", widths[i]),
        };
        cut(&cells.iter().enumerate().map(cell).collect::<Vec<_>>().join("  "), width)
    };
    writeln!(out, "{}", head(&line(&COLUMNS)))?;
    for row in &rows {
        writeln!(out, "{}", line(&row.each_ref().map(String::as_str)))?;
    }
    match report.groups_count.saturating_sub(rows.len() as u64) {
        0 => Ok(()),
        more => {
            let text = format!("and {} more; 'castra bus group ls' has all", count(more, "group"));
            writeln!(out, "{}", cut(&text, width))
        }
    }
}

fn cells(group: &Figures) -> [String; COLUMNS.len()] {
    let lag = at_least(group.lag, group.lag_at_least);
    let numbers = [group.members, group.in_flight, group.dead, group.expired_undelivered];
    let [members, in_flight, dead, expired] = numbers.map(|n| n.to_string());
    let stalled = group.stalled.clone().unwrap_or_else(|| "-".to_owned());
    [cut(&group.name, NAME_WIDTH), lag, members, in_flight, dead, expired, stalled]
}
