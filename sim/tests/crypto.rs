//! Worlds with cheap stand-ins for their cryptography: the same stories, whatever else the process does.

#![cfg(feature = "stand-in-crypto")]

use sim::world::{
    Crypto, Options, Step, World,
    chaos::{chaos, chaos_with, talk},
};

const SECOND: u64 = 1_000_000;

/// What the judge says, what was asked and shown, and when how many bytes went where, is the same with either: nothing
/// that an engine or the service decides depends on what ciphertexts look like.
#[test]
fn a_seed_tells_the_same_story_with_either_cryptography() {
    let mut texts = 0;
    for seed in 0..40 {
        let (real, _, truth) = chaos_with(seed, Crypto::Real);
        let (stand_in, _, verdict) = chaos_with(seed, Crypto::StandIn);
        assert_eq!(verdict, truth, "seed {seed}");
        assert_eq!(stand_in.story(), real.story(), "seed {seed}");
        assert_ne!(stand_in.trace(), real.trace(), "seed {seed}");
        for (one, other) in stand_in.accounts().iter().zip(real.accounts()) {
            assert_eq!(one.stops, other.stops, "seed {seed}");
            assert_eq!(one.events.len(), other.events.len(), "seed {seed}");
        }
        texts += verdict.received;
    }
    assert!(texts > 200, "{texts} texts say little");
}

fn small(seed: u64, crypto: Crypto) -> World {
    World::new(Options {
        seed,
        crypto,
        record: true,
        ..Options::default()
    })
}

fn converse(world: &mut World) {
    world.link_all();
    let mut rng = baton_core::crypto::Rng::from_seed([9; 32]);
    talk(world, &mut rng, 10, SECOND);
    world.plan(SECOND / 2, Step::Cut { account: 0 });
}

/// Two worlds, one of each kind, take turns on one thread: neither notices.
#[test]
fn worlds_of_both_kinds_take_turns() {
    let alone = |crypto| {
        let mut world = small(5, crypto);
        converse(&mut world);
        world.run(20 * SECOND);
        world.trace()
    };
    let kinds = [Crypto::Real, Crypto::StandIn];
    let expected = kinds.map(alone);
    let mut worlds = kinds.map(|crypto| small(5, crypto));
    worlds.iter_mut().for_each(converse);
    for step in 0..200 {
        for world in &mut worlds {
            world.run(step * SECOND / 10);
        }
    }
    worlds.iter_mut().for_each(|world| world.run(20 * SECOND));
    assert_eq!([0, 1].map(|n| worlds[n].trace()), expected);
    // A replay uses what the world used.
    for world in &worlds {
        for account in world.accounts() {
            assert!(account.replay(world.config()).expect("the same again") > 100);
        }
    }
}

/// Threads that run worlds of both kinds at once, in another order each: every seed has its one trace.
#[test]
fn worlds_of_both_kinds_run_side_by_side() {
    let seeds: Vec<u64> = (0..12).collect();
    let trace = |seed: u64| {
        let crypto = [Crypto::Real, Crypto::StandIn][usize::from(!seed.is_multiple_of(3))];
        let mut world = small(seed, crypto);
        converse(&mut world);
        world.run(10 * SECOND);
        world.trace()
    };
    let expected: Vec<_> = seeds.iter().map(|seed| trace(*seed)).collect();
    std::thread::scope(|scope| {
        for turn in 0..3 {
            let (seeds, expected, trace) = (&seeds, &expected, &trace);
            scope.spawn(move || {
                for n in 0..seeds.len() {
                    let n = (n * 5 + turn) % seeds.len();
                    assert_eq!(trace(seeds[n]), expected[n], "seed {n}");
                }
            });
        }
    });
}

/// One seed in ten is real, and the seed says which.
#[test]
fn one_seed_in_ten_is_real() {
    let real: Vec<u64> = (0..1000)
        .filter(|seed| Crypto::of_seed(*seed) == Crypto::Real)
        .collect();
    assert!((70..130).contains(&real.len()), "{}", real.len());
    let (world, _, verdict) = chaos(real[0]);
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!(world.trace(), chaos_with(real[0], Crypto::Real).0.trace());
}
