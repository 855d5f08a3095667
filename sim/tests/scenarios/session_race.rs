//! Two hosts turn one session's ratchet.
//!
//! A conversation is under way when its owner stands still, with messages in its socket and sends in its outbox. The next
//! owner goes on with the session as the database has it. Then the first one wakes up in the middle of what it was doing,
//! with ratchets in memory that are no longer true.

use super::{TAKEOVER, assert_good, on_every_store, talk};
use sim::tier_b::Setup;

#[test]
fn session_race() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 2_000, 50);
        for round in 0..3 {
            let owner = world.owner(0).expect("online");
            // At another moment of the conversation each time.
            talk(world, 2, 200 + 35 * round, 35);
            world.freeze(&owner);
            talk(world, 2, TAKEOVER, 150);
            assert_ne!(world.owner(0).as_ref(), Some(&owner));
            assert!(world.owner(0).is_some(), "taken over");
            world.thaw(&owner);
            talk(world, 2, 2_000, 50);
        }
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        assert!(verdict.received > 100, "{} say little", verdict.received);
    });
}
