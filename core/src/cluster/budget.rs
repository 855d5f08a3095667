//! How many at once: token buckets.

use crate::{crypto::Rng, state::Micros};

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second, at least 1.
    pub per_second: u32,
    /// Tokens that can be saved up, at least 1.
    pub burst: u32,
}

/// A token bucket whose tokens come at jittered intervals, so that hosts that were started by the same event do not
/// march in step.
#[derive(Clone, Debug)]
pub struct Budget {
    interval: u64,
    burst: u32,
    tokens: u32,
    /// When the next token falls.
    next: Micros,
}

impl Budget {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Micros) -> Self {
        let interval = 1_000_000 / u64::from(rate.per_second.max(1));
        let burst = rate.burst.max(1);
        Self {
            interval,
            burst,
            tokens: burst,
            next: now.plus(Micros(interval)),
        }
    }

    /// Takes up to `want` tokens; says how many.
    pub fn take(&mut self, want: u32, now: Micros, rng: &mut Rng) -> u32 {
        self.fill(now, rng);
        let got = want.min(self.tokens);
        self.tokens -= got;
        got
    }

    /// When there is a token, at the earliest.
    #[must_use]
    pub fn ready(&self, now: Micros) -> Micros {
        if self.tokens > 0 { now } else { self.next }
    }

    fn fill(&mut self, now: Micros, rng: &mut Rng) {
        while self.next <= now && self.tokens < self.burst {
            self.tokens += 1;
            self.next = self.next.plus(jittered(Micros(self.interval), 20, rng));
        }
        // A full bucket saves up no time either: the next token falls an interval after the first is taken.
        if self.tokens == self.burst {
            self.next = now.plus(Micros(self.interval));
        }
    }
}

/// `time` give or take `percent`, at least one microsecond.
pub(crate) fn jittered(time: Micros, percent: u64, rng: &mut Rng) -> Micros {
    let span = time.0 / 100 * percent;
    Micros((time.0 - span + rng.below(2 * span + 1)).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Rng;
    use proptest::prelude::*;

    proptest! {
        /// However it is asked: never more than the burst and the rate with its jitter allow; and who asks often
        /// enough gets nearly the rate.
        #[test]
        fn keeps_to_its_rate(
            seed in any::<[u8; 32]>(),
            per_second in 1..2_000_u32,
            burst in 1..50_u32,
            pauses in proptest::collection::vec(0..200_000_u64, 1..200),
        ) {
            let mut rng = Rng::from_seed(seed);
            let mut budget = Budget::new(Rate { per_second, burst }, Micros(0));
            let (mut now, mut taken) = (0, 0_u64);
            for pause in pauses {
                now += pause;
                taken += u64::from(budget.take(u32::MAX, Micros(now), &mut rng));
                prop_assert_eq!(budget.take(1, Micros(now), &mut rng), 0);
                prop_assert!(budget.ready(Micros(now)) >= Micros(now));
            }
            let most = u64::from(burst) + now * u64::from(per_second) * 5 / 4 / 1_000_000 + 2;
            prop_assert!(taken <= most, "{} > {}", taken, most);
        }
    }

    #[test]
    fn a_patient_queue_is_served_at_the_rate() {
        let mut rng = Rng::from_seed([7; 32]);
        let rate = Rate {
            per_second: 100,
            burst: 10,
        };
        let mut budget = Budget::new(rate, Micros(0));
        let (mut now, mut served) = (Micros(0), 0);
        while served < 1_000 {
            let got = budget.take(1, now, &mut rng);
            served += got;
            if got == 0 {
                now = budget.ready(now);
            }
        }
        // 990 after the burst, at 10 ms each.
        assert!(
            (9_700_000..10_100_000).contains(&now.0),
            "1,000 tokens after {} µs",
            now.0
        );
    }

    #[test]
    fn a_token_is_ready_now_or_an_interval_after_the_last_was_taken() {
        let mut rng = Rng::from_seed([8; 32]);
        let rate = Rate {
            per_second: 10,
            burst: 2,
        };
        let mut budget = Budget::new(rate, Micros(0));
        assert_eq!(budget.ready(Micros(7)), Micros(7));
        assert_eq!(budget.take(5, Micros(7), &mut rng), 2);
        assert_eq!(budget.ready(Micros(7)), Micros(100_007));
    }

    #[test]
    fn jitter_reaches_from_end_to_end_and_no_further() {
        let mut rng = Rng::from_seed([9; 32]);
        for (time, percent, least, most) in [
            (100, 50, 50, 150),
            (1_000, 1, 990, 1_010),
            // Too short to be divided.
            (99, 20, 99, 99),
            (0, 20, 1, 1),
        ] {
            let times: Vec<u64> = (0..5_000)
                .map(|_| jittered(Micros(time), percent, &mut rng).0)
                .collect();
            assert_eq!(times.iter().min(), Some(&least));
            assert_eq!(times.iter().max(), Some(&most));
        }
    }
}
