//! Engines against the simulated service, on one thread, from a seed.

use baton_core::{
    crypto::Rng,
    flow::{Event, StopReason},
};
use sim::service::faults::Fault;
use sim::world::{
    Options, Step, Verdict, World,
    chaos::{chaos, rest, talk},
};

const SECOND: u64 = 1_000_000;

fn assert_good(world: &World, verdict: &Verdict) {
    let accounts = world.accounts().iter();
    let said = accounts.map(|account| {
        format!(
            "{}: stops {:?}, notices {:?}",
            account.phone, account.stops, account.notices
        )
    });
    assert!(
        verdict.is_good(),
        "{verdict:#?}\n{:#?}",
        said.collect::<Vec<_>>()
    );
}

fn rng() -> Rng {
    Rng::from_seed([9; 32])
}

#[test]
fn two_accounts_link_and_talk() {
    let mut world = World::new(Options::default());
    world.link_all();
    talk(&mut world, &mut rng(), 40, 3 * SECOND);
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    assert_eq!((verdict.received, verdict.asked), (40, 40));
    // Nobody had to be told off.
    assert_eq!(world.service().books().anomalies(), []);
    for account in world.accounts() {
        assert_eq!(
            (&account.notices, &account.stops),
            (&Vec::new(), &Vec::new())
        );
    }
}

/// The same seed gives the same trace; another seed gives another one.
#[test]
fn one_seed_one_trace() {
    let run = |seed| {
        let mut world = World::new(Options {
            seed,
            accounts: 3,
            ..Options::default()
        });
        world.link_all();
        talk(&mut world, &mut rng(), 30, 2 * SECOND);
        world.plan(
            SECOND,
            Step::Crash {
                account: 1,
                pause: SECOND,
            },
        );
        let verdict = rest(&mut world);
        assert_good(&world, &verdict);
        world.trace()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

/// The inputs of an engine, given to another one, make it say the same things byte for byte.
#[test]
fn a_recorded_log_replays_to_identical_outputs() {
    let mut world = World::new(Options {
        seed: 3,
        accounts: 3,
        record: true,
        ..Options::default()
    });
    world.link_all();
    talk(&mut world, &mut rng(), 60, 4 * SECOND);
    world.plan(2 * SECOND, Step::Cut { account: 0 });
    world.plan(
        2 * SECOND,
        Step::Crash {
            account: 2,
            pause: 100_000,
        },
    );
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    let config = world.config();
    for account in world.accounts() {
        let outputs = account
            .replay(config.clone())
            .unwrap_or_else(|difference| panic!("{}: {difference}", account.phone));
        assert!(outputs > 100, "{outputs} outputs say little");
    }
}

/// Kills, cuts and a misbehaving service at seeded moments: nothing lost, doubled, reordered, no key used twice.
#[test]
fn chaos_loses_nothing() {
    let seeds: u64 = std::env::var("BATON_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(160);
    let first: u64 = std::env::var("BATON_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut texts = 0;
    for seed in first..first + seeds {
        let (world, plan, verdict) = chaos(seed);
        println!("{} of {} texts; {plan}", verdict.received, verdict.asked);
        assert_good(&world, &verdict);
        texts += verdict.received;
    }
    assert!(
        texts > 5 * seeds as usize,
        "{texts} texts in {seeds} seeds say little"
    );
}

/// Unlinked on the phone: the engine says so once, stops, and keeps the keys. Linked again, as another device with other
/// keys, the account goes on talking to people it has sessions of its former life with.
#[test]
fn an_account_that_was_unlinked_can_be_linked_again() {
    let mut world = World::new(Options::default());
    world.link_all();
    talk(&mut world, &mut rng(), 10, SECOND);
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    let first = world.accounts()[0].events.len();

    world.unlink(0, 1);
    world.run(world.now().mono.0 + 10 * SECOND);
    let account = &world.accounts()[0];
    assert_eq!(account.stops, [StopReason::LoggedOut(401)]);
    let (_, last) = account.events.last_key_value().unwrap();
    assert_eq!(
        (account.events.len(), last),
        (first + 1, &Event::LoggedOut { code: 401 })
    );
    // Without a command to link, a new owner leaves it alone.
    world.restart(0);
    world.run(world.now().mono.0 + 10 * SECOND);
    assert_eq!(
        world.accounts()[0].stops,
        [StopReason::LoggedOut(401), StopReason::LoggedOut(401)]
    );

    world.restart_to_link(0);
    world.run(world.now().mono.0 + 10 * SECOND);
    assert!(world.accounts()[0].online);
    talk(&mut world, &mut Rng::from_seed([4; 32]), 20, SECOND);
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    assert_eq!(verdict.received, 30);
}

/// A driver comes back to an account that was replaced, however long its engine takes to stop: a slow database delays
/// that. Found by tier A (seeds 25808, 66030 and five others): the driver of these worlds came back at one moment only, in
/// which the engine was still there, and the account was alone for ever.
#[test]
fn an_account_that_was_replaced_is_come_back_to_however_late_its_engine_stops() {
    for by in [0, 4 * SECOND, 8 * SECOND] {
        let mut world = World::new(Options::default());
        world.link_all();
        let device = world.companion(0);
        world.plan(0, Step::Slow { account: 0, by });
        world.plan_text(10, 0, 1, "before");
        let conflict = Some("replaced".to_owned());
        let replaced = Fault::StreamError {
            device,
            code: None,
            conflict,
        };
        world.plan(SECOND, Step::Fault(replaced));
        world.plan_text(2 * SECOND, 1, 0, "after");
        let fast = Step::Slow { account: 0, by: 0 };
        world.plan(20 * SECOND, fast);
        let verdict = rest(&mut world);
        assert_good(&world, &verdict);
        assert_eq!(verdict.received, 2);
        assert_eq!(world.accounts()[0].stops, [StopReason::Replaced]);
    }
}
