//! Forty accounts come back at the same moment; then one host dies, and the other takes over its share at once.

use super::{assert_good, on_every_store};
use sim::tier_b::{Setup, World};

const ACCOUNTS: usize = 40;

#[test]
fn reconnect_storm() {
    let setup = Setup {
        accounts: ACCOUNTS,
        tick: 10,
        ..Setup::default()
    };
    on_every_store(setup, |world| {
        everybody_writes(world);
        world.run(2_000);
        world.kill("service");
        world.run(2_000);
        everybody_writes(world);
        world.start("service");
        assert!(world.run_until(30_000, all_online), "after the service");

        world.kill("a");
        everybody_writes(world);
        assert!(world.run_until(30_000, all_online), "after the host");
        assert!((0..ACCOUNTS).all(|n| world.owner(n).as_deref() == Some("b")));
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        assert_eq!(verdict.received, 3 * ACCOUNTS);
    });
}

fn everybody_writes(world: &mut World) {
    for account in 0..ACCOUNTS {
        world.phone_text(0, account, "hello");
    }
}

fn all_online(world: &World) -> bool {
    (0..ACCOUNTS).all(|account| world.is_online(account))
}
