//! Inputs and outputs of an engine.

use crate::{
    flow::{Command, CommandError, CommandId, Endpoint, Event, Notice, Reply},
    state::{Batch, Epoch, EventSeq, Key, Micros, Row, Scan, Seq, UnixMillis},
};

/// One sample of both clocks. `mono` orders; `unix` is only ever written into stanzas and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds on a clock that never goes back, from any origin that holds for the engine's life.
    pub mono: Micros,
    /// Milliseconds since 1970.
    pub unix: UnixMillis,
}

/// The right to act. `epoch` fences the store; `until` bounds what no store can fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Fencing token.
    pub epoch: Epoch,
    /// The last batch in the account's history.
    pub applied: Seq,
    /// On the engine's monotonic clock; count from *before* the claim or renewal was sent.
    pub until: Micros,
}

/// The engine's number for a load or scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// Everything that can happen to an engine.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The connection asked for by [`Output::Open`] stands.
    Opened,
    /// Bytes of the connection, cut anywhere.
    Received(&'a [u8]),
    /// The connection is gone or could not be made. Expected after [`Output::Close`] too.
    Closed,
    /// The rows asked for, in the order of the keys.
    Loaded(LoadId, Vec<Row>),
    /// The rows asked for, in key order.
    Scanned(LoadId, Vec<(Key, Row)>),
    /// Every batch up to `upto` of this epoch is durable. Stale epochs are ignored.
    Committed {
        /// Epoch the batches were written under.
        epoch: Epoch,
        /// The last durable one.
        upto: Seq,
    },
    /// The store refused a batch because the account belongs to a later epoch.
    Fenced {
        /// The epoch in force.
        by: Epoch,
    },
    /// The store refused for good: history or schema do not fit. The engine stops.
    StoreRefused(String),
    /// The lease was renewed.
    Granted(Grant),
    /// Somebody wants something.
    Command(CommandId, Command),
    /// Fresh entropy, for processes that live long.
    Reseed([u8; 32]),
    /// Time has passed.
    Tick,
}

/// Everything an engine can want.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Output {
    /// Hand to the store at once; several may be out; they apply in `seq` order.
    Commit(Batch),
    /// Read these rows; answer with [`Input::Loaded`].
    Load(LoadId, Vec<Key>),
    /// Read a slice of a table; answer with [`Input::Scanned`].
    Scan(LoadId, Scan),
    /// Connect; answer with [`Input::Opened`] or [`Input::Closed`].
    Open(Endpoint),
    /// Write out what was transmitted, then close.
    Close,
    /// Bytes were appended to `wire`. Send them as one message of the connection.
    Transmit,
    /// A durable event. Shown again by the next engine until it is acknowledged.
    Event(EventSeq, Event),
    /// Something passing.
    Notice(Notice),
    /// The answer to a command; exactly one each.
    Reply(CommandId, Result<Reply, CommandError>),
    /// Nothing more until an input, or until `wake`.
    Idle {
        /// Send [`Input::Tick`] then.
        wake: Option<Micros>,
        /// For the operator's log.
        why: &'static str,
    },
    /// Terminal: later inputs are ignored and `poll` returns this for ever.
    Stopped(StopReason),
}

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appetite {
    /// Read from the connection.
    pub bytes: bool,
    /// Accept so many commands.
    pub commands: u32,
}

/// Why an engine stopped. None of them touches the account's keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// The store has a later epoch: somebody else owns the account.
    #[error("fenced: epoch {} is in force", .0.0)]
    Fenced(Epoch),
    /// The grant ran out before it was renewed.
    #[error("the lease ran out")]
    LeaseExpired,
    /// The service has another connection of this device. Somebody else owns the account: check the lease, never fight.
    #[error("another connection of this account replaced ours")]
    Replaced,
    /// Unlinked by the phone, the service or a logout command.
    #[error("logged out (code {0})")]
    LoggedOut(u16),
    /// Banned for a while.
    #[error("temporarily banned (code {code}, {seconds} s)")]
    Banned {
        /// The service's reason.
        code: u16,
        /// For how long.
        seconds: u64,
    },
    /// The service wants a newer client version: change [`Profile::version`](crate::flow::Profile).
    #[error("the service refuses this client version")]
    Outdated,
    /// The service refused the login for another reason.
    #[error("the service refused the login (code {0})")]
    Refused(u16),
    /// The store refused a batch or a row of the account itself is unreadable.
    #[error("the store cannot serve this account: {0}")]
    Store(String),
    /// As commanded.
    #[error("shut down")]
    Shutdown,
}

impl StopReason {
    /// Whether the same owner may build a new engine for the account and go on.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::LeaseExpired)
    }

    /// Whether somebody else owns the account now, as far as we know.
    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced(_) | Self::Replaced)
    }
}
