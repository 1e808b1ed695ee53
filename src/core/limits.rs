//! Every bound of the broker, in one table.
//!
//! Always holds: no queue, line, frame or table is without a number from here (invariant 6), nor a wait that
//! somebody outside sees. How often a thread looks or tries again stands where it does. The constants are part of the protocol or the format and cannot be set; the fields
//! of [`Limits`] are defaults that an operator or a test may change. Owner: the composition root.

use std::time::Duration;

/// Connections that the kernel holds for a door until it accepts them. At one more a peer waits a second and
/// longer, so it is more than a burst of guests, and more than the 128 that a listener has by default.
pub const ACCEPT_QUEUE: i32 = 2048;
/// The longest hello line, its newline included, in bytes.
pub const HELLO_BYTES: usize = 512;
/// The longest frame after its length, in bytes. The shortest is 1.
pub const FRAME_BYTES: usize = 65_536;
/// The longest encoded event (the JSON object of a log line, without its newline), in bytes.
pub const EVENT_BYTES: usize = 60 * 1024;
/// The same of an event that wraps another one, which only the broker makes: a dead letter, an event of a snapshot.
/// What stands before it in a frame has the rest.
pub const LETTER_BYTES: usize = FRAME_BYTES - 576;
/// The longest topic, in bytes of UTF-8.
pub const TOPIC_BYTES: usize = 255;
/// The longest VM name, in bytes.
pub const NAME_BYTES: usize = 128;
/// The longest event id, in bytes.
pub const ID_BYTES: usize = 128;
/// The longest key, in bytes.
pub const KEY_BYTES: usize = 255;
/// The most headers of one event.
pub const HEADERS: usize = 32;
/// The most bytes of all header names and values of one event together.
pub const HEADER_BYTES: usize = 1024;
/// The longest `sid`, in bytes.
pub const SID_BYTES: usize = 128;
/// A longer pause, during which no broker ran or the machine slept, counts for retention only after [`AGE_GRACE`].
pub const PAUSE_FREE: Duration = Duration::from_secs(600);
/// A broker runs for so long before a pause counts for retention. Longer than consumers and an operator take to come
/// back, shorter than a laptop's day.
pub const AGE_GRACE: Duration = Duration::from_secs(4 * 3600);
/// The wall clock has not been set for so long when it says how long a pause was.
pub const AGE_STEADY: Duration = Duration::from_secs(600);
/// Events that came within so long may count as of the same age.
pub const AGE_STEP: Duration = Duration::from_millis(100);
/// The most times that are kept, to know how old events are.
pub const AGE_MARKS: usize = 8192;
/// The most pauses that are kept apart until they count.
pub const AGE_PAUSES: usize = 64;
/// How old events are is written down so often; a broker that is killed forgets the age of those that came since.
pub const AGE_SAVE: Duration = Duration::from_secs(30);
/// The longest `ttl_ms`: ten years.
pub const TTL_MS: u64 = 315_360_000_000;
/// The most tags of one event, and the most ids in its `caused_by`.
pub const TAGS: usize = 32;
/// The most bytes of all tags of one event together.
pub const TAG_BYTES: usize = 1024;
/// The deepest JSON of a frame, the frame's own object being level 1; of `events`, the object of each event.
pub const JSON_DEPTH: usize = 64;
/// The longest reason of a refusal, in bytes; what is quoted in it is the peer's own and as long as it likes.
pub const REASON_BYTES: usize = 256;
/// The longest name of a subscription, in bytes.
pub const SUB_BYTES: usize = 255;
/// The most patterns of one subscription.
pub const PATTERNS: usize = 64;
/// The most tokens of a pattern with wildcards that is subscribed …
pub const PATTERN_TOKENS: usize = 16;
/// … and the most of them that are `*`: so a topic is looked up in bounded time, whatever others subscribe.
pub const PATTERN_STARS: usize = 4;
/// The longest name of a consumer group, in bytes.
pub const GROUP_NAME_BYTES: usize = 128;
/// The most consumer groups.
pub const GROUPS: usize = 10_000;
/// The most events that a member of a group is handed at a time …
pub const GROUP_BATCH: u32 = 1000;
/// … and that it holds, …
pub const GROUP_IN_FLIGHT: u32 = 10_000;
/// … and their frames, in bytes; one more at the most.
pub const GROUP_MEMBER_BYTES: usize = 1024 * 1024;
/// The bytes kept for the events that a group took in and that are not done; then it takes in no more.
pub const GROUP_BYTES_HELD: usize = 16 * 1024 * 1024;
/// The same of all groups together; a group that has taken nothing in may always take something.
pub const GROUPS_BYTES_HELD: usize = 256 * 1024 * 1024;
/// What waits to be taken in by all groups together, in bytes; then they read the journal.
pub const GROUPS_QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Groups that sessions of one VM began and that are there; the host may begin more.
pub const GROUPS_PER_VM: usize = 256;
/// Answers of groups to one session that wait for the journal; then the session is read no further.
pub const GROUP_ANSWERS: usize = 4096;
/// What all groups write at a time, in bytes; a group more at the most.
pub const GROUP_NOTE_BYTES: usize = 256 * 1024;
/// The most attempts at an event that a group may ask for.
pub const GROUP_ATTEMPTS: u32 = 100;
/// The longest time that a member may hold an event.
pub const GROUP_ACK_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The most seqs in one frame of a member.
pub const ACK_SEQS: usize = 1024;
/// The most events of one `events: [ … ]` frame.
pub const GROUP_EVENTS: usize = 1024;

/// The smallest journal segment, in bytes.
pub const SEGMENT_MIN_BYTES: u64 = 1024 * 1024;
/// A session's events enter the journal in batches that stop growing at this size, in bytes. A frame
/// adds 512 KiB at most, so a batch always fits the smallest segment.
pub const BATCH_BYTES: usize = 128 * 1024;
/// The longest note of the journal (what is kept there beside the events), in bytes.
pub const NOTE_BYTES: usize = EVENT_BYTES;
/// The end of every segment is for notes and dead letters, so that consumers go on when there is no next segment, in
/// bytes; of a small segment the eighth part.
pub const RESERVED_BYTES: u64 = 1024 * 1024;
/// One commit takes whole rounds, a batch of every session that waits, until it has this much, in bytes.
pub const COMMIT_BYTES: usize = 4 * 1024 * 1024;
/// Frames for one feed are handed to its subscribers in pieces of so many events at the most …
pub const CHUNK_EVENTS: usize = 256;
/// … and about so many bytes; one event more at the most.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// What was taken for a session and is not in its socket yet stops growing at this size, in bytes.
pub const OUTPUT_BYTES: usize = 64 * 1024;
/// A subscriber that reads the journal reads about so much at a time, in bytes …
pub const CATCH_UP_BYTES: usize = 256 * 1024;
/// … for so many subscriptions of one session, those furthest behind …
pub const CATCH_UP_TOGETHER: usize = 16;
/// … and so many sessions at once, but no more than half the processors; the others wait in line.
pub const CATCH_UP_READS: usize = 4;
/// The newest ids that publishers gave, of each VM, that are known: one of them again is a repeat. A publisher that
/// has fewer events in flight may send them again whatever was lost …
pub const SEEN_IDS: usize = 256;
/// … of so many VMs; those whose newest id is the oldest give way, an eighth of as many at a time …
pub const SEEN_VMS: usize = 10_000;
/// … of all VMs together so many are known in any case, …
pub const SEEN_ALL: usize = 100_000;
/// … if they are no older than this; …
pub const SEEN_TIME: Duration = Duration::from_secs(120);
/// … and so much of the journal's end is read for these at the start, in bytes.
pub const SEEN_BYTES: u64 = 64 * 1024 * 1024;
/// The index of a segment's ids is made of so many events at a time: with more of them the segment is read again.
pub const INDEX_EVENTS: usize = 1024 * 1024;
/// What of a segment the snapshot of each VM's ids that it begins with may take: the eighth part. A
/// VM takes 6.2 KiB: 1,350 of them in 64 MiB.
pub const SEEN_SHARE: u64 = 8;
/// Events of a group that wait: for a member, for the end of a delay, for another of their key, or for their dead
/// letter. With more, no further ones are looked at until some of them are done.
pub const GROUP_WAITING: usize = 8192;
/// A question of how far a group is behind counts in the journal for so long at the most; then it says a lower bound.
pub const GROUP_LAG_COUNT: Duration = Duration::from_secs(2);
/// So much of the journal is read every 30 seconds to count how far groups are behind, in bytes.
pub const GROUPS_COUNT_BYTES: usize = 64 * 1024 * 1024;
/// Deliveries in vain that are remembered of an event, with their reasons: the last ones.
pub const GROUP_FAILURES: usize = 5;
/// An event that is nacked waits for so long after the first attempt, twice as long after each further one …
pub const NACK_DELAY: Duration = Duration::from_millis(500);
/// … up to this; …
pub const NACK_DELAY_LONGEST: Duration = Duration::from_secs(30);
/// … or as long as the nack says, up to this.
pub const NACK_DELAY_SET: Duration = Duration::from_secs(24 * 3600);
/// Commits that wait to be handed to subscribers, in bytes; at more the subscribers read the journal.
pub const ROUTER_BYTES: usize = 16 * 1024 * 1024;
/// Topics whose subscribers are remembered; with one more all are looked up anew.
pub const ROUTES_CACHED: usize = 4096;
/// The bytes that one session may have under way are at most this part of what is free of those of all sessions:
/// the 32nd. 64 sessions that flood settle at 43 MiB of 64, each the same, and 21 MiB are free for the others.
pub const WINDOW_SHARE: usize = 32;
/// The smallest size at which a log file may rotate, in bytes: an event has room in it.
pub const LOG_MIN_BYTES: u64 = 64 * 1024;
/// Rotated files that are kept of a log: `<vm>.log.1` (newest) … `.4`.
pub const LOG_FILES: u32 = 4;
/// A VM without a session is reachable for so long after a handshake, in milliseconds.
pub const REACHABLE_MS: i64 = 45_000;
/// A broker that holds its lock and has not refreshed its status for so long is unresponsive, in milliseconds.
pub const UNRESPONSIVE_MS: i64 = 5_000;
/// The most ranges of damage that status shows; the broker's log has them all.
pub const DAMAGE_SHOWN: usize = 16;
/// The most topics that status shows of a VM; how many more there are is said …
pub const TOPICS_SHOWN: usize = 64;
/// … and the most bytes of all VMs' topics; each VM has the same share, and room for one topic in any case.
pub const TOPICS_SHOWN_BYTES: usize = 1024 * 1024;
/// The events that `castra bus publish --jsonl` sends ahead of their acks; less than a session may have unacked,
/// so that a broker never stops reading it …
pub const PIPELINE_EVENTS: usize = 3072;
/// … and their frames, in bytes.
pub const PIPELINE_BYTES: usize = 768 * 1024;
/// What `castra bus subscribe` has received and not yet printed or handed to its command, in bytes; then it
/// receives no further.
pub const FOLLOW_BYTES: usize = 1024 * 1024;
/// The most findings that `castra verify` shows of the journal, and of each log; the rest is counted.
pub const FINDINGS_SHOWN: usize = 64;
/// The pending events of an agent's outbox, in bytes.
pub const OUTBOX_BYTES: u64 = 64 * 1024 * 1024;
/// An event is pending in an outbox for so long, while the guest is up.
pub const OUTBOX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Events that an outbox shows as sent; older ones are forgotten.
pub const OUTBOX_SENT: u64 = 1000;
/// Damaged outboxes that are kept; with one more the agent does not begin a new one.
pub const OUTBOX_ASIDES: usize = 8;
/// Events of an outbox on their way to the broker, which remembers twice as many ids of a VM …
pub const DRAIN_EVENTS: usize = 128;
/// … and the bytes of their frames.
pub const DRAIN_BYTES: usize = 256 * 1024;
/// A session of an agent that sent nothing for so long sends a heartbeat.
pub const HOST_BEAT: Duration = Duration::from_secs(10);
/// A host that an agent did not hear for so long is gone.
pub const HOST_SILENCE: Duration = Duration::from_secs(30);
/// A host that takes nothing of what an agent has for it for so long is gone as well.
pub const HOST_STUCK: Duration = Duration::from_secs(30);
/// An agent's handler that fails so often for an event has had it.
pub const HANDLER_ATTEMPTS: u32 = 5;
/// A handler that runs when the agent is told to end may go on for so long.
pub const HANDLER_TIME: Duration = Duration::from_secs(10);
/// What the command of an event left behind may keep its stderr open for so long after it ended; then it is closed …
pub const EXEC_LINGER: Duration = Duration::from_millis(200);
/// … and at once when that many are open already.
pub const EXEC_LINGERING: usize = 64;
/// Requests that wait for an outbox's thread; then whoever asks waits before that.
pub const OUTBOX_WAITING: usize = 1024;
/// Local programs on an agent's socket at once.
pub const LOCAL_CONNECTIONS: usize = 64;
/// Lines of one local program that are taken and not answered yet; then its socket is read no further.
pub const LOCAL_UNANSWERED: usize = 256;
/// A local program that takes no answer for so long is cut off.
pub const LOCAL_WRITE_TIME: Duration = Duration::from_secs(10);
/// So many wrong tokens of one peer within a minute make it slow.
pub const WRONG_TOKENS: usize = 5;
/// So many for one name, wherever they come from, make all tokens for it slow.
pub const WRONG_TOKENS_OF_NAME: usize = 50;
/// Peers whose wrong tokens are remembered, and names.
pub const THROTTLED_PEERS: usize = 1024;
/// The longest token of a VM, in bytes; with all else a hello has to have room for it.
pub const TOKEN_BYTES: usize = 256;
/// The largest file of a token, in bytes.
pub const TOKEN_FILE_BYTES: usize = 4096;
/// The most `[[vms]]` of a castra.toml …
pub const VM_ENTRIES: usize = 10_000;
/// … and the most patterns in a list of one of them: each publish may be compared with all.
pub const VM_PATTERNS: usize = 64;
/// The most `[[topics]]` of a castra.toml: each new topic is compared with all.
pub const TOPIC_ENTRIES: usize = 1000;
/// Commits that wait for the view of the newest event per key, in bytes; at more it reads the journal.
pub const LATEST_BYTES: usize = 16 * 1024 * 1024;
/// How long a question waits for that view to have what is durable.
pub const LATEST_WAIT: Duration = Duration::from_secs(5);
/// The most keys of one question.
pub const LATEST_KEYS: usize = 1024;
/// Questions of one session about that view that are not answered; then it is not read.
pub const LATEST_ASKED: usize = 16;
/// A view that is damaged is kept aside; so many are, the newest.
pub const LATEST_ASIDES: usize = 4;
/// While that view is behind, the journal grows to so many times the size that it may have; then what the view has not
/// read is removed all the same.
pub const LATEST_HOLDS: u64 = 2;
/// Keys that a subscriber from the state remembers, in bytes, to end those that a new state lacks.
pub const FOLLOW_KEYS_BYTES: usize = 64 * 1024 * 1024;
/// Tombstones that are kept: events that ended a key. The oldest go first …
pub const LATEST_ENDED: u64 = 100_000;
/// … also when their lines take more bytes than this.
pub const LATEST_ENDED_BYTES: u64 = 64 * 1024 * 1024;
/// Dead letters of one group that are kept, …
pub const LETTERS_OF_GROUP: u64 = 50_000;
/// … and of all groups; the oldest of a group that has more go first, then the oldest of the group that has most.
pub const LETTERS: u64 = 200_000;
/// All dead letters take so small a part of `retain_bytes` at the most, and those of one group of that: the fourth …
pub const LETTERS_SHARE: u64 = 4;
/// … but in any case so much may be taken, in bytes.
pub const LETTERS_BYTES_LEAST: u64 = 1024 * 1024;
/// The largest castra.toml, in bytes.
pub const CONFIG_BYTES: usize = 8 * 1024 * 1024;
/// What a peer may have echoed in the answer to its hello, in bytes.
pub const EPOCH_BYTES: usize = 32;
/// After a publish that found no room everything is refused for so long, in the order in which it was sent.
pub const FULL_TIME: Duration = Duration::from_secs(1);
/// Connections to the address of the metrics at once; at one more the oldest is cut.
pub const METRICS_CONNECTIONS: usize = 16;
/// The longest head of a request there, in bytes.
pub const METRICS_REQUEST_BYTES: usize = 8 * 1024;
/// A request has so long to come, its answer to be made and the peer to take it, each.
pub const METRICS_TIME: Duration = Duration::from_secs(5);
/// Topics that metrics have by name, those that were published to first; all others count as `$other`.
pub const METRICS_TOPICS: usize = 100;
/// Consumer groups that metrics have by name, those that were there first; all others count as `$other`.
pub const METRICS_GROUPS: usize = 50;
/// Consumer groups that status shows, those that are furthest behind; how many there are is said.
pub const GROUPS_SHOWN: usize = 64;
/// The signals that may wait to be recorded (handshakes, bus events, log lines); more are counted.
pub const SIGNALS_QUEUED: usize = 16_384;
/// The same signal of one session is said at most once in this time; what is folded is counted and said later.
pub const SIGNAL_FOLD: Duration = Duration::from_secs(5 * 60);

/// The bounds that can be set. `Limits::default()` is the documented table; what each may be set to stands in
/// `config/table.rs`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Time to say hello.
    pub hello_time: Duration,
    /// Connections that have not said hello; at one more the oldest is dropped.
    pub pending_handshakes: usize,
    /// Sessions in all.
    pub sessions: usize,
    /// Sessions of one VM.
    pub sessions_per_vm: usize,
    /// Publishes of one session that are not acked yet.
    pub unacked_events: usize,
    /// Their encoded bytes.
    pub unacked_bytes: usize,
    /// The encoded bytes of all sessions' unacked publishes.
    pub unacked_bytes_in_all: usize,
    /// Patterns that one session may subscribe; a subscription of one topic is one pattern.
    pub subscriptions: usize,
    /// Events that wait in the broker for one session; then its subscriptions read the journal.
    pub queue_events: usize,
    /// Their bytes.
    pub queue_bytes: usize,
    /// The bytes that wait for all sessions.
    pub queue_bytes_in_all: usize,
    /// A session that listed `heartbeat` is sent one when nothing came from it for so long.
    pub heartbeat_time: Duration,
    /// A session ends when no frame came for so long.
    pub idle_time: Duration,
    /// A session ends when its socket took no byte for so long while something waited.
    pub write_time: Duration,
    /// After its last line or frame a closing connection is read for so long …
    pub linger_time: Duration,
    /// … or so many bytes.
    pub linger_bytes: usize,
    /// VMs remembered; the longest unreachable goes first.
    pub vms: usize,
    /// Descriptors kept for journal, logs and status.
    pub reserved_descriptors: u64,
    /// Drain at shutdown.
    pub drain_time: Duration,
    /// A host's publish waits so long for its line in the logs.
    pub host_log_time: Duration,
    /// Commits that wait for the logs' thread, in bytes; then publishers wait.
    pub logs_behind_bytes: usize,
    /// Log files kept open; a quarter of the descriptors at most.
    pub open_logs: usize,
    /// A log file rotates at this size.
    pub log_bytes: u64,
    /// Log lines are made durable, and a checkpoint is written, after so many bytes of them.
    pub checkpoint_bytes: usize,
    /// The size of a journal segment.
    pub segment_bytes: u64,
    /// Sealed segments are removed when the journal is larger …
    pub retain_bytes: u64,
    /// … or their newest event is older.
    pub retain_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            hello_time: Duration::from_secs(5),
            pending_handshakes: 4096,
            sessions: 10_000,
            sessions_per_vm: 64,
            unacked_events: 4096,
            unacked_bytes: 1024 * 1024,
            unacked_bytes_in_all: 64 * 1024 * 1024,
            subscriptions: 64,
            queue_events: 1024,
            queue_bytes: 1024 * 1024,
            queue_bytes_in_all: 256 * 1024 * 1024,
            heartbeat_time: Duration::from_secs(20),
            idle_time: Duration::from_secs(60),
            write_time: Duration::from_secs(10),
            linger_time: Duration::from_secs(1),
            linger_bytes: 64 * 1024,
            vms: 10_000,
            reserved_descriptors: 64,
            drain_time: Duration::from_secs(5),
            host_log_time: Duration::from_secs(2),
            logs_behind_bytes: 64 * 1024 * 1024,
            open_logs: 1024,
            log_bytes: 64 * 1024 * 1024,
            checkpoint_bytes: 64 * 1024 * 1024,
            segment_bytes: 64 * 1024 * 1024,
            retain_bytes: 1024 * 1024 * 1024,
            retain_age: Duration::from_secs(7 * 24 * 3600),
        }
    }
}
