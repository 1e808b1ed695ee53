//! `castra status`, as it is typed, and what its fields mean.

use clap::Args;

/// Behind `--help`: every field of `--json`.
pub const HELP: &str = "\
Examples:
  castra status
  castra status --watch
  castra status --vm web -q && echo web is there
  castra status --json | jq '.vms[] | select(.reachable) | .name'

The table has the columns that the terminal has room for: QUEUED and IN FLIGHT in a wide one,
then TOPICS, cut to the width. --vm NAME shows all of one VM, each topic on a line.

Exit code 0 when the broker is running, else 1. With --vm: 0 when that VM is reachable, else
1.

Fields of --json (ages are milliseconds, null when never):
  schema                       1; a field keeps its name and meaning within a schema
  broker.state                 starting, running, disk-full, draining, unresponsive (5 s
                               without a sign), offline
  broker.pid, version          of the broker; version, started_at and journal are those of
                               the last one that spoke when it is offline
  broker.started_at            RFC 3339
  broker.uptime_ms             since then
  broker.listeners             tcp:ADDR, unix:PATH and the other doors; metrics:ADDR
  broker.journal.first_seq     the oldest event that can be read
  broker.journal.head_seq      the newest durable event
  broker.journal.logs_seq      how far the logs have come
  broker.journal.segments      how many files the journal has
  broker.journal.bytes         their size
  broker.journal.ts_ahead_ms   the clock was set back: ts stands still until it gets there;
                               else 0
  broker.journal.ids_left_out  VMs whose newest ids a segment has no room for: after a restart
                               repeats of theirs may be stored again (docs/BUS.md, Repeats)
  broker.journal.removed       seqs that retention removed since the broker started, by reason:
                               .size, .age, .topics (the retention of topics)
  broker.journal.grace         no broker ran for a while, which does not count as age yet; or
                               null:
    .through                   the newest event before that
    .pause_ms                  how long that was; 0: not known
    .left_ms                   running time until it counts
  broker.journal.damage        ranges that were durable and cannot be read (at most 16;
                               logs/broker.log has all)
  broker.reload_refused        the last reload of castra.toml was refused and changed nothing:
                               .at when, .reason why; else null
  broker.logs_stalled          why the logs are not being written, or null
  broker.latest                the newest events per key ([[topics]] in castra.toml, and dead
                               letters); null where there are none:
    .seq                       how far they have come
    .lost                      events that were gone before they were looked at, or before a file
                               that was lost was made anew
    .stalled                   why they are not being written, or null
  broker.signals_dropped       handshakes, bus events and log lines that were not recorded:
                               too many at once, or the file could not be written
  broker.pauses                times that the broker's process or its machine stood still for over
                               a second (SIGSTOP, a suspended host); deadlines were extended:
    .count, .total_ms          how many, and how long together
    .last_ms, .last_age_ms     the length of the last one, and its age (null: there was none)
  broker.counters              since the broker started; those of the last one when offline:
    .handshakes                how many, by outcome: .granted, .denied, .timeout
    .sessions_opened           sessions that began
    .disconnects               how many ended, by reason: an object with a number for each
                               close reason of docs/BUS.md, as in .disconnects[\"slow-consumer\"]
    .heartbeats_sent           signs of life that the broker asked for
    .back_pressure_entered, .back_pressure_left
                               subscriptions that left live delivery for the journal, and
                               that came back
    .write_retries             times that a socket which takes nothing was recorded
    .unsubscribed              subscriptions that a change of castra.toml ended
    .refused, .wrong_tokens    hellos that were refused for who said them, and those of them
                               whose token was wrong
    .signals_folded            signals that were not said at once: the same of a session is
                               said every 5 min at most
    .accept_pauses             times that a door accepted nothing for a while, because connections
                               or descriptors were used up
    .stderr_dropped            warnings and errors that were not written to stderr, because
                               nobody read it; logs/broker.log has them
    .delivered_live, .delivered_from_journal
                               events that went to subscribers, by where they came from
    .gaps                      ranges that subscribers were told are gone
    .duplicates                events that were sent again with the id their publisher gave
                               them, and stored once
    .log_changes               times that a log or record file was not as the broker left it:
                               somebody else cut it or wrote to it
  reachable                    any VM is
  last_handshake_vm, last_handshake_age_ms   the VM that said hello last
  vms[].name                   as it said in its hello
  vms[].reachable              the broker runs, and it has a session or said hello at most
                               45 s ago
  vms[].last_handshake_age_ms, last_publish_age_ms, last_heartbeat_age_ms
  vms[].capabilities           of its last hello
  vms[].identity               what proves its name: cid (the vsock context), socket (a socket
                               or serial line of its own), token, or name: nothing. The weakest
                               of its sessions; without one that of its last hello
  vms[].sessions               open bus sessions
  vms[].bus_subscribed         it has subscribed to something
  vms[].topics                 to what, names and patterns, sorted, each once; at most 64,
                               less when those of all VMs were more than 1 MiB
  vms[].topics_more            how many topics there are beside these; what several sessions
                               subscribe to may count more than once
  vms[].queued                 events that wait in the broker for its sessions
  vms[].lag                    events that its slowest subscription is behind head_seq; 0 when
                               all are live
  vms[].in_flight              publishes that wait for the disk
  groups_count                 consumer groups
  groups[]                     those that are furthest behind, at most 64; 'castra bus group ls'
                               has all. At most a second old
  groups[].name, lag           events that it has yet to do: of its topics, not expired, past its
                               filter; counted at most 30 seconds ago
  groups[].lag_at_least        true when not all of them are counted; else left out
  groups[].members             0 when the broker does not run
  groups[].in_flight           events that they hold
  groups[].dead                given up, the dead letter is not durable yet
  groups[].expired_undelivered events that expired (ttl_ms, retention) before the group had
                               them, since the broker started
  groups[].stalled             why nothing is delivered: no members, in-flight full, waiting
                               full, behind retention; or null";

/// `castra status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Look again every second until it is interrupted; with --json an object a line
    #[arg(short, long, conflicts_with = "quiet")]
    pub watch: bool,
    /// Only this VM, and all of it; the exit code says whether it is reachable
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// Print nothing but errors; the exit code says it
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
}
