//! Three hosts, upgraded one after the other under traffic.

use super::{assert_good, on_every_store, talk};
use sim::tier_b::Setup;

#[test]
fn rolling_upgrade() {
    let setup = Setup {
        hosts: 3,
        accounts: 3,
        ..Setup::default()
    };
    on_every_store(setup, |world| {
        talk(world, 3, 2_000, 100);
        for host in ["a", "b", "c"] {
            world.stop(host);
            talk(world, 3, 2_000, 100);
            assert!(!world.is_running(host), "{host} has gone");
            for account in 0..3 {
                assert!(
                    world.is_online(account),
                    "account {account} is online elsewhere"
                );
            }
            world.upgrade(host);
            world.start(host);
            talk(world, 3, 1_000, 100);
        }
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        // Whoever hands over closes its connection first.
        assert_eq!((0..3).map(|n| world.replaced(n)).sum::<usize>(), 0);
    });
}
