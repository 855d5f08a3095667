//! All accounts of one host, and the host: what a driver task holds.

use super::{
    Answer, Ask, Budget, Call, CallId, Timing, TimingError,
    claims::{self, Claims},
    device::{self, Action, Device, Need},
    host::{self, Host, Load, Order, State},
    placement::Layout,
};
use crate::state::{
    AccountId, Claim, Epoch, HostInfo, HostState, HostView, Incarnation, Lease, Micros, Orphan,
    Placement,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

/// Between two looks at what the store thinks is ours, or at the orphans, however much changes hands.
const HELD_GAP: Micros = Micros::from_millis(100);
/// Between a look at the orphans that had no answer, or an account that was locked, and the next try.
const AGAIN: Micros = Micros::from_secs(1);

/// How long accounts must have been spread unevenly before some are moved,
const UNEVEN: Micros = Micros::from_secs(120);
/// how long everything must have been quiet,
const QUIET: Micros = Micros::from_secs(300);
/// and how often one in a hundred of all accounts may move.
const MOVES: Micros = Micros::from_secs(60);

/// An account that comes back within this time after it was moved was wished here: it is not moved again.
const RETURN: Micros = Micros::from_secs(600);

/// After the time for draining, so much for the store to take back what nobody wanted.
const LAST_WORDS: Micros = Micros::from_secs(2);

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Input {
    /// To the host. Answers to all [`Output::Call`]s go here too.
    Host(host::Input),
    /// To an account.
    Account(AccountId, device::Input),
}

/// Everything to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask the store; answer with [`host::Input::Answer`].
    Call(Call),
    /// Watch for changes, if the store can.
    Watch(Incarnation),
    /// For an account. [`State::Standby`](device::State::Standby) is the last of an account that is not ours any more.
    Account(AccountId, Action),
    /// The end. The process may exit.
    Exit,
}

/// What a call was for.
#[derive(Debug)]
enum Asked {
    Claim(Vec<AccountId>),
    Release(Vec<AccountId>),
    HandOver(AccountId),
    Held { gifts: u64 },
    Misplaced,
    Orphans,
}

/// How far leaving has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    No,
    /// Accounts find successors until then,
    By(Micros),
    /// are given up until then,
    Late(Micros),
    /// and are dropped.
    Over,
}

/// The host machine and the machines of its accounts.
#[derive(Debug)]
pub struct Fleet {
    host: Host,
    devices: BTreeMap<AccountId, Device>,
    timers: BTreeSet<(Micros, AccountId)>,
    wakes: BTreeMap<AccountId, Micros>,
    load: Load,
    /// Accounts on their way out.
    leaving: u32,
    /// Accounts that wait to connect, the most active first.
    turns: BTreeSet<(Reverse<u64>, AccountId)>,
    priorities: BTreeMap<AccountId, u64>,
    connects: Budget,
    claims: Claims,
    /// Accounts of ours that need a new term.
    terms: BTreeSet<AccountId>,
    calls: BTreeMap<CallId, Asked>,
    claiming: bool,
    scanning: bool,
    scan_at: Micros,
    scan_last: Micros,
    /// Whether it is being asked what of ours is wished elsewhere, and when to ask.
    sorting: bool,
    sort_at: Micros,
    /// Has seen the cluster and waited a moment.
    settled: bool,
    /// Gifts whose accounts we have.
    gifts: u64,
    holding: bool,
    /// When to ask what is ours, and when that was asked last.
    held_at: Option<Micros>,
    held_last: Micros,
    /// Accounts that left us: their last epoch, and the calls there had been. News from before then is no news.
    left: BTreeMap<AccountId, (Epoch, CallId)>,
    releases: Vec<(AccountId, Epoch)>,
    /// Where accounts are sent, as of this view.
    targets: Option<Layout>,
    leave: Leave,
    uneven_since: Option<Micros>,
    quiet_since: Micros,
    next_moves: Micros,
    /// Moved to even out, and when.
    moved: BTreeMap<AccountId, Micros>,
    /// Came back: pinned here, most likely.
    stays: BTreeSet<AccountId>,
    out: VecDeque<Output>,
}

impl Fleet {
    /// A host without accounts, not joined yet: start it with [`host::Input::Start`].
    pub fn new(
        info: HostInfo,
        timing: Timing,
        seed: [u8; 32],
        now: Micros,
    ) -> Result<Self, TimingError> {
        Ok(Self {
            host: Host::new(info, timing, seed, now)?,
            devices: BTreeMap::new(),
            timers: BTreeSet::new(),
            wakes: BTreeMap::new(),
            load: Load::default(),
            leaving: 0,
            turns: BTreeSet::new(),
            priorities: BTreeMap::new(),
            connects: Budget::new(timing.connects, now),
            claims: Claims::new(&timing, now),
            terms: BTreeSet::new(),
            calls: BTreeMap::new(),
            claiming: false,
            scanning: false,
            scan_at: now,
            scan_last: Micros(0),
            sorting: false,
            sort_at: now,
            settled: false,
            gifts: 0,
            holding: false,
            held_at: None,
            held_last: Micros(0),
            left: BTreeMap::new(),
            releases: Vec::new(),
            targets: None,
            leave: Leave::No,
            uneven_since: None,
            quiet_since: now,
            next_moves: now,
            moved: BTreeMap::new(),
            stays: BTreeSet::new(),
            out: VecDeque::new(),
        })
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input, now: Micros) {
        // Time first: no account may go on with what a sleeping process has lost meanwhile.
        if !matches!(input, Input::Host(host::Input::ClockJump(_))) {
            self.host.handle(host::Input::Tick, now);
            self.hear(now);
        }
        match input {
            Input::Host(host::Input::Answer(id, answer)) => match self.calls.remove(&id) {
                Some(asked) => self.answered(id, asked, answer, now),
                None => self.host.handle(host::Input::Answer(id, answer), now),
            },
            Input::Host(input) => self.host.handle(input, now),
            Input::Account(account, device::Input::Take) => {
                self.known(&account);
                self.tell(&account, device::Input::Take, now);
            }
            Input::Account(account, input) => self.tell(&account, input, now),
        }
        self.hear(now);
        while let Some((at, account)) = self.timers.first().cloned()
            && at <= now
        {
            self.timers.remove(&(at, account.clone()));
            self.wakes.remove(&account);
            self.tell(&account, device::Input::Tick, now);
        }
        self.drain(now);
        self.hear(now);
        self.look_after(now);
        self.give_turns(now);
    }

    /// What to do next; `None` until the next input.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to come with [`host::Input::Tick`] if nothing else happens.
    #[must_use]
    pub fn wake(&self, now: Micros) -> Option<Micros> {
        let takes = self.may_take();
        let turns =
            (!self.turns.is_empty() && self.host.is_healthy()).then(|| self.connects.ready(now));
        let scan = (takes && !self.scanning).then_some(self.scan_at);
        let sort = (takes && !self.sorting && !self.devices.is_empty()).then_some(self.sort_at);
        let claim = (takes && !self.claiming)
            .then(|| self.claims.wake(now))
            .flatten();
        let held = self
            .held_at
            .filter(|_| !self.holding && self.host.is_healthy());
        [
            self.host.wake(),
            self.timers.first().map(|(at, _)| *at),
            turns,
            scan,
            sort,
            claim,
            held,
            match self.leave {
                Leave::By(at) | Leave::Late(at) => Some(at),
                Leave::No | Leave::Over => None,
            },
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The host.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// An account that is here, or on its way.
    #[must_use]
    pub fn account(&self, account: &AccountId) -> Option<&Device> {
        self.devices.get(account)
    }

    /// All accounts that are here, or on their way.
    pub fn accounts(&self) -> impl Iterator<Item = (&AccountId, &Device)> {
        self.devices.iter()
    }

    /// How many accounts are without a host, as far as we have seen.
    #[must_use]
    pub fn orphans(&self) -> usize {
        self.claims.len()
    }

    /// Whether this may leave the process for `account` now: something new ([`device::Gate::Open`]), or something that
    /// was durable before ([`device::Gate::Committed`]). Ask before each thing that does.
    #[must_use]
    pub fn may_act(&self, account: &AccountId, what: device::Gate, now: Micros) -> bool {
        self.host.may_act(now)
            && self
                .devices
                .get(account)
                .is_some_and(|device| device.gate() >= what)
    }

    /// What the host wants.
    fn hear(&mut self, now: Micros) {
        while let Some(output) = self.host.poll() {
            match output {
                host::Output::Call(call) => self.out.push_back(Output::Call(call)),
                host::Output::Watch(who) => self.out.push_back(Output::Watch(who)),
                host::Output::Order(order) => self.order(order, now),
                host::Output::Look { scan } => self.look(scan, now),
                host::Output::Canary => self.send_canary(now),
                host::Output::Exit => self.out.push_back(Output::Exit),
            }
        }
    }

    fn order(&mut self, order: Order, now: Micros) {
        match order {
            Order::Abandon => {
                // Answers to what the dead asked are not for the living.
                self.calls.clear();
                self.claims.clear();
                self.terms.clear();
                self.left.clear();
                self.releases.clear();
                (self.claiming, self.scanning, self.holding) = (false, false, false);
                self.sorting = false;
                self.settled = false;
                (self.gifts, self.held_at, self.targets) = (0, None, None);
                self.quiet_since = now;
            }
            Order::History(_) => {
                self.held_at = Some(now);
                self.quiet_since = now;
            }
            _ => {}
        }
        let accounts: Vec<AccountId> = self.devices.keys().cloned().collect();
        for account in accounts {
            self.tell(&account, device::Input::Order(order), now);
        }
    }

    /// A new view, or a hint.
    fn look(&mut self, scan: bool, now: Micros) {
        if !self.settled {
            self.settled = true;
            let settle = self.host.timing().settle;
            self.scan_at = now.plus(settle);
            self.claims.wait(self.scan_at.plus(settle));
        } else if scan {
            let soon = self.scan_last.plus(HELD_GAP).max(now);
            self.scan_at = self.scan_at.min(soon);
            self.sort_at = self.sort_at.min(soon);
        }
        if !self.host.view().newly_dead.is_empty() {
            self.quiet_since = now;
        }
        if self.host.view().gifts != self.gifts {
            let at = self.held_last.plus(HELD_GAP).max(now);
            self.held_at = Some(self.held_at.map_or(at, |due| due.min(at)));
        }
        self.targets = None;
        self.even_out(now);
    }

    /// Gives an account's machine an input, and does what it then needs.
    fn tell(&mut self, account: &AccountId, input: device::Input, now: Micros) {
        let Some(device) = self.devices.get_mut(account) else {
            return;
        };
        let before = weight(device);
        device.handle(input, now);
        let after = weight(device);
        let (wake, mut gone, mut needs) = (device.wake(), None, Vec::new());
        while let Some(output) = device.poll() {
            match output {
                device::Output::Do(action) => {
                    self.out.push_back(Output::Account(account.clone(), action));
                }
                device::Output::Need(Need::Gone(epoch)) => gone = Some(epoch),
                device::Output::Need(need) => needs.push(need),
            }
        }
        self.weigh(before, after);
        if let Some(old) = self.wakes.remove(account) {
            self.timers.remove(&(old, account.clone()));
        }
        if let Some(wake) = wake {
            self.wakes.insert(account.clone(), wake);
            self.timers.insert((wake, account.clone()));
        }
        for need in needs {
            self.serve(account, need, now);
        }
        if let Some(epoch) = gone {
            self.remove(account, epoch);
        }
    }

    fn serve(&mut self, account: &AccountId, need: Need, now: Micros) {
        match need {
            Need::Claim => {
                self.terms.insert(account.clone());
            }
            Need::Release(epoch) => self.releases.push((account.clone(), epoch)),
            Need::HandOver(epoch, to) => {
                let account = account.clone();
                let asked = Asked::HandOver(account.clone());
                self.ask(Ask::HandOver { account, epoch, to }, asked);
            }
            Need::Turn(priority) => {
                self.priorities.insert(account.clone(), priority);
                self.turns.insert((Reverse(priority), account.clone()));
            }
            Need::NoTurn => self.no_turn(account),
            Need::Elsewhere(refused) => {
                let to = self.target(account, Some(refused));
                self.tell(account, device::Input::Leave(to), now);
            }
            Need::Stuck => {
                if self.host.others_are_better()
                    && let Some(to) = self.target(account, None)
                {
                    self.tell(account, device::Input::Leave(Some(to)), now);
                }
            }
            // Taken apart by the caller.
            Need::Gone(_) => {}
        }
    }

    /// The account is not ours any more.
    fn remove(&mut self, account: &AccountId, epoch: Epoch) {
        if let Some(device) = self.devices.remove(account) {
            self.weigh(weight(&device), (0, 0, 0, 0));
        }
        if let Some(wake) = self.wakes.remove(account) {
            self.timers.remove(&(wake, account.clone()));
        }
        self.no_turn(account);
        self.stays.remove(account);
        self.terms.remove(account);
        let calls = self.host.calls();
        self.left.insert(account.clone(), (epoch, calls));
    }

    fn no_turn(&mut self, account: &AccountId) {
        if let Some(priority) = self.priorities.remove(account) {
            self.turns.remove(&(Reverse(priority), account.clone()));
        }
    }

    fn weigh(&mut self, before: Weight, after: Weight) {
        let shift = |total: &mut u32, before: u32, after: u32| *total = *total + after - before;
        shift(&mut self.load.accounts, before.0, after.0);
        shift(&mut self.load.wanting, before.1, after.1);
        shift(&mut self.load.up, before.2, after.2);
        shift(&mut self.leaving, before.3, after.3);
        self.host.set_load(self.load);
    }

    fn known(&mut self, account: &AccountId) {
        if !self.devices.contains_key(account) {
            let device = Device::new(self.host.state());
            self.devices.insert(account.clone(), device);
        }
    }

    fn owned(&mut self, account: &AccountId, lease: Lease, now: Micros) {
        self.claims.forget(account);
        self.known(account);
        if let Some(moved) = self.moved.remove(account)
            && now.since(moved) < RETURN
        {
            self.stays.insert(account.clone());
        }
        self.tell(account, device::Input::Owned(lease), now);
    }

    fn ask(&mut self, ask: Ask, asked: Asked) {
        let call = self.host.call(ask);
        self.calls.insert(call.id, asked);
        self.out.push_back(Output::Call(call));
    }

    fn answered(&mut self, id: CallId, asked: Asked, answer: Answer, now: Micros) {
        if answer == Answer::NotMember {
            self.host.handle(host::Input::Ended(self.host.who()), now);
            return;
        }
        if !self.host.is_member() {
            // We have left; nothing can be ours any more.
            return;
        }
        match asked {
            Asked::Claim(accounts) => {
                self.claiming = false;
                let claims = match answer {
                    Answer::Claimed(claims) if claims.len() == accounts.len() => Some(claims),
                    _ => None,
                };
                self.claimed(accounts, claims, now);
            }
            Asked::Release(accounts) => {
                let answered = answer == Answer::Released;
                for account in accounts {
                    self.tell(&account, device::Input::Released(answered), now);
                }
            }
            Asked::HandOver(account) => {
                let answer = match answer {
                    Answer::HandedOver(answer) => Some(answer),
                    _ => None,
                };
                self.tell(&account, device::Input::HandedOver(answer), now);
            }
            Asked::Held { gifts } => {
                self.holding = false;
                match answer {
                    Answer::Held(held) => {
                        self.gifts = gifts;
                        self.reconcile(id, held, now);
                    }
                    _ => self.held_at = Some(now.plus(AGAIN)),
                }
            }
            Asked::Misplaced => {
                self.sorting = false;
                if let Answer::Misplaced(misplaced) = answer {
                    self.sort_out(misplaced, now);
                }
            }
            Asked::Orphans => {
                self.scanning = false;
                match answer {
                    Answer::Orphans(orphans) => self.orphaned(orphans, now),
                    _ => self.scan_at = now.plus(AGAIN),
                }
            }
        }
    }

    fn claimed(&mut self, accounts: Vec<AccountId>, claims: Option<Vec<Claim>>, now: Micros) {
        let Some(claims) = claims else {
            // Perhaps they are ours, and nobody knows. The store does.
            self.held_at = Some(now);
            for account in accounts {
                if self.devices.contains_key(&account) {
                    self.tell(&account, device::Input::ClaimFailed, now);
                } else {
                    self.claims.later(account, now.plus(AGAIN));
                }
            }
            return;
        };
        for (account, claim) in accounts.into_iter().zip(claims) {
            match claim {
                Claim::Granted(lease) => self.owned(&account, lease, now),
                _ if self.devices.contains_key(&account) => {
                    self.tell(&account, device::Input::NotOwned(claim), now);
                }
                Claim::Locked => self.claims.later(account, now.plus(AGAIN)),
                Claim::Held { .. } | Claim::Retired | Claim::Missing => {
                    self.claims.forget(&account);
                }
            }
        }
    }

    /// What the store thinks is ours, as of the call `id`.
    fn reconcile(&mut self, id: CallId, held: Vec<(AccountId, Lease)>, now: Micros) {
        for (account, lease) in held {
            let epoch = lease.term.epoch;
            match self.left.get(&account) {
                _ if self.devices.contains_key(&account) => self.owned(&account, lease, now),
                // It left. If that was before the question, the store does not know or has forgotten, and nobody would
                // run it; if it was after, this changes nothing.
                Some((last, _)) if epoch <= *last => self.releases.push((account, epoch)),
                _ => self.owned(&account, lease, now),
            }
        }
        self.left.retain(|_, (_, at)| *at > id);
    }

    fn orphaned(&mut self, orphans: Vec<Orphan>, now: Micros) {
        let all = orphans.len() < usize::try_from(claims::PAGE).unwrap_or(usize::MAX);
        let (me, grace) = (self.host.who(), self.host.timing().grace);
        let orphans: Vec<_> = orphans
            .into_iter()
            .filter(|orphan| !self.devices.contains_key(&orphan.account))
            .collect();
        let last = self.claims.page(orphans, me, grace, now);
        match last {
            Some(_) if !all => self.scan(last),
            _ => {
                self.claims.end();
                let pause = super::budget::jittered(self.host.timing().scan, 10, self.host.rng());
                self.scan_at = now.plus(pause);
            }
        }
    }

    /// Gives up what is not to run, and gives what is wished on another host to that, if it is there to take it.
    fn sort_out(&mut self, misplaced: Vec<(AccountId, Placement)>, now: Micros) {
        let me = self.host.who();
        for (account, wish) in misplaced {
            let to = wish.pin.and_then(|pin| {
                let is_wished = |host: &&HostView| {
                    host.who != me && host.state == HostState::Active && host.info.name == pin
                };
                self.host.view().hosts.iter().find(is_wished)
            });
            let to = to.map(|host| host.who);
            let is_ours = self
                .devices
                .get(&account)
                .is_some_and(|device| device.term().is_some() && !device.is_leaving());
            if is_ours && (!wish.run || to.is_some()) {
                let to = to.filter(|_| wish.run);
                self.tell(&account, device::Input::Leave(to), now);
            }
        }
    }

    fn scan(&mut self, after: Option<AccountId>) {
        self.scanning = true;
        let limit = claims::PAGE;
        self.ask(Ask::Orphans { after, limit }, Asked::Orphans);
    }

    /// Whether accounts of others may be taken.
    fn may_take(&self) -> bool {
        self.settled && self.host.is_healthy() && !self.host.is_closed()
    }

    /// Scans, claims, releases that are due.
    fn look_after(&mut self, now: Micros) {
        if !self.releases.is_empty() {
            let releases = std::mem::take(&mut self.releases);
            let accounts = releases
                .iter()
                .map(|(account, _)| account.clone())
                .collect();
            self.ask(Ask::Release(releases), Asked::Release(accounts));
        }
        if !self.host.is_healthy() {
            return;
        }
        if self.held_at.is_some_and(|at| at <= now) && !self.holding {
            self.holding = true;
            self.held_at = None;
            self.held_last = now;
            let gifts = self.host.view().gifts;
            self.ask(Ask::Held, Asked::Held { gifts });
        }
        if self.may_take() && self.scan_at <= now && !self.scanning {
            let mut layout = Layout::new(&self.host.view().hosts, 0);
            layout.set(self.host.who(), self.load.accounts);
            self.scan_last = now;
            let gone = self.host.view().hosts.iter();
            let gone = gone.filter(|host| !host.state.is_live());
            let gone = gone.map(|host| (host.who, host.accounts));
            self.claims.begin(layout, gone, now);
            self.scan(None);
        }
        if self.may_take() && self.sort_at <= now && !self.sorting && !self.devices.is_empty() {
            self.sorting = true;
            let pause = super::budget::jittered(self.host.timing().scan, 10, self.host.rng());
            self.sort_at = now.plus(pause);
            self.ask(Ask::Misplaced, Asked::Misplaced);
        }
        if !self.claiming {
            let most = self.host.timing().claim_batch;
            let full = usize::try_from(most).unwrap_or(usize::MAX);
            // Our own first: they have no engine meanwhile.
            let mut accounts = Vec::new();
            while accounts.len() < full
                && let Some(account) = self.terms.pop_first()
            {
                accounts.push(account);
            }
            if accounts.is_empty() && self.may_take() {
                accounts = self.claims.take(most, now, self.host.rng());
            }
            if !accounts.is_empty() {
                self.claiming = true;
                self.ask(Ask::Claim(accounts.clone()), Asked::Claim(accounts));
            }
        }
    }

    fn give_turns(&mut self, now: Micros) {
        while self.host.is_healthy()
            && !self.turns.is_empty()
            && self.connects.take(1, now, self.host.rng()) == 1
        {
            if let Some((_, account)) = self.turns.pop_first() {
                self.priorities.remove(&account);
                self.tell(&account, device::Input::Permit, now);
            }
        }
    }

    /// A host for an account of ours.
    fn target(&mut self, account: &AccountId, refused: Option<Incarnation>) -> Option<Incarnation> {
        let me = self.host.who();
        let (view, load) = (self.host.view(), self.load.accounts);
        let targets = self.targets.get_or_insert_with(|| {
            let mut layout = Layout::new(&view.hosts, 0);
            layout.set(me, load);
            layout
        });
        targets.place(account, me, refused)
    }

    /// Gives away what a closed host has, so many at a time.
    fn drain(&mut self, now: Micros) {
        if self.host.is_leaving() {
            self.hurry(now);
        }
        let batch = self.host.timing().drain_batch;
        let room = usize::try_from(batch.saturating_sub(self.leaving)).unwrap_or(usize::MAX);
        if self.host.state() == State::Draining && room > 0 {
            let accounts: Vec<AccountId> = self
                .devices
                .iter()
                .filter(|(_, device)| !device.is_leaving())
                .map(|(account, _)| account.clone())
                .take(room)
                .collect();
            for account in accounts {
                let to = self.target(&account, None);
                // Whoever stays keeps what nobody else can take.
                if to.is_none() && !self.host.is_leaving() {
                    break;
                }
                self.tell(&account, device::Input::Leave(to), now);
            }
        }
        // A claim that is out may bring another account.
        if self.host.is_leaving() && self.devices.is_empty() && !self.claiming && !self.holding {
            self.host.handle(host::Input::Empty, now);
        }
    }

    /// Sees to it that a host that is to leave does, in time.
    fn hurry(&mut self, now: Micros) {
        match self.leave {
            Leave::No => self.leave = Leave::By(now.plus(self.host.timing().drain)),
            Leave::By(at) if at <= now => {
                self.leave = Leave::Late(now.plus(LAST_WORDS));
                let accounts: Vec<AccountId> = self.devices.keys().cloned().collect();
                for account in accounts {
                    self.tell(&account, device::Input::Leave(None), now);
                }
            }
            // They were not taken back, so the store cannot be reached: our lease will run out by itself.
            Leave::Late(at) if at <= now => {
                self.leave = Leave::Over;
                self.order(Order::Abandon, now);
            }
            Leave::By(_) | Leave::Late(_) | Leave::Over => {}
        }
    }

    /// Moves some accounts to hosts that have too few, slowly, and only after a long time of quiet.
    fn even_out(&mut self, now: Micros) {
        if !self.may_take() {
            return;
        }
        let me = self.host.who();
        let mut layout = Layout::new(&self.host.view().hosts, 0);
        layout.set(me, self.load.accounts);
        if !layout.is_uneven() {
            self.uneven_since = None;
            return;
        }
        let since = *self.uneven_since.get_or_insert(now);
        if now.since(since) < UNEVEN
            || now.since(self.quiet_since) < QUIET
            || now < self.next_moves
            || layout.surplus(me) == 0
        {
            return;
        }
        self.next_moves = now.plus(MOVES);
        let overloaded = u64::try_from(layout.overloaded().max(1)).unwrap_or(1);
        let part = (layout.accounts() / 100 / overloaded).max(1);
        let most = usize::try_from(part.min(u64::from(layout.surplus(me)))).unwrap_or(usize::MAX);
        let (mut strangers, mut natives) = (Vec::new(), Vec::new());
        for (account, device) in &self.devices {
            if device.is_leaving() || self.stays.contains(account) {
                continue;
            }
            if layout.is_stranger(account, me) {
                strangers.push(account.clone());
            } else {
                natives.push(account.clone());
            }
        }
        self.moved.retain(|_, moved| now.since(*moved) < RETURN);
        let mut moved = 0;
        for account in strangers.into_iter().chain(natives) {
            if moved == most {
                break;
            }
            if let Some(to) = layout.relieve(&account, me) {
                moved += 1;
                self.moved.insert(account.clone(), now);
                self.tell(&account, device::Input::Leave(Some(to)), now);
            }
        }
    }

    /// Has one account of ours that cannot connect tried by somebody else.
    fn send_canary(&mut self, now: Micros) {
        let canary = self
            .devices
            .iter()
            .find(|(_, device)| device.is_wanting() && !device.is_up() && !device.is_leaving())
            .map(|(account, _)| account.clone());
        if let Some(account) = canary
            && let Some(to) = self.target(&account, None)
        {
            self.tell(&account, device::Input::Leave(Some(to)), now);
        }
    }
}

/// Held, wanting a connection, having one, leaving.
type Weight = (u32, u32, u32, u32);

fn weight(device: &Device) -> Weight {
    (
        device.term().is_some().into(),
        device.is_wanting().into(),
        device.is_up().into(),
        device.is_leaving().into(),
    )
}

#[cfg(test)]
mod tests;
