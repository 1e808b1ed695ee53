//! bus-v1 on the wire, pure: bytes in, values out. `docs/BUS.md` is its specification.
//!
//! [`handshake`]: the hello line and its answers. [`codec`]: bytes to frames and back. [`frame`]: what a
//! frame says, and the frames the broker sends. [`subscribe`]: the same of subscriptions. [`group`]: the same of
//! consumer groups, [`manage`] what is asked of them. [`publish`]: what a client says
//! of an event. [`received`]: what a client hears. Nothing here knows a socket, a file or a clock. Owner: doors and
//! sessions, and `client.rs` at the other end.

pub mod codec;
pub mod frame;
pub mod group;
pub mod handshake;
pub mod latest;
pub mod manage;
pub mod publish;
pub mod received;
pub mod subscribe;
