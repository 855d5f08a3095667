//! `sim shrink`: the smallest plan that still breaks the same rule, in words and as a file.

use super::{Which, save};
use clap::Args;
use sim::world::shrink::shrink;
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    which: Which,
    /// For how long at most.
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Where the smallest plan goes; by default `shrunk-SEED.json`.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let plan = match options.which.plan() {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let seed = plan.seed;
    let (faults, work) = (plan.faults.len(), plan.work.len());
    let began = Instant::now();
    let until = began + Duration::from_secs(options.seconds);
    let Some(shrunk) = shrink(plan, || Instant::now() < until) else {
        println!("nothing is wrong with it");
        return ExitCode::FAILURE;
    };
    let plan = &shrunk.report.plan;
    println!(
        "{}: {faults} faults and {work} tasks are now {} and {}, after {} plans in {:.1} s",
        shrunk.judge,
        plan.faults.len(),
        plan.work.len(),
        shrunk.tried,
        began.elapsed().as_secs_f64()
    );
    print!("{}", shrunk.report);
    let file = options
        .out
        .clone()
        .unwrap_or_else(|| format!("shrunk-{seed}.json").into());
    match save(plan, &file) {
        Ok(()) => {
            println!("again with: sim replay --plan {}", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
