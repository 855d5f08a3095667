//! `sim cover`: what a batch of seeds has reached, judged and done; it fails if something of that is nothing.

use super::run_all;
use clap::Args;
use sim::world::{plan::Plan, report::Batch};
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let mut batch = Batch::default();
    run_all(
        |number| (number < options.seeds).then(|| Plan::draw(options.from + number)),
        |_, report| {
            batch.add(&report);
            if !report.is_good() {
                print!("{report}");
            }
        },
    );
    print!("{batch}");
    let gaps = batch.gaps();
    for gap in &gaps {
        println!("{gap}");
    }
    println!(
        "{} texts in {} seeds; {} gaps; {} passed, {} failed",
        batch.texts,
        batch.runs,
        gaps.len(),
        batch.runs - batch.failed,
        batch.failed
    );
    if gaps.is_empty() && batch.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
