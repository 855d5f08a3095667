//! The reference store: everything in memory, gone with the last handle.
//!
//! Small enough to be read as the definition of what [`Store`] promises. Its futures are ready at the first poll, and
//! its time is whatever the clock given to it says, so a simulation decides when a lease has run out.

use super::{
    AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Claim, Epoch, Fence, HandOver,
    HostInfo, HostState, HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome,
    Placement, Record, Roster, Row, Scan, Seal, Store, StoreError, Table, Term, UnixMillis, View,
    rules,
};
use std::{
    collections::{BTreeMap, BTreeSet},
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
            .and_then(|account| account.rows.get_mut(&key.table())?.get_mut(key));
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

    /// Loses everything that was committed since `backup` was copied off, as a failover to a standby does that was
    /// behind: a new timeline begins.
    pub fn fail_over_to(&self, backup: &Self) {
        let lost = backup.data().clone();
        let mut data = self.data();
        let timeline = data.history.timeline + 1;
        *data = lost;
        data.history.timeline = timeline;
    }

    /// Loses everything that was committed since `backup` was copied off, as somebody does who restores one and says so: a
    /// new generation begins.
    pub fn restore(&self, backup: &Self) {
        let lost = backup.data().clone();
        let mut data = self.data();
        let now = data.history;
        *data = lost;
        data.history = Seal {
            generation: now.generation + 1,
            ..now
        };
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
        let rows = account.rows.get(&scan.table).into_iter();
        Ok(rows
            .flat_map(|rows| rows.range((start, Bound::Unbounded)))
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

    async fn confirm(&self, terms: Vec<(AccountId, Term)>) -> Result<Vec<Outcome>, StoreError> {
        let data = self.data();
        let answer = |(id, term): &(AccountId, Term)| match data.accounts.get(id) {
            Some(account) => account
                .fence
                .refusal(term, data.history)
                .unwrap_or(Outcome::Committed),
            None => no_account(),
        };
        Ok(terms.iter().map(answer).collect())
    }

    async fn create_account(
        &self,
        business: &BusinessId,
        name: &str,
    ) -> Result<AccountId, StoreError> {
        rules::account_name(name)?;
        self.data().create(business, name)
    }

    async fn delete_account(&self, account: &AccountId) -> Result<(), StoreError> {
        let mut data = self.data();
        let holder = data.account(account)?.fence.holder;
        if holder.is_some_and(|holder| data.roster.is_live(holder)) {
            return Err(StoreError::Held);
        }
        data.accounts.remove(account);
        Ok(())
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
                holder: account
                    .fence
                    .holder
                    .filter(|&holder| data.roster.is_live(holder)),
                retired: account.fence.retired,
                placement: account.placement_at(now),
                device: account.row(&Key::Device),
            })
            .collect();
        accounts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(accounts)
    }

    async fn tenants(&self) -> Result<Vec<BusinessId>, StoreError> {
        Ok(self.data().tenants.iter().cloned().collect())
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
        if account.fence.retired {
            return Err(StoreError::Retired);
        }
        let rows = account.rows.entry(Table::Mailbox).or_default();
        let absent = !rows.contains_key(&key);
        if absent {
            rows.insert(
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

    async fn join(&self, who: Incarnation, info: HostInfo, ttl: Micros) -> Result<u16, StoreError> {
        rules::host(&info)?;
        let now = self.now();
        let mut data = self.data();
        if data.roster.state(who).is_some_and(|state| !state.is_live()) {
            return Err(StoreError::NotMember);
        }
        let full = || StoreError::Refused("there is no slot left for a host".to_owned());
        data.roster.join(who, info, ttl, now).ok_or_else(full)
    }

    async fn beat(&self, who: Incarnation, beat: Beat) -> Result<Beaten, StoreError> {
        let now = self.now();
        let mut data = self.data();
        let Some(newly_dead) = data.roster.beat(who, beat, now) else {
            return Ok(Beaten::Dead);
        };
        Ok(Beaten::Renewed(View {
            history: data.history,
            hosts: data.roster.view(now),
            newly_dead,
            gifts: data.roster.gifts(who),
        }))
    }

    async fn hosts(&self) -> Result<Vec<HostView>, StoreError> {
        let now = self.now();
        Ok(self.data().roster.view(now))
    }

    async fn drain(&self, who: Incarnation, drain: bool) -> Result<bool, StoreError> {
        Ok(self.data().roster.drain(who, drain))
    }

    async fn declare_dead(&self, by: Incarnation, dead: Incarnation) -> Result<bool, StoreError> {
        Ok(self.data().roster.declare_dead(by, dead))
    }

    async fn leave(&self, who: Incarnation) -> Result<(), StoreError> {
        self.data().roster.leave(who);
        Ok(())
    }

    async fn claim(
        &self,
        who: Incarnation,
        accounts: Vec<AccountId>,
    ) -> Result<Vec<Claim>, StoreError> {
        let mut data = self.data();
        let data = &mut *data;
        if !data.roster.is_live(who) {
            return Err(StoreError::NotMember);
        }
        let claim = |id: &AccountId| match data.accounts.get_mut(id) {
            Some(account) => account
                .fence
                .claim(who, data.history, |holder| data.roster.is_live(holder)),
            None => Claim::Missing,
        };
        Ok(accounts.iter().map(claim).collect())
    }

    async fn release(
        &self,
        who: Incarnation,
        accounts: Vec<(AccountId, Epoch)>,
    ) -> Result<(), StoreError> {
        let mut data = self.data();
        for (id, epoch) in accounts {
            if let Some(account) = data.accounts.get_mut(&id) {
                account.fence.release(who, epoch);
            }
        }
        Ok(())
    }

    async fn hand_over(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
        to: Incarnation,
    ) -> Result<HandOver, StoreError> {
        let mut data = self.data();
        if data.roster.state(to) != Some(HostState::Active) {
            return Ok(HandOver::Refused);
        }
        let history = data.history;
        let fence = &mut data.account_mut(account)?.fence;
        let answer = fence.hand_over(who, epoch, to, history);
        if matches!(answer, HandOver::Done { .. }) {
            data.roster.gift(to);
        }
        Ok(answer)
    }

    async fn held(&self, who: Incarnation) -> Result<Vec<(AccountId, Lease)>, StoreError> {
        let data = self.data();
        Ok(data
            .accounts
            .iter()
            .filter(|(_, account)| account.fence.holder == Some(who))
            .map(|(id, account)| (id.clone(), account.fence.lease(who, data.history)))
            .collect())
    }

    async fn orphans(
        &self,
        after: Option<AccountId>,
        limit: u32,
    ) -> Result<Vec<Orphan>, StoreError> {
        let now = self.now();
        let data = self.data();
        let start = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        Ok(data
            .accounts
            .range((start, Bound::Unbounded))
            .filter(|(_, account)| {
                let fence = &account.fence;
                account.wish.run
                    && account.not_before <= now
                    && !fence.retired
                    && !fence
                        .holder
                        .is_some_and(|holder| data.roster.is_live(holder))
            })
            .take(limit as usize)
            .map(|(id, account)| Orphan {
                account: id.clone(),
                pin: account.wish.pin.clone(),
                last: account.fence.holder,
            })
            .collect())
    }

    async fn misplaced(&self, who: Incarnation) -> Result<Vec<(AccountId, Placement)>, StoreError> {
        let data = self.data();
        let name = data.roster.name(who);
        Ok(data
            .accounts
            .iter()
            .filter(|(_, account)| {
                account.fence.holder == Some(who) && account.wish.is_elsewhere(name)
            })
            .map(|(id, account)| {
                let pause = Micros(0);
                let wish = account.wish.clone();
                (id.clone(), Placement { pause, ..wish })
            })
            .collect())
    }

    async fn mail(&self, who: Incarnation) -> Result<Vec<AccountId>, StoreError> {
        let data = self.data();
        Ok(data
            .accounts
            .iter()
            .filter(|(_, account)| account.fence.holder == Some(who))
            .filter(|(_, account)| {
                let rows = account.rows.get(&Table::Mailbox);
                rows.is_some_and(|rows| !rows.is_empty())
            })
            .map(|(id, _)| id.clone())
            .collect())
    }

    async fn place(&self, account: &AccountId, placement: Placement) -> Result<(), StoreError> {
        rules::placement(&placement)?;
        let until = self.now().plus(placement.pause);
        let mut data = self.data();
        let account = data.account_mut(account)?;
        (account.wish, account.not_before) = (placement, until);
        Ok(())
    }

    async fn retire(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
    ) -> Result<bool, StoreError> {
        let mut data = self.data();
        let fence = &mut data.account_mut(account)?.fence;
        let held = fence.release(who, epoch);
        fence.retired |= held;
        Ok(held)
    }

    async fn history(&self) -> Result<Seal, StoreError> {
        Ok(self.data().history)
    }

    async fn renew_history(&self, now: Seal) -> Result<Seal, StoreError> {
        let mut data = self.data();
        if data.history == now {
            data.history.generation += 1;
        }
        Ok(data.history)
    }

    async fn vault(&self, business: &BusinessId) -> Result<Vec<(u32, Record)>, StoreError> {
        let data = self.data();
        Ok(data
            .vault
            .iter()
            .filter(|((owner, _), _)| owner == business)
            .map(|((_, number), key)| (*number, key.clone()))
            .collect())
    }

    async fn swap_vault(
        &self,
        business: &BusinessId,
        number: u32,
        old: Option<Record>,
        new: Option<Record>,
    ) -> Result<bool, StoreError> {
        rules::vault(number, new.as_ref())?;
        let mut data = self.data();
        let place = (business.clone(), number);
        if data.vault.get(&place) != old.as_ref() {
            return Ok(false);
        }
        match new {
            Some(key) => {
                data.tenants.insert(business.clone());
                data.vault.insert(place, key);
            }
            None => {
                data.vault.remove(&place);
            }
        }
        Ok(true)
    }

    async fn swap_records(
        &self,
        account: &AccountId,
        records: Vec<(Key, Record, Record)>,
    ) -> Result<u32, StoreError> {
        for (key, _, new) in &records {
            rules::key(key)?;
            rules::record(key.table(), new)?;
        }
        let mut data = self.data();
        let account = data.account_mut(account)?;
        let mut swapped = 0;
        for (key, old, new) in records {
            let rows = account.rows.get_mut(&key.table());
            if let Some(stored) = rows.and_then(|rows| rows.get_mut(&key))
                && stored.content.as_ref() == Some(&old)
            {
                stored.content = Some(new);
                swapped += 1;
            }
        }
        Ok(swapped)
    }
}

#[derive(Clone)]
struct Data {
    history: Seal,
    /// Numbers given so far; never given twice, so an old engine cannot meet a new account under its number.
    devices: u64,
    tenants: BTreeSet<BusinessId>,
    accounts: BTreeMap<AccountId, Account>,
    roster: Roster,
    vault: BTreeMap<(BusinessId, u32), Record>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            history: Seal::FIRST,
            devices: 0,
            tenants: BTreeSet::new(),
            accounts: BTreeMap::new(),
            roster: Roster::default(),
            vault: BTreeMap::new(),
        }
    }
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
            fence: Fence::new(self.history),
            wish: Placement::default(),
            not_before: Micros(0),
            rows: BTreeMap::new(),
        };
        self.tenants.insert(business.clone());
        self.accounts.insert(id.clone(), account);
        Ok(id)
    }

    fn commit(&mut self, batch: Batch) -> Outcome {
        if let Err(refusal) = rules::batch(&batch) {
            return Outcome::Rejected(refusal.to_string());
        }
        match self.accounts.get_mut(&batch.account) {
            Some(account) => account.commit(batch, self.history),
            None => no_account(),
        }
    }
}

fn no_account() -> Outcome {
    Outcome::Rejected("no such account".to_owned())
}

#[derive(Clone)]
struct Account {
    name: String,
    fence: Fence,
    wish: Placement,
    not_before: Micros,
    /// By table, so that a look into one does not pass through the others.
    rows: BTreeMap<Table, BTreeMap<Key, Stored>>,
}

impl Account {
    fn row(&self, key: &Key) -> Row {
        let rows = self.rows.get(&key.table());
        let row = rows.and_then(|rows| rows.get(key));
        row.map_or(Row::Absent, Stored::read)
    }

    fn placement_at(&self, now: Micros) -> Placement {
        Placement {
            pause: self.not_before.since(now),
            ..self.wish.clone()
        }
    }

    fn commit(&mut self, batch: Batch, history: Seal) -> Outcome {
        if let Some(answer) = self.fence.admit(&batch, history) {
            return answer;
        }
        for (key, record) in batch.rows {
            let rows = self.rows.entry(key.table()).or_default();
            match record {
                Some(record) => {
                    rows.insert(
                        key,
                        Stored {
                            content: Some(record),
                            written_at: batch.at,
                        },
                    );
                }
                None => {
                    rows.remove(&key);
                }
            }
        }
        Outcome::Committed
    }

    fn retain(&mut self, table: Table, before: UnixMillis, limit: u32) -> u32 {
        let Some(rows) = self.rows.get_mut(&table) else {
            return 0;
        };
        let mut old: Vec<(UnixMillis, Key)> = rows
            .iter()
            .filter(|(_, stored)| stored.written_at < before)
            .map(|(key, stored)| (stored.written_at, key.clone()))
            .collect();
        // Oldest first, so that a small limit still makes progress where it matters.
        old.sort();
        old.truncate(limit as usize);
        for (_, key) in &old {
            rows.remove(key);
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
