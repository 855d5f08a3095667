//! The transaction of a commit: fences first, then rows.

use crate::{
    commit::{by_account, set},
    error::Failure,
    pool::{Mode, Pool, Run as _, Transaction},
    schema::{Keys, number, statements, unsigned},
};
use baton_core::state::{
    AccountId, Batch, Epoch, Key, Outcome, Record, StoreError, Table, UnixMillis,
};
use sqlx::Row as _;
use std::{collections::BTreeMap, sync::Arc};

/// Bytes of records in one statement, if it has more than one row. The protocol ends at 1 GiB.
const STATEMENT_BYTES: usize = 32 << 20;
/// Rows in one statement.
const STATEMENT_ROWS: usize = 8192;

/// What to do with a fence that another transaction has locked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockedFences {
    /// Leave its account out.
    Skip,
    /// Wait until it is free.
    Wait,
}

/// Applies batches in one transaction. `None` for those whose fence is locked or missing.
pub(crate) async fn transact(
    pool: &Arc<Pool>,
    batches: &[&Batch],
    locked: LockedFences,
) -> Result<Vec<Option<Outcome>>, Failure> {
    let tenants = batches.iter().map(|batch| &batch.account.business);
    let mut transaction = pool
        .begin(Mode::Write, tenants)
        .await
        .map_err(Failure::begin)?;
    let result = apply(&mut transaction, batches, locked).await;
    transaction.finish(result).await
}

async fn apply(
    transaction: &mut Transaction,
    batches: &[&Batch],
    locked: LockedFences,
) -> Result<Vec<Option<Outcome>>, Failure> {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; batches.len()];
    let accounts: Vec<Account<'_>> = by_account(batches, &outcomes)
        .into_iter()
        .map(|(id, places)| Account::new(id, places, batches))
        .collect();
    let fences = move_fences(transaction, &accounts, locked).await?;

    let mut rows = Rows::default();
    let mut corrections = Vec::new();
    for (account, fence) in accounts.iter().zip(&fences) {
        let Some(fence) = fence else { continue };
        let mut applied = fence.applied;
        for &(place, batch) in &account.batches {
            let outcome = judge(batch, fence.epoch, &mut applied, || rows.add(batch));
            set(&mut outcomes, &[place], vec![Some(outcome)]);
        }
        let moved_to = if fence.moved {
            account.last
        } else {
            fence.applied
        };
        if applied != moved_to {
            corrections.push((account.id, fence.epoch, moved_to, applied));
        }
    }
    correct_fences(transaction, &corrections).await?;
    rows.write(transaction).await?;
    Ok(outcomes)
}

/// The rule of writing, as [`Store`](baton_core::state::Store) has it. The epoch is judged first: a deposed holder that
/// sends its last batch again must not take the successor's batch of the same number for its own.
fn judge(batch: &Batch, epoch: u64, applied: &mut u64, write: impl FnOnce()) -> Outcome {
    let seq = batch.seq.0;
    if batch.epoch.0 < epoch {
        Outcome::Fenced { by: Epoch(epoch) }
    } else if batch.epoch.0 > epoch {
        Outcome::Rejected(format!(
            "epoch {} was never granted; {epoch} is in force",
            batch.epoch.0
        ))
    } else if seq <= *applied {
        Outcome::Committed
    } else if seq - *applied > 1 {
        Outcome::Rejected(format!("batch {seq} does not follow {applied}"))
    } else {
        *applied = seq;
        write();
        Outcome::Committed
    }
}

/// The batches of one account in a transaction, in order.
struct Account<'a> {
    id: &'a AccountId,
    /// With their places in the call.
    batches: Vec<(usize, &'a Batch)>,
    epoch: Epoch,
    /// First and last of the unbroken run of numbers at the beginning: all of them, unless somebody is confused.
    first: u64,
    last: u64,
}

impl<'a> Account<'a> {
    fn new(id: &'a AccountId, places: Vec<usize>, batches: &[&'a Batch]) -> Self {
        let batches: Vec<(usize, &'a Batch)> = places
            .into_iter()
            .filter_map(|place| Some((place, *batches.get(place)?)))
            .collect();
        let (epoch, first) = match batches.first() {
            Some((_, batch)) => (batch.epoch, batch.seq.0),
            None => (Epoch(0), 0),
        };
        let mut last = first;
        for (_, batch) in batches.iter().skip(1) {
            if batch.epoch != epoch || batch.seq.0 != last + 1 {
                break;
            }
            last += 1;
        }
        Self {
            id,
            batches,
            epoch,
            first,
            last,
        }
    }
}

/// A fence as it was before the transaction, and whether it stands at the end of the account's run now.
struct Fence {
    epoch: u64,
    applied: u64,
    moved: bool,
}

/// Locks the fence of each account and moves it to the end of its run, if epoch and number are right. What the fence
/// held under the lock comes back, so that everything else is judged by that. `None` if it is not there, or locked.
async fn move_fences(
    transaction: &mut Transaction,
    accounts: &[Account<'_>],
    locked: LockedFences,
) -> Result<Vec<Option<Fence>>, Failure> {
    // The conditions are on what was read under the lock, not on what the statement saw when it began. `m` finds the
    // row by its key alone for that reason. In the order of keys, so that nobody waits in a circle.
    macro_rules! guard {
        ($locked:literal) => {
            concat!(
                "WITH w AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) \
                 WITH ORDINALITY AS w(business_id, device_id, epoch, first, last, n)), \
                 l AS MATERIALIZED (SELECT w.n, w.epoch AS claimed, w.first, w.last, \
                   f.business_id, f.device_id, f.epoch, f.applied \
                   FROM w JOIN baton_fence f ON f.business_id = w.business_id AND f.device_id = w.device_id \
                   ORDER BY f.business_id, f.device_id FOR UPDATE OF f ",
                $locked,
                "), m AS (UPDATE baton_fence f SET applied = l.last FROM l \
                 WHERE f.business_id = l.business_id AND f.device_id = l.device_id \
                 AND l.epoch = l.claimed AND l.applied BETWEEN l.first - 1 AND l.last - 1 \
                 RETURNING l.n) \
                 SELECT l.n, l.epoch, l.applied, m.n IS NOT NULL, current_setting('synchronous_commit') = 'off' \
                 FROM l LEFT JOIN m ON m.n = l.n"
            )
        };
    }
    let sql = match locked {
        LockedFences::Skip => guard!("SKIP LOCKED"),
        LockedFences::Wait => guard!(""),
    };
    let column = |value: fn(&Account<'_>) -> i64| accounts.iter().map(value).collect::<Vec<_>>();
    let businesses: Vec<&str> = accounts
        .iter()
        .map(|account| account.id.business.as_str())
        .collect();
    let found = sqlx::query(sql)
        .bind(businesses)
        .bind(column(|account| number(account.id.device)))
        .bind(column(|account| number(account.epoch.0)))
        .bind(column(|account| number(account.first)))
        .bind(column(|account| number(account.last)))
        .all(transaction)
        .await?;
    let mut fences: Vec<Option<Fence>> = accounts.iter().map(|_| None).collect();
    for row in found {
        if row.try_get(4)? {
            let why =
                "synchronous_commit has been switched off: a commit would not survive a power cut";
            return Err(StoreError::Refused(why.to_owned()).into());
        }
        let n = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0);
        if let Some(fence) = n.checked_sub(1).and_then(|n| fences.get_mut(n)) {
            *fence = Some(Fence {
                epoch: unsigned(row.try_get(1)?),
                applied: unsigned(row.try_get(2)?),
                moved: row.try_get(3)?,
            });
        }
    }
    Ok(fences)
}

/// For calls that were not one unbroken run, such as a batch sent twice: moves the fence to where they have got.
async fn correct_fences(
    transaction: &mut Transaction,
    corrections: &[(&AccountId, u64, u64, u64)],
) -> Result<(), Failure> {
    if corrections.is_empty() {
        return Ok(());
    }
    let businesses: Vec<&str> = corrections
        .iter()
        .map(|(id, ..)| id.business.as_str())
        .collect();
    let devices: Vec<i64> = corrections.iter().map(|c| number(c.0.device)).collect();
    let epochs: Vec<i64> = corrections.iter().map(|c| number(c.1)).collect();
    let from: Vec<i64> = corrections.iter().map(|c| number(c.2)).collect();
    let to: Vec<i64> = corrections.iter().map(|c| number(c.3)).collect();
    let moved = sqlx::query(
        "UPDATE baton_fence f SET applied = c.after \
         FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) \
         AS c(business_id, device_id, epoch, before, after) \
         WHERE f.business_id = c.business_id AND f.device_id = c.device_id \
         AND f.epoch = c.epoch AND f.applied = c.before",
    )
    .bind(businesses)
    .bind(devices)
    .bind(epochs)
    .bind(from)
    .bind(to)
    .run(transaction)
    .await?;
    if moved == corrections.len() as u64 {
        Ok(())
    } else {
        // Cannot be: the fences are locked. Nothing is committed rather than something wrong.
        Err(StoreError::Unavailable("a fence has moved under its lock".to_owned()).into())
    }
}

/// What a transaction writes: the last word on each key.
#[derive(Default)]
struct Rows<'a>(BTreeMap<Table, BTreeMap<Place<'a>, Word<'a>>>);

type Place<'a> = (&'a AccountId, &'a Key);
type Word<'a> = (Option<&'a Record>, UnixMillis);

impl<'a> Rows<'a> {
    fn add(&mut self, batch: &'a Batch) {
        for (key, record) in &batch.rows {
            let table = self.0.entry(key.table()).or_default();
            table.insert((&batch.account, key), (record.as_ref(), batch.at));
        }
    }

    async fn write(&self, transaction: &mut Transaction) -> Result<(), Failure> {
        for (&table, rows) in &self.0 {
            let mut puts = Puts::new(table);
            let mut deletes = Deletes::new(table);
            for ((account, key), (record, at)) in rows {
                match record {
                    Some(record) => {
                        if puts.is_full(record) {
                            std::mem::replace(&mut puts, Puts::new(table))
                                .write(transaction)
                                .await?;
                        }
                        puts.add(account, key, record, *at);
                    }
                    None => deletes.add(account, key),
                }
            }
            puts.write(transaction).await?;
            deletes.write(transaction).await?;
        }
        Ok(())
    }
}

struct Puts<'a> {
    table: Table,
    bytes: usize,
    businesses: Vec<&'a str>,
    devices: Vec<i64>,
    records: Vec<&'a [u8]>,
    times: Vec<i64>,
    keys: Keys<'a>,
}

impl<'a> Puts<'a> {
    fn new(table: Table) -> Self {
        Self {
            table,
            bytes: 0,
            businesses: Vec::new(),
            devices: Vec::new(),
            records: Vec::new(),
            times: Vec::new(),
            keys: Keys::new(table),
        }
    }

    fn is_full(&self, next: &Record) -> bool {
        !self.records.is_empty()
            && (self.bytes.saturating_add(next.0.len()) > STATEMENT_BYTES
                || self.records.len() >= STATEMENT_ROWS)
    }

    fn add(&mut self, account: &'a AccountId, key: &'a Key, record: &'a Record, at: UnixMillis) {
        self.bytes = self.bytes.saturating_add(record.0.len());
        self.businesses.push(account.business.as_str());
        self.devices.push(number(account.device));
        self.records.push(&record.0);
        self.times.push(at.0);
        self.keys.push(key);
    }

    async fn write(self, transaction: &mut Transaction) -> Result<(), Failure> {
        if self.records.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(statements(self.table).put.as_str())
            .bind(self.businesses)
            .bind(self.devices)
            .bind(self.records)
            .bind(self.times);
        self.keys.bind(query).run(transaction).await?;
        Ok(())
    }
}

struct Deletes<'a> {
    table: Table,
    businesses: Vec<&'a str>,
    devices: Vec<i64>,
    keys: Keys<'a>,
}

impl<'a> Deletes<'a> {
    fn new(table: Table) -> Self {
        Self {
            table,
            businesses: Vec::new(),
            devices: Vec::new(),
            keys: Keys::new(table),
        }
    }

    fn add(&mut self, account: &'a AccountId, key: &'a Key) {
        self.businesses.push(account.business.as_str());
        self.devices.push(number(account.device));
        self.keys.push(key);
    }

    async fn write(self, transaction: &mut Transaction) -> Result<(), Failure> {
        if self.devices.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(statements(self.table).delete.as_str())
            .bind(self.businesses)
            .bind(self.devices);
        self.keys.bind(query).run(transaction).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::{BusinessId, Seq};

    fn batch(epoch: u64, seq: u64) -> Batch {
        Batch {
            account: AccountId {
                business: BusinessId::default(),
                device: 1,
            },
            epoch: Epoch(epoch),
            seq: Seq(seq),
            at: UnixMillis(0),
            rows: BTreeMap::new(),
        }
    }

    #[test]
    fn a_run_ends_where_the_numbers_or_the_epoch_break() {
        let run = |batches: &[(u64, u64)]| {
            let batches: Vec<Batch> = batches
                .iter()
                .map(|(epoch, seq)| batch(*epoch, *seq))
                .collect();
            let batches: Vec<&Batch> = batches.iter().collect();
            let places = (0..batches.len()).collect();
            let account = Account::new(&batches[0].account, places, &batches);
            (account.epoch.0, account.first, account.last)
        };
        assert_eq!(run(&[(3, 7)]), (3, 7, 7));
        assert_eq!(run(&[(3, 7), (3, 8), (3, 9)]), (3, 7, 9));
        assert_eq!(run(&[(3, 7), (3, 8), (3, 10)]), (3, 7, 8));
        assert_eq!(run(&[(3, 7), (3, 7), (3, 8)]), (3, 7, 7));
        assert_eq!(run(&[(3, 7), (4, 8)]), (3, 7, 7));
    }
}
