//! Decides which sockets are served, of what was seen and what is served now.
//!
//! ```text
//! found (castra.toml's own, and what its globs match) ─┐
//! standing (what is served, and whether it is intact) ─┼─▶ close, open, problems ─▶ mod.rs does it, and says what is new
//! the most that may be                                ─┘
//! ```
//!
//! Always holds: a VM has one socket at the most and a socket one VM; castra.toml's own goes before what a glob matches,
//! then a path without links before one with them, then what is served before what is new; what is served, intact and
//! goes before the others is left alone; whatever is found and not served has a problem that says why. Pure. Owner:
//! `mod.rs`.

use crate::core::identity::VmName;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;

/// What says that there is such a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Its entry in castra.toml.
    Entry,
    /// A glob of castra.toml.
    Glob,
}

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// A socket.
    Socket,
    /// Nothing, in a folder that is there.
    Absent,
    /// Not even its folder.
    FolderAbsent,
    /// Something else.
    Other,
    /// It cannot be told: a link of this uid is on the way, which is not followed.
    Astray(u32),
}

/// A path where a VM's socket is, or may come to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The VM's name, if it is one.
    pub vm: String,
    /// Who says so.
    pub by: By,
    /// As castra.toml or its glob has it.
    pub path: PathBuf,
    /// So many links are on the way: none where `path` is the socket's own.
    pub links: usize,
    /// Where the VMM connects to: links in place of the socket itself are followed.
    pub listen: PathBuf,
    /// Where the broker listens, without any link on the way: two paths with one place are one socket.
    pub place: PathBuf,
    /// What is at `path`.
    pub is: Is,
    /// The uid that owns it, or its folder.
    pub owner: u32,
}

/// A socket that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its place.
    pub place: PathBuf,
    /// The uid it was given to.
    pub owner: u32,
    /// The file is there, and it is ours.
    pub is_intact: bool,
}

/// What is not as it should be. Each is said once, until it is over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// The folder of a socket is not there yet.
    NoFolder(PathBuf),
    /// A folder cannot be read.
    Unreadable(PathBuf, String),
    /// A glob is none.
    BadGlob(PathBuf, &'static str),
    /// It matches a glob, and `*` stands for no name of a VM.
    BadName(PathBuf),
    /// It is not a socket.
    NotSocket(PathBuf),
    /// A link of this uid is on the way to it.
    Stranger(PathBuf, u32),
    /// So many bytes is the path of the broker's socket, and so many are possible.
    TooLong(PathBuf, usize, usize),
    /// Another path has this VM's name.
    NameTaken(PathBuf, VmName),
    /// It is the socket of this other VM.
    PlaceTaken(PathBuf, VmName),
    /// More sockets than may be served: so many.
    TooMany(usize),
    /// The broker's socket cannot be made.
    NotOpened(PathBuf, String),
    /// There is no descriptor left for it.
    NoDescriptors,
}

impl Problem {
    /// Whether it is nothing to worry about.
    pub fn is_usual(&self) -> bool {
        matches!(self, Problem::NoFolder(_))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoFolder(path) => write!(f, "{}: its folder is not there yet", path.display()),
            Problem::Unreadable(path, error) => write!(f, "{}: {error}", path.display()),
            Problem::BadGlob(path, why) => write!(f, "{}: {why}; it matches nothing", path.display()),
            Problem::BadName(path) => {
                write!(f, "{}: what '*' stands for is no name of a VM; it is left alone", path.display())
            }
            Problem::NotSocket(path) => write!(f, "{}: it is no socket; it is left alone", path.display()),
            Problem::Stranger(path, uid) => write!(
                f,
                "{}: a link of uid {uid} is on the way; only links of root and of the broker's own uid are followed, so \
                 it is not served",
                path.display()
            ),
            Problem::TooLong(path, bytes, most) => write!(
                f,
                "{}: the broker's socket beside it would have a path of {bytes} bytes, and {most} are the most; \
                 use a shorter folder, or a link to it",
                path.display()
            ),
            Problem::NameTaken(path, vm) => {
                write!(f, "{}: VM {vm} has a socket already; this one is not served", path.display())
            }
            Problem::PlaceTaken(path, vm) => {
                write!(f, "{}: this is the socket of VM {vm}; it is served as that", path.display())
            }
            Problem::TooMany(most) => write!(f, "more than {most} sockets; the rest is not served"),
            Problem::NotOpened(path, error) => {
                write!(f, "{}: the broker's socket beside it cannot be made: {error}", path.display())
            }
            Problem::NoDescriptors => {
                f.write_str("no descriptors are left for more sockets (ulimit -n, LimitNOFILE=); tried again")
            }
        }
    }
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// These are served no longer. To be done first.
    pub close: Vec<VmName>,
    /// These are served from here on, also in place of the same that is not intact.
    pub open: BTreeMap<VmName, Found>,
    /// All that is not as it should be.
    pub problems: BTreeSet<Problem>,
}

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Sockets that are served.
    pub sockets: usize,
    /// The path of one, in bytes.
    pub path_bytes: usize,
}

/// Decides.
pub fn plan(found: Vec<Found>, served: &BTreeMap<VmName, Standing>, most: Most) -> Plan {
    let mut plan = Plan::default();
    let mut named: Vec<(VmName, Found)> = Vec::with_capacity(found.len());
    for found in found {
        match VmName::parse(&found.vm) {
            Ok(vm) if !vm.is_reserved() => named.push((vm, found)),
            _ => drop(plan.problems.insert(Problem::BadName(found.path))),
        }
    }
    let is_served = |vm: &VmName, found: &Found| served.get(vm).is_some_and(|s| s.place == found.place);
    named
        .sort_by_cached_key(|(vm, found)| (found.by, found.links, !is_served(vm, found), found.path.clone()));
    let mut chosen: BTreeMap<VmName, Found> = BTreeMap::new();
    let mut places: HashMap<PathBuf, VmName> = HashMap::new();
    let mut entries: HashMap<VmName, PathBuf> = HashMap::new();
    let mut left = Vec::new();
    for (vm, found) in named {
        let problem = problem_of(&found, most.path_bytes);
        // What castra.toml says of a VM holds also while that cannot be served.
        let is_named =
            entries.get(&vm).is_some_and(|place| *place != found.place) || chosen.contains_key(&vm);
        if found.by == By::Entry && !is_named {
            entries.insert(vm.clone(), found.place.clone());
        }
        if let Some(problem) = problem {
            plan.problems.extend(problem);
        } else if is_named || places.contains_key(&found.place) || chosen.len() >= most.sockets {
            left.push((vm, found));
        } else {
            places.insert(found.place.clone(), vm.clone());
            chosen.insert(vm, found);
        }
    }
    // Why not, by what came of it all: so it is the same whatever was served before.
    for (vm, found) in left {
        let other = entries.get(&vm).or(chosen.get(&vm).map(|chosen| &chosen.place));
        let owner = places.get(&found.place);
        plan.problems.extend(if other.is_some_and(|place| *place != found.place) {
            Some(Problem::NameTaken(found.path, vm))
        } else {
            match owner {
                Some(owner) if *owner != vm => Some(Problem::PlaceTaken(found.path, owner.clone())),
                Some(_) => None,
                None => Some(Problem::TooMany(most.sockets)),
            }
        });
    }
    plan.close = served
        .iter()
        .filter(|(vm, standing)| chosen.get(*vm).is_none_or(|found| found.place != standing.place))
        .map(|(vm, _)| vm.clone())
        .collect();
    chosen.retain(|vm, found| {
        served.get(vm).is_none_or(|s| s.place != found.place || !s.is_intact || s.owner != found.owner)
    });
    plan.open = chosen;
    plan
}

/// Why it is not served by itself: `Some(None)` is a reason that needs no word.
fn problem_of(found: &Found, most: usize) -> Option<Option<Problem>> {
    let bytes = found.listen.as_os_str().len();
    match found.is {
        Is::Other => Some(Some(Problem::NotSocket(found.path.clone()))),
        Is::Astray(uid) => Some(Some(Problem::Stranger(found.path.clone(), uid))),
        Is::Absent | Is::FolderAbsent if found.by != By::Entry => Some(None),
        Is::FolderAbsent => Some(Some(Problem::NoFolder(found.path.clone()))),
        Is::Socket | Is::Absent if bytes > most => {
            Some(Some(Problem::TooLong(found.path.clone(), bytes, most)))
        }
        Is::Socket | Is::Absent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds(sockets: usize) -> Most {
        Most { sockets, path_bytes: 103 }
    }

    fn name(text: &str) -> VmName {
        VmName::parse(text).unwrap()
    }

    fn found(vm: &str, by: By, path: &str, place: &str, is: Is) -> Found {
        let links = usize::from(path != place);
        let path = PathBuf::from(path);
        Found { vm: vm.into(), by, links, listen: path.clone(), path, place: place.into(), is, owner: 0 }
    }

    /// What is served once the plan is done.
    fn done(mut served: BTreeMap<VmName, Standing>, plan: &Plan) -> BTreeMap<VmName, Standing> {
        plan.close.iter().for_each(|vm| drop(served.remove(vm)));
        for (vm, found) in &plan.open {
            let standing = Standing { place: found.place.clone(), owner: found.owner, is_intact: true };
            served.insert(vm.clone(), standing);
        }
        served
    }

    fn any_found() -> impl Strategy<Value = Found> {
        let vm = prop::sample::select(vec!["a", "b", "c", "HOST", "no name", "d"]);
        let by = prop::sample::select(vec![By::Entry, By::Glob]);
        let is = prop::sample::select(vec![
            Is::Socket,
            Is::Socket,
            Is::Socket,
            Is::Absent,
            Is::FolderAbsent,
            Is::Other,
            Is::Astray(7),
        ]);
        (vm, by, 0..3usize, 0..5u8, prop::bool::weighted(0.1), is, 0..2u32).prop_map(
            |(vm, by, links, at, is_long, is, owner)| {
                let long = if is_long { "x".repeat(100) } else { String::new() };
                let path = format!("/{by:?}/{links}/{vm}/{at}{long}");
                Found { owner, links, ..found(vm, by, &path, &format!("/{at}{long}"), is) }
            },
        )
    }

    proptest! {
        #[test]
        fn a_plan_comes_to_rest_and_leaves_alone_what_is_well(
            looks in prop::collection::vec(
                (prop::collection::vec(any_found(), 0..8), prop::collection::btree_set(0..6usize, 0..3)), 1..6,
            ),
            most in 0..5usize,
        ) {
            let mut served = BTreeMap::<VmName, Standing>::new();
            for (mut seen, broken) in looks {
                // castra.toml has a VM once.
                let mut entries = BTreeSet::new();
                seen.retain(|f| f.by > By::Entry || entries.insert(f.vm.clone()));
                let mut i = 0;
                served.values_mut().for_each(|s| { s.is_intact = !broken.contains(&i); i += 1; });
                let before = served.clone();
                let first = plan(seen.clone(), &before, bounds(most));
                served = done(before.clone(), &first);
                // A VM has one socket, a socket one VM, and no more than may be.
                let places: BTreeSet<_> = served.values().map(|s| &s.place).collect();
                prop_assert_eq!(places.len(), served.len());
                prop_assert!(served.len() <= most);
                // The same again changes nothing and says the same.
                let again = plan(seen.clone(), &served, bounds(most));
                prop_assert_eq!((&again.close, &again.open), (&Vec::new(), &BTreeMap::new()), "{:?}", again);
                prop_assert_eq!(&again.problems, &first.problems);
                for (vm, standing) in &served {
                    // Everything served was found there, and can be.
                    let of: Vec<_> = seen.iter()
                        .filter(|f| f.vm == vm.as_str() && f.place == standing.place).collect();
                    prop_assert!(of.iter().any(|f| f.is == Is::Socket || f.is == Is::Absent && f.by == By::Entry));
                    prop_assert!(!vm.is_reserved());
                    // castra.toml's own goes first.
                    let own = seen.iter().any(|f| f.by == By::Entry && f.vm == vm.as_str());
                    prop_assert!(!own || of.iter().any(|f| f.by == By::Entry));
                    if let Some(was) = before.get(vm).filter(|was| was.place == standing.place && was.is_intact) {
                        let touched = first.open.contains_key(vm) && was.owner == standing.owner;
                        prop_assert!(!touched && !first.close.contains(vm), "{vm} was well");
                    }
                }
                // A link has the place of a socket only where that one's VM has another.
                for f in seen.iter().filter(|f| f.links == 0 && f.is == Is::Socket) {
                    let has = |vm: &VmName, by: By| seen.iter().any(|o| {
                        o.vm == vm.as_str() && o.place == f.place && o.by <= by && o.links == 0
                    });
                    let Some((holder, _)) = served.iter().find(|(_, s)| s.place == f.place) else { continue };
                    let Some(vm) = VmName::parse(&f.vm).ok().filter(|vm| !vm.is_reserved()) else { continue };
                    let is_elsewhere = served.get(&vm).is_some_and(|s| s.place != f.place)
                        || seen.iter().any(|o| o.vm == f.vm && o.by == By::Entry && o.place != f.place);
                    let goes_before = seen.iter().any(|o| {
                        o.vm == holder.as_str() && o.place == f.place && o.by < f.by
                    });
                    prop_assert!(has(holder, f.by) || is_elsewhere || goes_before, "{f:?} {holder}");
                }
                // Whatever is a socket is served, or somebody is told why not.
                for f in seen.iter().filter(|f| f.is == Is::Socket) {
                    let is_served = VmName::parse(&f.vm).ok().and_then(|vm| served.get(&vm)).is_some_and(|s| s.place == f.place);
                    let is_said = first.problems.iter().any(|p| match p {
                        Problem::BadName(path) | Problem::TooLong(path, ..)
                        | Problem::NameTaken(path, _) | Problem::PlaceTaken(path, _) => *path == f.path,
                        Problem::TooMany(_) => true,
                        _ => false,
                    });
                    prop_assert!(is_served || is_said, "{f:?} {first:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_stays_and_the_operators_word_goes_first() {
        let glob = |path, place| found("web", By::Glob, path, place, Is::Socket);
        let first = plan(vec![glob("/b", "/b")], &BTreeMap::new(), bounds(9));
        let served = done(BTreeMap::new(), &first);
        let second = plan(vec![glob("/a", "/a"), glob("/b", "/b")], &served, bounds(9));
        let taken = Problem::NameTaken("/a".into(), name("web"));
        assert_eq!(second, Plan { problems: [taken].into(), ..Plan::default() });
        let entry = found("web", By::Entry, "/c", "/c", Is::FolderAbsent);
        let third = plan(vec![glob("/b", "/b"), entry], &served, bounds(9));
        assert_eq!((&third.close, third.open.len(), third.problems.len()), (&vec![name("web")], 0, 2));
    }

    #[test]
    fn a_link_to_anothers_socket_takes_nothing() {
        for by in [By::Entry, By::Glob] {
            let own = found("web", by, "/w", "/w", Is::Socket);
            let link = found("evil", by, "/e", "/w", Is::Socket);
            // Also when it was there first.
            let first = plan(vec![link.clone()], &BTreeMap::new(), bounds(9));
            let served = done(BTreeMap::new(), &first);
            assert!(served.contains_key(&name("evil")));
            let plan = plan(vec![link, own.clone()], &served, bounds(9));
            assert_eq!((plan.close, plan.open), (vec![name("evil")], [(name("web"), own)].into()));
            assert_eq!(plan.problems, [Problem::PlaceTaken("/e".into(), name("web"))].into());
        }
    }
}
