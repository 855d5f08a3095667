//! One account of a fleet: what its driver hears and says, and how its engine lives and ends.

use super::handle::AccountStatus;
use crate::{
    Account, App, Commits, Connector, DriveOptions, Effect, Env, Link, Recorded, Tenure, Word,
    account::Desk, drive, watch,
};
use baton_core::{
    cluster::device::Gate,
    engine::Grant,
    flow::{Command, CommandId, Connection, Event, Notice, StopReason},
    state::{AccountId, Lease, Micros, Store, UnixMillis},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;

/// While the grant nears its end and is not renewed, so often to look whether it is.
const LOOK: Micros = Micros::from_millis(100);

/// Until when the host may act, on our clock: one number for all its accounts, so that a renewal costs the same however
/// many there are.
#[derive(Debug, Default)]
pub(super) struct HostGrant(AtomicU64);

impl HostGrant {
    pub(super) fn set(&self, until: Micros) {
        self.0.store(until.0, Ordering::Release);
    }

    pub(super) fn until(&self) -> Micros {
        Micros(self.0.load(Ordering::Acquire))
    }
}

/// What an account is told by its fleet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    /// How much may leave.
    pub(super) gate: Gate,
    /// Connections it may have opened so far.
    pub(super) connects: u64,
    /// Times that mail was seen.
    pub(super) mail: u64,
    /// Finish, flush, close.
    pub(super) stop: bool,
    /// The engine of this number and all before it are to go without another word.
    pub(super) gone: u64,
}

impl Wishes {
    pub(super) const fn new() -> Self {
        Self {
            gate: Gate::Shut,
            connects: 0,
            mail: 0,
            stop: false,
            gone: 0,
        }
    }
}

/// What an account tells its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// A turn to connect, more urgent the higher.
    Wants(u64),
    /// Logged in.
    Up,
    /// Not connected any more, or not got so far.
    Down,
    /// It has shown a message.
    Message,
}

/// Reports of all accounts, with the number of the engine they are of.
#[derive(Debug, Default)]
pub(super) struct Reports {
    queue: Mutex<VecDeque<(AccountId, u64, Report)>>,
    news: Notify,
}

impl Reports {
    fn push(&self, account: &AccountId, life: u64, report: Report) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back((account.clone(), life, report));
        drop(queue);
        self.news.notify_one();
    }

    pub(super) fn take(&self) -> VecDeque<(AccountId, u64, Report)> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there is something to take.
    pub(super) async fn arrived(&self) {
        let is_empty = || {
            let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.is_empty()
        };
        while is_empty() {
            self.news.notified().await;
        }
    }
}

/// The fleet's side of one account, from when it became ours until it is not any more.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) wishes: watch::Sender<Wishes>,
    /// The number of its engine; 0 is none.
    pub(super) engine: u64,
    /// Engines up to this number are of the account's earlier times here.
    pub(super) since: u64,
    /// The desk, while no engine works at it.
    pub(super) desk: Option<Desk>,
    /// An engine that waits for the desk.
    pub(super) build: Option<Lease>,
    pub(super) handle: Account,
    pub(super) status: AccountStatus,
    /// When something was last heard of it, for its turn.
    pub(super) active: UnixMillis,
}

/// How an engine ended.
pub(super) struct Ended {
    pub(super) account: AccountId,
    pub(super) engine: u64,
    pub(super) desk: Desk,
    /// `None` if it was told to go.
    pub(super) reason: Option<StopReason>,
}

/// What it takes to run an engine.
pub(super) struct Job<S, C: Connector, E> {
    pub(super) engine: Recorded,
    pub(super) number: u64,
    pub(super) account: AccountId,
    pub(super) lease: Lease,
    /// What the engine knows of its grant.
    pub(super) until: Micros,
    pub(super) host: Arc<HostGrant>,
    /// Ask for news of the grant so long before its end.
    pub(super) ahead: Micros,
    pub(super) wishes: watch::Receiver<Wishes>,
    pub(super) reports: Arc<Reports>,
    pub(super) priority: u64,
    pub(super) desk: Desk,
    pub(super) commits: Commits<S, E>,
    pub(super) connector: C,
    pub(super) env: E,
    pub(super) options: DriveOptions,
}

impl<S: Store, C: Connector, E: Env> Job<S, C, E> {
    pub(super) async fn run(self) -> Ended {
        let before = *self.wishes.borrow();
        let (mut gone, stop) = (self.wishes.fork(), self.wishes.fork());
        let mut seat = Seat {
            env: self.env.clone(),
            host: self.host,
            ahead: self.ahead,
            wishes: self.wishes,
            reports: Arc::clone(&self.reports),
            account: self.account.clone(),
            engine: self.number,
            lease: self.lease,
            priority: self.priority,
            told: self.until,
            gate: before.gate,
            connects: before.connects,
            mail: before.mail,
        };
        let mut front = Front {
            desk: self.desk,
            stop,
            stopping: false,
            reports: self.reports,
            account: self.account.clone(),
            engine: self.number,
            is_up: false,
            has_shown: false,
        };
        let mut link = Link::new(self.connector, self.env.clone());
        let number = self.number;
        let reason = tokio::select! { biased;
            _gone = gone.wait_for(|wishes| wishes.gone >= number) => None,
            reason = drive(
                self.engine, &self.env, &self.commits, &mut seat, &mut link, &mut front, self.options,
            ) => Some(reason),
        };
        let mut desk = front.desk;
        desk.engine_stopped();
        Ended {
            account: self.account,
            engine: number,
            desk,
            reason,
        }
    }
}

/// The right to act, as the fleet gives it.
struct Seat<E> {
    env: E,
    host: Arc<HostGrant>,
    ahead: Micros,
    wishes: watch::Receiver<Wishes>,
    reports: Arc<Reports>,
    account: AccountId,
    engine: u64,
    lease: Lease,
    priority: u64,
    /// What the driver knows.
    told: Micros,
    gate: Gate,
    connects: u64,
    mail: u64,
}

impl<E: Env> Tenure for Seat<E> {
    fn account(&self) -> &AccountId {
        &self.account
    }

    fn grant(&self) -> Grant {
        Grant {
            lease: self.lease,
            until: self.told,
        }
    }

    fn wants_connection(&mut self) {
        let wants = Report::Wants(self.priority);
        self.reports.push(&self.account, self.engine, wants);
    }

    /// An account that has nothing to do is not woken by every renewal: it looks when its grant nears its end, and
    /// whenever it is woken by something else.
    async fn next(&mut self, connect: bool, mail: bool) -> Word {
        loop {
            let wishes = *self.wishes.borrow();
            self.wishes.mark_unchanged();
            let is_new = wishes.gate != self.gate;
            self.gate = wishes.gate;
            // A shut gate gets no more time, renewed or not: the grant runs out, and the engine is held. It keeps its
            // connection and lets nothing out but pings, until the store has said whose the account is: then the gate
            // opens and it goes on where it was, or it is told to go.
            let until = self.host.until();
            if until > self.told && self.gate > Gate::Shut {
                self.told = until;
                return Word::Until(until);
            }
            if is_new {
                return Word::Until(self.told);
            }
            if connect && wishes.connects > self.connects {
                self.connects = wishes.connects;
                return Word::Connect;
            }
            if mail && wishes.mail > self.mail {
                self.mail = wishes.mail;
                return Word::Mail;
            }
            let (now, told) = (self.env.now().mono, self.told.0);
            let look = if self.gate == Gate::Shut {
                Micros(u64::MAX)
            } else {
                Micros(told.saturating_sub(self.ahead.0)).max(now.plus(LOOK))
            };
            tokio::select! { biased;
                changed = self.wishes.changed() => if changed.is_err() {
                    return Word::Lost;
                },
                () = self.env.sleep_until(look) => {}
            }
        }
    }
}

/// The consumer's side, overheard.
struct Front {
    desk: Desk,
    stop: watch::Receiver<Wishes>,
    stopping: bool,
    reports: Arc<Reports>,
    account: AccountId,
    engine: u64,
    is_up: bool,
    has_shown: bool,
}

impl App for Front {
    fn take(&mut self, effect: Effect) {
        let report = match &effect {
            Effect::Notice(Notice::Connection(Connection::LoggedIn | Connection::Online)) => {
                let was_up = std::mem::replace(&mut self.is_up, true);
                (!was_up).then_some(Report::Up)
            }
            Effect::Notice(Notice::Connection(Connection::Waiting { .. })) => {
                self.is_up = false;
                Some(Report::Down)
            }
            Effect::Event(_, Event::Message(_)) => {
                let has_shown = std::mem::replace(&mut self.has_shown, true);
                (!has_shown).then_some(Report::Message)
            }
            _ => None,
        };
        if let Some(report) = report {
            self.reports.push(&self.account, self.engine, report);
        }
        self.desk.take(effect);
    }

    async fn command(&mut self) -> (CommandId, Command) {
        if self.stopping {
            return std::future::pending().await;
        }
        // While the gate is not open nothing is begun; whoever waits here is asked again when it changes.
        let may_begin = self.stop.borrow().gate == Gate::Open;
        tokio::select! { biased;
            _stop = self.stop.wait_for(|wishes| wishes.stop) => {
                self.stopping = true;
                (CommandId(u64::MAX), Command::Shutdown)
            }
            command = self.desk.command(), if may_begin => command,
        }
    }
}
