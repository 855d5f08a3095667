//! Chance that is looked up, not drawn in turn: by what it is for and by how many came before it there.
//!
//! A generator that everybody draws from ties everything to everything: take one fault out of a plan and every delay
//! behind it is another. Here the n-th delay of a connection is the n-th delay of that connection, whatever else
//! happens, so a smaller plan is the same run with less in it. That is what makes shrinking work.

use std::collections::BTreeMap;

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stream {
    /// Delays of a direction of a connection.
    Network,
    /// How long it takes to open a connection of an account, or to notice that it is closed.
    Dial,
    /// How long store calls of an account take.
    Store,
    /// How long it takes until a lease that was renewed is known to be.
    Renewal,
    /// Downloads of an account.
    Files,
    /// Pauses before an account is started again.
    Pause,
    /// Seeds of engines.
    Engine,
    /// Whether the consumer acknowledges this event.
    Consumer,
    /// What weather does to one thing that it strikes.
    Weather,
}

/// Looks numbers up for one world.
#[derive(Debug)]
pub(crate) struct Chance {
    seed: u64,
    counts: BTreeMap<(Stream, u64), u64>,
}

impl Chance {
    pub(crate) const fn new(seed: u64) -> Self {
        Self {
            seed,
            counts: BTreeMap::new(),
        }
    }

    /// The next number of a stream of somebody.
    pub(crate) fn next(&mut self, stream: Stream, whose: u64) -> u64 {
        let count = self.counts.entry((stream, whose)).or_default();
        *count += 1;
        let count = *count;
        self.of(stream, whose, count)
    }

    /// A certain number of a stream of somebody.
    pub(crate) fn of(&self, stream: Stream, whose: u64, which: u64) -> u64 {
        // Each step is a bijection with good avalanche (the finalizer of SplitMix64), so that neighbours share nothing.
        let mut mixed = mix(self.seed ^ 0x9e37_79b9_7f4a_7c15);
        mixed = mix(mixed ^ stream as u64);
        mixed = mix(mixed ^ whose);
        mix(mixed ^ which)
    }

    /// The next number of a stream in `least..=most`.
    pub(crate) fn between(&mut self, stream: Stream, whose: u64, (least, most): (u64, u64)) -> u64 {
        let span = most.saturating_sub(least).saturating_add(1);
        // The bias of the remainder is below one in 2^40 for spans of seconds, and nobody's security depends on it.
        least + self.next(stream, whose) % span
    }
}

const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_draw_does_not_matter() {
        let (mut alone, mut busy) = (Chance::new(7), Chance::new(7));
        for n in 0..100 {
            busy.next(Stream::Store, 1);
            busy.next(Stream::Network, n + 2);
            assert_eq!(
                alone.between(Stream::Network, 1, (500, 40_000)),
                busy.between(Stream::Network, 1, (500, 40_000))
            );
        }
        assert_ne!(alone.next(Stream::Store, 1), alone.next(Stream::Store, 1));
        assert_ne!(
            Chance::new(1).next(Stream::Store, 1),
            Chance::new(2).next(Stream::Store, 1)
        );
    }

    #[test]
    fn numbers_are_spread() {
        let mut chance = Chance::new(3);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[usize::try_from(chance.between(Stream::Network, 4, (0, 9))).unwrap()] += 1;
        }
        assert!(
            seen.iter().all(|count| (800..1200).contains(count)),
            "{seen:?}"
        );
    }
}
