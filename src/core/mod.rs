//! The broker as a library: no printing, no command line, no process exit.
//!
//! One journal, many views:
//!
//! ```text
//! guest ──frames──▶ door ──▶ session ──▶ journal (group commit, fdatasync) ──▶ ack
//!                                           │ committed batch
//!                                           ├──▶ live subscribers
//!                                           └──▶ per-VM logs, bus.log   (later: groups, relays)
//! ```
//!
//! **The path of one published frame:** `wire/codec.rs` → `session/mod.rs` → `journal/commit.rs` →
//! `delivery/router.rs` → `delivery/subscription.rs`. Each names the next on its first line.
//!
//! **Who may import whom.** `app` imports `core`, never back. Doors use [`bus`], never the journal. Pure
//! modules (`PURE` in `tests/tidy.rs`, and `wire`) read no file, no socket and no clock. `tests/tidy.rs` holds these
//! rules.
//!
//! **Invariants**, quoted by number where they are kept:
//!
//! 1. *Durable first.* No ack, no delivery and no reader passes `durable_seq`: the last event covered by an fdatasync that
//!    returned 0.
//! 2. *Acked is never lost.* After any crash, opening the state root shows every acked event, once, in order,
//!    in the journal and in its VM's log. No door listens before that is done.
//! 3. *A failed fsync ends the process.* Publishers waiting are told `outcome-unknown`, nothing is retried on
//!    those pages, the exit code is 74, and the next start rewrites the tail.
//! 4. *A full disk refuses, it does not break.* Space is reserved a segment ahead; publishers get `disk-full`,
//!    readers and status go on, nothing is reset, and publishing resumes by itself.
//! 5. *Only the torn tail is cut.* What was known to be durable and is unreadable is damage: it is kept,
//!    reported with its range, and never silently dropped.
//! 6. *Everything is bounded.* Every queue, line, frame, table and wait has a limit in [`limits`].
//! 7. *Slow means disk.* A subscriber that cannot keep up reads the journal at its own pace. It never grows memory and
//!    never delays anybody else.
//! 8. *Status never asks.* `castra status` reads what the broker maintains; it never waits for it.
//! 9. *Timers are monotonic.* Wall time is data; a clock step disconnects nobody, and a pause of the process
//!    extends every deadline ([`awake`]).
//! 10. *An identity is proven or it is only a name.*
//! 11. *Views may fail, the journal goes on.* A view that cannot be written is counted, said, and rebuilt; it
//!     never stops a commit.

#[cfg(feature = "agent")]
pub mod agent;
pub mod append_file;
pub mod awake;
pub mod backoff;
pub mod backup;
pub mod bench;
pub mod broker;
pub mod burst;
pub mod bus;
pub mod chance;
pub mod client;
pub mod clock;
pub mod config;
pub mod counters;
pub mod delivery;
pub mod descriptors;
pub mod door;
pub mod end;
pub mod event;
pub mod events;
pub mod exec;
pub mod follow;
pub mod harmless;
pub mod identity;
pub mod ids;
pub mod instances;
pub mod journal;
pub mod latest;
pub mod limits;
pub mod lines;
pub mod log_files;
pub mod log_view;
pub mod logs;
pub mod metrics;
pub mod owed;
pub mod pipeline;
pub mod policy;
pub mod refusal;
pub mod repair;
pub mod retention;
pub mod room;
pub mod rotation;
pub mod service;
pub mod session;
pub mod signals;
pub mod standing;
pub mod state_root;
pub mod status;
pub mod status_file;
pub mod status_keeper;
pub mod status_report;
pub mod stream;
pub mod tail;
pub mod threads;
pub mod throttle;
pub mod topic;
pub mod verify;
pub mod wire;
