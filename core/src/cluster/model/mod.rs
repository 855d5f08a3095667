//! Fleets under a random scheduler, against a model of the store: see `world` for what can happen.

mod store;
mod world;

use crate::{
    cluster::Timing,
    state::{AccountId, BusinessId},
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use world::{Fault, Planned, Setup, World, healed};

fn account(device: u64) -> AccountId {
    AccountId {
        business: BusinessId::default(),
        device,
    }
}

/// After the last fault, so many milliseconds until every account is connected: a lease that runs out (6 s), a judge with
/// an unbroken series (6 s), a scan (2.2 s), a grace for each of five hosts (1.5 s), loading and connecting; and, for
/// accounts that were pulled about, the pauses after a conflict (5 s) or failed starts (1 s, 1 s, 5 s).
const BOUND: u64 = 30_000;

fn setup(seed: u64, nodes: usize, accounts: u64) -> Setup {
    Setup {
        seed,
        nodes,
        accounts,
        timing: Timing::default(),
        drift: vec![0; nodes],
        presence: false,
        strict: true,
    }
}

fn plan(faults: BoxedStrategy<Fault>, nodes: usize) -> impl Strategy<Value = Vec<Planned>> {
    let single = (0..40_000_u64, 10..15_000_u64, 0..nodes, faults)
        .prop_map(|(at, lasts, node, fault)| vec![one(at, lasts, node, fault)]);
    // Aimed: asleep for about as long as the lease holds, and then alone with whatever it believes.
    let asleep = prop_oneof![Just(Fault::Freeze), Just(Fault::Suspend)];
    let aimed = (
        5_000..40_000_u64,
        3_000..7_000_u64,
        0..500_u64,
        0..nodes,
        asleep,
    )
        .prop_map(|(at, sleep, awake, node, fault)| {
            let cut = Fault::Cut {
                out: true,
                back: true,
            };
            vec![
                one(at, sleep, node, fault),
                one(at + sleep + awake, 12_000, node, cut),
            ]
        });
    let faults = prop_oneof![4 => single, 1 => aimed];
    proptest::collection::vec(faults, 0..8).prop_map(|plan| plan.concat())
}

/// Faults under which nobody may ever act beside another.
fn honest() -> BoxedStrategy<Fault> {
    prop_oneof![
        3 => Just(Fault::Freeze),
        2 => Just(Fault::Suspend),
        3 => Just(Fault::Crash),
        3 => Just(Fault::Cut { out: true, back: true }),
        2 => Just(Fault::Cut { out: true, back: false }),
        2 => Just(Fault::Cut { out: false, back: true }),
        2 => Just(Fault::Flaky),
        2 => Just(Fault::Egress),
        2 => Just(Fault::DbDown),
        2 => Just(Fault::Leave),
        1 => Just(Fault::Drain),
        1 => Just(Fault::EngineCrash),
    ]
    .boxed()
}

/// And those under which only the fence is left.
fn cruel() -> BoxedStrategy<Fault> {
    prop_oneof![
        4 => honest(),
        2 => Just(Fault::Failover),
        2 => Just(Fault::PresenceLost),
    ]
    .boxed()
}

fn setups(strict: bool) -> impl Strategy<Value = Setup> {
    let drift = proptest::collection::vec(-9_000..9_000_i64, 5);
    (any::<u64>(), 3..=5_usize, 1..12_u64, drift, any::<bool>()).prop_map(
        move |(seed, nodes, accounts, drift, presence)| Setup {
            drift,
            presence,
            strict,
            ..setup(seed, nodes, accounts)
        },
    )
}

fn scenario(strict: bool) -> impl Strategy<Value = (Setup, Vec<Planned>)> {
    setups(strict).prop_flat_map(move |setup| {
        let faults = if strict { honest() } else { cruel() };
        let plan = plan(faults, setup.nodes);
        (Just(setup), plan)
    })
}

fn check(setup: Setup, plan: Vec<Planned>) -> Result<(), TestCaseError> {
    let accounts = setup.accounts;
    let healed = healed(&plan);
    let mut world = World::new(setup, plan);
    world.run(healed + BOUND);
    prop_assert_eq!(&world.broken, &None);
    prop_assert_eq!(world.served(), accounts, "not everybody is served");
    // And it stays so.
    world.run(healed + BOUND + 5_000);
    prop_assert_eq!(&world.broken, &None);
    prop_assert_eq!(world.served(), accounts, "not everybody is served any more");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// With clocks within the drift: nobody acts beside another, or after being declared dead; no epoch is given twice,
    /// no batch is taken for another; and afterwards everybody is served.
    #[test]
    fn nobody_acts_beside_another((setup, plan) in scenario(true)) {
        check(setup, plan)?;
    }

    /// Whatever is lost, of the database's commits too: the fences hold, and afterwards everybody is served.
    #[test]
    fn the_fences_hold((setup, plan) in scenario(false)) {
        check(setup, plan)?;
    }
}

fn quiet(nodes: usize, accounts: u64, presence: bool) -> Setup {
    Setup {
        presence,
        ..setup(11, nodes, accounts)
    }
}

fn one(at: u64, lasts: u64, node: usize, fault: Fault) -> Planned {
    Planned {
        at,
        lasts,
        node,
        fault,
    }
}

/// Milliseconds from `from` on until everybody is served.
fn recovery(world: &mut World, accounts: u64, from: u64) -> u64 {
    let mut at = from;
    while world.served() < accounts && at < from + 60_000 {
        at += 50;
        world.run(at);
    }
    assert_eq!(world.broken, None);
    at - from
}

#[test]
fn a_crash_is_made_good_in_half_a_second_with_presence_and_in_eight_without() {
    for (presence, bound) in [(true, 700), (false, 9_000)] {
        let crash = one(20_000, 60_000, 0, Fault::Crash);
        let mut world = World::new(quiet(3, 30, presence), vec![crash]);
        world.run(19_999);
        assert_eq!(world.served(), 30);
        world.run(20_001);
        assert!(world.served() < 30);
        let took = recovery(&mut world, 30, 20_001);
        assert!(took <= bound, "{took} ms with presence: {presence}");
        assert_eq!(world.replaced, 0);
    }
}

#[test]
fn accounts_are_spread_and_only_those_of_the_dead_move() {
    let crash = one(20_000, 60_000, 0, Fault::Crash);
    let mut world = World::new(quiet(3, 20, true), vec![crash]);
    let of = |world: &World, node| -> BTreeSet<AccountId> {
        let fleet = world.fleet(node).into_iter();
        fleet
            .flat_map(|fleet| fleet.accounts().map(|(account, _)| account.clone()))
            .collect()
    };
    world.run(19_999);
    let before = [0, 1, 2].map(|node| of(&world, node));
    for had in &before {
        assert!((4..=10).contains(&had.len()), "{before:?}");
    }
    assert!(recovery(&mut world, 20, 20_001) < 1_000);
    for node in [1, 2] {
        let has = of(&world, node);
        assert!(has.is_superset(&before[node]), "{node} keeps what it has");
        assert!((7..=13).contains(&has.len()), "{has:?}");
    }
}

#[test]
fn a_planned_end_is_silent_and_quick() {
    let leave = one(20_000, 30_000, 1, Fault::Leave);
    let mut world = World::new(quiet(3, 120, true), vec![leave]);
    world.run(19_999);
    let held = world
        .fleet(1)
        .map(|fleet| fleet.accounts().count())
        .unwrap();
    assert!(held > 20);
    world.run(23_000);
    let exited = world.exited(1).expect("it is gone");
    assert!(exited < 23_000, "after {} ms", exited - 20_000);
    assert!(recovery(&mut world, 120, 23_000) < 1_000);
    // Each of its accounts went to a successor by compare-and-swap, none was taken, nobody was replaced.
    assert_eq!(world.db.hand_overs as usize, held);
    assert_eq!((world.db.deaths, world.replaced), (0, 0));
    assert_eq!(world.moved.values().sum::<u64>() as usize, 120 + held);
}

#[test]
fn a_rolling_update_replaces_nobody() {
    let plan = (0..4)
        .map(|n| one(20_000 + n as u64 * 10_000, 5_000, n, Fault::Leave))
        .collect();
    let mut world = World::new(quiet(4, 60, true), plan);
    world.run(70_000);
    assert_eq!(recovery(&mut world, 60, 70_000), 0);
    assert_eq!((world.db.deaths, world.replaced), (0, 0));
}

#[test]
fn the_last_host_leaves_without_successors_and_in_time() {
    let leave = one(20_000, 60_000, 0, Fault::Leave);
    let mut world = World::new(quiet(1, 40, false), vec![leave]);
    world.run(25_000);
    let exited = world.exited(0).expect("it is gone");
    assert!(exited < 22_500, "after {} ms", exited - 20_000);
    assert!(world.db.fences.values().all(|fence| fence.holder.is_none()));
}

#[test]
fn leaving_without_a_database_ends_in_time_too() {
    let plan = vec![
        one(19_000, 60_000, 0, Fault::DbDown),
        one(20_000, 59_000, 0, Fault::Leave),
    ];
    let mut world = World::new(quiet(2, 40, false), plan);
    world.run(60_000);
    let exited = world.exited(0).expect("it is gone");
    assert!(exited < 20_000 + 25_000 + 2_000 + 5_500, "at {exited} ms");
}

#[test]
fn a_database_that_is_away_for_half_a_minute_moves_nothing() {
    let mut world = World::new(
        quiet(3, 30, false),
        vec![one(20_000, 30_000, 0, Fault::DbDown)],
    );
    world.run(49_999);
    assert_eq!(world.served(), 0, "everybody is silent");
    assert!(recovery(&mut world, 30, 50_000) < 3_500);
    world.run(60_000);
    assert_eq!((world.db.deaths, world.replaced), (0, 0));
    assert_eq!(
        world.moved.values().sum::<u64>(),
        30,
        "no engine was built anew"
    );
}

#[test]
fn a_short_pause_moves_nothing() {
    for fault in [
        Fault::Freeze,
        Fault::Suspend,
        Fault::Cut {
            out: true,
            back: true,
        },
    ] {
        let mut world = World::new(quiet(3, 30, false), vec![one(20_000, 3_500, 0, fault)]);
        world.run(30_000);
        assert_eq!(world.served(), 30);
        assert_eq!(world.db.deaths, 0, "{fault:?}");
    }
}

/// What it asks still arrives, but it must not live on without hearing an answer.
#[test]
fn a_host_that_can_speak_but_not_hear_is_given_up() {
    let deaf = Fault::Cut {
        out: false,
        back: true,
    };
    let mut world = World::new(quiet(3, 30, false), vec![one(20_000, 90_000, 0, deaf)]);
    world.run(26_000);
    assert!(world.served() < 30);
    let took = recovery(&mut world, 30, 26_000);
    assert!(took < 6_000, "{took} ms");
}

#[test]
fn a_host_without_the_service_loses_its_accounts_to_others() {
    let mut world = World::new(
        quiet(3, 30, true),
        vec![one(20_000, 100_000, 2, Fault::Egress)],
    );
    world.run(20_200);
    assert!(world.served() < 30);
    let took = recovery(&mut world, 30, 20_200);
    assert!((10_000..22_000).contains(&took), "{took} ms");
    assert_eq!(
        world.fleet(2).map(|fleet| fleet.accounts().count()),
        Some(0)
    );
}

#[test]
fn a_standby_without_accounts_is_tried_before_it_is_trusted() {
    // The second host comes later, so all accounts are with the first; then that loses the service.
    let plan = vec![
        one(1, 20_000, 1, Fault::Crash),
        one(30_000, 100_000, 0, Fault::Egress),
    ];
    let mut world = World::new(quiet(2, 10, true), plan);
    world.run(29_000);
    assert_eq!(
        world.fleet(0).map(|fleet| fleet.accounts().count()),
        Some(10)
    );
    world.run(47_500);
    assert_eq!(
        world.fleet(1).map(|fleet| fleet.accounts().count()),
        Some(1),
        "a canary"
    );
    assert!(recovery(&mut world, 10, 47_500) < 25_000);
}

#[test]
fn a_new_host_gets_its_part_slowly() {
    let mut world = World::new(quiet(3, 12, true), vec![one(1, 30_000, 2, Fault::Crash)]);
    let has = |world: &World| world.fleet(2).map(|fleet| fleet.accounts().count());
    world.run(295_000);
    assert_eq!(has(&world), Some(0), "not so soon");
    world.run(430_000);
    // A share is 4; the two others give what they have above 5.
    assert!(matches!(has(&world), Some(2..=4)), "{:?}", has(&world));
    assert_eq!((world.replaced, world.served()), (0, 12));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let plan = vec![
            one(5_000, 9_000, 0, Fault::Freeze),
            one(9_000, 4_000, 1, Fault::Crash),
            one(15_000, 9_000, 2, Fault::Flaky),
        ];
        let mut world = World::new(quiet(3, 10, true), plan);
        world.run(40_000);
        (world.acts, world.moved.clone(), world.db.given.len())
    };
    assert_eq!(run(), run());
}
