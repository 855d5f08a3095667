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
    error::{Blame, Failure},
    fenced::{LockedFences, confirm, transact},
    pool::Pool,
};
use baton_core::state::{AccountId, Batch, Outcome, StoreError, Term, rules};
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

/// The part of one call that belongs to one lane, and whoever waits for it.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) answer: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
}

/// What a lane does: both move fences, and have to stay in the order of the calls.
pub(crate) enum Work {
    Commit(Vec<Batch>),
    Confirm(Vec<(AccountId, Term)>),
}

/// What a lane needs to know.
#[derive(Clone)]
pub(crate) struct Lane {
    pub(crate) pool: Arc<Pool>,
    pub(crate) deadline: Duration,
    pub(crate) tenants: usize,
    /// Refuse to commit without a synchronous standby.
    pub(crate) synchronous: bool,
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
            let batches = match &job.work {
                Work::Commit(batches) => batches,
                Work::Confirm(terms) => {
                    self.finish(&mut group, &mut outcomes).await;
                    size = Size::default();
                    if let Some(outcome) = outcomes.get_mut(n) {
                        let work = confirm(&self.pool, terms, self.synchronous);
                        *outcome = within(self.deadline, work).await.map_err(StoreError::from);
                    }
                    continue;
                }
            };
            for batch in batches {
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
        if group.is_empty() {
            return;
        }
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
        within(
            self.deadline,
            transact(&self.pool, batches, locked, self.synchronous),
        )
        .await
    }
}

/// The places of the batches that have no result yet.
pub(crate) fn by_account<'a, T>(
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

pub(crate) fn set<T>(results: &mut [Option<T>], places: &[usize], values: Vec<Option<T>>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::{BusinessId, Epoch, Incarnation, Key, Record, Seal, Seq, UnixMillis};

    fn batch(tenant: &str, bytes: usize) -> Batch {
        Batch {
            account: AccountId {
                business: BusinessId::new(tenant).unwrap(),
                device: 1,
            },
            term: Term {
                epoch: Epoch(1),
                holder: Incarnation(1),
                history: Seal::FIRST,
            },
            seq: Seq(1),
            reseal: false,
            at: UnixMillis(0),
            rows: [(Key::Counters, Some(Record(vec![0; bytes].into())))].into(),
        }
    }

    #[test]
    fn a_transaction_has_room_for_so_many_batches_bytes_and_tenants() {
        let [a, b, c] = ["a", "b", "c"].map(|tenant| batch(tenant, 1));
        let mut size = Size::default();
        assert!(size.add(&a, 2) && size.add(&b, 2) && size.add(&a, 2));
        assert!(!size.add(&c, 2), "a third tenant");
        assert!(size.add(&b, 2), "a refusal changes nothing");

        let mut size = Size::default();
        assert_eq!((0..=GROUP).filter(|_| size.add(&a, 1)).count(), GROUP);

        let (small, large) = (batch("a", 1), batch("a", GROUP_BYTES));
        let mut size = Size::default();
        assert!(size.add(&small, 1) && !size.add(&large, 1));
        let mut size = Size::default();
        assert!(size.add(&large, 1), "one batch always fits");
        assert!(!size.add(&small, 1));
    }
}
