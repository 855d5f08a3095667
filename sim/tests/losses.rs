//! Databases that lose commits they had confirmed: a failover to a standby that was behind, or a restored backup.
//!
//! The judge forgives what was lost and nothing else. No key is used twice, no number given twice, no message shown
//! under two numbers of which none was lost; and afterwards everybody talks to everybody.

use baton_core::{
    crypto::Rng,
    flow::{Event, StopReason},
    state::{EventSeq, Seal},
};
use sim::world::{
    Options, Step, Verdict, World,
    chaos::{rest, talk},
};

const SECOND: u64 = 1_000_000;

fn world(seed: u64, accounts: usize) -> World {
    let mut world = World::new(Options {
        seed,
        accounts,
        ..Options::default()
    });
    world.link_all();
    world
}

fn assert_good(world: &World, verdict: &Verdict) {
    let said: Vec<_> = world
        .accounts()
        .iter()
        .map(|account| format!("{:?}, {:?}", account.stops, account.notices))
        .collect();
    // What comes by a retry comes late; nobody promises order across a loss.
    let verdict = Verdict {
        reordered: 0,
        ..verdict.clone()
    };
    assert!(verdict.is_good(), "{verdict:#?}\n{said:#?}");
    assert_eq!(verdict.received + verdict.forgiven, verdict.asked);
}

/// The gaps that an account's consumer was told of: (number, last number before the gap, losses).
fn gaps(world: &World, account: usize) -> Vec<(u64, u64, u64)> {
    let events = world.accounts()[account].events.iter();
    events
        .filter_map(|(seq, event)| match event {
            Event::HistoryLost { after, losses } => Some((seq.0, after.0, *losses)),
            _ => None,
        })
        .collect()
}

/// After everything, all of this arrives: every pair can still talk.
fn assert_talking(world: &mut World, seed: u8) {
    let before = world.accounts().iter().map(|account| account.events.len());
    let before: Vec<usize> = before.collect();
    let now = rest(world);
    talk(world, &mut Rng::from_seed([seed; 32]), 30, 3 * SECOND);
    let then = rest(world);
    assert_good(world, &then);
    assert_eq!(then.received - now.received, 30);
    for (account, before) in world.accounts().iter().zip(before) {
        assert!(account.online && account.events.len() > before);
    }
}

#[test]
fn a_database_that_went_back() {
    let mut world = world(1, 3);
    talk(&mut world, &mut Rng::from_seed([1; 32]), 90, 9 * SECOND);
    world.plan(3 * SECOND, Step::Copy);
    world.plan(5 * SECOND, Step::FailOver);
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    assert_eq!(world.ledger().losses(), 1);
    assert!(world.ledger().lost() > 20, "{}", world.ledger().lost());
    let history = Seal {
        timeline: 2,
        generation: 1,
    };
    for (index, account) in world.accounts().iter().enumerate() {
        assert_eq!(account.stops, [StopReason::HistoryChanged(history)]);
        let [(seq, after, 1)] = gaps(&world, index)[..] else {
            panic!("{:?}", gaps(&world, index));
        };
        assert_eq!(seq - after - 1, 10_000_000_000);
        // The book of the consumer is whole up to the gap, and behind it.
        let behind = account.events.keys().filter(|number| number.0 > seq);
        assert!(behind.count() > 5);
        assert!(account.events.contains_key(&EventSeq(after)));
    }
    assert_talking(&mut world, 11);
}

/// The second failover goes to the same standby: what was done about the first one is lost with it.
#[test]
fn two_failovers_in_a_row() {
    for seed in 0..20 {
        let mut world = world(seed, 2);
        talk(&mut world, &mut Rng::from_seed([2; 32]), 60, 9 * SECOND);
        world.plan(2 * SECOND, Step::Copy);
        world.plan(4 * SECOND, Step::FailOver);
        world.plan(6 * SECOND + seed * 20_000, Step::FailOver);
        let verdict = rest(&mut world);
        assert_good(&world, &verdict);
        for account in 0..2 {
            let gaps = gaps(&world, account);
            let [(first, after, 1), (second, again, 2)] = gaps[..] else {
                panic!("seed {seed}: {gaps:?}");
            };
            assert_eq!(after, again, "both lost the same");
            assert_eq!(second - first, 10_000_000_000);
        }
        assert_talking(&mut world, 12);
    }
}

/// An owner dies, its successor waits, claims, reads, connects: the database goes back at every moment of that.
#[test]
fn failover_in_the_middle_of_a_takeover() {
    for step in 0..40 {
        let mut world = world(step, 2);
        talk(&mut world, &mut Rng::from_seed([3; 32]), 60, 12 * SECOND);
        world.plan(SECOND, Step::Copy);
        let account = 0;
        let pause = 100_000;
        world.plan(2 * SECOND, Step::Crash { account, pause });
        // The lease runs out some six seconds after its last renewal; a takeover takes less than a second then.
        world.plan(2 * SECOND + step * 200_000, Step::FailOver);
        if step % 3 == 0 {
            let pause = 0;
            world.plan(
                2 * SECOND + step * 200_000 + 50_000,
                Step::Crash { account, pause },
            );
        }
        let verdict = rest(&mut world);
        assert_good(&world, &verdict);
        assert!((0..2).all(|account| gaps(&world, account).len() == 1));
        assert_talking(&mut world, 13);
    }
}

/// A backup is restored after a long day: one side has written more than a failover would make up for, on one chain,
/// since nobody answered.
#[test]
fn restored_backup_under_a_linked_account() {
    let mut world = world(4, 2);
    let texts = 1_500;
    for n in 0..texts {
        world.plan_text(n * 10_000, 0, 1, &format!("text {n}"));
    }
    world.plan(SECOND, Step::Copy);
    world.plan(20 * SECOND, Step::Restore);
    // Then as many again: on the same chains they would meet every key that was lost.
    for n in 0..texts {
        world.plan_text(25 * SECOND + n * 10_000, 0, 1, &format!("more {n}"));
    }
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    assert!(verdict.received as u64 >= 2 * texts - 10, "{verdict:?}");
    for account in 0..2 {
        let [(seq, after, 1)] = gaps(&world, account)[..] else {
            panic!("{:?}", gaps(&world, account));
        };
        assert_eq!(seq - after - 1, 1_000_000_000);
    }
    assert_talking(&mut world, 14);
}

/// The same conversation, with the standby a little behind at every moment of it.
#[test]
fn whenever_it_happens() {
    for at in 0..60 {
        let mut world = world(5, 2);
        talk(&mut world, &mut Rng::from_seed([5; 32]), 40, 3 * SECOND);
        let copy = at * 50_000;
        world.plan(copy, Step::Copy);
        world.plan(copy + 30_000 + at % 7 * 100_000, Step::FailOver);
        let verdict = rest(&mut world);
        assert_good(&world, &verdict);
        assert_talking(&mut world, 15);
    }
}

/// Again and again, with hardly a word in between: chains fall further behind than recipients follow, and sessions are
/// made anew.
#[test]
fn failover_after_failover() {
    let mut world = world(6, 3);
    talk(&mut world, &mut Rng::from_seed([6; 32]), 60, 30 * SECOND);
    for n in 0..12 {
        if n % 3 == 0 {
            world.plan(n * 2 * SECOND, Step::Copy);
        }
        world.plan((n * 2 + 1) * SECOND, Step::FailOver);
    }
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    assert_eq!(world.ledger().losses(), 12);
    assert_talking(&mut world, 16);
}
