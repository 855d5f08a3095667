//! What ownership costs the database: calls by name while nothing happens. They depend on hosts, not on accounts.

use crate::rig::{Rig, memory, until};
use baton_core::{
    cluster::device::State,
    state::{
        AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Change, Claim, Epoch, HandOver,
        HostInfo, HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome, Placement,
        Record, Row, Scan, Seal, Store, StoreError, Table, Term, UnixMillis, memory::MemoryStore,
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::watch;

type Calls = BTreeMap<&'static str, u64>;

/// Counts calls by name, and answers none while it is stalled.
#[derive(Clone)]
pub(crate) struct Counted {
    inner: MemoryStore,
    calls: Arc<Mutex<Calls>>,
    stalled: watch::Sender<bool>,
}

impl Counted {
    pub(crate) fn new(inner: MemoryStore) -> Self {
        Self {
            inner,
            calls: Arc::default(),
            stalled: watch::Sender::new(false),
        }
    }

    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    async fn call(&self, name: &'static str) {
        *self.calls.lock().unwrap().entry(name).or_default() += 1;
        let mut stalled = self.stalled.subscribe();
        stalled.wait_for(|stalled| !stalled).await.unwrap();
    }
}

macro_rules! counted {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        impl Store for Counted {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> {
                self.call(stringify!($name)).await;
                self.inner.$name($($arg),*).await
            })*
        }
    };
}

counted! {
    load(account: &AccountId, keys: Vec<Key>) -> Vec<Row>;
    scan(account: &AccountId, scan: Scan) -> Vec<(Key, Row)>;
    commit(batches: Vec<Batch>) -> Vec<Outcome>;
    confirm(terms: Vec<(AccountId, Term)>) -> Vec<Outcome>;
    create_account(business: &BusinessId, name: &str) -> AccountId;
    delete_account(account: &AccountId) -> ();
    accounts(business: &BusinessId) -> Vec<AccountInfo>;
    tenants() -> Vec<BusinessId>;
    enqueue(account: &AccountId, id: MessageId, request: Record, at: UnixMillis) -> bool;
    retain(account: &AccountId, table: Table, before: UnixMillis, limit: u32) -> u32;
    join(who: Incarnation, info: HostInfo, ttl: Micros) -> u16;
    beat(who: Incarnation, beat: Beat) -> Beaten;
    hosts() -> Vec<HostView>;
    drain(who: Incarnation, drain: bool) -> bool;
    declare_dead(by: Incarnation, dead: Incarnation) -> bool;
    leave(who: Incarnation) -> ();
    claim(who: Incarnation, accounts: Vec<AccountId>) -> Vec<Claim>;
    release(who: Incarnation, accounts: Vec<(AccountId, Epoch)>) -> ();
    hand_over(who: Incarnation, account: &AccountId, epoch: Epoch, to: Incarnation) -> HandOver;
    held(who: Incarnation) -> Vec<(AccountId, Lease)>;
    orphans(after: Option<AccountId>, limit: u32) -> Vec<Orphan>;
    misplaced(who: Incarnation) -> Vec<(AccountId, Placement)>;
    mail(who: Incarnation) -> Vec<AccountId>;
    place(account: &AccountId, placement: Placement) -> ();
    retire(who: Incarnation, account: &AccountId, epoch: Epoch) -> bool;
    history() -> Seal;
    renew_history(now: Seal) -> Seal;
    watch(who: Incarnation) -> Change;
    vault(business: &BusinessId) -> Vec<(u32, Record)>;
    swap_vault(business: &BusinessId, number: u32, old: Option<Record>, new: Option<Record>) -> bool;
    swap_records(account: &AccountId, records: Vec<(Key, Record, Record)>) -> u32;
}

/// Two hosts with so many accounts, all logged in, in the default timing: calls a second while nobody writes, by name.
async fn idle(accounts: usize, watched: Duration) -> BTreeMap<&'static str, f64> {
    let store = Counted::new(memory());
    let calls = Arc::clone(&store.calls);
    let rig = Rig::new(store, accounts).await;
    let options = |name| baton_tokio::FleetOptions::named(name);
    let hosts = [
        rig.start_with(options("a"), "a"),
        rig.start_with(options("b"), "b"),
    ];
    let live = || {
        let statuses = hosts.iter().flat_map(|host| host.handle.accounts());
        statuses
            .filter(|status| status.state == State::Live)
            .count()
    };
    let begin = Instant::now();
    while live() < accounts {
        assert!(
            begin.elapsed() < Duration::from_secs(900),
            "{} live",
            live()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{accounts} accounts live after {:?}", begin.elapsed());
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
    calls.lock().unwrap().clear();
    let begin = Instant::now();
    tokio::time::sleep(watched).await;
    let seconds = begin.elapsed().as_secs_f64();
    let calls = calls.lock().unwrap();
    assert_eq!(live(), accounts, "all stayed live");
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let rates = calls.iter().map(|(name, n)| (*name, *n as f64 / seconds));
    rates.collect()
}

fn print(accounts: usize, rates: &BTreeMap<&'static str, f64>) {
    let all: f64 = rates.values().sum();
    println!("{accounts} accounts, two hosts: {all:.1} calls a second: {rates:.1?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ownership_costs_the_same_for_few_and_for_many() {
    let watched = Duration::from_secs(6);
    let few = idle(4, watched).await;
    let many = idle(80, watched).await;
    print(4, &few);
    print(80, &many);
    let all = |rates: &BTreeMap<_, f64>| rates.values().sum::<f64>();
    // Two hosts: two renewals, one look for orphans, one for the misplaced, eight for mail, and now and then a row that
    // leaves. Not a bound that a busy machine can break: it makes calls rarer.
    assert!(all(&few) < 20.0 && all(&many) < 20.0, "{few:?} {many:?}");
    for (name, rate) in &many {
        let before = few.get(name).copied().unwrap_or(0.0);
        assert!(
            *rate < before + 3.0,
            "{name}: {before} for few, {rate} for many"
        );
    }
}

/// `cargo test -p sim --release --test fleet -- --ignored --nocapture table`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: links ten thousand accounts"]
async fn table_of_what_ownership_costs() {
    for accounts in [10, 1_000, 10_000] {
        print(accounts, &idle(accounts, Duration::from_secs(20)).await);
    }
}
