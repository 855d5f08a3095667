//! `sim serve`: the simulated WhatsApp service for real clients. `sim run`: engines in a simulated world, by the seed.

mod cli;

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use sim::serve::{ServeOptions, SimServer};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    Run(cli::run::Options),
    /// Run one seed of tier B on several stores, side by side, and stop at the first line of the trace that differs.
    Diff(cli::diff::Options),
    /// Print what a seed of tier A has in store.
    Plan(cli::plan::Options),
    /// Run one plan of tier A, and tell it line by line.
    Replay(cli::replay::Options),
    /// Make a plan of tier A that breaks a rule as small as it goes.
    Shrink(cli::shrink::Options),
    /// Run seeds of tier A until the time is over, and shrink what fails.
    Hunt(cli::hunt::Options),
    /// Run a seed in two processes at the same time, and compare them line by line.
    Meta(cli::meta::Options),
    /// Count what seeds of tier A reach: a batch fails that misses anything.
    Cover(cli::cover::Options),
    /// Put old mistakes back, and see who finds them.
    Bugs(cli::bugs::Options),
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
        Command::Run(options) => return cli::run::run(&options),
        Command::Diff(options) => return cli::diff::run(&options),
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
