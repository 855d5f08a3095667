//! Several hosts, several processes, several transactions: what happens when they meet.

use crate::{
    cluster::{Db, RUNTIME, options},
    rows::{HOUR, Owner, record},
};
use baton_core::state::{
    Batch, Epoch, EventSeq, Incarnation, Key, Micros, Outcome, Row, Seq, Store, StoreError,
    UnixMillis,
    conformance::{Harness as _, block_on},
};
use baton_store_postgres::{Options, PgStore};
use sqlx::{Executor as _, Row as _};
use std::{
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
    let id = Owner::create(&judge, "acme", "main").id;
    let (applied, fenced) = (AtomicU64::new(0), AtomicU64::new(0));
    let hosts = [(db.open(), Incarnation(7)), (db.open(), Incarnation(8))];
    let release = |owner: &Owner| block_on(judge.release(&id, Incarnation(1), owner.epoch));
    release(&Owner::claim(&judge, &id, Incarnation(1), HOUR)).unwrap();
    std::thread::scope(|scope| {
        for (store, who) in &hosts {
            let (id, applied, fenced) = (&id, &applied, &fenced);
            scope.spawn(move || {
                while applied.load(Ordering::SeqCst) < BATCHES {
                    let mut owner = Owner::claim(store, id, *who, Micros(0));
                    // Until the other one takes over.
                    loop {
                        let chain: Vec<Batch> = (0..CHAIN)
                            .map(|_| {
                                let content = format!("{} {}", owner.epoch.0, who.0);
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
                                assert!(*by > owner.epoch);
                                assert!(
                                    outcomes.iter().all(|o| matches!(o, Outcome::Fenced { .. })),
                                    "{outcomes:?}"
                                );
                                fenced.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            Outcome::Rejected(why) => panic!("{why}"),
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
    let last = Owner::claim(&judge, &id, Incarnation(9), HOUR).seq.0;
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
    assert_eq!(db.number("SELECT count(*) FROM baton_schema_migrations"), 1);
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
    block_on(store.release(&alice.id, Incarnation(1), alice.epoch)).unwrap();
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
    let by = Epoch(alice.epoch.0 + 1);
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

/// More tenants than fit into a transaction, in commits and renewals.
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
        let leases = owners
            .iter()
            .map(|owner| (owner.id.clone(), owner.epoch))
            .collect();
        let renewed = block_on(store.renew(Incarnation(1), leases, HOUR)).unwrap();
        assert!(
            renewed
                .iter()
                .all(|answer| *answer == baton_core::state::Renewal::Renewed)
        );
        let transactions = store.stats().transactions - before;
        assert_eq!(transactions, 2 * 10_u64.div_ceil(tenants as u64));
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
        batch.epoch = Epoch(epoch);
        batch.seq = Seq(seq);
        let outcomes = block_on(store.commit(vec![batch.clone()])).unwrap();
        assert!(
            matches!(outcomes[..], [Outcome::Rejected(_)]),
            "{outcomes:?}"
        );
    }
    let started = Instant::now();
    batch.epoch = owner.epoch;
    batch.seq = Seq(1);
    batch.rows = [(Key::Inbox(EventSeq(1)), Some(record("x")))].into();
    assert_eq!(
        block_on(store.commit(vec![batch])),
        Ok(vec![Outcome::Committed])
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}
