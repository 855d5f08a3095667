//! What a database has to offer to keep accounts.

use super::{
    AccountId, Batch, Beat, Beaten, BusinessId, Change, Claim, Epoch, HandOver, HostInfo, HostView,
    Incarnation, Key, Lease, MessageId, Micros, Orphan, Placement, Record, Seal, Table, Term,
    UnixMillis,
};
use std::future::Future;

/// What was found under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// No such row.
    Absent,
    /// The row as it was committed last.
    Present(Record),
    /// There is a row, but it cannot be read. Affects this record only; the engine reports table and key.
    Corrupt,
}

/// A slice of one table of one account, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Which table.
    pub table: Table,
    /// Start behind this key; `None` starts at the beginning.
    pub after: Option<Key>,
    /// At most this many rows.
    pub limit: u32,
}

/// What became of one batch of a [`Store::commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable (perhaps since an earlier call).
    Committed,
    /// The account belongs to a later epoch. Nothing was written.
    Fenced {
        /// The epoch in force.
        by: Epoch,
    },
    /// The database's history is not the one that the batch belongs to, or the account is not sealed in it: commits
    /// may have been lost. Nothing was written; claim anew, and re-seal first.
    Unsealed {
        /// The history now.
        history: Seal,
    },
    /// The batch does not fit the account's history or the tables. Nothing was written; sending it again is no use.
    Rejected(String),
}

/// Why a call failed as a whole. The caller does not know whether a commit took effect and sends it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database cannot be reached or is too busy; trying again can help.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The database refuses: wrong schema, missing rights, no space, read-only.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// There is no such account.
    #[error("no such account")]
    NoAccount,
    /// The name is taken.
    #[error("an account of that name exists")]
    Exists,
    /// A live host has the account.
    #[error("the account is held by a live host")]
    Held,
    /// It was moved to another database: what is meant for it belongs there.
    #[error("the account was moved to another database")]
    Retired,
    /// The caller is not, or not any more, a live host of this database. Join under a new incarnation.
    #[error("this host is not in the roster: it was declared dead, has left or never joined")]
    NotMember,
}

impl StoreError {
    /// Whether the same call can succeed later without anybody doing anything.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether the caller has lost what it held.
    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        matches!(self, Self::NotMember)
    }
}

/// One line of [`Store::accounts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountInfo {
    /// Its number.
    pub id: AccountId,
    /// What its users call it; unique within the business.
    pub name: String,
    /// The fence: who holds it, under which epoch.
    pub epoch: Epoch,
    /// The live host that has it; `None` if it is free or its last holder is gone.
    pub holder: Option<Incarnation>,
    /// Moved to another database; it cannot be claimed here any more.
    pub retired: bool,
    /// What is wished for it.
    pub placement: Placement,
    /// The device row, for address and state (decode with [`crate::flow::describe_device`]).
    pub device: Row,
}

/// A database that keeps accounts. Cheap to clone; no runtime types.
///
/// **Fencing.** Every account has a [fence](super::Fence). [`claim`](Self::claim) raises its epoch;
/// [`commit`](Self::commit) compares the whole [`Term`] with it in the same transaction that writes. No fence, no
/// write. Host leases only decide when an account may be claimed; safety never depends on them or on any clock.
///
/// **Order.** A batch is applied only if its `seq` follows the last applied one; a `seq` at or below that is reported
/// as [`Outcome::Committed`] and changes nothing. When `commit` returns, what it reports as committed survives a power
/// cut.
///
/// **Three groups of calls.** Rows and accounts; ownership ([`join`](Self::join) and what follows it); and keys of
/// tenants ([`vault`](Self::vault) and what follows), which only an encrypting store on top uses.
pub trait Store: Clone + Send + Sync + 'static {
    /// The rows under `keys`, in that order.
    fn load(
        &self,
        account: &AccountId,
        keys: Vec<Key>,
    ) -> impl Future<Output = Result<Vec<Row>, StoreError>> + Send;

    /// Rows of one table in key order. A row that cannot be read is [`Row::Corrupt`], never left out.
    fn scan(
        &self,
        account: &AccountId,
        scan: Scan,
    ) -> impl Future<Output = Result<Vec<(Key, Row)>, StoreError>> + Send;

    /// Applies each batch whole or not at all; one outcome per batch, in order. Batches of one account may follow each
    /// other in one call. One account's trouble never fails its neighbours.
    ///
    /// After an `Err` the outcome is not known, and sending the same batches again settles it: what was applied is not
    /// applied again, and the answer is a write of its own (not a look at a row whose durability is in doubt).
    fn commit(
        &self,
        batches: Vec<Batch>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send;

    /// A commit of nothing: whether each term is in force, settled by a write, so that no older write can come to light
    /// behind it. [`Outcome::Committed`] says yes.
    fn confirm(
        &self,
        terms: Vec<(AccountId, Term)>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send;

    /// Creates an account. Names are 1 to 64 characters of `A-Z a-z 0-9 _ - .`, unique within the business. It is not
    /// wished to run.
    fn create_account(
        &self,
        business: &BusinessId,
        name: &str,
    ) -> impl Future<Output = Result<AccountId, StoreError>> + Send;

    /// Deletes an account and all its rows, for good. [`StoreError::Held`] while a live host has it.
    fn delete_account(
        &self,
        account: &AccountId,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// All accounts of a business, by name.
    fn accounts(
        &self,
        business: &BusinessId,
    ) -> impl Future<Output = Result<Vec<AccountInfo>, StoreError>> + Send;

    /// All businesses that have accounts or keys, in order.
    fn tenants(&self) -> impl Future<Output = Result<Vec<BusinessId>, StoreError>> + Send;

    /// Leaves a request to send for the owner, whoever that is: a row under [`Key::Mailbox`] that the owner picks up.
    /// `false` if there is one under this id already (nothing changes then). An account that was [retired](Self::retire)
    /// takes none ([`StoreError::Retired`]): nobody would ever read it.
    fn enqueue(
        &self,
        account: &AccountId,
        id: MessageId,
        request: Record,
        at: UnixMillis,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Deletes rows of `table` written before `before`, at most `limit`; returns how many. Only for tables whose rows
    /// lose their value with age ([`Table::Seen`], [`Table::Sent`], [`Table::MessageSecret`]); others are refused.
    fn retain(
        &self,
        account: &AccountId,
        table: Table,
        before: UnixMillis,
        limit: u32,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send;

    /// Takes a host into the roster under a fresh incarnation and returns its slot, from 1. It lives until it leaves or
    /// is declared dead, which can happen once `ttl` has passed without a [`beat`](Self::beat). Calling again changes
    /// nothing but the lease. An incarnation that has ended is refused ([`StoreError::NotMember`]).
    fn join(
        &self,
        who: Incarnation,
        info: HostInfo,
        ttl: Micros,
    ) -> impl Future<Output = Result<u16, StoreError>> + Send;

    /// Renews a host's lease and shows it the fleet; declares dead whose lease has run out, if the caller's own
    /// renewals have come without a gap for that long (see [`Roster::beat`](super::Roster::beat)).
    fn beat(
        &self,
        who: Incarnation,
        beat: Beat,
    ) -> impl Future<Output = Result<Beaten, StoreError>> + Send;

    /// The roster, for people who look.
    fn hosts(&self) -> impl Future<Output = Result<Vec<HostView>, StoreError>> + Send;

    /// Wishes that a host gives everything away and takes nothing, or takes that wish back. The host reads it in the
    /// answer to its next [`beat`](Self::beat) ([`HostView::drain`]). It ends with the incarnation. `false` if that does
    /// not live.
    fn drain(
        &self,
        who: Incarnation,
        drain: bool,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Declares `dead` dead on the word of `by`, who knows better than the lease. `false` if it did not live.
    fn declare_dead(
        &self,
        by: Incarnation,
        dead: Incarnation,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// A host goes properly: what it still holds is free at once.
    fn leave(&self, who: Incarnation) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Takes each account that is free or whose holder does not live: raises its epoch. One answer per account, in
    /// order. A holder that claims again gets a new epoch too. [`StoreError::NotMember`] if `who` does not live. A
    /// store with presence also takes what is held by a host that is provably dead.
    fn claim(
        &self,
        who: Incarnation,
        accounts: Vec<AccountId>,
    ) -> impl Future<Output = Result<Vec<Claim>, StoreError>> + Send;

    /// Gives accounts up that are still held by `who` under that epoch. The epoch stays, so that a later claim raises
    /// it.
    fn release(
        &self,
        who: Incarnation,
        accounts: Vec<(AccountId, Epoch)>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives an account from `who` to `to` in one step: nobody else can slip in.
    fn hand_over(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
        to: Incarnation,
    ) -> impl Future<Output = Result<HandOver, StoreError>> + Send;

    /// What the store thinks `who` holds; how a successor learns of what was handed over to it.
    fn held(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<(AccountId, Lease)>, StoreError>> + Send;

    /// Accounts of all businesses that are wished to run and have no live holder, in order, behind `after`.
    fn orphans(
        &self,
        after: Option<AccountId>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Orphan>, StoreError>> + Send;

    /// Accounts held by `who` that are wished elsewhere, in order: not to run, or pinned to a host of another name than
    /// `who` has. Pauses do not count, and are given as 0.
    fn misplaced(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<(AccountId, Placement)>, StoreError>> + Send;

    /// Accounts held by `who` that have requests in their [mailbox](Self::enqueue), in order. One call for all, and it
    /// costs no more than there are accounts with mail: a host asks it several times a second.
    fn mail(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<AccountId>, StoreError>> + Send;

    /// Changes what is wished for an account.
    fn place(
        &self,
        account: &AccountId,
        placement: Placement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Marks an account as moved to another database, if it is held by `who` under `epoch`; frees it. It can never be
    /// claimed here again, only deleted. `false` if it was not theirs.
    fn retire(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The database's history.
    fn history(&self) -> impl Future<Output = Result<Seal, StoreError>> + Send;

    /// Begins a new generation, after a restore or when commits are known to be lost, if the history is still `now`.
    /// Returns the history in force.
    fn renew_history(&self, now: Seal) -> impl Future<Output = Result<Seal, StoreError>> + Send;

    /// Waits for news that a host need not wait for the next beat to learn: an accelerator, never needed. May be
    /// dropped at any time. A store without such means never answers.
    fn watch(&self, who: Incarnation) -> impl Future<Output = Result<Change, StoreError>> + Send {
        let _ = who;
        std::future::pending()
    }

    /// The wrapped keys of a tenant, by number.
    fn vault(
        &self,
        business: &BusinessId,
    ) -> impl Future<Output = Result<Vec<(u32, Record)>, StoreError>> + Send;

    /// Replaces the wrapped key `number` of a tenant, if it is `old`: `None` stands for no such key, before or after.
    /// Makes the tenant if there is none. `false` if it was something else; nothing changes then.
    fn swap_vault(
        &self,
        business: &BusinessId,
        number: u32,
        old: Option<Record>,
        new: Option<Record>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Replaces records by others of the same meaning (encrypted under another key), each only if it is still the first
    /// of its pair; the age of the row stays. No term is needed, as nothing changes for its owner. Returns how many.
    fn swap_records(
        &self,
        account: &AccountId,
        records: Vec<(Key, Record, Record)>,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send;
}
