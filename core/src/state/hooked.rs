//! A store for tests that somebody meddles with: before and after each call, a hook may do something else or let the
//! call fail.

use super::{
    AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Change, Claim, Epoch, HandOver,
    HostInfo, HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome, Placement,
    Record, Row, Scan, Seal, Store, StoreError, Table, Term, UnixMillis,
};
use std::{future::Future, sync::Arc};

/// When the hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// An error: the call is not made.
    Before,
    /// An error: the call was made, but nobody learns of it.
    After,
}

type Hook = dyn Fn(&'static str, Moment) -> Result<(), StoreError> + Send + Sync;

#[derive(Clone)]
pub(crate) struct Hooked<S> {
    inner: S,
    hook: Arc<Hook>,
}

impl<S: Store> Hooked<S> {
    pub(crate) fn new(
        inner: S,
        hook: impl Fn(&'static str, Moment) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            hook: Arc::new(hook),
        }
    }

    async fn call<T: Send>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        (self.hook)(name, Moment::Before)?;
        let answer = call.await?;
        (self.hook)(name, Moment::After)?;
        Ok(answer)
    }
}

macro_rules! delegate {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        impl<S: Store> Store for Hooked<S> {
            $(async fn $name(&self, $($argument: $kind),*) -> Result<$answer, StoreError> {
                self.call(stringify!($name), self.inner.$name($($argument),*)).await
            })*
        }
    };
}

delegate! {
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
    drain(who: Incarnation, drain: bool) -> bool;
    declare_dead(by: Incarnation, dead: Incarnation) -> bool;
    leave(who: Incarnation) -> ();
    claim(who: Incarnation, accounts: Vec<AccountId>) -> Vec<Claim>;
    release(who: Incarnation, accounts: Vec<(AccountId, Epoch)>) -> ();
    hand_over(who: Incarnation, account: &AccountId, epoch: Epoch, to: Incarnation) -> HandOver;
    held(who: Incarnation) -> Vec<(AccountId, Lease)>;
    orphans(after: Option<AccountId>, limit: u32) -> Vec<Orphan>;
    misplaced(who: Incarnation) -> Vec<(AccountId, Placement)>;
    mail(who: Incarnation) -> Vec<AccountId>;
    place(account: &AccountId, placement: Placement) -> ();
    retire(who: Incarnation, account: &AccountId, epoch: Epoch) -> bool;
    history() -> Seal;
    renew_history(now: Seal) -> Seal;
    watch(who: Incarnation) -> Change;
    vault(business: &BusinessId) -> Vec<(u32, Record)>;
    swap_vault(business: &BusinessId, number: u32, old: Option<Record>, new: Option<Record>) -> bool;
    swap_records(account: &AccountId, records: Vec<(Key, Record, Record)>) -> u32;
}
