//! Time and chance: the two things an engine may not have of itself.

use baton_core::{
    engine::Now,
    state::{Micros, UnixMillis},
};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// Clocks and randomness. A simulation brings its own; everybody else takes [`SystemEnv`].
pub trait Env: Clone + Send + Sync + 'static {
    /// Both clocks, read together. The monotonic one has one origin for all clones.
    fn now(&self) -> Now;

    /// Completes when the monotonic clock has reached `at`.
    fn sleep_until(&self, at: Micros) -> impl Future<Output = ()> + Send;

    /// Fresh entropy.
    fn entropy(&self) -> [u8; 32];

    /// A random number from 0 to `most`, for pauses that must not fall together.
    fn jitter(&self, most: Micros) -> Micros {
        let [a, b, c, d, e, f, g, h, ..] = self.entropy();
        // The bias of a remainder does not matter for a pause.
        Micros(u64::from_le_bytes([a, b, c, d, e, f, g, h]) % most.0.saturating_add(1))
    }
}

/// The clocks and the random source of the operating system.
///
/// The monotonic clock goes on while the machine is suspended, as tokio's does not: a lease must not look valid to a
/// laptop that has slept. Sleeps are tokio's; one that was interrupted that way lasts longer than asked for.
#[derive(Clone, Debug)]
pub struct SystemEnv {
    origin: Instant,
    slept: Arc<Slept>,
}

impl SystemEnv {
    /// Starts counting now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            slept: Arc::new(Slept::since(asleep())),
        }
    }
}

impl Default for SystemEnv {
    fn default() -> Self {
        Self::new()
    }
}

/// How long the machine has been suspended, in microseconds: never less than it was.
#[derive(Debug)]
struct Slept {
    before: Duration,
    micros: AtomicU64,
}

impl Slept {
    /// Two clocks cannot be read at once. A difference below this is the time between the two readings; it is not
    /// counted, and not added up, as each reading is compared with the first.
    const NOISE: Duration = Duration::from_millis(100);

    const fn since(before: Duration) -> Self {
        Self {
            before,
            micros: AtomicU64::new(0),
        }
    }

    fn at(&self, asleep: Duration) -> u64 {
        let slept = asleep.saturating_sub(self.before);
        if slept < Self::NOISE {
            return self.micros.load(Ordering::Relaxed);
        }
        let slept = u64::try_from(slept.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_max(slept, Ordering::Relaxed).max(slept)
    }
}

/// How much further the clock is that counts suspended time than the one that does not.
#[cfg(target_os = "linux")]
fn asleep() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| {
        let time = clock_gettime(clock);
        let secs = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::new(secs, u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let monotonic = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(monotonic)
}

/// Other systems' monotonic clocks count it, or there is no way to ask.
#[cfg(not(target_os = "linux"))]
fn asleep() -> Duration {
    Duration::ZERO
}

impl Env for SystemEnv {
    fn now(&self) -> Now {
        let awake = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mono = awake.saturating_add(self.slept.at(asleep()));
        // A clock before 1970 is wrong anyway; nothing is ordered by it.
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        Now {
            mono: Micros(mono),
            unix: UnixMillis(i64::try_from(unix).unwrap_or(i64::MAX)),
        }
    }

    async fn sleep_until(&self, at: Micros) {
        let at = at.0.saturating_sub(self.slept.at(asleep()));
        match self.origin.checked_add(Duration::from_micros(at)) {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn entropy(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        // Without randomness there are no keys, and nothing sensible to go on with.
        getrandom::fill(&mut seed).expect("the operating system gives random bytes");
        seed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_asleep_counts_and_noise_does_not() {
        let boot = Duration::from_secs(500);
        let slept = Slept::since(boot);
        assert_eq!(slept.at(boot), 0);
        assert_eq!(slept.at(boot + Duration::from_millis(2)), 0);
        assert_eq!(slept.at(boot - Duration::from_millis(2)), 0);
        let night = Duration::from_secs(8 * 3600);
        assert_eq!(slept.at(boot + night), 8 * 3600 * 1_000_000);
        let jitter = boot + night - Duration::from_micros(30);
        assert_eq!(slept.at(jitter), 8 * 3600 * 1_000_000, "never back");
    }
}
