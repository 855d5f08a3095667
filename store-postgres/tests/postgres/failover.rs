//! Servers that take over from each other, with and without the last commits.

use crate::{
    cluster::{Cluster, RUNTIME},
    faults::{impatient, open_error},
    rows::{Owner, beat, claim, join, record},
};
use baton_core::state::{
    Batch, Beaten, Claim, Epoch, Outcome, Row, Seal, Store, StoreError, conformance::block_on,
};
use baton_store_postgres::{Durability, OpenError, Options, PgStore};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

const HOUR: baton_core::state::Micros = crate::rows::HOUR;

/// A URL of both servers.
fn either(primary: &Cluster, standby: &Cluster) -> String {
    format!(
        "postgres://postgres@{},{}/postgres?target_session_attrs=read-write",
        primary.host(),
        standby.host()
    )
}

fn open(url: &str, options: Options) -> PgStore {
    RUNTIME.block_on(PgStore::connect(url, options)).unwrap()
}

/// Until the standby has everything that the primary has.
fn catch_up(primary: &Cluster, standby: &Cluster) {
    let started = Instant::now();
    let all = "SELECT 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
    while primary.sql("postgres", all).is_empty() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{}",
            standby.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn resealed(mut batch: Batch) -> Batch {
    batch.reseal = true;
    batch
}

/// The standby takes over without the last commits, and a claim is among them. The epoch is not given twice, whoever
/// had a term before has none, and nobody writes before the account is sealed again.
#[test]
fn a_failover_that_loses_commits_fences_every_term() {
    let Some(primary) = Cluster::start(&[]) else {
        return;
    };
    let standby = primary.standby();
    let store = open(&either(&primary, &standby), impatient());
    let mut epochs = BTreeSet::new();

    let mut kept = Owner::create(&store, "acme", "kept");
    let mut moved = Owner::create(&store, "acme", "moved");
    let mut given = Owner::create(&store, "acme", "given");
    for owner in [&mut kept, &mut moved, &mut given] {
        owner.commit("there").unwrap();
        epochs.insert((owner.id.clone(), owner.epoch()));
    }
    catch_up(&primary, &standby);
    standby.stop();

    // What the standby does not learn: a batch, a new host that takes one account, another host that is given one.
    assert_eq!(kept.commit("lost"), Ok(Outcome::Committed));
    let mut thief = Owner::seize(&store, &moved.id);
    assert_eq!(thief.commit("lost"), Ok(Outcome::Committed));
    let heir = join(&store);
    let given_to = block_on(store.hand_over(given.who(), &given.id, given.epoch(), heir));
    assert!(given_to.is_ok(), "{given_to:?}");
    let mut heir = Owner::of(&store, &given.id, block_on(store.held(heir)).unwrap()[0].1);
    assert_eq!(heir.commit("lost"), Ok(Outcome::Committed));
    for owner in [&thief, &heir] {
        assert!(epochs.insert((owner.id.clone(), owner.epoch())));
    }

    primary.kill_9();
    standby.run_server();
    standby.promote();

    let started = Instant::now();
    let history = loop {
        match block_on(store.history()) {
            Ok(history) => break history,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error}"),
        }
    };
    assert_eq!((history.timeline, history.generation), (2, 1));
    // The hosts that joined in the meantime have never joined.
    for who in [thief.who(), heir.who()] {
        assert_eq!(beat(&store, who, HOUR), Beaten::Dead);
        let answer = block_on(store.claim(who, vec![kept.id.clone()]));
        assert_eq!(answer, Err(StoreError::NotMember));
    }
    assert!(
        matches!(beat(&store, kept.who(), HOUR), Beaten::Renewed(view) if view.history == history)
    );
    // No term of before is in force, neither for a new batch, nor for one sent again, nor for a look.
    for owner in [&mut kept, &mut moved, &mut given, &mut thief, &mut heir] {
        for answer in [owner.confirm(), owner.commit("late")] {
            assert!(
                matches!(answer, Ok(Outcome::Unsealed { history: now }) if now == history)
                    || matches!(answer, Ok(Outcome::Fenced { .. })),
                "{answer:?}"
            );
        }
        owner.seq.0 -= 1;
        // It would not even if it re-sealed: it does not know what has been lost.
        let batch = resealed(owner.batch("late"));
        let answer = block_on(store.commit(vec![batch])).unwrap();
        assert!(
            !matches!(answer[..], [Outcome::Committed]),
            "{answer:?} for {:?}",
            owner.lease
        );
    }

    for old in [&kept, &thief, &heir] {
        let mut next = Owner::seize(&store, &old.id);
        assert!(
            epochs.insert((next.id.clone(), next.epoch())),
            "{:?}",
            next.epoch()
        );
        assert!(next.epoch() > old.epoch(), "above all of the old timeline");
        assert!(next.epoch() >= Epoch((1 << 40) + 1));
        assert_eq!(next.lease.sealed, Seal::FIRST);
        assert_eq!(next.lease.term.history, history);
        let applied = next.seq;
        assert_eq!(
            next.commit("early"),
            Ok(Outcome::Unsealed { history }),
            "not before it is sealed"
        );
        next.seq = applied;
        let batch = resealed(next.batch("sealed"));
        assert_eq!(
            block_on(store.commit(vec![batch])),
            Ok(vec![Outcome::Committed])
        );
        assert_eq!(next.commit("and on"), Ok(Outcome::Committed));
        assert_eq!(next.confirm(), Ok(Outcome::Committed));
        assert_eq!(next.event(applied.0), Row::Present(record("there")));
    }
}

/// With a synchronous standby a commit is not answered before the standby has it: not the first time, and not when it
/// is sent again while the row can be seen already.
#[test]
fn a_commit_sent_again_waits_for_the_standby_like_the_first() {
    let Some(primary) = Cluster::start(&[]) else {
        return;
    };
    let alone = Options {
        require_sync: true,
        ..impatient()
    };
    let error = open_error(&primary.url("postgres"), alone.clone());
    assert!(matches!(error, OpenError::NotSynchronous(_)), "{error}");
    let store = open(&primary.url("postgres"), impatient());
    assert_eq!(block_on(store.durability()), Ok(Durability::Server));
    drop(store);

    let standby = primary.standby();
    primary.sql(
        "postgres",
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
    );
    primary.sql("postgres", "SELECT pg_reload_conf()");
    let started = Instant::now();
    let synchronous = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'";
    while primary.sql("postgres", synchronous).is_empty() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{}",
            standby.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let options = Options {
        require_sync: true,
        deadline: Duration::from_secs(2),
        ..impatient()
    };
    let store = open(&either(&primary, &standby), options);
    assert_eq!(block_on(store.durability()), Ok(Durability::Synchronous));
    let mut owner = Owner::create(&store, "acme", "main");
    assert_eq!(owner.commit("both have it"), Ok(Outcome::Committed));

    standby.stop();
    let batch = owner.batch("one has it");
    let unavailable = |answer: Result<Vec<Outcome>, StoreError>| {
        assert!(
            matches!(answer, Err(StoreError::Unavailable(_))),
            "answered without the standby: {answer:?}"
        );
    };
    unavailable(block_on(store.commit(vec![batch.clone()])));
    // Whoever waits is ended: the commit is there for everybody to see, and on one disk only.
    let ended =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    primary.sql("postgres", ended);
    let started = Instant::now();
    while owner.event(2) == Row::Absent {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    unavailable(block_on(store.commit(vec![batch.clone()])));
    primary.sql("postgres", ended);
    let answer = owner.confirm();
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    primary.sql("postgres", ended);

    standby.run_server();
    let started = Instant::now();
    loop {
        match block_on(store.commit(vec![batch.clone()])) {
            Ok(answer) => break assert_eq!(answer, [Outcome::Committed]),
            Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error}"),
        }
    }
    // What was answered survives the loss of the server.
    primary.kill_9();
    standby.promote();
    let started = Instant::now();
    while block_on(store.history()).is_err() {
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    for (n, content) in [(1, "both have it"), (2, "one has it")] {
        assert_eq!(owner.event(n), Row::Present(record(content)));
    }
    // The new server has no standby of its own yet; that is refused, not forgotten.
    standby.sql(
        "postgres",
        "ALTER SYSTEM SET synchronous_standby_names = ''",
    );
    standby.sql("postgres", "SELECT pg_reload_conf()");
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_secs(60));
        let next = claim(&store, &owner.id, owner.who());
        let Claim::Granted(lease) = next else {
            panic!("{next:?}")
        };
        let mut next = Owner::of(&store, &owner.id, lease);
        let batch = resealed(next.batch("x"));
        match block_on(store.commit(vec![batch])) {
            Err(StoreError::Refused(why)) => break assert!(why.contains("standby"), "{why}"),
            other => assert!(other.is_err(), "{other:?}"),
        }
    }
}
