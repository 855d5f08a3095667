//! A private PostgreSQL for tests, benches and simulated worlds: made from the installed programs, in a temporary
//! directory, on a socket, and gone with the process, however that ends.
//!
//! Nothing here speaks SQL: whoever has a client says by it when the server is up.
//!
//! # Panics
//!
//! Everything that fails panics with the reason: without its server a test has nothing to say. That there is no
//! PostgreSQL on this machine is not a failure: [`Cluster::prepare`] gives `None`.

use std::{
    fmt::Display,
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of our own, or where one will be.
#[derive(Debug)]
pub struct Cluster {
    binaries: PathBuf,
    directory: PathBuf,
    settings: Vec<String>,
    server: Mutex<Option<Child>>,
    /// A shell that waits for this process to end, in whatever way, and then cleans up.
    watchdog: Child,
}

impl Cluster {
    /// A directory and whoever cleans it up; no data yet, and no server. `settings` are `name=value`. `None` if PostgreSQL
    /// is not installed.
    #[must_use]
    pub fn prepare(settings: &[&str]) -> Option<Self> {
        let binaries = binaries()?;
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        let n = CLUSTERS.fetch_add(1, Ordering::SeqCst);
        // Short: the path of a socket has room for about a hundred characters.
        let directory = std::env::temp_dir().join(format!("baton-pg-{}-{n}", std::process::id()));
        fs::create_dir(&directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
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
            .unwrap_or_else(|error| panic!("a shell: {error}"));
        Some(Self {
            binaries,
            directory,
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            server: Mutex::new(None),
            watchdog,
        })
    }

    /// Makes the data directory. `locale` are flags of `initdb`; `false` if it did not take them.
    #[must_use]
    pub fn make(&self, locale: &[&str]) -> bool {
        let made = unprivileged(self.binaries.join("initdb"))
            .args(["-U", "postgres", "--auth=trust", "--encoding=UTF8", "-D"])
            .arg(self.data())
            .args(locale)
            .output();
        let made = made.is_ok_and(|made| made.status.success());
        if !made {
            let _ = fs::remove_dir_all(self.data());
        }
        made
    }

    /// A directory for a standby that follows `self` over its socket, filled.
    #[must_use]
    pub fn standby(&self) -> Option<Self> {
        let standby = Self::prepare(&[])?;
        run(unprivileged(self.binaries.join("pg_basebackup"))
            .args(["-R", "-c", "fast", "-U", "postgres", "-h"])
            .arg(&self.directory)
            .arg("-D")
            .arg(standby.data()));
        Some(standby)
    }

    /// Starts the server, and waits until `ask` has an answer from it.
    pub fn start<E: Display>(&self, ask: impl Fn(&Self) -> Result<(), E>) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("server.log"))
            .unwrap_or_else(|error| panic!("a log: {error}"));
        let log = || {
            let log = log.try_clone();
            log.unwrap_or_else(|error| panic!("a log: {error}"))
        };
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
                .stdout(log())
                .stderr(log())
                .process_group(0)
                .spawn()
                .unwrap_or_else(|error| panic!("the server does not start: {error}"));
            loop {
                let Err(error) = ask(self) else {
                    *self.server() = Some(server);
                    return;
                };
                let log = self.log();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                assert!(started.elapsed() < PATIENCE, "{error}: {end:?}");
                std::thread::sleep(Duration::from_millis(50));
                // Somebody of the server before may still hold its shared memory.
                if !matches!(server.try_wait(), Ok(None)) {
                    continue 'start;
                }
            }
        }
    }

    /// The end of the machine, as far as the server is concerned: all of its processes at once.
    pub fn kill_9(&self) {
        let postmaster = self.postmaster();
        let mut pids = vec![postmaster.clone()];
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // pid (name) state ppid …
            let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            if after_name.split(' ').nth(1) == Some(&postmaster) {
                pids.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        // Some of them may have ended since they were listed, which `kill` complains about; `bury` waits for the end.
        let _ = Command::new("kill").arg("-9").args(&pids).output();
        self.bury();
    }

    /// An orderly end, and the wait for it.
    pub fn stop(&self) {
        run(unprivileged(self.binaries.join("pg_ctl"))
            .args(["stop", "-m", "fast", "-s", "-W", "-D"])
            .arg(self.data()));
        self.bury();
    }

    /// A dead process that nobody has asked about counts as a living one to the next server.
    fn bury(&self) {
        if let Some(mut server) = self.server().take() {
            let _ = server.wait();
        }
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a standby a primary.
    pub fn promote(&self) {
        run(unprivileged(self.binaries.join("pg_ctl"))
            .args(["promote", "-w", "-s", "-D"])
            .arg(self.data()));
    }

    /// Everything is in here, the socket too. It belongs to whoever the server runs as.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The process that a server is, to send signals to.
    #[must_use]
    pub fn postmaster(&self) -> String {
        let file = fs::read_to_string(self.data().join("postmaster.pid"));
        let file = file.unwrap_or_else(|error| panic!("no server: {error}"));
        file.lines().next().unwrap_or_default().to_owned()
    }

    /// What the server has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("server.log")).unwrap_or_default()
    }

    /// A URL for this user; the superuser is `postgres`.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        format!(
            "postgres:///{database}?user={user}&host={}",
            self.directory.display()
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Programs of the newest installed server.
#[must_use]
pub fn binaries() -> Option<PathBuf> {
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
    found
        .pop()
        .map(|(_, path)| path)
        .or_else(|| search_path().into_iter().find(|path| has_server(path)))
}

/// A command as somebody whom the server lets start it: it refuses root.
#[must_use]
pub fn unprivileged(program: impl AsRef<Path>) -> Command {
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

/// Whether there is a program of this name.
#[must_use]
pub fn on_path(program: &str) -> bool {
    let mut places = search_path().into_iter();
    places.any(|directory| directory.join(program).is_file())
}

fn search_path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Runs it to its end, which has to be a good one.
pub fn run(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
