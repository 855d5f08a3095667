//! `sim bugs`: old mistakes, put back one at a time: who finds each, and in how many seeds.

use super::run_all;
use clap::Args;
use sim::world::{bugs::Bug, judges::Judge, plan::Plan};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::Mutex,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Which; by default all.
    names: Vec<Bug>,
    /// How many seeds are tried at most.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Go on when it is found, to see in how many of the seeds it is.
    #[arg(long)]
    all: bool,
}

/// What is known of one.
#[derive(Default)]
struct Case {
    tried: u64,
    /// The first seed, counted from one, and who found it there.
    first: Option<(u64, BTreeSet<Judge>)>,
    failed: u64,
    changed: u64,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let bugs = match options.names.as_slice() {
        [] => Bug::ALL,
        names => names,
    };
    let wells: Mutex<BTreeMap<u64, [u8; 32]>> = Mutex::default();
    let mut good = true;
    let mut finders: BTreeSet<Judge> = BTreeSet::new();
    println!("| bug | what is wrong | found by | seeds to find | traces changed |");
    println!("|---|---|---|---|---|");
    for bug in bugs {
        let mut case = Case::default();
        // A round at a time, so that what is found at once costs little.
        while case.tried < options.seeds && (options.all || case.first.is_none()) {
            let (from, round) = (case.tried, 8.min(options.seeds - case.tried));
            let unknown: Vec<u64> = {
                let Ok(known) = wells.lock() else { break };
                (from..from + round)
                    .filter(|seed| !known.contains_key(seed))
                    .collect()
            };
            run_all(
                |n| {
                    unknown
                        .get(usize::try_from(n).ok()?)
                        .map(|seed| Plan::draw(*seed))
                },
                |_, report| {
                    if let Ok(mut known) = wells.lock() {
                        known.insert(report.plan.seed, report.trace);
                    }
                    if !report.is_good() {
                        good = false;
                        print!("without any bug: {report}");
                    }
                },
            );
            run_all(
                |n| {
                    let mut plan = (n < round).then(|| Plan::draw(from + n))?;
                    plan.bug = Some(*bug);
                    Some(plan)
                },
                |_, report| {
                    case.tried += 1;
                    let seed = report.plan.seed;
                    let well = wells
                        .lock()
                        .ok()
                        .and_then(|known| known.get(&seed).copied());
                    case.changed += u64::from(well != Some(report.trace));
                    if !report.is_good() {
                        case.failed += 1;
                        let tried = case.tried;
                        case.first.get_or_insert_with(|| (tried, report.guilty()));
                    }
                },
            );
        }
        let (by, seeds) = match &case.first {
            Some((seeds, judges)) => {
                finders.extend(judges);
                let names: Vec<&str> = judges.iter().map(|judge| judge.name()).collect();
                (names.join(", "), seeds.to_string())
            }
            None => ("**nobody**".to_owned(), format!("more than {}", case.tried)),
        };
        good &= case.first.is_some();
        let changed = case.changed as f64 * 100.0 / case.tried.max(1) as f64;
        let failed = match options.all {
            true => format!(" ({} of {} fail)", case.failed, case.tried),
            false => String::new(),
        };
        println!(
            "| `{bug}` | {} | {by} | {seeds}{failed} | {changed:.0} % |",
            bug.words()
        );
    }
    if options.names.is_empty() {
        let never = Judge::ALL.iter().filter(|judge| !finders.contains(judge));
        let never: Vec<&str> = never.map(|judge| judge.name()).collect();
        println!("\njudges that found none first: {}", never.join(", "));
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
