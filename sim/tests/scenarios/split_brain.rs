//! Two hosts believe to own one account.
//!
//! The owner is cut off from the database alone: its connection to the service stands, and messages go on arriving
//! there. Nobody can tell it that its lease has run out but its own clock.

use super::{TAKEOVER, assert_good, on_every_store, online_at, owner_and_other, talk};
use sim::tier_b::Setup;

#[test]
fn split_brain() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 2_000, 100);
        let (owner, other) = owner_and_other(world);

        let cut = world.now();
        world.cut(&owner, "db");
        talk(world, 2, 12_000, 100);

        // The other host took over while the old owner was still alive, connected and unaware of it.
        let taken = online_at(world, &other, cut).expect("taken over");
        assert!(taken - cut <= TAKEOVER, "after {} ms", taken - cut);
        assert_eq!(world.owner(0), Some(other.clone()));

        // The old owner is back, as somebody new, and does not fight.
        world.heal(&owner, "db");
        talk(world, 2, 5_000, 100);
        assert_eq!(world.owner(0), Some(other));
        assert!(world.replaced(0) <= 1, "a war: {}", world.replaced(0));

        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}
