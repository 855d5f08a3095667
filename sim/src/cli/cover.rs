//! `sim cover`: what a batch of seeds has reached, judged and done; it fails if something of that is nothing.

use super::again;
use clap::Args;
use sim::{
    batch::{Length, Said, batch, cores},
    world::{
        plan::Plan,
        report::{Batch, Report},
    },
};
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
    let mut all = Batch::default();
    let length = Length::Seeds(options.seeds);
    let world = |seed| Report::of(Plan::draw(seed));
    let done = batch(options.from, length, cores(), world, |seed, report| {
        let Some(report) = report else {
            let text = format!("seed {seed}: the report broke down");
            return Said { good: false, text };
        };
        all.add(&report);
        let good = report.is_good();
        let text = match good {
            true => String::new(),
            false => format!("{report}{}", again(&report.plan)),
        };
        Said { good, text }
    });
    print!("{all}");
    let gaps = all.gaps();
    for gap in &gaps {
        println!("{gap}");
    }
    println!(
        "{} texts in {} seeds; {} gaps; {:.0} seeds a minute",
        all.texts,
        done.seeds,
        gaps.len(),
        done.a_minute()
    );
    println!("{} passed, {} failed", done.passed, done.failed());
    if gaps.is_empty() && done.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
