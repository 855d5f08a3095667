//! The database takes calls and does nothing about them: a full disk queue, a lock, a standby that does not answer.

use super::{assert_good, on_every_store, talk};
use sim::tier_b::Setup;

/// Shorter than a lease: connections stand, and everything that waited goes through.
#[test]
fn database_stall() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let before: Vec<_> = (0..2)
            .map(|n| (world.logins(n), world.grants(n).len()))
            .collect();
        world.stall_database(true);
        talk(world, 2, 3_000, 50);
        world.stall_database(false);
        talk(world, 2, 2_000, 100);
        let after: Vec<_> = (0..2)
            .map(|n| (world.logins(n), world.grants(n).len()))
            .collect();
        assert_eq!(before, after, "logins and grants");
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}

/// Half a minute: all leases run out, and nobody may declare anybody dead. Everybody keeps what it had.
#[test]
fn a_long_stall_is_nobodys_death() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let owners: Vec<_> = (0..2).map(|n| world.owner(n)).collect();
        world.stall_database(true);
        talk(world, 2, 30_000, 200);
        world.stall_database(false);
        talk(world, 2, 3_000, 100);
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        let now: Vec<_> = (0..2).map(|n| world.owner(n)).collect();
        assert_eq!(now, owners);
    });
}
