//! Flags, verbs, exit codes.

use crate::{
    archive, demo, host, hosts, key, link, people, restored, send, serve, setup::Failure, tail,
};
use clap::{Args, Parser, Subcommand};
use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// WhatsApp multi-device accounts that survive `kill -9`.
#[derive(Debug, Parser)]
#[command(name = "baton", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// What all verbs understand.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Where the accounts live: a SQLite file, or a PostgreSQL database (postgres://user@host/database).
    #[arg(
        long,
        global = true,
        value_name = "sqlite:PATH|postgres://…",
        default_value = "sqlite:baton.db",
        env = "BATON_STORE",
        hide_env_values = true
    )]
    pub store: String,
    /// Encryption at rest.
    #[command(flatten)]
    pub key: KeyFlags,
    /// Name of the account.
    #[arg(long, global = true, value_name = "NAME", default_value = "main")]
    pub account: String,
    /// Where the service is, if it is not WhatsApp: a ws:// or wss:// URL.
    #[arg(long, global = true, value_name = "URL", env = "BATON_SERVICE_URL")]
    pub service_url: Option<String>,
    /// Root key of that service's certificates, 64 hexadecimal digits.
    #[arg(long, global = true, value_name = "HEX", env = "BATON_SERVICE_ROOT")]
    pub service_root: Option<String>,
    /// One JSON object a line on standard output.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say on standard error what goes on.
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// Be noticed, and notice other hosts, by leases alone.
    #[arg(skip)]
    pub without_presence: bool,
}

/// The key that what is in the rows is encrypted with. The environment may say it as well: `BATON_KEY_FILE`,
/// `BATON_KEY_COMMAND`, or `BATON_KEY` for the key itself.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Encryption at rest")]
pub struct KeyFlags {
    /// File with the master key. Without any of these, a SQLite database has its key in PATH.key, made with it.
    #[arg(long, global = true, value_name = "PATH")]
    pub key_file: Option<PathBuf>,
    /// Command that prints the master key.
    #[arg(
        long,
        global = true,
        value_name = "COMMAND",
        conflicts_with = "key_file"
    )]
    pub key_command: Option<String>,
    /// Keep everything in the clear, private keys of accounts included.
    #[arg(long, global = true, conflicts_with_all = ["key_file", "key_command"])]
    pub no_encryption: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Link an account: shows a QR code for the phone, makes the account if there is none of that name.
    Link(link::Flags),
    /// Send a text, once, whatever happens meanwhile.
    Send(send::Flags),
    /// Print an account's events as they come. An event is done with when it is printed.
    Tail(tail::Flags),
    /// Serve every account whose lease this host wins; any number of hosts may share a store. Events go to standard
    /// output as JSON lines and are done with when they are written.
    Serve(serve::Flags),
    /// The hosts that share this store.
    Hosts(hosts::HostsFlags),
    /// Let a host hand all its accounts over to others and take no new ones.
    Drain(hosts::DrainFlags),
    /// Move an account to another host.
    Move(hosts::MoveFlags),
    /// Print whom an account knows: its address book, and what people call themselves.
    Contacts(people::Flags),
    /// Print an account's chats and what is set for them: muted, pinned, archived, labels.
    Chats(people::Flags),
    /// The master key: make one, encrypt a database, rotate keys.
    Key(key::Flags),
    /// Move an account out of the store, into an encrypted file.
    Export(archive::ExportFlags),
    /// Move an account from such a file into the store.
    Import(archive::ImportFlags),
    /// Say that the database was restored from a backup, before anything runs on it again: no key is used twice then.
    Restored,
    /// Show that accounts survive kill -9: simulated service, real processes, no network, no phone.
    Demo(demo::Flags),
    /// `serve` for demonstrations and tests.
    #[command(hide = true)]
    Host(host::Flags),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // A wrong flag ends here, with status 2 and clap's sentence.
    let Cli { common, verb } = Cli::parse();
    trace(common.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&common, &Failure::setup(format!("no runtime: {error}"))),
    };
    let done = runtime.block_on(async {
        match verb {
            Verb::Link(flags) => link::run(&common, flags).await,
            Verb::Send(flags) => send::run(&common, flags).await,
            Verb::Tail(flags) => tail::run(&common, flags).await,
            Verb::Serve(flags) => serve::run(&common, flags).await,
            Verb::Hosts(flags) => hosts::hosts(&common, flags).await,
            Verb::Drain(flags) => hosts::drain(&common, flags).await,
            Verb::Move(flags) => hosts::move_account(&common, flags).await,
            Verb::Contacts(flags) => people::contacts(&common, flags).await,
            Verb::Chats(flags) => people::chats(&common, flags).await,
            Verb::Key(flags) => key::run(&common, flags).await,
            Verb::Export(flags) => archive::export(&common, flags).await,
            Verb::Import(flags) => archive::import(&common, flags).await,
            Verb::Restored => restored::run(&common).await,
            Verb::Demo(flags) => demo::run(&common, flags).await,
            Verb::Host(flags) => host::run(&common, flags).await,
        }
    });
    // What still runs has been told to stop or has nothing to lose.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&common, &failure),
    }
}

fn failed(common: &Common, failure: &Failure) -> ExitCode {
    if common.json {
        println!(
            "{}",
            serde_json::json!({ "event": "error", "error": failure.to_string() })
        );
    }
    eprintln!("baton: {failure}");
    ExitCode::from(failure.status())
}

fn trace(verbose: bool) {
    let default = if verbose {
        "warn,baton=debug,baton_gateway=debug,baton_tokio=debug,baton_core=debug"
    } else {
        "error"
    };
    let filter = EnvFilter::try_from_env("BATON_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
