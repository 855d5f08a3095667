//! A host is killed and started again at once, under the same name and address.
//!
//! What the first process had under way still reaches the database. The second must not take the first one's lease for
//! its own: it holds nothing until the first has been declared dead.

use super::{TAKEOVER, assert_good, on_every_store, owner_and_other, talk};
use sim::tier_b::Setup;

#[test]
fn two_incarnations_of_one_host() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 50);
        let (owner, _) = owner_and_other(world);
        for power_loss in [false, true, false] {
            let before = world.grants(0).len();
            let killed = world.now();
            match power_loss {
                false => world.kill(&owner),
                true => world.power_loss(&owner),
            }
            world.start(&owner);
            talk(world, 2, TAKEOVER, 100);
            if let [(at, epoch), ..] = world.grants(0)[before..] {
                assert!(
                    at >= killed + 3_000,
                    "epoch {epoch:?} was given while the first was not known to be dead"
                );
            }
            assert!(world.is_online(0));
        }
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}
