//! Engines against the simulated service, on one thread, from a seed.

use sim::world::{Options, World, judge};

const SECOND: u64 = 1_000_000;

#[test]
fn two_accounts_link_and_talk() {
    let mut world = World::new(Options::default());
    world.link_all();
    for n in 0..20 {
        let (from, to) = if n % 3 == 0 { (1, 0) } else { (0, 1) };
        world.plan_text(n * 50_000, from, to, &format!("text {n}"));
    }
    world.run(world.now().mono.0 + 60 * SECOND);
    let verdict = judge(&world);
    println!("{verdict:?}");
    for account in world.accounts() {
        println!(
            "{} {:?} {:?}",
            account.phone, account.stops, account.notices
        );
    }
    println!("{:?}", world.service().books().anomalies());
    assert!(verdict.is_good());
    assert_eq!(verdict.received, 20);
}
