//! The guest's side, seen from outside: real agents with real brokers or one of the test's own; the outbox and its door.
//!
//! A module per behaviour. Every agent has a state directory and a socket of its own, and no agent looks for its broker:
//! an AF_VSOCK address is dialled inside guests only.
#![cfg(feature = "agent")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::needless_borrows_for_generic_args)]

#[path = "../broker/fake_broker.rs"]
mod fake_broker;
#[path = "../durability/faults.rs"]
#[allow(dead_code)]
mod faults;
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod drains;
mod file_limit;
mod handles;
mod host;
mod ill;
mod local;
mod outbox;
mod program;
mod serial;
mod started;
mod stderr_full;
