//! A session with the broker as the host, for the commands that need one.
//!
//! Always holds: when there is no session, nothing was sent, and the sentence says why. Owner: `publish/`,
//! `subscribe/` and `vm_forget.rs`; `bench/` checks its path here.

use super::failure::{Exit, Failure};
use super::given::check_root;
use crate::core::awake::{self, Elapsed};
use crate::core::client::{Bus, Client, ClientError, Error, Target, Times};
use crate::core::door::unix::PATH_BYTES;
use crate::core::state_root::{Holder, StateRoot};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// What the host says of itself.
pub const HELLO: &str = "hello vm:host capabilities=bus-v1,host-bus";

/// Runs an exchange with the broker for `limit` at most. Time in which this process was stopped does not count.
///
/// # Errors
/// [`Elapsed`].
pub async fn within<F: Future>(limit: Duration, exchange: F) -> Result<F::Output, Elapsed> {
    let _watch = awake::watch();
    awake::timeout(limit, exchange).await
}

/// Connects to the broker of `root`.
///
/// # Errors
/// No broker answers, it may not be spoken to, or it gives no session; nothing was sent.
pub async fn connect(root: &StateRoot) -> Result<Client, Failure> {
    check(root)?;
    Client::connect(&Target::Unix(root.socket()), HELLO).await.map_err(|error| no_session(root, error))
}

/// The same as a bus, for a command that asks several things.
///
/// # Errors
/// As there.
pub async fn bus(root: &StateRoot) -> Result<Bus, Failure> {
    check(root)?;
    let hello = format!("{HELLO},heartbeat");
    Bus::connect_as(&Target::Unix(root.socket()), &hello, Times::default()).await.map_err(|error| match error
    {
        Error::NoSession(error) => no_session(root, own(error)),
        error => lost(&error),
    })
}

/// The error itself, of which nobody else has a copy.
pub fn own(error: Arc<ClientError>) -> ClientError {
    Arc::try_unwrap(error).unwrap_or_else(|error| ClientError::Protocol(error.to_string()))
}

/// There was a session.
pub fn lost(error: &Error) -> Failure {
    Failure::new(Exit::TryAgain, "connection-lost", format!("{error}; try it again"))
}

/// Whether there can be a socket of `root`, and whether this user may look.
///
/// # Errors
/// There cannot, or may not.
pub fn check(root: &StateRoot) -> Result<(), Failure> {
    check_root(root)?;
    check_path(root)
}

/// There is no session.
pub fn no_session(root: &StateRoot, error: ClientError) -> Failure {
    let (socket, path) = (root.socket(), root.path().display());
    let at = socket.display();
    match error {
        ClientError::Connect(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let why = format!("{at}: {error}; run this as the broker's user or root");
            Failure::new(Exit::Refused, "permission-denied", why)
        }
        ClientError::Connect(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let why = format!("the broker on {at} accepts nobody just now; nothing was sent, try again");
            Failure::new(Exit::TryAgain, "busy", why)
        }
        ClientError::Refused(reason) if reason == "reserved-identity" => {
            let why =
                "reserved-identity: only the broker's user and root speak as the host; nothing was sent";
            Failure::new(Exit::Refused, reason, why)
        }
        ClientError::Refused(reason) => {
            let why = format!("{reason}: the broker gave no session; nothing was sent, try again");
            Failure::new(Exit::TryAgain, reason, why)
        }
        ClientError::Connect(error) if error.kind() == io::ErrorKind::TimedOut => {
            let why = format!("the broker on {at} does not answer; 'castra status' says how it is");
            Failure::new(Exit::NoBroker, "no-answer", why)
        }
        ClientError::Connect(error) => {
            let why = match root.lock_holder() {
                Ok(Holder::Nobody) | Err(_) => {
                    format!(
                        "no broker answers on {at} ({error}); start one with 'castra broker --state-root {path}'"
                    )
                }
                Ok(_) => format!(
                    "a broker runs in {path} and does not listen on {at} ({error}): it is starting or ending, or its \
                     socket was removed; 'castra status' says how it is"
                ),
            };
            Failure::new(Exit::NoBroker, "no-broker", why)
        }
        error => {
            let why = format!("{at}: {error}; nothing was sent, 'castra status' says how the broker is");
            Failure::new(Exit::NoBroker, "no-broker", why)
        }
    }
}

/// A socket of this state root can be.
///
/// # Errors
/// Its path is too long.
pub fn check_path(root: &StateRoot) -> Result<(), Failure> {
    let socket = root.socket();
    let bytes = socket.as_os_str().len();
    if bytes <= PATH_BYTES {
        return Ok(());
    }
    let why = format!(
        "{}: no broker can be there: the path of its socket has {bytes} bytes, at most {PATH_BYTES} are possible; \
         choose a shorter --state-root",
        socket.display()
    );
    Err(Failure::new(Exit::BadData, "path-too-long", why))
}
