//! What happens to an account, and what it wants.

use crate::{
    cluster::host::Order,
    flow::StopReason,
    state::{Claim, Epoch, HandOver, Incarnation, Lease, Term},
};

/// How much of what the engine does may leave the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// Nothing but what keeps the connection alive: the transport's pings.
    Shut,
    /// What is durable already. No new work.
    Committed,
    /// Everything, each after its commit.
    Open,
}

/// Steps of giving an account away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The successor warms up; we go on.
    Prepare,
    /// The engine finishes what it has and closes the connection.
    Stop,
    /// The store changes the owner.
    Release,
}

/// Where an account stands on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not ours.
    Standby,
    /// Asked for a (new) term.
    Claiming,
    /// Ours; an engine is being built and loads.
    Loading,
    /// Waits for its turn to connect, or for the service to let it in.
    Connecting,
    /// Logged in.
    Live,
    /// Logged in; the host has missed renewals: nothing new is started.
    Held,
    /// The host has no lease to act by.
    Quiesced,
    /// It is not known what the store knows; will ask.
    Uncertain,
    /// Asked.
    Verifying,
    /// Being given away.
    HandingOver(Step),
    /// Not connected, after so many attempts in a row.
    Backoff(u32),
    /// Ours, but a stranger uses it.
    Conflict,
    /// Unlinked. Needs somebody to link it again.
    LoggedOut,
    /// Does not start; tried again later.
    Error,
}

/// Whose the account is, as a write has shown ([`Action::Verify`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ours, and everything that was committed stands.
    Ours,
    /// Somebody else's.
    Fenced,
    /// The database's history has changed: the term is void.
    Unsealed,
    /// No answer.
    Unreachable,
}

/// Everything that can happen to an account. Report nothing of an engine that was dropped or has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// It is to be had: claim it.
    Take,
    /// It is ours, under a new term.
    Owned(Lease),
    /// A claim brought nothing.
    NotOwned(Claim),
    /// No answer to a claim.
    ClaimFailed,
    /// For all accounts of the host.
    Order(Order),
    /// The engine asks for a connection (`Output::Open`). Those with a higher `priority` go first; the time of the
    /// last activity is a good one.
    Wants {
        /// For its turn.
        priority: u64,
    },
    /// It is its turn to connect.
    Permit,
    /// The service has let it in.
    Up,
    /// The connection is gone or was not to be had; the engine will ask again.
    Down,
    /// A commit has had no answer.
    Unknown,
    /// A commit was answered with `Unsealed`.
    Unsealed,
    /// The answer to [`Action::Verify`] with this number.
    Verified(u32, Verdict),
    /// The engine has stopped.
    Stopped(StopReason),
    /// The engine is gone without a word: its task failed, or was stuck and was ended.
    Crashed,
    /// Give it to this host, or, with `None`, to whoever claims it.
    Leave(Option<Incarnation>),
    /// The successor is ready.
    Prepared,
    /// The answer to [`Need::HandOver`]; `None` if there was none.
    HandedOver(Option<HandOver>),
    /// The answer to [`Need::Release`]: whether there was one.
    Released(bool),
    /// Start it again although it is logged out or failing.
    Restart,
    /// Time has passed.
    Tick,
}

/// What the driver does for an account. An engine can stop by itself just before it is told something: then, with the
/// news of that under way, there is nothing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Build an engine under this lease, and load everything anew. The gate is shut until [`Action::Gate`].
    Build(Lease),
    /// Carry out the engine's wish for a connection.
    Connect,
    /// Close the connection; the engine stays.
    Disconnect,
    /// Tell the engine to shut down: finish, flush, close. Answer with [`Input::Stopped`].
    Stop,
    /// Forget the engine and close its connection, without another word to anybody.
    Drop,
    /// How much may leave from now on.
    Gate(Gate),
    /// Find out by a write whose the account is: commit again what has had no answer, on a connection that answers, or
    /// `confirm` the term if there is nothing. Answer with [`Input::Verified`] and this number.
    Verify(u32, Term),
    /// Optional: tell the successor to warm up; answer with [`Input::Prepared`].
    Prepare(Incarnation),
    /// For status pages and logs.
    State(State),
    /// A stranger has used the account so many times in a row.
    Alert(u32),
}

/// What the account wants of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A term.
    Claim,
    /// To be freed.
    Release(Epoch),
    /// To be given away.
    HandOver(Epoch, Incarnation),
    /// A turn to connect.
    Turn(u64),
    /// No turn any more.
    NoTurn,
    /// Another successor than this one: it was refused.
    Elsewhere(Incarnation),
    /// A better host, if there is one: it has had no connection for a minute.
    Stuck,
    /// Nothing. The account is not ours any more, since this epoch.
    Gone(Epoch),
}

/// An output of a [`Device`](super::Device).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// For the driver.
    Do(Action),
    /// For the fleet.
    Need(Need),
}
