//! Opens a way to the broker.
//!
//! Always holds: nothing is said on it yet, and nothing waits longer than its limit. Owner: the link; a trait, so that
//! a test dials nobody.

use super::discover::Way;
use super::port;
use crate::core::awake::timeout;
use crate::core::client::Target;
use crate::core::stream::{Reader, Writer};
use std::future::Future;
use std::io;
use std::time::Duration;

/// A vsock without a listener may say so only after 2 s.
const VSOCK: Duration = Duration::from_secs(3);
/// An address of another network takes the first packet and answers nothing.
const TCP: Duration = Duration::from_secs(5);

/// Opens ways.
pub trait Dial: Send {
    /// Opens one.
    ///
    /// # Errors
    /// It leads nowhere, or not in time.
    fn dial(&self, way: &Way) -> impl Future<Output = io::Result<(Reader, Writer)>> + Send;
}

/// Those of this machine.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl Dial for System {
    async fn dial(&self, way: &Way) -> io::Result<(Reader, Writer)> {
        let target = match way {
            Way::Stream(target) => target,
            Way::Line(name) => return port::open(name),
        };
        let limit = if matches!(target, Target::Vsock(..)) { VSOCK } else { TCP };
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
        timeout(limit, target.open()).await.map_err(|_| late())?
    }
}
