//! Time for deadlines: the monotonic clock without the pauses of this process.
//!
//! ```text
//! monotonic  ──┬──┬──┬──┬── SIGSTOP, a suspended VM ──┬──┬──┬──┬──▶   a look at least every 250 ms
//! awake      ──┬──┬──┬──┬─────────────── 1 s ────────────┬──┬──▶
//! ```
//!
//! A process that was stopped finds its timers due and its peers' frames unread. Whoever looks first after more than a
//! second without a look takes the gap off the awake clock and holds it for another second. So every
//! deadline keeps its full rest, and what lies in the sockets is read before anything is judged. A deadline sleeps by
//! tokio's timer, then asks this clock whether it is over. Always holds: the clock never goes back; one atomic
//! word has all of it, so no reader sees half of a pause. Looks count only while somebody
//! [watches](watch): in tests with tokio's paused clock nobody does. Owner: the process; every deadline about a peer is
//! in this time (`tests/tidy.rs`).

use super::clock;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::{AbortHandle, unconstrained};
use tokio::time::{self, MissedTickBehavior, interval};

/// The clock counts in these.
const QUARTER: Duration = Duration::from_millis(250);
/// More quarters without a look are a pause.
const GAP: u64 = 4;
/// After a pause the clock stands still for so many quarters, in which sockets are read.
const HOLD: u64 = 4;
/// Stands for never.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// An awake clock as one word: when it was looked at last, and what its pauses add up to, in quarters.
#[derive(Debug)]
struct Clock(AtomicU64);

/// Nobody watches: a gap means nothing.
const UNWATCHED: u64 = u32::MAX as u64;

fn pack(looked: u64, paused: u64) -> u64 {
    looked << 32 | paused
}

fn unpack(word: u64) -> (u64, u64) {
    (word >> 32, word & u64::from(u32::MAX))
}

fn quarters(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / QUARTER.as_millis()).unwrap_or(UNWATCHED).min(UNWATCHED - 1 - HOLD)
}

fn time(quarters: u64) -> Duration {
    Duration::from_millis(quarters * 250)
}

impl Clock {
    const fn new() -> Self {
        Clock(AtomicU64::new(UNWATCHED << 32))
    }

    /// Looks at monotonic time `now`; returns what to take off it.
    fn look(&self, now: Duration) -> Duration {
        let at = quarters(now);
        let mut word = self.0.load(Relaxed);
        loop {
            let (looked, paused) = unpack(word);
            if looked == UNWATCHED {
                return time(paused);
            }
            if at <= looked {
                // Held, or a moment that was read before the last look.
                return time(paused).saturating_sub(time(looked).saturating_sub(now));
            }
            let next = match at - looked {
                0..=GAP => pack(at, paused),
                gap => pack(at + HOLD, (paused + gap + HOLD - 1).min(u64::from(u32::MAX))),
            };
            match self.0.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => word = next,
                Err(other) => word = other,
            }
        }
    }

    /// From `now` on gaps are pauses.
    fn watch(&self, now: Duration) {
        let begin = |word| match unpack(word) {
            (UNWATCHED, paused) => Some(pack(quarters(now), paused)),
            _ => None,
        };
        let _ = self.0.fetch_update(Relaxed, Relaxed, begin);
    }

    /// Gaps are none any more.
    fn unwatch(&self) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| Some(pack(UNWATCHED, unpack(word).1)));
    }

    /// All pauses, without a look.
    fn paused(&self) -> Duration {
        time(unpack(self.0.load(Relaxed)).1)
    }
}

/// The pauses of a process since its start, for people.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Pauses {
    /// How many.
    pub count: u64,
    /// Their lengths together, in milliseconds.
    pub total_ms: i64,
    /// The length of the last one.
    pub last_ms: i64,
    /// When it ended, in milliseconds of CLOCK_BOOTTIME.
    pub ended_boot_ms: i64,
}

impl Pauses {
    /// None yet.
    pub const NONE: Self = Pauses { count: 0, total_ms: 0, last_ms: 0, ended_boot_ms: 0 };

    fn add(&mut self, gap_ms: i64, now_ms: i64) {
        let (count, total_ms) = (self.count + 1, self.total_ms.saturating_add(gap_ms));
        *self = Pauses { count, total_ms, last_ms: gap_ms, ended_boot_ms: now_ms };
    }
}

static CLOCK: Clock = Clock::new();
static BASE: LazyLock<time::Instant> = LazyLock::new(time::Instant::now);
static WATCHED: Mutex<Watched> = Mutex::new(Watched { watchers: 0, looked_ms: 0, pauses: Pauses::NONE });

/// For people: what the watchers saw.
struct Watched {
    watchers: usize,
    /// The last look, in milliseconds of CLOCK_BOOTTIME, which counts while the machine is suspended.
    looked_ms: i64,
    pauses: Pauses,
}

impl Watched {
    fn look(&mut self, now_ms: i64) -> Option<i64> {
        let gap = now_ms.saturating_sub(std::mem::replace(&mut self.looked_ms, now_ms));
        if gap <= (time(GAP) + QUARTER).as_millis() as i64 {
            return None;
        }
        self.pauses.add(gap, now_ms);
        Some(gap)
    }
}

fn watched<T>(f: impl FnOnce(&mut Watched) -> T) -> T {
    f(&mut WATCHED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The pauses of this process so far, up to this moment. Nothing is known while nobody watches.
pub fn pauses() -> Pauses {
    let (pause, pauses) = watched(|watched| {
        let pause = if watched.watchers > 0 { watched.look(clock::boot_ms()) } else { None };
        (pause, watched.pauses)
    });
    if let Some(paused_ms) = pause {
        tracing::warn!(paused_ms, "clock: the process or its machine was paused; deadlines are extended");
    }
    pauses
}

/// Pauses are noticed while this lives.
#[derive(Debug)]
pub struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One that watches; dropped with its task, also when its runtime ends.
struct Watcher;

impl Watcher {
    fn new() -> Self {
        watched(|watched| {
            if watched.watchers == 0 {
                watched.looked_ms = clock::boot_ms();
            }
            watched.watchers += 1;
        });
        Watcher
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        watched(|watched| {
            watched.watchers -= 1;
            if watched.watchers == 0 {
                CLOCK.unwatch();
            }
        });
    }
}

/// Has this runtime notice pauses: it looks at the clock every 250 ms. A runtime that stands still pauses the clock.
pub fn watch() -> Watch {
    let watcher = Watcher::new();
    let task = tokio::spawn(async move {
        let _watcher = watcher;
        let mut ticks = interval(QUARTER);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            CLOCK.watch(BASE.elapsed());
            CLOCK.look(BASE.elapsed());
            pauses();
        }
    });
    Watch(task.abort_handle())
}

/// A moment of the awake clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(time::Instant);

impl Instant {
    /// This moment.
    pub fn now() -> Self {
        let now = time::Instant::now();
        let paused = CLOCK.look(now.saturating_duration_since(*BASE));
        Instant(now.checked_sub(paused).unwrap_or(now))
    }

    /// The awake time since then.
    pub fn elapsed(self) -> Duration {
        Instant::now() - self
    }

    /// The time from an earlier moment to this one; 0 if it is none.
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// When tokio's clock shows it, if there are no more pauses.
    pub fn timer(self) -> time::Instant {
        self.0 + CLOCK.paused()
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Instant(self.0.checked_add(time).unwrap_or(self.0 + NEVER))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// Waits until then. Cancel safe.
pub async fn sleep_until(then: Instant) {
    while Instant::now() < then {
        time::sleep_until(then.timer()).await;
    }
}

/// What `future` comes to without waiting, if it does. For a last look at a socket before its silence is judged.
pub async fn at_once<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

/// It took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline has elapsed")]
pub struct Elapsed;

/// Runs `future` to its end, or until then. What is ready counts, however late it is.
///
/// # Errors
/// [`Elapsed`].
pub async fn timeout_at<F: Future>(then: Instant, future: F) -> Result<F::Output, Elapsed> {
    let (mut future, mut late) = (pin!(future), pin!(unconstrained(sleep_until(then))));
    tokio::select! {
        biased;
        output = &mut future => Ok(output),
        () = &mut late => Err(Elapsed),
    }
}

/// Runs `future` for so long at the most. What is ready counts, however late it is.
///
/// # Errors
/// [`Elapsed`].
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    timeout_at(Instant::now() + limit, future).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// One that looks at monotonic milliseconds and says awake ones.
    fn look(clock: &Clock, ms: u64) -> u64 {
        ms - clock.look(MS * ms as u32).as_millis() as u64
    }

    proptest! {
        /// Whoever looks in whatever order: awake time never goes back, runs no faster than time, runs with it
        /// while there is no pause, and a pause takes no more than a quarter off any deadline.
        #[test]
        fn awake_time_goes_on_without_the_pauses(
            steps in vec(prop_oneof![9 => 1u64..=1000, 1 => 1251u64..1_000_000], 1..200),
            late in vec(any::<prop::sample::Index>(), 1..200),
        ) {
            let clock = Clock::new();
            clock.watch(Duration::ZERO);
            let (mut now, mut awake, mut times) = (0, look(&clock, 0), vec![0]);
            for (step, late) in steps.into_iter().zip(late.iter().cycle()) {
                now += step;
                let next = look(&clock, now);
                prop_assert!((awake..=awake + step.min(1000)).contains(&next), "{awake} {step} {next}");
                if step > 1250 {
                    prop_assert!(next <= awake + 250, "{awake} {step} {next}");
                    // A second in which sockets are read.
                    now += 750;
                    let held = look(&clock, now);
                    prop_assert_eq!(held, next);
                    now += 250;
                    prop_assert!(look(&clock, now) <= held + 250);
                    now += 1000;
                    prop_assert!(look(&clock, now) >= held + 1000);
                }
                times.push(now);
                awake = look(&clock, now);
                // Somebody who took the time and was stopped before asking what to take off it.
                let then = times[late.index(times.len())];
                let taken = then.saturating_sub(clock.look(MS * then as u32).as_millis() as u64);
                prop_assert!(taken <= awake, "{then} {taken} {awake}");
            }
        }
    }

    /// Threads that look all the time, across pauses: none sees time that only another one has taken off.
    #[test]
    fn nobody_sees_half_of_a_pause() {
        let clock = Clock::new();
        clock.watch(Duration::ZERO);
        let now = AtomicU64::new(0);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    let mut last = 0;
                    while now.load(Relaxed) < 100_000_000 {
                        let at = now.load(Relaxed);
                        let awake = at.saturating_sub(clock.look(MS * at as u32).as_millis() as u64);
                        // 1,000 pauses of 100 s, each after a quarter and with a second of waiting.
                        assert!(awake <= 2_000 * 250 + 250, "{at}: {awake}");
                        assert!(awake >= last, "{at}: {last}, then {awake}");
                        last = awake;
                    }
                });
            }
            for _ in 0..1000 {
                now.fetch_add(250, Relaxed);
                clock.look(MS * now.load(Relaxed) as u32);
                now.fetch_add(99_750, Relaxed);
            }
        });
    }

    #[test]
    fn nothing_is_a_pause_while_nobody_watches() {
        let clock = Clock::new();
        assert_eq!(look(&clock, 3_600_000), 3_600_000);
        clock.watch(MS * 7_200_000);
        assert_eq!(look(&clock, 7_200_900), 7_200_900);
        assert_eq!(look(&clock, 7_300_000), 7_201_000);
        clock.unwatch();
        let paused = clock.paused();
        assert_eq!(clock.look(MS * 9_000_000), paused);
        clock.watch(MS * 9_500_000);
        assert_eq!(clock.look(MS * 9_500_000), paused);
    }

    #[test]
    fn pauses_are_counted_with_the_time_of_a_suspended_machine() {
        let mut watched = Watched { watchers: 1, looked_ms: 1000, pauses: Pauses::NONE };
        assert_eq!(
            (watched.look(1250), watched.look(2500), watched.look(62_500)),
            (None, None, Some(60_000))
        );
        let want = Pauses { count: 1, total_ms: 60_000, last_ms: 60_000, ended_boot_ms: 62_500 };
        assert_eq!(watched.pauses, want);
        assert_eq!(watched.look(62_750), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_counts_however_late_it_is() {
        let late = || Box::pin(time::sleep(Duration::from_secs(10)));
        assert_eq!(timeout(Duration::from_secs(1), late()).await, Err(Elapsed));
        let (then, ready) = (Instant::now() + Duration::from_secs(1), late());
        time::advance(Duration::from_secs(60)).await;
        assert_eq!(timeout_at(then, ready).await, Ok(()));
        assert_eq!(at_once(std::future::ready(7)).await, Some(7));
        assert_eq!(at_once(std::future::pending::<()>()).await, None);
        assert_eq!(timeout(Duration::MAX, std::future::ready(7)).await, Ok(7));
    }
}
