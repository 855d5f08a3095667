//! The owner is asked to go while a message arrives every few milliseconds.

use super::{assert_good, on_every_store, online_at, owner_and_other, talk};
use sim::tier_b::Setup;

#[test]
fn hand_over_under_load() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 20);
        let (owner, other) = owner_and_other(world);
        let asked = world.now();
        world.stop(&owner);
        talk(world, 2, 3_000, 20);
        let taken = online_at(world, &other, asked).expect("taken over");
        // The lease would have held for six seconds more: it was given back.
        assert!(taken - asked <= 2_500, "after {} ms", taken - asked);
        assert_eq!(world.replaced(0), 0, "the old connection was closed first");
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        assert!(verdict.received > 100, "{} say little", verdict.received);
    });
}
