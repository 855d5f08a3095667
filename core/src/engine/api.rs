//! Inputs and outputs of an engine.

use crate::{
    flow::{
        Command, CommandError, CommandId, Endpoint, Event, FetchId, Fetched, MediaRequest, Notice,
        Reply, StopReason,
    },
    state::{Batch, Epoch, EventSeq, Key, Lease, Micros, Row, Scan, Seal, Seq},
};
use std::fmt;

/// The right to act. The lease's term fences the store; `until` bounds what no store can fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What the store gave: the term that every batch carries, the last batch in the account's history, and the
    /// history in which the account's keys are known not to have gone back.
    pub lease: Lease,
    /// On the engine's monotonic clock; count from *before* the claim or renewal was sent. After it, the engine keeps a
    /// connection that stands for [`Timing::hold`](crate::flow::Timing) and lets nothing out but pings.
    pub until: Micros,
}

/// The engine's number for a load or scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// Everything that can happen to an engine.
#[derive(Clone)]
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
    /// The store refused a batch because the database's history is not the one of the grant: commits may have been
    /// lost. The engine stops; nothing more leaves it. Claim anew and build another.
    Unsealed {
        /// The history now.
        history: Seal,
    },
    /// The store refused for good: history or schema do not fit. The engine stops.
    StoreRefused(String),
    /// A download goes on, as asked for by [`Output::Fetch`] and [`Output::FetchMore`]. What comes for one that was
    /// stopped is ignored.
    Fetched(FetchId, Fetched<'a>),
    /// The lease was renewed, in time or not. Counts only for the term that the engine was built with.
    Granted(Grant),
    /// Somebody wants something.
    Command(CommandId, Command),
    /// Fresh entropy, for processes that live long.
    Reseed([u8; 32]),
    /// Time has passed.
    Tick,
}

/// Says what, and how much of it; never what peers wrote, and no seed.
impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened => f.write_str("Opened"),
            Self::Received(bytes) => write!(f, "Received({} bytes)", bytes.len()),
            Self::Closed => f.write_str("Closed"),
            Self::Loaded(id, rows) => write!(f, "Loaded({}, {rows:?})", id.0),
            Self::Scanned(id, rows) => write!(f, "Scanned({}, {rows:?})", id.0),
            Self::Committed { epoch, upto } => {
                write!(f, "Committed(epoch {}, up to {})", epoch.0, upto.0)
            }
            Self::Fenced { by } => write!(f, "Fenced(by epoch {})", by.0),
            Self::Unsealed { history } => write!(f, "Unsealed({history:?})"),
            Self::StoreRefused(why) => write!(f, "StoreRefused({why:?})"),
            Self::Fetched(id, fetched) => write!(f, "Fetched({}, {fetched:?})", id.0),
            Self::Granted(grant) => write!(f, "Granted({grant:?})"),
            Self::Command(id, command) => write!(f, "Command({}, {command:?})", id.0),
            Self::Reseed(_) => f.write_str("Reseed(..)"),
            Self::Tick => f.write_str("Tick"),
        }
    }
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
    /// Download a file; answer with [`Input::Fetched`]: one chunk, or its end. Needs no connection to the service and
    /// outlives it.
    Fetch(FetchId, MediaRequest),
    /// Answer with the next chunk, or its end. It is said when everything that came of the last chunk is durable, so
    /// that a slow store slows the download down instead of filling the memory.
    FetchMore(FetchId),
    /// Forget about a download.
    StopFetch(FetchId),
    /// As [`Transmit`](Self::Transmit), for bytes that say nothing but that the connection is in use. They may be written
    /// after the grant has run out; nothing else may.
    KeepAlive,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A log at trace level shows inputs.
    #[test]
    fn an_input_shows_no_seed_and_no_bytes() {
        assert_eq!(format!("{:?}", Input::Reseed([77; 32])), "Reseed(..)");
        assert_eq!(
            format!("{:?}", Input::Received(b"secret")),
            "Received(6 bytes)"
        );
    }
}
