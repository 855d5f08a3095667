//! The owner goes properly, but what it says on leaving never reaches the database.

use super::{TAKEOVER, assert_good, on_every_store, online_at, owner_and_other, talk};
use sim::tier_b::Setup;

#[test]
fn lost_release() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let (owner, other) = owner_and_other(world);
        let asked = world.now();
        world.cut(&owner, "db");
        world.stop(&owner);
        // It does not wait for the answer for ever.
        let name = owner.clone();
        let mut waited = 0;
        while world.is_running(&name) && waited < 20_000 {
            talk(world, 2, 200, 100);
            waited += 200;
        }
        assert!(!world.is_running(&owner), "it hangs on its way out");
        talk(world, 2, 10_000, 200);
        let taken = online_at(world, &other, asked).expect("taken over");
        assert!(
            taken - asked <= TAKEOVER + 2_000,
            "after {} ms",
            taken - asked
        );
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}

/// It does reach it: then nobody waits for a lease.
#[test]
fn a_release_that_arrives() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let (owner, other) = owner_and_other(world);
        let asked = world.now();
        world.stop(&owner);
        talk(world, 2, 4_000, 100);
        let taken = online_at(world, &other, asked).expect("taken over");
        assert!(taken - asked <= 2_000, "after {} ms", taken - asked);
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}
