//! `baton tail`: owns an account and prints its events.

use crate::{
    cli::Common,
    report,
    setup::{self, Failure, Running},
    store,
};
use baton_core::flow::{Command, Notice};
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
    let mut running = Running::start(setup::host(store), info.id, config);
    let done = print(common, name, &mut running).await;
    running.stop().await;
    done
}

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
