//! The transaction of a commit: fences first, then rows.

use crate::{
    commit::{by_account, set},
    error::Failure,
    pool::{Mode, Pool, Run as _, Scope, Transaction},
    schema::{Keys, holder, incarnation, number, seal, statements, unsigned},
};
use baton_core::state::{
    AccountId, Batch, Epoch, Fence, Key, Outcome, Record, Seal, Seq, StoreError, Table, Term,
    UnixMillis,
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
    synchronous: bool,
) -> Result<Vec<Option<Outcome>>, Failure> {
    let tenants = batches.iter().map(|batch| &batch.account.business);
    let mut transaction = pool
        .begin(Mode::Write, Scope::Tenants(tenants.collect()))
        .await
        .map_err(Failure::begin)?;
    let result = apply(&mut transaction, batches, locked, synchronous).await;
    transaction.finish(result).await
}

async fn apply(
    transaction: &mut Transaction,
    batches: &[&Batch],
    locked: LockedFences,
    synchronous: bool,
) -> Result<Vec<Option<Outcome>>, Failure> {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; batches.len()];
    let accounts: Vec<Account<'_>> = by_account(batches, &outcomes)
        .into_iter()
        .filter_map(|(id, places)| Account::new(id, places, batches))
        .collect();
    let found = move_fences(transaction, &accounts, locked).await?;
    found.check_durability(synchronous)?;

    let mut rows = Rows::default();
    let mut corrections = Vec::new();
    for (account, guarded) in accounts.iter().zip(found.fences) {
        let Some(Guarded { mut fence, moved }) = guarded else {
            continue;
        };
        let stands = if moved {
            (fence.applied.max(account.run.last), found.history)
        } else {
            (fence.applied, fence.sealed)
        };
        let mut answered = false;
        for &(place, batch) in &account.batches {
            let outcome = fence.admit(batch, found.history).unwrap_or_else(|| {
                rows.add(batch);
                Outcome::Committed
            });
            // Also what was applied before is answered by a write: only that proves that the earlier one is durable.
            answered |= outcome == Outcome::Committed;
            set(&mut outcomes, &[place], vec![Some(outcome)]);
        }
        if stands != (fence.applied, fence.sealed) || answered && !moved {
            corrections.push((account.id, fence));
        }
    }
    correct_fences(transaction, &corrections).await?;
    rows.write(transaction).await?;
    Ok(outcomes)
}

/// The batches of one account in a transaction, in order.
struct Account<'a> {
    id: &'a AccountId,
    /// With their places in the call.
    batches: Vec<(usize, &'a Batch)>,
    run: Run,
}

/// The unbroken run of numbers of one term at the beginning: all batches, unless somebody is confused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    term: Term,
    /// The first of them re-seals.
    reseal: bool,
    first: Seq,
    last: Seq,
}

impl<'a> Account<'a> {
    fn new(id: &'a AccountId, places: Vec<usize>, batches: &[&'a Batch]) -> Option<Self> {
        let batches: Vec<(usize, &'a Batch)> = places
            .into_iter()
            .filter_map(|place| Some((place, *batches.get(place)?)))
            .collect();
        let (_, first) = *batches.first()?;
        let mut last = first.seq;
        for (_, batch) in batches.iter().skip(1) {
            if batch.term != first.term || batch.seq != last.next() {
                break;
            }
            last = batch.seq;
        }
        let run = Run {
            term: first.term,
            reseal: first.reseal,
            first: first.seq,
            last,
        };
        Some(Self { id, batches, run })
    }
}

/// What was found of a call's accounts.
struct Found {
    history: Seal,
    fences: Vec<Option<Guarded>>,
    /// The server's `synchronous_commit` and `synchronous_standby_names`.
    durability: Option<(String, String)>,
}

/// A fence as it was before the transaction, and whether it stands at the end of the account's run now.
struct Guarded {
    fence: Fence,
    moved: bool,
}

impl Found {
    /// A setting of the session that the server took over after the store was opened would make every answer a lie.
    fn check_durability(&self, synchronous: bool) -> Result<(), Failure> {
        let why = match &self.durability {
            Some((commit, _)) if commit == "off" => {
                "synchronous_commit has been switched off: a commit would not survive a power cut"
            }
            Some((commit, names)) if synchronous && (commit == "local" || names.is_empty()) => {
                "no synchronous standby is configured any more: a commit would not survive the loss of the server"
            }
            _ => return Ok(()),
        };
        Err(StoreError::Refused(why.to_owned()).into())
    }
}

/// Locks the fence of each account and moves it to the end of its run, if term, seal and number are right. What the
/// fence held under the lock comes back, so that everything else is judged by that. `None` if it is not there, or
/// locked.
async fn move_fences(
    transaction: &mut Transaction,
    accounts: &[Account<'_>],
    locked: LockedFences,
) -> Result<Found, Failure> {
    // The conditions are on what was read under the lock, not on what the statement saw when it began. `m` finds the
    // row by its key alone for that reason. In the order of keys, so that nobody waits in a circle.
    macro_rules! guard {
        ($locked:literal) => {
            concat!(
                "WITH w AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], \
                   $6::bigint[], $7::bool[], $8::bigint[], $9::bigint[]) \
                   WITH ORDINALITY AS w(business_id, device_id, epoch, holder, timeline, generation, reseal, first, last, n)), \
                 h AS MATERIALIZED (SELECT baton_timeline() AS timeline, generation FROM baton_cluster LIMIT 1), \
                 l AS MATERIALIZED (SELECT w.n, w.first, w.last, f.business_id, f.device_id, f.epoch, f.holder, f.applied, \
                   f.sealed_timeline, f.sealed_generation, f.epoch = w.epoch AND f.holder = w.holder \
                     AND w.timeline = h.timeline AND w.generation = h.generation \
                     AND (f.sealed_timeline = h.timeline AND f.sealed_generation = h.generation AND f.applied >= w.first - 1 \
                       OR w.reseal AND f.applied = w.first - 1) AS fits \
                   FROM h, w JOIN baton_fence f ON f.business_id = w.business_id AND f.device_id = w.device_id \
                   ORDER BY f.business_id, f.device_id FOR UPDATE OF f ",
                $locked,
                "), m AS (UPDATE baton_fence f SET applied = greatest(l.applied, l.last), commit_seq = f.commit_seq + 1, \
                   sealed_timeline = h.timeline, sealed_generation = h.generation FROM l, h \
                   WHERE f.business_id = l.business_id AND f.device_id = l.device_id AND l.fits \
                   RETURNING l.n) \
                 SELECT l.n, l.epoch, l.holder, l.applied, l.sealed_timeline, l.sealed_generation, m.n IS NOT NULL, \
                   h.timeline, h.generation, current_setting('synchronous_commit'), \
                   current_setting('synchronous_standby_names') \
                 FROM h CROSS JOIN l LEFT JOIN m ON m.n = l.n"
            )
        };
    }
    let sql = match locked {
        LockedFences::Skip => guard!("SKIP LOCKED"),
        LockedFences::Wait => guard!(""),
    };
    let column = |value: fn(&Run) -> i64| {
        let runs = accounts.iter().map(|account| &account.run);
        runs.map(value).collect::<Vec<i64>>()
    };
    let businesses: Vec<&str> = accounts
        .iter()
        .map(|account| account.id.business.as_str())
        .collect();
    let devices: Vec<i64> = accounts
        .iter()
        .map(|account| number(account.id.device))
        .collect();
    let reseal: Vec<bool> = accounts.iter().map(|account| account.run.reseal).collect();
    let rows = sqlx::query(sql)
        .bind(businesses)
        .bind(devices)
        .bind(column(|run| number(run.term.epoch.0)))
        .bind(column(|run| holder(run.term.holder)))
        .bind(column(|run| i64::from(run.term.history.timeline)))
        .bind(column(|run| i64::from(run.term.history.generation)))
        .bind(reseal)
        .bind(column(|run| number(run.first.0)))
        .bind(column(|run| number(run.last.0)))
        .all(transaction)
        .await?;
    let mut found = Found {
        history: Seal::default(),
        fences: accounts.iter().map(|_| None).collect(),
        durability: None,
    };
    for row in rows {
        let n = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0);
        let fence = Fence {
            epoch: Epoch(unsigned(row.try_get(1)?)),
            holder: row.try_get::<Option<i64>, _>(2)?.map(incarnation),
            applied: Seq(unsigned(row.try_get(3)?)),
            sealed: seal(&row, 4)?,
            // Whoever is retired has no holder, which says it all.
            retired: false,
        };
        let moved = row.try_get(6)?;
        found.history = seal(&row, 7)?;
        found.durability = Some((row.try_get(9)?, row.try_get(10)?));
        if let Some(place) = n.checked_sub(1).and_then(|n| found.fences.get_mut(n)) {
            *place = Some(Guarded { fence, moved });
        }
    }
    Ok(found)
}

/// For calls that were not one unbroken run, and for those that repeat an old one: moves the fence to where they have
/// got. The fences are locked, and nothing but where they stand changes.
async fn correct_fences(
    transaction: &mut Transaction,
    corrections: &[(&AccountId, Fence)],
) -> Result<(), Failure> {
    if corrections.is_empty() {
        return Ok(());
    }
    let businesses: Vec<&str> = corrections
        .iter()
        .map(|(id, _)| id.business.as_str())
        .collect();
    let column = |value: fn(&(&AccountId, Fence)) -> i64| {
        corrections.iter().map(value).collect::<Vec<i64>>()
    };
    let moved = sqlx::query(
        "UPDATE baton_fence f SET applied = c.applied, sealed_timeline = c.timeline, \
           sealed_generation = c.generation, commit_seq = f.commit_seq + 1 \
         FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) \
         AS c(business_id, device_id, epoch, applied, timeline, generation) \
         WHERE f.business_id = c.business_id AND f.device_id = c.device_id AND f.epoch = c.epoch",
    )
    .bind(businesses)
    .bind(column(|(id, _)| number(id.device)))
    .bind(column(|(_, fence)| number(fence.epoch.0)))
    .bind(column(|(_, fence)| number(fence.applied.0)))
    .bind(column(|(_, fence)| i64::from(fence.sealed.timeline)))
    .bind(column(|(_, fence)| i64::from(fence.sealed.generation)))
    .run(transaction)
    .await?;
    if moved == corrections.len() as u64 {
        Ok(())
    } else {
        // Cannot be: the fences are locked. Nothing is committed rather than something wrong.
        Err(StoreError::Unavailable("a fence has moved under its lock".to_owned()).into())
    }
}

/// See [`Store::confirm`](baton_core::state::Store::confirm): the guard of a commit without the commit. A write, so that
/// it comes behind whatever still has the fence locked, and is as durable as what it confirms.
pub(crate) async fn confirm(
    pool: &Arc<Pool>,
    terms: &[(AccountId, Term)],
    synchronous: bool,
) -> Result<Vec<Outcome>, Failure> {
    if terms.is_empty() {
        return Ok(Vec::new());
    }
    let mut transaction = pool
        .begin(Mode::Write, Scope::Fleet)
        .await
        .map_err(Failure::begin)?;
    let result = confirm_fences(&mut transaction, terms, synchronous).await;
    transaction.finish(result).await
}

async fn confirm_fences(
    transaction: &mut Transaction,
    terms: &[(AccountId, Term)],
    synchronous: bool,
) -> Result<Vec<Outcome>, Failure> {
    let businesses: Vec<&str> = terms.iter().map(|(id, _)| id.business.as_str()).collect();
    let column =
        |value: fn(&(AccountId, Term)) -> i64| terms.iter().map(value).collect::<Vec<i64>>();
    let rows = sqlx::query(
        "WITH w AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) \
           WITH ORDINALITY AS w(business_id, device_id, epoch, holder, timeline, generation, n)), \
         h AS MATERIALIZED (SELECT baton_timeline() AS timeline, generation FROM baton_cluster LIMIT 1), \
         l AS MATERIALIZED (SELECT w.n, f.business_id, f.device_id, f.epoch, f.holder, f.epoch = w.epoch \
             AND f.holder = w.holder AND w.timeline = h.timeline AND w.generation = h.generation AS fits \
           FROM h, w JOIN baton_fence f ON f.business_id = w.business_id AND f.device_id = w.device_id \
           ORDER BY f.business_id, f.device_id FOR UPDATE OF f), \
         m AS (UPDATE baton_fence f SET commit_seq = f.commit_seq + 1 FROM l \
           WHERE f.business_id = l.business_id AND f.device_id = l.device_id AND l.fits) \
         SELECT l.n, l.epoch, l.holder, h.timeline, h.generation, current_setting('synchronous_commit'), \
           current_setting('synchronous_standby_names') FROM h CROSS JOIN l",
    )
    .bind(businesses)
    .bind(column(|(id, _)| number(id.device)))
    .bind(column(|(_, term)| number(term.epoch.0)))
    .bind(column(|(_, term)| holder(term.holder)))
    .bind(column(|(_, term)| i64::from(term.history.timeline)))
    .bind(column(|(_, term)| i64::from(term.history.generation)))
    .all(transaction)
    .await?;
    let none = || Outcome::Rejected("no such account".to_owned());
    let mut outcomes: Vec<Outcome> = terms.iter().map(|_| none()).collect();
    let mut found = Found {
        history: Seal::default(),
        fences: Vec::new(),
        durability: None,
    };
    for row in rows {
        found.history = seal(&row, 3)?;
        found.durability = Some((row.try_get(5)?, row.try_get(6)?));
        let n = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0);
        let fence = Fence {
            epoch: Epoch(unsigned(row.try_get(1)?)),
            holder: row.try_get::<Option<i64>, _>(2)?.map(incarnation),
            ..Fence::new(found.history)
        };
        if let Some(place) = n.checked_sub(1)
            && let Some((_, term)) = terms.get(place)
        {
            let outcome = fence.refusal(term, found.history);
            set_one(&mut outcomes, place, outcome.unwrap_or(Outcome::Committed));
        }
    }
    found.check_durability(synchronous)?;
    Ok(outcomes)
}

fn set_one<T>(values: &mut [T], place: usize, value: T) {
    if let Some(slot) = values.get_mut(place) {
        *slot = value;
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
    use baton_core::state::{BusinessId, Incarnation};

    fn batch(epoch: u64, seq: u64) -> Batch {
        Batch {
            account: AccountId {
                business: BusinessId::default(),
                device: 1,
            },
            term: Term {
                epoch: Epoch(epoch),
                holder: Incarnation(1),
                history: Seal::FIRST,
            },
            seq: Seq(seq),
            reseal: false,
            at: UnixMillis(0),
            rows: BTreeMap::new(),
        }
    }

    #[test]
    fn a_run_ends_where_the_numbers_or_the_term_break() {
        let run = |batches: &[(u64, u64)]| {
            let batches: Vec<Batch> = batches
                .iter()
                .map(|(epoch, seq)| batch(*epoch, *seq))
                .collect();
            let batches: Vec<&Batch> = batches.iter().collect();
            let places = (0..batches.len()).collect();
            let run = Account::new(&batches[0].account, places, &batches)
                .unwrap()
                .run;
            (run.term.epoch.0, run.first.0, run.last.0)
        };
        assert_eq!(run(&[(3, 7)]), (3, 7, 7));
        assert_eq!(run(&[(3, 7), (3, 8), (3, 9)]), (3, 7, 9));
        assert_eq!(run(&[(3, 7), (3, 8), (3, 10)]), (3, 7, 8));
        assert_eq!(run(&[(3, 7), (3, 7), (3, 8)]), (3, 7, 7));
        assert_eq!(run(&[(3, 7), (4, 8)]), (3, 7, 7));
    }
}
