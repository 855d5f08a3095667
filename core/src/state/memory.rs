//! The reference store: everything in memory, gone with the last handle.
//!
//! Small enough to be read as the definition of what [`Store`] promises. Its futures are ready at the first poll, and
//! its time is whatever the clock given to it says, so a simulation decides when a lease has run out.

use super::{
    AccountId, AccountInfo, Batch, BusinessId, Claim, Epoch, Incarnation, Key, Lease, MessageId,
    Micros, Outcome, Record, Renewal, Row, Scan, Seq, Store, StoreError, Table, UnixMillis, rules,
};
use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Accounts in memory. Clones share the same accounts.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Box<dyn Fn() -> Micros + Send + Sync>,
    data: Mutex<Data>,
}

impl MemoryStore {
    /// An empty store. `clock` judges leases, nothing else; it may stand still.
    pub fn new(clock: impl Fn() -> Micros + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock: Box::new(clock),
                data: Mutex::default(),
            }),
        }
    }

    /// Makes a row unreadable, as a damaged disk would; the next write of it heals it. `false` if there is none.
    pub fn corrupt(&self, account: &AccountId, key: &Key) -> bool {
        let mut data = self.data();
        let row = data
            .accounts
            .get_mut(account)
            .and_then(|account| account.rows.get_mut(key));
        row.map(|row| row.content = None).is_some()
    }

    /// A store of its own that holds what this one holds now: a backup. Shares the clock only by `clock`.
    #[must_use]
    pub fn copy(&self, clock: impl Fn() -> Micros + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock: Box::new(clock),
                data: Mutex::new(self.data().clone()),
            }),
        }
    }

    /// Every call is one short critical section that leaves the data whole, so a poisoned lock is still good.
    fn data(&self) -> MutexGuard<'_, Data> {
        self.shared
            .data
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Micros {
        (self.shared.clock)()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} accounts)", self.data().accounts.len())
    }
}

impl Store for MemoryStore {
    async fn load(&self, account: &AccountId, keys: Vec<Key>) -> Result<Vec<Row>, StoreError> {
        let data = self.data();
        let account = data.account(account)?;
        Ok(keys.iter().map(|key| account.row(key)).collect())
    }

    async fn scan(&self, account: &AccountId, scan: Scan) -> Result<Vec<(Key, Row)>, StoreError> {
        rules::cursor(scan.table, scan.after.as_ref())?;
        let data = self.data();
        let account = data.account(account)?;
        let start = scan
            .after
            .as_ref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        Ok(account
            .rows
            .range((start, Bound::Unbounded))
            .filter(|(key, _)| key.table() == scan.table)
            .take(scan.limit as usize)
            .map(|(key, stored)| (key.clone(), stored.read()))
            .collect())
    }

    async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        let mut data = self.data();
        Ok(batches
            .into_iter()
            .map(|batch| data.commit(batch))
            .collect())
    }

    async fn create_account(
        &self,
        business: &BusinessId,
        name: &str,
    ) -> Result<AccountId, StoreError> {
        rules::account_name(name)?;
        self.data().create(business, name)
    }

    async fn accounts(&self, business: &BusinessId) -> Result<Vec<AccountInfo>, StoreError> {
        let now = self.now();
        let data = self.data();
        let mut accounts: Vec<_> = data
            .accounts
            .iter()
            .filter(|(id, _)| id.business == *business)
            .map(|(id, account)| AccountInfo {
                id: id.clone(),
                name: account.name.clone(),
                epoch: account.fence.epoch,
                holder: account.fence.holder_at(now).map(|holder| holder.who),
                device: account.row(&Key::Device),
            })
            .collect();
        accounts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(accounts)
    }

    async fn claim(
        &self,
        account: &AccountId,
        who: Incarnation,
        ttl: Micros,
    ) -> Result<Claim, StoreError> {
        let now = self.now();
        Ok(self.data().account_mut(account)?.fence.claim(who, ttl, now))
    }

    async fn renew(
        &self,
        who: Incarnation,
        leases: Vec<(AccountId, Epoch)>,
        ttl: Micros,
    ) -> Result<Vec<Renewal>, StoreError> {
        let now = self.now();
        let mut data = self.data();
        Ok(leases
            .into_iter()
            .map(|(account, epoch)| match data.accounts.get_mut(&account) {
                Some(account) => account.fence.renew(who, epoch, ttl, now),
                // An account that is gone has no epoch: whoever held it has lost it.
                None => Renewal::Lost { by: Epoch(0) },
            })
            .collect())
    }

    async fn release(
        &self,
        account: &AccountId,
        who: Incarnation,
        epoch: Epoch,
    ) -> Result<(), StoreError> {
        self.data().account_mut(account)?.fence.release(who, epoch);
        Ok(())
    }

    async fn enqueue(
        &self,
        account: &AccountId,
        id: MessageId,
        request: Record,
        at: UnixMillis,
    ) -> Result<bool, StoreError> {
        let key = Key::Mailbox(id);
        rules::key(&key)?;
        rules::record(Table::Mailbox, &request)?;
        let mut data = self.data();
        let account = data.account_mut(account)?;
        let absent = !account.rows.contains_key(&key);
        if absent {
            account.rows.insert(
                key,
                Stored {
                    content: Some(request),
                    written_at: at,
                },
            );
        }
        Ok(absent)
    }

    async fn retain(
        &self,
        account: &AccountId,
        table: Table,
        before: UnixMillis,
        limit: u32,
    ) -> Result<u32, StoreError> {
        rules::aged(table)?;
        Ok(self
            .data()
            .account_mut(account)?
            .retain(table, before, limit))
    }
}

#[derive(Clone, Default)]
struct Data {
    /// Numbers given so far; never given twice, so an old engine cannot meet a new account under its number.
    devices: u64,
    accounts: BTreeMap<AccountId, Account>,
}

impl Data {
    fn account(&self, id: &AccountId) -> Result<&Account, StoreError> {
        self.accounts.get(id).ok_or(StoreError::NoAccount)
    }

    fn account_mut(&mut self, id: &AccountId) -> Result<&mut Account, StoreError> {
        self.accounts.get_mut(id).ok_or(StoreError::NoAccount)
    }

    fn create(&mut self, business: &BusinessId, name: &str) -> Result<AccountId, StoreError> {
        if self
            .accounts
            .iter()
            .any(|(id, account)| id.business == *business && account.name == name)
        {
            return Err(StoreError::Exists);
        }
        self.devices += 1;
        let id = AccountId {
            business: business.clone(),
            device: self.devices,
        };
        let account = Account {
            name: name.to_owned(),
            fence: Fence::default(),
            rows: BTreeMap::new(),
        };
        self.accounts.insert(id.clone(), account);
        Ok(id)
    }

    fn commit(&mut self, batch: Batch) -> Outcome {
        if let Err(refusal) = rules::batch(&batch) {
            return Outcome::Rejected(refusal.to_string());
        }
        match self.accounts.get_mut(&batch.account) {
            Some(account) => account.commit(batch),
            None => Outcome::Rejected("no such account".to_owned()),
        }
    }
}

#[derive(Clone)]
struct Account {
    name: String,
    fence: Fence,
    rows: BTreeMap<Key, Stored>,
}

impl Account {
    fn row(&self, key: &Key) -> Row {
        self.rows.get(key).map_or(Row::Absent, Stored::read)
    }

    fn commit(&mut self, batch: Batch) -> Outcome {
        match self.fence.admit(batch.epoch, batch.seq) {
            Admission::Apply => {}
            Admission::Answer(outcome) => return outcome,
        }
        for (key, record) in batch.rows {
            match record {
                Some(record) => {
                    self.rows.insert(
                        key,
                        Stored {
                            content: Some(record),
                            written_at: batch.at,
                        },
                    );
                }
                None => {
                    self.rows.remove(&key);
                }
            }
        }
        Outcome::Committed
    }

    fn retain(&mut self, table: Table, before: UnixMillis, limit: u32) -> u32 {
        let mut old: Vec<(UnixMillis, Key)> = self
            .rows
            .iter()
            .filter(|(key, stored)| key.table() == table && stored.written_at < before)
            .map(|(key, stored)| (stored.written_at, key.clone()))
            .collect();
        // Oldest first, so that a small limit still makes progress where it matters.
        old.sort();
        old.truncate(limit as usize);
        for (_, key) in &old {
            self.rows.remove(key);
        }
        u32::try_from(old.len()).unwrap_or(limit)
    }
}

#[derive(Clone)]
struct Stored {
    /// `None` is a damaged row.
    content: Option<Record>,
    written_at: UnixMillis,
}

impl Stored {
    fn read(&self) -> Row {
        self.content.clone().map_or(Row::Corrupt, Row::Present)
    }
}

/// Who may write, and how far the history has come.
#[derive(Clone, Default)]
struct Fence {
    epoch: Epoch,
    applied: Seq,
    holder: Option<Holder>,
}

#[derive(Clone, Copy)]
struct Holder {
    who: Incarnation,
    until: Micros,
}

enum Admission {
    Apply,
    Answer(Outcome),
}

impl Fence {
    /// The one rule of writing. The epoch is judged first: a deposed holder that sends its last batch again must not
    /// take the successor's batch of the same number for its own.
    fn admit(&mut self, epoch: Epoch, seq: Seq) -> Admission {
        let answer = if epoch < self.epoch {
            Outcome::Fenced { by: self.epoch }
        } else if epoch > self.epoch {
            Outcome::Rejected(format!(
                "epoch {} was never granted; {} is in force",
                epoch.0, self.epoch.0
            ))
        } else if seq <= self.applied {
            Outcome::Committed
        } else if seq.0 - self.applied.0 > 1 {
            Outcome::Rejected(format!(
                "batch {} does not follow {}",
                seq.0, self.applied.0
            ))
        } else {
            self.applied = seq;
            return Admission::Apply;
        };
        Admission::Answer(answer)
    }

    fn holder_at(&self, now: Micros) -> Option<Holder> {
        self.holder.filter(|holder| now < holder.until)
    }

    fn claim(&mut self, who: Incarnation, ttl: Micros, now: Micros) -> Claim {
        if let Some(holder) = self.holder_at(now).filter(|holder| holder.who != who) {
            return Claim::Held {
                by: holder.who,
                remaining: holder.until.since(now),
            };
        }
        self.epoch = Epoch(self.epoch.0 + 1);
        self.holder = Some(Holder {
            who,
            until: now.plus(ttl),
        });
        Claim::Granted(Lease {
            epoch: self.epoch,
            applied: self.applied,
            ttl,
        })
    }

    /// A lease that has run out is still its holder's as long as nobody has taken it.
    fn renew(&mut self, who: Incarnation, epoch: Epoch, ttl: Micros, now: Micros) -> Renewal {
        match &mut self.holder {
            Some(holder) if holder.who == who && epoch == self.epoch => {
                holder.until = now.plus(ttl);
                Renewal::Renewed
            }
            _ => Renewal::Lost { by: self.epoch },
        }
    }

    fn release(&mut self, who: Incarnation, epoch: Epoch) {
        if epoch == self.epoch && self.holder.is_some_and(|holder| holder.who == who) {
            self.holder = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::conformance::Harness;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct InMemory {
        store: MemoryStore,
        clock: Arc<AtomicU64>,
    }

    impl InMemory {
        fn new() -> Self {
            let clock = Arc::new(AtomicU64::new(1));
            let hands = Arc::clone(&clock);
            Self {
                store: MemoryStore::new(move || Micros(hands.load(Ordering::SeqCst))),
                clock,
            }
        }
    }

    impl Harness for InMemory {
        type Store = MemoryStore;

        fn open(&self) -> MemoryStore {
            self.store.clone()
        }

        fn advance(&self, by: Micros) {
            self.clock.fetch_add(by.0, Ordering::SeqCst);
        }

        fn corrupt(&self, account: &AccountId, key: &Key) -> bool {
            self.store.corrupt(account, key)
        }
    }

    crate::store_conformance!(InMemory::new());
}
