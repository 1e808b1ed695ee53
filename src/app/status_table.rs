//! The table of `castra status`, for people; scripts take `--json`.
//!
//! Always holds: a line is no wider than the terminal; where a table would be, and for one VM that was named, each VM is
//! a paragraph. Columns that find no room are left out, never what a paragraph says. Owner: `status.rs`.

use super::status_groups;
use super::terminal::{cut, has_color, stdout_height, stdout_width};
use super::words::{age, list};
use crate::core::harmless::harmless;
use crate::core::limits::{PAUSE_FREE, REACHABLE_MS};
use crate::core::status::{GraceStatus, ReloadRefused, State};
use crate::core::status_report::{Report, VmReport};
use std::io::{self, Write};
use std::path::Path;

const COLUMNS: [&str; 9] =
    ["VM", "BROKER", "BUS", "BUS AGE", "SESSIONS", "LAG", "QUEUED", "IN FLIGHT", "TOPICS"];
/// The last one.
const TOPICS: usize = COLUMNS.len() - 1;
/// A table has so many of them at least.
const NEEDED: usize = 6;
/// Topics take so many columns at the least, and at the most.
const TOPICS_WIDTH: std::ops::RangeInclusive<usize> = 12..=60;
/// In less than so many columns the legend says nothing.
const LEGEND_WIDTH: usize = 60;
/// A pause of the broker is shown for so long, in milliseconds.
const PAUSE_SHOWN_MS: i64 = 3_600_000;
/// A VM's name takes so many columns at the most.
const NAME_WIDTH: usize = 40;

/// How it is looked at.
#[derive(Clone, Copy)]
pub struct Look {
    /// Again and again.
    pub watch: bool,
    /// At one VM, of which everything is said.
    pub one: bool,
}

/// Writes the whole answer: the broker, what is wrong, the VMs, the legend.
pub fn write(out: &mut Vec<u8>, report: &Report, root: &Path, look: Look) -> io::Result<()> {
    write_all(out, report, root, look.one)?;
    // A screen that is drawn again and again begins at its top.
    if let Some(height) = stdout_height().filter(|_| look.watch) {
        let lines = out.split_inclusive(|b| *b == b'\n').count();
        if lines > height {
            let kept =
                out.split_inclusive(|b| *b == b'\n').take(height.saturating_sub(2)).map(<[u8]>::len).sum();
            out.truncate(kept);
            writeln!(out, "… {} lines more", lines + 2 - height)?;
        }
    }
    Ok(())
}

fn write_all(out: &mut Vec<u8>, report: &Report, root: &Path, one: bool) -> io::Result<()> {
    let width = stdout_width().unwrap_or(usize::MAX);
    let paint = Paint { on: has_color(&io::stdout()) };
    let state = report.broker.state.as_str();
    let journal = &report.broker.journal;
    let mut rest = match journal.head_seq < journal.first_seq.max(1) {
        true => " · no events".to_owned(),
        false => {
            format!(" · events {}..{} · logs at {}", journal.first_seq, journal.head_seq, journal.logs_seq)
        }
    };
    if let Some(up) = report.broker.uptime_ms {
        rest.push_str(&format!(" · up {}", age(up)));
    }
    let room = width.saturating_sub("broker ".len() + state.len());
    let color = if report.broker.state == State::Running { GREEN } else { RED };
    writeln!(out, "broker {}{}", paint.with(color, state), cut(&rest, room))?;
    let mut warn = |text: String| writeln!(out, "{}", paint.with(RED, &cut(&text, width)));
    if let Some(what) = hint(report.broker.state, root) {
        warn(what)?;
    }
    journal.damage.iter().try_for_each(|damage| warn(format!("damage: {damage}")))?;
    if let Some(refused) = &report.broker.reload_refused {
        let ReloadRefused { at, reason } = refused;
        warn(format!("the reload of {at} was refused, the old settings are in force: {reason}"))?;
    }
    if let Some(why) = &report.broker.logs_stalled {
        warn(format!("logs are not being written: {why}"))?;
    }
    if let Some(why) = report.broker.latest.as_ref().and_then(|latest| latest.stalled.as_ref()) {
        warn(format!("the newest events per key are not being written: {why}"))?;
    }
    if journal.ts_ahead_ms > 0 {
        warn(format!("the clock was set back: ts stands still for {}", age(journal.ts_ahead_ms as i64)))?;
    }
    let pauses = &report.broker.pauses;
    if let Some(ago) = pauses.last_age_ms.filter(|ago| *ago < PAUSE_SHOWN_MS) {
        let (count, last) = (pauses.count, age(pauses.last_ms));
        warn(format!("the broker was paused for {last}, {} ago ({count} since its start)", age(ago)))?;
    }
    if report.broker.signals_dropped > 0 {
        warn(format!("{} records of signals were dropped", report.broker.signals_dropped))?;
    }
    if report.broker.counters.accept_pauses > 0 {
        let times = report.broker.counters.accept_pauses;
        warn(format!(
            "connections had to wait {times} times: raise LimitNOFILE (ulimit -Hn), or see who holds them"
        ))?;
    }
    if report.broker.counters.stderr_dropped > 0 {
        let lines = report.broker.counters.stderr_dropped;
        warn(format!(
            "{lines} log lines were dropped from stderr: nobody read it; logs/broker.log has them"
        ))?;
    }
    if let Some(text) = journal.grace.as_ref().and_then(grace) {
        writeln!(out, "{}", cut(&text, width))?;
    }
    if let Some(text) = lost(report) {
        writeln!(out, "{}", cut(&text, width))?;
    }
    let groups = |out: &mut Vec<u8>| match one {
        true => Ok(()),
        false => status_groups::write(out, report, width, |head| paint.with(DIM, head)),
    };
    if report.vms.is_empty() {
        writeln!(out, "{}", cut("no VM has said hello yet", width))?;
        return groups(out);
    }
    let mut rows: Vec<Vec<String>> = report.vms.iter().map(cells).collect();
    let widths = widths(&rows, width);
    if one || widths.len() < NEEDED {
        paragraphs(out, &report.vms, &rows, width)?;
    } else {
        if let Some(width) = widths.get(TOPICS) {
            rows.iter_mut().for_each(|row| row[TOPICS] = cut(&row[TOPICS], *width));
        }
        table(out, &rows, &widths, &paint)?;
    }
    groups(out)?;
    if width < LEGEND_WIDTH {
        return Ok(());
    }
    let said = if one { COLUMNS.len() } else { widths.len().max(NEEDED) };
    legend()[..said]
        .iter()
        .flatten()
        .try_for_each(|line| writeln!(out, "{}", paint.with(DIM, &cut(line, width))))
}

/// A pause that does not count as age yet, unless it was too short to matter.
fn grace(grace: &GraceStatus) -> Option<String> {
    let pause = match grace.pause_ms {
        0 => "a while".to_owned(),
        ms if u128::from(ms) <= PAUSE_FREE.as_millis() => return None,
        ms => age(ms as i64),
    };
    let (through, left) = (grace.through, age(grace.left_ms as i64));
    Some(format!(
        "no broker ran for {pause}; events up to {through} do not age by that before {left} have passed"
    ))
}

/// How wide the columns are that find room: all, or those before the topics, or those that are needed, or fewer.
fn widths(rows: &[Vec<String>], width: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(i, head)| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0).max(head.len()))
        .collect();
    let before = widths[..TOPICS].iter().map(|width| width + 2).sum::<usize>();
    let room = width.saturating_sub(before).min(*TOPICS_WIDTH.end());
    if let Some(topics) = widths.last_mut().filter(|topics| **topics > room) {
        *topics = if room < *TOPICS_WIDTH.start() { usize::MAX } else { room };
    }
    for count in [COLUMNS.len(), TOPICS, NEEDED] {
        let needed = widths[..count].iter().fold(2 * (count - 1), |sum, width| sum.saturating_add(*width));
        if needed <= width {
            widths.truncate(count);
            return widths;
        }
    }
    Vec::new()
}

fn hint(state: State, root: &Path) -> Option<String> {
    let root = root.display();
    match state {
        State::DiskFull => {
            Some("publishers are refused: free space, and publishing resumes by itself".into())
        }
        State::Unresponsive => {
            Some("it holds its lock and has said nothing for 5 s: is it stopped, or its disk stuck?".into())
        }
        State::Offline => {
            Some(format!("no broker runs in {root}; start it with 'castra broker --state-root {root}'"))
        }
        State::Starting | State::Running | State::Draining => None,
    }
}

/// What was lost since the broker started, if anything: it may be long ago and is no alarm.
fn lost(report: &Report) -> Option<String> {
    report.broker.uptime_ms?;
    let ends = &report.broker.counters.disconnects;
    let latest = report.broker.latest.as_ref().map_or((0, 0), |latest| (latest.lost, latest.letters_dropped));
    let counts = [
        ("slow consumers closed", ends.slow_consumer),
        ("sessions timed out", ends.heartbeat_timeout),
        ("gaps", report.broker.counters.gaps),
        ("events lost to the newest per key", latest.0),
        ("dead letters dropped", latest.1),
    ];
    let counted = counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{what} {n}"));
    let counted = counted.collect::<Vec<_>>().join(" · ");
    (!counted.is_empty()).then(|| format!("since its start: {counted}"))
}

fn cells(vm: &VmReport) -> Vec<String> {
    let hello = vm.last_handshake_age_ms.map_or("never".to_owned(), age);
    let broker = format!("{} {hello}", if vm.reachable { "reachable" } else { "stale" });
    let bus = match (vm.bus_subscribed, vm.sessions) {
        (true, _) => "subscribed",
        (false, 1..) => "session",
        (false, 0) => "-",
    };
    let heard = [vm.last_publish_age_ms, vm.last_heartbeat_age_ms].into_iter().flatten().min();
    vec![
        cut(&vm.name, NAME_WIDTH),
        broker,
        bus.to_owned(),
        heard.map_or("never".to_owned(), age),
        vm.sessions.to_string(),
        vm.lag.to_string(),
        vm.queued.to_string(),
        vm.in_flight.to_string(),
        if vm.topics.is_empty() {
            "-".to_owned()
        } else {
            format!("{}{}", harmless(&list(&vm.topics)), more(vm))
        },
    ]
}

/// Behind the topics that the status has room for.
fn more(vm: &VmReport) -> String {
    if vm.topics_more > 0 { format!(" and {} more", vm.topics_more) } else { String::new() }
}

fn table(out: &mut Vec<u8>, rows: &[Vec<String>], widths: &[usize], paint: &Paint) -> io::Result<()> {
    // Words to the left, numbers and ages to the right.
    let line = |cells: &[&str]| -> String {
        let cell = |(i, text): (usize, &&str)| match i {
            TOPICS => (*text).to_owned(),
            0..=2 => format!("{text:<0$}", widths[i]),
            _ => format!("{text:>0$}", widths[i]),
        };
        cells.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ")
    };
    writeln!(out, "{}", paint.with(DIM, &line(&COLUMNS[..widths.len()])))?;
    for row in rows {
        let cells: Vec<&str> = row[..widths.len()].iter().map(String::as_str).collect();
        let color = if row[1].starts_with("reachable") { GREEN } else { YELLOW };
        let text = line(&cells);
        // The second column alone has the colour; names are ASCII, but for the mark of a cut.
        let (name, rest) = text.split_at(text.char_indices().nth(widths[0]).map_or(text.len(), |(at, _)| at));
        let (broker, rest) = rest.split_at((widths[1] + 2).min(rest.len()));
        writeln!(out, "{name}{}{rest}", paint.with(color, broker))?;
    }
    Ok(())
}

/// For a terminal that is too narrow for a table, and for one VM.
fn paragraphs(out: &mut Vec<u8>, vms: &[VmReport], rows: &[Vec<String>], width: usize) -> io::Result<()> {
    for (vm, row) in vms.iter().zip(rows) {
        writeln!(out, "{}", cut(&row[0], width))?;
        // One VM has its topics below each other.
        let heads = if vms.len() == 1 && !vm.topics.is_empty() { TOPICS } else { COLUMNS.len() };
        for (head, cell) in COLUMNS[..heads].iter().zip(row).skip(1) {
            writeln!(out, "{}", cut(&format!("  {head} {cell}"), width))?;
        }
        if heads < COLUMNS.len() {
            vm.topics.iter().try_for_each(|topic| {
                writeln!(out, "{}", cut(&format!("  TOPICS {}", harmless(topic)), width))
            })?;
            if vm.topics_more > 0 {
                writeln!(out, "{}", cut(&format!("  TOPICS{}", more(vm)), width))?;
            }
        }
    }
    Ok(())
}

/// What the columns mean, those that need it.
fn legend() -> [Option<String>; COLUMNS.len()] {
    let broker = format!(
        "BROKER     reachable: it has a session or said hello at most {} s ago; the time since its hello",
        REACHABLE_MS / 1000
    );
    [
        None,
        Some(broker),
        Some("BUS        subscribed, or a session that is not, or - for none".to_owned()),
        Some("BUS AGE    time since its last publish or heartbeat".to_owned()),
        None,
        Some("LAG        events that its slowest subscription is behind; 0 when it is live".to_owned()),
        Some("QUEUED     events that wait in the broker for its sessions".to_owned()),
        Some("IN FLIGHT  publishes of it that wait for the disk".to_owned()),
        Some("TOPICS     what it is subscribed to; 'castra status --vm NAME' has all".to_owned()),
    ]
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const DIM: &str = "2";

struct Paint {
    on: bool,
}

impl Paint {
    fn with(&self, color: &str, text: &str) -> String {
        if self.on { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
