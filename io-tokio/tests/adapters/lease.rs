//! Leases on a clock that the tests own.

use baton_core::state::{
    AccountId, AccountInfo, Batch, BusinessId, Claim, Epoch, Incarnation, Key, MessageId, Micros,
    Outcome, Record, Renewal, Row, Scan, Store, StoreError, Table, UnixMillis, memory::MemoryStore,
};
use baton_tokio::{
    AccountLease, Claimed, Env as _, LeaseKeeper, Standing, SystemEnv, account_named,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// A store whose renewals take time, fail when told to, and are counted.
#[derive(Clone)]
struct Slow {
    inner: MemoryStore,
    env: SystemEnv,
    takes_ms: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    /// When each renewal was asked for, and for how many accounts.
    renewals: Arc<Mutex<Vec<(Micros, usize)>>>,
}

const TTL: Micros = Micros::from_secs(6);

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
        renewals: Arc::default(),
    };
    (store, env)
}

impl Store for Slow {
    async fn load(&self, account: &AccountId, keys: Vec<Key>) -> Result<Vec<Row>, StoreError> {
        self.inner.load(account, keys).await
    }
    async fn scan(&self, account: &AccountId, scan: Scan) -> Result<Vec<(Key, Row)>, StoreError> {
        self.inner.scan(account, scan).await
    }
    async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        self.inner.commit(batches).await
    }
    async fn create_account(
        &self,
        business: &BusinessId,
        name: &str,
    ) -> Result<AccountId, StoreError> {
        self.inner.create_account(business, name).await
    }
    async fn accounts(&self, business: &BusinessId) -> Result<Vec<AccountInfo>, StoreError> {
        self.inner.accounts(business).await
    }
    async fn claim(
        &self,
        account: &AccountId,
        who: Incarnation,
        ttl: Micros,
    ) -> Result<Claim, StoreError> {
        sleep(Duration::from_millis(self.takes_ms.load(Ordering::SeqCst))).await;
        self.inner.claim(account, who, ttl).await
    }
    async fn renew(
        &self,
        who: Incarnation,
        leases: Vec<(AccountId, Epoch)>,
        ttl: Micros,
    ) -> Result<Vec<Renewal>, StoreError> {
        self.renewals
            .lock()
            .unwrap()
            .push((self.env.now().mono, leases.len()));
        sleep(Duration::from_millis(self.takes_ms.load(Ordering::SeqCst))).await;
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("told to".into()));
        }
        self.inner.renew(who, leases, ttl).await
    }
    async fn release(
        &self,
        account: &AccountId,
        who: Incarnation,
        epoch: Epoch,
    ) -> Result<(), StoreError> {
        self.inner.release(account, who, epoch).await
    }
    async fn enqueue(
        &self,
        account: &AccountId,
        id: MessageId,
        request: Record,
        at: UnixMillis,
    ) -> Result<bool, StoreError> {
        self.inner.enqueue(account, id, request, at).await
    }
    async fn retain(
        &self,
        account: &AccountId,
        table: Table,
        before: UnixMillis,
        limit: u32,
    ) -> Result<u32, StoreError> {
        self.inner.retain(account, table, before, limit).await
    }
}

async fn claim(
    keeper: &LeaseKeeper<Slow, SystemEnv>,
    account: &AccountId,
) -> AccountLease<Slow, SystemEnv> {
    match keeper.claim(account).await.unwrap() {
        Claimed::Ours(lease) => lease,
        Claimed::Held { by, .. } => panic!("held by {by:?}"),
    }
}

fn run(keeper: &LeaseKeeper<Slow, SystemEnv>) -> tokio::task::JoinHandle<()> {
    let keeper = keeper.clone();
    tokio::spawn(async move { match keeper.run().await {} })
}

#[tokio::test(start_paused = true)]
async fn all_leases_are_renewed_together_three_times_within_each() {
    let (store, env) = slow();
    let keeper = LeaseKeeper::new(store.clone(), env.clone(), TTL);
    let mut leases = Vec::new();
    for name in ["a", "b", "c"] {
        leases.push(claim(&keeper, &account_named(&store, name).await.unwrap()).await);
    }
    let _running = run(&keeper);
    sleep(Duration::from_secs(60)).await;
    let renewals = store.renewals.lock().unwrap().clone();
    assert!((29..=31).contains(&renewals.len()), "{}", renewals.len());
    assert!(renewals.iter().all(|(_, accounts)| *accounts == 3));
    for lease in &leases {
        assert!(
            matches!(lease.standing(), Standing::Until(until) if until > env.now().mono.plus(Micros::from_secs(3)))
        );
    }
    // Dropped ones are not renewed any more, and the last one's end ends the calls.
    leases.truncate(1);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(store.renewals.lock().unwrap().last().unwrap().1, 1);
    leases.clear();
    let before = store.renewals.lock().unwrap().len();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(store.renewals.lock().unwrap().len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_before_the_call() {
    let (store, env) = slow();
    let account = account_named(&store, "a").await.unwrap();
    let keeper = LeaseKeeper::new(store.clone(), env.clone(), TTL);
    store.takes_ms.store(1500, Ordering::SeqCst);
    let asked = env.now().mono;
    let mut lease = claim(&keeper, &account).await;
    assert_eq!(lease.grant().until, asked.plus(TTL));
    let _running = run(&keeper);
    let standing = lease.changed().await;
    let asked = store.renewals.lock().unwrap()[0].0;
    assert_eq!(standing, Standing::Until(asked.plus(TTL)));
    assert!(env.now().mono >= asked.plus(Micros::from_millis(1500)));
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_not_a_loss() {
    let (store, env) = slow();
    let account = account_named(&store, "a").await.unwrap();
    let keeper = LeaseKeeper::new(store.clone(), env.clone(), TTL);
    let mut lease = claim(&keeper, &account).await;
    let until = lease.grant().until;
    store.fails.store(true, Ordering::SeqCst);
    let _running = run(&keeper);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(lease.standing(), Standing::Until(until));
    let tries = store.renewals.lock().unwrap().len();
    assert!(tries >= 6, "asked again sooner than usual: {tries}");
    // An answer that never comes is no answer either.
    store.fails.store(false, Ordering::SeqCst);
    store.takes_ms.store(1_000_000, Ordering::SeqCst);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(lease.standing(), Standing::Until(until));
    store.takes_ms.store(0, Ordering::SeqCst);
    let Standing::Until(renewed) = lease.changed().await else {
        panic!("lost")
    };
    assert!(renewed > until);
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_told_once_and_names_the_epoch() {
    let (store, env) = slow();
    let account = account_named(&store, "a").await.unwrap();
    let keeper = LeaseKeeper::new(store.clone(), env.clone(), TTL);
    let mut lease = claim(&keeper, &account).await;
    let other = LeaseKeeper::new(store.clone(), env.clone(), TTL);
    assert!(
        matches!(other.claim(&account).await, Ok(Claimed::Held { by, .. }) if by == keeper.who())
    );
    sleep(Duration::from_secs(7)).await;
    let theirs = claim(&other, &account).await;
    assert!(theirs.epoch() > lease.epoch());
    let _running = run(&keeper);
    assert_eq!(lease.changed().await, Standing::Lost { by: theirs.epoch() });
    assert_eq!(lease.grant().until, Micros(0));
    assert!(
        tokio::time::timeout(Duration::from_secs(60), lease.changed())
            .await
            .is_err()
    );
    assert!(matches!(theirs.check().await, Ok(Standing::Until(_))));
}

#[tokio::test(start_paused = true)]
async fn a_released_account_is_free_at_once() {
    let (store, env) = slow();
    let account = account_named(&store, "a").await.unwrap();
    let keeper = LeaseKeeper::new(store.clone(), env.clone(), TTL);
    let other = LeaseKeeper::new(store.clone(), env, TTL);
    let _running = run(&keeper);
    claim(&keeper, &account).await.release().await.unwrap();
    let theirs = claim(&other, &account).await;
    // The old keeper does not renew what it gave back, and its own next claim is polite.
    sleep(Duration::from_secs(3)).await;
    assert!(matches!(theirs.check().await, Ok(Standing::Until(_))));
    assert!(matches!(
        keeper.claim(&account).await,
        Ok(Claimed::Held { .. })
    ));
    // A claim of the holder ends the lease before it.
    let again = claim(&other, &account).await;
    assert!(again.epoch() > theirs.epoch());
    assert_eq!(
        theirs.check().await,
        Ok(Standing::Until(theirs.grant().until)),
        "an answer about the past is dropped"
    );
    drop(theirs);
    assert!(matches!(again.check().await, Ok(Standing::Until(_))));
}
