//! The guest's side: the outbox, its local door, and the agent as a process.
#![cfg(feature = "agent")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../durability/faults.rs"]
#[allow(dead_code)]
mod faults;
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod local;
mod outbox;
