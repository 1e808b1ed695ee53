//! Numbers and lists as people say them: ages, sizes, counts, topics.
//!
//! Always holds: what scripts read has none of these. Pure. Owner: the commands.

use std::time::Duration;

/// So many topics are named at the most.
const NAMED: usize = 8;

/// A time as people say it: two units at the most.
pub fn age(ms: i64) -> String {
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let text = humantime::format_duration(Duration::from_secs(ms.unsigned_abs() / 1000)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `1 segment`, `2 segments`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `17`, or `>=17` when there may be more.
pub fn at_least(number: u64, is_bound: bool) -> String {
    if is_bound { format!(">={number}") } else { number.to_string() }
}

/// Topics, the first ones of many.
pub fn list(topics: &[String]) -> String {
    match topics.len() {
        0 => "nothing".to_owned(),
        n if n <= NAMED => topics.join(" "),
        n => format!("{} and {} more", topics[..NAMED].join(" "), n - NAMED),
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8_lossy(&groups.join(&b',')).into_owned()
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// How much of it is done.
pub fn percent(done: u64, total: u64) -> String {
    format!("{} % of {}", (100 * done).checked_div(total).unwrap_or(100).min(100), size(total))
}
