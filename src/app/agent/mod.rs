//! `castra agent`: the guest's side.
//!
//! Owner: [`super::main`].

mod outbox;
mod publish;

use super::{Exit, Failure};
use crate::cli::AgentArgs;

pub fn run(args: AgentArgs, _json: &mut bool) -> Result<Exit, Failure> {
    Err(Failure::new(Exit::Usage, "usage", format!("{} is not served yet", args.vm)))
}
