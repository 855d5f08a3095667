//! A host as one writes it first: it takes what seems to be free, never doubts that it owns it, and connects again when
//! its connection was taken from it. On a [store without fences](super::trouble::Naive) only; `baton demo --disaster
//! naive` shows what comes of it.

use super::runner::{News, Serving, all_accounts, lock};
use baton_core::{
    flow::Config,
    state::{HostState, Store},
};
use baton_tokio::{Host, Inbox, Item, Options, Ownership, SystemEnv, TcpConnector};
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::mpsc, task::JoinSet};

/// Between two looks at accounts without a host.
const SCAN: Duration = Duration::from_millis(100);
/// How many looks the other host is given at the start.
const SHARE: u32 = 10;

/// Serves until it is dropped.
pub(super) async fn run<S: Store>(
    store: S,
    config: Config,
    options: Options,
    serving: Serving,
    news: mpsc::UnboundedSender<News>,
) {
    let host = Host::new(
        store.clone(),
        TcpConnector::new(),
        SystemEnv::new(),
        options,
    );
    let take = async {
        let mut mine = BTreeSet::new();
        let mut tasks = JoinSet::new();
        let mut joined = None;
        let mut looks = 0;
        loop {
            tokio::time::sleep(SCAN).await;
            let who = host.membership().who();
            if let Some(who) = who.filter(|_| joined != who) {
                joined = Some(who);
                let _ = news.send(News::Joined(who));
            }
            let (Some(who), Ok(orphans)) = (who, store.orphans(None, 1_000).await) else {
                continue;
            };
            let Ok(named) = all_accounts(&store).await else {
                continue;
            };
            looks += 1;
            let hosts = host.membership().view().hosts;
            let open = hosts
                .iter()
                .filter(|host| host.state == HostState::Active && host.info.capacity > 0);
            let open: Vec<_> = open.map(|host| host.who).collect();
            for orphan in orphans {
                let id = orphan.account;
                let turn = usize::try_from(id.device).unwrap_or(0) % open.len().max(1);
                let ours = open.get(turn) == Some(&who) && open.len() > 1 || looks > SHARE;
                if !ours || mine.contains(&id) {
                    continue;
                }
                let name = named.iter().find(|(info, _)| info.id == id);
                let name = name.map_or_else(String::new, |(_, name)| name.clone());
                let (account, inbox, served) = host.account(id.clone(), config.clone());
                lock(&serving).insert(name.clone(), account);
                tasks.spawn(served);
                tasks.spawn({
                    let news = news.clone();
                    async move {
                        pass(name, inbox, news).await;
                        baton_tokio::End::Shutdown
                    }
                });
                mine.insert(id);
            }
        }
    };
    tokio::select! { biased;
        never = host.run() => match never {},
        () = take => {}
    }
}

async fn pass(name: String, mut inbox: Inbox, news: mpsc::UnboundedSender<News>) {
    while let Some(item) = inbox.next().await {
        let _ = news.send(match item {
            Item::Ownership(Ownership::Ours { epoch }) => News::Owner(name.clone(), epoch),
            item => News::Item(name.clone(), item),
        });
    }
}
