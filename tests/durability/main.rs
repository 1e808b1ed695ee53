//! What was acked is never lost: kills, power cuts, failing and full disks, damaged files.
//!
//! Every test runs the real broker as a process, under load, and compares what it acked with what its
//! journal and its logs have afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;

mod acks;
mod backup;
mod damage;
mod failing_disk;
mod faults;
mod full_disk;
mod groups;
mod groups_cuts;
mod groups_disk;
mod kill;
mod latest;
mod load;
mod log_lines;
mod log_syncs;
mod night;
mod power_cut;
mod resend;
mod state;
mod verify;
