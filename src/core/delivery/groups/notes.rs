//! What the journal keeps of groups: what each is, and what changes.
//!
//! ```text
//! … changes | SnapshotBegin, a part for each group, SnapshotEnd | changes …
//!             └ where a start begins to read
//! ```
//!
//! Always holds: the records from a whole snapshot on, taken in their order, make the groups as they were; a snapshot
//! without its end changes nothing. Pure. Owner: [`super::Groups`].

use crate::core::delivery::group::progress::{Change, Saved};
use crate::core::journal::Class;
use crate::core::wire::group::Spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub group: Box<str>,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// It is this; everything through the cursor is done.
    Begins {
        spec: Spec,
        cursor: u64,
        /// The VM whose session began it.
        #[serde(default)]
        by: Box<str>,
        /// In the ids of its letters.
        #[serde(default)]
        life: u64,
    },
    /// It went elsewhere, and has letters of other ids.
    Life(u64),
    /// What became otherwise.
    Changed(Change),
    /// It was removed.
    Gone(bool),
}

impl Record {
    /// As it stands in the journal.
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers: there is nothing that could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A group as records make it.
#[derive(Debug)]
pub(super) struct Known {
    pub spec: Spec,
    pub by: Box<str>,
    pub life: u64,
    pub saved: Saved,
}

/// Groups as records make them.
#[derive(Debug, Default)]
pub struct Replay {
    groups: BTreeMap<Box<str>, Known>,
    /// Of a snapshot whose end did not come yet.
    staged: Option<BTreeMap<Box<str>, Known>>,
    /// There was a record.
    pub is_any: bool,
    /// Records that were not understood.
    pub(super) unknown: u64,
}

impl Replay {
    /// Takes the next record.
    pub fn take(&mut self, class: Class, body: &[u8]) {
        self.is_any = true;
        match class {
            Class::SnapshotBegin => self.staged = Some(BTreeMap::new()),
            Class::SnapshotEnd => {
                if let Some(staged) = self.staged.take() {
                    self.groups = staged;
                }
            }
            Class::SnapshotPart | Class::Change => match serde_json::from_slice(body) {
                Ok(record) => self.apply(class, record),
                Err(_) => self.unknown += 1,
            },
        }
    }

    fn apply(&mut self, class: Class, Record { group, what }: Record) {
        let groups = match (class, &mut self.staged) {
            (Class::SnapshotPart, Some(staged)) => staged,
            _ => &mut self.groups,
        };
        match what {
            What::Begins { spec, cursor, by, life } => {
                groups.insert(group, Known { spec, by, life, saved: Saved::new(cursor) });
            }
            What::Life(life) => match groups.get_mut(&group) {
                Some(known) => known.life = life,
                None => self.unknown += 1,
            },
            What::Gone(_) => drop(groups.remove(&group)),
            What::Changed(change) => match groups.get_mut(&group) {
                Some(known) => known.saved.apply(change),
                None => self.unknown += 1,
            },
        }
    }

    /// All of them.
    pub(super) fn into_groups(self) -> BTreeMap<Box<str>, Known> {
        self.groups
    }
}
