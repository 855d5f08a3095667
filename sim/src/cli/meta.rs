//! `sim meta`: one seed in two processes that run at the same time, compared line by line. The first line that differs is
//! the first act of whatever is not decided by the seed.

use super::{Backend, Tier};
use clap::Args;
use sim::tier_b;
use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
};

/// Lines shown before one that differs.
const CONTEXT: usize = 3;

#[derive(Args)]
pub(crate) struct Options {
    /// Which; by default a few.
    seeds: Vec<u64>,
    /// Engines alone, or the real drivers over a simulated network.
    #[arg(long, value_enum, default_value_t = Tier::A)]
    tier: Tier,
    /// The store of tier B.
    #[arg(long, value_enum, default_value_t = Backend::Memory)]
    backend: Backend,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let few = [0, 1, 2, 3, 5, 8, 13, 21];
    let seeds = match options.seeds.as_slice() {
        [] => &few[..],
        seeds => seeds,
    };
    for seed in seeds {
        match compare(*seed, options) {
            Ok(lines) => println!("seed {seed}: {lines} lines, twice the same"),
            Err(error) => {
                println!("seed {seed}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// A run in a process of its own, and what it says.
struct Run {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Run {
    fn start(seed: u64, options: &Options, noise: &str) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        let seed = seed.to_string();
        match options.tier {
            Tier::A => command.args(["replay", &seed]),
            Tier::B => {
                let backend = tier_b::Kind::from(options.backend).to_string();
                command.args(["run", "--tier", "b", "--trace", "--seeds", "1"]);
                command.args(["--from", &seed, "--backend", &backend])
            }
        };
        let mut child = command
            // Another layout of the environment and, where the system does that, of memory.
            .env("NOISE", noise)
            .env("RUST_LOG", "off")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let lines = child.stdout.take().ok_or("a process without output")?;
        let lines = BufReader::new(lines).lines();
        Ok(Self { child, lines })
    }

    /// The next line that depends on nothing but the seed: how long it took does not.
    fn line(&mut self) -> Option<String> {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find(|line| !line.contains(" seeds a minute "))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Whoever is still writing has nobody to write to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compare(seed: u64, options: &Options) -> Result<u64, String> {
    let mut one = Run::start(seed, options, "")?;
    let mut other = Run::start(seed, options, &"x".repeat(4000))?;
    let mut before = VecDeque::new();
    let mut count = 0_u64;
    loop {
        let (a, b) = (one.line(), other.line());
        if a != b {
            let before: String = before.iter().map(|line| format!("  {line}\n")).collect();
            let end = || "(the end)".to_owned();
            return Err(format!(
                "line {} differs, behind\n{before}it is\n  {}\nand\n  {}",
                count + 1,
                a.unwrap_or_else(end),
                b.unwrap_or_else(end)
            ));
        }
        let Some(line) = a else { break };
        count += 1;
        before.push_back(line);
        if before.len() > CONTEXT {
            before.pop_front();
        }
    }
    // Two processes that did not come to their end have not said the same.
    let mut ends = Vec::new();
    for run in [&mut one, &mut other] {
        ends.push(run.child.wait().map_err(|error| error.to_string())?);
    }
    if ends[0] != ends[1] {
        return Err(format!(
            "one ended with {}, the other with {}",
            ends[0], ends[1]
        ));
    }
    if ends[0].code().is_none() || count == 0 {
        return Err(format!("both ended with {} after {count} lines", ends[0]));
    }
    Ok(count)
}
