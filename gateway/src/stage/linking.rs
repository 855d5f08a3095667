//! The accounts of a play: made and linked by this process before any host starts, phones at hand.

use super::plan::Plan;
use crate::{
    setup::{self, Failure, SystemHost},
    store::AnyStore,
};
use baton_core::{
    flow::{Command, Config, Connection, Notice, Reply},
    jid::Jid,
    state::AccountId,
};
use baton_tokio::{Item, account_named};
use futures_util::{StreamExt as _, stream};
use sim::{serve::SimServer, service::DeviceId};
use std::time::Duration;

/// Accounts linked at the same time.
const TOGETHER: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A linked account.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    pub(super) id: AccountId,
    pub(super) device: DeviceId,
    pub(super) jid: Jid,
    pub(super) lid: Option<Jid>,
}

/// Links all accounts of the plan, in its order.
pub(super) async fn link(
    plan: &Plan,
    store: &AnyStore,
    server: &SimServer,
    config: &Config,
) -> Result<Vec<Linked>, Failure> {
    let (host, _) = setup::host(store.clone(), "linking")?;
    let linking = async {
        let mut linked: Vec<(usize, Linked)> = Vec::new();
        let mut under_way = stream::iter(plan.accounts.iter().enumerate())
            .map(|(n, account)| {
                let host = host.clone();
                async move {
                    let one = one(&host, store, server, config, &account.name, &account.phone);
                    let linked = tokio::time::timeout(PATIENCE, one).await.map_err(|_| {
                        Failure::setup(format!("{} could not be linked in time", account.name))
                    })??;
                    Ok::<_, Failure>((n, linked))
                }
            })
            .buffer_unordered(TOGETHER);
        while let Some(one) = under_way.next().await {
            linked.push(one?);
        }
        drop(under_way);
        linked.sort_by_key(|(n, _)| *n);
        host.leave().await;
        Ok(linked.into_iter().map(|(_, linked)| linked).collect())
    };
    tokio::select! { biased;
        linked = linking => linked,
        never = host.run() => match never {},
    }
}

async fn one(
    host: &SystemHost,
    store: &AnyStore,
    server: &SimServer,
    config: &Config,
    name: &str,
    phone: &str,
) -> Result<Linked, Failure> {
    let id = account_named(store, name)
        .await
        .map_err(|error| Failure::setup(format!("cannot make account {name:?}: {error}")))?;
    let (account, mut inbox, served) = host.account(id.clone(), config.clone());
    let served = tokio::spawn(served);
    let mut linking = account.post(Command::Link).await;
    let (mut addresses, mut online) = (None, false);
    while addresses.is_none() || !online {
        tokio::select! { biased;
            item = inbox.next() => match item {
                Some(Item::Notice(Notice::Qr { text, .. })) => {
                    let scanned = server.with(|service, now| service.scan(&text, Some(phone), now));
                    scanned.map_err(|error| {
                        Failure::setup(format!("the phone cannot scan the code of {name}: {error}"))
                    })?;
                }
                Some(Item::Notice(Notice::Connection(state))) => online = state == Connection::Online,
                Some(_) => {}
                None => return Err(Failure::setup(format!("{name} ended while linking"))),
            },
            answer = &mut linking, if addresses.is_none() => match answer {
                Ok(Reply::Linked { jid, lid }) => addresses = Some((jid, lid)),
                other => return Err(Failure::setup(format!("{name} is not linked: {other:?}"))),
            },
        }
    }
    let (jid, lid) = addresses.ok_or_else(|| Failure::setup("not linked"))?;
    account.shutdown();
    let _ = served.await;
    Ok(Linked {
        id,
        device: DeviceId::new(jid.user(), jid.device()),
        jid,
        lid: lid.map(|lid| lid.bare()),
    })
}
