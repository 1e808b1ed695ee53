//! The documents say what the code does: examples are decoded and run, tables are compared.
//!
//! `bus`: docs/BUS.md. `architecture`: docs/ARCHITECTURE.md. `readme`: README.md and docs/OPERATIONS.md.
//! `guests`: docs/GUESTS.md. `metrics`: the table of metrics in docs/OPERATIONS.md.
//! `output`: what the commands print, as snapshots.
//! `markdown`: how they are read. `session`: how their commands are run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod architecture;
mod bus;
mod guests;
mod markdown;
mod metrics;
mod output;
mod readme;
mod session;
#[path = "../support/mod.rs"]
mod support;
