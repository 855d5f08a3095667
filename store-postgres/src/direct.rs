//! Sessions with the server itself, outside the pool: they last, and what they hold is theirs.

use crate::{
    Options,
    error::state,
    hosts::{LOCKS, NEWS},
    open::OpenError,
    pool::{KEEPALIVE, parse},
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Executor as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use std::{io, time::Duration};
use tokio::{
    sync::OnceCell,
    time::{sleep, timeout},
};

/// A wait for a lock ends after so long, to be begun anew: whoever waits may have to wait for another by then.
const GLANCE: Duration = Duration::from_secs(2);
/// Between two attempts to try sessions out.
const PAUSE: Duration = Duration::from_secs(1);

/// The way to the server without anything in between.
pub(crate) struct Direct {
    servers: Vec<PgConnectOptions>,
    pub(crate) connect: Duration,
    /// How long a session may be silent.
    pub(crate) idle: Duration,
    /// Whether sessions are what they should be.
    pub(crate) fit: OnceCell<bool>,
}

impl Direct {
    pub(crate) fn new(url: &str, options: &Options) -> Result<Self, OpenError> {
        let name = format!("{}-presence", options.application_name);
        let settings = [
            ("statement_timeout", "0".to_owned()),
            ("lock_timeout", GLANCE.as_millis().to_string()),
        ];
        let configure = |server: PgConnectOptions| {
            server
                .application_name(&name)
                .disable_statement_logging()
                .options(KEEPALIVE)
                .options(settings.clone())
        };
        Ok(Self {
            servers: parse(url)?.into_iter().map(configure).collect(),
            connect: options.connect,
            idle: options.presence_idle.max(Duration::from_millis(100)),
            fit: OnceCell::new(),
        })
    }

    /// Tried out once; for as long as nobody answers it is tried again.
    pub(crate) async fn is_fit(&self) -> bool {
        loop {
            match self.fit.get_or_try_init(|| self.try_out()).await {
                Ok(fit) => return *fit,
                Err(error) => {
                    tracing::warn!(%error, "presence is not known to work yet");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn try_out(&self) -> Result<bool, sqlx::Error> {
        match self.flaw().await {
            Ok(None) => Ok(true),
            Ok(Some(flaw)) => {
                tracing::warn!(
                    flaw,
                    "presence is off: hosts that end are noticed by their lease"
                );
                Ok(false)
            }
            // Said by whoever answers for the server, and not about its being busy.
            Err(error) if !matches!(state(&error).get(..2), None | Some("53" | "57")) => {
                tracing::warn!(%error, "presence is off: hosts that end are noticed by their lease");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What is wrong with sessions.
    async fn flaw(&self) -> Result<Option<&'static str>, sqlx::Error> {
        let (mut a, mut b) = (self.open().await?, self.open().await?);
        let first = pid(&mut a).await?;
        let other = pid(&mut b).await?;
        if first == other || first != pid(&mut a).await? {
            return Ok(Some("a session is not always the same one of the server"));
        }
        // A lock that nobody else takes, as no other session has this number.
        let lock = format!("SELECT pg_try_advisory_lock({}, {first})", LOCKS + 1);
        let unlock = format!("SELECT pg_advisory_unlock({}, {first})", LOCKS + 1);
        let excludes = truth(&mut a, &lock).await?
            && !truth(&mut b, &lock).await?
            && truth(&mut a, &unlock).await?
            && truth(&mut b, &lock).await?
            && truth(&mut b, &unlock).await?;
        if !excludes {
            return Ok(Some("an advisory lock does not exclude others"));
        }
        self.limit(&mut a).await?;
        Ok(None)
    }

    /// Only in sessions that are known to be ours alone.
    async fn limit<'e>(
        &self,
        session: impl sqlx::Executor<'e, Database = sqlx::Postgres>,
    ) -> Result<(), sqlx::Error> {
        let limit = format!("SET idle_session_timeout = {}", self.idle.as_millis());
        execute(session, &limit).await
    }

    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.open().await?;
        self.limit(&mut connection).await?;
        Ok(connection)
    }

    /// A session with the first server that can write.
    async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        let mut last = sqlx::Error::PoolClosed;
        for server in &self.servers {
            let open = async {
                let mut connection = server.connect().await?;
                writable(&mut connection).await?;
                Ok(connection)
            };
            match timeout(self.connect, open).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = error,
                Err(_) => last = broken("no connection within the time allowed"),
            }
        }
        Err(last)
    }

    /// The same, with an ear for news. Its pool has one connection, which is the listener's for good.
    pub(crate) async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        let mut last = sqlx::Error::PoolClosed;
        for server in &self.servers {
            let open = async {
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .max_lifetime(None)
                    .idle_timeout(None)
                    .test_before_acquire(false)
                    .connect_with(server.clone())
                    .await?;
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.eager_reconnect(false);
                writable(&mut listener).await?;
                self.limit(&mut listener).await?;
                listener.listen(NEWS).await?;
                Ok(listener)
            };
            match timeout(self.connect, open).await {
                Ok(Ok(listener)) => return Ok(listener),
                Ok(Err(error)) => last = error,
                Err(_) => last = broken("no connection within the time allowed"),
            }
        }
        Err(last)
    }
}

async fn writable<'e>(
    session: impl sqlx::Executor<'e, Database = sqlx::Postgres>,
) -> Result<(), sqlx::Error> {
    let row = session
        .fetch_one(sqlx::raw_sql("SHOW transaction_read_only"))
        .await?;
    match row.try_get::<&str, _>(0)? {
        "off" => Ok(()),
        _ => Err(broken("the server is a standby or read-only")),
    }
}

async fn pid(session: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = session
        .fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()::text"))
        .await?;
    let pid: &str = row.try_get(0)?;
    pid.parse().map_err(|_| broken("a process has no number"))
}

/// The answer to a question; raw answers are text.
pub(crate) async fn truth(session: &mut PgConnection, sql: &str) -> Result<bool, sqlx::Error> {
    let row = session
        .fetch_one(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await?;
    row.try_get(0)
}

pub(crate) async fn execute<'e>(
    session: impl sqlx::Executor<'e, Database = sqlx::Postgres>,
    sql: &str,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    session.execute(statement).await.map(|_| ())
}

pub(crate) fn broken(why: &'static str) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::ConnectionAborted, why))
}
