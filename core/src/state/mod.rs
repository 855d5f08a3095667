//! The language of persistence.
//!
//! The engine never calls a store. It emits [`Batch`]es: everything one step changes, under the epoch it believes to
//! own, numbered in one sequence per account. A store applies a batch whole or not at all, only at its epoch, and a
//! batch it has applied already changes nothing: so a commit whose outcome is unknown is simply sent again.
//!
//! * [`Key`] and [`Record`]: what a row is called and what it holds. Keys are typed; records are bytes with a version
//!   byte, encoded and decoded by the engine alone ([`record`](crate::proto::record) has their shapes).
//! * [`Batch`], [`Epoch`], [`Seq`]: what is written, by whose right, in which order.
//! * [`Term`], [`Lease`], [`Fence`], [`Roster`]: who may act, and how an account changes hands.
//! * [`Store`]: what a database has to offer. [`MemoryStore`](memory::MemoryStore) is the reference;
//!   [`store_conformance!`](crate::store_conformance) is the suite that every store runs, and [`kv`] makes a store of
//!   any ordered key-value database.
//! * [`rules`]: names, keys and records that no store takes; [`columns`]: keys as columns of tables.
//! * [`Sealed`](sealed::Sealed): encryption at rest, over any store.

pub mod codec;
pub mod columns;
mod delegate;
mod key;
mod key_bytes;
mod ownership;
mod store;
mod working_set;

pub mod conformance;
#[cfg(test)]
pub(crate) mod hooked;
pub mod kv;
pub mod memory;
pub mod rules;
pub mod sealed;

pub use key::{EventSeq, Key, MessageId, Table};
pub use key_bytes::NotAKey;
pub(crate) use working_set::WorkingSet;

pub use ownership::{
    Beat, Beaten, Change, Claim, Fence, HandOver, HostInfo, HostState, HostView, Incarnation,
    Lease, Member, Orphan, Placement, Roster, Seal, Term, View,
};
pub use store::{AccountInfo, Outcome, Row, Scan, Store, StoreError};

use bytes::Bytes;
use std::{collections::BTreeMap, fmt, sync::Arc};

/// Fencing token. Grows whenever the account changes hands; a batch of an older epoch is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Position in an account's write history, from 1. Stored beside the fence, so it outlives the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Microseconds on some monotonic clock: plain data, so that a recorded run replays anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// `seconds` as microseconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds * 1_000_000)
    }

    /// `millis` as microseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000)
    }

    /// This many microseconds later; stops at the end of time instead of wrapping.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The distance from `earlier`, zero if that is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// Wall-clock milliseconds since 1970, only ever written into stanzas and rows, never used to order anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// Whole seconds, as the protocol counts them.
    #[must_use]
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// One sample of both clocks. `mono` orders; `unix` is only ever written into stanzas and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds on a clock that never goes back, from any origin that holds for the engine's life.
    pub mono: Micros,
    /// Milliseconds since 1970.
    pub unix: UnixMillis,
}

/// The tenant: 1 to 64 characters of `A-Z a-z 0-9 _ -`. The first column of every key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusinessId(Arc<str>);

/// Why a name is not a [`BusinessId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a business id has 1 to 64 characters of A-Z a-z 0-9 _ -")]
pub struct InvalidBusinessId;

impl BusinessId {
    /// Checks and takes over `name`.
    pub fn new(name: &str) -> Result<Self, InvalidBusinessId> {
        let fits = (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if fits {
            Ok(Self(name.into()))
        } else {
            Err(InvalidBusinessId)
        }
    }

    /// The text of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for BusinessId {
    /// The tenant of an installation that has only one.
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Debug for BusinessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for BusinessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One account of one tenant. `device` is a number of ours, given by the store when the account is created and stable
/// from before pairing on; phone number and LID are properties of it and may change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId {
    /// Whose account it is.
    pub business: BusinessId,
    /// Which of theirs. Unique in a store, not only within the business.
    pub device: u64,
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.business, self.device)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.business, self.device)
    }
}

/// What a row holds: a version byte and an encoded message, meaningful to the engine only. Stores treat it as opaque
/// (at most [`Record::MAX_STORED_BYTES`]), may encrypt it, and never log it: it may contain keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Record(pub Bytes);

impl Record {
    /// No row that the engine writes is larger than this; a session with all its archived states stays far below.
    pub const MAX_BYTES: usize = crate::limits::ROW;

    /// What every store has to take: [`Record::MAX_BYTES`] and room for what an [encrypting](sealed) one adds, so that
    /// the engine's limit is the same with and without encryption.
    pub const MAX_STORED_BYTES: usize = crate::limits::ROW_STORED;
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({} bytes)", self.0.len())
    }
}

/// Everything one step changes. Applies whole, and only if `term` is in force and the account's last applied sequence
/// number is the one before `seq`; applying a `seq` again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Whose rows.
    pub account: AccountId,
    /// By whose right.
    pub term: Term,
    /// Position in the account's write history: one more than the batch before.
    pub seq: Seq,
    /// Makes the account sealed in the term's history: with this batch everything is done that a loss of commits calls
    /// for. Without it, a batch of an account that is not sealed is refused.
    pub reseal: bool,
    /// The engine's wall clock when it sealed the batch; becomes the age of the rows, which retention goes by.
    pub at: UnixMillis,
    /// Rows to write (`Some`) or delete (`None`; deleting what is not there is no error).
    pub rows: BTreeMap<Key, Option<Record>>,
}

impl Batch {
    /// Bytes of records in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rows
            .values()
            .flatten()
            .map(|record| record.0.len())
            .sum()
    }
}
