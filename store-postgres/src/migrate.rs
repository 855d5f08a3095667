//! The schema: numbered steps, each applied once, whoever comes first.

use crate::{
    Options,
    error::state,
    open::OpenError,
    pool::{Pool, Run as _, Transaction},
};
use sqlx::Row as _;
use std::sync::Arc;

/// One step of the schema. The text never changes once released; the checksum in the database holds us to it.
struct Migration {
    name: &'static str,
    sql: &'static str,
    /// The oldest schema version whose program still works after this step. A step that only adds leaves it where it
    /// was, so that hosts of the version before run on, and may even restart, while others are being replaced.
    compatible_from: u32,
}

/// Version 1 is the first of these.
const MIGRATIONS: &[Migration] = &[
    Migration {
        name: "accounts",
        sql: include_str!("../migrations/0001_accounts.sql"),
        compatible_from: 1,
    },
    Migration {
        name: "hosts",
        sql: include_str!("../migrations/0002_hosts.sql"),
        // Leases of accounts are gone, and commits have more to compare.
        compatible_from: 2,
    },
    Migration {
        name: "wishes",
        sql: include_str!("../migrations/0003_wishes.sql"),
        compatible_from: 2,
    },
];

/// The schema version this program writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// Any number that nobody else locks: `baton` in ASCII.
const LOCK: i64 = 0x62_61_74_6f_6e;

/// A role name that needs no quotes.
pub(crate) fn check_role_name(name: &str) -> Result<(), OpenError> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if first && rest && name.len() <= 63 {
        Ok(())
    } else {
        Err(OpenError::RoleName(name.to_owned()))
    }
}

/// How many of our migrations are in the database, after checking that they are ours. More than [`SCHEMA_VERSION`] if
/// a newer program that tolerates this one has been there.
pub(crate) async fn found(
    pool: &Pool,
    transaction: &mut Transaction,
    options: &Options,
) -> Result<u32, OpenError> {
    let sql = |error: sqlx::Error| OpenError::from_sql(pool, &error);
    // Opening a table is what makes a session hear of tables that others have made meanwhile. A name alone is looked up in
    // what the session remembers, and one that asked before it waited for the lock remembers that there was none.
    let row = sqlx::query(
        "SELECT m IS NOT NULL, coalesce(has_table_privilege(m, 'SELECT'), false) \
         FROM (SELECT (SELECT c.oid FROM pg_catalog.pg_class c \
           WHERE c.oid = to_regclass('baton_schema_migrations')) AS m) AS one",
    )
    .one(transaction)
    .await
    .map_err(sql)?;
    let (exists, readable): (bool, bool) =
        (row.try_get(0).map_err(sql)?, row.try_get(1).map_err(sql)?);
    if !exists {
        return Ok(0);
    }
    if !readable {
        // A login without rights of its own has those of the role.
        let Some(role) = &options.role else {
            return Err(OpenError::Rights(pool.login()));
        };
        let set = format!("SET LOCAL ROLE {role}");
        transaction.raw(set).await.map_err(|_| OpenError::NoRole {
            role: role.clone(),
            login: pool.login(),
        })?;
    }
    let rows = sqlx::query(
        "SELECT version, checksum, compatible_from FROM baton_schema_migrations ORDER BY version",
    )
    .all(transaction)
    .await
    .map_err(sql)?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let number = |column: usize| {
            let n: i32 = row.try_get(column).map_err(sql)?;
            Ok::<_, OpenError>(u32::try_from(n).unwrap_or(0))
        };
        found.push((
            number(0)?,
            row.try_get::<String, _>(1).map_err(sql)?,
            number(2)?,
        ));
    }
    judge(&found)
}

/// Rows of version, checksum and oldest compatible version, by version.
fn judge(found: &[(u32, String, u32)]) -> Result<u32, OpenError> {
    for ((version, checksum_found, _), (migration, expected)) in
        found.iter().zip(MIGRATIONS.iter().zip(1_u32..))
    {
        if *version != expected || *checksum_found != checksum(migration.sql) {
            return Err(OpenError::Changed(expected));
        }
    }
    let last = found.last().map_or(0, |(version, ..)| *version);
    let oldest = found.iter().map(|(.., oldest)| *oldest).max();
    if last > SCHEMA_VERSION && oldest.is_some_and(|oldest| oldest > SCHEMA_VERSION) {
        return Err(OpenError::Newer {
            found: last,
            known: SCHEMA_VERSION,
        });
    }
    Ok(last)
}

/// Applies what is missing, all of it or nothing, and gives the role its rights. Others wait for the lock and then find
/// everything done.
pub(crate) async fn run(
    pool: &Arc<Pool>,
    options: &Options,
    server_version: i32,
) -> Result<(), OpenError> {
    let sql = |error: sqlx::Error| OpenError::from_sql(pool, &error);
    let mut transaction = pool
        .begin_with("BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'")
        .await
        .map_err(sql)?;
    let result = steps(pool, &mut transaction, options, server_version).await;
    match result {
        Ok(()) => transaction.commit().await.map_err(sql),
        Err(error) => {
            transaction.roll_back().await;
            Err(error)
        }
    }
}

async fn steps(
    pool: &Pool,
    transaction: &mut Transaction,
    options: &Options,
    server_version: i32,
) -> Result<(), OpenError> {
    let sql = |error: sqlx::Error| OpenError::from_sql(pool, &error);
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .run(transaction)
        .await
        .map_err(sql)?;
    let done = found(pool, transaction, options).await?;
    if done == 0 {
        let create = "CREATE TABLE IF NOT EXISTS baton_schema_migrations (
            version integer NOT NULL PRIMARY KEY CHECK (version >= 1),
            name text NOT NULL,
            checksum text NOT NULL,
            compatible_from integer NOT NULL CHECK (compatible_from BETWEEN 1 AND version),
            applied_at timestamptz NOT NULL DEFAULT now()
        )";
        execute(pool, transaction, create.to_owned()).await?;
    }
    for (migration, version) in MIGRATIONS.iter().zip(1_i32..).skip(done as usize) {
        tracing::info!(version, name = migration.name, "migrating the database");
        execute(pool, transaction, migration.sql.to_owned()).await?;
        sqlx::query(
            "INSERT INTO baton_schema_migrations (version, name, checksum, compatible_from) VALUES ($1, $2, $3, $4)",
        )
        .bind(version)
        .bind(migration.name)
        .bind(checksum(migration.sql))
        .bind(i32::try_from(migration.compatible_from).unwrap_or(i32::MAX))
        .run(transaction)
        .await
        .map_err(sql)?;
    }
    match &options.role {
        Some(role) => give_rights(pool, transaction, role, server_version).await,
        None => Ok(()),
    }
}

/// Creates the role if there is none, lets this login act as it, and gives it the tables and nothing else.
async fn give_rights(
    pool: &Pool,
    transaction: &mut Transaction,
    role: &str,
    server_version: i32,
) -> Result<(), OpenError> {
    let sql = |error: sqlx::Error| OpenError::from_sql(pool, &error);
    let no_role = || OpenError::NoRole {
        role: role.to_owned(),
        login: pool.login(),
    };
    let denied = |error: sqlx::Error| match state(&error) {
        "42501" => no_role(),
        _ => sql(error),
    };
    // Roles belong to the whole server: somebody may be creating this one for another database.
    let create = format!(
        "DO $$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
             CREATE ROLE {role} NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS;
           END IF;
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
         END $$"
    );
    transaction.raw(create).await.map_err(denied)?;
    // From version 16 on, being a member and being allowed to act as the role are two things.
    let right = if server_version >= 160_000 {
        "SET"
    } else {
        "MEMBER"
    };
    let row = sqlx::query("SELECT pg_has_role(current_user, $1, $2)")
        .bind(role.to_owned())
        .bind(right)
        .one(transaction)
        .await
        .map_err(sql)?;
    if !row.try_get::<bool, _>(0).map_err(sql)? {
        let grant = format!("GRANT {role} TO CURRENT_USER");
        transaction.raw(grant).await.map_err(denied)?;
    }
    let grants = format!(
        "DO $$ DECLARE ours record; BEGIN
           FOR ours IN SELECT c.oid::regclass AS name, c.relname FROM pg_class c
             WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('baton_fence'))
               AND c.relkind = 'r' AND c.relname ~ '^baton_'
           LOOP
             IF ours.relname = 'baton_schema_migrations' THEN
               EXECUTE format('GRANT SELECT ON %s TO {role}', ours.name);
             ELSE
               EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO {role}', ours.name);
             END IF;
           END LOOP;
           EXECUTE format('GRANT USAGE ON SCHEMA %I TO {role}', current_schema());
           GRANT USAGE ON SEQUENCE baton_device_number TO {role};
         END $$"
    );
    transaction
        .raw(grants)
        .await
        .map_err(|error| match state(&error) {
            "42501" => OpenError::Rights(role.to_owned()),
            _ => sql(error),
        })
}

async fn execute(
    pool: &Pool,
    transaction: &mut Transaction,
    text: String,
) -> Result<(), OpenError> {
    transaction
        .raw(text)
        .await
        .map_err(|error| OpenError::from_sql(pool, &error))
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

    #[test]
    fn checksums_ignore_line_ends_only() {
        assert_eq!(checksum("a\r\nb"), checksum("a\nb"));
        assert_ne!(checksum("a\nb"), checksum("a b"));
    }

    #[test]
    fn a_newer_schema_is_used_as_long_as_it_says_so() {
        let ours: Vec<_> = MIGRATIONS
            .iter()
            .zip(1_u32..)
            .map(|(migration, version)| {
                (version, checksum(migration.sql), migration.compatible_from)
            })
            .collect();
        let with = |next: (u32, String, u32)| {
            let mut found = ours.clone();
            found.push(next);
            judge(&found)
        };
        let next = SCHEMA_VERSION + 1;
        assert!(matches!(with((next, "x".into(), SCHEMA_VERSION)), Ok(n) if n == next));
        assert!(matches!(
            with((next, "x".into(), next)),
            Err(OpenError::Newer { .. })
        ));
        assert!(matches!(judge(&[]), Ok(0)));
        assert!(matches!(
            judge(&[(1, "x".into(), 1)]),
            Err(OpenError::Changed(1))
        ));
    }

    #[test]
    fn role_names_need_no_quotes() {
        for good in ["baton_app", "_x", "r2"] {
            assert!(check_role_name(good).is_ok(), "{good}");
        }
        for bad in ["", "Baton", "2r", "a-b", "a\"b", "a'b", &"x".repeat(64)] {
            assert!(check_role_name(bad).is_err(), "{bad}");
        }
    }
}
