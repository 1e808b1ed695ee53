//! Reading the logs: from their end, from a time or a seq, and on as they are written.
//!
//! ```text
//! where to begin: chain.rs (all files of a log) ── scan.rs (one file: on, back, by halves)
//!        │ a place
//!        ▼
//! stream.rs: line after line, over rotation, removal and rewriting ──▶ line.rs, filter.rs ──▶ who prints
//!        ▲ nothing more is there
//! watch.rs: sleeps until there may be
//! ```
//!
//! Always holds: whoever reads never writes to a log nor waits for a broker; what is read at a time is
//! bounded, however large the file; a line that is no event is no reason to stop. `line`, `filter` and
//! `when` are pure. Owner: `app/tail/` and `app/logs.rs`.

pub mod chain;
pub mod cursor;
pub mod filter;
pub mod line;
pub mod scan;
pub mod stream;
pub mod watch;
pub mod when;
