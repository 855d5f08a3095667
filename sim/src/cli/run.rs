//! `sim run`: a batch of seeds of either tier. What fails is printed with the commands that show it again; the last line is
//! `N passed, M failed`.

use super::{Backend, Cryptography, Tier, again, say_gaps};
use clap::Args;
use sim::{
    batch::{Done, Length, Said, batch, cores},
    tier_b,
    world::{
        Crypto,
        plan::Plan,
        report::{Batch, Report},
    },
};
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Options {
    /// Engines alone, or the real drivers over a simulated network.
    #[arg(long, value_enum, default_value_t = Tier::A)]
    tier: Tier,
    /// The cryptography of tier A.
    #[arg(long, value_enum, default_value_t = Cryptography::Mixed)]
    crypto: Cryptography,
    /// The store of tier B.
    #[arg(long, value_enum, default_value_t = Backend::Memory)]
    backend: Backend,
    /// Print every line of the trace (tier B).
    #[arg(long)]
    trace: bool,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Say what each seed had in store.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let good = match options.tier {
        Tier::A => tier_a(options),
        Tier::B => tier_b(options),
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn end(done: &Done) {
    println!("{} passed, {} failed", done.passed, done.failed());
}

/// Engines on an event heap. A batch that is large enough fails if it has never reached something, too.
fn tier_a(options: &Options) -> bool {
    let mut all = Batch::default();
    let (mut settings, mut history, mut real) = (0, 0, 0_u64);
    let plan = |seed| {
        let mut plan = Plan::draw(seed);
        options.crypto.choose(&mut plan);
        plan
    };
    let length = Length::Seeds(options.seeds);
    let world = |seed| Report::of(plan(seed));
    let done = batch(options.from, length, cores(), world, |seed, report| {
        let Some(report) = report else {
            let text = format!("seed {seed}: the report broke down");
            return Said { good: false, text };
        };
        all.add(&report);
        real += u64::from(report.plan.crypto() == Crypto::Real);
        settings += report.verdict.settings;
        history += report.verdict.history;
        let good = report.is_good();
        let mut text = String::new();
        if options.verbose || !good {
            text = report.to_string();
        }
        if !good {
            text += &again(&report.plan);
        }
        text.truncate(text.trim_end().len());
        Said { good, text }
    });
    let gaps = say_gaps(&all);
    println!(
        "{} texts, {settings} settings, {history} messages of the past; {:.0} seeds a minute on {} cores, {real} of them \
         with real cryptography",
        all.texts,
        done.a_minute(),
        cores()
    );
    end(&done);
    done.failed() == 0 && !gaps
}

/// The real drivers and stores.
fn tier_b(options: &Options) -> bool {
    let backend = options.backend.into();
    if !tier_b::Kind::available().contains(&backend) {
        println!("there is no {backend} here");
        println!("0 passed, {} failed", options.seeds);
        return false;
    }
    // Lines of two worlds would be mixed.
    let threads = if options.trace { 1 } else { cores() };
    let mut texts = 0;
    let world = |seed| {
        let mut plan = tier_b::Plan::draw(seed, backend);
        plan.setup.crypto = options.crypto.of(seed);
        tier_b::run_with(plan, |trace| {
            if options.trace {
                trace.listen(|line| println!("{line}"));
            }
        })
    };
    let length = Length::Seeds(options.seeds);
    let done = batch(options.from, length, threads, world, |seed, report| {
        let Some(report) = report else {
            // The panic has said what it had to say.
            let text = format!(
                "seed {seed}: panicked\n  again with: sim run --tier b --from {seed} --seeds 1 --backend {backend} --verbose"
            );
            return Said { good: false, text };
        };
        texts += report.verdict.received;
        let good = report.is_good();
        let mut text = String::new();
        if options.verbose || !good {
            text = report.to_string();
        }
        text.truncate(text.trim_end().len());
        Said { good, text }
    });
    println!(
        "{texts} texts; {:.0} seeds a minute on {threads} cores",
        done.a_minute()
    );
    end(&done);
    done.failed() == 0
}
