//! A world with trouble in it, drawn from a seed: owners killed in the middle of anything, connections cut, slow stores,
//! a service that damages, loses and withholds. Then everything heals, and the judge compares the books.

pub use super::plan::Plan;
use super::{Crypto, Step, Verdict, World, judge, plan};
use crate::service::settings::Change;
use baton_core::crypto::Rng;

const SECOND: u64 = 1_000_000;

/// Long enough for every retry, time-out and backoff to have had its turn after the last trouble.
const REST: u64 = 240 * SECOND;

/// How long a world is looked at after everything has healed, even if nothing is left to be done: a question that nobody
/// answers is given up after a minute.
const CALM: u64 = 70 * SECOND;

/// Texts in all directions over `span` microseconds.
pub fn talk(world: &mut World, rng: &mut Rng, texts: u64, span: u64) {
    let count = world.accounts.len();
    for n in 0..texts {
        let from = index(rng, count);
        let to = (from + 1 + index(rng, count - 1)) % count;
        world.plan_text(n * span / texts, from, to, &format!("text {n}"));
    }
}

fn index(rng: &mut Rng, count: usize) -> usize {
    usize::try_from(rng.below(count as u64)).unwrap_or(0)
}

/// Settings that are changed over `span` microseconds, on phones and through engines.
pub fn settle_down(world: &mut World, rng: &mut Rng, times: u64, span: u64) {
    let count = world.accounts.len();
    for _ in 0..times {
        let account = index(rng, count);
        let changes = Change::draw_some(rng);
        let step = if rng.below(2) == 0 {
            Step::Phone { account, changes }
        } else {
            Step::Change { account, changes }
        };
        world.plan(rng.below(span), step);
    }
}

/// What phones hand over in the course of `span` microseconds: most of it short, some of it twice, some of it damaged.
pub fn remember(world: &mut World, rng: &mut Rng, times: u64, span: u64) {
    let count = world.accounts.len();
    for _ in 0..times {
        let account = index(rng, count);
        let history = plan::history(rng);
        let at = rng.below(span);
        world.plan(at, Step::History { account, history });
        if rng.below(3) == 0 {
            world.plan(at + rng.below(span), Step::HistoryAgain { account });
        }
    }
}

/// Lets the world come to rest and asks the judge.
pub fn rest(world: &mut World) -> Verdict {
    world.run(world.now.0 + REST);
    judge(world)
}

/// A linked world with the plan of a seed ahead of it.
#[must_use]
pub fn prepare(seed: u64) -> (World, Plan) {
    let plan = Plan::draw(seed);
    (plan.prepare(), plan)
}

/// Runs a plan to its end.
#[must_use]
pub fn run(plan: &Plan) -> (World, Verdict) {
    run_with(plan, |_| {})
}

/// As [`run`]; `before` gets the world before anything happens in it.
#[must_use]
pub fn run_with(plan: &Plan, before: impl FnOnce(&mut World)) -> (World, Verdict) {
    let mut world = World::new(plan.options());
    before(&mut world);
    plan.enter(&mut world);
    let end = world.now.0 + REST;
    // One of eight is given all the time there is, in case that something begins when nobody expects it any more.
    if !plan.seed.is_multiple_of(8) {
        let mut until = world.now.0 + plan.heals + CALM;
        world.run(until.min(end));
        while until < end && !world.is_calm() {
            until += 20 * SECOND;
            world.run(until.min(end));
        }
    } else {
        world.run(end);
    }
    let mut verdict = judge(&world);
    if !plan.keeps_order() {
        verdict.reordered = 0;
    }
    (world, verdict)
}

/// Runs a seed to its end.
#[must_use]
pub fn chaos(seed: u64) -> (World, Plan, Verdict) {
    chaos_with(seed, Crypto::of_seed(seed))
}

/// As [`chaos`], with a cryptography of choice.
#[must_use]
pub fn chaos_with(seed: u64, crypto: Crypto) -> (World, Plan, Verdict) {
    let mut plan = Plan::draw(seed);
    plan.choose(crypto);
    let (world, verdict) = run(&plan);
    (world, plan, verdict)
}
