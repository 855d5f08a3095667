//! A host stands still for a minute (SIGSTOP, a paused virtual machine) and then goes on as if nothing had happened.

use super::{TAKEOVER, assert_good, on_every_store, online_at, owner_and_other, talk};
use sim::tier_b::Setup;

#[test]
fn frozen_host() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 2_000, 100);
        let (owner, other) = owner_and_other(world);

        let frozen = world.now();
        world.freeze(&owner);
        talk(world, 2, 60_000, 500);
        let taken = online_at(world, &other, frozen).expect("taken over");
        assert!(taken - frozen <= TAKEOVER, "after {} ms", taken - frozen);

        // It finds that a minute has passed, lets nothing out, and joins again as somebody new.
        world.thaw(&owner);
        talk(world, 2, 5_000, 100);
        assert_eq!(world.owner(0), Some(other));
        assert!(world.replaced(0) <= 1, "a war: {}", world.replaced(0));
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}

/// Shorter than the lease: nobody takes over, and nothing is lost.
#[test]
fn a_short_nap_changes_nothing() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let (owner, _) = owner_and_other(world);
        let grants = world.grants(0).len();
        world.freeze(&owner);
        talk(world, 2, 3_000, 100);
        world.thaw(&owner);
        talk(world, 2, 2_000, 100);
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        assert_eq!(
            (world.grants(0).len(), world.owner(0)),
            (grants, Some(owner))
        );
    });
}
