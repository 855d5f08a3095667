//! `sim diff SEED`: one seed of tier B on several stores, side by side; it stops at the first line that is not the same.

use super::Backend;
use clap::Args;
use sim::tier_b;
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Options {
    /// Which.
    seed: u64,
    /// The stores: `memory` (also called `model`), `sqlite`, `postgres`.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "memory,sqlite,postgres"
    )]
    stores: Vec<Backend>,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let stores: Vec<tier_b::Kind> = options.stores.iter().map(|store| (*store).into()).collect();
    let available = tier_b::Kind::available();
    if let Some(missing) = stores.iter().find(|store| !available.contains(store)) {
        println!("there is no {missing} here");
        return ExitCode::FAILURE;
    }
    if stores.len() < 2 {
        println!("one store differs from nothing: name two");
        return ExitCode::FAILURE;
    }
    match tier_b::diff(options.seed, &stores) {
        Ok(lines) => {
            let names: Vec<String> = stores.iter().map(ToString::to_string).collect();
            println!("{lines} lines, the same on {}", names.join(", "));
            ExitCode::SUCCESS
        }
        Err(difference) => {
            print!("{difference}");
            ExitCode::FAILURE
        }
    }
}
