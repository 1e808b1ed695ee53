//! How long an event has waited: a clock that counts while this machine is up.
//!
//! Always holds: a step of the wall clock, as at the start of a guest that has no clock of its own, makes nothing
//! older; the clock never goes back. While the machine is off it stands. Owner: `store.rs`.

use crate::core::clock;

/// The outbox's clock at one moment, and what machine time that was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Age {
    /// Milliseconds that machines were up since the file was made, as far as that was written down.
    pub ms: i64,
    /// [`clock::boot_ms`] at that time …
    pub boot_ms: i64,
    /// … of this run of the machine.
    pub boot_id: String,
}

impl Age {
    /// The clock now.
    pub fn now(&self) -> Self {
        self.at(clock::boot_ms(), clock::boot_id())
    }

    /// The clock at this machine time.
    pub fn at(&self, boot_ms: i64, boot_id: String) -> Self {
        // Of another run of the machine only what it has been up now can be known.
        let passed = if boot_id == self.boot_id { boot_ms - self.boot_ms } else { 0 };
        Age { ms: self.ms.saturating_add(passed.max(0)), boot_ms, boot_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_within_a_run_of_the_machine_and_stands_between_two() {
        let begun = Age::default().at(5_000, "a".into());
        assert_eq!(begun.ms, 0);
        let later = begun.at(65_000, "a".into());
        assert_eq!(later.ms, 60_000);
        let rebooted = later.at(3_000, "b".into());
        assert_eq!(rebooted.ms, 60_000);
        assert_eq!(rebooted.at(4_000, "b".into()).ms, 61_000);
        assert_eq!(rebooted.at(1, "b".into()).ms, 60_000, "never back");
    }
}
