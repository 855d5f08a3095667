//! A whole [`Store`] on any ordered key-value database.
//!
//! A database that has transactions over sorted pairs of bytes implements [`Pairs`] (read, step, write) and
//! [`KeyValue`] (run this as one transaction); [`KvStore`] makes a store of it, by the rules of [`Fence`] and
//! [`Roster`](super::Roster). `examples/third_party_store.rs` does that with one file and no dependency.
//!
//! It is meant to be short and right. Every call is one transaction, futures are ready when they are first polled, and
//! what looks for all accounts of a host looks at all accounts; a store for many accounts would keep an index there.
//!
//! | key | value |
//! |---|---|
//! | `a` business NUL number | account: name, fence, placement |
//! | `c` | generation, numbers given so far |
//! | `h` slot | host |
//! | `n` business NUL name | nothing: the name is taken |
//! | `r` business NUL number, [encoded](super::columns::encode) key | time, record |
//! | `t` business | nothing: the tenant exists |
//! | `v` business NUL number | wrapped key |

mod pairs;

use super::{
    AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Claim, Epoch, Fence, HandOver,
    HostInfo, HostState, HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome,
    Placement, Record, Row, Scan, Seal, Store, StoreError, Table, Term, UnixMillis, View, columns,
    rules,
};
use pairs::{
    Account, Cluster, account_key, accounts, business, content, damaged, put_roster, range, roster,
    row_key, row_prefix, table, tenant, value, written_at,
};

type Answer<T> = Result<T, StoreError>;

/// Sorted pairs of bytes, inside a transaction. Reading sees what the transaction has written.
pub trait Pairs {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Answer<Option<Vec<u8>>>;

    /// The first pair whose key is not below `from`.
    fn first(&self, from: &[u8]) -> Answer<Option<(Vec<u8>, Vec<u8>)>>;

    /// Writes a value, or deletes it.
    fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Answer<()>;
}

/// A database of pairs. Clones share it.
pub trait KeyValue: Clone + Send + Sync + 'static {
    /// Runs `body` as one transaction: as if it were alone, whole or not at all, and durable when this returns. An
    /// error of `body` changes nothing. It may be run again where that takes several attempts.
    fn transact<T>(&self, body: impl FnMut(&mut dyn Pairs) -> Answer<T>) -> Answer<T>;

    /// The clock that judges leases: the same for all who share the database.
    fn now(&self) -> Micros;
}

/// A store on a database of pairs.
#[derive(Clone, Debug)]
pub struct KvStore<D>(pub D);

impl<D: KeyValue> Store for KvStore<D> {
    async fn load(&self, account: &AccountId, keys: Vec<Key>) -> Answer<Vec<Row>> {
        self.0.transact(|pairs| {
            Account::get(pairs, account)?;
            keys.iter()
                .map(|key| {
                    let row = pairs.get(&row_key(account, key))?;
                    Ok(row.map_or(Row::Absent, |value| content(&value)))
                })
                .collect()
        })
    }

    async fn scan(&self, account: &AccountId, scan: Scan) -> Answer<Vec<(Key, Row)>> {
        rules::cursor(scan.table, scan.after.as_ref())?;
        self.0.transact(|pairs| {
            Account::get(pairs, account)?;
            let after = scan.after.as_ref().map(|key| row_key(account, key));
            table(
                pairs,
                account,
                scan.table,
                after,
                scan.limit,
                |key, value| (key, content(&value)),
            )
        })
    }

    async fn commit(&self, batches: Vec<Batch>) -> Answer<Vec<Outcome>> {
        self.0.transact(|pairs| {
            let history = Cluster::get(pairs)?.history();
            batches
                .iter()
                .map(|batch| apply(pairs, batch, history))
                .collect()
        })
    }

    /// A transaction that writes, as durable as everything before it.
    async fn confirm(&self, terms: Vec<(AccountId, Term)>) -> Answer<Vec<Outcome>> {
        self.0.transact(|pairs| {
            let history = Cluster::get(pairs)?.history();
            let mut outcomes = Vec::with_capacity(terms.len());
            for (id, term) in &terms {
                outcomes.push(match Account::get(pairs, id) {
                    Ok(account) => {
                        account.put(pairs, id)?;
                        let refusal = account.fence().refusal(term, history);
                        refusal.unwrap_or(Outcome::Committed)
                    }
                    Err(StoreError::NoAccount) => no_account(),
                    Err(error) => return Err(error),
                });
            }
            Ok(outcomes)
        })
    }

    async fn create_account(&self, business: &BusinessId, name: &str) -> Answer<AccountId> {
        rules::account_name(name)?;
        self.0.transact(|pairs| {
            let named = [&tenant(b'n', business)[..], name.as_bytes()].concat();
            if pairs.get(&named)?.is_some() {
                return Err(StoreError::Exists);
            }
            let mut cluster = Cluster::get(pairs)?;
            cluster.devices += 1;
            cluster.put(pairs)?;
            let id = AccountId {
                business: business.clone(),
                device: cluster.devices,
            };
            let mut account = Account {
                name: name.to_owned(),
                ..Account::default()
            };
            account.set_fence(&Fence::new(cluster.history()));
            account.put(pairs, &id)?;
            pairs.put(named, Some(Vec::new()))?;
            pairs.put(tenant(b't', business), Some(Vec::new()))?;
            Ok(id)
        })
    }

    async fn delete_account(&self, account: &AccountId) -> Answer<()> {
        self.0.transact(|pairs| {
            let found = Account::get(pairs, account)?;
            let roster = roster(pairs)?;
            if found.fence().holder.is_some_and(|who| roster.is_live(who)) {
                return Err(StoreError::Held);
            }
            let rows = row_prefix(account);
            while let Some((key, _)) = pairs
                .first(&rows)?
                .filter(|(key, _)| key.starts_with(&rows))
            {
                pairs.put(key, None)?;
            }
            let named = [&tenant(b'n', &account.business)[..], found.name.as_bytes()].concat();
            pairs.put(named, None)?;
            pairs.put(account_key(b'a', account), None)
        })
    }

    async fn accounts(&self, business: &BusinessId) -> Answer<Vec<AccountInfo>> {
        let now = self.0.now();
        self.0.transact(|pairs| {
            let roster = roster(pairs)?;
            let mut infos = Vec::new();
            for (id, account) in accounts(pairs, &tenant(b'a', business), None)? {
                let fence = account.fence();
                let device = pairs.get(&row_key(&id, &Key::Device))?;
                infos.push(AccountInfo {
                    id,
                    epoch: fence.epoch,
                    holder: fence.holder.filter(|&who| roster.is_live(who)),
                    retired: fence.retired,
                    placement: Placement {
                        run: account.run,
                        pin: account.pin.as_deref().map(Into::into),
                        pause: Micros(account.not_before).since(now),
                    },
                    device: device.map_or(Row::Absent, |value| content(&value)),
                    name: account.name,
                });
            }
            infos.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(infos)
        })
    }

    async fn tenants(&self) -> Answer<Vec<BusinessId>> {
        self.0.transact(|pairs| {
            let names = range(pairs, b"t", None, u32::MAX)?;
            let business = |(key, _): (Vec<u8>, Vec<u8>)| {
                let name = key.get(1..).and_then(|name| name.strip_suffix(&[0]));
                business(name.ok_or_else(damaged)?)
            };
            names.into_iter().map(business).collect()
        })
    }

    async fn enqueue(
        &self,
        account: &AccountId,
        id: MessageId,
        request: Record,
        at: UnixMillis,
    ) -> Answer<bool> {
        let key = Key::Mailbox(id);
        rules::key(&key)?;
        rules::record(Table::Mailbox, &request)?;
        self.0.transact(|pairs| {
            if Account::get(pairs, account)?.retired {
                return Err(StoreError::Retired);
            }
            let key = row_key(account, &key);
            let absent = pairs.get(&key)?.is_none();
            if absent {
                pairs.put(key, Some(value(&request, at)))?;
            }
            Ok(absent)
        })
    }

    async fn retain(
        &self,
        account: &AccountId,
        aged: Table,
        before: UnixMillis,
        limit: u32,
    ) -> Answer<u32> {
        rules::aged(aged)?;
        self.0.transact(|pairs| {
            Account::get(pairs, account)?;
            let mut old = table(pairs, account, aged, None, u32::MAX, |key, value| {
                (written_at(&value), key)
            })?;
            old.retain(|(at, _)| *at < before);
            old.sort();
            old.truncate(limit as usize);
            for (_, key) in &old {
                pairs.put(row_key(account, key), None)?;
            }
            Ok(u32::try_from(old.len()).unwrap_or(limit))
        })
    }

    async fn join(&self, who: Incarnation, info: HostInfo, ttl: Micros) -> Answer<u16> {
        rules::host(&info)?;
        let now = self.0.now();
        self.0.transact(|pairs| {
            let mut roster = roster(pairs)?;
            if roster.state(who).is_some_and(|state| !state.is_live()) {
                return Err(StoreError::NotMember);
            }
            let full = || StoreError::Refused("there is no slot left for a host".to_owned());
            let slot = roster.join(who, info.clone(), ttl, now).ok_or_else(full)?;
            put_roster(pairs, &roster)?;
            Ok(slot)
        })
    }

    async fn beat(&self, who: Incarnation, beat: Beat) -> Answer<Beaten> {
        let now = self.0.now();
        self.0.transact(|pairs| {
            let mut roster = roster(pairs)?;
            let Some(newly_dead) = roster.beat(who, beat, now) else {
                return Ok(Beaten::Dead);
            };
            put_roster(pairs, &roster)?;
            Ok(Beaten::Renewed(View {
                history: Cluster::get(pairs)?.history(),
                hosts: roster.view(now),
                newly_dead,
                gifts: roster.gifts(who),
            }))
        })
    }

    async fn hosts(&self) -> Answer<Vec<HostView>> {
        let now = self.0.now();
        self.0.transact(|pairs| Ok(roster(pairs)?.view(now)))
    }

    async fn drain(&self, who: Incarnation, drain: bool) -> Answer<bool> {
        self.0.transact(|pairs| {
            let mut roster = roster(pairs)?;
            let lives = roster.drain(who, drain);
            put_roster(pairs, &roster)?;
            Ok(lives)
        })
    }

    async fn declare_dead(&self, by: Incarnation, dead: Incarnation) -> Answer<bool> {
        self.0.transact(|pairs| {
            let mut roster = roster(pairs)?;
            let declared = roster.declare_dead(by, dead);
            put_roster(pairs, &roster)?;
            Ok(declared)
        })
    }

    async fn leave(&self, who: Incarnation) -> Answer<()> {
        self.0.transact(|pairs| {
            let mut roster = roster(pairs)?;
            roster.leave(who);
            put_roster(pairs, &roster)
        })
    }

    async fn claim(&self, who: Incarnation, wanted: Vec<AccountId>) -> Answer<Vec<Claim>> {
        self.0.transact(|pairs| {
            let roster = roster(pairs)?;
            if !roster.is_live(who) {
                return Err(StoreError::NotMember);
            }
            let history = Cluster::get(pairs)?.history();
            let claim = |id| {
                change(pairs, id, |fence| {
                    fence.claim(who, history, |holder| roster.is_live(holder))
                })
                .or_else(|error| match error {
                    StoreError::NoAccount => Ok(Claim::Missing),
                    other => Err(other),
                })
            };
            wanted.iter().map(claim).collect()
        })
    }

    async fn release(&self, who: Incarnation, given: Vec<(AccountId, Epoch)>) -> Answer<()> {
        self.0.transact(|pairs| {
            for (id, epoch) in &given {
                match change(pairs, id, |fence| fence.release(who, *epoch)) {
                    Ok(_) | Err(StoreError::NoAccount) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    async fn hand_over(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
        to: Incarnation,
    ) -> Answer<HandOver> {
        self.0.transact(|pairs| {
            let mut roster = roster(pairs)?;
            if roster.state(to) != Some(HostState::Active) {
                return Ok(HandOver::Refused);
            }
            let history = Cluster::get(pairs)?.history();
            let answer = change(pairs, account, |fence| {
                fence.hand_over(who, epoch, to, history)
            })?;
            if matches!(answer, HandOver::Done { .. }) {
                roster.gift(to);
                put_roster(pairs, &roster)?;
            }
            Ok(answer)
        })
    }

    async fn held(&self, who: Incarnation) -> Answer<Vec<(AccountId, Lease)>> {
        self.0.transact(|pairs| {
            let history = Cluster::get(pairs)?.history();
            let mut held = accounts(pairs, b"a", None)?;
            held.retain(|(_, account)| account.holder == Some(who.0));
            let lease = |account: Account| account.fence().lease(who, history);
            Ok(held
                .into_iter()
                .map(|(id, account)| (id, lease(account)))
                .collect())
        })
    }

    async fn orphans(&self, after: Option<AccountId>, limit: u32) -> Answer<Vec<Orphan>> {
        let now = self.0.now();
        self.0.transact(|pairs| {
            let roster = roster(pairs)?;
            let mut orphans = Vec::new();
            for (id, account) in accounts(pairs, b"a", after.as_ref())? {
                let last = account.fence().holder;
                let waits = account.run && !account.retired && Micros(account.not_before) <= now;
                if waits && !last.is_some_and(|who| roster.is_live(who)) {
                    orphans.push(Orphan {
                        account: id,
                        pin: account.pin.map(Into::into),
                        last,
                    });
                }
            }
            orphans.truncate(limit as usize);
            Ok(orphans)
        })
    }

    async fn misplaced(&self, who: Incarnation) -> Answer<Vec<(AccountId, Placement)>> {
        self.0.transact(|pairs| {
            let roster = roster(pairs)?;
            let mut misplaced = Vec::new();
            for (id, account) in accounts(pairs, b"a", None)? {
                let placement = Placement {
                    run: account.run,
                    pin: account.pin.map(Into::into),
                    pause: Micros(0),
                };
                if account.holder == Some(who.0) && placement.is_elsewhere(roster.name(who)) {
                    misplaced.push((id, placement));
                }
            }
            Ok(misplaced)
        })
    }

    async fn mail(&self, who: Incarnation) -> Answer<Vec<AccountId>> {
        self.0.transact(|pairs| {
            let mut mail = Vec::new();
            for (id, account) in accounts(pairs, b"a", None)? {
                let mailbox = [&row_prefix(&id)[..], &[columns::prefix(Table::Mailbox)]].concat();
                if account.holder == Some(who.0) && !range(pairs, &mailbox, None, 1)?.is_empty() {
                    mail.push(id);
                }
            }
            Ok(mail)
        })
    }

    async fn place(&self, account: &AccountId, placement: Placement) -> Answer<()> {
        rules::placement(&placement)?;
        let not_before = self.0.now().plus(placement.pause).0;
        self.0.transact(|pairs| {
            let placed = Account {
                run: placement.run,
                pin: placement.pin.as_deref().map(str::to_owned),
                not_before,
                ..Account::get(pairs, account)?
            };
            placed.put(pairs, account)
        })
    }

    async fn retire(&self, who: Incarnation, account: &AccountId, epoch: Epoch) -> Answer<bool> {
        self.0.transact(|pairs| {
            change(pairs, account, |fence| {
                let held = fence.release(who, epoch);
                fence.retired |= held;
                held
            })
        })
    }

    async fn history(&self) -> Answer<Seal> {
        self.0.transact(|pairs| Ok(Cluster::get(pairs)?.history()))
    }

    async fn renew_history(&self, now: Seal) -> Answer<Seal> {
        self.0.transact(|pairs| {
            let mut cluster = Cluster::get(pairs)?;
            if cluster.history() == now {
                cluster.renewals += 1;
                cluster.put(pairs)?;
            }
            Ok(cluster.history())
        })
    }

    async fn vault(&self, business: &BusinessId) -> Answer<Vec<(u32, Record)>> {
        self.0.transact(|pairs| {
            let keys = range(pairs, &tenant(b'v', business), None, u32::MAX)?;
            let number = |key: &[u8]| key.last_chunk().map(|number| u32::from_be_bytes(*number));
            keys.into_iter()
                .map(|(key, value)| {
                    let number = number(&key).ok_or_else(damaged)?;
                    Ok((number, Record(value.into())))
                })
                .collect()
        })
    }

    async fn swap_vault(
        &self,
        business: &BusinessId,
        number: u32,
        old: Option<Record>,
        new: Option<Record>,
    ) -> Answer<bool> {
        rules::vault(number, new.as_ref())?;
        let key = [&tenant(b'v', business)[..], &number.to_be_bytes()].concat();
        self.0.transact(|pairs| {
            let same = pairs.get(&key)?.as_deref() == old.as_ref().map(|old| &old.0[..]);
            if same {
                if new.is_some() {
                    pairs.put(tenant(b't', business), Some(Vec::new()))?;
                }
                pairs.put(key.clone(), new.as_ref().map(|new| new.0.to_vec()))?;
            }
            Ok(same)
        })
    }

    async fn swap_records(
        &self,
        account: &AccountId,
        records: Vec<(Key, Record, Record)>,
    ) -> Answer<u32> {
        for (key, _, new) in &records {
            rules::key(key)?;
            rules::record(key.table(), new)?;
        }
        self.0.transact(|pairs| {
            Account::get(pairs, account)?;
            let mut swapped = 0;
            for (key, old, new) in &records {
                let key = row_key(account, key);
                if let Some(found) = pairs.get(&key)?
                    && content(&found) == Row::Present(old.clone())
                {
                    pairs.put(key, Some(value(new, written_at(&found))))?;
                    swapped += 1;
                }
            }
            Ok(swapped)
        })
    }
}

/// Moves the fence and writes the rows, or says why not.
fn apply(pairs: &mut dyn Pairs, batch: &Batch, history: Seal) -> Answer<Outcome> {
    if let Err(refusal) = rules::batch(batch) {
        return Ok(Outcome::Rejected(refusal.to_string()));
    }
    match change(pairs, &batch.account, |fence| fence.admit(batch, history)) {
        Ok(None) => {}
        Ok(Some(answer)) => return Ok(answer),
        Err(StoreError::NoAccount) => return Ok(no_account()),
        Err(error) => return Err(error),
    }
    for (key, record) in &batch.rows {
        let value = record.as_ref().map(|record| value(record, batch.at));
        pairs.put(row_key(&batch.account, key), value)?;
    }
    Ok(Outcome::Committed)
}

/// Lets `act` do something to the fence of an account. Written back in any case: an answer is as durable as a change.
fn change<T>(
    pairs: &mut dyn Pairs,
    id: &AccountId,
    act: impl FnOnce(&mut Fence) -> T,
) -> Answer<T> {
    let mut account = Account::get(pairs, id)?;
    let mut fence = account.fence();
    let answer = act(&mut fence);
    account.set_fence(&fence);
    account.put(pairs, id)?;
    Ok(answer)
}

fn no_account() -> Outcome {
    Outcome::Rejected("no such account".to_owned())
}
