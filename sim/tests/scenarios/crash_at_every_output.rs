//! The owner is killed at every moment of taking in a message, answering it and having the answer acknowledged.
//!
//! One conversation, many worlds: each is the same up to the moment of the crash, one tick later than in the one before.

use super::{assert_good, on_every_store, owner_and_other};
use sim::tier_b::Setup;

#[test]
fn crash_at_every_output() {
    let setup = Setup {
        accounts: 1,
        tick: 2,
        latency: (1, 5),
        ..Setup::default()
    };
    // A question, its answer and what follows take about 150 ms; one moment in five, shifted by the seed of the run.
    for crash in (0..150).step_by(10) {
        let setup = Setup {
            seed: 1 + crash % 3,
            ..setup.clone()
        };
        on_every_store(setup, |mut world| {
            let (owner, _) = owner_and_other(&world);
            world.phone_text(0, 0, "echo is anybody there?");
            world.text(0, 1, "and something of our own");
            world.run(crash);
            match crash % 4 {
                0 | 1 => world.kill(&owner),
                _ => world.power_loss(&owner),
            }
            world.run(500);
            world.phone_text(0, 0, "echo and now?");
            let verdict = world.rest(60_000);
            assert_good(&world, &verdict);
        });
    }
}
