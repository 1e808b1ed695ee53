//! Numbers that differ from call to call, from process to process and between copies of one machine.
//!
//! Always holds: asking never waits. A guest that has just booted may have no entropy for minutes, and its programs
//! publish all the same: whoever asks the kernel for numbers fit for secrets waits there. So none of these may be a
//! secret: they spread waits, and tell one source of ids from another. Owner: whoever asks.

use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

/// A number of which all values are equally likely, and nothing that somebody must not guess.
pub fn chance() -> u64 {
    // The keys are the kernel's, which std takes without a wait, and others at each call; the time tells a machine that
    // goes on from a copy of it.
    RandomState::new().hash_one(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_is_another() {
        let threads: Vec<_> =
            (0..4).map(|_| std::thread::spawn(|| (0..1000).map(|_| chance()).collect::<Vec<_>>())).collect();
        let all: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 4000);
        for bit in 0..64 {
            let ones = all.iter().filter(|value| *value >> bit & 1 == 1).count();
            assert!((1700..2300).contains(&ones), "bit {bit} is set {ones} times");
        }
    }
}
