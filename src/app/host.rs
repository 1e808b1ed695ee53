//! A session with the broker as the host, for the commands that need one.

use super::failure::{Exit, Failure};
use crate::core::client::{Client, ClientError, Target};
use crate::core::state_root::StateRoot;
use std::io;

const HELLO: &str = "hello vm:host capabilities=bus-v1,host-bus";

/// Connects to the broker of `root`.
///
/// # Errors
/// No broker answers, it may not be spoken to, or it gives no session; nothing was sent.
pub async fn connect(root: &StateRoot) -> Result<Client, Failure> {
    let socket = root.socket();
    let failure = match Client::connect(&Target::Unix(socket.clone()), HELLO).await {
        Ok(client) => return Ok(client),
        Err(ClientError::Connect(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            let why = format!("{}: {error}; run this as the broker's user or root", socket.display());
            Failure::new(Exit::Refused, "permission-denied", why)
        }
        Err(ClientError::Connect(error)) => {
            let why = format!(
                "no broker answers on {} ({error}); start one with 'castra broker'",
                socket.display()
            );
            Failure::new(Exit::NoBroker, "no-broker", why)
        }
        Err(ClientError::Refused(reason)) if reason == "reserved-identity" => {
            let why = "reserved-identity: only the broker's user and root speak as the host";
            Failure::new(Exit::Refused, "reserved-identity", why)
        }
        Err(ClientError::Refused(reason)) => {
            let why = format!("{reason}: the broker gave no session; nothing was sent, try again");
            Failure::new(Exit::TryAgain, reason, why)
        }
        Err(error) => Failure::new(Exit::NoBroker, "no-broker", error.to_string()),
    };
    Err(failure)
}
