//! A private PostgreSQL for worlds: one cluster a process, one database a world, thrown away at the end.
//!
//! Its clock is virtual. The store asks the server for `clock_timestamp()`; a function of that name in a schema that
//! comes before `pg_catalog` answers from a file that is written before each call. So leases are judged by the world's
//! time, and nothing of the store is changed for that.
//!
//! Calls are made on a thread that each database has for itself, with the only runtime that the store ever sees; the
//! simulated host waits for it, and virtual time stands still.

use super::backend::StoreClock;
use baton_store_postgres::{Options, PgStore};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::{
    fs,
    future::Future,
    io::Write as _,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    sync::{
        LazyLock, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// Whether PostgreSQL is installed; says so loudly, once, if it is not.
pub(crate) fn is_available() -> bool {
    static SAID: Once = Once::new();
    let found = pg_cluster::binaries().is_some();
    if !found {
        SAID.call_once(|| {
            // Not by `eprintln`: tests keep that to themselves when they pass.
            let words =
                b"\nSKIPPED on PostgreSQL: it is not installed here (no initdb was found)\n\n";
            let _ = std::io::stderr().write_all(words);
        });
    }
    found
}

type Job = Box<dyn FnOnce(&mut Runtime) + Send>;

/// A thread with a runtime of its own. A simulated host is inside another one, and could not block on this one itself.
struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    fn start() -> Self {
        let (jobs, waiting) = mpsc::channel::<Job>();
        thread::spawn(move || {
            let mut runtime = Self::runtime();
            for job in waiting {
                job(&mut runtime);
            }
        });
        Self { jobs }
    }

    fn runtime() -> Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let built = builder.enable_all().build();
        built.expect("a runtime beside the simulated ones")
    }

    /// Ends everything that was begun there, and the connections with it.
    fn end<T: Send + 'static>(&self, last: T) -> mpsc::Receiver<()> {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move |runtime| {
            runtime.block_on(async { drop(last) });
            *runtime = Self::runtime();
            let _ = done.send(());
        });
        let _ = self.jobs.send(job);
        result
    }

    /// Does it there, and waits.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.post(work).recv().expect("the work comes to an end")
    }

    /// Has it done there.
    fn post<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> mpsc::Receiver<T> {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move |runtime| drop(done.send(runtime.block_on(work))));
        // If it has come to a bad end before, the receiver says so.
        let _ = self.jobs.send(job);
        result
    }
}

/// The database of one world.
pub(crate) struct Database {
    name: String,
    worker: Worker,
    store: Mutex<Option<PgStore>>,
    clock: StoreClock,
    /// What the server takes for a clock.
    dial: fs::File,
    timeline: AtomicU32,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.name)
    }
}

impl Database {
    /// # Panics
    ///
    /// If the cluster does not work.
    pub(crate) fn create(clock: &StoreClock) -> Self {
        let name = cluster().copy_of("baton_template");
        let database = Self {
            dial: cluster().dial(&name),
            name,
            timeline: AtomicU32::new(1),
            worker: Worker::start(),
            store: Mutex::new(None),
            clock: clock.clone(),
        };
        database.open();
        database
    }

    fn open(&self) {
        self.set_clock();
        let url = cluster().url(&self.name);
        let store = (self.worker).run(async move { PgStore::connect(&url, options()).await });
        *self.slot() = Some(store.expect("a database of our own opens"));
    }

    fn close(&self) {
        let store = self.slot().take();
        let ended = self.worker.end(store).recv();
        ended.expect("the store can be closed");
    }

    fn slot(&self) -> MutexGuard<'_, Option<PgStore>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn store(&self) -> PgStore {
        self.slot().clone().expect("open between calls")
    }

    /// One call, to its end, at the world's time.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.set_clock();
        self.worker.run(call)
    }

    /// Lets the server know what time it is.
    fn set_clock(&self) {
        let now = format!("{:020}", self.clock.unix().0);
        let set = self.dial.write_all_at(now.as_bytes(), 0);
        set.expect("the clock can be set");
    }

    /// Another database that holds what this one holds now.
    pub(crate) fn copy(&self) -> Standby {
        self.close();
        let name = cluster().copy_of(&self.name);
        self.open();
        Standby(name)
    }

    /// Everything since that copy is lost.
    pub(crate) fn restore(&self, copy: &Standby) {
        self.close();
        let name = &self.name;
        cluster().sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
        cluster().copy(&copy.0, name);
        self.open();
    }

    /// What a promoted standby does: it counts one further. The store asks a function of its schema, which knows it from
    /// the name of the log that the server writes; here it is told.
    pub(crate) fn begin_timeline(&self) {
        let timeline = self.timeline.fetch_add(1, Ordering::Relaxed) + 1;
        let tell = format!(
            "CREATE OR REPLACE FUNCTION simulated.baton_timeline() RETURNS bigint LANGUAGE sql STABLE AS
             'SELECT {timeline}::bigint'"
        );
        cluster().sql(&self.name, &tell);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let store = self.slot().take();
        // Nobody waits for this.
        drop(self.worker.end(store));
        cluster().forget(&self.name);
    }
}

/// See [`Database::copy`].
#[derive(Debug)]
pub(crate) struct Standby(String);

impl Drop for Standby {
    fn drop(&mut self) {
        cluster().forget(&self.0);
    }
}

/// Few connections, no presence: who is gone is found out by leases, as on the other stores. And no limit that is
/// measured in real time: on a busy machine it would strike where virtual time stands still.
fn options() -> Options {
    const NEVER: Duration = Duration::from_secs(600);
    Options {
        connections: 4,
        lanes: 1,
        presence: false,
        connect: NEVER,
        statement: NEVER,
        lock: NEVER,
        idle_in_transaction: NEVER,
        deadline: NEVER,
        ..Options::default()
    }
}

/// A server of our own.
struct Cluster {
    server: pg_cluster::Cluster,
    databases: AtomicU32,
    worker: Worker,
}

fn cluster() -> &'static Cluster {
    static CLUSTER: LazyLock<Cluster> = LazyLock::new(Cluster::start);
    &CLUSTER
}

impl Cluster {
    fn start() -> Self {
        let server = pg_cluster::Cluster::prepare(&[
            // What is simulated is not the disk: nothing survives this process anyway.
            "fsync=off",
            "full_page_writes=off",
            "wal_level=minimal",
            "max_wal_senders=0",
            // Plans do not change while a world runs.
            "autovacuum=off",
            "jit=off",
        ]);
        let server = server.expect("PostgreSQL is installed");
        assert!(server.make(&["--locale=C.UTF-8", "--no-sync"]), "initdb");
        let cluster = Self {
            server,
            databases: AtomicU32::new(0),
            worker: Worker::start(),
        };
        let ask = |_: &pg_cluster::Cluster| cluster.try_sql("postgres", "SELECT 1");
        cluster.server.start(ask);
        cluster.sql("postgres", "CREATE DATABASE baton_template");
        cluster.put_clock_first("baton_template");
        cluster.sql(
            "baton_template",
            &format!(
                "CREATE SCHEMA simulated;
                 CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz
                   LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$ BEGIN
                     RETURN timestamptz 'epoch' + pg_catalog.pg_read_file(
                       '{}/' || pg_catalog.current_database() || '.clock')::bigint * interval '1 millisecond';
                   END $$;
                 GRANT USAGE ON SCHEMA simulated TO PUBLIC",
                cluster.server.directory().display()
            ),
        );
        let dial = cluster.dial("baton_template");
        dial.write_all_at(b"0", 0).expect("the clock can be set");
        let url = cluster.url("baton_template");
        let migrated = cluster.worker.run(async move {
            let store = PgStore::connect(&url, options()).await;
            store.map(drop)
        });
        migrated.expect("the schema can be made");
        cluster
    }

    /// The schema with the clock comes first, so the store's tables are in it as well.
    fn url(&self, database: &str) -> String {
        self.server.url("postgres", database)
    }

    /// The file that the server reads the time of a database from.
    fn dial(&self, database: &str) -> fs::File {
        let path = self.server.directory().join(format!("{database}.clock"));
        let file = fs::File::create(path).expect("a file for the clock");
        let readable = file.set_permissions(fs::Permissions::from_mode(0o644));
        readable.expect("a file that the server may read");
        file
    }

    fn copy_of(&self, template: &str) -> String {
        let name = format!("world{}", self.databases.fetch_add(1, Ordering::SeqCst));
        self.copy(template, &name);
        name
    }

    fn copy(&self, template: &str, name: &str) {
        let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
        let started = Instant::now();
        // Connections to the template take a moment to end, and only one copy is made at a time.
        while let Err(error) = self.try_sql("postgres", &create) {
            assert!(started.elapsed() < Duration::from_secs(60), "{error}");
            thread::sleep(Duration::from_millis(20));
        }
        self.put_clock_first(name);
    }

    fn put_clock_first(&self, database: &str) {
        let path = format!("ALTER DATABASE {database} SET search_path = simulated, pg_catalog");
        self.sql("postgres", &path);
    }

    fn sql(&self, database: &str, sql: &str) {
        if let Err(error) = self.try_sql(database, sql) {
            panic!("{sql}: {error}");
        }
    }

    fn try_sql(&self, database: &str, sql: &str) -> Result<(), sqlx::Error> {
        let (url, sql) = (self.url(database), sql.to_owned());
        self.worker.run(execute(url, sql))
    }

    /// Nobody will ask for this database again, or waits until it is gone.
    fn forget(&self, database: &str) {
        let sql = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
        drop(self.worker.post(execute(self.url("postgres"), sql)));
        let _ = fs::remove_file(self.server.directory().join(format!("{database}.clock")));
    }
}

async fn execute(url: String, sql: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(&url).await?;
    let sql = sqlx::raw_sql(AssertSqlSafe(sql));
    connection.execute(sql).await?;
    connection.close().await
}
