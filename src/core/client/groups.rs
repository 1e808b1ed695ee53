//! How groups stand, and where they go on.
//!
//! Always holds: what was changed is durable when it is said. Owner: whoever asks.

use super::Bus;
use super::error::Error;
use crate::core::follow::{Begin, place};
use crate::core::wire::group::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How a group stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub group: String,
    /// What it is.
    pub spec: Spec,
    /// Everything up to this seq is done.
    pub cursor: u64,
    /// Events of its topics that pass its filter, have not expired and are not done.
    pub lag: u64,
    /// There may be more: the broker has not counted them all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lag_at_least: bool,
    /// How many members it has.
    pub members: u64,
    /// Events that they hold.
    pub held: u64,
    /// Events that wait for a member, or behind one of their key.
    pub waiting: u64,
    /// Events that wait for the end of a delay.
    pub delayed: u64,
    /// Events that wait for their dead letter to be durable.
    pub dead: u64,
    /// Events that retention took before the group had them, since the broker started.
    #[serde(default)]
    pub expired_undelivered: u64,
    /// Why nothing is delivered, if so.
    pub stalled: Option<String>,
}

impl Bus {
    /// How a group stands; none when there is no such group.
    ///
    /// # Errors
    /// [`Error`]; `forbidden-topic` when its topics are not for this VM.
    pub async fn group(&self, group: &str) -> Result<Option<Group>, Error> {
        match self.ask("group", json!({"group": group})).await {
            Ok(said) => read(said).map(Some),
            Err(error) if error.code() == Some("unknown-group") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Everything up to this seq is done by a group; none when there is no such group.
    ///
    /// # Errors
    /// As [`Bus::group`].
    pub async fn cursor(&self, group: &str) -> Result<Option<u64>, Error> {
        Ok(self.group(group).await?.map(|group| group.cursor))
    }

    /// Has a group go on here; its cursor then. What members hold is forgotten, and so are failures.
    ///
    /// # Errors
    /// `unknown-group`, `seq-ahead`, `unknown-id` and what else the broker refuses.
    pub async fn seek(&self, group: &str, begin: Begin) -> Result<u64, Error> {
        let said = self.ask("group_seek", json!({"group": group, "from": place(&begin)})).await?;
        Ok(said["cursor"].as_u64().unwrap_or(0))
    }

    /// Removes a group, with what it knows; its members are told.
    ///
    /// # Errors
    /// `unknown-group` and what else the broker refuses.
    pub async fn remove_group(&self, group: &str) -> Result<(), Error> {
        self.ask("group_remove", json!({"group": group})).await.map(drop)
    }

    /// All groups that this VM may see, in the order of their names; 10,000 at the most.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn groups(&self) -> Result<Vec<Group>, Error> {
        let mut groups: Vec<Group> = Vec::new();
        loop {
            let after = groups.last().map(|group| group.group.clone());
            let (more, is_more) = self.groups_after(after.as_deref()).await?;
            let is_any = !more.is_empty();
            groups.extend(more);
            if !is_more || !is_any {
                return Ok(groups);
            }
        }
    }

    /// The groups behind this name, as many as fit an answer; whether there are others.
    async fn groups_after(&self, after: Option<&str>) -> Result<(Vec<Group>, bool), Error> {
        let mut said = self.ask("groups", json!({"after": after})).await?;
        let is_more = said["more"].as_bool().unwrap_or(false);
        Ok((read(said["groups"].take())?, is_more))
    }
}

fn read<T: serde::de::DeserializeOwned>(said: Value) -> Result<T, Error> {
    serde_json::from_value(said)
        .map_err(|e| Error::refused("bad-answer", format!("what the broker answered: {e}")))
}
