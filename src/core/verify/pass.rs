//! One pass over a journal, past its logs.
//!
//! Always holds: every event is met by every open log that it belongs to, in order, once; files are open all
//! the while, so what retention and rotation do meanwhile changes nothing. Nothing is written here. Owner:
//! `verify/mod.rs`, and `repair.rs`, whose logs hand out what is to be kept.

use super::known::Known;
use super::lines::{Lines, open_log};
use super::log::{Bounds, Keep, LogCheck, SHARED};
use super::{VerifyError, failed};
use crate::core::descriptors::raise_descriptors;
use crate::core::event::Event;
use crate::core::journal::held::Held;
use crate::core::journal::inspect::Inspection;
use crate::core::journal::{Damage, Found};
use crate::core::limits::{FINDINGS_SHOWN, LOG_FILES};
use crate::core::state_root::StateRoot;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Memory for the lines of all logs that are read at once, in bytes; each log has a page at least.
const LINES_BYTES: usize = 64 * 1024 * 1024;
/// Descriptors that are not for logs.
const SPARED: u64 = 64;

/// The journal, held, and what it can say about logs.
pub struct Pass {
    root: StateRoot,
    /// The journal.
    pub inspection: Inspection,
    bounds: Bounds,
    descriptors: u64,
    /// The names of all logs, if VMs without one are looked for …
    names: HashSet<Vec<u8>>,
    /// … and those that have events and none; one more than are shown at most.
    without_log: BTreeSet<Vec<u8>>,
}

impl Pass {
    /// Opens all segments.
    pub fn open(root: &StateRoot, journal: u128, known: &Known) -> Result<Self, VerifyError> {
        let descriptors = raise_descriptors();
        let held = Held::open(&root.journal()).map_err(failed(format!(
            "{} (with its {descriptors} open files at most)",
            root.journal().display()
        )))?;
        let inspection = Inspection::open(held, journal, known.stored)?;
        let first = inspection.first_seq();
        let live = known.running.is_some();
        let whole = known.logs.unwrap_or(0).max(first - 1);
        let durable = inspection.durable_seq().max(known.stored);
        let bounds = Bounds {
            first,
            head: inspection.head_seq(),
            whole,
            durable: durable.max(whole),
            newest: if live { durable } else { u64::MAX },
            live,
            lost: Vec::new(),
        };
        let (root, names, without_log) = (root.clone(), HashSet::new(), BTreeSet::new());
        Ok(Pass { root, inspection, bounds, descriptors, names, without_log })
    }

    /// Looks for VMs that have events and none of these logs, the next time the journal is read.
    pub fn look_for_logs_beside(&mut self, names: &[String]) {
        self.names = names.iter().map(|name| name.clone().into_bytes()).collect();
    }

    /// The VMs that have events in the journal and no log, for people; `None` when there are none.
    pub fn without_log(&mut self) -> Result<Option<String>, VerifyError> {
        let mut gone = Vec::new();
        for name in std::mem::take(&mut self.without_log) {
            let name = String::from_utf8_lossy(&name).into_owned();
            // A listing may have missed it while it was rotated.
            gone.extend(self.open_log(&name, None, 1)?.is_none().then_some(name));
        }
        let more = if gone.len() > FINDINGS_SHOWN { " and others" } else { "" };
        gone.truncate(FINDINGS_SHOWN);
        Ok((!gone.is_empty()).then(|| format!("{}{more}", gone.join(", "))))
    }

    /// How many logs may be open at once.
    pub fn at_once(&self) -> usize {
        let used = self.inspection.segments().len() as u64 + SPARED;
        // All its files, and one more that it may be written to.
        let each = u64::from(LOG_FILES) + 2;
        usize::try_from(self.descriptors.saturating_sub(used) / each).unwrap_or(usize::MAX).max(1)
    }

    /// Opens the log of that name, one of so many; `None` when it is gone, but for the one of all events: what
    /// that lacks is told by the journal.
    pub fn open_log(
        &self,
        name: &str,
        keep: Option<Box<Keep>>,
        of: usize,
    ) -> Result<Option<LogCheck>, VerifyError> {
        let path = self.root.bus_logs().join(format!("{name}.log"));
        let files = open_log(&path).map_err(failed(path.display()))?;
        let step = (LINES_BYTES / of.max(1)).clamp(4096, 256 * 1024);
        let mut lines = Lines::new(files, step);
        if self.bounds.is_unclean() {
            lines.end_at(self.bounds.whole).map_err(failed(path.display()))?;
        }
        Ok((lines.files() > 0 || name == SHARED).then(|| LogCheck::new(name.to_owned(), lines, keep)))
    }

    /// Reads the journal once, past these logs; what of it is lost.
    pub fn read(
        &mut self,
        checks: &mut [LogCheck],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Damage>, VerifyError> {
        let Pass { inspection, bounds, names, without_log, .. } = self;
        bounds.lost.clear();
        let index = checks.iter().enumerate().map(|(i, check)| (check.name.clone().into_bytes(), i));
        let index: HashMap<Vec<u8>, usize> = index.collect();
        let shared = index.get(SHARED.as_bytes()).copied();
        let (mut lost, mut bytes) = (Vec::new(), 0);
        let mut each = |found: Found<'_>| match found {
            Found::Event(event) if event.seq <= bounds.newest => {
                if let Some(shared) = shared {
                    checks[shared].meet(event.seq, event.line, true, bounds)?;
                }
                for (name, must) in logs_with(&event) {
                    if let Some(i) = index.get(name).filter(|i| Some(**i) != shared) {
                        checks[*i].meet(event.seq, event.line, must, bounds)?;
                    } else if must
                        && event.seq <= bounds.whole
                        && !names.is_empty()
                        && without_log.len() <= FINDINGS_SHOWN
                        && !names.contains(name)
                        && !without_log.contains(name)
                    {
                        without_log.insert(name.to_vec());
                    }
                }
                Ok(())
            }
            Found::Event(_) | Found::Note(..) | Found::Ids(..) => Ok(()),
            Found::Lost(damage) => {
                bounds.lost.push(damage.seqs.clone());
                lost.push(damage);
                Ok(())
            }
            Found::Bytes(more) => {
                bytes += more;
                progress(bytes);
                Ok(())
            }
        };
        inspection.read(&mut each).map_err(failed("journal"))?;
        for check in checks {
            check.finish(bounds).map_err(failed(&check.name))?;
        }
        Ok(lost)
    }
}

/// The logs of VMs that an event stands in: its VM's, which must have it, and the mailbox's, which may.
fn logs_with<'a>(event: &Event<'a>) -> impl Iterator<Item = (&'a [u8], bool)> {
    let reserved = |name: &[u8]| name.eq_ignore_ascii_case(b"host") || name.eq_ignore_ascii_case(b"bus");
    let (vm, mailbox) = (event.vm(), event.mailbox());
    let mailbox = mailbox.filter(|name| *name != vm && !reserved(name));
    std::iter::once((vm, true)).chain(mailbox.map(|name| (name, false)))
}
