//! Hosts that end, and how soon the others know. All leases are an hour long: whatever is noticed here is noticed by
//! presence.

use crate::{
    cluster::{Cluster, Db, RUNTIME, options},
    pooler,
    rows::{HOUR, Owner, beat, claim, join},
};
use baton_core::state::{
    Beaten, Change, Claim, HandOver, HostState, Incarnation, Placement, Store,
    conformance::{Harness as _, block_on},
};
use baton_store_postgres::{Options, PgStore, Presence};
use sqlx::Executor as _;
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

fn present() -> Options {
    Options {
        presence: true,
        presence_idle: Duration::from_secs(2),
        ..options()
    }
}

/// A host that beats, in this process.
struct Host {
    store: PgStore,
    who: Incarnation,
    stop: Arc<AtomicBool>,
    beats: Option<JoinHandle<Beaten>>,
}

impl Host {
    fn start(store: &PgStore) -> Self {
        let who = join(store);
        let stop = Arc::new(AtomicBool::new(false));
        let (beating, stopped) = (store.clone(), Arc::clone(&stop));
        let beats = std::thread::spawn(move || {
            loop {
                let beaten = block_on(beating.beat(
                    who,
                    baton_core::state::Beat {
                        draining: false,
                        accounts: 0,
                        live: 0,
                        ttl: HOUR,
                    },
                ));
                match beaten {
                    Ok(Beaten::Dead) => return Beaten::Dead,
                    Ok(beaten) if stopped.load(Ordering::SeqCst) => return beaten,
                    _ => std::thread::sleep(Duration::from_millis(50)),
                }
            }
        });
        Self {
            store: store.clone(),
            who,
            stop,
            beats: Some(beats),
        }
    }

    /// The next news, or none within a while.
    fn news(&self, within: Duration) -> Option<Change> {
        let watch = self.store.watch(self.who);
        RUNTIME.block_on(async { tokio::time::timeout(within, watch).await.ok()?.ok() })
    }

    /// The next that is not about ownership.
    fn news_but_ownership(&self, within: Duration) -> Option<Change> {
        let started = Instant::now();
        loop {
            match self.news(within.saturating_sub(started.elapsed())) {
                Some(Change::Ownership) => {}
                other => return other,
            }
        }
    }

    /// Until `change` comes.
    fn hears(&self, change: Change) {
        let started = Instant::now();
        while self.news(Duration::from_secs(1)) != Some(change) {
            let elapsed = started.elapsed();
            assert!(elapsed < Duration::from_secs(60), "{change:?} did not come");
        }
    }

    fn hears_nothing(&self) {
        assert_eq!(self.news(Duration::from_millis(700)), None);
    }

    /// Whether it lives, after stopping to beat.
    fn end(mut self) -> bool {
        self.stop.store(true, Ordering::SeqCst);
        let last = self.beats.take().unwrap().join().unwrap();
        matches!(last, Beaten::Renewed(_))
    }
}

fn shown(db: &Db, who: Incarnation) -> bool {
    let sql = format!(
        "SELECT count(*) FROM baton_host WHERE incarnation = {} AND present",
        who.0.cast_signed()
    );
    db.number(&sql) == 1
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Somebody waits for the lock of `slot`.
fn watched(db: &Db, slot: u16) -> bool {
    db.number(&format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 9177 AND objid = {slot} \
         AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )) > 0
}

/// A process of its own that joins, claims, and beats until it is killed.
struct Process {
    child: Child,
    who: Incarnation,
    slot: u16,
}

impl Process {
    fn start(url: &str, account: &baton_core::state::AccountId) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "presence::a_process"])
            .env("BATON_TEST_URL", url)
            .env("BATON_TEST_ACCOUNT", account.device.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let line = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("joined ")?.1.to_owned()))
            .expect("the process says that it has joined");
        let (who, slot) = line.split_once(' ').unwrap();
        Self {
            child,
            who: Incarnation(who.parse().unwrap()),
            slot: slot.parse().unwrap(),
        }
    }

    fn signal(&self, signal: &str) {
        pg_cluster::run(Command::new("kill").args([signal, &self.child.id().to_string()]));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what [`Process`] runs.
#[test]
#[ignore = "run by other tests, to be killed"]
fn a_process() {
    let url = std::env::var("BATON_TEST_URL").unwrap();
    let store = RUNTIME.block_on(PgStore::connect(&url, present())).unwrap();
    let host = Host::start(&store);
    let account = baton_core::state::AccountId {
        business: crate::rows::business("acme"),
        device: std::env::var("BATON_TEST_ACCOUNT")
            .unwrap()
            .parse()
            .unwrap(),
    };
    let _owner = Owner::claim(&store, &account, host.who);
    let hosts = block_on(store.hosts()).unwrap();
    let me = hosts.iter().find(|view| view.who == host.who).unwrap();
    println!("joined {} {}", host.who.0, me.slot);
    // Until it is killed, or its test is.
    std::thread::sleep(Duration::from_secs(300));
}

/// A host of this process, and one of another that has an account and is watched.
fn a_pair(db: &Db) -> (Host, Process, baton_core::state::AccountId) {
    let store = db.open_with(present());
    let host = Host::start(&store);
    let id = block_on(store.create_account(&crate::rows::business("acme"), "main")).unwrap();
    let other = Process::start(&db.url(), &id);
    until("the other is shown", || shown(db, other.who));
    until("the other is watched", || watched(db, other.slot));
    assert!(matches!(claim(&store, &id, host.who), Claim::Held { by } if by == other.who));
    (host, other, id)
}

#[test]
fn a_killed_process_is_noticed_without_its_lease() {
    let Some(db) = Db::new() else { return };
    let (host, other, id) = a_pair(&db);
    let killed = Instant::now();
    other.signal("-KILL");
    host.hears(Change::Gone(other.who));
    eprintln!("noticed after {:?}", killed.elapsed());
    Owner::claim(&host.store, &id, host.who);
    assert!(host.end());
}

/// It froze in the middle of a beat: its row is locked until the server gives up its transaction.
#[test]
fn a_host_that_froze_inside_a_beat_is_noticed_too() {
    let Some(db) = Db::new() else { return };
    let (host, other, _) = a_pair(&db);
    let mut beating = db.connection();
    let lock = format!(
        "BEGIN; SELECT 1 FROM baton_host WHERE incarnation = {} FOR UPDATE",
        other.who.0.cast_signed()
    );
    RUNTIME
        .block_on(beating.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(lock))))
        .unwrap();
    other.signal("-KILL");
    // Longer than the one who declares may wait, and than its session may be silent.
    assert_eq!(host.news_but_ownership(Duration::from_secs(5)), None);
    RUNTIME
        .block_on(beating.execute(sqlx::raw_sql("ROLLBACK")))
        .unwrap();
    host.hears(Change::Gone(other.who));
    assert!(host.end());
}

/// A stopped process keeps its connections, and its kernel keeps answering. The server ends a session that is silent.
#[test]
fn a_frozen_process_is_noticed_without_its_lease() {
    let Some(db) = Db::new() else { return };
    let (host, other, id) = a_pair(&db);
    let frozen = Instant::now();
    other.signal("-STOP");
    host.hears(Change::Gone(other.who));
    eprintln!("noticed after {:?}", frozen.elapsed());
    let mut owner = Owner::claim(&host.store, &id, host.who);
    assert!(owner.commit("taken over").is_ok());
    // When it goes on it finds itself dead, and does not come back to life.
    other.signal("-CONT");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(beat(&host.store, other.who, HOUR), Beaten::Dead);
    assert!(owner.commit("still mine").is_ok());
    assert!(host.end());
}

/// Only the session is lost: the host says that it lives, opens another, and nothing happens to it.
#[test]
fn a_host_that_only_lost_its_session_lives() {
    let Some(db) = Db::new() else { return };
    let (one, two) = (
        Host::start(&db.open_with(present())),
        Host::start(&db.open_with(present())),
    );
    for round in 0..5 {
        until("both are shown", || {
            shown(&db, one.who) && shown(&db, two.who)
        });
        until("both are watched", || watched(&db, 1) && watched(&db, 2));
        let ended = db.number(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND classid = 9177 \
             AND objid = {} AND granted AND mode = 'ExclusiveLock' \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            round % 2 + 1
        ));
        assert_eq!(ended, 1);
        std::thread::sleep(Duration::from_millis(400));
    }
    until("both are shown again", || {
        shown(&db, one.who) && shown(&db, two.who)
    });
    assert!(one.end() && two.end());
}

/// All sessions end at once. That proves nothing about anybody.
#[test]
fn a_restart_of_the_server_kills_nobody() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let open = || {
        let options = present();
        RUNTIME
            .block_on(PgStore::connect(&cluster.url("postgres"), options))
            .unwrap()
    };
    let (one, two) = (Host::start(&open()), Host::start(&open()));
    let held = || {
        let sql =
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = 9177 AND NOT granted";
        cluster.sql("postgres", sql).len() == 2
    };
    until("both are watched", held);
    for _ in 0..2 {
        cluster.kill_9();
        cluster.run_server();
        until("both are watched again", held);
    }
    assert!(one.end() && two.end());
}

#[test]
fn news_of_ownership_come_to_whom_they_concern() {
    let Some(db) = Db::new() else { return };
    let store = db.open_with(present());
    let (from, to) = (Host::start(&store), Host::start(&store));
    let other = Host::start(&db.open_with(present()));
    for host in [&from, &to, &other] {
        // The first: look, there may be something.
        host.hears(Change::Ownership);
    }
    assert_eq!(store.presence(), Presence::On);
    let owner = Owner::create_for(&store, "acme", "main", from.who);
    for host in [&from, &to, &other] {
        host.hears_nothing();
    }
    let given = block_on(store.hand_over(from.who, &owner.id, owner.epoch(), to.who)).unwrap();
    assert!(matches!(given, HandOver::Done { .. }));
    // A wait that is given up loses nothing.
    drop(to.store.watch(to.who));
    assert_eq!(
        to.news(Duration::ZERO)
            .or_else(|| to.news(Duration::from_secs(20))),
        Some(Change::Ownership)
    );
    from.hears_nothing();
    other.hears_nothing();
    let HandOver::Done { epoch } = given else {
        return;
    };
    block_on(store.release(to.who, vec![(owner.id.clone(), epoch)])).unwrap();
    for host in [&from, &to, &other] {
        host.hears(Change::Ownership);
    }
    let wish = Placement {
        run: true,
        ..Placement::default()
    };
    block_on(store.place(&owner.id, wish)).unwrap();
    for host in [&from, &to, &other] {
        host.hears(Change::Ownership);
    }
    // Commits are no news.
    let mut owner = Owner::claim(&store, &owner.id, from.who);
    for _ in 0..10 {
        owner.commit("x").unwrap();
    }
    for host in [&from, &to, &other] {
        host.hears_nothing();
    }
    // Who leaves is not gone: what it held is free.
    let left = other.who;
    block_on(other.store.leave(left)).unwrap();
    from.hears(Change::Ownership);
    from.hears_nothing();
    let hosts = block_on(store.hosts()).unwrap();
    let state = hosts.iter().find(|host| host.who == left).unwrap().state;
    assert_eq!(state, HostState::Released);
    assert!(!other.end());
    assert!(from.end() && to.end());
}

/// Whoever declares a host dead knows; the others hear of it.
#[test]
fn a_declared_death_is_heard_by_the_others() {
    let Some(db) = Db::new() else { return };
    let store = db.open_with(present());
    let (by, other) = (Host::start(&store), Host::start(&store));
    let dead = join(&db.open());
    for host in [&by, &other] {
        host.hears(Change::Ownership);
    }
    assert_eq!(block_on(store.declare_dead(by.who, dead)), Ok(true));
    other.hears(Change::Gone(dead));
    by.hears_nothing();
    assert!(by.end() && other.end());
}

/// A pooler in between is found out; with a way around it everything is as without.
#[test]
fn a_pooler_is_found_out() {
    let Some((around, through)) = pooler::ways() else {
        return;
    };
    let open = |direct: Option<&String>| {
        let options = Options {
            pooler: true,
            direct_url: direct.cloned(),
            ..present()
        };
        RUNTIME
            .block_on(PgStore::connect(&through, options))
            .unwrap()
    };
    let store = open(None);
    assert_eq!(store.presence(), Presence::Off);
    let store = open(Some(&through));
    let host = Host::start(&store);
    until("tried", || store.presence() != Presence::Untried);
    assert_eq!(store.presence(), Presence::Unfit);
    host.hears_nothing();
    assert!(host.end());
    let store = open(Some(&around));
    let host = Host::start(&store);
    host.hears(Change::Ownership);
    assert_eq!(store.presence(), Presence::On);
    assert!(host.end());
}
