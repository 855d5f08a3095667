//! Runs a plan to its end and says what came of it.

use super::{By, Kind, Plan, Trace, Trouble, World, service::SERVICE};
use crate::{service::settings::Change, world::Verdict};
use std::{collections::BTreeMap, fmt};

/// Progress is demanded within this after everything has healed: longer than the longest backoff, lease and query.
const REST: u64 = 180_000;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was in store.
    pub plan: Plan,
    /// The judges' word.
    pub verdict: Verdict,
    /// The trace's hash.
    pub hash: String,
    /// Lines of the trace.
    pub lines: u64,
    /// Virtual milliseconds.
    pub millis: u64,
    /// What trouble really met.
    pub effects: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Whether all is well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.verdict.is_good()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            plan,
            verdict,
            hash,
            lines,
            millis,
            effects,
        } = self;
        write!(f, "{plan}")?;
        writeln!(f, "  met: {effects:?}")?;
        writeln!(
            f,
            "  {} of {} texts, {} settings in {millis} ms, trace {hash} of {lines} lines",
            verdict.received, verdict.asked, verdict.settings
        )?;
        if !verdict.is_good() {
            writeln!(
                f,
                "  lost {}, duplicated {}, reordered {}, violations {}",
                verdict.lost, verdict.duplicated, verdict.reordered, verdict.violations
            )?;
            for complaint in &verdict.complaints {
                writeln!(f, "  broken: {complaint}")?;
            }
            let (seed, backend) = (plan.setup.seed, plan.setup.backend);
            let crypto = plan.setup.crypto.name();
            writeln!(
                f,
                "  again with: sim run --tier b --from {seed} --seeds 1 --backend {backend} --crypto {crypto} --verbose"
            )?;
        }
        Ok(())
    }
}

/// Runs the plan of a seed.
#[must_use]
pub fn run(seed: u64, backend: Kind) -> Report {
    run_with(Plan::draw(seed, backend), |_| {})
}

/// Runs a plan; `prepare` may listen to the trace.
#[must_use]
pub fn run_with(plan: Plan, prepare: impl FnOnce(&Trace)) -> Report {
    let mut world = World::new(plan.setup.clone());
    prepare(world.trace());
    let report = |world: &World, verdict: Verdict, plan: Plan| Report {
        verdict,
        hash: world.trace().hash(),
        lines: world.trace().count(),
        millis: world.now(),
        effects: world.effects(),
        plan,
    };
    if !world.try_link() {
        // Nothing has gone wrong on purpose yet but old mistakes: what the judges say of it is all there is to say.
        let mut verdict = world.judge();
        let words = "no progress: not everybody is online within a minute".to_owned();
        verdict.complaints.insert(0, words);
        return report(&world, verdict, plan);
    }
    let begin = world.now();
    // When, in which order of planning, and what: trouble and texts, and the ends of troubles as they come up.
    let mut due: BTreeMap<(u64, usize), Step> = BTreeMap::new();
    let mut planned = 0;
    let mut plan_step = |due: &mut BTreeMap<(u64, usize), Step>, at: u64, step| {
        planned += 1;
        due.insert((at, planned), step);
    };
    for (index, (at, from, to)) in plan.texts.iter().enumerate() {
        plan_step(&mut due, begin + at, Step::Text(index, *from, *to));
    }
    for (at, account, by, changes) in &plan.changes {
        let step = Step::Settings(*account, *by, changes.clone());
        plan_step(&mut due, begin + at, step);
    }
    for (at, trouble) in &plan.troubles {
        plan_step(&mut due, begin + at, Step::Begin(trouble.clone()));
    }
    let end = begin + plan.span;
    while world.now() < end {
        while let Some(entry) = due
            .first_entry()
            .filter(|entry| entry.key().0 <= world.now())
        {
            let step = entry.remove();
            if let Some((after, end)) = begin_or_end(&mut world, step, plan.setup.accounts) {
                plan_step(&mut due, world.now() + after, end);
            }
        }
        world.run(plan.setup.tick);
    }
    world.heal_all();
    if plan.is_lossy() {
        // What the service lost on the way comes again on the next connection.
        for host in 0..plan.setup.hosts {
            world.reset(&super::host_name(host), SERVICE.0);
        }
    }
    let mut verdict = world.settle(REST);
    if !plan.keeps_order() {
        verdict.reordered = 0;
    }
    report(&world, verdict, plan)
}

enum Step {
    Text(usize, usize, usize),
    Settings(usize, By, Vec<Change>),
    Begin(Trouble),
    End(Trouble),
}

/// Does a step; returns when its end is due, if it has one.
fn begin_or_end(world: &mut World, step: Step, accounts: usize) -> Option<(u64, Step)> {
    let trouble = match step {
        Step::Text(index, from, to) => {
            match from.checked_sub(accounts) {
                Some(phone) if index % 3 == 0 => {
                    world.phone_text(phone, to, &format!("echo {index}"))
                }
                Some(phone) => world.phone_text(phone, to, &format!("text {index}")),
                None => drop(world.text(from, to, &format!("text {index}"))),
            }
            return None;
        }
        Step::Settings(account, By::Phone, changes) => {
            world.phone_change(account, changes);
            return None;
        }
        Step::Settings(account, By::Engine, changes) => {
            world.change(account, changes);
            return None;
        }
        Step::End(trouble) => {
            over(world, &trouble);
            return None;
        }
        Step::Begin(trouble) => trouble,
    };
    let after = match &trouble {
        Trouble::Kill { host, down } => {
            world.is_running(host).then(|| world.kill(host));
            *down
        }
        Trouble::PowerLoss { host, down } => {
            world.is_running(host).then(|| world.power_loss(host));
            *down
        }
        Trouble::Freeze { host, millis } => {
            world.freeze(host);
            *millis
        }
        Trouble::Cut { a, b, millis } => {
            world.cut(a, b);
            *millis
        }
        Trouble::Stall { millis } => {
            world.stall_database(true);
            *millis
        }
        Trouble::RestartService { down } => {
            world.is_running(SERVICE.0).then(|| world.kill(SERVICE.0));
            *down
        }
        Trouble::Upgrade { host, pause } => {
            world.stop(host);
            *pause
        }
        Trouble::Reset { a, b } => {
            world.reset(a, b);
            return None;
        }
        Trouble::Silence { a, b } => {
            world.silence(a, b);
            return None;
        }
        Trouble::LoseAnswers { count } => {
            world.lose_answers(*count);
            return None;
        }
        Trouble::DropRequests { count } => {
            world.drop_requests(*count);
            return None;
        }
        Trouble::Jump { host, millis } => {
            world.jump(host, *millis);
            return None;
        }
        Trouble::Service(fault) => {
            world.fault(fault.clone());
            return None;
        }
    };
    Some((after, Step::End(trouble)))
}

fn over(world: &mut World, trouble: &Trouble) {
    match trouble {
        Trouble::Kill { host, .. } | Trouble::PowerLoss { host, .. } if !world.is_running(host) => {
            world.start(host);
        }
        Trouble::Upgrade { host, .. } => {
            world.upgrade(host);
            if world.is_running(host) {
                // It did not finish in time.
                world.kill(host);
            }
            world.start(host);
        }
        Trouble::Freeze { host, .. } => world.thaw(host),
        Trouble::Cut { a, b, .. } => world.heal(a, b),
        Trouble::Stall { .. } => world.stall_database(false),
        Trouble::RestartService { .. } if !world.is_running(SERVICE.0) => {
            world.start(SERVICE.0);
        }
        _ => {}
    }
}
