//! `baton host`: `baton serve` for the demonstration and the tests, with switches that nobody else should have.

use crate::{
    cli::Common,
    serve::{
        self,
        trouble::{Naive, Troubled},
    },
    setup::{self, Failure},
    store::{self, Place},
};
use baton_core::state::Micros;
use baton_tokio::{MemberOptions, Options};
use clap::Args;
use std::path::PathBuf;

/// See `baton serve`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Flags {
    #[command(flatten)]
    serve: serve::Flags,
    /// While there is a file of this name, the store answers nothing.
    #[arg(long, value_name = "PATH")]
    silence: Option<PathBuf>,
    /// Be noticed and notice others by leases alone.
    #[arg(long)]
    no_presence: bool,
    /// One-time pre-keys per upload.
    #[arg(long, default_value_t = 812)]
    pre_keys: u32,
    /// No fencing. SQLite only.
    #[arg(long)]
    naive: bool,
}

/// The lease of a host that does not heed it, as others see it.
const NAIVE_TTL: Micros = Micros::from_secs(3);

pub(crate) async fn run(common: &Common, flags: Flags) -> Result<(), Failure> {
    let mut config = setup::config(common)?;
    config.pre_keys.batch = flags.pre_keys;
    let common = Common {
        without_presence: flags.no_presence,
        ..common.clone()
    };
    let store = store::open(&common, store::Create::No).await?;
    let (naive, options) = match (flags.naive, Place::of(&common)?) {
        (false, _) => (None, None),
        (true, Place::Sqlite(path)) => {
            // It never doubts: neither its lease nor a connection that was taken from it.
            let options = Options {
                member: MemberOptions {
                    ttl: Micros::from_secs(3_600),
                    every: Micros::from_millis(300),
                    ..MemberOptions::default()
                },
                replaced_pause: Micros::from_millis(300),
                replaced_most: usize::MAX,
                ..Options::default()
            };
            let naive = Naive::open(&path, NAIVE_TTL)
                .map_err(|error| Failure::setup(format!("cannot open the database: {error}")))?;
            (Some(naive), Some(options))
        }
        (true, Place::Postgres(_)) => return Err(Failure::setup("--naive is for SQLite")),
    };
    let store = Troubled::new(store, flags.silence, naive);
    serve::serve(store, config, &flags.serve, None, options).await
}
