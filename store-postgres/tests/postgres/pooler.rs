//! The whole suite through PgBouncer in transaction mode, with fewer connections to the server than the store has.

use crate::cluster::{Cluster, RUNTIME, options, skipped};
use baton_core::state::{Micros, conformance::Harness};
use baton_store_postgres::{Options, PgStore};
use pg_cluster::{run, unprivileged};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// A cluster of its own, with the pooler in front.
static POOLER: LazyLock<Option<(Cluster, PathBuf)>> = LazyLock::new(|| {
    let Some(program) = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.is_file())
    else {
        skipped("PgBouncer");
        return None;
    };
    let cluster = Cluster::start(&[])?;
    cluster.sql("postgres", "CREATE DATABASE template_with_schema");
    let template = cluster.url("template_with_schema");
    drop(
        RUNTIME
            .block_on(PgStore::connect(&template, Options::default()))
            .unwrap(),
    );
    let directory = cluster.directory().join("pooler");
    fs::create_dir(&directory).unwrap();
    let server = cluster.directory().display();
    let here = directory.display();
    let settings = format!(
        "[databases]\n* = host={server}\n[pgbouncer]\nunix_socket_dir = {here}\nlisten_port = 6432\n\
         pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 500\nserver_reset_query_always = 0\n\
         auth_type = trust\nauth_file = {here}/users\npidfile = {server}/pgbouncer.pid\nlogfile = {here}/log\n"
    );
    fs::write(directory.join("settings"), settings).unwrap();
    fs::write(directory.join("users"), "\"postgres\" \"\"\n").unwrap();
    let owner = cluster.data();
    run(Command::new("chown")
        .arg("-R")
        .arg(format!("--reference={}", owner.display()))
        .arg(&directory));
    run(unprivileged(program)
        .args(["-q", "-d"])
        .arg(directory.join("settings"))
        .stdin(Stdio::null()));
    let started = Instant::now();
    while !directory.join(".s.PGSQL.6432").exists() {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    Some((cluster, directory))
});

struct Pooled {
    directory: &'static Path,
    database: String,
}

impl Pooled {
    fn new() -> Option<Self> {
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let (cluster, directory) = POOLER.as_ref()?;
        let database = format!("p{}", DATABASES.fetch_add(1, Ordering::SeqCst));
        let create = format!("CREATE DATABASE {database} TEMPLATE template_with_schema");
        let started = Instant::now();
        while let Err(error) = cluster.try_sql("postgres", "postgres", &create) {
            assert!(started.elapsed() < Duration::from_secs(60), "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self {
            directory,
            database,
        })
    }
}

/// The URL of a database around the pooler, and the one through it.
pub(crate) fn ways() -> Option<(String, String)> {
    let pooled = Pooled::new()?;
    let (cluster, _) = POOLER.as_ref()?;
    Some((cluster.url(&pooled.database), pooled.url()))
}

impl Pooled {
    fn url(&self) -> String {
        format!(
            "postgres:///{}?user=postgres&host={}&port=6432",
            self.database,
            self.directory.display()
        )
    }
}

impl Harness for Pooled {
    type Store = PgStore;

    fn open(&self) -> PgStore {
        let url = self.url();
        let options = Options {
            pooler: true,
            ..options()
        };
        RUNTIME.block_on(PgStore::connect(&url, options)).unwrap()
    }

    fn advance(&self, by: Micros) {
        std::thread::sleep(Duration::from_micros(by.0));
    }
}

baton_core::store_conformance!(match Pooled::new() {
    Some(pooled) => pooled,
    None => return,
});

/// Limits and tenants are set in each transaction: behind a pooler there is no session to keep them.
#[test]
fn limits_hold_behind_a_pooler() {
    use crate::rows::Owner;
    use baton_core::state::{Store, StoreError, conformance::block_on};
    use sqlx::{Connection as _, Executor as _};
    let Some(pooled) = Pooled::new() else { return };
    let Some((cluster, _)) = POOLER.as_ref() else {
        return;
    };
    let store = pooled.open();
    let mut owner = Owner::create(&store, "acme", "main");
    let mut other = RUNTIME
        .block_on(sqlx::PgConnection::connect(&cluster.url(&pooled.database)))
        .unwrap();
    let lock = "BEGIN; SELECT 1 FROM baton_fence FOR UPDATE";
    RUNTIME
        .block_on(other.execute(sqlx::raw_sql(lock)))
        .unwrap();
    let started = Instant::now();
    let batch = owner.batch("x");
    let answer = block_on(store.commit(vec![batch]));
    assert!(
        matches!(&answer, Err(StoreError::Unavailable(why)) if why.contains("locked")),
        "{answer:?}"
    );
    assert!(started.elapsed() < options().deadline);
}
