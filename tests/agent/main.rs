//! What `castra agent` does, seen from outside: real agents and real brokers, or one of the test's own.
//!
//! A module per behaviour. Every agent has a state directory and a socket of its own, and no agent looks for its broker:
//! an AF_VSOCK address is dialled inside guests only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::needless_borrows_for_generic_args)]

#[path = "../broker/fake_broker.rs"]
mod fake_broker;
#[path = "../support/mod.rs"]
mod support;

mod drains;
mod handles;
mod host;
mod program;
mod serial;
mod started;
