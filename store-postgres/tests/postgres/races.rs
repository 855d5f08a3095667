//! Several hosts, several processes, several transactions: what happens when they meet.

use crate::{
    cluster::{Db, RUNTIME, options},
    rows::{Owner, join, record},
};
use baton_core::state::{
    AccountId, Batch, Claim, Epoch, EventSeq, Key, Outcome, Row, Seq, Store, StoreError,
    UnixMillis,
    conformance::{Harness as _, block_on},
};
use baton_store_postgres::{Options, PgStore, SCHEMA_VERSION};
use sqlx::{Executor as _, Row as _};
use std::{
    collections::BTreeMap,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Two hosts take an account from each other, 10,000 batches long. Every number is written by one of them, whole, and
/// the epochs of the rows never fall.
#[test]
fn two_epochs_never_interleave() {
    const BATCHES: u64 = 10_000;
    const CHAIN: u64 = 20;
    let Some(db) = Db::new() else { return };
    let judge = db.open();
    let first = Owner::create(&judge, "acme", "main");
    let id = first.id.clone();
    first.release();
    let (applied, fenced) = (AtomicU64::new(0), AtomicU64::new(0));
    let hosts = [db.open(), db.open()];
    std::thread::scope(|scope| {
        for store in &hosts {
            let (id, applied, fenced) = (&id, &applied, &fenced);
            scope.spawn(move || {
                while applied.load(Ordering::SeqCst) < BATCHES {
                    // Each term is a life of its own; whoever is in the way is declared dead.
                    let mut owner = Owner::seize(store, id);
                    loop {
                        let chain: Vec<Batch> = (0..CHAIN)
                            .map(|_| {
                                let content = format!("{} {}", owner.epoch().0, owner.who().0);
                                owner.batch(&content)
                            })
                            .collect();
                        let outcomes = block_on(store.commit(chain)).unwrap();
                        match &outcomes[0] {
                            Outcome::Committed => {
                                assert!(
                                    outcomes.iter().all(|o| *o == Outcome::Committed),
                                    "{outcomes:?}"
                                );
                                applied.fetch_max(owner.seq.0, Ordering::SeqCst);
                            }
                            Outcome::Fenced { by } => {
                                assert!(*by > owner.epoch());
                                assert!(
                                    outcomes.iter().all(|o| matches!(o, Outcome::Fenced { .. })),
                                    "{outcomes:?}"
                                );
                                fenced.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            other => panic!("{other:?}"),
                        }
                        if applied.load(Ordering::SeqCst) >= BATCHES
                            || owner.seq.0.is_multiple_of(7)
                        {
                            break;
                        }
                    }
                }
            });
        }
    });
    let last = Owner::seize(&judge, &id).seq.0;
    assert!(
        last >= BATCHES && fenced.load(Ordering::SeqCst) > 10,
        "{last}, {fenced:?}"
    );
    let rows =
        db.sql("SELECT seq, convert_from(record, 'UTF8') FROM baton_event_buffer ORDER BY seq");
    assert_eq!(rows.len() as u64, last, "one row per number");
    let mut before = 0;
    for (row, n) in rows.iter().zip(1_i64..) {
        assert_eq!(row.try_get::<i64, _>(0).unwrap(), n);
        let content: &str = row.try_get(1).unwrap();
        let epoch: u64 = content.split(' ').next().unwrap().parse().unwrap();
        assert!(epoch >= before, "{n} of epoch {epoch} behind {before}");
        before = epoch;
        // A chain is whole: its rows are of one writer.
        if n as u64 % CHAIN != 1 {
            let previous: &str = rows[n as usize - 2].try_get(1).unwrap();
            assert_eq!(content, previous, "{n}");
        }
    }
}

/// Eight hosts claim, hand over, release and commit on five accounts, and declare each other dead when in the way.
/// Whatever was reported as committed is there, written by whom it was reported to; per account the epochs never fall,
/// and no number is given twice.
#[test]
fn many_hosts_on_few_accounts() {
    const ROUNDS: u64 = 400;
    let Some(db) = Db::new() else { return };
    let judge = db.open();
    let ids: Vec<AccountId> = (0..5)
        .map(|n| {
            let tenant = crate::rows::business(&format!("t{}", n % 3));
            block_on(judge.create_account(&tenant, &format!("a{n}"))).unwrap()
        })
        .collect();
    let done = std::sync::Mutex::new(BTreeMap::new());
    let [granted, refused, locked] = [0; 3].map(AtomicU64::new);
    std::thread::scope(|scope| {
        for host in 0..8_u64 {
            let (db, ids, done) = (&db, &ids, &done);
            let (granted, refused, locked) = (&granted, &refused, &locked);
            scope.spawn(move || {
                let store = db.open_with(Options {
                    connections: 2,
                    lanes: 1,
                    ..options()
                });
                let mut who = join(&store);
                let mut owners: BTreeMap<usize, Owner> = BTreeMap::new();
                let mut dice = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(host + 1);
                for _ in 0..ROUNDS {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let n = (dice >> 33) as usize % ids.len();
                    match ((dice >> 40) % 8, owners.get_mut(&n)) {
                        (0, Some(owner)) => {
                            owner.release();
                            owners.remove(&n);
                        }
                        (1, Some(owner)) => {
                            let hosts = block_on(store.hosts()).unwrap();
                            let to = hosts[(dice >> 50) as usize % hosts.len()].who;
                            let _ = block_on(store.hand_over(who, &owner.id, owner.epoch(), to));
                            owners.remove(&n);
                        }
                        (_, Some(owner)) => {
                            let content = format!("{} {}", owner.epoch().0, who.0);
                            let before = owner.seq;
                            let chain: Vec<Batch> = (0..3).map(|_| owner.batch(&content)).collect();
                            let outcomes = match block_on(store.commit(chain)) {
                                Ok(outcomes) => outcomes,
                                // Somebody had the fence for too long: sent again it would be settled; given up here.
                                Err(StoreError::Unavailable(_)) => {
                                    owners.remove(&n);
                                    continue;
                                }
                                Err(error) => panic!("{error}"),
                            };
                            if outcomes
                                .iter()
                                .all(|outcome| *outcome == Outcome::Committed)
                            {
                                let mut done = done.lock().unwrap();
                                for seq in before.0 + 1..=owner.seq.0 {
                                    let twice = done.insert((n, seq), content.clone());
                                    assert_eq!(twice, None, "{n}: {seq} was given twice");
                                }
                            } else {
                                let fenced = |o: &Outcome| matches!(o, Outcome::Fenced { .. });
                                assert!(outcomes.iter().all(fenced), "{outcomes:?}");
                                refused.fetch_add(1, Ordering::SeqCst);
                                owners.remove(&n);
                            }
                        }
                        (_, None) => {
                            // Everything at once, as after the end of a host.
                            let claims = match block_on(store.claim(who, ids.to_vec())) {
                                Ok(claims) => claims,
                                Err(StoreError::NotMember) => {
                                    who = join(&store);
                                    owners.clear();
                                    continue;
                                }
                                Err(error) => panic!("{error}"),
                            };
                            for (n, claim) in claims.into_iter().enumerate() {
                                match claim {
                                    Claim::Granted(lease) => {
                                        granted.fetch_add(1, Ordering::SeqCst);
                                        owners.insert(n, Owner::of(&store, &ids[n], lease));
                                    }
                                    Claim::Held { by } if dice >> 60 < 2 => {
                                        block_on(store.declare_dead(who, by)).unwrap();
                                    }
                                    Claim::Held { .. } => {}
                                    Claim::Locked => {
                                        locked.fetch_add(1, Ordering::SeqCst);
                                    }
                                    other => panic!("{other:?}"),
                                }
                            }
                        }
                    }
                }
            });
        }
    });
    let done = done.into_inner().unwrap();
    eprintln!(
        "{} batches, {granted:?} grants, {refused:?} chains refused, {locked:?} fences locked",
        done.len()
    );
    assert!(done.len() > 300 && refused.into_inner() > 10);
    for (n, id) in ids.iter().enumerate() {
        let rows = db.sql(&format!(
            "SELECT seq, convert_from(record, 'UTF8') FROM baton_event_buffer WHERE device_id = {} ORDER BY seq",
            id.device
        ));
        let mut before = 0;
        for (row, seq) in rows.iter().zip(1_i64..) {
            assert_eq!(row.try_get::<i64, _>(0).unwrap(), seq, "no gaps");
            let content: &str = row.try_get(1).unwrap();
            let epoch: u64 = content.split(' ').next().unwrap().parse().unwrap();
            assert!(epoch >= before, "{seq} of epoch {epoch} behind {before}");
            before = epoch;
            if let Some(reported) = done.get(&(n, seq as u64)) {
                assert_eq!(reported, content);
            }
        }
        let told = done.keys().filter(|(of, _)| *of == n).count();
        assert!(rows.len() >= told, "{} rows, {told} reported", rows.len());
    }
}

#[test]
fn hosts_that_start_at_once_migrate_once() {
    let Some(db) = Db::empty() else { return };
    const HOSTS: usize = 6;
    let start = Barrier::new(HOSTS);
    std::thread::scope(|scope| {
        for _ in 0..HOSTS {
            scope.spawn(|| {
                start.wait();
                drop(db.open());
            });
        }
    });
    assert_eq!(
        db.number("SELECT count(*) FROM baton_schema_migrations"),
        i64::from(SCHEMA_VERSION)
    );
    let store = db.open();
    Owner::create(&store, "acme", "main").commit("x").unwrap();
}

/// A process that froze inside its own commit holds up that account; others pass by, even in the same group.
#[test]
fn a_locked_fence_holds_up_nobody_else() {
    let Some(db) = Db::new() else { return };
    let store = db.open_with(Options {
        lanes: 1,
        lock: Duration::from_millis(700),
        ..options()
    });
    let mut owners: Vec<Owner> = (0..5)
        .map(|n| Owner::create(&store, "acme", &format!("a{n}")))
        .collect();
    let mut frozen = db.connection();
    RUNTIME.block_on(async {
        let lock = format!(
            "BEGIN; SELECT 1 FROM baton_fence WHERE device_id = {} FOR UPDATE",
            owners[2].id.device
        );
        frozen
            .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(lock)))
            .await
            .unwrap();
    });
    let calls: Vec<Batch> = owners.iter_mut().map(|owner| owner.batch("x")).collect();
    // One call with all of them: its neighbours are done although it fails as a whole.
    let answer = block_on(store.commit(calls.clone()));
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    for (n, owner) in owners.iter().enumerate() {
        assert_eq!(owner.event(1) != Row::Absent, n != 2, "account {n}");
    }
    RUNTIME
        .block_on(frozen.execute(sqlx::raw_sql("ROLLBACK")))
        .unwrap();
    let answer = block_on(store.commit(calls));
    assert_eq!(answer, Ok(vec![Outcome::Committed; 5]));
    assert_eq!(owners[2].event(1), Row::Present(record("x")));
}

/// A claim waits for the commit that holds the fence, and a commit behind the claim is fenced.
#[test]
fn a_claim_and_a_commit_take_turns() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let mut alice = Owner::create(&store, "acme", "main");
    let batch = alice.batch("late");
    let mut other = db.connection();
    // A claim that has not committed yet.
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql(
            "BEGIN; UPDATE baton_fence SET epoch = epoch + 1",
        )))
        .unwrap();
    let waiting = store.commit(vec![batch]);
    std::thread::sleep(Duration::from_millis(200));
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql("COMMIT")))
        .unwrap();
    let by = Epoch(alice.epoch().0 + 1);
    assert_eq!(block_on(waiting), Ok(vec![Outcome::Fenced { by }]));
}

#[test]
fn calls_of_one_account_keep_their_order() {
    let Some(db) = Db::new() else { return };
    let store = db.open_with(Options {
        lanes: 4,
        connections: 5,
        ..Options::default()
    });
    let mut owners: Vec<Owner> = (0..4)
        .map(|n| Owner::create(&store, &format!("t{n}"), "main"))
        .collect();
    // Nobody waits for an answer before the next call is made.
    let calls: Vec<_> = (0..400)
        .map(|n| store.commit(vec![owners[n % 4].batch("x")]))
        .collect();
    for call in calls {
        assert_eq!(block_on(call), Ok(vec![Outcome::Committed]));
    }
    let stats = store.stats();
    assert_eq!(stats.batches, 400);
    assert!(stats.transactions < 200, "they travel together: {stats:?}");
}

/// More tenants than fit into a transaction.
#[test]
fn tenants_share_transactions_only_as_far_as_allowed() {
    let Some(db) = Db::new() else { return };
    for tenants in [1, 3] {
        let store = db.open_with(Options {
            tenants,
            lanes: 1,
            ..options()
        });
        let mut owners: Vec<Owner> = (0..10)
            .map(|n| Owner::create(&store, &format!("of-{tenants}-{n}"), "main"))
            .collect();
        let before = store.stats().transactions;
        let batches: Vec<Batch> = owners.iter_mut().map(|owner| owner.batch("x")).collect();
        assert_eq!(
            block_on(store.commit(batches)),
            Ok(vec![Outcome::Committed; 10])
        );
        let transactions = store.stats().transactions - before;
        assert_eq!(transactions, 10_u64.div_ceil(tenants as u64));
    }
}

#[test]
fn retention_does_not_delete_what_became_young_meanwhile() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let mut owner = Owner::create(&store, "acme", "main");
    let mut batch = owner.batch("x");
    let key = Key::Sent("m".into());
    batch.rows = [(key.clone(), Some(record("old")))].into();
    batch.at = UnixMillis(1);
    block_on(store.commit(vec![batch])).unwrap();
    // A commit that makes the row young again, and has not ended when the deletion comes by.
    let mut other = db.connection();
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql(
            "BEGIN; UPDATE baton_sent SET written_at = 100",
        )))
        .unwrap();
    let waiting = store.retain(&owner.id, key.table(), UnixMillis(50), 10);
    std::thread::sleep(Duration::from_millis(200));
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql("COMMIT")))
        .unwrap();
    assert_eq!(block_on(waiting), Ok(0));
    assert_ne!(
        block_on(store.load(&owner.id, vec![key])),
        Ok(vec![Row::Absent])
    );
}

#[test]
fn a_full_queue_refuses_at_once() {
    let Some(db) = Db::new() else { return };
    let store = db.open_with(Options {
        lanes: 1,
        queue: 3,
        ..options()
    });
    let mut owners: Vec<Owner> = (0..9)
        .map(|n| Owner::create(&store, "acme", &format!("a{n}")))
        .collect();
    let mut other = db.connection();
    let lock = "BEGIN; LOCK TABLE baton_fence IN ACCESS EXCLUSIVE MODE";
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql(lock)))
        .unwrap();
    let first = store.commit(vec![owners[8].batch("x")]);
    std::thread::sleep(Duration::from_millis(200));
    let calls: Vec<_> = owners[..8]
        .iter_mut()
        .map(|owner| store.commit(vec![owner.batch("x")]))
        .collect();
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql("ROLLBACK")))
        .unwrap();
    assert_eq!(block_on(first), Ok(vec![Outcome::Committed]));
    let refused: Vec<bool> = calls
        .into_iter()
        .map(|call| block_on(call).is_err())
        .collect();
    assert_eq!(refused, [false, false, false, true, true, true, true, true]);
}

/// The reader of a claim's answer must not find a number that the batch behind it makes up.
#[test]
fn numbers_and_epochs_end_where_sql_integers_do() {
    let Some(db) = Db::new() else { return };
    let store: PgStore = db.open();
    let mut owner = Owner::create(&store, "acme", "main");
    let mut batch = owner.batch("x");
    for (epoch, seq) in [
        (u64::MAX, 1),
        (i64::MAX as u64, 1),
        (1, u64::MAX),
        (1, i64::MAX as u64),
    ] {
        batch.term.epoch = Epoch(epoch);
        batch.seq = Seq(seq);
        let outcomes = block_on(store.commit(vec![batch.clone()])).unwrap();
        assert!(
            matches!(outcomes[..], [Outcome::Rejected(_)]),
            "{outcomes:?}"
        );
    }
    let started = Instant::now();
    batch.term = owner.lease.term;
    batch.seq = Seq(1);
    batch.rows = [(Key::Inbox(EventSeq(1)), Some(record("x")))].into();
    assert_eq!(
        block_on(store.commit(vec![batch])),
        Ok(vec![Outcome::Committed])
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}
