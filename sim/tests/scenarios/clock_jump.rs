//! Wall clocks are wrong: an hour ahead, half a day behind, ten years off.

use super::{assert_good, on_every_store, talk};
use sim::tier_b::Setup;

#[test]
fn clock_jump() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let before: Vec<_> = (0..2)
            .map(|n| (world.logins(n), world.grants(n).len()))
            .collect();
        const HOUR: i64 = 3_600_000;
        const DECADE: i64 = 10 * 365 * 24 * HOUR;
        for jump in [HOUR, -12 * HOUR, DECADE, -DECADE] {
            world.jump("a", jump);
            world.jump("b", -jump);
            talk(world, 2, 2_000, 100);
        }
        let after: Vec<_> = (0..2)
            .map(|n| (world.logins(n), world.grants(n).len()))
            .collect();
        assert_eq!(before, after, "logins and grants");

        // A takeover between hosts that disagree about the date. (Not by decades: who believes that the service's
        // certificate is not valid yet cannot log in, and should not.)
        let owner = world.owner(0).expect("online");
        world.kill(&owner);
        talk(world, 2, 10_000, 200);
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}
