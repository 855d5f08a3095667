//! Time and chance of one life of one host: turmoil's clock and a generator of the seed.

use baton_core::{
    crypto::{Rng, sha256},
    engine::Now,
    state::{Micros, UnixMillis},
};
use baton_tokio::Env;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// The date on which every world begins: 2026-01-01.
pub(crate) const BEGINNING: i64 = 1_767_225_600_000;

/// Virtual microseconds since the world began; inside a host of it only.
pub(crate) fn now() -> u64 {
    turmoil::sim_elapsed().map_or(0, micros)
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A generator for one concern. Nothing else decides what it gives than the seed and the name.
pub(crate) fn generator(seed: u64, concern: &str) -> Rng {
    Rng::from_seed(sha256(&[&seed.to_le_bytes(), concern.as_bytes()]))
}

/// What a [`Host`](baton_tokio::Host) in a world takes for clocks and entropy.
#[derive(Clone, Debug)]
pub(crate) struct SimEnv {
    /// How far the host's wall clock is off, in milliseconds. Of the machine: it outlives the process.
    wall: Arc<AtomicI64>,
    /// Where the monotonic clock of this life began. Never 0, so that a time that strays to another host is noticed.
    origin: u64,
    rng: Arc<Mutex<Rng>>,
}

impl SimEnv {
    pub(crate) fn new(seed: u64, host: &str, life: u64, wall: Arc<AtomicI64>) -> Self {
        let mut rng = generator(seed, &format!("{host} {life}"));
        Self {
            wall,
            origin: rng.below(1_000_000_000),
            rng: Arc::new(Mutex::new(rng)),
        }
    }
}

impl Env for SimEnv {
    fn now(&self) -> Now {
        let now = now();
        let millis = i64::try_from(now / 1000).unwrap_or(i64::MAX);
        Now {
            mono: Micros(self.origin + now),
            unix: UnixMillis(BEGINNING + millis + self.wall.load(Ordering::Relaxed)),
        }
    }

    async fn sleep_until(&self, at: Micros) {
        let pause = at.since(self.now().mono);
        tokio::time::sleep(Duration::from_micros(pause.0)).await;
    }

    fn entropy(&self) -> [u8; 32] {
        self.rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes()
    }
}
