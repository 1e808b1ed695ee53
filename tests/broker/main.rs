//! What a broker does, seen from outside: a real process, its sockets, its files and its commands.
//!
//! A module per behaviour. Every test has a broker of its own on port 0 and a state root of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::needless_borrows_for_generic_args)]

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod client;
mod config;
mod config_vms;
mod dlq;
mod dlq_bounds;
mod doors;
mod doors_config;
mod doors_hybrid;
mod doors_serial;
mod doors_world;
mod drain;
mod duplicates;
mod exit_codes;
mod expiry;
mod fake_broker;
mod few_threads;
mod file_limit;
mod group_cli;
mod groups;
mod groups_begun;
mod groups_bounds;
mod groups_edges;
mod groups_killed;
mod groups_lag;
mod groups_retention;
mod half_characters;
mod handshake;
mod instance;
mod latest;
mod limits;
mod logging;
mod logs;
mod metrics;
mod metrics_groups;
mod metrics_prometheus;
mod package;
mod paused;
mod publish;
mod publish_cli;
mod publish_jsonl;
mod publish_lost;
mod refusals;
mod reload;
mod reload_weaker;
mod sentences;
mod service;
mod signals;
mod start;
mod status;
mod status_cli;
mod status_groups;
mod stderr_full;
mod subscribe;
mod subscribe_cli;
mod subscribe_cli_broker;
mod subscribe_cli_exec;
mod subscribe_cli_group;
mod subscribe_cli_resume;
mod subscribe_ends;
mod subscribe_status;
mod tail;
mod tail_cursor;
mod tail_follow;
mod tail_range;
mod terminal;
mod tokens;
mod unit;
mod unix;
mod wrong_clock;
