//! The store without threads: one connection, plain calls.
//!
//! [`SqliteStore`](crate::SqliteStore) runs this on threads of its own. A simulation can run it in place: nothing here
//! waits, and the time of leases is an argument.

use crate::{
    migrate::{self, OpenError},
    presence::{Presence, hex},
    rows,
    schema::{self, statements},
};
use baton_core::state::{
    AccountId, AccountInfo, Batch, BusinessId, Claim, Epoch, Incarnation, Key, Lease, MessageId,
    Micros, Outcome, Record, Renewal, Row, Scan, Seq, StoreError, Table, UnixMillis, rules,
};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params, types::Type};
use std::{path::Path, time::Duration};

/// One connection to a database of accounts.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    /// `None`: leases alone decide who may take over.
    presence: Option<Presence>,
}

/// The calls that write, inside a transaction. What one of them changed is undone if it fails.
#[derive(Debug)]
pub struct Transaction<'a> {
    connection: &'a Connection,
    presence: Option<&'a mut Presence>,
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
    /// Opens the file for writing, creates it if need be, brings its tables up to date.
    ///
    /// `busy` is how long to wait for other processes; `presence` keeps a lock file per holder beside the database, so
    /// that a killed holder is replaced at once.
    pub fn open(
        path: &Path,
        busy: Duration,
        presence: bool,
        now: UnixMillis,
    ) -> Result<Self, OpenError> {
        let connection = migrate::open_writer(path, busy, now.0)?;
        let presence = if presence {
            Some(Presence::open(path).map_err(|error| OpenError::from_io(path, &error))?)
        } else {
            None
        };
        Ok(Self {
            connection,
            presence,
        })
    }

    /// A further connection to a file that [`Database::open`] has prepared, for reading only.
    pub fn open_reader(path: &Path, busy: Duration) -> Result<Self, OpenError> {
        Ok(Self {
            connection: migrate::open_reader(path, busy)?,
            presence: None,
        })
    }

    /// A database that lives as long as this value.
    pub fn open_in_memory(now: UnixMillis) -> Result<Self, OpenError> {
        Ok(Self {
            connection: migrate::open_in_memory(now.0)?,
            presence: None,
        })
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
            let mut statement = connection.prepare_cached(
                "SELECT device_id, name, epoch, holder, expires_at, record \
                 FROM baton_device JOIN baton_fence USING (business_id, device_id) \
                 WHERE business_id = ?1 ORDER BY name",
            )?;
            let mut found = statement.query([business.as_str()])?;
            let mut accounts = Vec::new();
            while let Some(row) = found.next()? {
                let holder: Option<String> = row.get(3)?;
                let expires: Option<i64> = row.get(4)?;
                accounts.push(AccountInfo {
                    id: AccountId {
                        business: business.clone(),
                        device: unsigned(row.get(0)?),
                    },
                    name: row.get(1)?,
                    epoch: Epoch(unsigned(row.get(2)?)),
                    holder: holder
                        .filter(|_| expires.is_some_and(|at| now.0 < at))
                        .and_then(|hex| unhex(&hex)),
                    device: rows::content(row.get_ref(5)?),
                });
            }
            Ok(accounts)
        })
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
            only.fail(explain(&error));
        } else if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) {
            // Everybody has waited once; alone each would wait again.
            work.iter_mut()
                .for_each(|piece| piece.fail(explain(&error)));
        } else {
            for piece in work {
                if let Err(error) = self.attempt(std::slice::from_mut(piece), clock) {
                    piece.fail(explain(&error));
                }
            }
        }
    }

    fn attempt(
        &mut self,
        work: &mut [&mut dyn Work],
        clock: &dyn Fn() -> UnixMillis,
    ) -> Result<(), rusqlite::Error> {
        let Self {
            connection,
            presence,
        } = self;
        // IMMEDIATE: other processes write here too, and a transaction that reads first and finds the lock taken when
        // it comes to write cannot wait for it.
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut transaction = Transaction {
            connection,
            presence: presence.as_mut(),
            now: clock(),
        };
        let mut result = work
            .iter_mut()
            .try_for_each(|piece| piece.attempt(&mut transaction));
        if result.is_ok() {
            result = connection.prepare_cached("COMMIT")?.execute([]).map(|_| ());
        }
        // Some errors have rolled back already.
        if result.is_err() && !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK")?;
        }
        result
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

    /// See [`Store::commit`](baton_core::state::Store::commit).
    pub fn commit(&mut self, batches: &[Batch]) -> Result<Vec<Outcome>, Failure> {
        let mut outcomes = Vec::with_capacity(batches.len());
        for batch in batches {
            let outcome = match rules::batch(batch) {
                Err(refusal) => Outcome::Rejected(refusal.to_string()),
                Ok(()) => match savepoint(self.connection, |connection| apply(connection, batch)) {
                    Ok(outcome) => outcome,
                    Err(Failure::Answer(error)) => Outcome::Rejected(error.to_string()),
                    Err(Failure::Transaction(error)) => return Err(error.into()),
                },
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// See [`Store::create_account`](baton_core::state::Store::create_account).
    pub fn create_account(
        &mut self,
        business: &BusinessId,
        name: &str,
    ) -> Result<AccountId, Failure> {
        rules::account_name(name)?;
        let now = self.now.0;
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
            connection.execute(
                "INSERT INTO baton_tenant (business_id, created_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                params![business.as_str(), now],
            )?;
            connection.execute(
                "INSERT INTO baton_device (business_id, device_id, name, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![business.as_str(), device, name, now],
            )?;
            connection.execute(
                "INSERT INTO baton_fence (business_id, device_id, epoch, applied) VALUES (?1, ?2, 0, 0)",
                params![business.as_str(), device],
            )?;
            Ok(AccountId {
                business: business.clone(),
                device: unsigned(device),
            })
        })
    }

    /// See [`Store::claim`](baton_core::state::Store::claim).
    pub fn claim(
        &mut self,
        account: &AccountId,
        who: Incarnation,
        ttl: Micros,
    ) -> Result<Claim, Failure> {
        let Fence {
            epoch,
            applied,
            holder,
        } = fence(self.connection, account)?;
        let lease_ms = millis(ttl);
        if let Some(holder) =
            holder.filter(|holder| holder.who != who && self.now.0 < holder.expires_at)
        {
            let dead = self
                .presence
                .as_ref()
                .is_some_and(|presence| presence.is_dead(holder.who));
            if !dead {
                return self.held(account, holder);
            }
            tracing::info!(%account, holder = %hex(holder.who), "the holder has died, taking over");
        }
        if let Some(presence) = &mut self.presence {
            presence.announce(who).map_err(|error| {
                StoreError::Refused(format!("no lock file beside the database: {error}"))
            })?;
        }
        let next = Epoch(epoch.0 + 1);
        self.connection
            .prepare_cached(
                "UPDATE baton_fence SET epoch = ?3, holder = ?4, expires_at = ?5, lease_ms = ?6 \
                 WHERE business_id = ?1 AND device_id = ?2",
            )?
            .execute(params![
                account.business.as_str(),
                schema::number(account.device),
                schema::number(next.0),
                hex(who),
                self.now.0.saturating_add(lease_ms),
                lease_ms,
            ])?;
        Ok(Claim::Granted(Lease {
            epoch: next,
            applied,
            ttl,
        }))
    }

    /// The clock of the machine may have been set back since the lease was given; then its end is moved to where it
    /// can be at most, or nobody could claim the account until the clock has caught up.
    fn held(&mut self, account: &AccountId, holder: Holder) -> Result<Claim, Failure> {
        let mut remaining = holder.expires_at.saturating_sub(self.now.0);
        if remaining > holder.lease_ms {
            remaining = holder.lease_ms;
            self.set_expiry(account, self.now.0.saturating_add(remaining), remaining)?;
        }
        Ok(Claim::Held {
            by: holder.who,
            remaining: Micros::from_millis(remaining.unsigned_abs()),
        })
    }

    /// See [`Store::renew`](baton_core::state::Store::renew).
    pub fn renew(
        &mut self,
        who: Incarnation,
        leases: &[(AccountId, Epoch)],
        ttl: Micros,
    ) -> Result<Vec<Renewal>, Failure> {
        let lease_ms = millis(ttl);
        let mut renewals = Vec::with_capacity(leases.len());
        for (account, epoch) in leases {
            renewals.push(match fence(self.connection, account) {
                Ok(fence)
                    if fence.epoch == *epoch
                        && fence.holder.is_some_and(|holder| holder.who == who) =>
                {
                    self.set_expiry(account, self.now.0.saturating_add(lease_ms), lease_ms)?;
                    Renewal::Renewed
                }
                Ok(fence) => Renewal::Lost { by: fence.epoch },
                // An account that is gone has no epoch: whoever held it has lost it.
                Err(Failure::Answer(StoreError::NoAccount)) => Renewal::Lost { by: Epoch(0) },
                Err(failure) => return Err(failure),
            });
        }
        Ok(renewals)
    }

    fn set_expiry(
        &mut self,
        account: &AccountId,
        expires_at: i64,
        lease_ms: i64,
    ) -> Result<(), Failure> {
        self.connection
            .prepare_cached(
                "UPDATE baton_fence SET expires_at = ?3, lease_ms = ?4 WHERE business_id = ?1 AND device_id = ?2",
            )?
            .execute(params![account.business.as_str(), schema::number(account.device), expires_at, lease_ms])?;
        Ok(())
    }

    /// See [`Store::release`](baton_core::state::Store::release).
    pub fn release(
        &mut self,
        account: &AccountId,
        who: Incarnation,
        epoch: Epoch,
    ) -> Result<(), Failure> {
        fence(self.connection, account)?;
        self.connection
            .prepare_cached(
                "UPDATE baton_fence SET holder = NULL, expires_at = NULL, lease_ms = NULL \
                 WHERE business_id = ?1 AND device_id = ?2 AND holder = ?3 AND epoch = ?4",
            )?
            .execute(params![
                account.business.as_str(),
                schema::number(account.device),
                hex(who),
                schema::number(epoch.0),
            ])?;
        Ok(())
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
        fence(self.connection, account)?;
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
}

/// The row of `baton_fence`.
struct Fence {
    epoch: Epoch,
    applied: Seq,
    holder: Option<Holder>,
}

#[derive(Clone, Copy)]
struct Holder {
    who: Incarnation,
    /// Unix milliseconds.
    expires_at: i64,
    lease_ms: i64,
}

/// Every account has a fence: without one there is no account.
fn fence(connection: &Connection, account: &AccountId) -> Result<Fence, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT epoch, applied, holder, expires_at, lease_ms FROM baton_fence \
         WHERE business_id = ?1 AND device_id = ?2",
    )?;
    let mut rows = statement.query(params![
        account.business.as_str(),
        schema::number(account.device)
    ])?;
    let Some(row) = rows.next()? else {
        return Err(StoreError::NoAccount.into());
    };
    let who: Option<String> = row.get(2)?;
    let holder = match (who.and_then(|hex| unhex(&hex)), row.get(3)?, row.get(4)?) {
        (Some(who), Some(expires_at), Some(lease_ms)) => Some(Holder {
            who,
            expires_at,
            lease_ms,
        }),
        _ => None,
    };
    Ok(Fence {
        epoch: Epoch(unsigned(row.get(0)?)),
        applied: Seq(unsigned(row.get(1)?)),
        holder,
    })
}

/// Moves the fence if it is the batch's own, then writes its rows. Anything but `Committed` has changed nothing.
fn apply(connection: &Connection, batch: &Batch) -> Result<Outcome, Failure> {
    let moved = connection
        .prepare_cached(
            "UPDATE baton_fence SET applied = ?4 \
             WHERE business_id = ?1 AND device_id = ?2 AND epoch = ?3 AND applied = ?4 - 1",
        )?
        .execute(params![
            batch.account.business.as_str(),
            schema::number(batch.account.device),
            schema::number(batch.epoch.0),
            schema::number(batch.seq.0),
        ])?;
    if moved == 0 {
        return why_not(connection, batch);
    }
    for (key, record) in &batch.rows {
        match record {
            Some(record) => rows::put(connection, &batch.account, key, record, batch.at)?,
            None => rows::delete(connection, &batch.account, key)?,
        }
    }
    Ok(Outcome::Committed)
}

/// The epoch is judged first: a deposed holder that sends its last batch again must not take the successor's batch of
/// the same number for its own.
fn why_not(connection: &Connection, batch: &Batch) -> Result<Outcome, Failure> {
    let Fence { epoch, applied, .. } = fence(connection, &batch.account)?;
    Ok(if batch.epoch < epoch {
        Outcome::Fenced { by: epoch }
    } else if batch.epoch > epoch {
        Outcome::Rejected(format!(
            "epoch {} was never granted; {} is in force",
            batch.epoch.0, epoch.0
        ))
    } else if batch.seq <= applied {
        Outcome::Committed
    } else {
        Outcome::Rejected(format!(
            "batch {} does not follow {}",
            batch.seq.0, applied.0
        ))
    })
}

/// Runs `call` so that it leaves nothing behind if it fails.
fn savepoint<T>(
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
fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn unhex(hex: &str) -> Option<Incarnation> {
    u64::from_str_radix(hex, 16).ok().map(Incarnation)
}

/// Rounded up: a lease may be longer than asked for, never shorter.
fn millis(ttl: Micros) -> i64 {
    i64::try_from(ttl.0.div_ceil(1000)).unwrap_or(i64::MAX)
}
