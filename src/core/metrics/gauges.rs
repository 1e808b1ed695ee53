//! What the broker knows anyway, as metrics: its counters, its sessions, its journal.
//!
//! Always holds: it is looked up when somebody asks, and nobody keeps it up to date for that; what is not known yet (the
//! journal, during a start) is left out and is not 0. Owner: [`super::Metrics`].

use super::topics::Topics;
use super::{Sources, UNKNOWN};
use crate::core::awake;
use crate::core::counters::{Counters, Disconnects, Handshakes};
use crate::core::end::End;
use crate::core::status::State;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// How often was published, by topic.
#[derive(Debug)]
pub(super) struct Published(pub Arc<Topics>);

impl Collector for Published {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help =
            "Events that were published and are durable, by topic; '$other' beyond the first 100 topics.";
        Out(encoder).counts("events_published", help, "topic", self.0.published())
    }
}

/// The rest.
#[derive(Debug)]
pub(super) struct Gauges(pub Arc<Sources>);

impl Collector for Gauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sources = &self.0;
        let mut out = Out(encoder);
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let head = out.0.encode_descriptor("castra_build", "The program.", None, MetricType::Info)?;
        version.encode(head)?;
        let started = "When this process started, in seconds since 1970.";
        out.seconds("process_start_time_seconds", started, sources.started_ms as f64 / 1000.0)?;
        let now = sources.state();
        let states = [State::Starting, State::Running, State::DiskFull, State::Draining];
        let states = states.map(|state| (state.as_str(), u64::from(state == now)));
        out.gauges("castra_state", "1 for the state that the broker is in.", "state", states)?;
        out.counters(&sources.recorder.counters.read())?;
        let dropped = "Handshakes, signals and log lines that were not recorded.";
        out.count("castra_signals_dropped", dropped, sources.recorder.dropped())?;
        let pauses = "Times that the broker's process or its machine stood still for over a second.";
        out.count("castra_pauses", pauses, awake::pauses().count)?;
        let head_seq = sources.running.get().map_or(0, |running| running.journal.map().durable_seq());
        let all = sources.vms.totals(head_seq);
        out.gauge("castra_vms", "VMs that are remembered.", all.vms)?;
        out.gauge("castra_sessions", "Open sessions, those of the host with them.", all.sessions)?;
        let behind = "Open sessions with a subscription that reads the journal.";
        out.gauge("castra_sessions_behind", behind, all.behind)?;
        let subscribed = "Topics and patterns that sessions subscribe to.";
        out.gauge("castra_subscriptions", subscribed, all.subscriptions)?;
        out.gauge("castra_queued_events", "Events that wait in memory for sessions.", all.queued)?;
        let lag = "Events that the subscription which is furthest behind has yet to read.";
        out.gauge("castra_lag_events", lag, all.lag)?;
        out.gauge("castra_unacked_events", "Published events that wait for the disk.", all.in_flight)?;
        out.journal(sources)?;
        match sources.free.load(Relaxed) {
            UNKNOWN => Ok(()),
            free => out.gauge("castra_disk_free_bytes", "Free bytes of the state root's disk.", free),
        }
    }
}

/// Where metrics are written to.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn count(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let head = self.0.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
        ConstCounter::new(value).encode(head)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, ConstGauge::<u64>::TYPE)?)
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, ConstGauge::<f64>::TYPE)?)
    }

    /// One counter for each value of `label`.
    fn counts<L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        each: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut head = self.0.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
        labelled(&mut head, label, each, |value, head| ConstCounter::new(value).encode(head))
    }

    /// The same for gauges.
    fn gauges<L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        each: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut head = self.0.encode_descriptor(name, help, None, ConstGauge::<u64>::TYPE)?;
        labelled(&mut head, label, each, |value, head| ConstGauge::new(value).encode(head))
    }

    fn journal(&mut self, sources: &Sources) -> fmt::Result {
        let Some(running) = sources.running.get() else { return Ok(()) };
        let map = running.journal.map();
        let segments = map.segments();
        self.gauge("castra_journal_first_seq", "The oldest event that can be read.", map.first_seq())?;
        self.gauge("castra_journal_head_seq", "The newest durable event.", map.durable_seq())?;
        self.gauge("castra_journal_segments", "Files of the journal.", segments.len() as u64)?;
        let bytes = segments.iter().map(|segment| segment.end).sum();
        self.gauge("castra_journal_bytes", "Bytes of the journal.", bytes)?;
        let stalled = u64::from(running.logs.stalled().is_some());
        self.gauge("castra_logs_seq", "The newest event that is in the logs.", running.logs.seq())?;
        self.gauge("castra_logs_stalled", "1 while the logs cannot be written.", stalled)?;
        // Where nothing is compacted there is no such view.
        let Some(seq) = running.latest.seq() else { return Ok(()) };
        let stalled = u64::from(running.latest.stalled().is_some());
        self.gauge("castra_latest_seq", "The newest event that the newest events per key have seen.", seq)?;
        self.gauge("castra_latest_stalled", "1 while the newest events per key cannot be written.", stalled)?;
        let help = "Events that were gone before the newest events per key had them.";
        self.gauge("castra_latest_lost", help, running.latest.lost())?;
        let kept = running.latest.letters();
        self.gauge("castra_dead_letters", "Dead letters that are kept.", kept.letters)?;
        self.gauge("castra_dead_letters_bytes", "Bytes of their events.", kept.bytes)?;
        let help = "Dead letters that were dropped, as there were too many.";
        self.count("castra_dead_letters_dropped", help, kept.dropped)
    }

    /// What status counts. Taken apart, so that none is forgotten.
    fn counters(&mut self, counters: &Counters) -> fmt::Result {
        let Counters {
            handshakes: Handshakes { granted, denied, timeout },
            sessions_opened,
            disconnects,
            heartbeats_sent,
            back_pressure_entered,
            back_pressure_left,
            write_retries,
            unsubscribed,
            refused,
            wrong_tokens,
            signals_folded,
            accept_pauses,
            stderr_dropped,
            delivered_live,
            delivered_from_journal,
            gaps,
            duplicates,
            log_changes,
        } = counters;
        let outcomes = [("granted", *granted), ("denied", *denied), ("timeout", *timeout)];
        self.counts("castra_handshakes", "Handshakes, by outcome.", "outcome", outcomes)?;
        let sources = [("live", *delivered_live), ("journal", *delivered_from_journal)];
        self.counts(
            "castra_deliveries",
            "Events that were sent to subscribers, by where they came from.",
            "source",
            sources,
        )?;
        let ends = "Sessions that ended, by reason.";
        self.counts("castra_sessions_closed", ends, "reason", ends_of(disconnects))?;
        for (name, help, value) in [
            ("castra_sessions_opened", "Sessions that began.", sessions_opened),
            ("castra_hellos_refused", "Hellos that were refused for who said them.", refused),
            ("castra_wrong_tokens", "Hellos that were refused for a wrong token.", wrong_tokens),
            ("castra_heartbeats_sent", "Signs of life that the broker asked for.", heartbeats_sent),
            (
                "castra_back_pressure_entered",
                "Subscriptions that left live delivery for the journal.",
                back_pressure_entered,
            ),
            (
                "castra_back_pressure_left",
                "Subscriptions that came back from the journal to live delivery.",
                back_pressure_left,
            ),
            ("castra_write_retries", "Times that a socket which takes nothing was recorded.", write_retries),
            ("castra_unsubscribed", "Subscriptions that a change of castra.toml ended.", unsubscribed),
            ("castra_signals_folded", "Signals that were not said at once.", signals_folded),
            (
                "castra_accept_pauses",
                "Times that a door accepted nothing, as connections or descriptors were used up.",
                accept_pauses,
            ),
            (
                "castra_stderr_dropped",
                "Log lines that were not written to stderr, because nobody read it.",
                stderr_dropped,
            ),
            ("castra_gaps", "Ranges that subscribers were told are gone.", gaps),
            ("castra_duplicates", "Events that were sent again with their id, and stored once.", duplicates),
            (
                "castra_log_changes",
                "Times that a log or record file was not as the broker left it.",
                log_changes,
            ),
        ] {
            self.count(name, help, *value)?;
        }
        Ok(())
    }
}

/// A sample for each value of `label`.
fn labelled<L: AsRef<str>>(
    head: &mut MetricEncoder<'_>,
    label: &str,
    each: impl IntoIterator<Item = (L, u64)>,
    encode: impl Fn(u64, MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    each.into_iter().try_for_each(|(name, value)| {
        let labels = [(label, name.as_ref())];
        encode(value, head.encode_family(&labels)?)
    })
}

/// The close reasons, as the protocol has them.
fn ends_of(ends: &Disconnects) -> [(&'static str, u64); End::ALL.len()] {
    End::ALL.map(|end| (end.reason(), *ends.of(end)))
}
