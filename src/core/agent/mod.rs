//! The guest's side: what local programs publish is kept here until the broker has it.
//!
//! ```text
//! local programs ──agent.sock──▶ local ──▶ outbox (SQLite, durable before the answer) ──▶ broker
//! ```
//!
//! Always holds: what was answered `ok` is in the outbox until the broker acknowledged it. Owner: `castra agent`.

pub mod local;
pub mod outbox;
