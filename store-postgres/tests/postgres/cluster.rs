//! A private PostgreSQL: made from the installed binaries, thrown away with the test run.
//!
//! One cluster serves all tests of a run, each with a database of its own; tests that kill servers make their own.
//! Without binaries every test says so and passes: see [`Db::new`].

use baton_core::state::{AccountId, Key, Micros, conformance::Harness};
use baton_store_postgres::{Options, PgStore};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgRow,
};
use std::{
    io::Write as _,
    ops::Deref,
    process::Command,
    sync::{
        LazyLock, Once,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// The stores of all tests live here; the suite awaits their futures outside.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
});

static SHARED: LazyLock<Option<Cluster>> = LazyLock::new(|| {
    let cluster = Cluster::start(&[])?;
    cluster.sql("postgres", "CREATE DATABASE baton_template");
    let options = Options::default();
    let store = RUNTIME.block_on(PgStore::connect(&cluster.url("baton_template"), options));
    drop(store.unwrap());
    Some(cluster)
});

/// A server of our own, and how to ask it. What can be done to it is the server's ([`pg_cluster::Cluster`]).
pub(crate) struct Cluster {
    server: pg_cluster::Cluster,
    databases: AtomicU32,
}

impl Deref for Cluster {
    type Target = pg_cluster::Cluster;

    fn deref(&self) -> &pg_cluster::Cluster {
        &self.server
    }
}

impl Cluster {
    /// `None`, said loudly once, if PostgreSQL is not installed.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        let Some(server) = pg_cluster::Cluster::prepare(settings) else {
            skipped("PostgreSQL");
            return None;
        };
        // A locale that sorts text as people do and not by bytes, so that whatever forgets to say how it compares is
        // noticed; if this server has it.
        let icu = [
            "--locale-provider=icu",
            "--icu-locale=en-US",
            "--locale=C.UTF-8",
        ];
        assert!(
            server.make(&icu) || server.make(&["--locale=C.UTF-8"]),
            "initdb failed"
        );
        Some(Self::run(server))
    }

    /// A standby that follows `self` over its socket, as `standby` to the primary.
    pub(crate) fn standby(&self) -> Self {
        Self::run(self.server.standby().unwrap())
    }

    fn run(server: pg_cluster::Cluster) -> Self {
        let cluster = Self {
            server,
            databases: AtomicU32::new(0),
        };
        cluster.run_server();
        cluster
    }

    pub(crate) fn run_server(&self) {
        self.server
            .start(|_| self.try_sql("postgres", "postgres", "SELECT 1").map(drop));
    }

    /// The directory as a host in a URL.
    pub(crate) fn host(&self) -> String {
        self.directory().to_str().unwrap().replace('/', "%2F")
    }

    /// As the superuser.
    pub(crate) fn url(&self, database: &str) -> String {
        self.server.url("postgres", database)
    }

    pub(crate) fn url_as(&self, user: &str, database: &str) -> String {
        self.server.url(user, database)
    }

    /// Runs statements as the superuser.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> Vec<PgRow> {
        self.try_sql("postgres", database, sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub(crate) fn try_sql(
        &self,
        user: &str,
        database: &str,
        sql: &str,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        RUNTIME.block_on(async {
            let mut connection = PgConnection::connect(&self.server.url(user, database)).await?;
            connection
                .fetch_all(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
                .await
        })
    }

    /// A database without anything in it.
    pub(crate) fn empty_database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::SeqCst));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    fn copy_of_template(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::SeqCst));
        let create = format!("CREATE DATABASE {name} TEMPLATE baton_template");
        let started = Instant::now();
        // The connections that made the template take a moment to end, and only one copy is made at a time.
        while let Err(error) = self.try_sql("postgres", "postgres", &create) {
            assert!(started.elapsed() < Duration::from_secs(60), "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        name
    }
}

/// A database of its own in the shared cluster, with the schema in it.
pub(crate) struct Db {
    pub(crate) cluster: &'static Cluster,
    pub(crate) name: String,
}

impl Db {
    /// `None` without PostgreSQL: the test has nothing to run on, and that has been said.
    pub(crate) fn new() -> Option<Self> {
        let cluster = SHARED.as_ref()?;
        Some(Self {
            cluster,
            name: cluster.copy_of_template(),
        })
    }

    /// A database in which no store has been.
    pub(crate) fn empty() -> Option<Self> {
        let cluster = SHARED.as_ref()?;
        Some(Self {
            cluster,
            name: cluster.empty_database(),
        })
    }

    pub(crate) fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    pub(crate) fn open_with(&self, options: Options) -> PgStore {
        RUNTIME
            .block_on(PgStore::connect(&self.url(), options))
            .unwrap()
    }

    pub(crate) fn sql(&self, sql: &str) -> Vec<PgRow> {
        self.cluster.sql(&self.name, sql)
    }

    /// The number that `sql` gives.
    pub(crate) fn number(&self, sql: &str) -> i64 {
        self.sql(sql)[0].try_get::<i64, _>(0).unwrap()
    }

    /// A connection of the superuser, to hold locks with.
    pub(crate) fn connection(&self) -> PgConnection {
        RUNTIME
            .block_on(PgConnection::connect(&self.url()))
            .unwrap()
    }
}

/// Few connections: many tests run at once. Without presence: the suite opens handles for a single call, and a handle
/// that is dropped is a process that has ended.
pub(crate) fn options() -> Options {
    Options {
        connections: 4,
        lanes: 2,
        presence: false,
        ..Options::default()
    }
}

impl Harness for Db {
    type Store = PgStore;

    fn open(&self) -> PgStore {
        self.open_with(options())
    }

    fn advance(&self, by: Micros) {
        std::thread::sleep(Duration::from_micros(by.0));
    }

    /// Makes the record so large that the server keeps it in a table beside, and takes it away there.
    fn corrupt(&self, account: &AccountId, key: &Key) -> bool {
        corrupt(self, account, key)
    }
}

fn corrupt(db: &Db, account: &AccountId, key: &Key) -> bool {
    let table = format!("baton_{}", key.table().name());
    db.sql("CREATE EXTENSION IF NOT EXISTS pg_surgery");
    db.sql(&format!(
        "ALTER TABLE {table} ALTER COLUMN record SET STORAGE EXTERNAL"
    ));
    let row = crate::rows::condition(key);
    let updated = db.number(&format!(
        "WITH u AS (UPDATE {table} SET record = decode(repeat('aa', 20000), 'hex') \
         WHERE business_id = '{}' AND device_id = {}{row} RETURNING 1) SELECT count(*) FROM u",
        account.business, account.device
    ));
    assert_eq!(updated, 1, "{key:?}");
    db.sql(&format!(
        "DO $$ DECLARE t regclass; c tid[]; BEGIN
           SELECT reltoastrelid INTO t FROM pg_class WHERE oid = '{table}'::regclass;
           EXECUTE format('SELECT array_agg(ctid) FROM %s', t) INTO c;
           EXECUTE 'SELECT heap_force_kill($1, $2)' USING t, c;
         END $$"
    ));
    true
}

/// Says once per run, past the capture of the test harness, that the tests do nothing.
pub(crate) fn skipped(what: &str) {
    static ONCE: Once = Once::new();
    let say = |text: String| {
        let _ = std::io::stderr().write_all(text.as_bytes());
    };
    if what == "PostgreSQL" {
        ONCE.call_once(|| {
            let list = Command::new(std::env::current_exe().unwrap())
                .args(std::env::args().skip(1))
                .arg("--list")
                .output()
                .unwrap();
            let list = String::from_utf8_lossy(&list.stdout).into_owned();
            let tests = list.lines().filter(|line| line.ends_with(": test")).count();
            say(format!("\nSKIPPED {tests} tests: PostgreSQL not found\n\n"));
        });
    } else {
        say(format!("\nSKIPPED a test: {what} not found\n\n"));
    }
}
