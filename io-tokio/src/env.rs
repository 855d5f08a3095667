//! Time and chance: the two things an engine may not have of itself.

use baton_core::{
    engine::Now,
    state::{Micros, UnixMillis},
};
use std::{
    future::Future,
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
#[derive(Clone, Debug)]
pub struct SystemEnv {
    origin: Instant,
}

impl SystemEnv {
    /// Starts counting now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Default for SystemEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for SystemEnv {
    fn now(&self) -> Now {
        let mono = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
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
        match self.origin.checked_add(Duration::from_micros(at.0)) {
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
