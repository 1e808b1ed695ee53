//! How a VM stands, or the broker: the lines that a tail says beside the events.
//!
//! Always holds: it reads what `castra status` reads and never waits (invariant 8); what cannot be read is
//! said once and is no reason to stop; a line is said when something else than an age changed. Owner:
//! `mod.rs`.

use crate::app::status::look;
use crate::app::words::{age, list};
use crate::core::state_root::StateRoot;
use crate::core::status::State;
use crate::core::status_report::Report;

/// What a line is about; its ages aside.
#[derive(Debug, PartialEq, Eq)]
enum Stand {
    Unreadable,
    Broker { state: State, reachable: usize, known: usize, logs: Option<String> },
    Unknown { state: State },
    Vm { state: State, reachable: bool, sessions: u32, topics: Vec<String>, logs: Option<String> },
}

/// Knows what was said last.
pub struct Standing {
    vm: Option<String>,
    said: Option<Stand>,
    /// How far the logs have come, as the broker said last.
    pub logs_seq: u64,
}

impl Standing {
    /// Of this VM, or of the broker and all VMs.
    pub fn new(vm: Option<&str>) -> Self {
        // The host is no VM.
        let vm = vm.filter(|vm| *vm != "host").map(str::to_owned);
        Standing { vm, said: None, logs_seq: 0 }
    }

    /// Looks; what there is to say that was not said.
    pub fn look(&mut self, root: &StateRoot) -> Option<String> {
        let (stand, line) = match look(root) {
            Err(error) => {
                let why = error.message;
                let why = format!("how the broker is cannot be seen ({why}); the logs are read all the same");
                (Stand::Unreadable, why)
            }
            Ok(report) => {
                self.logs_seq = report.broker.journal.logs_seq;
                self.stand(&report)
            }
        };
        let new = self.said.as_ref() != Some(&stand);
        self.said = Some(stand);
        new.then_some(line)
    }

    fn stand(&self, report: &Report) -> (Stand, String) {
        let state = report.broker.state;
        let broker = format!("broker {}", state.as_str());
        let (journal, logs) = (&report.broker.journal, report.broker.logs_stalled.clone());
        let behind = logs.as_ref().map_or(String::new(), |why| {
            format!("; the logs end at {} of {}: {why}", journal.logs_seq, journal.head_seq)
        });
        let Some(name) = &self.vm else {
            let (reachable, known) = (report.vms.iter().filter(|vm| vm.reachable).count(), report.vms.len());
            let line = format!("{broker}, {reachable} of {known} VMs reachable{behind}");
            return (Stand::Broker { state, reachable, known, logs }, line);
        };
        let Some(vm) = report.vms.iter().find(|vm| vm.name == *name) else {
            let line = format!("{name}: not known to the broker ({broker}); 'castra status' lists the VMs");
            return (Stand::Unknown { state }, line);
        };
        let topics = vm.topics.clone();
        let reach = if vm.reachable { "reachable" } else { "not reachable" };
        let off = if state == State::Running { String::new() } else { format!(" ({broker})") };
        let sessions =
            if vm.sessions == 1 { "1 session".into() } else { format!("{} sessions", vm.sessions) };
        let publish = match vm.last_publish_age_ms {
            None => "never published".to_owned(),
            Some(ms) => format!("last publish {} ago", age(ms)),
        };
        let line =
            format!("{name}: {reach}{off}, {sessions}, subscribed to {}, {publish}{behind}", list(&topics));
        (Stand::Vm { state, reachable: vm.reachable, sessions: vm.sessions, topics, logs }, line)
    }
}
