//! `baton tail`: owns an account and prints its events. If a host of a fleet has it, the account is borrowed from there
//! for as long as this lasts.

use crate::{
    cli::Common,
    report,
    setup::{self, Failure, Running},
    store,
};
use baton_core::{
    flow::{Command, Notice},
    state::{Placement, Store as _},
};
use baton_tokio::{Item, Ownership};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Name of the account; the same as --account.
    #[arg(value_name = "ACCOUNT")]
    name: Option<String>,
}

pub(crate) async fn run(common: &Common, flags: Flags) -> Result<(), Failure> {
    let config = setup::config(common)?;
    let name = flags.name.as_ref().unwrap_or(&common.account);
    let store = store::open(common, store::Create::No).await?;
    let info = setup::find_account(common, &store, name).await?;
    setup::linked(&info)?;
    let (host, own_name) = setup::host(store.clone(), ROLE)?;
    // A fleet may have it. Then it is borrowed: events are shown to one consumer, and that is us now.
    let wish = info.placement.clone();
    let borrowed = wish.run;
    if borrowed {
        let pin = Some(own_name);
        let wish = Placement {
            pin,
            ..wish.clone()
        };
        store
            .place(&info.id, wish)
            .await
            .map_err(setup::store_failed)?;
    }
    let mut running = Running::start(host, info.id.clone(), config);
    let done = print(common, name, &mut running).await;
    if borrowed {
        // What another `tail` has left behind when it was killed is nobody's wish.
        let pin = wish.pin.clone().filter(|pin| !pin.starts_with(ROLE));
        let back = store.place(&info.id, Placement { pin, ..wish }).await;
        if let Err(error) = back {
            eprintln!(
                "        the account stays pinned to this process, which is no harm: {error}"
            );
        }
    }
    running.stop().await;
    done
}

/// How its host is called.
const ROLE: &str = "tail-";

async fn print(common: &Common, name: &str, running: &mut Running) -> Result<(), Failure> {
    let Running {
        account,
        inbox,
        end,
    } = running;
    let interrupted = setup::interrupted();
    tokio::pin!(interrupted);
    loop {
        let item = tokio::select! { biased;
            () = &mut interrupted => return Ok(()),
            item = inbox.next() => item,
        };
        let gone =
            |error: std::io::Error| Failure::failed(format!("standard output is gone: {error}"));
        match item {
            Some(Item::Event(seq, event)) => {
                if common.json {
                    report::line(report::event_json(name, seq, &event)).map_err(gone)?;
                } else {
                    report::line(report::event_line(seq, &event)).map_err(gone)?;
                }
                // Printed is kept. If the answer is lost the event is shown again, to the next `tail`.
                drop(account.post(Command::Acknowledge(seq)).await);
            }
            Some(Item::Notice(notice)) => match &notice {
                _ if common.json => {
                    if let Some(object) = report::notice_json(name, &notice) {
                        report::line(object).map_err(gone)?;
                    }
                }
                Notice::Connection(state) => eprintln!("        {}", report::connection(state)),
                Notice::CorruptRow(_) | Notice::Protocol(_) => eprintln!("        {notice:?}"),
                _ => {}
            },
            Some(Item::Ownership(Ownership::Waiting { .. })) => {
                eprintln!("        another process owns the account; waiting");
            }
            Some(_) => {}
            None => return Err(setup::ended(end.await)),
        }
    }
}
