//! What is asked of consumer groups by whoever is a member or not, and the answers.
//!
//! Always holds: whatever is wrong with a frame is a [`Refusal`]. Pure. Owner: `session/grouping.rs`.

use super::frame::{framed, refusal};
use super::group::{Join, check_name};
use super::subscribe::{From, Subscribed, parse_from, parse_subscribe, refuse_state};
use crate::core::refusal::Refusal;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// What is asked of groups, by whoever is a member or not.
#[derive(Debug)]
pub enum Manage {
    /// Those behind this name, or from the first on.
    List(Option<String>),
    /// How this one stands.
    Show(Box<str>),
    /// It is to begin, if it is not there.
    Create(Box<Join>),
    /// It is to go on somewhere else.
    Seek(Box<str>, From),
    /// It is to be no more.
    Remove(Box<str>),
}

impl Manage {
    /// The type of its frame.
    pub fn kind(&self) -> &'static str {
        match self {
            Manage::List(_) => "groups",
            Manage::Show(_) => "group",
            Manage::Create(_) => "group_create",
            Manage::Seek(..) => "group_seek",
            Manage::Remove(_) => "group_remove",
        }
    }

    /// The group that it is about.
    pub fn group(&self) -> &str {
        match self {
            Manage::List(_) => "",
            Manage::Show(group) | Manage::Seek(group, _) | Manage::Remove(group) => group,
            Manage::Create(wish) => &wish.group,
        }
    }
}

#[derive(Deserialize)]
struct Asked<'a> {
    group: Option<String>,
    after: Option<String>,
    #[serde(borrow)]
    from: Option<&'a RawValue>,
}

/// Reads the body of a frame of this type about groups.
///
/// # Errors
/// `bad-field`, `duplicate-field`, `bad-group`, `bad-from`, and those of a `subscribe`.
pub fn parse_manage(body: &str, kind: &str) -> Result<Manage, Refusal> {
    let asked: Asked<'_> = serde_json::from_str(body).map_err(|e| refusal(&e))?;
    let group = || match &asked.group {
        Some(group) => check_name(group),
        None => Err(Refusal::new("bad-field", format!("{kind} has a 'group'"))),
    };
    match kind {
        "groups" => Ok(Manage::List(asked.after)),
        "group" => group().map(Manage::Show),
        "group_remove" => group().map(Manage::Remove),
        "group_seek" => match asked.from {
            Some(from) => {
                let from = parse_from(from)?;
                refuse_state(&from)?;
                Ok(Manage::Seek(group()?, from))
            }
            None => Err(Refusal::new("bad-from", "where the group is to go on: 'from'")),
        },
        _ => {
            group()?;
            match parse_subscribe(body)? {
                Subscribed::Group(wish) => Ok(Manage::Create(wish)),
                Subscribed::Alone(_) => Err(Refusal::new("bad-field", format!("{kind} has a 'group'"))),
            }
        }
    }
}

/// Appends the answer to a frame about groups: the fields of `report` beside the usual ones.
pub fn report(out: &mut Vec<u8>, ack: &str, report: &Value) {
    framed(out, |out| {
        out.extend_from_slice(format!("{{\"type\":\"ack\",\"ack\":\"{ack}\",\"status\":\"ok\",").as_bytes());
        // An object that is not empty.
        out.extend_from_slice(report.to_string().trim_start_matches('{').as_bytes());
    });
}
