//! The service is gone for a while, and everybody comes back.

use super::{assert_good, on_every_store, talk};
use sim::tier_b::Setup;

#[test]
fn service_restart() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let grants: Vec<_> = (0..2).map(|n| world.grants(n)).collect();
        // Killed: connections are closed. Then without power: nobody is told.
        world.kill("service");
        talk(world, 2, 3_000, 100);
        world.start("service");
        assert!(world.run_until(15_000, |world| world.is_online(0) && world.is_online(1)));
        talk(world, 2, 1_000, 100);
        world.power_loss("service");
        talk(world, 2, 3_000, 100);
        world.start("service");
        talk(world, 2, 1_000, 100);
        let verdict = world.rest(90_000);
        assert_good(world, &verdict);
        let now: Vec<_> = (0..2).map(|n| world.grants(n)).collect();
        assert_eq!(now, grants, "no reason to change owners");
    });
}
