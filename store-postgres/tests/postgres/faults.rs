//! What happens when the server, the connection or the rights go away.

use crate::{
    cluster::{Cluster, Db, RUNTIME, options},
    rows::{Owner, beat, claim, join_for, record},
};
use baton_core::state::{
    AccountId, Batch, Beaten, Claim, Epoch, Micros, Outcome, Row, Store, StoreError,
    conformance::{Harness as _, block_on},
};
use baton_store_postgres::{OpenError, Options, PgStore, SCHEMA_VERSION};
use sqlx::Executor as _;
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

pub(crate) fn open_error(url: &str, options: Options) -> OpenError {
    RUNTIME
        .block_on(PgStore::connect(url, options))
        .expect_err("must not open")
}

/// Short waits, for tests that wait them out.
pub(crate) fn impatient() -> Options {
    Options {
        connect: Duration::from_secs(1),
        lock: Duration::from_millis(500),
        deadline: Duration::from_secs(3),
        ..options()
    }
}

#[test]
fn what_cannot_be_opened_says_why() {
    let Some(db) = Db::new() else { return };
    let error = open_error("postgres://127.0.0.1:1/db", impatient());
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    let error = open_error(&db.cluster.url("no_such_database"), options());
    assert!(matches!(error, OpenError::NoDatabase(_)), "{error}");
    let error = open_error(&db.cluster.url_as("stranger", &db.name), options());
    assert!(matches!(error, OpenError::Login { .. }), "{error}");
    let error = open_error("sqlite:baton.db", options());
    assert!(matches!(error, OpenError::Url(_)), "{error}");

    let latin = format!("{}_latin", db.name);
    db.sql(&format!(
        "CREATE DATABASE {latin} ENCODING 'SQL_ASCII' LOCALE 'C' LOCALE_PROVIDER 'libc' TEMPLATE template0"
    ));
    let error = open_error(&db.cluster.url(&latin), options());
    assert_eq!(
        error.to_string(),
        "the database has the encoding SQL_ASCII: create it with UTF8"
    );

    db.sql(&format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        db.name
    ));
    let error = open_error(&db.url(), options());
    assert!(matches!(error, OpenError::NotDurable), "{error}");
    db.sql(&format!(
        "ALTER DATABASE {0} RESET synchronous_commit; ALTER DATABASE {0} SET default_transaction_read_only = on",
        db.name
    ));
    let error = open_error(&db.url(), options());
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
}

#[test]
fn other_schemas_are_refused_unless_they_tolerate_us() {
    let Some(db) = Db::new() else { return };
    let next = SCHEMA_VERSION + 1;
    db.sql(&format!(
        "INSERT INTO baton_schema_migrations VALUES ({next}, 'future', '', {SCHEMA_VERSION})"
    ));
    let store = db.open();
    Owner::create(&store, "acme", "main").commit("x").unwrap();
    db.sql(&format!(
        "UPDATE baton_schema_migrations SET compatible_from = {next} WHERE version = {next}"
    ));
    let error = open_error(&db.url(), options());
    assert!(
        matches!(error, OpenError::Newer { found, known: SCHEMA_VERSION } if found == next),
        "{error}"
    );
    db.sql("UPDATE baton_schema_migrations SET checksum = 'edited' WHERE version = 1");
    let error = open_error(&db.url(), options());
    assert!(matches!(error, OpenError::Changed(1)), "{error}");
}

#[test]
fn who_may_not_migrate_says_so() {
    let Some(db) = Db::empty() else { return };
    let leave = Options {
        migrate: false,
        ..options()
    };
    let error = open_error(&db.url(), leave.clone());
    assert_eq!(
        error.to_string(),
        format!(
            "the database has schema version 0, this program needs {SCHEMA_VERSION}: migrate it first"
        )
    );
    assert_eq!(
        db.number("SELECT count(*) FROM pg_class WHERE relname ~ '^baton'"),
        0,
        "nothing was made"
    );
    drop(db.open());
    drop(db.open_with(leave));
    // Tables of other programs are none of our business.
    assert_eq!(
        db.number("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname !~ '^baton_'"),
        0
    );
}

#[test]
fn durability_switched_off_later_is_noticed_at_the_next_commit() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let mut owner = Owner::create(&store, "acme", "main");
    owner.commit("x").unwrap();
    db.sql(&format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        db.name
    ));
    terminate_all(&db);
    let answer = owner.commit("y");
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    assert_eq!(owner.event(2), Row::Absent);
}

/// Ends every backend of the store.
fn terminate_all(db: &Db) {
    db.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'baton'");
}

/// The commit is inside its transaction, its fence moved, when its backend is ended.
#[test]
fn a_backend_ended_in_mid_commit_leaves_nothing_and_the_batch_is_sent_again() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let mut owner = Owner::create(&store, "acme", "main");
    owner.commit("before").unwrap();
    let batch = owner.batch("x");
    let mut other = db.connection();
    // Rows refer to the device, so writing them waits for this; moving the fence does not.
    let lock = "BEGIN; SELECT 1 FROM baton_device FOR UPDATE";
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql(lock)))
        .unwrap();
    let commit = store.commit(vec![batch.clone()]);
    let started = Instant::now();
    while db.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()") == 0 {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    terminate_all(&db);
    let answer = block_on(commit);
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql("ROLLBACK")))
        .unwrap();
    assert_eq!(owner.event(2), Row::Absent);
    for _ in 0..2 {
        let again = block_on(store.commit(vec![batch.clone()]));
        assert_eq!(again, Ok(vec![Outcome::Committed]));
    }
    assert_eq!(owner.event(2), Row::Present(record("x")));
}

/// The server does not answer, and nothing on its side ends the wait: our own deadline does.
#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let Some(db) = Db::new() else { return };
    let store = db.open_with(Options {
        lock: Duration::from_secs(60),
        statement: Duration::from_secs(60),
        deadline: Duration::from_millis(700),
        ..options()
    });
    let mut owner = Owner::create(&store, "acme", "main");
    let mut other = db.connection();
    let lock = "BEGIN; LOCK TABLE baton_fence IN ACCESS EXCLUSIVE MODE";
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql(lock)))
        .unwrap();
    let batch = owner.batch("x");
    let started = Instant::now();
    let answer = block_on(store.commit(vec![batch.clone()]));
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    let answer = block_on(store.claim(owner.who(), vec![owner.id.clone()]));
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(10));
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql("ROLLBACK")))
        .unwrap();
    assert_eq!(
        block_on(store.commit(vec![batch])),
        Ok(vec![Outcome::Committed])
    );
}

/// An account under load: what it has been told is committed, and what it does not know about.
pub(crate) struct Load {
    owner: Owner,
    told: u64,
    unknown: Option<Batch>,
}

impl Load {
    fn new(store: &PgStore, n: usize) -> Self {
        Self {
            owner: Owner::create(store, &format!("t{}", n % 3), &format!("a{n}")),
            told: 0,
            unknown: None,
        }
    }

    fn content(seq: u64) -> String {
        format!("event {seq}")
    }

    /// Commits until told to stop or out of patience; what failed is sent again, as an engine does.
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            let content = Self::content(self.owner.seq.0 + 1);
            let batch = self
                .unknown
                .take()
                .unwrap_or_else(|| self.owner.batch(&content));
            let seq = batch.seq.0;
            match block_on(self.owner.store.commit(vec![batch.clone()])) {
                Ok(outcomes) => {
                    assert_eq!(outcomes, [Outcome::Committed], "{seq}");
                    self.told = seq;
                }
                Err(StoreError::Unavailable(_)) => {
                    self.unknown = Some(batch);
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Everything that was reported is there, each once, and nothing was made up.
    fn check(&self) {
        let again = Owner::claim(&self.owner.store, &self.owner.id, self.owner.who());
        let applied = again.seq.0;
        assert!(applied >= self.told, "{applied} of {} told", self.told);
        assert!(applied <= self.owner.seq.0);
        for seq in 1..=self.told {
            assert_eq!(
                self.owner.event(seq),
                Row::Present(record(Self::content(seq))),
                "{seq}"
            );
        }
    }

    /// The next term: an owner that has claimed again.
    fn go_on(&mut self) {
        let next = Owner::claim(&self.owner.store, &self.owner.id, self.owner.who());
        self.told = next.seq.0;
        self.owner = next;
        self.unknown = None;
    }
}

#[test]
fn backends_that_keep_ending_lose_and_double_nothing() {
    let Some(db) = Db::new() else { return };
    let store = db.open_with(Options {
        connections: 6,
        lanes: 3,
        ..Options::default()
    });
    let mut loads: Vec<Load> = (0..6).map(|n| Load::new(&store, n)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for load in &mut loads {
            scope.spawn(|| load.run(&stop));
        }
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(40));
            terminate_all(&db);
        }
        stop.store(true, Ordering::SeqCst);
    });
    let told: u64 = loads.iter().map(|load| load.told).sum();
    assert!(told > 30, "{told} batches got through");
    loads.iter().for_each(Load::check);
}

/// All processes of the server die at once, in the middle of commits. After its restart the same handles go on, and
/// every commit that was reported is there.
#[test]
fn what_was_reported_survives_kill_9_of_the_server() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let options = Options {
        connections: 6,
        lanes: 3,
        ..impatient()
    };
    let store = RUNTIME
        .block_on(PgStore::connect(&cluster.url("postgres"), options))
        .unwrap();
    let mut loads: Vec<Load> = (0..6).map(|n| Load::new(&store, n)).collect();
    let mut total = 0;
    for _ in 0..3 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for load in &mut loads {
                scope.spawn(|| load.run(&stop));
            }
            std::thread::sleep(Duration::from_millis(1500));
            cluster.kill_9();
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::SeqCst);
        });
        cluster.run_server();
        loads.iter().for_each(Load::check);
        for load in &mut loads {
            total += load.told;
            load.go_on();
        }
    }
    assert!(total > 100, "{total} batches under load");
}

/// A restart between two calls is not seen by the second: connections that have died are tried and thrown away.
#[test]
fn a_restart_of_the_server_between_calls_is_not_noticed() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let url = cluster.url("postgres");
    let store = RUNTIME
        .block_on(PgStore::connect(&url, impatient()))
        .unwrap();
    let mut owner = Owner::create(&store, "acme", "main");
    cluster.stop();
    let answer = owner.commit("x");
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    cluster.run_server();
    assert_eq!(owner.event(1), Row::Absent);
    let mut owner = Owner::claim(&store, &owner.id, owner.who());
    assert_eq!(owner.commit("x"), Ok(Outcome::Committed));
}

/// A new timeline means that commits may have been lost, and claims among them: its epochs are above all of the old.
#[test]
fn epochs_of_a_new_timeline_are_above_all_of_the_old() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let url = cluster.url("postgres");
    let open = || RUNTIME.block_on(PgStore::connect(&url, impatient()));
    let store = open().unwrap();
    let mut owner = Owner::create(&store, "acme", "main");
    assert_eq!(owner.epoch(), Epoch(1));
    owner.commit("x").unwrap();

    cluster.stop();
    fs::write(cluster.data().join("standby.signal"), "").unwrap();
    cluster.run_server();
    // A standby is not written to.
    let error = open().unwrap_err();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    let answer = owner.commit("y");
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    cluster.promote();

    let next = Owner::claim(&store, &owner.id, owner.who());
    assert_eq!((next.epoch(), next.seq.0), (Epoch((1 << 40) + 1), 1));
    let late = owner.batch("z");
    let answer = block_on(store.commit(vec![late]));
    assert_eq!(answer, Ok(vec![Outcome::Fenced { by: next.epoch() }]));
}

/// Of several servers the one that can write is used, wherever it is in the list.
#[test]
fn of_several_servers_the_writable_one_is_used() {
    let Some(standby) = Cluster::start(&[]) else {
        return;
    };
    let Some(db) = Db::new() else { return };
    standby.stop();
    fs::write(standby.data().join("standby.signal"), "").unwrap();
    standby.run_server();
    standby.sql("postgres", "SELECT 1");
    let url = format!(
        "postgres://postgres@{},{}/{}?target_session_attrs=read-write",
        standby.host(),
        db.cluster.host(),
        db.name
    );
    // The standby has no such database; a server that is down, or one that cannot write, would be passed over alike.
    let store = RUNTIME
        .block_on(PgStore::connect(&url, impatient()))
        .unwrap();
    Owner::create(&store, "acme", "main").commit("x").unwrap();
    let last = format!("postgres://postgres@{}/postgres", standby.host());
    let error = open_error(&last, impatient());
    assert!(error.to_string().contains("standby"), "{error}");
}

#[test]
fn values_that_the_tables_refuse_concern_their_batch_alone() {
    let Some(db) = Db::new() else { return };
    // A constraint that the program does not know of, as a later schema may have.
    db.sql("ALTER TABLE baton_event_buffer ADD CHECK (record <> 'poison')");
    let store = db.open_with(Options {
        lanes: 1,
        ..options()
    });
    let mut owners: Vec<Owner> = (0..4)
        .map(|n| Owner::create(&store, "acme", &format!("a{n}")))
        .collect();
    let mut call = Vec::new();
    for round in 0..2 {
        for (n, owner) in owners.iter_mut().enumerate() {
            call.push(owner.batch(if n == 2 && round == 1 { "poison" } else { "x" }));
        }
    }
    let outcomes = block_on(store.commit(call)).unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Committed => assert_ne!(n, 6),
            Outcome::Rejected(why) => {
                assert_eq!(n, 6);
                assert!(why.contains("check constraint"), "{why}");
                assert!(!why.contains("poison"), "records are not quoted: {why}");
            }
            other => panic!("batch {n}: {other:?}"),
        }
    }
}

/// What the server can say in the middle of a commit, and what a caller has to do about it.
#[test]
fn every_complaint_of_the_server_is_an_instruction() {
    let Some(db) = Db::new() else { return };
    db.sql(
        "CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.record <> 'fine' THEN
             RAISE EXCEPTION 'the server complains' USING ERRCODE = convert_from(NEW.record, 'UTF8');
           END IF;
           RETURN NEW;
         END $$;
         CREATE TRIGGER complain BEFORE INSERT ON baton_event_buffer FOR EACH ROW EXECUTE FUNCTION complain()",
    );
    let store = db.open();
    let mut owner = Owner::create(&store, "acme", "main");
    let unavailable = [
        "40001", "40P01", "53200", "53300", "55P03", "57014", "57P01", "57P02", "57P03", "58030",
        "25006", "08006",
    ];
    let refused = ["53100", "XX001", "42501", "42P01", "0A000"];
    let rejected = ["22001", "23514", "54000"];
    for code in unavailable.into_iter().chain(refused).chain(rejected) {
        let before = owner.seq;
        let answer = owner.commit(code);
        let fits = match &answer {
            Err(StoreError::Unavailable(_)) => unavailable.contains(&code),
            Err(StoreError::Refused(_)) => refused.contains(&code),
            Ok(Outcome::Rejected(_)) => rejected.contains(&code),
            _ => false,
        };
        assert!(fits, "{code}: {answer:?}");
        // Nothing has been written, and the next one goes through.
        owner.seq = before;
        assert_eq!(owner.commit("fine"), Ok(Outcome::Committed), "after {code}");
    }
}

#[test]
fn a_deleted_account_takes_everything_with_it_and_nothing_any_more() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let mut owner = Owner::create(&store, "acme", "main");
    let mut other = Owner::create(&store, "acme", "other");
    owner.commit("x").unwrap();
    other.commit("x").unwrap();
    db.sql(&format!(
        "DELETE FROM baton_device WHERE device_id = {}",
        owner.id.device
    ));
    assert!(matches!(owner.commit("y"), Ok(Outcome::Rejected(_))));
    assert_eq!(db.number("SELECT count(*) FROM baton_event_buffer"), 1);
    assert_eq!(db.number("SELECT count(*) FROM baton_fence"), 1);
    let gone: AccountId = owner.id.clone();
    assert_eq!(claim(&store, &gone, owner.who()), Claim::Missing);
    // Its number is not given again.
    let next = Owner::create(&store, "acme", "main");
    assert!(next.id.device > other.id.device);
}

/// After a failover the clock may be behind the one that a lease was given by.
#[test]
fn a_clock_behind_the_lease_does_not_lengthen_it() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let (lease, short) = (Micros::from_secs(20), Micros::from_millis(500));
    let (judge, silent) = (join_for(&store, lease), join_for(&store, short));
    db.sql(
        "UPDATE baton_host SET expires_at = expires_at + interval '1 year', \
         good_since = good_since + interval '1 year'",
    );
    let started = Instant::now();
    loop {
        let Beaten::Renewed(view) = beat(&store, judge, lease) else {
            panic!("the judge lives")
        };
        for host in &view.hosts {
            let most = if host.who == silent { short } else { lease };
            assert!(host.remaining <= most, "{host:?}");
        }
        if view.newly_dead == [silent] {
            break;
        }
        assert_eq!(view.newly_dead, []);
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(started.elapsed() >= Duration::from_millis(500));
}
