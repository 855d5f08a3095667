//! The fenced commit: batches of many accounts in one transaction, each judged alone.
//!
//! Every account has a lane, and a lane does one transaction at a time: so an account's batches reach the database in
//! the order in which they were handed over, and whatever queues up behind a transaction travels in the next one.
//!
//! A transaction locks the fences of its accounts, moves those whose epoch and number are right, and writes the rows
//! of their batches, one statement per table. Fences that somebody else has locked are left out and done alone
//! afterwards, so that a frozen process in the middle of its own commit holds up its account and nobody else; for the
//! same reason no two commits can wait for each other.

use crate::{
    error::{Blame, Failure, explain},
    pool::{Mode, Pool, Run as _, Transaction},
    schema::{Keys, number, statements},
};
use baton_core::state::{
    AccountId, Batch, Epoch, Key, Outcome, Record, StoreError, Table, UnixMillis, rules,
};
use sqlx::Row as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Batches in one transaction at most; bounds how long the first waits for the last.
const GROUP: usize = 1024;
/// Bytes of records in one transaction, if it has more than one batch.
const GROUP_BYTES: usize = 16 << 20;
/// Bytes of records in one statement, if it has more than one row. The protocol ends at 1 GiB.
const STATEMENT_BYTES: usize = 32 << 20;
/// Rows in one statement.
const STATEMENT_ROWS: usize = 8192;

/// The batches of one call that belong to one lane, and whoever waits for them.
pub(crate) struct Job {
    pub(crate) batches: Vec<Batch>,
    pub(crate) answer: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
}

/// What a lane needs to know.
#[derive(Clone)]
pub(crate) struct Lane {
    pub(crate) pool: Arc<Pool>,
    pub(crate) deadline: Duration,
    pub(crate) tenants: usize,
    pub(crate) batches: Arc<AtomicU64>,
}

impl Lane {
    /// Works until the last handle of the store is gone and the queue is empty.
    pub(crate) async fn run(self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::new();
        while queue.recv_many(&mut jobs, GROUP).await > 0 {
            self.answer(std::mem::take(&mut jobs)).await;
        }
    }

    async fn answer(&self, jobs: Vec<Job>) {
        let mut outcomes: Vec<Result<Vec<Outcome>, StoreError>> =
            jobs.iter().map(|_| Ok(Vec::new())).collect();
        // Which job a batch is from, in order.
        let mut group: Vec<(usize, &Batch)> = Vec::new();
        let mut size = Size::default();
        for (n, job) in jobs.iter().enumerate() {
            for batch in &job.batches {
                if !size.add(batch, self.tenants) {
                    self.finish(&mut group, &mut outcomes).await;
                    size = Size::default();
                    size.add(batch, self.tenants);
                }
                group.push((n, batch));
            }
        }
        self.finish(&mut group, &mut outcomes).await;
        for (job, outcomes) in jobs.into_iter().zip(outcomes) {
            // Nobody may be waiting any more.
            let _ = job.answer.send(outcomes);
        }
    }

    /// Commits a group and adds its outcomes to those of the jobs. One batch without an outcome leaves its whole job
    /// without one.
    async fn finish(
        &self,
        group: &mut Vec<(usize, &Batch)>,
        outcomes: &mut [Result<Vec<Outcome>, StoreError>],
    ) {
        let batches: Vec<&Batch> = group.iter().map(|(_, batch)| *batch).collect();
        self.batches
            .fetch_add(batches.len() as u64, Ordering::Relaxed);
        let results = self.commit(&batches).await;
        for ((n, _), result) in group.drain(..).zip(results) {
            let Some(job) = outcomes.get_mut(n) else {
                continue;
            };
            match (job, result) {
                (Ok(outcomes), Ok(outcome)) => outcomes.push(outcome),
                (job @ Ok(_), Err(error)) => *job = Err(error),
                (Err(_), _) => {}
            }
        }
    }

    /// One result per batch.
    async fn commit(&self, batches: &[&Batch]) -> Vec<Result<Outcome, StoreError>> {
        let mut results: Vec<Option<Result<Outcome, StoreError>>> = batches
            .iter()
            .map(|batch| {
                let refused = rules::batch(batch).err()?;
                Some(Ok(Outcome::Rejected(refused.to_string())))
            })
            .collect();
        let mut accounts = by_account(batches, &results);
        if accounts.len() > 1 {
            let places: Vec<usize> = accounts.values().flatten().copied().collect();
            let answers = self.together(&pick(batches, &places)).await;
            set(&mut results, &places, answers);
            accounts = by_account(batches, &results);
        }
        for places in accounts.values() {
            let answers = self.account(&pick(batches, places)).await;
            set(
                &mut results,
                places,
                answers.into_iter().map(Some).collect(),
            );
        }
        let lost = || StoreError::Unavailable("an outcome has been lost".to_owned());
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(lost())))
            .collect()
    }

    /// Several accounts in one transaction. `None` for those to be done alone: their fence is locked or missing, or one
    /// of them has a value that the tables do not take, and it is not known which.
    async fn together(&self, batches: &[&Batch]) -> Vec<Option<Result<Outcome, StoreError>>> {
        match self.transact(batches, LockedFences::Skip).await {
            Ok(outcomes) => outcomes
                .into_iter()
                .map(|outcome| outcome.map(Ok))
                .collect(),
            Err(failure) if failure.blame() == Blame::Value => vec![None; batches.len()],
            Err(failure) => vec![Some(Err(failure.into())); batches.len()],
        }
    }

    /// Batches of one account, in one transaction if possible.
    async fn account(&self, batches: &[&Batch]) -> Vec<Result<Outcome, StoreError>> {
        match self.transact(batches, LockedFences::Wait).await {
            Err(failure) if failure.blame() == Blame::Value => {}
            other => return spread(other, batches.len()),
        }
        let mut results: Vec<Result<Outcome, StoreError>> = Vec::with_capacity(batches.len());
        for batch in batches {
            // What comes behind a batch of unknown outcome has one too: it must not be judged a gap.
            if let Some(Err(error)) = results.last() {
                results.push(Err(error.clone()));
                continue;
            }
            let result = match self.transact(&[*batch], LockedFences::Wait).await {
                Err(failure) if failure.blame() == Blame::Value => Ok(vec![Some(
                    Outcome::Rejected(StoreError::from(failure).to_string()),
                )]),
                other => other,
            };
            results.extend(spread(result, 1));
        }
        results
    }

    async fn transact(
        &self,
        batches: &[&Batch],
        locked: LockedFences,
    ) -> Result<Vec<Option<Outcome>>, Failure> {
        within(self.deadline, transact(&self.pool, batches, locked)).await
    }
}

/// The places of the batches that have no result yet.
fn by_account<'a, T>(
    batches: &[&'a Batch],
    results: &[Option<T>],
) -> BTreeMap<&'a AccountId, Vec<usize>> {
    let mut accounts: BTreeMap<&AccountId, Vec<usize>> = BTreeMap::new();
    for (place, (batch, result)) in batches.iter().zip(results).enumerate() {
        if result.is_none() {
            accounts.entry(&batch.account).or_default().push(place);
        }
    }
    accounts
}

fn pick<'a>(batches: &[&'a Batch], places: &[usize]) -> Vec<&'a Batch> {
    places
        .iter()
        .filter_map(|&place| batches.get(place).copied())
        .collect()
}

/// A fence that was waited for and not found is none: there is no such account.
fn spread(
    outcomes: Result<Vec<Option<Outcome>>, Failure>,
    count: usize,
) -> Vec<Result<Outcome, StoreError>> {
    let none = || Outcome::Rejected("no such account".to_owned());
    match outcomes {
        Ok(outcomes) => outcomes
            .into_iter()
            .map(|outcome| Ok(outcome.unwrap_or_else(none)))
            .collect(),
        Err(failure) => vec![Err(failure.into()); count],
    }
}

/// Runs `work`; past the deadline it is dropped, and the connection with it.
pub(crate) async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => {
            Err(StoreError::Unavailable("the database did not answer in time".to_owned()).into())
        }
    }
}

fn set<T>(results: &mut [Option<T>], places: &[usize], values: Vec<Option<T>>) {
    for (&place, value) in places.iter().zip(values) {
        if let Some(result) = results.get_mut(place) {
            *result = value;
        }
    }
}

#[derive(Default)]
struct Size<'a> {
    batches: usize,
    bytes: usize,
    tenants: BTreeSet<&'a str>,
}

impl<'a> Size<'a> {
    /// Takes the batch in, if there is room.
    fn add(&mut self, batch: &'a Batch, tenants: usize) -> bool {
        let tenant = batch.account.business.as_str();
        let bytes = self.bytes.saturating_add(batch.bytes());
        let crowded = !self.tenants.contains(tenant) && self.tenants.len() >= tenants.max(1);
        if self.batches > 0 && (crowded || bytes > GROUP_BYTES || self.batches >= GROUP) {
            return false;
        }
        self.tenants.insert(tenant);
        self.batches += 1;
        self.bytes = bytes;
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LockedFences {
    Skip,
    Wait,
}

async fn transact(
    pool: &Arc<Pool>,
    batches: &[&Batch],
    locked: LockedFences,
) -> Result<Vec<Option<Outcome>>, Failure> {
    let tenants = batches.iter().map(|batch| &batch.account.business);
    let mut transaction = pool
        .begin(Mode::Write, tenants)
        .await
        .map_err(begin_failed)?;
    match apply(&mut transaction, batches, locked).await {
        Ok(outcomes) => {
            transaction.commit().await?;
            Ok(outcomes)
        }
        Err(failure) => {
            if failure.leaves_connection_usable() {
                transaction.roll_back().await;
            }
            Err(failure)
        }
    }
}

/// Whatever is wrong with the beginning of a transaction is not the fault of what would have come.
pub(crate) fn begin_failed(error: sqlx::Error) -> Failure {
    Failure::Answer(explain(&error))
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
struct Rows<'a>(
    BTreeMap<Table, BTreeMap<(&'a AccountId, &'a Key), (Option<&'a Record>, UnixMillis)>>,
);

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

/// Constraints keep these columns at zero or above.
pub(crate) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
