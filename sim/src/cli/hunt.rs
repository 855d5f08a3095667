//! `sim hunt`: seeds until the time is over. What fails is shrunk and kept.

use super::{again, save, say_gaps};
use clap::Args;
use sim::{
    batch::{Length, Said, batch, cores},
    world::{
        plan::Plan,
        report::{Batch, Report},
        shrink::shrink,
    },
};
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

/// For one plan that fails.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Options {
    /// For how long.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// The first seed; by default one that has not been used before.
    #[arg(long)]
    from: Option<u64>,
    /// Where the plans of seeds that fail are kept.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let time = Duration::from_secs_f64(options.minutes.max(0.0) * 60.0);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let first = options
        .from
        .unwrap_or_else(|| since.map_or(0, |since| since.as_secs() << 20));
    println!("from seed {first}");
    let mut all = Batch::default();
    let mut failing = Vec::new();
    let world = |seed| Report::of(Plan::draw(seed));
    let done = batch(first, Length::Time(time), cores(), world, |seed, report| {
        let Some(report) = report else {
            let text = format!("seed {seed}: the report broke down");
            return Said { good: false, text };
        };
        all.add(&report);
        let good = report.is_good();
        let mut text = String::new();
        if !good {
            text = format!("{report}{}", again(&report.plan));
            failing.push(report.plan);
        }
        Said { good, text }
    });
    for plan in failing {
        let seed = plan.seed;
        let until = Instant::now() + PATIENCE;
        let Some(shrunk) = shrink(plan, || Instant::now() < until) else {
            println!("seed {seed} failed once and not again: that is a fault of the simulator");
            continue;
        };
        let file = options.out.join(format!("seed-{seed}.json"));
        println!(
            "seed {seed}, {}, after {} smaller plans:",
            shrunk.judge, shrunk.tried
        );
        print!("{}", shrunk.report);
        match save(&shrunk.report.plan, &file) {
            Ok(()) => println!("  again with: sim replay --plan {}", file.display()),
            Err(error) => eprintln!("{error}"),
        }
    }
    let gaps = say_gaps(&all);
    println!("{:.0} seeds a minute", done.a_minute());
    println!("{} passed, {} failed", done.passed, done.failed());
    if done.failed() == 0 && !gaps {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
