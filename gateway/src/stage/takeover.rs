//! How long an account was without an owner, step by step.

use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// What the accounts of one host went through when it was hit.
#[derive(Debug)]
pub(super) struct Takeover {
    /// Which process was hit.
    pub(super) victim: usize,
    pub(super) since: Instant,
    /// When the roster first showed that it is gone.
    pub(super) gone: Option<Instant>,
    pub(super) accounts: BTreeMap<usize, Steps>,
    pub(super) told: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Steps {
    pub(super) claimed: Option<Instant>,
    pub(super) connected: Option<Instant>,
    pub(super) message: Option<Instant>,
}

/// The same in seconds, each step after the one before.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Split {
    /// Index of the account in the plan.
    pub account: usize,
    /// Until the host was known to be gone, by its presence or its lease; nothing if it was not waited for.
    pub gone: f64,
    /// Until another host had claimed the account.
    pub claim: f64,
    /// Until it was online again.
    pub connect: f64,
    /// Until its first message came. `None` if there was none.
    pub message: Option<f64>,
    /// From the beginning until it was online again.
    pub total: f64,
}

impl Takeover {
    pub(super) fn new(victim: usize, accounts: impl IntoIterator<Item = usize>) -> Self {
        let accounts = accounts.into_iter().map(|n| (n, Steps::default()));
        Self {
            victim,
            since: Instant::now(),
            gone: None,
            accounts: accounts.collect(),
            told: false,
        }
    }

    /// All are online elsewhere.
    pub(super) fn is_over(&self) -> bool {
        self.accounts
            .values()
            .all(|steps| steps.connected.is_some())
    }

    /// From the beginning until the last was online.
    pub(super) fn took(&self) -> Duration {
        let ends = self.accounts.values().filter_map(|steps| steps.connected);
        ends.max()
            .map_or(Duration::ZERO, |end| end.duration_since(self.since))
    }

    pub(super) fn splits(&self) -> Vec<Split> {
        let seconds = |from: Instant, to: Instant| {
            (to.saturating_duration_since(from).as_secs_f64() * 1e3).round() / 1e3
        };
        let split = |(&account, steps): (&usize, &Steps)| {
            let (claimed, connected) = (steps.claimed?, steps.connected?);
            // A look at the roster every so often can come after the claim.
            let gone = self.gone.map_or(claimed, |gone| gone.min(claimed));
            Some(Split {
                account,
                gone: seconds(self.since, gone),
                claim: seconds(gone, claimed),
                connect: seconds(claimed, connected),
                message: steps.message.map(|message| seconds(connected, message)),
                total: seconds(self.since, connected),
            })
        };
        self.accounts.iter().filter_map(split).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_a_takeover_add_up() {
        let mut takeover = Takeover::new(0, [3, 5]);
        let at = |millis| takeover.since + Duration::from_millis(millis);
        let (gone, steps) = (
            at(100),
            Steps {
                claimed: Some(at(150)),
                connected: Some(at(400)),
                message: Some(at(1_000)),
            },
        );
        takeover.gone = Some(gone);
        takeover.accounts.insert(3, steps);
        assert!(!takeover.is_over(), "the other account is still out");
        let quick = Steps {
            message: None,
            // Claimed before we looked.
            claimed: Some(at_of(&takeover, 90)),
            ..steps
        };
        takeover.accounts.insert(5, quick);
        assert!(takeover.is_over());
        assert_eq!(takeover.took(), Duration::from_millis(400));
        let splits = takeover.splits();
        let rows: Vec<_> = splits
            .iter()
            .map(|s| (s.account, s.gone, s.claim, s.connect, s.message, s.total))
            .collect();
        assert_eq!(
            rows,
            [
                (3, 0.1, 0.05, 0.25, Some(0.6), 0.4),
                (5, 0.09, 0.0, 0.31, None, 0.4)
            ]
        );
    }

    fn at_of(takeover: &Takeover, millis: u64) -> Instant {
        takeover.since + Duration::from_millis(millis)
    }
}
