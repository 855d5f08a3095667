//! Opening the database: what can be wrong with it, said before anything is written.

use crate::{
    Options,
    error::{explain, state},
    migrate,
    pool::{Mode, Pool, Run as _, Scope, Transaction},
};
use sqlx::Row as _;
use std::sync::Arc;

/// The oldest server that the store runs on.
const OLDEST: i32 = 140_000;

/// Why a database cannot be used. Each variant is one sentence to show to whoever runs the process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URL cannot be understood.
    #[error("the database URL is not usable: {0}")]
    Url(String),
    /// A name in the options that is none.
    #[error(
        "`{0}` is no name for a role: it has to be 1 to 63 of a-z 0-9 _, not beginning with a digit"
    )]
    RoleName(String),
    /// Nobody answers, or only servers that cannot write do.
    #[error("no database to write to at {place}: {why}")]
    Unreachable {
        /// Host and port of every server tried.
        place: String,
        /// What the last one said.
        why: String,
    },
    /// The server does not let us in.
    #[error("the database at {place} refuses the login: {why}")]
    Login {
        /// Host and port.
        place: String,
        /// What the server said.
        why: String,
    },
    /// There is no such database on the server.
    #[error("there is no such database at {0}: create it first")]
    NoDatabase(String),
    /// The server is too old.
    #[error("the server has version {0}, the store needs PostgreSQL 14 or later")]
    OldServer(String),
    /// Text would not be stored as it is.
    #[error("the database has the encoding {0}: create it with UTF8")]
    Encoding(String),
    /// A commit would return before it is on disk.
    #[error(
        "synchronous_commit is off for this database or role: a commit would not survive a power cut"
    )]
    NotDurable,
    /// [`Options::require_sync`], and a commit would not wait for another server.
    #[error(
        "commits would not survive the loss of the server ({0}): configure a synchronous standby, or do not require one"
    )]
    NotSynchronous(String),
    /// The tables are missing or old, and the options say to leave them alone.
    #[error(
        "the database has schema version {found}, this program needs {known}: migrate it first"
    )]
    Behind {
        /// The last migration in the database, 0 if none.
        found: u32,
        /// The last migration of this program.
        known: u32,
    },
    /// Written by a later version of this program that has left this one behind.
    #[error(
        "the database has schema version {found}, this program knows {known}: use the newer program"
    )]
    Newer {
        /// The last migration in the database.
        found: u32,
        /// The last migration of this program.
        known: u32,
    },
    /// A migration in the database is not the one of the same number in this program.
    #[error("the database was made by migration {0} of another program: its checksum differs")]
    Changed(u32),
    /// The role that the store works as does not exist, and this login may not create it.
    #[error(
        "there is no role {role} that {login} may act as: run CREATE ROLE {role} NOLOGIN; GRANT {role} TO {login}"
    )]
    NoRole {
        /// The role.
        role: String,
        /// The login of the URL.
        login: String,
    },
    /// The role that the store works as could see other tenants' rows.
    #[error(
        "the role {0} is a superuser or bypasses row-level security: tenants would not be kept apart"
    )]
    Bypasses(String),
    /// The role that the store works as could change the tables.
    #[error("the role {0} owns tables of the store: let another role own them")]
    Owns(String),
    /// The role that the store works as lacks rights.
    #[error(
        "the role {0} lacks rights on tables of the store: migrate once with the owner's login"
    )]
    Rights(String),
    /// Anything else.
    #[error("cannot open the database at {place}: {why}")]
    Other {
        /// Host and port.
        place: String,
        /// What the server said.
        why: String,
    },
}

impl OpenError {
    pub(crate) fn from_sql(pool: &Pool, error: &sqlx::Error) -> Self {
        let place = pool.place();
        let why = explain(error).to_string();
        let why = why
            .split_once(": ")
            .map_or(why.clone(), |(_, why)| why.to_owned());
        match state(error) {
            "" | "57P03" | "25006" => Self::Unreachable { place, why },
            state if state.starts_with("28") => Self::Login { place, why },
            "3D000" => Self::NoDatabase(place),
            _ => Self::Other { place, why },
        }
    }
}

/// What a commit that was answered survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the server, not its loss: a failover may undo the last commits. They are noticed as lost, and fenced.
    Server,
    /// The loss of the server too, as long as one of the synchronous standbys takes over.
    Synchronous,
}

/// Checks server, schema and rights; brings the schema up to date if it may.
pub(crate) async fn prepare(pool: &Arc<Pool>, options: &Options) -> Result<(), OpenError> {
    if let Some(role) = &options.role {
        migrate::check_role_name(role)?;
    }
    let sql = |error: sqlx::Error| OpenError::from_sql(pool, &error);
    let mut transaction = pool.begin_with("BEGIN").await.map_err(sql)?;
    let version = check_server(pool, &mut transaction).await?;
    let replication = Replication::read(&mut transaction).await.map_err(sql)?;
    let found = migrate::found(pool, &mut transaction, options).await?;
    transaction.roll_back().await;
    if options.require_sync {
        replication.check().map_err(OpenError::NotSynchronous)?;
    }

    let known = migrate::SCHEMA_VERSION;
    let mut ready = if found < known {
        Err(OpenError::Behind { found, known })
    } else {
        check_role(pool, options).await
    };
    let migratable = matches!(
        ready,
        Err(OpenError::Behind { .. } | OpenError::NoRole { .. } | OpenError::Rights(_))
    );
    if options.migrate && migratable {
        migrate::run(pool, options, version).await?;
        ready = check_role(pool, options).await;
    }
    ready?;

    let mut transaction = pool.begin(Mode::Read, Scope::Fleet).await.map_err(sql)?;
    let told = sqlx::query(
        "SELECT baton_timeline(), strpos(prosrc, 'pg_walfile_name') > 0 \
         FROM pg_proc WHERE oid = 'baton_timeline()'::regprocedure",
    )
    .one(&mut transaction)
    .await;
    transaction.roll_back().await;
    if !told.map_err(sql)?.try_get::<bool, _>(1).map_err(sql)? {
        tracing::warn!(
            "the server does not tell its timeline: raise the generation (renew_history) whenever a standby takes over"
        );
    }
    Ok(())
}

/// What the server does with a commit, beside writing it to its own disk.
pub(crate) struct Replication {
    commit: String,
    names: String,
    /// Standbys that are connected; and synchronous ones among them, if we may know.
    standbys: i64,
    synchronous: Option<i64>,
}

impl Replication {
    /// As the login of the connection: what standbys do is not shown to everybody.
    pub(crate) async fn read(transaction: &mut Transaction) -> Result<Self, sqlx::Error> {
        let row = sqlx::query(
            "SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), count(*), \
               CASE WHEN count(*) = count(sync_state) THEN count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) END \
             FROM pg_stat_replication",
        )
        .one(transaction)
        .await?;
        Ok(Self {
            commit: row.try_get(0)?,
            names: row.try_get(1)?,
            standbys: row.try_get(2)?,
            synchronous: row.try_get(3)?,
        })
    }

    /// A commit waits for a standby if one is configured, connected or not: the setting alone decides.
    pub(crate) fn durability(&self) -> Durability {
        let waits = !matches!(self.commit.as_str(), "off" | "local");
        if waits && !self.names.trim().is_empty() {
            Durability::Synchronous
        } else {
            Durability::Server
        }
    }

    /// The sentence says what is missing.
    fn check(&self) -> Result<(), String> {
        if self.durability() == Durability::Server {
            let (commit, names) = (&self.commit, &self.names);
            return Err(format!(
                "synchronous_commit is {commit}, synchronous_standby_names is '{names}'"
            ));
        }
        match self.synchronous.unwrap_or(self.standbys) {
            0 => Err("no synchronous standby is connected".to_owned()),
            _ => Ok(()),
        }
    }
}

async fn check_server(pool: &Pool, transaction: &mut Transaction) -> Result<i32, OpenError> {
    let sql = |error: sqlx::Error| OpenError::from_sql(pool, &error);
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
         current_setting('server_encoding'), current_setting('fsync')",
    )
    .one(transaction)
    .await
    .map_err(sql)?;
    let version: i32 = row.try_get(0).map_err(sql)?;
    if version < OLDEST {
        return Err(OpenError::OldServer(row.try_get(1).map_err(sql)?));
    }
    let encoding: String = row.try_get(2).map_err(sql)?;
    if encoding != "UTF8" {
        return Err(OpenError::Encoding(encoding));
    }
    if row.try_get::<&str, _>(3).map_err(sql)? == "off" {
        tracing::warn!("fsync is off on the server: a power cut can destroy the database");
    }
    Ok(version)
}

/// The role that transactions run as must be able to do its work and nothing else.
async fn check_role(pool: &Arc<Pool>, options: &Options) -> Result<(), OpenError> {
    let sql = |error: sqlx::Error| OpenError::from_sql(pool, &error);
    let mut transaction = match (pool.begin(Mode::Write, Scope::Fleet).await, &options.role) {
        (Ok(transaction), _) => transaction,
        // No such role, or not for this login.
        (Err(error), Some(role)) if matches!(state(&error), "22023" | "42501" | "42704") => {
            return Err(OpenError::NoRole {
                role: role.clone(),
                login: pool.login(),
            });
        }
        (Err(error), _) => return Err(sql(error)),
    };
    let row = sqlx::query(
            "WITH ours AS (SELECT oid, relname, relowner FROM pg_class \
               WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('baton_fence')) \
               AND relkind = 'r' AND relname ~ '^baton_') \
             SELECT r.rolname::text, r.rolsuper OR r.rolbypassrls, \
               (SELECT bool_or(pg_has_role(relowner, 'USAGE')) FROM ours), \
               (SELECT bool_and(has_table_privilege(oid, 'SELECT') AND (relname = 'baton_schema_migrations' \
                 OR has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE') \
                 AND has_table_privilege(oid, 'DELETE'))) FROM ours) \
                 AND has_sequence_privilege('baton_device_number', 'USAGE'), \
               current_setting('synchronous_commit') = 'off' \
             FROM pg_roles r WHERE r.rolname = current_user",
        )
        .one(&mut transaction)
        .await;
    let row = match row {
        Ok(row) => row,
        Err(error) if state(&error) == "42501" => {
            transaction.roll_back().await;
            return Err(OpenError::Rights(
                options.role.clone().unwrap_or_else(|| pool.login()),
            ));
        }
        Err(error) => return Err(sql(error)),
    };
    transaction.roll_back().await;
    let name: String = row.try_get(0).map_err(sql)?;
    let is = |column: usize| {
        let answer: Option<bool> = row.try_get(column).map_err(sql)?;
        Ok::<_, OpenError>(answer.unwrap_or(false))
    };
    if is(1)? {
        return Err(OpenError::Bypasses(name));
    }
    if is(2)? {
        return Err(OpenError::Owns(name));
    }
    if !is(3)? {
        return Err(OpenError::Rights(name));
    }
    if is(4)? {
        return Err(OpenError::NotDurable);
    }
    Ok(())
}
