//! Connections: a bounded number of them, used last-in first-out, never given back in doubt.
//!
//! sqlx has a pool of its own, but it asks the server something on every release, and gives connections back whose
//! last call was cut off. Here a connection goes back only if its transaction has ended; any other is closed hard.
//! What is idle is tried first and may have died in the meantime: `BEGIN` has no effect that could happen twice, so it
//! is simply said again on the next one, and after a restart of the server nobody sees an error for stale connections.

use crate::{Options, error::Failure, open::OpenError, schema::SqlQuery};
use baton_core::state::BusinessId;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow},
};
use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Write as _,
    str::FromStr as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Connections are closed at this age, so that a server behind a balancer gets its share back.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Connections beyond what the traffic needs are closed after so long.
const MAX_IDLE: Duration = Duration::from_secs(10 * 60);

/// The servers, and connections to the one that can write.
pub(crate) struct Pool {
    servers: Vec<PgConnectOptions>,
    /// Which of them could write last.
    writable: AtomicUsize,
    connect: Duration,
    /// Set in each transaction, before anything else.
    preamble: String,
    keep_statements: bool,
    idle: Mutex<VecDeque<Idle>>,
    permits: Arc<Semaphore>,
    pub(crate) transactions: AtomicU64,
    pub(crate) statements: AtomicU64,
}

struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Sees what others have committed, statement by statement.
    Write,
    /// Sees one moment.
    Read,
}

/// What a transaction may see: row-level security holds it to that, whatever its statements ask for.
#[derive(Clone, Debug)]
pub(crate) enum Scope<'a> {
    /// The rows of these businesses.
    Tenants(BTreeSet<&'a BusinessId>),
    /// Fences and wishes of everybody, and no other rows of accounts: for what hosts do among themselves.
    Fleet,
}

impl<'a> Scope<'a> {
    /// The rows of one business.
    pub(crate) fn tenant(business: &'a BusinessId) -> Self {
        Self::Tenants(BTreeSet::from([business]))
    }
}

/// An open transaction. Dropping it closes the connection, which undoes everything.
pub(crate) struct Transaction {
    pool: Arc<Pool>,
    connection: PgConnection,
    opened: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(url: &str, options: &Options) -> Result<Self, OpenError> {
        let mut servers = parse(url)?;
        for server in &mut servers {
            *server = configure(server.clone(), options);
        }
        Ok(Self {
            servers,
            writable: AtomicUsize::new(0),
            connect: options.connect,
            preamble: preamble(options),
            keep_statements: !options.pooler,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(options.connections.max(1))),
            transactions: AtomicU64::new(0),
            statements: AtomicU64::new(0),
        })
    }

    /// Begins a transaction that sees what `scope` says and nothing else.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        mode: Mode,
        scope: Scope<'_>,
    ) -> Result<Transaction, sqlx::Error> {
        let mut begin = match mode {
            Mode::Write => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; ".to_owned(),
            Mode::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; ".to_owned(),
        };
        begin.push_str(&self.preamble);
        let (fleet, tenants) = match scope {
            Scope::Tenants(tenants) => ("off", tenants),
            Scope::Fleet => ("on", BTreeSet::new()),
        };
        // Both are always said, so that nothing that somebody left in the session counts.
        let _ = write!(
            begin,
            "set_config('baton.fleet', '{fleet}', true), set_config('baton.businesses', '"
        );
        for (n, tenant) in tenants.iter().enumerate() {
            // The characters of a business id mean nothing in SQL: see `BusinessId::new`.
            let comma = if n == 0 { "" } else { "," };
            let _ = write!(begin, "{comma}{tenant}");
        }
        begin.push_str("', true)");
        self.begin_with(&begin).await
    }

    /// Begins with statements of the caller's, to which no outside text belongs.
    pub(crate) async fn begin_with(
        self: &Arc<Self>,
        begin: &str,
    ) -> Result<Transaction, sqlx::Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.statements.fetch_add(1, Ordering::Relaxed);
        while let Some(idle) = self.take_idle() {
            let mut connection = idle.connection;
            let begun = connection
                .execute(sqlx::raw_sql(AssertSqlSafe(begin.to_owned())))
                .await;
            match begun {
                Ok(_) => {
                    return Ok(self.transaction(connection, idle.opened, permit));
                }
                Err(error) => tracing::debug!(%error, "an idle connection has died"),
            }
        }
        let mut connection = self.open().await?;
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(begin.to_owned())))
            .await?;
        Ok(self.transaction(connection, Instant::now(), permit))
    }

    fn transaction(
        self: &Arc<Self>,
        connection: PgConnection,
        opened: Instant,
        permit: OwnedSemaphorePermit,
    ) -> Transaction {
        Transaction {
            pool: Arc::clone(self),
            connection,
            opened,
            _permit: permit,
        }
    }

    /// A new connection to the first server that can write, the one that could last time being asked first.
    pub(crate) async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        let start = self.writable.load(Ordering::Relaxed);
        let mut last = sqlx::Error::PoolClosed;
        for step in 0..self.servers.len() {
            let n = (start + step) % self.servers.len();
            let Some(server) = self.servers.get(n) else {
                continue;
            };
            match timeout(self.connect, open_writable(server)).await {
                Ok(Ok(connection)) => {
                    self.writable.store(n, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(Err(error)) => last = error,
                Err(_) => {
                    last = sqlx::Error::Io(std::io::Error::new(
                        std::io::ErrorKind::TimedOut,
                        "no connection within the time allowed",
                    ));
                }
            }
        }
        Err(last)
    }

    /// Where the servers are, for messages: no user, no password.
    pub(crate) fn place(&self) -> String {
        let places: Vec<String> = self.servers.iter().map(place).collect();
        places.join(", ")
    }

    /// The user of the URL.
    pub(crate) fn login(&self) -> String {
        self.servers
            .first()
            .map(|server| server.get_username().to_owned())
            .unwrap_or_default()
    }

    fn take_idle(&self) -> Option<Idle> {
        let mut idle = self.idle();
        let now = Instant::now();
        // The front has been idle for longest.
        while idle
            .front()
            .is_some_and(|idle| now.duration_since(idle.since) > MAX_IDLE)
        {
            idle.pop_front();
        }
        idle.pop_back()
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transaction {
    /// The connection, for one more statement.
    fn sql(&mut self) -> &mut PgConnection {
        self.pool.statements.fetch_add(1, Ordering::Relaxed);
        &mut self.connection
    }

    /// Runs statements that have no parameters, and no text from outside in them.
    pub(crate) async fn raw(&mut self, text: String) -> Result<(), sqlx::Error> {
        self.sql()
            .execute(sqlx::raw_sql(AssertSqlSafe(text)))
            .await
            .map(|_| ())
    }

    /// Commits. An error leaves open whether it happened.
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    /// Undoes everything. The connection is used again if the server says that it could.
    pub(crate) async fn roll_back(self) {
        if let Err(error) = self.end("ROLLBACK").await {
            tracing::debug!(%error, "a connection is closed instead of rolled back");
        }
    }

    /// Commits what went well and undoes what did not.
    pub(crate) async fn finish<T>(self, result: Result<T, Failure>) -> Result<T, Failure> {
        match result {
            Ok(value) => {
                self.commit().await?;
                Ok(value)
            }
            Err(failure) => {
                if failure.leaves_connection_usable() {
                    self.roll_back().await;
                }
                Err(failure)
            }
        }
    }

    async fn end(mut self, how: &'static str) -> Result<(), sqlx::Error> {
        self.sql().execute(sqlx::raw_sql(how)).await?;
        let Self {
            pool,
            connection,
            opened,
            ..
        } = self;
        let now = Instant::now();
        if now.duration_since(opened) < MAX_AGE {
            pool.idle().push_back(Idle {
                connection,
                opened,
                since: now,
            });
        }
        Ok(())
    }
}

/// Running a statement in a transaction. What is prepared for it is kept on the connection, unless the next
/// transaction on it may find itself on another one of the server.
pub(crate) trait Run: Sized {
    /// All rows.
    async fn all(self, transaction: &mut Transaction) -> Result<Vec<PgRow>, sqlx::Error>;
    /// The only row.
    async fn one(self, transaction: &mut Transaction) -> Result<PgRow, sqlx::Error>;
    /// The only row, if any.
    async fn optional(self, transaction: &mut Transaction) -> Result<Option<PgRow>, sqlx::Error>;
    /// How many rows were changed.
    async fn run(self, transaction: &mut Transaction) -> Result<u64, sqlx::Error>;
}

impl Run for SqlQuery {
    async fn all(self, transaction: &mut Transaction) -> Result<Vec<PgRow>, sqlx::Error> {
        let query = self.persistent(transaction.pool.keep_statements);
        query.fetch_all(transaction.sql()).await
    }

    async fn one(self, transaction: &mut Transaction) -> Result<PgRow, sqlx::Error> {
        let query = self.persistent(transaction.pool.keep_statements);
        query.fetch_one(transaction.sql()).await
    }

    async fn optional(self, transaction: &mut Transaction) -> Result<Option<PgRow>, sqlx::Error> {
        let query = self.persistent(transaction.pool.keep_statements);
        query.fetch_optional(transaction.sql()).await
    }

    async fn run(self, transaction: &mut Transaction) -> Result<u64, sqlx::Error> {
        let query = self.persistent(transaction.pool.keep_statements);
        let done = query.execute(transaction.sql()).await?;
        Ok(done.rows_affected())
    }
}

async fn open_writable(server: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut connection = PgConnection::connect_with(server).await?;
    let row = connection
        .fetch_one(sqlx::raw_sql("SHOW transaction_read_only"))
        .await?;
    if row.try_get::<&str, _>(0)? == "on" {
        return Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::ReadOnlyFilesystem,
            format!("{} is a standby or read-only", place(server)),
        )));
    }
    Ok(connection)
}

/// Splits `postgres://user:password@one:5432,two:5433/database?…` into one set of options per server. sqlx knows
/// neither several hosts nor `target_session_attrs`; the store always wants a server that can write.
pub(crate) fn parse(url: &str) -> Result<Vec<PgConnectOptions>, OpenError> {
    let bad = |why: &str| OpenError::Url(why.to_owned());
    let (scheme, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "postgres" | "postgresql"))
        .ok_or_else(|| bad("it has to begin with postgres://"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("target_session_attrs", "read-write" | "primary")) => {}
            Some(("target_session_attrs", _)) => {
                return Err(bad(
                    "target_session_attrs has to be read-write: the store has to write",
                ));
            }
            _ => kept.push(pair),
        }
    }
    let query = if kept.is_empty() {
        String::new()
    } else {
        format!("?{}", kept.join("&"))
    };
    hosts
        .split(',')
        .map(|host| {
            // A URL with a user and no host is none for the parser, but is what goes with `?host=/directory`.
            let host = if host.is_empty() && !user.is_empty() {
                "localhost"
            } else {
                host
            };
            let url = format!("{scheme}://{user}{host}{path}{query}");
            // The message of sqlx may quote the URL, and with it a password.
            PgConnectOptions::from_str(&url).map_err(|_| {
                bad("it is not of the form postgres://user:password@host:port/database")
            })
        })
        .collect()
}

fn configure(server: PgConnectOptions, options: &Options) -> PgConnectOptions {
    let server = server
        .application_name(&options.application_name)
        .disable_statement_logging();
    if options.pooler {
        // A pooler refuses settings that it does not know, and hands the next transaction another connection.
        return server.extra_float_digits(None).statement_cache_capacity(0);
    }
    server
        .statement_cache_capacity(256)
        .options(settings(options))
        .options(KEEPALIVE)
}

/// Lets the server notice that we are gone. sqlx cannot set the same for our end of the connection; there, deadlines
/// do. All without effect on a local socket.
pub(crate) const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "2"),
    ("tcp_keepalives_interval", "1"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "4000"),
];

/// Time limits that the server keeps, in milliseconds.
fn settings(options: &Options) -> [(&'static str, String); 4] {
    let ms = |limit: Duration| limit.as_millis().to_string();
    [
        ("statement_timeout", ms(options.statement)),
        ("lock_timeout", ms(options.lock)),
        (
            "idle_in_transaction_session_timeout",
            ms(options.idle_in_transaction),
        ),
        // Every statement of ours touches a few rows. A server that misjudges one, as long as it has no statistics,
        // compiles it first: a commit took a second of processor time for a millisecond of work.
        ("jit", "off".to_owned()),
    ]
}

/// `SELECT …, ` of everything that holds for each transaction, up to the tenants. All of it ends with the transaction.
fn preamble(options: &Options) -> String {
    let mut sql = "SELECT ".to_owned();
    if options.pooler {
        for (name, value) in settings(options) {
            let _ = write!(sql, "set_config('{name}', '{value}', true), ");
        }
    }
    if let Some(role) = &options.role {
        // Checked when the store is opened: see `migrate::check_role_name`.
        let _ = write!(sql, "set_config('role', '{role}', true), ");
    }
    sql
}

pub(crate) fn place(server: &PgConnectOptions) -> String {
    match server.get_socket() {
        Some(socket) => format!("{}:{}", socket.display(), server.get_port()),
        None => format!("{}:{}", server.get_host(), server.get_port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(url: &str) -> Vec<String> {
        parse(url).unwrap().iter().map(place).collect()
    }

    #[test]
    fn several_servers_share_everything_but_their_address() {
        let url = "postgres://u:p%40w@one,two:5433,10.0.0.3:1/db?target_session_attrs=read-write&sslmode=disable";
        assert_eq!(places(url), ["one:5432", "two:5433", "10.0.0.3:1"]);
        for server in parse(url).unwrap() {
            assert_eq!(
                (server.get_username(), server.get_database()),
                ("u", Some("db"))
            );
        }
        for user in ["", "u@", "u:p@"] {
            let url = format!("postgres://{user}/db?host=/var/run/pg&port=7");
            assert_eq!(places(&url), ["/var/run/pg:7"]);
        }
    }

    #[test]
    fn a_bad_url_is_named_without_its_password() {
        for url in [
            "mysql://u:secret@h/db",
            "postgres://u:secret@h:port/db",
            "postgres://u:secret@h/db?target_session_attrs=standby",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
