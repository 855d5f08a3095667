//! `sim serve`: the simulated WhatsApp service for real clients.

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use sim::serve::{ServeOptions, SimServer};
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
}

#[derive(Args)]
struct Serve {
    /// Where clients connect (WebSocket). Port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the phone's owner scans codes and sends texts (HTTP). Port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    phone: SocketAddr,
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
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let Cli {
        command: Command::Serve(serve),
    } = Cli::parse();
    match run(serve).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(serve: Serve) -> Result<(), Box<dyn std::error::Error>> {
    let mut options = ServeOptions {
        listen: serve.listen,
        phone: serve.phone,
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
    let line = json!({ "ws": server.ws_url, "phone": server.phone_url, "root_public_key": root });
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
