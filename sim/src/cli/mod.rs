//! One file a subcommand.

pub(crate) mod bugs;
pub(crate) mod cover;
pub(crate) mod diff;
pub(crate) mod hunt;
pub(crate) mod meta;
pub(crate) mod plan;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod shrink;

use clap::Args;
use sim::{
    tier_b,
    world::{
        Crypto,
        bugs::Bug,
        plan::Plan,
        report::{Batch, Report},
    },
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

/// The two tiers of simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tier {
    /// Engines on an event heap: fast.
    A,
    /// The real drivers and stores over a simulated network.
    B,
}

/// What the database of tier B keeps its rows in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// The model of a store that the real ones are held to.
    #[value(alias = "model")]
    Memory,
    Sqlite,
    Postgres,
}

impl From<Backend> for tier_b::Kind {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Memory => Self::Memory,
            Backend::Sqlite => Self::Sqlite,
            Backend::Postgres => Self::Postgres,
        }
    }
}

/// What worlds of tier A encrypt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cryptography {
    /// What the product has.
    Real,
    /// Cheap stand-ins that keep its laws.
    StandIn,
    /// Real in one seed of ten, which the seed decides.
    Mixed,
}

impl std::fmt::Display for Cryptography {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Real => "real",
            Self::StandIn => "stand-in",
            Self::Mixed => "mixed",
        })
    }
}

impl Cryptography {
    /// Decides it for a plan.
    pub(crate) fn choose(self, plan: &mut Plan) {
        plan.choose(self.of(plan.seed));
    }

    /// Decides it for a seed.
    pub(crate) fn of(self, seed: u64) -> Crypto {
        match self {
            Self::Real => Crypto::Real,
            Self::StandIn => Crypto::cheapest(),
            Self::Mixed => Crypto::of_seed(seed),
        }
    }
}

/// Which plan: in a file, or of a seed; with a bug and a cryptography if they are named.
#[derive(Args)]
pub(crate) struct Which {
    /// Which.
    pub(crate) seed: Option<u64>,
    /// Take the plan in this file instead.
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    plan: Option<PathBuf>,
    /// With this old mistake.
    #[arg(long)]
    bug: Option<Bug>,
    /// And with this layer of defence off: the other half of a pair.
    #[arg(long, value_name = "BUG", requires = "bug")]
    off: Option<Bug>,
    /// With this cryptography; by default the plan's.
    #[arg(long, value_enum)]
    crypto: Option<Cryptography>,
}

impl Which {
    pub(crate) fn plan(&self) -> Result<Plan, String> {
        let mut plan = match (self.seed, &self.plan) {
            (_, Some(file)) => {
                let words = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
                let text = std::fs::read_to_string(file).map_err(|error| words(&error))?;
                serde_json::from_str(&text).map_err(|error| words(&error))?
            }
            (Some(seed), None) => Plan::draw(seed),
            (None, None) => return Err("name a seed, or a file with --plan".to_owned()),
        };
        plan.bug = self.bug.or(plan.bug);
        plan.second_bug = self.off.or(plan.second_bug);
        if let Some(crypto) = self.crypto {
            crypto.choose(&mut plan);
        }
        Ok(plan)
    }
}

/// A plan as a file.
pub(crate) fn save(plan: &Plan, file: &Path) -> Result<(), String> {
    let text = serde_json::to_string_pretty(plan).map_err(|error| error.to_string())?;
    std::fs::write(file, text + "\n").map_err(|error| format!("{}: {error}", file.display()))
}

/// How to see again what a plan of a seed has done, drawn, and how to get a smaller one.
pub(crate) fn again(plan: &Plan) -> String {
    let seed = plan.seed;
    let crypto = match plan.crypto {
        Some(Crypto::Real) => " --crypto real",
        Some(_) => " --crypto stand-in",
        None => "",
    };
    let bug = plan
        .bug
        .map_or_else(String::new, |bug| format!(" --bug {bug}"));
    format!(
        "  again with: sim replay {seed}{crypto}{bug} --html seed-{seed}.html\n  smaller with: sim shrink {seed}{crypto}{bug}"
    )
}

/// Says what a batch of tier A has never reached, judged or done. Returns whether it had to: one that is large enough is
/// expected to have no gaps, of others only their number is worth a word.
pub(crate) fn say_gaps(batch: &Batch) -> bool {
    let gaps = batch.gaps();
    if gaps.is_empty() {
        return false;
    }
    if batch.runs < Batch::ENOUGH {
        println!(
            "{} gaps, which says nothing of fewer than {} seeds",
            gaps.len(),
            Batch::ENOUGH
        );
        return false;
    }
    for gap in &gaps {
        println!("gap: {gap}");
    }
    true
}

/// Runs plans on every core, as long as `next` has one for the number that it is given; `each` sees what came of them in
/// the order of the numbers.
pub(crate) fn run_all(
    next: impl Fn(u64) -> Option<Plan> + Sync,
    mut each: impl FnMut(u64, Report),
) {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = AtomicU64::new(0);
    let (reports, reported) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (reports, count, next) = (reports.clone(), &count, &next);
            scope.spawn(move || {
                loop {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let Some(plan) = next(number) else { return };
                    if reports.send((number, Report::of(plan))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        let (mut waiting, mut done) = (BTreeMap::new(), 0);
        for (number, report) in reported {
            waiting.insert(number, report);
            while let Some(report) = waiting.remove(&done) {
                each(done, report);
                done += 1;
            }
        }
    });
}
