//! How long things take and how long they may last.

use super::budget::Rate;
use crate::state::Micros;

/// The durations and budgets of a host. All of them count on its own clock, which should go on while the machine is
/// suspended; where it does not, tell the host with [`Input::ClockJump`](super::host::Input::ClockJump).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between renewals, ± 10 %.
    pub renew: Micros,
    /// For one renewal to be answered.
    pub deadline: Micros,
    /// Between a renewal that failed and the next.
    pub retry: Micros,
    /// Without a confirmed renewal for so long: start nothing new.
    pub soft: Micros,
    /// Without a confirmed renewal for so long: let nothing out.
    pub hard: Micros,
    /// What the store is asked for: others may declare us dead after it.
    pub ttl: Micros,
    /// The longest thing that is not interrupted once it was begun, such as a write to a socket.
    pub step: Micros,
    /// How much faster or slower than the database's our clock may run, in millionths.
    pub drift_ppm: u32,
    /// For calls other than renewals.
    pub call: Micros,
    /// Between looks for accounts without a holder.
    pub scan: Micros,
    /// Between joining and the first look: hosts that are started together shall share, not race.
    pub settle: Micros,
    /// How long each further choice waits for the one before it to claim an account.
    pub grace: Micros,
    /// Between being fenced and joining again.
    pub rejoin: Micros,
    /// How long connections are kept while the database is away.
    pub hold: Micros,
    /// For draining; what is left then is released without a successor.
    pub drain: Micros,
    /// Hand-overs at a time while draining.
    pub drain_batch: u32,
    /// Claims.
    pub claims: Rate,
    /// Accounts in one claim.
    pub claim_batch: u32,
    /// Connections opened.
    pub connects: Rate,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            renew: Micros::from_millis(1_000),
            deadline: Micros::from_millis(800),
            retry: Micros::from_millis(300),
            soft: Micros::from_millis(2_500),
            hard: Micros::from_millis(4_000),
            ttl: Micros::from_millis(6_000),
            step: Micros::from_millis(500),
            drift_ppm: 10_000,
            call: Micros::from_millis(2_000),
            scan: Micros::from_millis(2_000),
            settle: Micros::from_millis(500),
            grace: Micros::from_millis(300),
            rejoin: Micros::from_millis(200),
            hold: Micros::from_secs(300),
            drain: Micros::from_secs(25),
            drain_batch: 50,
            claims: Rate {
                per_second: 2_000,
                burst: 1_000,
            },
            claim_batch: 500,
            connects: Rate {
                per_second: 100,
                burst: 20,
            },
        }
    }
}

/// Durations that do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// The host would still act when others may already have taken over. Lower `hard` or raise `ttl`.
    #[error("hard + step must be below ttl less the drift")]
    HardTooLate,
    /// It would fall silent before it fell careful. Lower `soft`.
    #[error("soft must be below hard")]
    SoftTooLate,
    /// One lost renewal would already disturb the accounts. Raise `soft` or renew faster.
    #[error("renew (with its jitter) + deadline + retry must not be above soft")]
    SoftTooEarly,
    /// A duration or budget that must be something is nothing.
    #[error("{0} must not be zero")]
    Zero(&'static str),
    /// A clock cannot be wrong by half.
    #[error("drift_ppm must be below 500000")]
    Drift,
}

impl Timing {
    /// Half of everything that decides how fast a takeover is, for networks that are good enough.
    #[must_use]
    pub fn fast() -> Self {
        Self {
            renew: Micros::from_millis(500),
            deadline: Micros::from_millis(400),
            retry: Micros::from_millis(150),
            soft: Micros::from_millis(1_200),
            hard: Micros::from_millis(2_000),
            ttl: Micros::from_millis(3_000),
            scan: Micros::from_millis(1_000),
            ..Self::default()
        }
    }

    /// Whether they fit together.
    pub fn check(&self) -> Result<(), TimingError> {
        for (name, time) in [
            ("renew", self.renew),
            ("deadline", self.deadline),
            ("retry", self.retry),
            ("soft", self.soft),
            ("call", self.call),
            ("scan", self.scan),
            ("rejoin", self.rejoin),
            ("drain", self.drain),
        ] {
            if time == Micros(0) {
                return Err(TimingError::Zero(name));
            }
        }
        for (name, number) in [
            ("drain_batch", self.drain_batch),
            ("claim_batch", self.claim_batch),
        ] {
            if number == 0 {
                return Err(TimingError::Zero(name));
            }
        }
        if self.drift_ppm >= 500_000 {
            return Err(TimingError::Drift);
        }
        if self.soft >= self.hard {
            return Err(TimingError::SoftTooLate);
        }
        // u128: durations are the operator's, and a product of two must not wrap into a pass.
        let safe = u128::from(self.ttl.0) * u128::from(1_000_000 - self.drift_ppm) / 1_000_000;
        if u128::from(self.hard.0) + u128::from(self.step.0) >= safe {
            return Err(TimingError::HardTooLate);
        }
        let slowest = Micros(self.renew.0.saturating_add(self.renew.0 / 10));
        if slowest.plus(self.deadline).plus(self.retry) > self.soft {
            return Err(TimingError::SoftTooEarly);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_profiles_fit() {
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(Timing::fast().check(), Ok(()));
    }

    #[test]
    fn acting_into_a_successors_time_is_refused() {
        let exact = Timing {
            drift_ppm: 0,
            hard: Micros::from_millis(5_500),
            ..Timing::default()
        };
        assert_eq!(exact.check(), Err(TimingError::HardTooLate));
        let below = Timing {
            hard: Micros::from_millis(5_499),
            ..exact
        };
        assert_eq!(below.check(), Ok(()));
        // 5.44 + 0.5 = 5.94 = 6 s less one per cent.
        let drifting = Timing {
            drift_ppm: 10_000,
            hard: Micros::from_millis(5_440),
            ..exact
        };
        assert_eq!(drifting.check(), Err(TimingError::HardTooLate));
        let endless = Timing {
            hard: Micros(u64::MAX),
            ..exact
        };
        assert_eq!(endless.check(), Err(TimingError::HardTooLate));
    }

    #[test]
    fn one_lost_renewal_must_not_matter() {
        let hasty = Timing {
            soft: Micros::from_millis(2_199),
            ..Timing::default()
        };
        assert_eq!(hasty.check(), Err(TimingError::SoftTooEarly));
        // 1.1 + 0.8 + 0.3.
        let just = Timing {
            soft: Micros::from_millis(2_200),
            ..hasty
        };
        assert_eq!(just.check(), Ok(()));
        let late = Timing {
            soft: Micros::from_millis(4_000),
            ..Timing::default()
        };
        assert_eq!(late.check(), Err(TimingError::SoftTooLate));
    }

    #[test]
    fn nothing_is_not_a_duration() {
        type Change = fn(&mut Timing);
        let nothing: [(&str, Change); 10] = [
            ("renew", |timing| timing.renew = Micros(0)),
            ("deadline", |timing| timing.deadline = Micros(0)),
            ("retry", |timing| timing.retry = Micros(0)),
            ("soft", |timing| timing.soft = Micros(0)),
            ("call", |timing| timing.call = Micros(0)),
            ("scan", |timing| timing.scan = Micros(0)),
            ("rejoin", |timing| timing.rejoin = Micros(0)),
            ("drain", |timing| timing.drain = Micros(0)),
            ("drain_batch", |timing| timing.drain_batch = 0),
            ("claim_batch", |timing| timing.claim_batch = 0),
        ];
        for (name, change) in nothing {
            let mut still = Timing::default();
            change(&mut still);
            assert_eq!(still.check(), Err(TimingError::Zero(name)));
        }
    }

    #[test]
    fn a_clock_may_be_wrong_by_less_than_half() {
        let wrong = |drift_ppm| Timing {
            drift_ppm,
            ttl: Micros::from_secs(60),
            ..Timing::default()
        };
        assert_eq!(wrong(499_999).check(), Ok(()));
        assert_eq!(wrong(500_000).check(), Err(TimingError::Drift));
    }

    /// A hundredth of the time for every ten thousand millionths, however long the time is.
    #[test]
    fn the_drift_is_taken_from_what_the_store_was_asked_for() {
        let timing = |hard, ttl| Timing {
            drift_ppm: 100_000,
            hard: Micros(hard),
            step: Micros(0),
            ttl: Micros(ttl),
            ..Timing::default()
        };
        for ttl in [10_000_000, 10_u64.pow(15), u64::MAX / 10 * 10] {
            let safe = ttl / 10 * 9;
            assert_eq!(timing(safe - 1, ttl).check(), Ok(()), "{ttl}");
            let late = Err(TimingError::HardTooLate);
            assert_eq!(timing(safe, ttl).check(), late, "{ttl}");
        }
    }

    #[test]
    fn the_fast_profile_takes_over_in_half_the_time() {
        let (fast, normal) = (Timing::fast(), Timing::default());
        assert_eq!(fast.ttl.0 * 2, normal.ttl.0);
        assert_eq!(fast.hard.0 * 2, normal.hard.0);
        assert!(fast.soft < normal.soft && fast.scan < normal.scan);
    }
}
