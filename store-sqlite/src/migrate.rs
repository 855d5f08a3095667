//! Opening the file: what can be wrong with it, and bringing its tables up to date.

use crate::presence::private_file;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior, params,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Why a database cannot be used. Each variant is one sentence to show to whoever runs the process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory of the file does not exist.
    #[error("there is no directory {}: create it first", .0.display())]
    NoDirectory(PathBuf),
    /// The operating system does not let us.
    #[error("no permission to read and write {}, its directory, and the files beside it", .0.display())]
    NoRights(PathBuf),
    /// The file or its file system cannot be written.
    #[error("{} is read-only: the store has to write", .0.display())]
    ReadOnly(PathBuf),
    /// Something else, perhaps a directory, perhaps an encrypted database.
    #[error("{} is not a SQLite database", .0.display())]
    NotADatabase(PathBuf),
    /// Written by a later version of this program.
    #[error("{} has schema version {found}, this program knows {known}: use the newer program", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The last migration in the file.
        found: u32,
        /// The last migration of this program.
        known: u32,
    },
    /// A migration in the file is not the one of the same number in this program.
    #[error("{} was made by migration {version} of another program: its checksum differs", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Number of the migration.
        version: u32,
    },
    /// The file system cannot do what a write-ahead log needs, as most network file systems cannot.
    #[error("{} is on a file system that cannot keep a write-ahead log (it offers `{mode}`)", .path.display())]
    NoLog {
        /// The file.
        path: PathBuf,
        /// What SQLite fell back to.
        mode: String,
    },
    /// Another process keeps it locked.
    #[error("{} is locked by another process", .0.display())]
    Locked(PathBuf),
    /// Pages of the file are damaged.
    #[error("{} is damaged: restore a backup", .0.display())]
    Damaged(PathBuf),
    /// The disk is full.
    #[error("no space left for {}", .0.display())]
    Full(PathBuf),
    /// Anything else.
    #[error("cannot open {}: {why}", .path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What the operating system or SQLite said.
        why: String,
    },
}

impl OpenError {
    pub(crate) fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NoRights(path),
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(path),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path),
            _ => Self::Other {
                path,
                why: error.to_string(),
            },
        }
    }

    pub(crate) fn from_sql(path: &Path, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase(path),
            // SQLite could open the file, but may not create the log beside it.
            Some(ErrorCode::ReadOnly)
                if error.sqlite_error().is_some_and(|error| {
                    error.extended_code == rusqlite::ffi::SQLITE_READONLY_DIRECTORY
                }) =>
            {
                Self::NoRights(path)
            }
            Some(ErrorCode::ReadOnly) => Self::ReadOnly(path),
            Some(ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                if is_on_read_only_file_system(&path) {
                    Self::ReadOnly(path)
                } else {
                    Self::NoRights(path)
                }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked(path),
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged(path),
            Some(ErrorCode::DiskFull) => Self::Full(path),
            _ => Self::Other {
                path,
                why: error.to_string(),
            },
        }
    }
}

/// One step of the schema. The text never changes once released; the checksum in the database holds us to it.
struct Migration {
    name: &'static str,
    sql: &'static str,
}

/// Version 1 is the first of these.
const MIGRATIONS: &[Migration] = &[
    Migration {
        name: "accounts",
        sql: include_str!("../migrations/0001_accounts.sql"),
    },
    Migration {
        name: "hosts",
        sql: include_str!("../migrations/0002_hosts.sql"),
    },
    Migration {
        name: "wishes",
        sql: include_str!("../migrations/0003_wishes.sql"),
    },
];

/// The schema version this program writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// Opens the file for writing, creating it if need be, and brings it up to date.
pub(crate) fn open_writer(
    path: &Path,
    busy: Duration,
    now_ms: i64,
) -> Result<Connection, OpenError> {
    let connection = {
        // One at a time, for the reason that `touch` gives: it closes the file that it has created.
        static CREATING: Mutex<()> = Mutex::new(());
        let _creating = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
        touch(path)?;
        if path.is_dir() {
            return Err(OpenError::NotADatabase(path.to_owned()));
        }
        connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, busy)?
    };
    prepare(connection, path, busy, now_ms)
}

/// Opens a file that [`open_writer`] has prepared, for reading.
pub(crate) fn open_reader(path: &Path, busy: Duration) -> Result<Connection, OpenError> {
    let sql = |error| OpenError::from_sql(path, &error);
    // A reader of a write-ahead log writes its shared index, so the file itself is not opened read-only.
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, busy)?;
    connection
        .pragma_update(None, "query_only", true)
        .map_err(sql)?;
    Ok(connection)
}

/// A database in memory, up to date.
pub(crate) fn open_in_memory(now_ms: i64) -> Result<Connection, OpenError> {
    let path = Path::new(":memory:");
    let sql = |error| OpenError::from_sql(path, &error);
    let mut connection = Connection::open_in_memory().map_err(sql)?;
    configure(&connection, Duration::ZERO).map_err(sql)?;
    migrate(&mut connection, path, now_ms)?;
    Ok(connection)
}

/// Creates the file so that only its owner can read it: it holds keys. The files beside it inherit that.
///
/// A file that exists is not opened: closing it again would take away the locks that SQLite has on it for connections
/// of this process, and another process could then remove the log that they write to.
fn touch(path: &Path) -> Result<(), OpenError> {
    match private_file().create_new(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::NoDirectory(
            path.parent().unwrap_or(Path::new("")).to_owned(),
        )),
        Err(error) => Err(OpenError::from_io(path, &error)),
    }
}

/// SQLite does not tell. The database itself must not be opened for the answer, see [`touch`].
fn is_on_read_only_file_system(path: &Path) -> bool {
    let mut probe = path.as_os_str().to_owned();
    probe.push(".probe");
    let probe = PathBuf::from(probe);
    match private_file().create_new(true).write(true).open(&probe) {
        Ok(_) => {
            let _ = std::fs::remove_file(&probe);
            false
        }
        Err(error) => error.kind() == io::ErrorKind::ReadOnlyFilesystem,
    }
}

fn connect(path: &Path, flags: OpenFlags, busy: Duration) -> Result<Connection, OpenError> {
    let sql = |error| OpenError::from_sql(path, &error);
    // One thread per connection: SQLite's own locks would only cost time.
    let connection =
        Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(sql)?;
    configure(&connection, busy).map_err(sql)?;
    Ok(connection)
}

fn prepare(
    mut connection: Connection,
    path: &Path,
    busy: Duration,
    now_ms: i64,
) -> Result<Connection, OpenError> {
    let sql = |error| OpenError::from_sql(path, &error);
    // SQLite quietly opens read-only what it cannot write.
    if connection.is_readonly("main").map_err(sql)? {
        return Err(OpenError::ReadOnly(path.to_owned()));
    }
    let mode = write_ahead(&connection, busy).map_err(sql)?;
    if mode != "wal" {
        return Err(OpenError::NoLog {
            path: path.to_owned(),
            mode,
        });
    }
    // A batch touches some ten pages. With room for 16,384 (64 MiB, used as needed) a burst of a thousand writes none
    // of them twice; with a log of 8,192 (32 MiB) instead of 1,000 not every burst has to copy the log into the file.
    connection
        .execute_batch("PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = 8192;")
        .map_err(sql)?;
    migrate(&mut connection, path, now_ms)?;
    Ok(connection)
}

/// Switches to a write-ahead log and returns the mode the file has then.
///
/// The busy time-out does not cover this: of two processes that open a new file at the same moment each holds what the
/// other needs, and SQLite then refuses at once instead of waiting. The one that lost finds the work done.
fn write_ahead(connection: &Connection, busy: Duration) -> rusqlite::Result<String> {
    const PAUSE: Duration = Duration::from_millis(5);
    let begin = std::time::Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)) {
            Err(rusqlite::Error::SqliteFailure(error, _))
                if matches!(
                    error.code,
                    rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked
                ) && begin.elapsed() < busy =>
            {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

fn configure(connection: &Connection, busy: Duration) -> rusqlite::Result<()> {
    connection.busy_timeout(busy)?;
    // FULL: a commit returns when the log is on the disk. FAST: what is deleted is overwritten where that costs no
    // extra write, for a deleted pre-key should not linger in a free part of a page.
    connection.execute_batch(
        "PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA secure_delete = FAST;
         PRAGMA temp_store = MEMORY;
         PRAGMA journal_size_limit = 67108864;",
    )?;
    connection.set_prepared_statement_cache_capacity(256);
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path, now_ms: i64) -> Result<(), OpenError> {
    if applied(connection, path)? == SCHEMA_VERSION {
        return Ok(());
    }
    let sql = |error| OpenError::from_sql(path, &error);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sql)?;
    transaction
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS baton_schema_migrations (
                version INTEGER NOT NULL PRIMARY KEY CHECK (version >= 1),
                name TEXT NOT NULL,
                checksum TEXT NOT NULL,
                applied_at INTEGER NOT NULL
            ) STRICT",
        )
        .map_err(sql)?;
    // Another process may have been faster.
    let done = applied(&transaction, path)?;
    for (migration, version) in MIGRATIONS.iter().zip(1_u32..).skip(done as usize) {
        transaction.execute_batch(migration.sql).map_err(sql)?;
        transaction
            .execute(
                "INSERT INTO baton_schema_migrations (version, name, checksum, applied_at) VALUES (?1, ?2, ?3, ?4)",
                params![version, migration.name, checksum(migration.sql), now_ms],
            )
            .map_err(sql)?;
    }
    transaction.commit().map_err(sql)
}

/// How many of our migrations are in the file, after checking that they are ours.
fn applied(connection: &Connection, path: &Path) -> Result<u32, OpenError> {
    let sql = |error| OpenError::from_sql(path, &error);
    let exists: Option<i64> = connection
        .query_row(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'baton_schema_migrations'",
            [],
            |row| row.get(0),
        )
        .optional()
        .map_err(sql)?;
    if exists.is_none() {
        return Ok(0);
    }
    let mut statement = connection
        .prepare("SELECT version, checksum FROM baton_schema_migrations ORDER BY version")
        .map_err(sql)?;
    let found: Vec<(u32, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .and_then(Iterator::collect)
        .map_err(sql)?;
    if let Some(&(found, _)) = found.last().filter(|(last, _)| *last > SCHEMA_VERSION) {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    for ((version, found), (migration, expected)) in
        found.iter().zip(MIGRATIONS.iter().zip(1_u32..))
    {
        if *version != expected || *found != checksum(migration.sql) {
            return Err(OpenError::Changed {
                path: path.to_owned(),
                version: expected,
            });
        }
    }
    Ok(found.len() as u32)
}

/// FNV-1a. Notices an edited migration; is no protection against anybody. Line ends do not count: a checkout may have
/// changed them.
fn checksum(sql: &str) -> String {
    let hash = sql
        .bytes()
        .filter(|&byte| byte != b'\r')
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Duration = Duration::from_millis(50);

    #[test]
    fn a_connection_that_cannot_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        open_writer(&path, BUSY, 0).unwrap();
        let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY, BUSY).unwrap();
        let error = prepare(connection, &path, Duration::ZERO, 0).unwrap_err();
        assert!(matches!(error, OpenError::ReadOnly(_)), "{error}");
    }

    #[test]
    fn the_log_is_synchronous_and_foreign_keys_hold() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let writer = open_writer(&path, BUSY, 0).unwrap();
        let pragma = |name: &str| {
            writer
                .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!(
            (
                pragma("synchronous"),
                pragma("foreign_keys"),
                pragma("secure_delete")
            ),
            (2, 1, 2)
        );
        let reader = open_reader(&path, BUSY).unwrap();
        let error = reader.execute("DELETE FROM baton_tenant", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly));
    }

    #[test]
    fn checksums_ignore_line_ends_only() {
        assert_eq!(checksum("a\r\nb"), checksum("a\nb"));
        assert_ne!(checksum("a\nb"), checksum("a b"));
    }
}
