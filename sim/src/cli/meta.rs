//! `sim meta`: one seed in two processes that run at the same time, compared line by line. The first line that differs is
//! the first act of whatever is not decided by the seed.

use clap::Args;
use std::{
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Which; by default a few.
    seeds: Vec<u64>,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let few = [0, 1, 2, 3, 5, 8, 13, 21];
    let seeds = match options.seeds.as_slice() {
        [] => &few[..],
        seeds => seeds,
    };
    for seed in seeds {
        match compare(*seed) {
            Ok(lines) => println!("seed {seed}: {lines} lines, twice the same"),
            Err(error) => {
                println!("seed {seed}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn start(seed: u64, noise: &str) -> Result<(Child, Lines<BufReader<ChildStdout>>), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program)
        .args(["replay", &seed.to_string()])
        // Another layout of the environment and, where the system does that, of memory.
        .env("NOISE", noise)
        .env("RUST_LOG", "off")
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let lines = child.stdout.take().ok_or("a process without output")?;
    Ok((child, BufReader::new(lines).lines()))
}

fn compare(seed: u64) -> Result<u64, String> {
    let (mut one, mut ours) = start(seed, "")?;
    let (mut other, mut theirs) = start(seed, &"x".repeat(4000))?;
    let mut count = 0;
    let end = loop {
        let line = |lines: &mut Lines<_>| lines.next().and_then(Result::ok);
        match (line(&mut ours), line(&mut theirs)) {
            (None, None) => break Ok(count),
            (a, b) if a == b => count += 1,
            (a, b) => {
                let end = || "(the end)".to_owned();
                break Err(format!(
                    "line {count} is\n  {}\nand\n  {}",
                    a.unwrap_or_else(end),
                    b.unwrap_or_else(end)
                ));
            }
        }
    };
    for child in [&mut one, &mut other] {
        // Whoever is still writing has nobody to write to.
        let _ = child.kill();
        let _ = child.wait();
    }
    end
}
