//! The door to the store: many commits in one call, each answered for itself.

use baton_core::state::{
    AccountId, Batch, Claim, HostInfo, Incarnation, Key, Lease, Micros, Outcome, Record, Scan, Seq,
    Store, StoreError, Table, UnixMillis, memory::MemoryStore,
};
use baton_tokio::{CommitOptions, Commits, SystemEnv, account_named};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// A store that waits for a permit before each commit, and can lose the answer after it.
#[derive(Clone)]
struct Gated {
    inner: MemoryStore,
    permits: Arc<Semaphore>,
    lose_answers: Arc<AtomicUsize>,
    refuse: Arc<AtomicBool>,
    /// Sizes of the calls that came.
    calls: Arc<Mutex<Vec<usize>>>,
}

impl Store for Gated {
    async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        self.calls.lock().unwrap().push(batches.len());
        self.permits.acquire().await.unwrap().forget();
        if self.refuse.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("told to".into()));
        }
        let outcomes = self.inner.commit(batches).await;
        let lose = self
            .lose_answers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if lose.is_ok() {
            return Err(StoreError::Unavailable("the answer is lost".into()));
        }
        outcomes
    }

    baton_core::delegate_store!(inner: load scan confirm create_account delete_account accounts tenants enqueue retain
        join beat hosts drain declare_dead leave claim release hand_over held orphans misplaced mail place retire history renew_history
        watch vault swap_vault swap_records);
}

struct Owner {
    id: AccountId,
    lease: Lease,
    seq: Seq,
}

impl Owner {
    fn batch(&mut self) -> Batch {
        self.seq = self.seq.next();
        let key = Key::PreKey(u32::try_from(self.seq.0).unwrap());
        Batch {
            account: self.id.clone(),
            term: self.lease.term,
            seq: self.seq,
            reseal: false,
            at: UnixMillis(0),
            rows: [(key, Some(Record(b"row"[..].into())))].into(),
        }
    }
}

async fn setup(
    accounts: usize,
    permits: usize,
    options: CommitOptions,
) -> (Gated, Commits<Gated, SystemEnv>, Vec<Owner>) {
    let store = Gated {
        inner: MemoryStore::new(|| Micros(0)),
        permits: Arc::new(Semaphore::new(permits)),
        lose_answers: Arc::default(),
        refuse: Arc::default(),
        calls: Arc::default(),
    };
    let who = Incarnation(7);
    let ttl = Micros::from_secs(6);
    store.join(who, HostInfo::named("a"), ttl).await.unwrap();
    let mut owners = Vec::new();
    for n in 0..accounts {
        let id = account_named(&store, &format!("a{n}")).await.unwrap();
        let claims = store.claim(who, vec![id.clone()]).await.unwrap();
        let [Claim::Granted(lease)] = claims[..] else {
            panic!("{claims:?}")
        };
        let seq = lease.applied;
        owners.push(Owner { id, lease, seq });
    }
    let commits = Commits::new(store.clone(), SystemEnv::new(), options);
    let running = commits.clone();
    tokio::spawn(async move { match running.run().await {} });
    (store, commits, owners)
}

async fn rows(store: &Gated, id: &AccountId) -> usize {
    let scan = Scan {
        table: Table::PreKey,
        after: None,
        limit: 1000,
    };
    store.scan(id, scan).await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn what_comes_at_the_same_time_leaves_together() {
    let (store, commits, mut owners) = setup(100, 1000, CommitOptions::default()).await;
    let calls = owners.iter_mut().map(|owner| {
        let batches = vec![owner.batch(), owner.batch()];
        commits.commit(batches)
    });
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(outcome, Ok(vec![Outcome::Committed; 2]));
    }
    let sizes = store.calls.lock().unwrap().clone();
    assert_eq!(sizes, [200], "one call");
    assert_eq!(commits.stats().batches, 200);
    for owner in &owners {
        assert_eq!(rows(&store, &owner.id).await, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_is_held_back_for_a_moment_if_that_is_wished() {
    let options = CommitOptions {
        linger: Micros::from_millis(5),
        ..CommitOptions::default()
    };
    let (store, commits, mut owners) = setup(3, 1000, options).await;
    let calls = owners.iter_mut().enumerate().map(|(n, owner)| {
        let batch = owner.batch();
        let commits = &commits;
        async move {
            sleep(Duration::from_millis(2 * n as u64)).await;
            commits.commit(vec![batch]).await
        }
    });
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(outcome, Ok(vec![Outcome::Committed]));
    }
    assert_eq!(*store.calls.lock().unwrap(), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_no_larger_than_wished_and_outcomes_find_their_callers() {
    let options = CommitOptions {
        group: 8,
        ..CommitOptions::default()
    };
    let (store, commits, mut owners) = setup(20, 1000, options).await;
    // Every fifth does not own its account any more.
    let calls = owners.iter_mut().enumerate().map(|(n, owner)| {
        let mut batches = vec![owner.batch(), owner.batch(), owner.batch()];
        if n % 5 == 0 {
            for batch in &mut batches {
                batch.term.holder = Incarnation(8);
            }
        }
        commits.commit(batches)
    });
    let outcomes = futures_util::future::join_all(calls).await;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let expected = if n % 5 == 0 {
            Outcome::Fenced {
                by: owners[n].lease.term.epoch,
            }
        } else {
            Outcome::Committed
        };
        assert_eq!(outcome, Ok(vec![expected; 3]), "account {n}");
    }
    assert!(store.calls.lock().unwrap().iter().all(|size| *size <= 8));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_settled_by_sending_again() {
    let (store, commits, mut owners) = setup(10, 1000, CommitOptions::default()).await;
    store.lose_answers.store(1, Ordering::SeqCst);
    let batches: Vec<Batch> = owners.iter_mut().map(Owner::batch).collect();
    let send = || {
        futures_util::future::join_all(
            batches
                .iter()
                .map(|batch| commits.commit(vec![batch.clone()])),
        )
    };
    let lost = send().await;
    assert!(
        lost.iter()
            .all(|answer| matches!(answer, Err(error) if error.is_retryable())),
        "{lost:?}"
    );
    let again = send().await;
    assert!(
        again
            .iter()
            .all(|answer| *answer == Ok(vec![Outcome::Committed])),
        "{again:?}"
    );
    for owner in &owners {
        assert_eq!(rows(&store, &owner.id).await, 1, "applied once");
    }
    assert_eq!(commits.stats().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn behind_a_stalled_database_only_so_much_waits() {
    let options = CommitOptions {
        calls: 1,
        group: 2,
        waiting: 4,
        ..CommitOptions::default()
    };
    let (store, commits, mut owners) = setup(10, 0, options).await;
    let mut answers = Vec::new();
    for owner in &mut owners {
        let (commits, batch) = (commits.clone(), owner.batch());
        answers.push(tokio::spawn(
            async move { commits.commit(vec![batch]).await },
        ));
    }
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(*store.calls.lock().unwrap(), [2], "one call, stalled");
    assert!(answers.iter().all(|answer| !answer.is_finished()));
    // It comes back: everything goes through, nothing twice.
    store.permits.add_permits(1000);
    for answer in answers {
        assert_eq!(answer.await.unwrap(), Ok(vec![Outcome::Committed]));
    }
    for owner in &owners {
        assert_eq!(rows(&store, &owner.id).await, 1);
    }
    // A batch larger than all the room there is gets in as well.
    let many: Vec<Batch> = (0..9).map(|_| owners[0].batch()).collect();
    let outcome = timeout(Duration::from_secs(1), commits.commit(many)).await;
    assert_eq!(outcome.unwrap(), Ok(vec![Outcome::Committed; 9]));
    assert_eq!(commits.commit(vec![]).await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_holds_up_only_what_is_in_it() {
    let (store, commits, mut owners) = setup(2, 0, CommitOptions::default()).await;
    let (first, batch) = (commits.clone(), owners[0].batch());
    let slow = tokio::spawn(async move { first.commit(vec![batch]).await });
    sleep(Duration::from_millis(1)).await;
    let (second, batch) = (commits.clone(), owners[1].batch());
    let fast = tokio::spawn(async move { second.commit(vec![batch]).await });
    sleep(Duration::from_millis(1)).await;
    assert_eq!(*store.calls.lock().unwrap(), [1, 1], "both are under way");
    store.permits.add_permits(2);
    assert_eq!(slow.await.unwrap(), Ok(vec![Outcome::Committed]));
    assert_eq!(fast.await.unwrap(), Ok(vec![Outcome::Committed]));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_commit_is_on_its_way_all_the_same() {
    let (store, commits, mut owners) = setup(1, 0, CommitOptions::default()).await;
    let batch = owners[0].batch();
    let dropped = timeout(
        Duration::from_millis(5),
        commits.commit(vec![batch.clone()]),
    )
    .await;
    assert!(dropped.is_err());
    store.permits.add_permits(10);
    assert_eq!(
        commits.commit(vec![batch]).await,
        Ok(vec![Outcome::Committed])
    );
    assert_eq!(rows(&store, &owners[0].id).await, 1);
}
