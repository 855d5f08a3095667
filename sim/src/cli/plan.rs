//! `sim plan SEED`: what a seed has in store, as JSON to be edited and given to `sim replay --plan`.

use clap::Args;
use sim::world::plan::Plan;
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Options {
    /// Which.
    seed: u64,
    /// In words, for people.
    #[arg(long)]
    words: bool,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let plan = Plan::draw(options.seed);
    if options.words {
        print!("{plan}");
        return ExitCode::SUCCESS;
    }
    match serde_json::to_string_pretty(&plan) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
