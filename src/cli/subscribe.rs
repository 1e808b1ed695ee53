//! `castra bus subscribe`, as it is typed.

use super::group::parse_ack_timeout;
use super::parse_some_time;
use super::tail::Output;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use std::time::Duration;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra bus subscribe                               everything, as it is published
  castra bus subscribe 'build.*' vm:web              these topics, and what web is sent
  castra bus subscribe deploy.done -c 1 --timeout 30s && ./next    wait for an event
  castra bus subscribe --from @4711 -o json > events.jsonl         go on with this event
  castra bus subscribe --from 10m 'build.>' -o raw | ./work        the last ten minutes, and on
  castra bus subscribe deploy --exec 'jq .payload | ./deploy'      a command for each event
  castra bus subscribe --group mailers 'jobs.mail.*' --from earliest --exec ./mail     a worker
  castra bus subscribe --broker tcp:127.0.0.1:7070 --vm web vm:web in a guest: its mailbox

Without a pattern it is '>': every topic, but no mailbox (vm:NAME, or vm:* for all of them) and
none of the broker's own ($…). The host may subscribe to everything, a guest to no mailbox but
its own and to no $….

--from is latest (what is published from now on), earliest, state (the newest event of each key
of topics that are compacted, then what is published; not with --group), seq:N or @N (this event
first), id:ID (what follows the newest event of this id; ids are each VM's own: --id-vm says
whose), or a TIME: how long ago (10m, 2h 30m, 3d), now, RFC 3339 (2026-11-21T08:00:00Z), or a
local time ('2026-11-21 08:00').

Events go to stdout and nothing else does. When the connection is lost, that is said on stderr,
and it connects again, with waits of up to 5 s, for as long as it takes: it goes on behind the
last event that it received, so none is printed twice or left out. Events that are gone (by
retention or damage) are said on stderr; the exit code is then 1. A journal that has another
event in the place of the last one (an older backup was restored) ends it with 65.

With --from state, whoever keeps the newest event of each key (a payload of null ends one) has
the broker's state: of events that are gone comes what is newest of each key. Where the broker
cannot say any more which keys ended, that is said; its state comes anew without repeats, and each
key that it lacks as an event of the VM 'bus' with the payload null, which is in no journal.

On a terminal, and with -v, a line on stderr says when it is subscribed. A script that must not
miss what it causes waits for that line ('castra: subscribed to …'), or names an event to begin
with (--from seq:N, id:ID).

--exec runs 'sh -c CMD' for each event, in order, one after the other, with the event's JSON line
on its stdin and CASTRA_SEQ, CASTRA_TS (milliseconds), CASTRA_ID, CASTRA_VM and CASTRA_TOPIC in
its environment; its output is not touched. A command that fails is said and counted, and the
next event goes on; the exit code is then 1. It has a process group of its own: Ctrl-C (or
SIGTERM) lets it finish, a second one ends it (SIGTERM), a third one kills it. What comes
meanwhile waits, 1 MiB at the most; the rest waits in the broker's journal. A command that runs
when --timeout is over gets SIGTERM, and SIGKILL 5 s later. A command that cannot be started
because descriptors, processes or memory are used up waits, and is tried again.

With --group it is a member of a consumer group, which the broker remembers: members share its
events, wherever they run, and each is delivered until somebody acks it. It begins where the
group is; --from, --ack-timeout, --max-attempts and the patterns are those of a group that is
new. An event is acked when it was printed and flushed. With --exec it is acked when the command
ends with 0, and else nacked: it comes again after a while, and after --max-attempts it is a dead
letter ($dlq.GROUP) with the exit codes and the last lines on stderr as reasons. Commands also
have CASTRA_GROUP, CASTRA_ATTEMPT and CASTRA_MAX_ATTEMPTS; while one runs the group waits for it,
and --max-in-flight of them run at once. The stderr of a command that has ended is closed 200 ms
later, whatever it left running: redirect the stderr of what is to outlive the command. Told to
end it takes no more, lets what runs come to its end, and leaves.

Exit codes:
  0    N events were printed or handed to the command; without -c: told to end (SIGINT,
       SIGTERM), or nobody reads stdout any more
  1    the same, but events are gone, a command failed, or with --group the broker was away and
       has not confirmed what was acked: that is said; with -c: told to end before
  2    usage: a --broker that is no address, an empty --exec
  65   what was given is wrong: a bad pattern or time, an event beyond the newest one, an id
       that is not there; or the journal is not the one that was received from before
  69   no broker answers; once it is subscribed, it waits for the broker instead
  74   stdout cannot be written, or sh cannot be run
  75   the broker accepts nobody just now, or could not read its journal; try again
  77   refused: a mailbox of another VM, a state root that belongs to somebody else
  124  --timeout ran out first"#;

/// `castra bus subscribe`.
#[derive(Args, Debug)]
pub struct SubscribeArgs {
    /// Topics or patterns (* is one token, a last > is one or more); none: '>'
    #[arg(value_name = "PATTERN")]
    pub patterns: Vec<String>,
    /// Begin here: latest, earliest, state, seq:N, id:ID or TIME
    #[arg(long, value_name = "FROM", default_value = "latest", allow_hyphen_values = true)]
    pub from: String,
    /// With id:ID: the id is one of this VM's; else the newest event of that id, whoever published it
    #[arg(long, value_name = "NAME")]
    pub id_vm: Option<String>,
    /// End when N events were printed, or handed to the command; not with --group
    #[arg(short, long, value_name = "N", conflicts_with = "group", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so long, and the command of --exec too; then the exit code is 124
    #[arg(long, value_name = "TIME", value_parser = parse_some_time)]
    pub timeout: Option<Duration>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Print times in UTC
    #[arg(long)]
    pub utc: bool,
    /// Print nothing; run this command for each event
    #[arg(long, value_name = "CMD", value_parser = NonEmptyStringValueParser::new(), conflicts_with_all = ["output", "utc"])]
    pub exec: Option<String>,
    /// Be a member of this group: its events are shared, each acked once handled; not with -c
    #[arg(long, value_name = "GROUP", help_heading = "With a group")]
    pub group: Option<String>,
    /// Hold so many events at the most; with --exec run so many commands at once [default: 256, with --exec 1]
    #[arg(long, value_name = "N", requires = "group", help_heading = "With a group", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_in_flight: Option<u32>,
    /// A new group delivers an event again that is not answered within this [default: 30s]
    #[arg(long, value_name = "TIME", requires = "group", help_heading = "With a group", value_parser = parse_ack_timeout)]
    pub ack_timeout: Option<Duration>,
    /// A new group gives an event up after so many deliveries [default: 5]
    #[arg(long, value_name = "N", requires = "group", help_heading = "With a group", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_attempts: Option<u32>,
    /// The broker, for a guest [default: the host's, over the socket in the state root]
    #[arg(long, value_name = "tcp:HOST:PORT|unix:PATH", requires = "vm")]
    pub broker: Option<String>,
    /// This guest's name
    #[arg(long, value_name = "NAME", requires = "broker")]
    pub vm: Option<String>,
    /// Say on stderr when it is subscribed, though that is no terminal
    #[arg(short, long)]
    pub verbose: bool,
    /// Print events as with -o json, and what is said on stderr as JSON objects, too
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
}
