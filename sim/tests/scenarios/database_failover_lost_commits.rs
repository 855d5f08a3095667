//! The database fails over to a standby that lacks the last commits; or somebody puts a backup back.
//!
//! Ratchets, counters and epochs go back in time, and hosts remember more than the database. What was acknowledged in the
//! lost time is lost, and an alarm says so; but no key may encrypt twice, and everything after it goes on.

use super::{on_every_store, on_stores, talk};
use sim::tier_b::{Backup, Kind, Setup, World};

/// The server counts its timelines, so everybody finds out by itself.
#[test]
fn database_failover_lost_commits() {
    let stores = Kind::available().into_iter();
    let stores = stores.filter(|store| store.has_standbys()).collect();
    on_stores(stores, Setup::default(), |world| {
        commits_are_lost(world, World::fail_over);
    });
}

/// A file has no standby; of a backup, a SQLite store finds out by itself, and the others have to be told.
#[test]
fn database_restored_lost_commits() {
    on_every_store(Setup::default(), |world| {
        commits_are_lost(world, World::restore);
    });
}

fn commits_are_lost(world: &mut World, disaster: impl Fn(&mut World, &Backup)) {
    talk(world, 2, 2_000, 50);
    let behind = world.backup();
    talk(world, 2, 1_000, 30);

    disaster(world, &behind);
    assert!(
        world.run_until(30_000, |world| world.is_online(0) && world.is_online(1)),
        "everybody goes on"
    );
    let asked = world.judge().asked;
    talk(world, 2, 3_000, 50);
    world.heal_all();
    world.run(60_000);

    let verdict = world.judge();
    assert_eq!(verdict.violations, 0, "{:#?}", verdict.complaints);
    // Losses are excused by the disaster; these are not.
    let never = [
        "one-writer",
        "one-connection",
        "durable-before-visible",
        "event-once",
    ];
    for complaint in &verdict.complaints {
        let broken = never.iter().any(|rule| complaint.contains(rule));
        assert!(!broken, "{complaint}");
    }
    // What was asked for after the disaster is not the disaster's to lose.
    let after = verdict.asked - asked;
    let missing = world.missing_of_last(after);
    assert_eq!(missing, Vec::<String>::new());
    assert!(after > 10, "{after} say little");
}
