//! castra: a message bus between virtual machines and their host.
//!
//! `core` is the broker as a library, `app` is what an operator sees, `cli` is what can be typed.
//! Start reading at [`core`].

pub mod app;
pub mod cli;
pub mod core;
