//! What the machines ask of the store, and what it answers: [`Store`](crate::state::Store)'s calls as plain data.

use crate::state::{
    AccountId, Beat, Beaten, Claim, Epoch, HandOver, HostInfo, Incarnation, Lease, Micros, Orphan,
    Placement,
};

/// Names a call. Never used twice by a [`Fleet`](super::fleet::Fleet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A call to the store. Answer each exactly once, with what the store said or with [`Answer::Failed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Goes back with the answer.
    pub id: CallId,
    /// In whose name.
    pub who: Incarnation,
    /// What.
    pub ask: Ask,
    /// If there is no answer after so long, give the connection up and answer [`Answer::Failed`].
    pub within: Micros,
    /// Use a connection that has *answered* something since the last failure, a new one if there is none. A host whose
    /// questions arrive and whose answers get lost must not go on renewing a lease that it may not use. A store whose
    /// every call begins with a question of its own, as a transaction does in PostgreSQL, and every one that is no network
    /// away, does so anyway.
    pub fresh: bool,
}

/// Which call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `join(who, info, ttl)`.
    Join {
        /// About us.
        info: HostInfo,
        /// For how long from now.
        ttl: Micros,
    },
    /// `beat(who, beat)`.
    Beat(Beat),
    /// `claim(who, accounts)`.
    Claim(Vec<AccountId>),
    /// `release(who, accounts)`.
    Release(Vec<(AccountId, Epoch)>),
    /// `hand_over(who, account, epoch, to)`.
    HandOver {
        /// Which account.
        account: AccountId,
        /// The epoch under which it is ours.
        epoch: Epoch,
        /// The successor.
        to: Incarnation,
    },
    /// `held(who)`.
    Held,
    /// `misplaced(who)`.
    Misplaced,
    /// `orphans(after, limit)`.
    Orphans {
        /// Behind this one.
        after: Option<AccountId>,
        /// So many at most.
        limit: u32,
    },
    /// `leave(who)`.
    Leave,
}

/// What the store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Join`]: our slot.
    Joined(u16),
    /// To [`Ask::Beat`].
    Beaten(Beaten),
    /// To [`Ask::Claim`], in its order.
    Claimed(Vec<Claim>),
    /// To [`Ask::Release`]: none of them is ours any more.
    Released,
    /// To [`Ask::HandOver`].
    HandedOver(HandOver),
    /// To [`Ask::Held`]: everything that is ours.
    Held(Vec<(AccountId, Lease)>),
    /// To [`Ask::Misplaced`]: accounts of ours that are wished elsewhere, and where.
    Misplaced(Vec<(AccountId, Placement)>),
    /// To [`Ask::Orphans`]: in order; fewer than asked for means that there are no more.
    Orphans(Vec<Orphan>),
    /// To [`Ask::Leave`].
    Left,
    /// To any of them: the incarnation that asked does not live (`StoreError::NotMember`).
    NotMember,
    /// Not reachable, refused, or too late. Whether it took effect is not known.
    Failed,
}
