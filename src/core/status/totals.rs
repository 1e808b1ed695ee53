//! All sessions of all VMs in a few numbers.
//!
//! Always holds: no session is asked (invariant 8), and no list is made; a VM is looked at for as long as adding up its
//! sessions takes. Pure. Owner: [`super::VmTable`]; the metrics read it.

use super::{Vm, VmTable};
use crate::core::standing::Totals;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

impl VmTable {
    /// All of them together, while `head_seq` is the newest event.
    pub fn totals(&self, head_seq: u64) -> Totals {
        let vms = self.vms.read().unwrap_or_else(PoisonError::into_inner);
        let mut totals = Totals { vms: vms.len() as u64, ..Totals::default() };
        for vm in vms.values().chain([&self.host]) {
            vm.sessions().iter().for_each(|session| totals.add(session, head_seq));
            totals.in_flight += vm.in_flight.load(Relaxed).max(0) as u64;
        }
        totals
    }

    /// How many sessions read the event `seq` or an older one for a subscription that is behind.
    pub fn behind(&self, seq: u64) -> u64 {
        let vms = self.vms.read().unwrap_or_else(PoisonError::into_inner);
        let of = |vm: &Arc<Vm>| vm.sessions().iter().filter(|session| session.is_behind(seq)).count() as u64;
        vms.values().chain([&self.host]).map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::identity::VmName;

    #[test]
    fn the_host_has_sessions_and_is_no_vm() {
        let table = VmTable::new(9);
        let name = |text| VmName::parse(text).unwrap();
        let (a, b) = (table.enter(&name("a"), 1).unwrap(), table.enter(&name("b"), 1).unwrap());
        let (host, idle) = (table.host(), table.enter(&name("idle"), 1).unwrap());
        let sessions = [&a, &a, &b, &host].map(|vm| vm.open_session(9).unwrap());
        sessions.iter().for_each(|session| session.standing().queued(2));
        b.published(3, 1);
        host.published(4, 1);
        host.answered(2);
        let totals = table.totals(0);
        assert_eq!((totals.vms, totals.sessions, totals.queued, totals.in_flight), (3, 4, 8, 5));
        drop((sessions, idle));
        assert_eq!((table.totals(0).sessions, table.totals(0).queued), (0, 0));
    }
}
