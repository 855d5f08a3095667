//! `baton hosts`, `drain`, `move`: who is in the fleet, and wishes about it.
//!
//! All three only read and write the store; it is the hosts themselves that act, within a second or two.

use crate::{
    cli::Common,
    report,
    serve::{all_accounts, incarnation},
    setup::{Failure, store_failed},
    store::{self, AnyStore},
};
use baton_core::state::{
    AccountInfo, BusinessId, HostState, HostView, Micros, Placement, Store as _,
};
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks whether a wish has come true.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(crate) struct HostsFlags {
    /// Also processes that only read and write, such as `tail`.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DrainFlags {
    /// Name of the host.
    #[arg(value_name = "HOST")]
    name: String,
    /// Let it take accounts again.
    #[arg(long)]
    undo: bool,
    /// Seconds to wait until it has none. It is drained on after that.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct MoveFlags {
    /// Name of the account.
    #[arg(value_name = "ACCOUNT")]
    name: String,
    /// The host that should have it, from now on whenever it runs.
    #[arg(long, value_name = "HOST")]
    to: String,
    /// Seconds to wait for it. The wish stays.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

pub(crate) async fn hosts(common: &Common, flags: HostsFlags) -> Result<(), Failure> {
    let store = store::open(common, store::Create::No).await?;
    let hosts = store.hosts().await.map_err(store_failed)?;
    let shown: Vec<&HostView> = hosts
        .iter()
        .filter(|host| flags.all || host.info.capacity > 0)
        .collect();
    if common.json {
        for host in shown {
            told(report::line(json!({
                "host": host.info.name.as_str(), "incarnation": incarnation(host.who), "slot": host.slot,
                "state": state(host), "drain": host.drain, "accounts": host.accounts, "live": host.live,
                "lease_seconds": seconds(host.remaining), "zone": host.info.zone.as_str(),
                "capacity": host.info.capacity, "version": host.info.version.as_str(),
                "address": host.info.address.as_str(),
            })))?;
        }
        return Ok(());
    }
    if shown.is_empty() {
        eprintln!("no host has joined; `baton serve` starts one");
        return Ok(());
    }
    let mut rows = vec![
        [
            "HOST",
            "INCARNATION",
            "STATE",
            "ACCOUNTS",
            "LIVE",
            "LEASE",
            "ZONE",
            "CAPACITY",
            "VERSION",
        ]
        .map(str::to_owned),
    ];
    rows.extend(shown.iter().map(|host| {
        [
            host.info.name.to_string(),
            incarnation(host.who),
            state(host).to_owned(),
            host.accounts.to_string(),
            host.live.to_string(),
            format!("{:.1} s", seconds(host.remaining)),
            if host.info.zone.is_empty() {
                "-".to_owned()
            } else {
                host.info.zone.to_string()
            },
            host.info.capacity.to_string(),
            host.info.version.to_string(),
        ]
    }));
    told(report::table(&rows))
}

pub(crate) async fn drain(common: &Common, flags: DrainFlags) -> Result<(), Failure> {
    let name = &flags.name;
    let store = store::open(common, store::Create::No).await?;
    let who = host(&store, name).await?.who;
    let gone = || Failure::failed(format!("host {name:?} has left meanwhile"));
    let wished = store.drain(who, !flags.undo).await.map_err(store_failed)?;
    if !wished {
        return Err(gone());
    }
    if flags.undo {
        return told(say(
            common,
            json!({ "event": "undrained", "host": name }),
            || format!("{name} takes accounts again"),
        ));
    }
    let started = Instant::now();
    let mut left = None;
    while started.elapsed() < Duration::from_secs(flags.timeout) {
        let hosts = store.hosts().await.map_err(store_failed)?;
        let view = hosts.iter().find(|host| host.who == who);
        let live = view.filter(|host| host.state.is_live());
        let held = store.held(who).await.map_err(store_failed)?.len();
        if held == 0 && live.is_none_or(|host| host.drain) {
            let took = started.elapsed().as_secs_f64();
            return told(say(
                common,
                json!({ "event": "drained", "host": name, "seconds": (took * 1e3).round() / 1e3 }),
                || {
                    format!(
                        "{name} has no accounts any more, after {took:.2} s; stop it when you like"
                    )
                },
            ));
        }
        if live.is_none() {
            return Err(gone());
        }
        left = Some(held);
        tokio::time::sleep(LOOK).await;
    }
    let left = left.unwrap_or_default();
    Err(Failure::failed(format!(
        "{name} still has {left} accounts after {} s; is there a host that can take them?",
        flags.timeout
    )))
}

fn say(common: &Common, object: Value, text: impl FnOnce() -> String) -> std::io::Result<()> {
    if common.json {
        report::line(object)
    } else {
        report::line(text())
    }
}

pub(crate) async fn move_account(common: &Common, flags: MoveFlags) -> Result<(), Failure> {
    let store = store::open(common, store::Create::No).await?;
    let info = account(&store, common, &flags.name).await?;
    let to = host(&store, &flags.to).await?;
    if to.state != HostState::Active {
        return Err(Failure::setup(format!(
            "host {:?} is being drained and takes no accounts",
            flags.to
        )));
    }
    let wish = Placement {
        run: true,
        pin: Some(flags.to.as_str().into()),
        pause: Micros(0),
    };
    store.place(&info.id, wish).await.map_err(store_failed)?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(flags.timeout) {
        let now = find(&store, common, &flags.name).await?;
        if let Some(now) = now.filter(|now| now.holder == Some(to.who)) {
            let took = started.elapsed().as_secs_f64();
            let object = json!({ "event": "moved", "account": flags.name, "host": flags.to, "epoch": now.epoch.0,
                                 "incarnation": incarnation(to.who), "seconds": (took * 1e3).round() / 1e3 });
            return told(say(common, object, || {
                let epoch = now.epoch.0;
                format!(
                    "{} is at {} now (epoch {epoch}), after {took:.2} s",
                    flags.name, flags.to
                )
            }));
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Failure::failed(format!(
        "{} is not at {} after {} s; the wish stays, and comes true when that host and the one that has the account \
         can agree on it",
        flags.name, flags.to, flags.timeout
    )))
}

/// The one live host of that name.
async fn host(store: &AnyStore, name: &str) -> Result<HostView, Failure> {
    let hosts = store.hosts().await.map_err(store_failed)?;
    let mut live: Vec<HostView> = hosts
        .into_iter()
        .filter(|host| host.state.is_live() && host.info.capacity > 0)
        .collect();
    let names: Vec<&str> = live.iter().map(|host| host.info.name.as_str()).collect();
    let running = if names.is_empty() {
        "none is running".to_owned()
    } else {
        format!("running: {}", names.join(", "))
    };
    live.retain(|host| host.info.name == name);
    match (live.pop(), live.is_empty()) {
        (Some(host), true) => Ok(host),
        (Some(_), false) => Err(Failure::setup(format!(
            "more than one host is named {name:?}; `baton hosts` shows them, and the old one goes when its lease does"
        ))),
        (None, _) => Err(Failure::setup(format!(
            "there is no host {name:?}; {running}"
        ))),
    }
}

/// The account of that name, or of `BUSINESS/NAME`.
async fn account(store: &AnyStore, common: &Common, name: &str) -> Result<AccountInfo, Failure> {
    match find(store, common, name).await? {
        Some(info) => Ok(info),
        None => {
            let place = store::Place::of(common)?;
            Err(Failure::setup(format!(
                "there is no account {name:?} in {place}; `baton link --account NAME` makes one"
            )))
        }
    }
}

async fn find(
    store: &AnyStore,
    _common: &Common,
    name: &str,
) -> Result<Option<AccountInfo>, Failure> {
    if name.contains('/') {
        let all = all_accounts(store).await?;
        return Ok(all
            .into_iter()
            .find(|(_, outside)| outside == name)
            .map(|(info, _)| info));
    }
    let accounts = store.accounts(&BusinessId::default()).await;
    let accounts = accounts.map_err(store_failed)?;
    Ok(accounts.into_iter().find(|info| info.name == name))
}

fn state(host: &HostView) -> &'static str {
    match host.state {
        HostState::Active | HostState::Draining if host.remaining == Micros(0) => "silent",
        HostState::Active if host.drain => "draining",
        HostState::Active => "active",
        HostState::Draining => "draining",
        HostState::Released => "left",
        HostState::Dead => "dead",
    }
}

fn seconds(time: Micros) -> f64 {
    (time.0 as f64 / 1e5).round() / 10.0
}

fn told(said: std::io::Result<()>) -> Result<(), Failure> {
    said.map_err(|error| Failure::failed(format!("standard output is gone: {error}")))
}
