//! Who may have a descriptor: connections, and the listeners that come and go with VMs.
//!
//! Always holds: connections and listeners together leave what the limits keep for journal, logs and status; a
//! listener takes a connection's place only where descriptors are scarce, and never more than half of them. Owner: the
//! lobby.

use crate::core::descriptors::raise_descriptors;
use crate::core::limits::Limits;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Room for one connection; the broker waits for whoever has one.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _alive: mpsc::Sender<()>,
}

/// All there are.
pub(super) struct Places {
    connections: Arc<Semaphore>,
    /// How many that are in all.
    most: usize,
    /// Descriptors that nobody else is promised.
    spare: Arc<Semaphore>,
}

impl Places {
    /// So many for connections; the rest of what this process may open is for listeners.
    pub fn new(connections: usize, limits: &Limits) -> Self {
        let promised = limits.reserved_descriptors + (limits.open_logs + connections) as u64;
        let spare = usize::try_from(raise_descriptors().saturating_sub(promised)).unwrap_or(usize::MAX);
        Places {
            connections: Arc::new(Semaphore::new(connections)),
            most: connections,
            spare: Arc::new(Semaphore::new(spare.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// The place of a connection, which holds `alive`, if there is one.
    pub fn free(&self, alive: &mpsc::Sender<()>) -> Option<Place> {
        let permit = self.connections.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: permit, _alive: alive.clone() })
    }

    /// Waits for the place of a connection, which holds `alive`.
    pub async fn connection(&self, alive: &mpsc::Sender<()>) -> Option<Place> {
        let permit = self.connections.clone().acquire_owned().await.ok()?;
        Some(Place { _permit: permit, _alive: alive.clone() })
    }

    /// Room for a listener, and for a connection that it accepted and that waits for a place; if there is any.
    pub fn listener(&self) -> Option<OwnedSemaphorePermit> {
        let spare = self.spare.clone().try_acquire_many_owned(2).ok();
        spare.or_else(|| {
            let is_half_free = self.connections.available_permits() > self.most / 2;
            self.connections.clone().try_acquire_many_owned(2).ok().filter(|_| is_half_free)
        })
    }
}
