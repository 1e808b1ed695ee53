//! The guest's side.
//!
//! Owner: `app/agent`.
