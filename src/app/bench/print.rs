//! What a bench prints at its end: a table, or one object.
//!
//! Always holds: both say the same; what is not known is `-` and null. Owner: `mod.rs`.

use super::failure::Problem;
use crate::app::words::{count, grouped, size};
use crate::core::bench::Plan;
use crate::core::bench::histogram::Histogram;
use crate::core::bench::idle::Idle;
use crate::core::bench::load::{Audience, Delivered, Figures, Load};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// The columns of figures.
const COLUMNS: [&str; 8] = ["", "events", "rate", "MB/s", "p50", "p99", "p99.9", "max"];

/// What is printed, one way or the other.
pub struct Printed {
    /// A table.
    pub text: String,
    /// An object.
    pub json: Value,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// What is to be printed.
pub struct Report {
    title: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Lines below the table.
    notes: Vec<String>,
    json: Map<String, Value>,
    problems: Vec<Problem>,
    ended: BTreeMap<String, u64>,
}

impl Report {
    /// One without figures.
    pub fn new(kind: &'static str, plan: &Plan, connections: u64, interrupted: bool) -> Self {
        let mut json = Map::new();
        json.insert("schema".into(), 1.into());
        json.insert("bench".into(), kind.into());
        json.insert("broker".into(), plan.target.to_string().into());
        json.insert("topic".into(), plan.topic.as_str().into());
        json.insert("connections".into(), connections.into());
        json.insert("duration_ms".into(), millis(plan.duration));
        json.insert("interrupted".into(), interrupted.into());
        let title = vec![format!("{kind} at {}, topic {}", plan.target, plan.topic)];
        let (rows, notes, problems, ended) = (Vec::new(), Vec::new(), Vec::new(), BTreeMap::new());
        Report { title, rows, notes, json, problems, ended }
    }

    /// With what publishers did.
    pub fn published(mut self, load: &Load, bytes: usize, figures: &Figures) -> Self {
        let (done, time) = (&figures.published, figures.elapsed);
        let rate = load.rate.map_or("as fast as it goes".into(), |rate| format!("{}/s", grouped(rate)));
        self.title.push(format!(
            "{}, window {}, {rate}, {bytes} bytes",
            count(load.publishers, "publisher"),
            load.window
        ));
        self.title.push(seconds(time));
        self.row("publish → ack", done.acked, time, bytes, Some(&done.latency));
        let refused = done.refused.values().sum();
        self.notes.push(format!(
            "refused {}, unanswered {}, acks out of order {}",
            grouped(refused),
            grouped(done.unanswered),
            grouped(done.out_of_order)
        ));
        if done.unsent > 0 {
            let why = "were due and never sent: the window was full";
            self.notes.push(format!("{} {why}", grouped(done.unsent)));
        }
        let reasons = listed(&done.refused);
        self.problem("refused", refused, |n| format!("{n} events were refused ({reasons})"));
        self.problem("unanswered", done.unanswered, |n| format!("{n} events were never answered"));
        self.problem("out-of-order", done.out_of_order, |n| format!("{n} acks were out of order"));
        self.end_early(&done.ended);
        let object = json!({
            "sent": done.sent,
            "acked": done.acked,
            "per_s": per_second(done.acked, time),
            "mb_per_s": megabytes(done.acked, bytes, time),
            "refused": done.refused,
            "out_of_order": done.out_of_order,
            "unanswered": done.unanswered,
            "unsent": done.unsent,
            "latency_ms": latency(&done.latency),
        });
        let fields = [
            ("size", bytes.into()),
            ("window", load.window.into()),
            ("rate", load.rate.into()),
            ("elapsed_ms", millis(time)),
            ("publish", object),
        ];
        self.json.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        self
    }

    /// With what subscribers saw.
    pub fn delivered(
        mut self,
        audience: Audience,
        bytes: usize,
        figures: &Figures,
        delivered: &Delivered,
    ) -> Self {
        let (time, wanted) = (delivered.elapsed, figures.published.acked);
        let stopped = match audience.stopped {
            0 => String::new(),
            n => format!(" and {n} that read nothing"),
        };
        let reading = delivered.received.len() as u64;
        self.title.insert(1, format!("{}{stopped}", count(reading, "subscriber")));
        let all = |of: fn(&crate::core::bench::seen::Seen) -> u64| -> u64 {
            delivered.received.iter().map(|one| of(&one.seen)).sum()
        };
        let (received, repeated, late) = (all(|s| s.events), all(|s| s.repeated), all(|s| s.out_of_order));
        let lost = delivered.received.iter().map(|one| wanted.saturating_sub(one.seen.events)).sum();
        let each = delivered.received.iter().map(|one| one.seen.events);
        let (least, most) = (each.clone().min().unwrap_or(0), each.max().unwrap_or(0));
        // Behind a publisher that is as fast as it can be it is the queue that would be measured.
        let latencies = audience.lead.is_none().then(|| {
            let mut latencies = Histogram::default();
            delivered.received.iter().for_each(|one| latencies.merge(&one.latency));
            latencies
        });
        self.row("publish → subscriber", received, time, bytes, latencies.as_ref());
        if reading > 1 {
            self.notes.push(format!(
                "each subscriber {}/s to {}/s",
                grouped(per_second(least, time).round() as u64),
                grouped(per_second(most, time).round() as u64)
            ));
        }
        let numbers = [grouped(lost), grouped(repeated), grouped(late)];
        self.notes.push(format!("lost {}, repeated {}, out of order {}", numbers[0], numbers[1], numbers[2]));
        let deliveries = grouped(wanted * reading);
        self.problem("events-lost", lost, |n| format!("{n} of {deliveries} deliveries were lost"));
        self.problem("events-repeated", repeated, |n| format!("{n} deliveries came again"));
        self.problem("out-of-order", late, |n| format!("{n} deliveries came behind a later one"));
        let mut ended = BTreeMap::new();
        for why in delivered.received.iter().filter_map(|one| one.ended.clone()) {
            *ended.entry(why).or_default() += 1;
        }
        self.end_early(&ended);
        let mut object = json!({
            "received": received,
            "per_s": per_second(received, time),
            "per_subscriber_per_s": {"min": per_second(least, time), "max": per_second(most, time)},
            "lost": lost,
            "repeated": repeated,
            "out_of_order": late,
        });
        if let Some(latencies) = &latencies {
            object["latency_ms"] = latency(latencies);
        }
        self.json.insert("deliver".into(), object);
        self.json.insert("elapsed_ms".into(), millis(time));
        if let Some(lead) = audience.lead {
            self.json.insert("lead".into(), lead.into());
            self.json.insert("stopped".into(), audience.stopped.into());
        }
        self
    }

    /// With what idle sessions were like.
    pub fn idle(mut self, sessions: u64, pid: Option<u32>, idle: &Idle) -> Self {
        let each = idle.memory.map(|(before, with)| with.saturating_sub(before) / sessions.max(1));
        let known = |bytes: Option<u64>| bytes.map_or("-".into(), size);
        let (before, with) = (idle.memory.map(|m| m.0), idle.memory.map(|m| m.1));
        self.title.push(seconds(idle.elapsed));
        let head = ["sessions", "connected in", "alive", "memory before", "with them", "each"];
        self.rows.push(head.map(str::to_owned).to_vec());
        self.rows.push(vec![
            grouped(sessions),
            short_time(u64::try_from(idle.connect_time.as_nanos()).unwrap_or(u64::MAX)),
            grouped(idle.alive),
            known(before),
            known(with),
            known(each),
        ]);
        self.end_early(&idle.ended);
        let fields = [
            ("elapsed_ms", millis(idle.elapsed)),
            ("connect_ms", millis(idle.connect_time)),
            ("alive", idle.alive.into()),
            ("broker_pid", pid.into()),
            ("memory_before_bytes", before.into()),
            ("memory_bytes", with.into()),
            ("memory_per_session_bytes", each.into()),
        ];
        self.json.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        self
    }

    /// As it is printed.
    pub fn end(mut self) -> Printed {
        let ended = self.ended.values().sum();
        let reasons = listed(&self.ended);
        self.problem("sessions-ended", ended, |n| format!("{n} sessions ended early ({reasons})"));
        if ended > 0 {
            self.notes.push(format!("sessions that ended early: {reasons}"));
        }
        self.json.insert("sessions_ended".into(), json!(self.ended));
        let mut text = format!("{}\n", self.title.join(", "));
        table(&mut text, &self.rows);
        self.notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
        Printed { text, json: Value::Object(self.json), problems: self.problems }
    }

    fn row(&mut self, name: &str, events: u64, time: Duration, bytes: usize, latencies: Option<&Histogram>) {
        if self.rows.is_empty() {
            self.rows.push(COLUMNS.map(str::to_owned).to_vec());
        }
        let mut row = vec![
            name.to_owned(),
            grouped(events),
            format!("{}/s", grouped(per_second(events, time).round() as u64)),
            format!("{:.1}", megabytes(events, bytes, time)),
        ];
        let known = |nanos: Option<u64>| nanos.map_or("-".into(), short_time);
        row.extend([0.5, 0.99, 0.999].map(|share| known(latencies.and_then(|l| l.percentile(share)))));
        row.push(known(latencies.and_then(Histogram::max)));
        self.rows.push(row);
    }

    fn problem(&mut self, code: &'static str, number: u64, words: impl FnOnce(String) -> String) {
        if number > 0 {
            self.problems.push((code, words(grouped(number))));
        }
    }

    fn end_early(&mut self, ended: &BTreeMap<String, u64>) {
        ended.iter().for_each(|(why, n)| *self.ended.entry(why.clone()).or_default() += n);
    }
}

/// The first column is of names, where it has no header; numbers stand to the right.
fn table(text: &mut String, rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let named = rows.first().and_then(|head| head.first()).is_some_and(String::is_empty);
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| match (column, named) {
            (0, true) => format!("{cell:<0$}", width(0)),
            _ => format!("{cell:>0$}", width(column)),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
}

/// `disk-full 3, other 1`.
fn listed(counts: &BTreeMap<String, u64>) -> String {
    let said: Vec<String> = counts.iter().map(|(what, n)| format!("{what} {}", grouped(*n))).collect();
    said.join(", ")
}

fn per_second(events: u64, time: Duration) -> f64 {
    let rate = events as f64 / time.as_secs_f64().max(1e-9);
    (rate * 10.0).round() / 10.0
}

/// 10^6 bytes of payload a second.
fn megabytes(events: u64, bytes: usize, time: Duration) -> f64 {
    let rate = events as f64 * bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9);
    (rate * 1000.0).round() / 1000.0
}

fn millis(time: Duration) -> Value {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}

fn latency(latencies: &Histogram) -> Value {
    let millis = |nanos: Option<u64>| nanos.map(|nanos| (nanos as f64 / 1e3).round() / 1e3);
    json!({
        "p50": millis(latencies.percentile(0.5)),
        "p99": millis(latencies.percentile(0.99)),
        "p999": millis(latencies.percentile(0.999)),
        "max": millis(latencies.max()),
    })
}

/// Three digits of nanoseconds, for people.
fn short_time(nanos: u64) -> String {
    match nanos {
        0..1_000_000 => format!("{} µs", nanos.div_ceil(1000)),
        1_000_000..10_000_000 => format!("{:.2} ms", nanos as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} ms", nanos as f64 / 1e6),
        _ => format!("{:.2} s", nanos as f64 / 1e9),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
