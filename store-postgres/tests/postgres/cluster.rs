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
    fs,
    io::Write as _,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock, Mutex, Once,
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

/// A server of our own.
pub(crate) struct Cluster {
    binaries: PathBuf,
    pub(crate) directory: PathBuf,
    settings: Vec<String>,
    databases: AtomicU32,
    server: Mutex<Option<Child>>,
    /// A shell that waits for this process to end, in whatever way, and then cleans up.
    _watchdog: Child,
}

impl Cluster {
    /// `None`, said loudly once, if PostgreSQL is not installed.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        let cluster = Self::prepare(settings)?;
        cluster.initdb();
        cluster.run_server();
        Some(cluster)
    }

    /// A standby that follows `self` over its socket, as `standby` to the primary.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::prepare(&[]).unwrap();
        run(unprivileged(self.binaries.join("pg_basebackup"))
            .args(["-R", "-c", "fast", "-U", "postgres", "-h"])
            .arg(&self.directory)
            .arg("-D")
            .arg(standby.data()));
        standby.run_server();
        standby
    }

    /// A directory, and whoever cleans it up.
    fn prepare(settings: &[&str]) -> Option<Self> {
        let Some(binaries) = binaries() else {
            skipped("PostgreSQL");
            return None;
        };
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        let n = CLUSTERS.fetch_add(1, Ordering::SeqCst);
        // Short: the path of a socket has room for about a hundred characters.
        let directory = std::env::temp_dir().join(format!("baton-pg-{}-{n}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&directory));
        }
        let watchdog = unprivileged("sh")
            .arg("-c")
            .arg(
                "trap '' INT; cat; for pid in \"$1\"/*.pid \"$1\"/data/postmaster.pid; do \
                 [ -f \"$pid\" ] && kill -QUIT $(head -n 1 \"$pid\"); done; sleep 0.3; rm -rf \"$1\"",
            )
            .arg("sh")
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Some(Self {
            binaries,
            directory,
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            databases: AtomicU32::new(0),
            server: Mutex::new(None),
            _watchdog: watchdog,
        })
    }

    /// The locale sorts text as people do and not by bytes, so that whatever forgets to say how it compares is noticed.
    fn initdb(&self) {
        let initdb = |locale: &[&str]| {
            let output = unprivileged(self.binaries.join("initdb"))
                .args(["-U", "postgres", "--auth=trust", "--encoding=UTF8"])
                .args(locale)
                .arg("-D")
                .arg(self.data())
                .output()
                .unwrap();
            output.status.success()
        };
        let icu = [
            "--locale-provider=icu",
            "--icu-locale=en-US",
            "--locale=C.UTF-8",
        ];
        if !initdb(&icu) {
            let _ = fs::remove_dir_all(self.data());
            assert!(initdb(&["--locale=C.UTF-8"]), "initdb failed");
        }
    }

    pub(crate) fn run_server(&self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("server.log"))
            .unwrap();
        let started = Instant::now();
        'start: loop {
            let mut server = unprivileged(self.binaries.join("postgres"))
                .arg("-D")
                .arg(self.data())
                .arg("-k")
                .arg(&self.directory)
                .args(["-c", "listen_addresses=", "-c", "max_connections=300"])
                .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log.try_clone().unwrap())
                .process_group(0)
                .spawn()
                .unwrap();
            loop {
                let Err(error) = self.try_sql("postgres", "postgres", "SELECT 1") else {
                    *self.server.lock().unwrap() = Some(server);
                    return;
                };
                let log = fs::read_to_string(self.directory.join("server.log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                assert!(
                    started.elapsed() < Duration::from_secs(60),
                    "{error}: {end:?}"
                );
                std::thread::sleep(Duration::from_millis(50));
                // Somebody of the server before may still hold its shared memory.
                if server.try_wait().unwrap().is_some() {
                    continue 'start;
                }
            }
        }
    }

    /// The end of the machine, as far as the server is concerned: all of its processes at once.
    pub(crate) fn kill_9(&self) {
        let postmaster = self.postmaster();
        let mut pids = vec![postmaster.clone()];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // pid (name) state ppid …
            let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            if after_name.split(' ').nth(1) == Some(&postmaster) {
                pids.push(entry.file_name().into_string().unwrap());
            }
        }
        // Some of them may have ended since they were listed, which `kill` complains about; `bury` waits for the end.
        let _ = Command::new("kill").arg("-9").args(&pids).output();
        self.bury();
    }

    /// An orderly end, and the wait for it.
    pub(crate) fn stop(&self) {
        run(unprivileged(self.binaries.join("pg_ctl"))
            .args(["stop", "-m", "fast", "-s", "-W", "-D"])
            .arg(self.data()));
        self.bury();
    }

    /// A dead process that nobody has asked about counts as a living one to the next server.
    fn bury(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            server.wait().unwrap();
        }
    }

    pub(crate) fn promote(&self) {
        run(unprivileged(self.binaries.join("pg_ctl"))
            .args(["promote", "-w", "-s", "-D"])
            .arg(self.data()));
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn postmaster(&self) -> String {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().to_owned()
    }

    /// What the server has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("server.log")).unwrap()
    }

    /// The directory as a host in a URL.
    pub(crate) fn host(&self) -> String {
        self.directory.to_str().unwrap().replace('/', "%2F")
    }

    /// As the superuser.
    pub(crate) fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    pub(crate) fn url_as(&self, user: &str, database: &str) -> String {
        format!(
            "postgres:///{database}?user={user}&host={}",
            self.directory.display()
        )
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
            let mut connection = PgConnection::connect(&self.url_as(user, database)).await?;
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

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self._watchdog.stdin.take());
        let _ = self._watchdog.wait();
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

/// The newest installed server.
fn binaries() -> Option<PathBuf> {
    let has_server = |path: &Path| path.join("initdb").is_file() && path.join("postgres").is_file();
    if let Some(path) = std::env::var_os("BATON_POSTGRES_BIN") {
        // Named and not there is a mistake, not a reason to skip. An empty name hides the installed one.
        let path = PathBuf::from(path);
        assert!(path.as_os_str().is_empty() || has_server(&path), "{path:?}");
        return Some(path).filter(|path| has_server(path));
    }
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<(u32, PathBuf)> = debian
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, path)| has_server(path))
        .collect();
    found.sort();
    let elsewhere = std::env::var_os("PATH").unwrap_or_default();
    found
        .pop()
        .map(|(_, path)| path)
        .or_else(|| std::env::split_paths(&elsewhere).find(|path| has_server(path)))
}

/// A command as somebody whom the server lets start it: it refuses root.
pub(crate) fn unprivileged(program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    if !is_root() {
        return Command::new(program);
    }
    let mut command;
    if on_path("setpriv") {
        command = Command::new("setpriv");
        command.args([
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "--",
        ]);
    } else {
        command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]);
    }
    command.arg(program).current_dir("/");
    command
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

pub(crate) fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
