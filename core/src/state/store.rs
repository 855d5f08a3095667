//! What a database has to offer to keep accounts.

use super::{
    AccountId, Batch, BusinessId, Epoch, Key, MessageId, Micros, Record, Seq, Table, UnixMillis,
};
use std::future::Future;

/// A process start. Random, so that a restarted process never trusts what its predecessor held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

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

/// The right to act for an account, as the store gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Fencing token of the new term.
    pub epoch: Epoch,
    /// The last batch of the account's history.
    pub applied: Seq,
    /// How long it holds unless renewed. Count from *before* the call was sent.
    pub ttl: Micros,
}

/// The answer to [`Store::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The account is yours.
    Granted(Lease),
    /// Somebody else's lease has not run out.
    Held {
        /// Who.
        by: Incarnation,
        /// Until it runs out, if they do not renew it.
        remaining: Micros,
    },
}

/// The answer to [`Store::renew`], per account. "Could not reach the database" is neither: it is an `Err`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Yours for another while.
    Renewed,
    /// Somebody else has taken it over, under this epoch.
    Lost {
        /// The epoch in force.
        by: Epoch,
    },
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
}

impl StoreError {
    /// Whether the same call can succeed later without anybody doing anything.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
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
    /// `None` if it is free or the lease has run out.
    pub holder: Option<Incarnation>,
    /// The device row, for address and state (decode with [`crate::flow::describe_device`]).
    pub device: Row,
}

/// A database that keeps accounts. Cheap to clone; no runtime types.
///
/// **Fencing.** Every account has a fence: epoch, holder, last applied [`Seq`]. [`Store::claim`] raises the epoch;
/// [`Store::commit`] checks it in the same transaction that writes. No fence, no write. Leases only decide when a
/// *polite* claimant may take over; safety never depends on them or on any clock.
///
/// **Order.** A batch is applied only if its `seq` follows the last applied one; a `seq` at or below that is reported
/// as [`Outcome::Committed`] and changes nothing. When `commit` returns, what it reports as committed survives a power
/// cut.
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
    fn commit(
        &self,
        batches: Vec<Batch>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send;

    /// Creates an account. Names are 1 to 64 characters of `A-Z a-z 0-9 _ - .`, unique within the business.
    fn create_account(
        &self,
        business: &BusinessId,
        name: &str,
    ) -> impl Future<Output = Result<AccountId, StoreError>> + Send;

    /// All accounts of a business, by name.
    fn accounts(
        &self,
        business: &BusinessId,
    ) -> impl Future<Output = Result<Vec<AccountInfo>, StoreError>> + Send;

    /// Takes the account if it is free, if its lease has run out by the database's clock, or if the holder is provably
    /// dead: raises the epoch. A holder that claims again gets a new epoch too.
    fn claim(
        &self,
        account: &AccountId,
        who: Incarnation,
        ttl: Micros,
    ) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Prolongs leases, one answer per account in order.
    fn renew(
        &self,
        who: Incarnation,
        leases: Vec<(AccountId, Epoch)>,
        ttl: Micros,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send;

    /// Gives the account up, if it is still held by `who` at `epoch`. The epoch stays, so that a later claim raises it.
    fn release(
        &self,
        account: &AccountId,
        who: Incarnation,
        epoch: Epoch,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Leaves a request to send for the owner, whoever that is: a row under [`Key::Mailbox`] that the owner picks up.
    /// `false` if there is one under this id already (nothing changes then).
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
}
