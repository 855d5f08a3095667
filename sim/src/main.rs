//! `sim serve`: the simulated WhatsApp service for real clients. `sim run`: engines in a simulated world, by the seed.

mod cli;

use clap::{Args, Parser, Subcommand};
use cli::Cryptography;
use serde_json::json;
use sim::{
    batch::{Said, a_minute, batch, cores},
    serve::{ServeOptions, SimServer},
    tier_b,
    world::{Crypto, chaos, plan::Plan},
};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Simulated WhatsApp.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve real clients. Prints one line of JSON with the addresses and the root key, then runs until it is
    /// interrupted.
    Serve(Serve),
    /// Run worlds full of trouble, one a seed: owners killed, connections cut, slow stores, a misbehaving service. The
    /// last line is `N passed, M failed`.
    Run(Run),
    /// Run one seed of tier B on several stores, side by side, and stop at the first line of the trace that differs.
    Diff(Diff),
    /// Print what a seed of tier A has in store.
    Plan(cli::plan::Options),
    /// Run one plan of tier A, and tell it line by line.
    Replay(cli::replay::Options),
    /// Make a plan of tier A that breaks a rule as small as it goes.
    Shrink(cli::shrink::Options),
    /// Run seeds of tier A until the time is over, and shrink what fails.
    Hunt(cli::hunt::Options),
    /// Run a seed of tier A in two processes, and compare them line by line.
    Meta(cli::meta::Options),
    /// Count what seeds of tier A reach: a batch fails that misses anything.
    Cover(cli::cover::Options),
    /// Put old mistakes back, and see who finds them.
    Bugs(cli::bugs::Options),
}

/// The two tiers of simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tier {
    /// Engines on an event heap: fast.
    A,
    /// The real drivers and stores over a simulated network.
    B,
}

/// What the database of tier B keeps its rows in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    Memory,
    Sqlite,
    Postgres,
}

impl From<Backend> for tier_b::Kind {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Memory => Self::Memory,
            Backend::Sqlite => Self::Sqlite,
            Backend::Postgres => Self::Postgres,
        }
    }
}

#[derive(Args)]
struct Run {
    /// Engines alone, or the real drivers over a simulated network.
    #[arg(long, value_enum, default_value_t = Tier::A)]
    tier: Tier,
    /// What worlds encrypt with.
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

#[derive(Args)]
struct Diff {
    /// Which.
    seed: u64,
    /// The stores.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "memory,sqlite,postgres"
    )]
    stores: Vec<Backend>,
}

#[derive(Args)]
struct Serve {
    /// Where clients connect (WebSocket). Port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the phone's owner scans codes and sends texts (HTTP). Port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    phone: SocketAddr,
    /// Where files are left and read (HTTP). Port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    media: SocketAddr,
    /// Keep keys, accounts and queues here; without it they end with the process.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Serve on other addresses than loopback. Whoever reaches the phone address owns every account.
    #[arg(long)]
    allow_remote: bool,
    /// Seed of all keys, 64 hex digits, for a run that is to be repeated.
    #[arg(long, value_name = "HEX", value_parser = parse_seed)]
    seed: Option<[u8; 32]>,
    /// Give clients routing information, which some send with their next connection.
    #[arg(long)]
    edge_routing: bool,
    /// Send no app-state key and no history to new companions.
    #[arg(long)]
    no_bootstrap: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Cli::parse().command;
    // Simulated networks open a span for each host in each tick, which nobody wants to see.
    let level = match command {
        Command::Serve(_) => "info",
        _ => "warn",
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let serve = match command {
        Command::Serve(serve) => serve,
        Command::Run(run) if run.tier == Tier::B => return tier_b_worlds(&run),
        Command::Run(run) => return worlds(&run),
        Command::Diff(diff) => return tier_b_diff(&diff),
        Command::Plan(options) => return cli::plan::run(&options),
        Command::Replay(options) => return cli::replay::run(&options),
        Command::Shrink(options) => return cli::shrink::run(&options),
        Command::Hunt(options) => return cli::hunt::run(&options),
        Command::Meta(options) => return cli::meta::run(&options),
        Command::Cover(options) => return cli::cover::run(&options),
        Command::Bugs(options) => return cli::bugs::run(&options),
    };
    match serve_clients(serve).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve_clients(serve: Serve) -> Result<(), Box<dyn std::error::Error>> {
    let mut options = ServeOptions {
        listen: serve.listen,
        phone: serve.phone,
        media: serve.media,
        allow_remote: serve.allow_remote,
        state: serve.state,
        seed: serve.seed,
        ..ServeOptions::default()
    };
    options.service.bootstrap = !serve.no_bootstrap;
    options.service.edge_routing = serve.edge_routing;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let server = SimServer::start(options).await?;
    let root: String = server
        .root_public_key
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let line = json!({ "ws": server.ws_url, "phone": server.phone_url, "media": server.media_url, "root_public_key": root });
    writeln!(std::io::stdout(), "{line}")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    server.shutdown().await?;
    Ok(())
}

/// Runs the seeds of tier A on every core.
fn worlds(run: &Run) -> ExitCode {
    let (mut texts, mut settings, mut history, mut real) = (0, 0, 0, 0_u64);
    let plan = |seed| {
        let mut plan = Plan::draw(seed);
        run.crypto.choose(&mut plan);
        plan
    };
    let world = |seed| {
        let plan = plan(seed);
        let (_, verdict) = chaos::run(&plan);
        (plan, verdict)
    };
    let (good, spent) = batch(run.from, run.seeds, world, |seed, result| {
        let Some((plan, verdict)) = result else {
            // The panic has said what it had to say.
            return Said {
                good: false,
                text: format!("seed {seed}: panicked"),
            };
        };
        real += u64::from(plan.crypto() == Crypto::Real);
        texts += verdict.received;
        settings += verdict.settings;
        history += verdict.history;
        let good = verdict.is_good();
        let mut text = String::new();
        if run.verbose || !good {
            text = plan.to_string();
        }
        if !good {
            text += &format!(
                "seed {seed}: {verdict:#?}\n  again with: sim run --from {seed} --seeds 1 --crypto {} --verbose",
                run.crypto
            );
        }
        text.truncate(text.trim_end().len());
        Said { good, text }
    });
    println!(
        "{texts} texts, {settings} settings, {history} messages of the past; {:.0} seeds a minute on {} cores, {real} of \
         them with real cryptography",
        a_minute(run.seeds, spent),
        cores()
    );
    println!("{good} passed, {} failed", run.seeds - good);
    match good == run.seeds {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// As [`worlds`], for tier B.
fn tier_b_worlds(run: &Run) -> ExitCode {
    if !tier_b::Kind::available().contains(&run.backend.into()) {
        println!("0 passed, {} failed", run.seeds);
        return ExitCode::FAILURE;
    }
    let began = std::time::Instant::now();
    let workers = match run.trace {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    let next = std::sync::atomic::AtomicU64::new(0);
    let seeds = run.seeds;
    let (reports, reported) = std::sync::mpsc::channel();
    let (mut failed, mut texts, mut done) = (0_u64, 0, 0);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (reports, next) = (reports.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if index >= seeds {
                        return;
                    }
                    let seed = run.from.saturating_add(index);
                    let mut plan = tier_b::Plan::draw(seed, run.backend.into());
                    plan.setup.crypto = run.crypto.of(seed);
                    let report = tier_b::run_with(plan, |trace| {
                        if run.trace {
                            trace.listen(|line| println!("{line}"));
                        }
                    });
                    if reports.send((index, report)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        // Printed in the order of the seeds.
        let mut waiting = std::collections::BTreeMap::new();
        for (index, report) in reported {
            waiting.insert(index, report);
            while let Some(report) = waiting.remove(&done) {
                done += 1;
                texts += report.verdict.received;
                failed += u64::from(!report.is_good());
                if run.verbose || !report.is_good() {
                    print!("{report}");
                }
            }
        }
        // Behind a world that panicked.
        for report in waiting.into_values() {
            failed += u64::from(!report.is_good());
            print!("{report}");
        }
    });
    let spent = began.elapsed().as_secs_f64();
    println!(
        "{texts} texts; {:.0} seeds a minute on {workers} cores",
        run.seeds as f64 / spent * 60.0
    );
    println!(
        "{} passed, {failed} failed",
        run.seeds.saturating_sub(failed)
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tier_b_diff(diff: &Diff) -> ExitCode {
    let stores: Vec<tier_b::Kind> = diff.stores.iter().map(|store| (*store).into()).collect();
    let available = tier_b::Kind::available();
    if let Some(missing) = stores.iter().find(|store| !available.contains(store)) {
        println!("there is no {missing} here");
        return ExitCode::FAILURE;
    }
    match tier_b::diff(diff.seed, &stores) {
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

fn parse_seed(text: &str) -> Result<[u8; 32], String> {
    let wrong = || "a seed is 64 hex digits".to_owned();
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    let mut seed = [0; 32];
    for (byte, digits) in seed.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(seed)
}
