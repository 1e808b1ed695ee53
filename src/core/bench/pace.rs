//! When events are due, and an alarm that is exact to some microseconds.
//!
//! Tokio's own timers go off up to a millisecond late, which is more than a broker takes for an event. Always holds:
//! events of all publishers together are due at equal distances, whatever became of those before. Owner: a publisher.

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// One publisher's share of a rate.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Events a second, of all publishers together; 1 at least.
    pub rate: u64,
    /// How many publishers there are …
    pub publishers: u64,
    /// … and which of them this one is, from 0.
    pub place: u64,
}

impl Pace {
    /// When this publisher's event `number` (from 0) is due, in nanoseconds since the run began.
    pub fn due(&self, number: u64) -> u64 {
        let place = u128::from(number) * u128::from(self.publishers) + u128::from(self.place);
        u64::try_from(place * 1_000_000_000 / u128::from(self.rate.max(1))).unwrap_or(u64::MAX)
    }

    /// How many of its events are due before `moment`.
    pub fn due_before(&self, moment: u64) -> u64 {
        // Event k of all is due at k / rate, rounded down: those before `moment` are the first ones.
        let all = (u128::from(moment) * u128::from(self.rate)).div_ceil(1_000_000_000);
        let own = all.saturating_sub(u128::from(self.place)).div_ceil(u128::from(self.publishers.max(1)));
        u64::try_from(own).unwrap_or(u64::MAX)
    }
}

struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// An alarm.
pub struct Alarm {
    fd: AsyncFd<Fd>,
    /// The moment it is set to.
    set: Option<u64>,
}

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// The system gives no timer, or this is no runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Fd(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        #[allow(
            deprecated,
            reason = "its successor asks for a promise that this type keeps: its fd never changes"
        )]
        let fd = AsyncFd::new(timer)?;
        Ok(Alarm { fd, set: None })
    }

    /// Waits until `moment`, `now` being the present one (nanoseconds of the same clock). May be dropped at any time.
    ///
    /// # Errors
    /// The system refuses.
    pub async fn wait(&mut self, moment: u64, now: u64) -> io::Result<()> {
        if moment <= now {
            return Ok(());
        }
        if self.set != Some(moment) {
            let left = TimeSpec::from_duration(Duration::from_nanos(moment - now));
            self.fd.get_ref().0.set(Expiration::OneShot(left), TimerSetTimeFlags::empty())?;
            self.set = Some(moment);
        }
        self.fd.readable().await?.clear_ready();
        // Taking what it says makes it wait again; that it says nothing is a false alarm, and the caller looks.
        if self.fd.get_ref().0.wait().is_ok() {
            self.set = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_publishers_share_the_rate(rate in 1u64..5_000_000, publishers in 1u64..40, moment in 0u64..20_000_000_000) {
            let mut all = 0;
            for place in 0..publishers {
                let pace = Pace { rate, publishers, place };
                let before = pace.due_before(moment);
                all += before;
                prop_assert!(before == 0 || pace.due(before - 1) < moment);
                prop_assert!(pace.due(before) >= moment);
            }
            let exact = moment as f64 * rate as f64 / 1e9;
            prop_assert!((all as f64 - exact).abs() <= 1.0, "{all} of {exact}");
        }
    }
}
