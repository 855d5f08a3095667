//! The store without threads: one connection, plain calls.
//!
//! [`SqliteStore`](crate::SqliteStore) runs this on threads of its own. A simulation can run it in place: nothing here
//! waits, and the time of leases is an argument.

use crate::{
    fences::{self, fence},
    mark::{Mark, Replaced, State},
    migrate::{self, OpenError},
    presence::{Observer, Presence},
    roster, rows,
    schema::{self, statements},
};
use baton_core::state::{
    AccountId, AccountInfo, BusinessId, HostView, Incarnation, Key, Lease, MessageId, Orphan,
    Placement, Record, Row, Scan, Seal, StoreError, Table, UnixMillis, rules,
};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params, types::Type};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// One connection to a database of accounts.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    /// `None`: leases alone decide who may take over.
    presence: Option<Presence>,
    /// For those who only read.
    observer: Option<Observer>,
    /// `None` in memory, where nothing can be put back.
    mark: Option<Mark>,
    /// The file was replaced while it was open: nothing that is written here counts.
    replaced: bool,
}

/// The calls that write, inside a transaction. What one of them changed is undone if it fails.
#[derive(Debug)]
pub struct Transaction<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) presence: Option<&'a mut Presence>,
    pub(crate) history: Seal,
    now: UnixMillis,
}

/// Why a call inside a transaction failed.
#[derive(Debug)]
pub enum Failure {
    /// The call alone: its answer.
    Answer(StoreError),
    /// The transaction as a whole cannot go on.
    Transaction(rusqlite::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Answer(error)
    }
}

impl From<rules::Refusal> for Failure {
    fn from(refusal: rules::Refusal) -> Self {
        Self::Answer(refusal.into())
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        // A constraint concerns the row at hand; anything else may concern everybody.
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Self::Answer(StoreError::Refused(error.to_string()))
            }
            _ => Self::Transaction(error),
        }
    }
}

/// A piece of work for [`Database::transact`]. It may be attempted more than once; only the last attempt counts.
pub trait Work {
    /// Does the work and keeps its answer. `Err` only for what concerns the whole transaction.
    fn attempt(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error>;
    /// The transaction was not committed: nothing of the answer is true.
    fn fail(&mut self, error: StoreError);
}

impl Database {
    /// Opens the file for writing, creates it if need be, brings its tables up to date, and begins a new generation if
    /// it is not the file that it was.
    ///
    /// `busy` is how long to wait for other processes; `presence` keeps a lock file per host beside the database, so
    /// that a killed host is replaced at once.
    pub fn open(
        path: &Path,
        busy: Duration,
        presence: bool,
        now: UnixMillis,
    ) -> Result<Self, OpenError> {
        let mut connection = migrate::open_writer(path, busy, now.0)?;
        let path = &real_path(path);
        let mark = Mark::settle(&mut connection, path)?;
        let presence = if presence {
            Some(Presence::open(path).map_err(|error| OpenError::from_io(path, &error))?)
        } else {
            None
        };
        Ok(Self {
            connection,
            presence,
            observer: None,
            mark: Some(mark),
            replaced: false,
        })
    }

    /// A further connection to a file that [`Database::open`] has prepared, for reading only. `presence` as there.
    pub fn open_reader(path: &Path, busy: Duration, presence: bool) -> Result<Self, OpenError> {
        Ok(Self {
            connection: migrate::open_reader(path, busy)?,
            presence: None,
            observer: presence.then(|| Observer::new(&real_path(path))),
            mark: None,
            replaced: false,
        })
    }

    /// A database that lives as long as this value.
    pub fn open_in_memory(now: UnixMillis) -> Result<Self, OpenError> {
        Ok(Self {
            connection: migrate::open_in_memory(now.0)?,
            presence: None,
            observer: None,
            mark: None,
            replaced: false,
        })
    }

    /// For tests that look over SQLite's shoulder.
    #[cfg(test)]
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// See [`Store::load`](baton_core::state::Store::load). All rows are of one moment.
    pub fn load(&self, account: &AccountId, keys: &[Key]) -> Result<Vec<Row>, StoreError> {
        self.read(|connection| {
            let mut rows = Vec::with_capacity(keys.len());
            for key in keys {
                rows.push(rows::get(connection, account, key)?);
            }
            // An account with a row exists: only a load that finds nothing has to ask.
            if rows.iter().all(|row| *row == Row::Absent) {
                fence(connection, account)?;
            }
            Ok(rows)
        })
    }

    /// See [`Store::scan`](baton_core::state::Store::scan).
    pub fn scan(&self, account: &AccountId, scan: &Scan) -> Result<Vec<(Key, Row)>, StoreError> {
        rules::cursor(scan.table, scan.after.as_ref())?;
        self.read(|connection| {
            let rows = rows::scan(connection, account, scan)?;
            if rows.is_empty() {
                fence(connection, account)?;
            }
            Ok(rows)
        })
    }

    /// See [`Store::accounts`](baton_core::state::Store::accounts).
    pub fn accounts(
        &self,
        business: &BusinessId,
        now: UnixMillis,
    ) -> Result<Vec<AccountInfo>, StoreError> {
        self.read(|connection| {
            let living = roster::visibly_living(connection, self.observer.as_ref())?;
            fences::accounts(connection, business, micros(now), &living)
        })
    }

    /// See [`Store::tenants`](baton_core::state::Store::tenants).
    pub fn tenants(&self) -> Result<Vec<BusinessId>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT business_id FROM baton_tenant ORDER BY business_id")?;
            let names = statement.query_map([], |row| row.get::<_, String>(0))?;
            let mut tenants = Vec::new();
            for name in names {
                let tenant = BusinessId::new(&name?)
                    .map_err(|error| StoreError::Refused(error.to_string()))?;
                tenants.push(tenant);
            }
            Ok(tenants)
        })
    }

    /// See [`Store::hosts`](baton_core::state::Store::hosts).
    pub fn hosts(&self, now: UnixMillis) -> Result<Vec<HostView>, StoreError> {
        self.read(|connection| roster::view(connection, micros(now)))
    }

    /// See [`Store::held`](baton_core::state::Store::held).
    pub fn held(&self, who: Incarnation) -> Result<Vec<(AccountId, Lease)>, StoreError> {
        self.read(|connection| fences::held(connection, who, cluster(connection)?.history))
    }

    /// See [`Store::misplaced`](baton_core::state::Store::misplaced).
    pub fn misplaced(&self, who: Incarnation) -> Result<Vec<(AccountId, Placement)>, StoreError> {
        self.read(|connection| fences::misplaced(connection, who))
    }

    /// See [`Store::mail`](baton_core::state::Store::mail).
    pub fn mail(&self, who: Incarnation) -> Result<Vec<AccountId>, StoreError> {
        self.read(|connection| fences::mail(connection, who))
    }

    /// See [`Store::orphans`](baton_core::state::Store::orphans).
    pub fn orphans(
        &self,
        after: Option<&AccountId>,
        limit: u32,
        now: UnixMillis,
    ) -> Result<Vec<Orphan>, StoreError> {
        self.read(|connection| {
            let living = roster::visibly_living(connection, self.observer.as_ref())?;
            fences::orphans(connection, after, limit, micros(now), &living)
        })
    }

    /// See [`Store::history`](baton_core::state::Store::history).
    pub fn history(&self) -> Result<Seal, StoreError> {
        self.read(|connection| Ok(cluster(connection)?.history))
    }

    /// See [`Store::vault`](baton_core::state::Store::vault).
    pub fn vault(&self, business: &BusinessId) -> Result<Vec<(u32, Record)>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT number, wrapped FROM baton_vault WHERE business_id = ?1 ORDER BY number",
            )?;
            let keys = statement.query_map([business.as_str()], |row| {
                Ok((row.get(0)?, Record(row.get::<_, Vec<u8>>(1)?.into())))
            })?;
            Ok(keys.collect::<Result<_, _>>()?)
        })
    }

    /// A number that is another one when some other connection has committed since.
    pub(crate) fn pulse(&self) -> Result<i64, StoreError> {
        self.connection
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|error| explain(&error))
    }

    /// How often ownership has changed; and everybody in the roster, whether with a lock that can be looked at.
    pub(crate) fn fleet(&self) -> Result<(u64, Vec<roster::Member>), StoreError> {
        self.read(|connection| Ok((cluster(connection)?.changes, roster::members(connection)?)))
    }

    /// Does several pieces of work in one transaction, with one sync of the disk. If the transaction fails, each piece
    /// is tried in one of its own, so that the one that is to blame does not fail the others.
    ///
    /// `clock` is asked once the database is ours: who waited for another process must not judge its lease by a time
    /// before that was given.
    pub fn transact(&mut self, work: &mut [&mut dyn Work], clock: &dyn Fn() -> UnixMillis) {
        let Err(error) = self.attempt(work, clock) else {
            return;
        };
        if let [only] = work {
            only.fail(error.explain());
        } else if error.is_everybodys() {
            work.iter_mut()
                .for_each(|piece| piece.fail(error.explain()));
        } else {
            for piece in work {
                if let Err(error) = self.attempt(std::slice::from_mut(piece), clock) {
                    piece.fail(error.explain());
                }
            }
        }
    }

    fn attempt(
        &mut self,
        work: &mut [&mut dyn Work],
        clock: &dyn Fn() -> UnixMillis,
    ) -> Result<(), Trouble> {
        if self.replaced {
            return Err(Trouble::Replaced);
        }
        // One that could not be rolled back when it failed.
        self.roll_back()?;
        let result = self.inside(work, clock);
        if let Some(presence) = &mut self.presence {
            presence.settle(result.is_ok());
        }
        if result.is_err() {
            self.roll_back()?;
        }
        // Before anybody is told: what was answered is known to be there.
        if let (Some(mark), Some(state)) = (&mut self.mark, result?)
            && let Err(Replaced) = mark.note(&state)
        {
            tracing::error!("the database file was replaced while it was open");
            self.replaced = true;
            return Err(Trouble::Replaced);
        }
        Ok(())
    }

    /// Some errors have rolled back already; a beginning that failed may have begun.
    fn roll_back(&self) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() {
            return Ok(());
        }
        self.connection.execute_batch("ROLLBACK")
    }

    /// From the beginning to the commit. Where the database is then, if anything has changed.
    fn inside(
        &mut self,
        work: &mut [&mut dyn Work],
        clock: &dyn Fn() -> UnixMillis,
    ) -> rusqlite::Result<Option<State>> {
        let Self {
            connection,
            presence,
            ..
        } = self;
        // IMMEDIATE: other processes write here too, and a transaction that reads first and finds the lock taken when
        // it comes to write cannot wait for it.
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let Cluster { history, .. } = cluster(connection)?;
        let before = connection.total_changes();
        let mut transaction = Transaction {
            connection,
            presence: presence.as_mut(),
            history,
            now: clock(),
        };
        work.iter_mut()
            .try_for_each(|piece| piece.attempt(&mut transaction))?;
        let state = if connection.total_changes() == before {
            None
        } else {
            let state = connection
                .prepare_cached(
                    "UPDATE baton_cluster SET commits = commits + 1 WHERE id = 1 RETURNING mark, commits, generation",
                )?
                .query_row([], |row| {
                    let mark: Option<String> = row.get(0)?;
                    Ok(State {
                        mark: mark.unwrap_or_default(),
                        commits: unsigned(row.get(1)?),
                        generation: row.get(2)?,
                    })
                })?;
            Some(state)
        };
        connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(state)
    }

    fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let run = || {
            let transaction = self.connection.unchecked_transaction()?;
            query(&transaction)
        };
        run().map_err(|failure| match failure {
            Failure::Answer(error) => error,
            Failure::Transaction(error) => explain(&error),
        })
    }
}

impl Transaction<'_> {
    #[cfg(test)]
    pub(crate) fn set(&mut self, pragma: &str) -> rusqlite::Result<()> {
        self.connection.execute_batch(pragma)
    }

    /// See [`Store::create_account`](baton_core::state::Store::create_account).
    pub fn create_account(
        &mut self,
        business: &BusinessId,
        name: &str,
    ) -> Result<AccountId, Failure> {
        rules::account_name(name)?;
        let (now, history) = (self.now.0, self.history);
        savepoint(self.connection, |connection| {
            let taken: Option<i64> = connection
                .prepare_cached("SELECT 1 FROM baton_device WHERE business_id = ?1 AND name = ?2")?
                .query_row(params![business.as_str(), name], |row| row.get(0))
                .optional()?;
            if taken.is_some() {
                return Err(StoreError::Exists.into());
            }
            let device: i64 = connection.query_row(
                "UPDATE baton_numbers SET next_device_id = next_device_id + 1 WHERE id = 1 \
                 RETURNING next_device_id - 1",
                [],
                |row| row.get(0),
            )?;
            tenant(connection, business, now)?;
            connection.execute(
                "INSERT INTO baton_device (business_id, device_id, name, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![business.as_str(), device, name, now],
            )?;
            connection.execute(
                "INSERT INTO baton_fence (business_id, device_id, epoch, applied, commit_seq, holder, sealed_timeline, \
                 sealed_generation, retired) VALUES (?1, ?2, 0, 0, 0, NULL, ?3, ?4, 0)",
                params![business.as_str(), device, history.timeline, history.generation],
            )?;
            Ok(AccountId {
                business: business.clone(),
                device: unsigned(device),
            })
        })
    }

    /// See [`Store::enqueue`](baton_core::state::Store::enqueue).
    pub fn enqueue(
        &mut self,
        account: &AccountId,
        id: &MessageId,
        request: &Record,
        at: UnixMillis,
    ) -> Result<bool, Failure> {
        let key = Key::Mailbox(id.clone());
        rules::key(&key)?;
        rules::record(Table::Mailbox, request)?;
        if fence(self.connection, account)?.retired {
            return Err(StoreError::Retired.into());
        }
        if rows::get(self.connection, account, &key)? != Row::Absent {
            return Ok(false);
        }
        rows::put(self.connection, account, &key, request, at)?;
        Ok(true)
    }

    /// See [`Store::retain`](baton_core::state::Store::retain).
    pub fn retain(
        &mut self,
        account: &AccountId,
        table: Table,
        before: UnixMillis,
        limit: u32,
    ) -> Result<u32, Failure> {
        rules::aged(table)?;
        fence(self.connection, account)?;
        let deleted = self
            .connection
            .prepare_cached(&statements(table).retain)?
            .execute(params![
                account.business.as_str(),
                schema::number(account.device),
                before.0,
                limit,
            ])?;
        Ok(u32::try_from(deleted).unwrap_or(limit))
    }

    /// See [`Store::renew_history`](baton_core::state::Store::renew_history).
    pub fn renew_history(&mut self, now: Seal) -> Result<Seal, Failure> {
        if self.history == now {
            self.connection
                .prepare_cached(
                    "UPDATE baton_cluster SET generation = generation + 1, changes = changes + 1 WHERE id = 1",
                )?
                .execute([])?;
            self.history = cluster(self.connection)?.history;
        }
        Ok(self.history)
    }

    /// See [`Store::swap_vault`](baton_core::state::Store::swap_vault).
    pub fn swap_vault(
        &mut self,
        business: &BusinessId,
        number: u32,
        old: Option<&Record>,
        new: Option<&Record>,
    ) -> Result<bool, Failure> {
        rules::vault(number, new)?;
        let found: Option<Vec<u8>> = self
            .connection
            .prepare_cached(
                "SELECT wrapped FROM baton_vault WHERE business_id = ?1 AND number = ?2",
            )?
            .query_row(params![business.as_str(), number], |row| row.get(0))
            .optional()?;
        if found.as_deref() != old.map(|key| &key.0[..]) {
            return Ok(false);
        }
        match new {
            Some(key) => {
                tenant(self.connection, business, self.now.0)?;
                self.connection
                    .prepare_cached(
                        "INSERT INTO baton_vault (business_id, number, wrapped) VALUES (?1, ?2, ?3) \
                         ON CONFLICT DO UPDATE SET wrapped = excluded.wrapped",
                    )?
                    .execute(params![business.as_str(), number, &key.0[..]])?;
            }
            None => {
                self.connection
                    .prepare_cached(
                        "DELETE FROM baton_vault WHERE business_id = ?1 AND number = ?2",
                    )?
                    .execute(params![business.as_str(), number])?;
            }
        }
        Ok(true)
    }

    /// See [`Store::swap_records`](baton_core::state::Store::swap_records).
    pub fn swap_records(
        &mut self,
        account: &AccountId,
        records: &[(Key, Record, Record)],
    ) -> Result<u32, Failure> {
        for (key, _, new) in records {
            rules::key(key)?;
            rules::record(key.table(), new)?;
        }
        fence(self.connection, account)?;
        let mut swapped = 0;
        for (key, old, new) in records {
            swapped += u32::from(rows::swap(self.connection, account, key, old, new)?);
        }
        Ok(swapped)
    }

    /// Those who watch should have a look.
    pub(crate) fn changed(&mut self) -> Result<(), Failure> {
        self.connection
            .prepare_cached("UPDATE baton_cluster SET changes = changes + 1 WHERE id = 1")?
            .execute([])?;
        Ok(())
    }

    /// The time, by the clock of the machine.
    pub(crate) fn micros(&self) -> i64 {
        micros(self.now)
    }
}

/// The row of `baton_cluster`.
struct Cluster {
    history: Seal,
    changes: u64,
}

fn cluster(connection: &Connection) -> rusqlite::Result<Cluster> {
    connection
        .prepare_cached("SELECT generation, changes FROM baton_cluster WHERE id = 1")?
        .query_row([], |row| {
            Ok(Cluster {
                history: Seal {
                    generation: row.get(0)?,
                    ..Seal::FIRST
                },
                changes: unsigned(row.get(1)?),
            })
        })
}

fn tenant(connection: &Connection, business: &BusinessId, now: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO baton_tenant (business_id, created_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute(params![business.as_str(), now])
        .map(|_| ())
}

/// Why a whole transaction failed.
enum Trouble {
    Sql(rusqlite::Error),
    Replaced,
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl Trouble {
    /// Whether nobody would fare better alone: everybody has waited once, and each would wait again.
    fn is_everybodys(&self) -> bool {
        match self {
            Self::Sql(error) => error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy),
            Self::Replaced => true,
        }
    }

    fn explain(&self) -> StoreError {
        match self {
            Self::Sql(error) => explain(error),
            Self::Replaced => StoreError::Refused(
                "the database file was replaced while it was open: start this process again"
                    .to_owned(),
            ),
        }
    }
}

/// Runs `call` so that it leaves nothing behind if it fails.
pub(crate) fn savepoint<T>(
    connection: &Connection,
    call: impl FnOnce(&Connection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    connection.prepare_cached("SAVEPOINT one")?.execute([])?;
    let result = call(connection);
    if result.is_err() && connection.is_autocommit() {
        // The error has taken the whole transaction with it.
        return result;
    }
    if result.is_err() {
        connection.prepare_cached("ROLLBACK TO one")?.execute([])?;
    }
    connection.prepare_cached("RELEASE one")?.execute([])?;
    result
}

/// What SQLite said, as an instruction.
pub(crate) fn explain(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Unavailable("another process keeps the database locked".to_owned())
        }
        Some(
            ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory | ErrorCode::OperationInterrupted,
        ) => StoreError::Unavailable(error.to_string()),
        Some(ErrorCode::DiskFull) => {
            StoreError::Refused("no space left for the database".to_owned())
        }
        Some(ErrorCode::ReadOnly) => StoreError::Refused("the database is read-only".to_owned()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Refused("the database file is damaged: restore a backup".to_owned())
        }
        _ => match error {
            // A fence whose columns are not numbers.
            rusqlite::Error::FromSqlConversionFailure(
                _,
                Type::Null | Type::Text | Type::Blob,
                _,
            )
            | rusqlite::Error::InvalidColumnType(..) => {
                StoreError::Refused("the database file is damaged: restore a backup".to_owned())
            }
            _ => StoreError::Refused(error.to_string()),
        },
    }
}

/// Constraints keep these columns at zero or above.
pub(crate) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Times are kept in microseconds, as durations are.
fn micros(now: UnixMillis) -> i64 {
    now.0.saturating_mul(1000)
}

/// Several names may lead to one file; what is beside it has to be the same for all.
pub(crate) fn real_path(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
