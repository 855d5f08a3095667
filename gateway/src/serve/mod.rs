//! `baton serve`: every account of the store whose lease this host wins, for as long as the process lives.
//!
//! Standard output is the consumer: JSON lines, one per event, and an event is acknowledged when its line has been
//! written and not before. Between them stand lines about the host and about who owns what:
//!
//! ```text
//! {"event": "joined", "host": "a", "incarnation": "…"}          and `lost`, `draining`, `stopping`, `left`
//! {"account": "main", "event": "owner", "epoch": 7}              and `gone`, `fenced`, `idle`
//! {"account": "main", "event": "connection", "state": "online"}  and other notices
//! {"account": "main", "seq": 12, "event": "message", …}          events
//! ```
//!
//! SIGTERM (or Ctrl-C) ends it properly: nothing new is taken in, what is in flight is finished, connections are
//! closed, accounts are given to the next host. A second one ends it now.

mod naive;
mod runner;
pub(crate) mod trouble;

use crate::{
    cli::Common,
    key, report,
    setup::{self, Failure, store_failed},
    signals::Signals,
    store,
};
use baton_core::state::{EventSeq, HostInfo, Incarnation, Micros, Store};
use baton_tokio::{FleetOptions, Item, Journals};
use clap::Args;
use runner::{Means, News, Runner};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::info;

pub(crate) use runner::all_accounts;

/// Which host this is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Flags {
    /// What this host is called, one name per host; keep it over restarts, placement goes by it. Default: the name of
    /// the machine.
    #[arg(long, value_name = "NAME")]
    host_id: Option<String>,
    /// Failure domain, such as a data centre: the second choice for an account is in another one.
    #[arg(long, value_name = "ZONE", default_value = "")]
    zone: String,
    /// How many accounts at most. Hosts share accounts in proportion to it.
    #[arg(long, value_name = "ACCOUNTS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    capacity: u32,
    /// Keep a journal of what happens to accounts here: a file for every time that one is taken over, encrypted under the
    /// master key. `sim replay --record FILE` does it again. For finding out what went wrong: the files grow.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Of this account only; can be given several times.
    #[arg(long, value_name = "NAME", requires = "record")]
    record_account: Vec<String>,
}

/// Lines written with one system call at most.
const LINES: usize = 256;
/// How long to watch a host of our name before it counts as dead: it renews its lease once a second.
const NAMESAKE: Duration = Duration::from_millis(1_800);
/// How long giving everything back may take.
const FAREWELL: Duration = Duration::from_secs(25);

pub(crate) async fn run(common: &Common, flags: Flags) -> Result<(), Failure> {
    let config = setup::config(common)?;
    let store = store::open(common, store::Create::No).await?;
    let keeping = tokio::spawn(key::keep_current(store.clone()));
    let journals = match &flags.record {
        Some(directory) => Some(journals(common, &store, directory, &flags).await?),
        None => None,
    };
    let served = serve(store, config, &flags, journals, None).await;
    keeping.abort();
    served
}

/// Serves until told to stop.
pub(crate) async fn serve<S: Store>(
    store: S,
    config: baton_core::flow::Config,
    flags: &Flags,
    journals: Option<Journals>,
    naive: Option<baton_tokio::Options>,
) -> Result<(), Failure> {
    let name = host_name(flags)?;
    if flags.zone.len() > 255 {
        return Err(Failure::setup("--zone has up to 255 bytes"));
    }
    no_namesake(&store, &name).await?;
    let info = HostInfo {
        zone: flags.zone.as_str().into(),
        capacity: flags.capacity,
        ..HostInfo::named(&name)
    };
    let means = match naive {
        None => Means::Fleet(Box::new(FleetOptions {
            info,
            journals,
            ..FleetOptions::named(&name)
        })),
        Some(mut options) => {
            options.member.info = info;
            Means::Naive(Box::new(options))
        }
    };
    let mut signals = Signals::new()?;
    let (printer, mut printed) = printer();
    let (runner, mut news) = Runner::start(store, config, means)?;
    let gone = loop {
        tokio::select! { biased;
            () = signals.next() => break false,
            ack = printed.recv() => match ack {
                Some((account, seq)) => runner.acknowledge(&account, seq).await,
                None => break true,
            },
            Some(news) = news.recv() => printer.print(&name, news),
        }
    };
    printer.say(json!({ "event": "stopping", "host": name }));
    info!("stopping; a second signal ends it now");
    // What they still say is written; acknowledgements come too late and are made up for by the next owner.
    let stopping = async {
        let passing = async {
            while let Some(news) = news.recv().await {
                printer.print(&name, news);
            }
        };
        tokio::join!(runner.stop(), passing);
    };
    tokio::select! { biased;
        () = signals.next() => return Err(Failure::failed("told twice to stop: what was in flight is left to the next owner")),
        late = tokio::time::timeout(FAREWELL, stopping) => if late.is_err() {
            return Err(Failure::failed("some accounts did not end in time; their leases run out by themselves"));
        },
    }
    printer.say(json!({ "event": "left", "host": name }));
    printer.end().await;
    if gone {
        return Err(Failure::failed("standard output is gone"));
    }
    Ok(())
}

/// Where `--record` leads to.
async fn journals<S: Store>(
    common: &Common,
    store: &S,
    directory: &Path,
    flags: &Flags,
) -> Result<Journals, Failure> {
    let mut only = Vec::new();
    if !flags.record_account.is_empty() {
        let all = all_accounts(store).await?;
        for name in &flags.record_account {
            let named = all.iter().find(|(_, outside)| outside == name);
            let (info, _) = named
                .ok_or_else(|| Failure::setup(format!("there is no account named {name:?}")))?;
            only.push(info.id.clone());
        }
    }
    let master = key::secret(common).await?;
    Journals::new(directory, master, only)
        .map_err(|error| Failure::setup(format!("no journals in {}: {error}", directory.display())))
}

fn host_name(flags: &Flags) -> Result<String, Failure> {
    let name = match &flags.host_id {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_owned())
            .or_else(|_| std::env::var("HOSTNAME"))
            .map_err(|_| Failure::setup("this machine has no name; give one with --host-id"))?,
    };
    let is_good = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if is_good {
        Ok(name)
    } else {
        Err(Failure::setup(
            "--host-id has 1 to 64 characters of A-Z a-z 0-9 _ - .",
        ))
    }
}

/// Two hosts of one name are safe, but nobody could say which is meant. A predecessor that was killed is in the roster
/// for some seconds: what tells them apart is that the living renew their lease.
async fn no_namesake<S: Store>(store: &S, name: &str) -> Result<(), Failure> {
    let look = async || -> Result<BTreeMap<Incarnation, Micros>, Failure> {
        let hosts = store.hosts().await.map_err(store_failed)?;
        Ok(hosts
            .into_iter()
            .filter(|host| {
                host.info.name == name && host.state.is_live() && host.remaining > Micros(0)
            })
            .map(|host| (host.who, host.remaining))
            .collect())
    };
    let mut before = look().await?;
    let until = tokio::time::Instant::now() + NAMESAKE;
    while !before.is_empty() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = look().await?;
        let renewed =
            |(who, left): (&Incarnation, &Micros)| before.get(who).is_none_or(|was| left > was);
        if now.iter().any(renewed) {
            return Err(Failure::setup(format!(
                "a host named {name:?} is running already; give this one another --host-id, or stop that one"
            )));
        }
        before = now;
    }
    Ok(())
}

/// Writes lines on a thread of its own, so that a consumer that does not read holds up neither leases nor connections.
struct Printer {
    lines: mpsc::UnboundedSender<(Value, Option<(String, EventSeq)>)>,
    printing: tokio::task::JoinHandle<()>,
}

/// The second end tells what has been written: per account, the last event. It ends if nobody reads.
fn printer() -> (Printer, mpsc::UnboundedReceiver<(String, EventSeq)>) {
    let (lines, mut taken) = mpsc::unbounded_channel::<(Value, Option<(String, EventSeq)>)>();
    let (written, acks) = mpsc::unbounded_channel();
    let printing = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        while let Some(first) = taken.blocking_recv() {
            text.clear();
            let mut upto = BTreeMap::new();
            let mut next = Some(first);
            for _ in 0..LINES {
                let Some((line, event)) = next else { break };
                text.extend_from_slice(line.to_string().as_bytes());
                text.push(b'\n');
                upto.extend(event);
                next = taken.try_recv().ok();
            }
            // One that was taken and did not fit.
            if let Some((line, event)) = next {
                text.extend_from_slice(line.to_string().as_bytes());
                text.push(b'\n');
                upto.extend(event);
            }
            let mut out = std::io::stdout().lock();
            if out.write_all(&text).and_then(|()| out.flush()).is_err() {
                return;
            }
            for ack in upto {
                let _ = written.send(ack);
            }
        }
    });
    (Printer { lines, printing }, acks)
}

impl Printer {
    fn say(&self, line: Value) {
        let _ = self.lines.send((line, None));
    }

    fn print(&self, host: &str, news: News) {
        let (line, ack) = match news {
            News::Joined(who) => (host_line("joined", host, who), None),
            News::Lost(who) => (host_line("lost", host, who), None),
            News::Fenced(account, epoch, by) => (
                json!({ "account": account, "event": "fenced", "epoch": epoch.0, "by": by.0 }),
                None,
            ),
            News::Draining => (json!({ "event": "draining", "host": host }), None),
            News::Owner(account, epoch) => (
                json!({ "account": account, "event": "owner", "epoch": epoch.0 }),
                None,
            ),
            News::Idle(account, why) => (
                json!({ "account": account, "event": "idle", "why": why }),
                None,
            ),
            News::Gone(account, to) => (
                json!({ "account": account, "event": "gone", "to": to.map(incarnation) }),
                None,
            ),
            News::Item(account, Item::Event(seq, event)) => (
                report::event_json(&account, seq, &event),
                Some((account, seq)),
            ),
            News::Item(account, Item::Notice(notice)) => {
                match report::notice_json(&account, &notice) {
                    Some(line) => (line, None),
                    None => return,
                }
            }
            News::Item(..) => return,
        };
        let _ = self.lines.send((line, ack));
    }

    /// Waits for the last line, but not for a reader that does not read.
    async fn end(self) {
        drop(self.lines);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.printing).await;
    }
}

fn host_line(event: &str, host: &str, who: Incarnation) -> Value {
    json!({ "event": event, "host": host, "incarnation": incarnation(who) })
}

/// As people and programs see it.
pub(crate) fn incarnation(who: Incarnation) -> String {
    format!("{:016x}", who.0)
}
