//! What a session may do, and what becomes of it when the operator changes that.
//!
//! ```text
//! a new policy ─▶ the claim is judged again ─┬ it holds ─▶ new rules; subscriptions that they do not let be are ended
//!                                            └ it does not ─▶ `identity-revoked`
//! ```
//!
//! Always holds: a session whose identity still holds goes on, and so does whatever it may still do. Owner: the session.

use super::Session;
use crate::core::end::End;
use crate::core::identity::Role;
use crate::core::policy::{Admitted, Claim, Policy, Rules};
use crate::core::refusal::Refusal;
use crate::core::signals::Signal;
use crate::core::topic::Pattern;
use crate::core::wire::subscribe::{refused_ack, unsubscribed};
use std::sync::Arc;
use tokio::sync::watch;

/// Who a session is, and what it may.
pub(super) struct Rights {
    /// How it was let in; judged again when the policy changes.
    claim: Claim,
    policy: watch::Receiver<Arc<Policy>>,
    pub role: Role,
    pub rules: Arc<Rules>,
}

impl Rights {
    pub fn new(claim: Claim, admitted: Admitted, policy: watch::Receiver<Arc<Policy>>) -> Self {
        Rights { claim, policy, role: admitted.role, rules: admitted.rules }
    }

    /// Whether there is a policy that it was not judged by.
    pub fn is_stale(&self) -> bool {
        self.policy.has_changed().unwrap_or(false)
    }

    /// Resolves when there is one.
    pub async fn changed(&mut self) {
        if self.policy.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn may_subscribe<'a>(&self, mut patterns: impl Iterator<Item = &'a Pattern>) -> Result<(), Refusal> {
        patterns.try_for_each(|pattern| self.rules.may_subscribe(self.role, &self.claim.name, pattern))
    }
}

impl Session<'_> {
    /// Whether all of these may be subscribed.
    pub(super) fn check_rights(&self, patterns: &[Pattern]) -> Result<(), Refusal> {
        self.rights.may_subscribe(patterns.iter())
    }

    /// Takes in a new policy.
    pub(super) fn take_policy(&mut self) -> Result<(), End> {
        let rights = &mut self.rights;
        let judged = rights.policy.borrow_and_update().judge(&rights.claim);
        let Admitted { identity, rules, .. } = judged.map_err(|denied| {
            tracing::info!(vm = %self.vm.name, session = self.id, %denied, "session: its identity holds no longer");
            End::IdentityRevoked
        })?;
        rights.rules = rules;
        if let Some(presence) = &self.presence {
            presence.standing().proved(identity);
        }
        for (sub, patterns) in self.subscribing.interests() {
            let Err(refusal) = self.rights.may_subscribe(patterns.iter()) else { continue };
            if self.subscribing.drop_lookup(&sub) {
                // It was not acked yet: this is its ack.
                self.output.own(|out| refused_ack(out, "subscribe", Some(&sub), &refusal));
            } else {
                self.signals.say(Signal::Unsubscribed, format_args!("'{sub}': {}", refusal.reason));
                self.drop_subscription(&sub);
                self.output.own(|out| unsubscribed(out, &sub, &refusal));
            }
        }
        self.check_memberships();
        Ok(())
    }
}
