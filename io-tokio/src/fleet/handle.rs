//! What a fleet shows to the process it runs in: a handle to ask and tell, and events.

use crate::{Account, Inbox};
use baton_core::{
    cluster::{device, host},
    state::{AccountId, Epoch, Incarnation, UnixMillis, View},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;

/// Asks and tells a [`Fleet`](crate::Fleet). Clones are the same fleet. When all are dropped the fleet runs on; only
/// [`shutdown`](Self::shutdown) ends it.
#[derive(Clone, Debug)]
pub struct FleetHandle {
    pub(super) shared: Arc<Shared>,
}

impl FleetHandle {
    /// Ends the host properly: takes nothing more, lets every account finish what it has, closes its connection, and
    /// gives it to the host that should have it from now on; or frees it, if there is none. Then leaves, and
    /// [`Fleet::run`](crate::Fleet::run) returns, after [`Timing::drain`](baton_core::cluster::Timing) and two seconds
    /// at the latest. Saying it again changes nothing.
    pub fn shutdown(&self) {
        self.tell(Request::Drain { leave: true });
    }

    /// Gives everything away, as far as others take it, and takes nothing, but stays in the fleet. For another host, or
    /// from another process, see [`Store::drain`](baton_core::state::Store::drain).
    pub fn drain(&self) {
        self.tell(Request::Drain { leave: false });
    }

    /// Takes accounts again. Has no effect on a wish that is in the store, nor after [`shutdown`](Self::shutdown).
    pub fn undrain(&self) {
        self.tell(Request::Undrain);
    }

    /// Gives an account of this host to `to`, or to whoever claims it. It may come back: to have it stay somewhere, pin
    /// it ([`Store::place`](baton_core::state::Store::place)); its holder hands it over within two seconds.
    pub fn give(&self, account: AccountId, to: Option<Incarnation>) {
        self.tell(Request::Give(account, to));
    }

    /// Starts an account of this host again that is logged out, in conflict, or failing. For one that is logged out,
    /// post [`Command::Link`](baton_core::flow::Command::Link) first: without, it stops again at once.
    pub fn restart(&self, account: AccountId) {
        self.tell(Request::Restart(account));
    }

    /// The host, as of now.
    #[must_use]
    pub fn status(&self) -> HostStatus {
        self.shared.board().host.clone()
    }

    /// The fleet, as the last renewal of this host's lease has shown it.
    #[must_use]
    pub fn view(&self) -> View {
        self.shared.board().view.clone()
    }

    /// Every account that is here or on its way, in order.
    #[must_use]
    pub fn accounts(&self) -> Vec<AccountStatus> {
        let board = self.shared.board();
        board.accounts.values().map(|row| row.0.clone()).collect()
    }

    /// The commands' end of an account of this host; `None` if it is not ours. Commands wait while it is not online, and
    /// fail with [`CommandError::Unknown`](baton_core::flow::CommandError) once it has gone elsewhere: then leave the
    /// request in the [mailbox](baton_core::state::Store::enqueue), under the same message id, for whoever has it.
    ///
    /// [`Account::shutdown`] on it gives the account back; if it is wished to run, some host takes it again.
    #[must_use]
    pub fn account(&self, account: &AccountId) -> Option<Account> {
        let board = self.shared.board();
        board.accounts.get(account).map(|row| row.1.clone())
    }

    fn tell(&self, request: Request) {
        // A fleet that has ended needs no telling.
        let _ = self.shared.requests.send(request);
    }
}

/// A host as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// Where its life stands.
    pub state: host::State,
    /// Under which incarnation; another one after it was declared dead.
    pub who: Incarnation,
    /// Its slot, while it is a member.
    pub slot: Option<u16>,
    /// How many accounts it holds,
    pub accounts: u32,
    /// and how many of them are logged in.
    pub live: u32,
    /// Accounts of the whole fleet that should run and have no host, as far as this one has seen.
    pub orphans: usize,
}

/// One account as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountStatus {
    /// Which.
    pub account: AccountId,
    /// Where it stands on this host.
    pub state: device::State,
    /// Under which epoch it is ours.
    pub epoch: Epoch,
    /// How it came here, and how fast.
    pub takeover: Takeover,
}

/// How an account came to this host: each step by the wall clock of this process, as far as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// Who had it before, if that is known and it was not given up properly.
    pub from: Option<Incarnation>,
    /// When this host learned that `from` is gone: its lease had run out, or its presence had ended.
    pub gone: Option<UnixMillis>,
    /// When it became ours, by a claim or by being handed over.
    pub claimed: UnixMillis,
    /// When the service first let it in.
    pub connected: Option<UnixMillis>,
    /// When its first message was shown to the consumer.
    pub first_message: Option<UnixMillis>,
}

/// News of a fleet.
#[derive(Debug)]
#[non_exhaustive]
pub enum FleetEvent {
    /// The host has reached another state.
    Host(HostStatus),
    /// An account is ours: these are its ends, until [`Lost`](Self::Lost). The inbox should be emptied all the time;
    /// after `Lost` it ends by itself, and what is still in it may be shown again by the next owner, under the same
    /// numbers.
    Gained {
        /// Which, under which epoch, and how it came.
        status: AccountStatus,
        /// For commands.
        handle: Account,
        /// For events.
        inbox: Inbox,
    },
    /// The service has let it in, for the first time since it is ours: the takeover is over.
    Up(AccountStatus),
    /// Its first message has come, for the first time since it is ours.
    FirstMessage(AccountStatus),
    /// It has reached another state on this host.
    Account(AccountStatus),
    /// A stranger outside of the fleet uses the account's keys: the service has preferred its connection so many times
    /// in a row. We stay away, longer each time; somebody should know.
    Contested {
        /// Which.
        account: AccountId,
        /// How often in a row.
        times: u32,
    },
    /// The account is not ours any more.
    Lost {
        /// Which.
        account: AccountId,
        /// Under which epoch it was.
        epoch: Epoch,
        /// The host it was given to, if it was.
        to: Option<Incarnation>,
    },
}

/// Takes news of a fleet. What nobody takes piles up, so take it or drop this.
#[derive(Debug)]
pub struct FleetEvents {
    pub(super) events: mpsc::UnboundedReceiver<FleetEvent>,
}

impl FleetEvents {
    /// The next one, or `None` when the fleet has ended. May be dropped at any time.
    pub async fn next(&mut self) -> Option<FleetEvent> {
        self.events.recv().await
    }
}

/// What a handle wants done.
#[derive(Debug)]
pub(super) enum Request {
    Drain { leave: bool },
    Undrain,
    Give(AccountId, Option<Incarnation>),
    Restart(AccountId),
}

/// What handles and the fleet share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) requests: mpsc::UnboundedSender<Request>,
    pub(super) board: Mutex<Board>,
}

#[derive(Debug)]
pub(super) struct Board {
    pub(super) host: HostStatus,
    pub(super) view: View,
    pub(super) accounts: BTreeMap<AccountId, (AccountStatus, Account)>,
}

impl Shared {
    /// Every use is one short section that leaves the board whole, so a poisoned lock is still good.
    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
