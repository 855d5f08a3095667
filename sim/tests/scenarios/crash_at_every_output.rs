//! The owner is killed at every moment of taking in a message, answering it and having the answer acknowledged.
//!
//! One conversation, many worlds: each is the same up to the moment of the crash, one tick later than in the one before.

use super::{assert_good, on_every_store, on_stores, owner_and_other};
use sim::tier_b::{Kind, Setup, World};

/// A question, its answer and what follows take about so many milliseconds.
const CONVERSATION: u64 = 150;

#[test]
fn crash_at_every_output() {
    for crash in (0..CONVERSATION).step_by(10) {
        on_every_store(hosts(), |world| the_owner_dies(world, crash));
    }
}

/// The moments between those, on the fastest store.
#[test]
fn crash_at_every_tick() {
    for crash in (0..CONVERSATION).step_by(2) {
        on_stores(vec![Kind::Memory], hosts(), |world| {
            the_owner_dies(world, crash);
        });
    }
}

fn hosts() -> Setup {
    Setup {
        accounts: 1,
        tick: 2,
        latency: (1, 5),
        ..Setup::default()
    }
}

fn the_owner_dies(world: &mut World, after: u64) {
    let (owner, _) = owner_and_other(world);
    world.phone_text(0, 0, "echo is anybody there?");
    world.text(0, 1, "and something of our own");
    world.run(after);
    match after % 4 {
        0 => world.kill(&owner),
        _ => world.power_loss(&owner),
    }
    world.run(500);
    world.phone_text(0, 0, "echo and now?");
    let verdict = world.rest(60_000);
    assert_good(world, &verdict);
}
