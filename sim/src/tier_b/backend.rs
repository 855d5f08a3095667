//! What the database host keeps its accounts in. One seed gives one trace on each of them.

use baton_core::state::{
    AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Claim, Epoch, HandOver, HostInfo,
    HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome, Placement, Record, Row,
    Scan, Seal, Store, StoreError, Table, Term, UnixMillis, conformance::block_on,
    memory::MemoryStore,
};
use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The reference store.
    #[default]
    Memory,
}

impl Kind {
    /// Those that can be used on this machine; says loudly which cannot.
    #[must_use]
    pub fn available() -> Vec<Self> {
        vec![Self::Memory]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
        })
    }
}

/// The database's clock: virtual, set before each call.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreClock(Arc<AtomicU64>);

impl StoreClock {
    pub(crate) fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    fn now(&self) -> Micros {
        Micros(self.0.load(Ordering::Relaxed))
    }
}

/// A store, opened. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) enum Backend {
    Memory(MemoryStore),
}

impl Backend {
    pub(crate) fn open(kind: Kind, clock: &StoreClock) -> Self {
        match kind {
            Kind::Memory => {
                let clock = clock.clone();
                Self::Memory(MemoryStore::new(move || clock.now()))
            }
        }
    }

    /// What a standby that is asynchronous, or a backup, would hold now.
    pub(crate) fn copy(&self, clock: &StoreClock) -> Self {
        match self {
            Self::Memory(store) => {
                let clock = clock.clone();
                Self::Memory(store.copy(move || clock.now()))
            }
        }
    }

    /// Loses everything since `copy`.
    pub(crate) fn fail_over_to(&self, copy: &Self) {
        match (self, copy) {
            (Self::Memory(store), Self::Memory(copy)) => store.fail_over_to(copy),
        }
    }

    /// One call, to its end, while virtual time stands still. The store's own threads may work; nobody else does.
    pub(crate) fn run<T>(call: impl Future<Output = T>) -> T {
        // A future of a store may use channels of tokio's, which give way to other tasks now and then by tokio's own
        // count; in a call that blocks nobody would reset that count.
        block_on(tokio::task::unconstrained(call))
    }
}

macro_rules! each {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        impl Store for Backend {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> {
                match self {
                    Self::Memory(store) => store.$name($($arg),*).await,
                }
            })*
        }
    };
}

each! {
    load(account: &AccountId, keys: Vec<Key>) -> Vec<Row>;
    scan(account: &AccountId, scan: Scan) -> Vec<(Key, Row)>;
    commit(batches: Vec<Batch>) -> Vec<Outcome>;
    confirm(terms: Vec<(AccountId, Term)>) -> Vec<Outcome>;
    create_account(business: &BusinessId, name: &str) -> AccountId;
    delete_account(account: &AccountId) -> ();
    accounts(business: &BusinessId) -> Vec<AccountInfo>;
    tenants() -> Vec<BusinessId>;
    enqueue(account: &AccountId, id: MessageId, request: Record, at: UnixMillis) -> bool;
    retain(account: &AccountId, table: Table, before: UnixMillis, limit: u32) -> u32;
    join(who: Incarnation, info: HostInfo, ttl: Micros) -> u16;
    beat(who: Incarnation, beat: Beat) -> Beaten;
    hosts() -> Vec<HostView>;
    declare_dead(by: Incarnation, dead: Incarnation) -> bool;
    leave(who: Incarnation) -> ();
    claim(who: Incarnation, accounts: Vec<AccountId>) -> Vec<Claim>;
    release(who: Incarnation, accounts: Vec<(AccountId, Epoch)>) -> ();
    hand_over(who: Incarnation, account: &AccountId, epoch: Epoch, to: Incarnation) -> HandOver;
    held(who: Incarnation) -> Vec<(AccountId, Lease)>;
    orphans(after: Option<AccountId>, limit: u32) -> Vec<Orphan>;
    place(account: &AccountId, placement: Placement) -> ();
    retire(who: Incarnation, account: &AccountId, epoch: Epoch) -> bool;
    history() -> Seal;
    renew_history(now: Seal) -> Seal;
    vault(business: &BusinessId) -> Vec<(u32, Record)>;
    swap_vault(business: &BusinessId, number: u32, old: Option<Record>, new: Option<Record>) -> bool;
    swap_records(account: &AccountId, records: Vec<(Key, Record, Record)>) -> u32;
}
