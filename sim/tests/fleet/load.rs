//! What ownership costs the database: calls by name while nothing happens. They depend on hosts, not on accounts.

use crate::rig::{Rig, config, memory, phone, until};
use baton_core::{
    cluster::device::State,
    flow::{Command, Connection, Notice},
    state::{AccountId, HostInfo, Store, StoreError},
};
use baton_tokio::{Host, Item, SystemEnv};
use futures_util::{StreamExt as _, stream};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::watch;

type Calls = BTreeMap<&'static str, u64>;

/// Counts calls by name, and answers none while it is stalled.
#[derive(Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    calls: Arc<Mutex<Calls>>,
    stalled: watch::Sender<bool>,
}

impl<S: Store> Counted<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            calls: Arc::default(),
            stalled: watch::Sender::new(false),
        }
    }

    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    async fn call<T: Send>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        *self.calls.lock().unwrap().entry(name).or_default() += 1;
        let mut stalled = self.stalled.subscribe();
        stalled.wait_for(|stalled| !stalled).await.unwrap();
        call.await
    }
}

impl<S: Store> Store for Counted<S> {
    baton_core::delegate_store!(inner through call: all);
}

/// What happened while nobody wrote.
struct Idle {
    accounts: usize,
    seconds: f64,
    /// Calls a second, by name.
    calls: BTreeMap<&'static str, f64>,
}

impl Idle {
    fn all(&self) -> f64 {
        self.calls.values().sum()
    }
}

/// Two hosts with so many accounts, all logged in, in the default timing. `begun` is called when everything has come to
/// rest, and the time runs.
async fn idle<S: Store>(
    store: S,
    accounts: usize,
    watched: Duration,
    begun: impl FnOnce(),
) -> Idle {
    let store = Counted::new(store);
    let calls = Arc::clone(&store.calls);
    let rig = Rig::new(store, accounts).await;
    link_all(&rig).await;
    let start = |name| {
        let connector = rig.server.in_memory();
        rig.start_over(connector, baton_tokio::FleetOptions::named(name), name)
    };
    let hosts = [start("a"), start("b")];
    let live = || {
        let statuses = hosts.iter().flat_map(|host| host.handle.accounts());
        statuses
            .filter(|status| status.state == State::Live)
            .count()
    };
    let begin = Instant::now();
    while live() < accounts {
        let patience = Duration::from_secs(1_200);
        assert!(begin.elapsed() < patience, "{} live", live());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // What linking left to do is done.
    let total = || calls.lock().unwrap().get("commit").copied().unwrap_or(0);
    let mut last = (total(), Instant::now());
    until(
        || {
            let now = total();
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > Duration::from_secs(2)
        },
        || "it never rests".into(),
    )
    .await;
    begun();
    calls.lock().unwrap().clear();
    let begin = Instant::now();
    tokio::time::sleep(watched).await;
    let seconds = begin.elapsed().as_secs_f64();
    let calls = calls.lock().unwrap();
    assert_eq!(live(), accounts, "all stayed live");
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let rates = calls.iter().map(|(name, n)| (*name, *n as f64 / seconds));
    Idle {
        accounts,
        seconds,
        calls: rates.collect(),
    }
}

/// Links every account, some at a time, by a host of its own that leaves. Hosts would come to that too, but they try an
/// account that is not linked less and less often.
async fn link_all<S: Store>(rig: &Rig<S>) {
    let mut options = baton_tokio::Options::default();
    options.member.info = HostInfo {
        capacity: 0,
        ..HostInfo::named("linking")
    };
    let (store, connector) = (rig.store.clone(), rig.server.in_memory());
    let host = Host::new(store, connector, SystemEnv::new(), options);
    let one = async |id: &AccountId| {
        let (account, mut inbox, served) = host.account(id.clone(), config(&rig.server));
        let served = tokio::spawn(served);
        let linking = account.post(Command::Link).await;
        loop {
            match inbox.next().await.expect("it goes on") {
                Item::Notice(Notice::Qr { text, .. }) => {
                    let scan = |service: &mut sim::service::Service, now| {
                        service.scan(&text, Some(&phone(id)), now)
                    };
                    rig.server.with(scan).expect("a sound code");
                }
                Item::Notice(Notice::Connection(Connection::Online)) => break,
                _ => {}
            }
        }
        linking.await.expect("linked");
        account.shutdown();
        served.await.expect("it ends");
    };
    let all = stream::iter(&rig.ids).for_each_concurrent(16, one);
    tokio::select! { biased;
        () = all => host.leave().await,
        never = host.run() => match never {},
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ownership_costs_the_same_for_few_and_for_many() {
    let watched = Duration::from_secs(6);
    let few = idle(memory(), 4, watched, || {}).await;
    let many = idle(memory(), 80, watched, || {}).await;
    // Two hosts: two renewals, one look for orphans, one for the misplaced, eight for mail, and now and then a row that
    // leaves. Not a bound that a busy machine can break: it makes calls rarer.
    assert!(
        few.all() < 20.0 && many.all() < 20.0,
        "{:?} {:?}",
        few.calls,
        many.calls
    );
    for (name, rate) in &many.calls {
        let before = few.calls.get(name).copied().unwrap_or(0.0);
        assert!(
            *rate < before + 3.0,
            "{name}: {before} for few, {rate} for many"
        );
    }
}

/// `cargo test -p sim --test fleet -- --ignored --nocapture table`
#[cfg(feature = "tier-b")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: links ten thousand accounts"]
async fn table_of_what_ownership_costs() {
    use baton_store_postgres::{Options, PgStore};
    use std::cell::Cell;

    let cluster = pg_cluster::Cluster::prepare(&[]).expect("PostgreSQL is installed");
    assert!(cluster.make(&["--locale=C.UTF-8"]), "initdb");
    let psql = |sql: &str| {
        let asked = std::process::Command::new(pg_cluster::binaries().unwrap().join("psql"))
            .args([
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-c",
                sql,
                "-h",
            ])
            .arg(cluster.directory())
            .output()
            .unwrap();
        match asked.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&asked.stderr).into_owned()),
        }
    };
    cluster.start(|_| psql("SELECT 1"));
    println!("| accounts | statements/s | calls/s | of these |\n|---|---|---|---|");
    for accounts in [10, 1_000, 10_000] {
        psql(&format!("CREATE DATABASE of{accounts}")).unwrap();
        let url = cluster.url("postgres", &format!("of{accounts}"));
        let store = PgStore::connect(&url, Options::default()).await.unwrap();
        let before = Cell::new(0);
        let begun = || before.set(store.stats().statements);
        let idle = idle(store.clone(), accounts, Duration::from_secs(30), begun).await;
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let statements = (store.stats().statements - before.get()) as f64 / idle.seconds;
        let calls: Vec<String> = (idle.calls.iter())
            .map(|(name, rate)| format!("{name} {rate:.1}"))
            .collect();
        println!(
            "| {} | {statements:.1} | {:.1} | {} |",
            idle.accounts,
            idle.all(),
            calls.join(", ")
        );
    }
}
