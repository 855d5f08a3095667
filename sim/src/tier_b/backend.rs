//! What the database host keeps its accounts in. One seed gives one trace on each of them.

use super::{clock::BEGINNING, postgres};
use baton_core::state::{
    Micros, Store, StoreError, UnixMillis, conformance::block_on, memory::MemoryStore,
};
use baton_store_sqlite::SqliteStore;
use std::{
    fmt, fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tempfile::TempDir;

/// Which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The reference store.
    #[default]
    Memory,
    /// A file, synchronous as in production.
    Sqlite,
    /// A private cluster of the PostgreSQL that is installed.
    Postgres,
}

impl Kind {
    /// Those that can be used on this machine; says loudly which cannot.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Memory, Self::Sqlite];
        if postgres::is_available() {
            all.push(Self::Postgres);
        }
        all
    }

    /// Whether another server can take over. What a file can lose, it loses to a backup.
    #[must_use]
    pub const fn has_standbys(self) -> bool {
        !matches!(self, Self::Sqlite)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

/// The database's clock: virtual, set before each call.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreClock(Arc<AtomicU64>);

impl StoreClock {
    pub(crate) fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Micros {
        Micros(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn unix(&self) -> UnixMillis {
        let millis = i64::try_from(self.now().0 / 1000).unwrap_or(i64::MAX);
        UnixMillis(BEGINNING + millis)
    }
}

/// A store, opened. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) enum Backend {
    Memory(MemoryStore),
    Sqlite(Arc<File>),
    Postgres(Arc<postgres::Database>),
}

/// See [`Backend::copy`].
#[derive(Debug)]
pub(crate) enum Image {
    Memory(MemoryStore),
    Sqlite(TempDir),
    Postgres(postgres::Standby),
}

/// A SQLite store, and where its file is.
#[derive(Debug)]
pub(crate) struct File {
    // Before the directory: it is closed before the files go.
    store: Mutex<Option<SqliteStore>>,
    directory: TempDir,
    clock: StoreClock,
}

impl File {
    /// # Panics
    ///
    /// Without a directory for temporary files nothing makes sense.
    fn create(clock: &StoreClock) -> Self {
        let file = Self {
            store: Mutex::new(None),
            directory: TempDir::with_prefix("baton-sim").expect("a directory for temporary files"),
            clock: clock.clone(),
        };
        file.open();
        file
    }

    fn open(&self) {
        let clock = self.clock.clone();
        let options = baton_store_sqlite::Options {
            // Who is gone is found out by leases: a lock file would tell at once, and only here.
            presence: false,
            readers: 1,
            clock: Arc::new(move || clock.unix()),
            ..baton_store_sqlite::Options::default()
        };
        let store = SqliteStore::open(self.path(), options).expect("a file of our own opens");
        *self.slot() = Some(store);
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("baton.db")
    }

    fn slot(&self) -> MutexGuard<'_, Option<SqliteStore>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> SqliteStore {
        self.slot().clone().expect("open between calls")
    }
}

/// The database and its log. No call is under way, so the two fit together, as after a power cut.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for name in ["baton.db", "baton.db-wal"] {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name))?;
        }
    }
    Ok(())
}

impl Backend {
    pub(crate) fn open(kind: Kind, clock: &StoreClock) -> Self {
        match kind {
            Kind::Memory => {
                let clock = clock.clone();
                Self::Memory(MemoryStore::new(move || clock.now()))
            }
            Kind::Sqlite => Self::Sqlite(Arc::new(File::create(clock))),
            Kind::Postgres => Self::Postgres(Arc::new(postgres::Database::create(clock))),
        }
    }

    /// What a standby that is behind, or a backup, would hold now.
    ///
    /// # Panics
    ///
    /// If it cannot be made; that is the machine's fault, not the store's.
    pub(crate) fn copy(&self, clock: &StoreClock) -> Image {
        match self {
            Self::Memory(store) => {
                let clock = clock.clone();
                Image::Memory(store.copy(move || clock.now()))
            }
            Self::Sqlite(file) => {
                let to = TempDir::with_prefix("baton-sim").expect("a directory");
                copy_files(file.directory.path(), to.path()).expect("a copy of the files");
                Image::Sqlite(to)
            }
            Self::Postgres(database) => Image::Postgres(database.copy()),
        }
    }

    /// A standby takes over that has what the copy has: everything since is lost, and the server tells that another
    /// timeline has begun. `false` if there is no such thing: a file has no standby.
    pub(crate) fn fail_over_to(&self, copy: &Image) -> bool {
        match (self, copy) {
            (Self::Memory(store), Image::Memory(copy)) => store.fail_over_to(copy),
            (Self::Postgres(database), Image::Postgres(copy)) => {
                database.restore(copy);
                database.begin_timeline();
            }
            _ => return false,
        }
        true
    }

    /// The copy is put back: everything since is lost. Memory and PostgreSQL are told so, as an operator has to; a SQLite
    /// store notices by itself.
    ///
    /// # Panics
    ///
    /// As [`copy`](Self::copy).
    pub(crate) fn restore(&self, copy: &Image) {
        match (self, copy) {
            (Self::Memory(store), Image::Memory(copy)) => store.restore(copy),
            (Self::Sqlite(file), Image::Sqlite(copy)) => {
                drop(file.slot().take());
                for name in ["baton.db", "baton.db-wal", "baton.db-shm"] {
                    // The log is gone after a proper close.
                    let _ = fs::remove_file(file.directory.path().join(name));
                }
                copy_files(copy.path(), file.directory.path()).expect("the copy put back");
                file.open();
            }
            (Self::Postgres(database), Image::Postgres(copy)) => {
                database.restore(copy);
                let renewed = self.run(|store| async move {
                    let now = store.history().await?;
                    store.renew_history(now).await
                });
                assert!(renewed.is_ok(), "{renewed:?}");
            }
            _ => {}
        }
    }

    /// One call, to its end, while virtual time stands still. The store's own threads may work; nobody else does.
    pub(crate) fn run<T, F>(&self, call: impl FnOnce(Self) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        // A future of a store may use channels of tokio's, which give way to other tasks now and then by tokio's own
        // count; in a call that blocks nobody would reset that count.
        let call = tokio::task::unconstrained(call(self.clone()));
        match self {
            Self::Postgres(database) => database.run(call),
            _ => block_on(call),
        }
    }
}

macro_rules! each {
    ($name:ident($($arg:ident: $type:ty),*) -> $out:ty) => {
        async fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> {
            match self {
                Self::Memory(store) => store.$name($($arg),*).await,
                Self::Sqlite(file) => file.store().$name($($arg),*).await,
                Self::Postgres(database) => database.store().$name($($arg),*).await,
            }
        }
    };
}

impl Store for Backend {
    baton_core::delegate_store!(with each: all);
}
