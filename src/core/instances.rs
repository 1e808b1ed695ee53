//! A program in a guest has one session at a time: a new one ends the one before it.
//!
//! ```text
//! hello instance=a ─▶ enter ─▶ Place ──────────────────────────▶ dropped: nothing more is taken from this session
//!                       │        ▲ its `end` is cancelled
//! hello instance=a ─────┴────────┘ and waits for that, then ─▶ Place
//! ```
//!
//! A connection that its guest has given up may still bring what was under way in it, long after the guest has sent that
//! again over another one, and more: then its ids are known no longer, and it would be stored twice. Always holds: when
//! a session begins, nothing more is taken from the one of the same VM and instance before it. Owner: the bus; the door
//! enters, the session holds its place.

use super::identity::VmName;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

type Key = (VmName, Box<str>);

/// Who has a session.
#[derive(Default)]
pub struct Instances {
    running: Mutex<HashMap<Key, Turn>>,
}

#[derive(Clone, Default)]
struct Turn {
    end: CancellationToken,
    over: CancellationToken,
}

/// The turn of one session; over when this is dropped.
pub struct Place {
    instances: Arc<Instances>,
    key: Key,
    turn: Turn,
}

impl Instances {
    /// Ends the session of this instance that there is, if any, and takes its place once nothing more is taken from it.
    pub async fn enter(self: &Arc<Self>, vm: VmName, instance: &str) -> Place {
        let key = (vm, instance.into());
        loop {
            let before = match self.running.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone())
            {
                Entry::Occupied(before) => before.get().clone(),
                Entry::Vacant(free) => {
                    let turn = free.insert(Turn::default()).clone();
                    return Place { instances: self.clone(), key, turn };
                }
            };
            before.end.cancel();
            before.over.cancelled().await;
        }
    }
}

impl Place {
    /// Whether the session has to end.
    pub fn is_ended(&self) -> bool {
        self.turn.end.is_cancelled()
    }

    /// Resolves when the session has to end.
    pub async fn ended(&self) {
        self.turn.end.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.instances.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.turn.over.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[tokio::test]
    async fn however_many_come_one_has_its_turn() {
        let instances = Arc::<Instances>::default();
        let vm = VmName::parse("web").unwrap();
        let other = instances.enter(vm.clone(), "other").await;
        let (at_once, served) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (instances, vm, at_once, served) =
                    (instances.clone(), vm.clone(), at_once.clone(), served.clone());
                tokio::spawn(async move {
                    let place = instances.enter(vm, "a").await;
                    assert_eq!(at_once.fetch_add(1, SeqCst), 0);
                    tokio::task::yield_now().await;
                    if served.fetch_add(1, SeqCst) < 49 {
                        place.ended().await;
                        assert!(place.is_ended());
                    }
                    at_once.fetch_sub(1, SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(!other.is_ended());
        drop(other);
        assert!(instances.running.lock().unwrap().is_empty());
    }
}
