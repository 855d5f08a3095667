//! A host's place in the fleet, on a clock that the tests own.

use baton_core::state::{
    AccountId, Beat, Beaten, HostInfo, HostState, Incarnation, Micros, Store, StoreError,
    memory::MemoryStore,
};
use baton_tokio::{
    AccountLease, Claimed, Env as _, MemberOptions, Membership, Standing, SystemEnv, account_named,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// A store whose renewals take time, fail when told to, and are counted.
#[derive(Clone)]
struct Slow {
    inner: MemoryStore,
    env: SystemEnv,
    takes_ms: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    /// When each renewal was asked for, and what it said.
    beats: Arc<Mutex<Vec<(Micros, Beat)>>>,
}

fn slow() -> (Slow, SystemEnv) {
    let env = SystemEnv::new();
    let origin = Instant::now();
    let inner =
        MemoryStore::new(move || Micros(u64::try_from(origin.elapsed().as_micros()).unwrap()));
    let store = Slow {
        inner,
        env: env.clone(),
        takes_ms: Arc::default(),
        fails: Arc::default(),
        beats: Arc::default(),
    };
    (store, env)
}

impl Store for Slow {
    async fn beat(&self, who: Incarnation, beat: Beat) -> Result<Beaten, StoreError> {
        self.beats.lock().unwrap().push((self.env.now().mono, beat));
        sleep(Duration::from_millis(self.takes_ms.load(Ordering::SeqCst))).await;
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("told to".into()));
        }
        self.inner.beat(who, beat).await
    }

    baton_core::delegate_store!(inner: load scan commit confirm create_account delete_account accounts tenants enqueue
        retain join hosts drain declare_dead leave claim release hand_over held orphans misplaced mail place retire history renew_history
        watch vault swap_vault swap_records);
}

type Host = Membership<Slow, SystemEnv>;

fn host(store: &Slow, env: &SystemEnv, name: &str) -> Host {
    let options = MemberOptions {
        info: HostInfo::named(name),
        ..MemberOptions::default()
    };
    Membership::new(store.clone(), env.clone(), options)
}

fn run(host: &Host) -> tokio::task::JoinHandle<()> {
    let host = host.clone();
    tokio::spawn(async move { match host.run().await {} })
}

async fn claim(host: &Host, account: &AccountId) -> AccountLease<Slow, SystemEnv> {
    match host.claim(account).await.unwrap() {
        Claimed::Ours(lease) => lease,
        _ => panic!("{account} is held by somebody else"),
    }
}

#[tokio::test(start_paused = true)]
async fn one_renewal_a_second_however_many_accounts() {
    let (store, env) = slow();
    let host = host(&store, &env, "a");
    let _running = run(&host);
    let mut leases = Vec::new();
    for n in 0..200 {
        let id = account_named(&store, &format!("a{n}")).await.unwrap();
        leases.push(claim(&host, &id).await);
    }
    sleep(Duration::from_secs(60)).await;
    let beats = store.beats.lock().unwrap().clone();
    assert!((59..=62).contains(&beats.len()), "{}", beats.len());
    assert_eq!(beats.last().unwrap().1.accounts, 200);
    let soon = env.now().mono.plus(Micros::from_secs(4));
    for lease in &leases {
        assert!(matches!(lease.standing(), Standing::Until(until) if until > soon));
    }
    drop(leases);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(store.beats.lock().unwrap().last().unwrap().1.accounts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_before_the_call() {
    let (store, env) = slow();
    let host = host(&store, &env, "a");
    store.takes_ms.store(700, Ordering::SeqCst);
    let asked = env.now().mono;
    let _running = run(&host);
    let account = account_named(&store, "a").await.unwrap();
    let mut lease = claim(&host, &account).await;
    let ttl = MemberOptions::default().ttl;
    assert_eq!(lease.grant().until, asked.plus(ttl), "from joining");
    let standing = lease.changed().await;
    let asked = store.beats.lock().unwrap()[0].0;
    assert_eq!(standing, Standing::Until(asked.plus(ttl)));
    assert!(env.now().mono >= asked.plus(Micros::from_millis(700)));
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_not_a_loss() {
    let (store, env) = slow();
    let host = host(&store, &env, "a");
    let _running = run(&host);
    let account = account_named(&store, "a").await.unwrap();
    let mut lease = claim(&host, &account).await;
    sleep(Duration::from_millis(10)).await;
    store.fails.store(true, Ordering::SeqCst);
    let before = store.beats.lock().unwrap().len();
    let until = lease.grant().until;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(lease.standing(), Standing::Until(until));
    let tries = store.beats.lock().unwrap().len() - before;
    assert!(tries >= 4, "asked again sooner than usual: {tries}");
    // An answer that never comes is no answer either.
    store.fails.store(false, Ordering::SeqCst);
    store.takes_ms.store(1_000_000, Ordering::SeqCst);
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(lease.standing(), Standing::Until(until));
    store.takes_ms.store(0, Ordering::SeqCst);
    let Standing::Until(renewed) = lease.changed().await else {
        panic!("lost")
    };
    assert!(renewed > until);
}

#[tokio::test(start_paused = true)]
async fn who_is_declared_dead_loses_everything_and_joins_as_somebody_new() {
    let (store, env) = slow();
    let (a, b) = (host(&store, &env, "a"), host(&store, &env, "b"));
    let (_a, _b) = (run(&a), run(&b));
    let account = account_named(&store, "a").await.unwrap();
    let mut lease = claim(&a, &account).await;
    let first = a.who().unwrap();
    assert!(matches!(b.claim(&account).await, Ok(Claimed::Held { by }) if by == Some(first)));
    store.declare_dead(b.who().unwrap(), first).await.unwrap();
    let theirs = claim(&b, &account).await;
    assert!(theirs.epoch() > lease.epoch());
    while lease.standing() != Standing::Lost {
        lease.changed().await;
    }
    assert_eq!(lease.grant().until, Micros(0));
    let again = timeout(Duration::from_secs(5), a.claim(&account)).await;
    assert!(matches!(again, Ok(Ok(Claimed::Held { .. }))));
    let second = a.who().unwrap();
    assert_ne!(first, second);
    assert_eq!(lease.standing(), Standing::Lost, "of the first life");
    assert!(matches!(theirs.check().await, Ok(Standing::Until(_))));
}

#[tokio::test(start_paused = true)]
async fn a_silent_host_is_replaced_after_its_lease() {
    let (store, env) = slow();
    let (a, b) = (host(&store, &env, "a"), host(&store, &env, "b"));
    let (running, _b) = (run(&a), run(&b));
    let account = account_named(&store, "a").await.unwrap();
    let _lease = claim(&a, &account).await;
    sleep(Duration::from_secs(10)).await;
    running.abort();
    let silent = Instant::now();
    let epoch = loop {
        match b.claim(&account).await.unwrap() {
            Claimed::Ours(lease) => break lease.epoch(),
            _ => sleep(Duration::from_millis(100)).await,
        }
    };
    let after = silent.elapsed();
    let range = Duration::from_secs(5)..Duration::from_millis(7100);
    assert!(range.contains(&after), "epoch {epoch:?} after {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_noticed_by_asking() {
    let (store, env) = slow();
    let (a, b) = (host(&store, &env, "a"), host(&store, &env, "b"));
    let (_a, _b) = (run(&a), run(&b));
    let account = account_named(&store, "a").await.unwrap();
    let mut lease = claim(&a, &account).await;
    assert!(matches!(lease.check().await, Ok(Standing::Until(_))));
    // Handed over by somebody else with our name, for instance an operator.
    let to = {
        claim(&b, &account_named(&store, "other").await.unwrap()).await;
        b.who().unwrap()
    };
    let handed = store.hand_over(a.who().unwrap(), &account, lease.epoch(), to);
    handed.await.unwrap();
    assert!(matches!(lease.standing(), Standing::Until(_)), "not yet");
    assert_eq!(lease.check().await, Ok(Standing::Lost));
    assert_eq!(lease.changed().await, Standing::Lost);
    assert_eq!(lease.grant().until, Micros(0));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_or_releases_makes_nobody_wait() {
    let (store, env) = slow();
    let (a, b) = (host(&store, &env, "a"), host(&store, &env, "b"));
    let (running, _b) = (run(&a), run(&b));
    let one = account_named(&store, "one").await.unwrap();
    let two = account_named(&store, "two").await.unwrap();
    claim(&a, &one).await.release().await.unwrap();
    claim(&b, &one).await;
    let _kept = claim(&a, &two).await;
    running.abort();
    a.leave().await.unwrap();
    claim(&b, &two).await;
    let hosts = store.hosts().await.unwrap();
    let states: Vec<_> = hosts.iter().map(|host| host.state).collect();
    assert_eq!(states, [HostState::Released, HostState::Active]);
}
