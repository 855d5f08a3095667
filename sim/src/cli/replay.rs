//! `sim replay`: one run of tier A, told line by line: when, who, what. The broken rule stands at the end. Or a journal of
//! `baton serve --record`, done again: where this program does something else than the one that wrote it, it stops.

use super::Which;
use baton_core::{
    crypto::SecretKey,
    journal::{self, Seen},
};
use clap::Args;
use sim::world::{World, chaos, judge};
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    which: Which,
    /// Stop at this time, in seconds of the simulated world: what is unfinished then is called lost.
    #[arg(long, value_name = "T")]
    until: Option<f64>,
    /// Draw it: one page for a browser, which opens at what is wrong.
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    html: Option<PathBuf>,
    /// Do a journal of `baton serve --record` again instead.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "plan"], requires = "key_file")]
    record: Option<PathBuf>,
    /// The master key of the process that wrote it.
    #[arg(long, value_name = "FILE", requires = "record")]
    key_file: Option<PathBuf>,
    /// Say only what was planned and what was wrong.
    #[arg(long)]
    quiet: bool,
}

/// Addresses, texts and keys are not shown; the engine's inputs and outputs do not show them.
fn journal(file: &Path, key: &Path, options: &Options) -> Result<ExitCode, String> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let key = String::from_utf8(read(key)?).map_err(|_| "the key file is not text".to_owned())?;
    let master = SecretKey::parse(&key).map_err(|error| error.to_string())?;
    let file = read(file)?;
    let (mut began, until) = (None, options.until.map(|seconds| (seconds * 1e6) as u64));
    let mut time = 0;
    let done = journal::replay(&master, &file, |line, seen| {
        if let Seen::Input(now, _) = seen {
            time = now.mono.0 - *began.get_or_insert(now.mono.0);
        }
        if options.quiet || until.is_some_and(|until| time > until) {
            return;
        }
        let seconds = time as f64 / 1e6;
        // Whoever reads may have seen enough.
        drop(match seen {
            Seen::Input(_, input) => {
                writeln!(std::io::stdout(), "{line:6} {seconds:12.6}  {input:?}")
            }
            Seen::Output(output) => {
                writeln!(std::io::stdout(), "{line:6} {seconds:12.6}    → {output:?}")
            }
        });
    });
    match done {
        Ok(done) => {
            println!(
                "{} lines, {} inputs, {} outputs: the same as then, byte for byte",
                done.lines, done.inputs, done.outputs
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn run(options: &Options) -> ExitCode {
    if let (Some(file), Some(key)) = (&options.record, &options.key_file) {
        return journal(file, key, options).unwrap_or_else(|error| {
            eprintln!("{error}");
            ExitCode::FAILURE
        });
    }
    let plan = match options.which.plan() {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    print!("{plan}");
    let listen = |world: &mut World| {
        if !options.quiet {
            // Whoever reads may have seen enough.
            world.listen(|line| drop(writeln!(std::io::stdout(), "{line}")));
        }
        if options.html.is_some() {
            world.record();
        }
    };
    let (mut world, verdict) = match options.until {
        Some(until) => {
            let mut world = World::new(plan.options());
            listen(&mut world);
            plan.enter(&mut world);
            world.run((until * 1e6) as u64);
            let verdict = judge(&world);
            (world, verdict)
        }
        None => chaos::run_with(&plan, listen),
    };
    for (fault, effects) in plan.faults.iter().zip(world.effects()) {
        println!("{fault}: {effects} effects");
    }
    let trace: String = world
        .trace()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("trace {trace}");
    if let Some(file) = &options.html
        && let Some(timeline) = world.timeline(&plan, &verdict)
    {
        if let Err(error) = std::fs::write(file, timeline.page()) {
            eprintln!("{}: {error}", file.display());
            return ExitCode::FAILURE;
        }
        println!("timeline in {}", file.display());
    }
    if verdict.is_good() {
        println!(
            "nothing was wrong: {} of {} texts",
            verdict.received, verdict.asked
        );
        return ExitCode::SUCCESS;
    }
    println!("{verdict:#?}");
    ExitCode::FAILURE
}
