//! The connection to the service dies and nobody is told: a firewall forgot it, a machine lost its power.

use super::{assert_good, on_every_store, owner_and_other, talk};
use sim::tier_b::Setup;

#[test]
fn half_open_socket() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let (owner, _) = owner_and_other(world);
        let (logins, grants) = (world.logins(0), world.grants(0).len());

        assert!(world.silence(&owner, "service") > 0);
        talk(world, 2, 5_000, 100);
        // A ping at the latest every 30 s, 20 s of patience for the answer.
        let again = world.run_until(60_000, |world| {
            world.logins(0) > logins && world.is_online(0)
        });
        assert!(again, "the host still waits for a dead connection");

        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        assert_eq!(
            world.grants(0).len(),
            grants,
            "a dead connection is no reason to change owners"
        );
    });
}
