//! The database fails over to a standby that lacks the last commits.
//!
//! Ratchets, counters and epochs go back in time, and hosts remember more than the database. What was acknowledged in the
//! lost time is lost, and an alarm says so; but no key may encrypt twice, and everything after it goes on.

use super::{on_every_store, talk};
use sim::tier_b::Setup;

#[test]
fn database_failover_lost_commits() {
    on_every_store(Setup::default(), |mut world| {
        talk(&mut world, 2, 2_000, 50);
        let standby = world.backup();
        talk(&mut world, 2, 1_000, 30);

        world.fail_over(&standby);
        assert!(
            world.run_until(30_000, |world| world.is_online(0) && world.is_online(1)),
            "everybody goes on"
        );
        let asked = world.judge().asked;
        talk(&mut world, 2, 3_000, 50);
        world.heal_all();
        world.run(60_000);

        let verdict = world.judge();
        assert_eq!(verdict.violations, 0, "{:#?}", verdict.complaints);
        // What was asked for after the failover is not the failover's to lose.
        let after = verdict.asked - asked;
        let missing = world.missing_of_last(after);
        assert_eq!(missing, Vec::<String>::new());
        assert!(after > 10, "{after} say little");
    });
}
