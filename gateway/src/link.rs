//! `baton link`.

use crate::{
    cli::Common,
    report::{self, QrScreen},
    setup::{self, Failure, Running},
    store,
};
use baton_core::{
    flow::{Command, CommandError, Connection, LinkState, Notice, Reply},
    state::Store as _,
};
use baton_tokio::{Connector as _, Item, Ownership, TcpConnector, account_named};
use clap::Args;
use serde_json::json;
use std::time::Duration;

/// How long the new device may take to log in after the phone has scanned.
const FIRST_LOGIN: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct Flags {}

pub(crate) async fn run(common: &Common, _flags: Flags) -> Result<(), Failure> {
    let config = setup::config(common)?;
    let store = store::open(common, store::Create::Yes).await?;
    let id = account_named(&store, &common.account)
        .await
        .map_err(|error| {
            Failure::setup(format!("cannot make account {:?}: {error}", common.account))
        })?;
    let known = store
        .accounts(&id.business)
        .await
        .map_err(setup::store_failed)?;
    let known = known
        .iter()
        .find(|account| account.id == id)
        .map(setup::describe)
        .transpose()?
        .flatten();
    if let Some(known) = known
        && known.state == LinkState::Linked
        && let Some(jid) = &known.jid
    {
        setup::wish_to_run(&store, &id).await?;
        return told(say_linked(
            common,
            &jid.to_string(),
            known.lid.as_ref().map(ToString::to_string).as_deref(),
        ));
    }
    // A wrong address would otherwise be tried again and again, without a word.
    let endpoint = config.service.endpoint.clone();
    let reached = tokio::time::timeout(
        Duration::from_secs(20),
        TcpConnector::new().connect(&endpoint),
    )
    .await;
    if let Ok(Err(error)) = reached {
        return Err(Failure::setup(format!(
            "the service at {} cannot be reached: {error}",
            endpoint.0
        )));
    } else if reached.is_err() {
        return Err(Failure::setup(format!(
            "the service at {} does not answer",
            endpoint.0
        )));
    }

    let (host, _) = setup::host(store.clone(), "link")?;
    let mut running = Running::start(host, id.clone(), config);
    let done = watch(common, &mut running).await;
    if done.is_ok() {
        // Before it is given back, so that a fleet takes it at once.
        setup::wish_to_run(&store, &id).await?;
    }
    running.stop().await;
    done
}

async fn watch(common: &Common, running: &mut Running) -> Result<(), Failure> {
    let Running {
        account,
        inbox,
        end,
    } = running;
    let mut linking = account.post(Command::Link).await;
    let mut linked = None;
    let mut screen = QrScreen::default();
    let mut failures = 0;
    let interrupted = setup::interrupted();
    let patience = tokio::time::sleep(Duration::MAX);
    tokio::pin!(interrupted, patience);
    loop {
        tokio::select! { biased;
            () = &mut interrupted => return Err(Failure::failed("interrupted; the account is not linked")),
            item = inbox.next() => match item {
                Some(Item::Notice(Notice::Qr { text, valid })) => told(if common.json {
                    report::line(json!({ "event": "qr", "qr": text, "valid_seconds": valid.0 / 1_000_000 }))
                } else {
                    let how = "On the phone: WhatsApp > Settings > Linked devices > Link a device";
                    screen.show(&text, &format!("{how} (this code is good for {} s)", valid.0 / 1_000_000))
                })?,
                Some(Item::Notice(Notice::Connection(Connection::Online))) => {
                    if let Some(Reply::Linked { jid, lid }) = &linked {
                        let lid = lid.as_ref().map(ToString::to_string);
                        return told(say_linked(common, &jid.to_string(), lid.as_deref()));
                    }
                }
                Some(Item::Notice(Notice::Connection(Connection::Waiting { why, .. }))) => {
                    failures += 1;
                    if failures >= 5 {
                        return Err(Failure::failed(format!("the service does not let us link: {why}")));
                    }
                }
                Some(Item::Ownership(Ownership::Waiting { .. })) if !common.json => {
                    eprintln!("another process owns the account; waiting");
                }
                // Events stay for whoever tails the account.
                Some(_) => {}
                None => return Err(setup::ended(end.await)),
            },
            answer = &mut linking, if linked.is_none() => match answer {
                Ok(reply) => {
                    linked = Some(reply);
                    if !common.json {
                        eprintln!("scanned; logging in");
                    }
                    patience.as_mut().reset(tokio::time::Instant::now() + FIRST_LOGIN);
                }
                Err(CommandError::Unknown) if end.is_finished() => return Err(setup::ended(end.await)),
                Err(CommandError::Unknown) => linking = account.post(Command::Link).await,
                Err(error) => return Err(Failure::failed(format!("not linked: {error}"))),
            },
            () = &mut patience => {
                return Err(Failure::failed("linked, but the first login did not come through; `baton tail` tries again"));
            }
        }
    }
}

fn say_linked(common: &Common, jid: &str, lid: Option<&str>) -> std::io::Result<()> {
    if common.json {
        report::line(
            json!({ "event": "linked", "account": common.account, "jid": jid, "lid": lid }),
        )
    } else {
        report::line(format_args!("linked {jid} as {:?}", common.account))
    }
}

fn told(said: std::io::Result<()>) -> Result<(), Failure> {
    said.map_err(|error| Failure::failed(format!("standard output is gone: {error}")))
}
