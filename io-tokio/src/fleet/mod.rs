//! Many accounts, many hosts: every account of a store on exactly one host, taken over when that goes.
//!
//! ```text
//!  FleetHandle, FleetEvents      shown to the process: status, accounts, commands, what was gained and lost
//!         ▲
//!       Fleet ── core::cluster::fleet::Fleet      decides: joins, renews, claims, verifies, hands over
//!         │
//!       rooms ── drive(Engine, Seat, Link, Desk)  one per account: acts inside the host's grant, connects in turn
//!         │
//!       Commits, Store, Connector, Env            shared by all accounts of the host
//! ```
//!
//! One host is one future: nothing is spawned, every `select!` is biased. What it asks the store for each second does
//! not depend on how many accounts it has: one renewal, one look for orphans and one for misplaced accounts every two
//! seconds, four looks at the mail of all.

mod calls;
mod chores;
mod engines;
mod handle;
mod room;

pub use handle::{AccountStatus, FleetEvent, FleetEvents, FleetHandle, HostStatus, Takeover};

use crate::{CommitOptions, Commits, Connector, DriveOptions, Env, Journals, Retention};
use baton_core::{
    cluster::{
        Answer, Ask, CallId, Timing, TimingError,
        device::{self, Action},
        fleet::{Fleet as Machine, Input, Output},
        host,
    },
    flow::{Config, StopReason},
    state::{
        AccountId, Beaten, Change, HandOver, HostInfo, HostState, Incarnation, Micros, Store,
        StoreError, Term, UnixMillis, View,
    },
};
use calls::{Asking, Done};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use handle::{Board, Request, Shared};
use room::{Ended, HostGrant, Report, Reports, Room};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// How a host lives.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// What it says about itself. Placement goes by the name.
    pub info: HostInfo,
    /// Leases, deadlines, budgets.
    pub timing: Timing,
    /// How commits of its accounts are collected.
    pub commits: CommitOptions,
    /// What each account's driver does; [`DriveOptions::mailbox`] is how often the host looks at the mail of all.
    pub drive: DriveOptions,
    /// When old rows leave.
    pub retention: Retention,
    /// Journals of what happens to engines, if any are kept.
    pub journals: Option<Journals>,
}

impl FleetOptions {
    /// A host of that name, everything else as usual.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            info: HostInfo::named(name),
            timing: Timing::default(),
            commits: CommitOptions::default(),
            drive: DriveOptions::default(),
            retention: Retention::default(),
            journals: None,
        }
    }
}

/// How a fleet's host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetEnd {
    /// The store has confirmed that the host left: nothing of it has to be waited for. Otherwise the store could not be
    /// reached any more, and the lease runs out by itself.
    pub left: bool,
}

/// Runs this host's share of all accounts of a store that are [wished to run](baton_core::state::Placement), of whatever
/// business. See the crate's `tests` for use; in short:
///
/// ```ignore
/// let (fleet, handle, mut events) = Fleet::new(store, connector, env, options, |account| config_for(account))?;
/// tokio::spawn(fleet.run());
/// while let Some(event) = events.next().await { /* Gained brings the ends of an account */ }
/// ```
pub struct Fleet<S: Store, C: Connector, E: Env, F> {
    store: S,
    connector: C,
    env: E,
    options: FleetOptions,
    config: F,
    commits: Commits<S, E>,
    machine: Machine,
    grant: Arc<HostGrant>,
    reports: Arc<Reports>,
    rooms: BTreeMap<AccountId, Room>,
    engines: FuturesUnordered<BoxFuture<'static, Ended>>,
    engines_built: u64,
    asking: FuturesUnordered<Asking>,
    verifying: Vec<(AccountId, u32, Term)>,
    watching: Option<BoxFuture<'static, Result<Change, StoreError>>>,
    mail_at: Option<Micros>,
    retain_at: Micros,
    /// The account and table that retention comes to next.
    retain_next: (Option<AccountId>, usize),
    /// Hand-overs that were asked for, and those that were done.
    giving: BTreeMap<CallId, (AccountId, Incarnation)>,
    given: BTreeMap<AccountId, Incarnation>,
    /// Whose orphans were, and since when that host is known to be gone.
    origins: BTreeMap<AccountId, Incarnation>,
    gone: BTreeMap<Incarnation, UnixMillis>,
    requests: mpsc::UnboundedReceiver<Request>,
    events: mpsc::UnboundedSender<FleetEvent>,
    shared: Arc<Shared>,
    end: FleetEnd,
}

impl<S, C, E, F> Fleet<S, C, E, F>
where
    S: Store,
    C: Connector,
    E: Env,
    F: FnMut(&AccountId) -> Config + Send,
{
    /// A host that joins the fleet of `store` when it is [run](Self::run). `config` is asked for each engine that is
    /// built. Refused only if the durations of [`FleetOptions::timing`] do not fit together.
    pub fn new(
        store: S,
        connector: C,
        env: E,
        options: FleetOptions,
        config: F,
    ) -> Result<(Self, FleetHandle, FleetEvents), TimingError> {
        let now = env.now().mono;
        let machine = Machine::new(options.info.clone(), options.timing, env.entropy(), now)?;
        let (requests, requested) = mpsc::unbounded_channel();
        let (events, happened) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            requests,
            board: Mutex::new(Board {
                host: status(&machine),
                view: View::default(),
                accounts: BTreeMap::new(),
            }),
        });
        let handle = FleetHandle {
            shared: Arc::clone(&shared),
        };
        let fleet = Self {
            commits: Commits::new(store.clone(), env.clone(), options.commits),
            store,
            connector,
            env,
            config,
            machine,
            grant: Arc::default(),
            reports: Arc::default(),
            rooms: BTreeMap::new(),
            engines: FuturesUnordered::new(),
            engines_built: 0,
            asking: FuturesUnordered::new(),
            verifying: Vec::new(),
            watching: None,
            mail_at: options.drive.mailbox.map(|every| now.plus(every)),
            retain_at: now.plus(Micros(options.retention.every.0 / 2)),
            retain_next: (None, 0),
            giving: BTreeMap::new(),
            given: BTreeMap::new(),
            origins: BTreeMap::new(),
            gone: BTreeMap::new(),
            requests: requested,
            events,
            shared,
            end: FleetEnd { left: false },
            options,
        };
        Ok((fleet, handle, FleetEvents { events: happened }))
    }

    /// Where its commits go, to count them.
    #[must_use]
    pub const fn commits(&self) -> &Commits<S, E> {
        &self.commits
    }

    /// Joins, takes accounts and serves them until [`FleetHandle::shutdown`]. Dropping the future is as killing the
    /// process: nothing is said, others take over when the lease has run out.
    pub async fn run(mut self) -> FleetEnd {
        let commits = self.commits.clone();
        tokio::select! { biased;
            never = commits.run() => match never {},
            end = self.serve() => end,
        }
    }

    async fn serve(&mut self) -> FleetEnd {
        self.host(host::Input::Start);
        loop {
            while let Some(output) = self.machine.poll() {
                if output == Output::Exit {
                    info!(
                        host = self.options.info.name.as_str(),
                        left = self.end.left,
                        "host ends"
                    );
                    return self.end;
                }
                self.carry_out(output);
            }
            self.settle();
            let now = self.env.now().mono;
            let wake = [self.machine.wake(now), self.mail_at, Some(self.retain_at)];
            let wake = wake.into_iter().flatten().min().unwrap_or(Micros(u64::MAX));
            let happened = tokio::select! { biased;
                Some(done) = self.asking.next(), if !self.asking.is_empty() => Happened::Done(done),
                Some(request) = self.requests.recv() => Happened::Request(request),
                change = news(&mut self.watching) => Happened::Changed(change),
                () = self.env.sleep_until(wake) => Happened::Time,
                () = self.reports.arrived() => Happened::Reports,
                Some(ended) = self.engines.next(), if !self.engines.is_empty() => Happened::Ended(ended),
            };
            match happened {
                Happened::Done(done) => self.done(done),
                Happened::Request(request) => self.requested(request),
                Happened::Changed(Ok(change)) => {
                    if let Change::Gone(who) = change {
                        self.gone.entry(who).or_insert(self.env.now().unix);
                    }
                    self.host(host::Input::Changed(change));
                }
                Happened::Changed(Err(error)) => {
                    info!(%error, "no news from the store");
                    self.host(host::Input::WatchFailed);
                }
                Happened::Time => self.time_passed(),
                Happened::Reports => {
                    for (account, engine, report) in self.reports.take() {
                        self.reported(account, engine, report);
                    }
                }
                Happened::Ended(ended) => self.ended(ended),
            }
        }
    }

    fn host(&mut self, input: host::Input) {
        let now = self.env.now().mono;
        self.machine.handle(Input::Host(input), now);
    }

    fn tell(&mut self, account: &AccountId, input: device::Input) {
        let now = self.env.now().mono;
        self.machine
            .handle(Input::Account(account.clone(), input), now);
    }

    /// Does as the machine says.
    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Call(call) => {
                if let Ask::HandOver { account, to, .. } = &call.ask {
                    self.giving.insert(call.id, (account.clone(), *to));
                }
                if let Ask::Orphans { after: None, .. } = &call.ask {
                    self.origins.clear();
                }
                let (store, env) = (self.store.clone(), self.env.clone());
                self.asking.push(calls::ask(store, env, call).boxed());
            }
            Output::Watch(who) => {
                let store = self.store.clone();
                self.watching = Some(async move { store.watch(who).await }.boxed());
            }
            Output::Account(account, action) => self.act(&account, action),
            // The caller's.
            Output::Exit => {}
        }
    }

    fn act(&mut self, account: &AccountId, action: Action) {
        match action {
            Action::Build(lease) => self.build(account, lease),
            Action::Gate(gate) => self.wish(account, |wishes| wishes.gate = gate),
            Action::Connect => self.wish(account, |wishes| wishes.connects += 1),
            Action::Verify(number, term) => self.verifying.push((account.clone(), number, term)),
            Action::Stop => {
                if self.unbuild(account) {
                    self.tell(account, device::Input::Stopped(StopReason::Shutdown));
                } else {
                    self.wish(account, |wishes| wishes.stop = true);
                }
            }
            Action::Drop => {
                self.unbuild(account);
                if let Some(room) = self.rooms.get_mut(account) {
                    let gone = std::mem::take(&mut room.engine);
                    room.wishes.send_modify(|wishes| wishes.gone = gone);
                }
            }
            // An engine without a grant lets its connection go by itself, after as long
            // ([`Timing::hold`](baton_core::flow::Timing)), and stops.
            Action::Disconnect => {}
            // Hosts do not talk to each other: the successor learns of it from the store.
            Action::Prepare(_) => self.tell(account, device::Input::Prepared),
            Action::State(state) => self.state(account, state),
            Action::Alert(times) => {
                warn!(%account, times, "somebody outside of the fleet uses the keys of this account");
                let account = account.clone();
                self.event(FleetEvent::Contested { account, times });
            }
        }
    }

    fn state(&mut self, account: &AccountId, state: device::State) {
        if state == device::State::Standby {
            let Some(room) = self.rooms.remove(account) else {
                return;
            };
            let epoch = room.status.epoch;
            let to = self.given.remove(account);
            info!(%account, epoch = epoch.0, to = to.map(|to| to.0), "not the owner any more");
            self.shared.board().accounts.remove(account);
            let account = account.clone();
            self.event(FleetEvent::Lost { account, epoch, to });
        } else if let Some(room) = self.rooms.get_mut(account) {
            room.status.state = state;
            let status = room.status.clone();
            self.event(FleetEvent::Account(status));
        }
        self.post(account);
    }

    /// Shows on the board what is known of an account.
    fn post(&mut self, account: &AccountId) {
        if let Some(room) = self.rooms.get(account) {
            let row = (room.status.clone(), room.handle.clone());
            self.shared.board().accounts.insert(account.clone(), row);
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Answered(id, answer) => {
                self.overhear(id, &answer);
                self.host(host::Input::Answer(id, answer));
            }
            Done::Verified(verdicts) => {
                for (account, number, verdict) in verdicts {
                    self.tell(&account, device::Input::Verified(number, verdict));
                }
            }
            Done::Mail(accounts) => {
                let every = self.options.drive.mailbox;
                self.mail_at = every.map(|every| self.env.now().mono.plus(every));
                for account in accounts {
                    self.wish(&account, |wishes| wishes.mail += 1);
                }
            }
            Done::Retained(more) => self.retained(more),
        }
    }

    /// What an answer says beside what the machine needs to know.
    fn overhear(&mut self, id: CallId, answer: &Answer) {
        let now = self.env.now().unix;
        let giving = self.giving.remove(&id);
        match answer {
            Answer::HandedOver(HandOver::Done { .. }) => {
                if let Some((account, to)) = giving {
                    self.given.insert(account, to);
                }
            }
            Answer::Beaten(Beaten::Renewed(view)) => {
                for host in &view.hosts {
                    if host.state == HostState::Dead {
                        self.gone.entry(host.who).or_insert(now);
                    }
                }
                let listed = |who: &Incarnation| view.hosts.iter().any(|host| host.who == *who);
                self.gone.retain(|who, _| listed(who));
                self.shared.board().view = view.clone();
            }
            Answer::Orphans(orphans) => {
                for orphan in orphans {
                    if let Some(last) = orphan.last {
                        self.gone.entry(last).or_insert(now);
                        self.origins.insert(orphan.account.clone(), last);
                    }
                }
            }
            Answer::Left => self.end.left = true,
            _ => {}
        }
    }

    fn requested(&mut self, request: Request) {
        match request {
            Request::Drain { leave } => self.host(host::Input::Drain { leave }),
            Request::Undrain => self.host(host::Input::Undrain),
            Request::Give(account, to) => self.tell(&account, device::Input::Leave(to)),
            Request::Restart(account) => self.tell(&account, device::Input::Restart),
        }
    }

    fn reported(&mut self, account: AccountId, engine: u64, report: Report) {
        let now = self.env.now().unix;
        let Some(room) = self.rooms.get_mut(&account) else {
            return;
        };
        // Of an engine that was told to go.
        if room.engine != engine {
            return;
        }
        let takeover = &mut room.status.takeover;
        let (input, event) = match report {
            Report::Wants(priority) => (Some(device::Input::Wants { priority }), None),
            Report::Down => (Some(device::Input::Down), None),
            Report::Up => {
                // Something may have waited for an owner.
                room.wishes.send_modify(|wishes| wishes.mail += 1);
                let is_first = takeover.connected.is_none();
                takeover.connected.get_or_insert(now);
                let event = is_first.then(|| FleetEvent::Up(room.status.clone()));
                (Some(device::Input::Up), event)
            }
            Report::Message => {
                room.active = now;
                let is_first = takeover.first_message.is_none();
                takeover.first_message.get_or_insert(now);
                let event = is_first.then(|| FleetEvent::FirstMessage(room.status.clone()));
                (None, event)
            }
        };
        if let Some(event) = event {
            self.event(event);
            self.post(&account);
        }
        if let Some(input) = input {
            self.tell(&account, input);
        }
    }

    /// After everything the machine wanted was begun.
    fn settle(&mut self) {
        // No engine may act beyond what the host may.
        let until = self.machine.host().until().unwrap_or_default();
        self.grant.set(until);
        if !self.verifying.is_empty() {
            let asked = std::mem::take(&mut self.verifying);
            let (store, env) = (self.store.clone(), self.env.clone());
            let within = self.options.timing.call;
            let verify = calls::verify(store, env, within, asked);
            self.asking.push(verify.boxed());
        }
        let now = status(&self.machine);
        let mut board = self.shared.board();
        if board.host != now {
            let is_news = board.host.state != now.state || board.host.who != now.who;
            board.host = now.clone();
            drop(board);
            if is_news {
                info!(state = ?now.state, host = now.who.0, "host");
                self.event(FleetEvent::Host(now));
            }
        }
    }

    fn event(&self, event: FleetEvent) {
        // Nobody need listen.
        let _ = self.events.send(event);
    }
}

enum Happened {
    Done(Done),
    Request(Request),
    Changed(Result<Change, StoreError>),
    Time,
    Reports,
    Ended(Ended),
}

/// The answer to the watch that is out; it is out no more then.
async fn news(
    watching: &mut Option<BoxFuture<'static, Result<Change, StoreError>>>,
) -> Result<Change, StoreError> {
    let Some(out) = watching else {
        return std::future::pending().await;
    };
    let news = out.await;
    *watching = None;
    news
}

fn status(machine: &Machine) -> HostStatus {
    let host = machine.host();
    let load = host.load();
    HostStatus {
        state: host.state(),
        who: host.who(),
        slot: host.slot(),
        accounts: load.accounts,
        live: load.up,
        orphans: machine.orphans(),
    }
}
