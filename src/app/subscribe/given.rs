//! What `castra bus subscribe` was asked for: which broker, which topics, from where.
//!
//! Always holds: what cannot be understood is refused before a broker is asked. Owner: `mod.rs`.

use crate::app::failure::{Exit, Failure};
use crate::app::{given, host};
use crate::cli::SubscribeArgs;
use crate::core::client::{Client, ClientError, Target};
use crate::core::follow::{Follow, Times, may_pass};
use crate::core::state_root::StateRoot;
use std::io;

/// A subscription, and in whose name.
pub struct Given<'a> {
    /// What is followed.
    pub follow: Follow,
    /// Where the host's broker is; a guest knows none.
    root: Option<&'a StateRoot>,
}

impl<'a> Given<'a> {
    /// Reads the arguments.
    ///
    /// # Errors
    /// One of them makes no sense.
    pub fn new(root: &'a StateRoot, args: &SubscribeArgs) -> Result<Self, Failure> {
        let mut patterns =
            args.patterns.iter().map(|text| given::pattern(text)).collect::<Result<Vec<_>, _>>()?;
        if patterns.is_empty() {
            patterns.push(given::pattern(">")?);
        }
        let begin = given::begin("--from", &args.from, args.group.is_some())?;
        let (target, hello, root) = match (&args.broker, &args.vm) {
            (Some(broker), Some(vm)) => {
                let target: Target = broker
                    .parse()
                    .map_err(|e| Failure::new(Exit::Usage, "usage", format!("--broker {broker:?}: {e}")))?;
                let vm = given::vm_name(vm)?;
                (target, format!("hello vm:{vm} capabilities=bus-v1"), None)
            }
            _ => (Target::Unix(root.socket()), host::HELLO.to_owned(), Some(root)),
        };
        let hello = format!("{hello},heartbeat");
        Ok(Given { follow: Follow { target, hello, patterns, begin, times: Times::default() }, root })
    }

    /// The first session.
    ///
    /// # Errors
    /// There is none.
    pub async fn connect(&self) -> Result<Client, Failure> {
        self.check()?;
        self.follow.connect().await.map_err(|error| self.no_session(error))
    }

    /// Whether there can be a broker.
    ///
    /// # Errors
    /// There cannot.
    pub fn check(&self) -> Result<(), Failure> {
        self.root.map_or(Ok(()), host::check)
    }

    /// Why there is no session.
    pub fn no_session(&self, error: ClientError) -> Failure {
        let (at, may_pass) = (&self.follow.target, may_pass(&error));
        match (error, self.root) {
            (ClientError::Closed(reason), _) => {
                let why = format!("{reason}: the broker on {at} closed the session at once; try again");
                Failure::new(Exit::TryAgain, reason, why)
            }
            (error, Some(root)) => host::no_session(root, error),
            (ClientError::Connect(error), None) if error.kind() == io::ErrorKind::PermissionDenied => {
                let why = format!("{at}: {error}; run this as a user who may use that socket");
                Failure::new(Exit::Refused, "permission-denied", why)
            }
            (ClientError::Connect(error), None) => {
                let why =
                    format!("no broker answers on {at} ({error}); is that its address, and does it run?");
                Failure::new(Exit::NoBroker, "no-broker", why)
            }
            (ClientError::Refused(reason), None) if may_pass => {
                let why = format!("{reason}: the broker on {at} gave no session; try again");
                Failure::new(Exit::TryAgain, reason, why)
            }
            (ClientError::Refused(reason), None) => {
                let why =
                    format!("{reason}: the broker on {at} gives no session under this name; --vm says which");
                Failure::new(Exit::Refused, reason, why)
            }
            (error, None) => {
                let why = format!("{at}: {error}; is that the broker's address?");
                Failure::new(Exit::NoBroker, "no-broker", why)
            }
        }
    }
}
