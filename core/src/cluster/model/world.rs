//! Hosts with clocks of their own, a network that loses things, a service that keeps one connection per account.

use super::store::{Db, Outcome};
use crate::{
    cluster::{
        Answer, Call, Timing,
        device::{self, Action, Gate, Verdict},
        fleet::{Fleet, Input, Output},
        host,
    },
    crypto::Rng,
    flow::StopReason,
    state::{AccountId, Beaten, Change, HostInfo, Incarnation, Lease, Micros, Seq, Term},
};
use std::collections::{BTreeMap, BTreeSet};

const MS: u64 = 1_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process does not run; its clock does.
    Freeze,
    /// The machine does not run, and its clock neither.
    Suspend,
    /// The process ends without a word. Its successor starts when the fault is over.
    Crash,
    /// The way to the database, both ways or one.
    Cut { out: bool, back: bool },
    /// One in five messages to and from the database is lost; the others may take half a second.
    Flaky,
    /// The way to the service.
    Egress,
    /// Everybody's way to the database.
    DbDown,
    /// The database falls back to what it knew up to a second ago.
    Failover,
    /// An orderly end; a new start when the fault is over.
    Leave,
    /// Gives everything away, and stays.
    Drain,
    /// An engine fails.
    EngineCrash,
    /// The host's own session at the database ends although it lives: it is declared dead at once.
    PresenceLost,
}

/// A fault that begins at `at` milliseconds and lasts for so many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) at: u64,
    pub(super) lasts: u64,
    pub(super) node: usize,
    pub(super) fault: Fault,
}

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) accounts: u64,
    pub(super) timing: Timing,
    /// How far each clock is off, in parts per million.
    pub(super) drift: Vec<i64>,
    /// Whether the end of a process and changes of ownership are told at once.
    pub(super) presence: bool,
    /// Whether two hosts acting at once is a fault: it is not if hosts can be declared dead before their lease is over,
    /// or if the database loses the word of it.
    pub(super) strict: bool,
}

#[derive(Debug)]
struct Engine {
    id: u64,
    lease: Lease,
    gate: Gate,
    next: Seq,
    /// Sent and not answered.
    flying: Option<Seq>,
    sent: u64,
    committed: bool,
    up: bool,
    stopping: bool,
}

struct Node {
    fleet: Option<Fleet>,
    /// Which process this is: what was meant for its predecessor is lost.
    life: u64,
    engines: BTreeMap<AccountId, Engine>,
    open: BTreeSet<crate::cluster::CallId>,
    asleep_until: u64,
    clock_at: u64,
    clock: u64,
    cut_out: bool,
    cut_back: bool,
    flaky: bool,
    dark: bool,
    wake: u64,
    watching: Option<Incarnation>,
    /// Incarnations that were told to be dead.
    fenced: BTreeSet<Incarnation>,
    /// When the process ended in order.
    pub(super) exited: Option<u64>,
}

#[derive(Clone, Debug)]
enum Event {
    Wake,
    Ask(Call),
    Answer(crate::cluster::CallId, Answer),
    Changed(Change),
    /// Of the engine with this number.
    Loaded(AccountId, u64),
    Connected(AccountId, u64, bool),
    Lost(AccountId, u64),
    Replaced(AccountId, u64),
    Work(AccountId, u64),
    Commit(AccountId, u64, Seq, Term),
    Committed(AccountId, u64, Seq, Outcome),
    NoCommit(AccountId, u64, Seq),
    Confirm(AccountId, u64, u32),
    Confirmed(AccountId, u64, u32, Verdict),
    Finished(AccountId, u64),
    Jump(u64),
    Fault(usize, bool),
    Snapshot,
}

pub(super) struct World {
    setup: Setup,
    plan: Vec<Planned>,
    rng: Rng,
    now: u64,
    events: BTreeMap<(u64, u64), (usize, u64, Event)>,
    count: u64,
    nodes: Vec<Node>,
    pub(super) db: Db,
    db_down: bool,
    old: Vec<Db>,
    connections: BTreeMap<AccountId, (usize, u64)>,
    engines: u64,
    /// Who acted last for an account, and until when.
    acting: BTreeMap<AccountId, (usize, u64)>,
    pub(super) acts: u64,
    pub(super) replaced: u64,
    pub(super) moved: BTreeMap<AccountId, u64>,
    pub(super) broken: Option<String>,
}

impl World {
    pub(super) fn new(setup: Setup, plan: Vec<Planned>) -> Self {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&setup.seed.to_le_bytes());
        let nodes = (0..setup.nodes)
            .map(|_| Node {
                fleet: None,
                life: 0,
                engines: BTreeMap::new(),
                open: BTreeSet::new(),
                asleep_until: 0,
                clock_at: 0,
                clock: 0,
                cut_out: false,
                cut_back: false,
                flaky: false,
                dark: false,
                wake: u64::MAX,
                watching: None,
                fenced: BTreeSet::new(),
                exited: None,
            })
            .collect();
        let mut world = Self {
            rng: Rng::from_seed(seed),
            now: 0,
            events: BTreeMap::new(),
            count: 0,
            nodes,
            db: Db::new(setup.accounts),
            db_down: false,
            old: Vec::new(),
            connections: BTreeMap::new(),
            engines: 0,
            acting: BTreeMap::new(),
            acts: 0,
            replaced: 0,
            moved: BTreeMap::new(),
            broken: None,
            setup,
            plan,
        };
        for n in 0..world.nodes.len() {
            world.start(n);
        }
        for i in 0..world.plan.len() {
            let planned = world.plan[i];
            world.at(planned.at * MS, planned.node, Event::Fault(i, true));
            let over = (planned.at + planned.lasts) * MS;
            world.at(over, planned.node, Event::Fault(i, false));
        }
        world.at(0, 0, Event::Snapshot);
        world
    }

    /// Runs on to `until` milliseconds.
    pub(super) fn run(&mut self, until: u64) {
        while self.broken.is_none()
            && let Some(((at, count), _)) = self.events.first_key_value()
            && *at <= until * MS
        {
            let key = (*at, *count);
            let (node, life, event) = self.events.remove(&key).expect("just seen");
            self.now = self.now.max(key.0);
            self.happen(node, life, event);
            if self.broken.is_none() {
                self.broken = self.db.broken.take();
            }
        }
        self.now = self.now.max(until * MS);
    }

    /// Accounts that are connected and get on with their work on a host that may act for them.
    pub(super) fn served(&self) -> u64 {
        let served = self.db.fences.iter().filter(|(account, fence)| {
            self.nodes.iter().any(|node| {
                let Some(fleet) = &node.fleet else {
                    return false;
                };
                let works = node.engines.get(*account).is_some_and(|engine| {
                    engine.up && (engine.flying.is_none() || engine.sent + 3_000 * MS > self.now)
                });
                works
                    && fence.holder == Some(fleet.host().who())
                    && fleet.account(account).is_some_and(|device| {
                        device.state() == device::State::Live
                            && device.term().map(|term| term.epoch) == Some(fence.epoch)
                    })
            })
        });
        served.count() as u64
    }

    pub(super) fn fleet(&self, node: usize) -> Option<&Fleet> {
        self.nodes[node].fleet.as_ref()
    }

    pub(super) fn exited(&self, node: usize) -> Option<u64> {
        self.nodes[node].exited.map(|at| at / MS)
    }

    fn at(&mut self, at: u64, node: usize, event: Event) {
        self.count += 1;
        let life = self.nodes[node].life;
        self.events
            .insert((at.max(self.now), self.count), (node, life, event));
    }

    fn after(&mut self, least: u64, most: u64, node: usize, event: Event) {
        let delay = least + self.rng.below(most - least + 1);
        self.at(self.now + delay, node, event);
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.rng.below(100) < percent
    }

    fn clock(&self, n: usize) -> Micros {
        let node = &self.nodes[n];
        let passed = i128::from(self.now - node.clock_at);
        let ticked = passed + passed * i128::from(self.setup.drift[n]) / 1_000_000;
        Micros(node.clock + ticked as u64)
    }

    fn start(&mut self, n: usize) {
        let info = HostInfo {
            name: format!("host-{n}").into(),
            address: "".into(),
            zone: ["a", "b"][n % 2].into(),
            version: "".into(),
            capacity: 1_000,
        };
        let seed = self.rng.bytes();
        let now = self.clock(n);
        let fleet = Fleet::new(info, self.setup.timing, seed, now).expect("a timing that fits");
        let node = &mut self.nodes[n];
        node.life += 1;
        node.fleet = Some(fleet);
        node.engines.clear();
        node.open.clear();
        node.wake = u64::MAX;
        node.watching = None;
        node.exited = None;
        self.input(n, Input::Host(host::Input::Start));
    }

    /// The process is gone, and with it its sockets.
    fn end(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.fleet = None;
        node.life += 1;
        node.engines.clear();
        node.watching = None;
        for acting in self.acting.values_mut().filter(|acting| acting.0 == n) {
            acting.1 = acting.1.min(self.now);
        }
        self.connections.retain(|_, (at, _)| *at != n);
    }

    fn input(&mut self, n: usize, input: Input) {
        let now = self.clock(n);
        let Some(fleet) = &mut self.nodes[n].fleet else {
            return;
        };
        fleet.handle(input, now);
        self.carry_out(n);
    }

    fn host(&mut self, n: usize, input: host::Input) {
        self.input(n, Input::Host(input));
    }

    fn tell(&mut self, n: usize, account: &AccountId, input: device::Input) {
        self.input(n, Input::Account(account.clone(), input));
    }

    fn carry_out(&mut self, n: usize) {
        while let Some(output) = self.nodes[n].fleet.as_mut().and_then(Fleet::poll) {
            match output {
                Output::Call(call) => {
                    if self.nodes[n].fenced.contains(&call.who) {
                        self.broken = Some(format!("a dead incarnation asks: {call:?}"));
                    }
                    self.nodes[n].open.insert(call.id);
                    let late = Event::Answer(call.id, Answer::Failed);
                    self.at(self.now + call.within.0, n, late);
                    self.send(n, call.fresh, Event::Ask(call));
                }
                Output::Watch(who) => self.nodes[n].watching = Some(who),
                Output::Exit => {
                    self.end(n);
                    self.nodes[n].exited = Some(self.now);
                    return;
                }
                Output::Account(account, action) => self.act(n, &account, action),
            }
        }
        let now = self.clock(n);
        if let Some(fleet) = &self.nodes[n].fleet
            && let Some(wake) = fleet.wake(now)
        {
            // A little late, by whatever a clock may be slow.
            let wait = wake.since(now).0;
            let at = self.now + wait + wait / 50 + 1;
            if at < self.nodes[n].wake || self.nodes[n].wake <= self.now {
                self.nodes[n].wake = at;
                self.at(at, n, Event::Wake);
            }
        }
    }

    /// On its way to the database, or lost.
    fn send(&mut self, n: usize, fresh: bool, event: Event) {
        let node = &self.nodes[n];
        let unreachable = self.db_down || node.cut_out || fresh && node.cut_back;
        let (lost, slow) = (node.flaky && self.chance(20), self.nodes[n].flaky);
        if !unreachable && !lost {
            self.after(200, if slow { 500 * MS } else { 2 * MS }, n, event);
        }
    }

    /// On its way back, or lost.
    fn reply(&mut self, n: usize, event: Event) {
        let node = &self.nodes[n];
        let unreachable = self.db_down || node.cut_back;
        let (lost, slow) = (node.flaky && self.chance(20), self.nodes[n].flaky);
        if !unreachable && !lost {
            self.after(200, if slow { 500 * MS } else { 2 * MS }, n, event);
        }
    }

    fn act(&mut self, n: usize, account: &AccountId, action: Action) {
        let id = self.nodes[n].engines.get(account).map(|engine| engine.id);
        match (action, id) {
            (Action::Build(lease), None) => {
                self.engines += 1;
                let id = self.engines;
                let engine = Engine {
                    id,
                    lease,
                    gate: Gate::Shut,
                    next: lease.applied.next(),
                    flying: None,
                    sent: 0,
                    committed: false,
                    up: false,
                    stopping: false,
                };
                self.nodes[n].engines.insert(account.clone(), engine);
                *self.moved.entry(account.clone()).or_default() += 1;
                self.after(5 * MS, 50 * MS, n, Event::Loaded(account.clone(), id));
            }
            (Action::Connect, Some(id)) => {
                let works = !self.nodes[n].dark;
                let event = Event::Connected(account.clone(), id, works);
                if works {
                    self.after(20 * MS, 200 * MS, n, event);
                } else {
                    self.after(300 * MS, 800 * MS, n, event);
                }
            }
            (Action::Disconnect, Some(id)) => self.lose(n, account, id),
            (Action::Stop, Some(id)) => {
                if let Some(engine) = self.nodes[n].engines.get_mut(account) {
                    engine.stopping = true;
                }
                // Sometimes it takes longer than anybody waits.
                let most = if self.chance(10) { 3_000 } else { 60 };
                self.after(MS, most * MS, n, Event::Finished(account.clone(), id));
            }
            (Action::Drop, Some(id)) => {
                self.nodes[n].engines.remove(account);
                self.hang_up(n, account, id);
            }
            (Action::Gate(gate), Some(_)) => {
                if let Some(engine) = self.nodes[n].engines.get_mut(account) {
                    engine.gate = gate;
                }
            }
            (Action::Verify(ask, term), id) => {
                if id.is_none_or(|id| self.engine(n, account, id).lease.term == term) {
                    let id = id.unwrap_or(0);
                    let account = account.clone();
                    let late = Event::Confirmed(account.clone(), id, ask, Verdict::Unreachable);
                    self.at(self.now + 1_000 * MS, n, late);
                    self.send(n, true, Event::Confirm(account, id, ask));
                }
            }
            (Action::Prepare(_), Some(_)) => {
                if self.chance(50) {
                    self.tell(n, account, device::Input::Prepared);
                }
            }
            (Action::Build(_), Some(_)) => {
                self.broken = Some(format!("{account}: an engine beside another"));
            }
            (Action::State(_) | Action::Alert(_), _) => {}
            // Its engine has stopped in this very moment.
            (_, None) => {}
        }
    }

    fn engine(&mut self, n: usize, account: &AccountId, id: u64) -> &mut Engine {
        let engine = self.nodes[n].engines.get_mut(account).expect("an engine");
        assert_eq!(engine.id, id);
        engine
    }

    fn has(&self, n: usize, account: &AccountId, id: u64) -> bool {
        let engine = self.nodes[n].engines.get(account);
        engine.is_some_and(|engine| engine.id == id)
    }

    /// The engine's connection is closed. What it was about to write ends there.
    fn hang_up(&mut self, n: usize, account: &AccountId, id: u64) {
        if let Some(acting) = self.acting.get_mut(account)
            && acting.0 == n
        {
            acting.1 = acting.1.min(self.now);
        }
        if self.connections.get(account) == Some(&(n, id)) {
            self.connections.remove(account);
        }
    }

    /// The connection is gone; the engine will want another.
    fn lose(&mut self, n: usize, account: &AccountId, id: u64) {
        self.hang_up(n, account, id);
        self.after(0, 50 * MS, n, Event::Lost(account.clone(), id));
    }

    fn stop(&mut self, n: usize, account: &AccountId, id: u64, reason: StopReason) {
        self.nodes[n].engines.remove(account);
        self.hang_up(n, account, id);
        self.tell(n, account, device::Input::Stopped(reason));
    }

    fn happen(&mut self, n: usize, life: u64, event: Event) {
        match &event {
            Event::Fault(i, begins) => {
                self.fault(*i, *begins);
                return;
            }
            Event::Snapshot => {
                self.old.push(self.db.clone());
                if self.old.len() > 5 {
                    self.old.remove(0);
                }
                self.at(self.now + 200 * MS, 0, Event::Snapshot);
                self.notify();
                return;
            }
            // What reached the network is carried out, whatever becomes of the sender.
            Event::Ask(call) => {
                if !self.db_down {
                    let answer = self.db.ask(call.who, call.ask.clone(), Micros(self.now));
                    self.notify();
                    if life == self.nodes[n].life {
                        self.reply(n, Event::Answer(call.id, answer));
                    }
                }
                return;
            }
            Event::Commit(account, id, seq, term) => {
                if !self.db_down {
                    let outcome = self.db.commit(account, *term, Some(*seq), *id);
                    if life == self.nodes[n].life {
                        self.reply(n, Event::Committed(account.clone(), *id, *seq, outcome));
                    }
                }
                return;
            }
            _ if life != self.nodes[n].life => return,
            Event::Confirm(account, id, ask) => {
                if !self.db_down {
                    self.confirm(n, account, *id, *ask);
                }
                return;
            }
            _ => {}
        }
        // Whatever comes to a process that does not run waits until it does.
        let asleep = self.nodes[n].asleep_until;
        if self.now < asleep {
            // The jump of the clock is noticed first, the rest in any order.
            let is_jump = matches!(event, Event::Jump(_));
            let at = asleep + if is_jump { 0 } else { 1 + self.rng.below(50) };
            self.at(at, n, event);
            return;
        }
        match event {
            Event::Wake => {
                self.nodes[n].wake = u64::MAX;
                self.host(n, host::Input::Tick);
            }
            Event::Answer(id, answer) => {
                if self.nodes[n].open.remove(&id) {
                    let dead = matches!(answer, Answer::NotMember | Answer::Beaten(Beaten::Dead));
                    let who = self.fleet(n).map(|fleet| fleet.host().who());
                    self.host(n, host::Input::Answer(id, answer));
                    let is = self.fleet(n).map(|fleet| fleet.host().who());
                    if dead
                        && who != is
                        && let Some(who) = who
                    {
                        self.nodes[n].fenced.insert(who);
                    }
                }
            }
            Event::Changed(change) => self.host(n, host::Input::Changed(change)),
            Event::Jump(by) => self.host(n, host::Input::ClockJump(Micros(by))),
            Event::Loaded(account, id) => {
                if self.has(n, &account, id) {
                    let priority = self.rng.below(100);
                    self.tell(n, &account, device::Input::Wants { priority });
                }
            }
            Event::Connected(account, id, works) => self.connected(n, &account, id, works),
            Event::Lost(account, id) => {
                if self.has(n, &account, id) {
                    self.engine(n, &account, id).up = false;
                    self.tell(n, &account, device::Input::Down);
                    self.after(500 * MS, 1_500 * MS, n, Event::Loaded(account, id));
                }
            }
            Event::Replaced(account, id) => {
                if self.has(n, &account, id) {
                    self.stop(n, &account, id, StopReason::Replaced);
                }
            }
            Event::Work(account, id) => self.work(n, &account, id),
            Event::Committed(account, id, seq, outcome) => {
                self.committed(n, &account, id, seq, outcome);
            }
            Event::NoCommit(account, id, seq) => {
                if self.has(n, &account, id) && self.engine(n, &account, id).flying == Some(seq) {
                    self.tell(n, &account, device::Input::Unknown);
                }
            }
            Event::Confirmed(account, id, ask, verdict) => {
                if id == 0 || self.has(n, &account, id) {
                    if verdict == Verdict::Ours && id != 0 {
                        let engine = self.engine(n, &account, id);
                        if engine.flying.take().is_some() {
                            engine.committed = true;
                            engine.next = engine.next.next();
                        }
                    }
                    self.tell(n, &account, device::Input::Verified(ask, verdict));
                }
            }
            Event::Finished(account, id) => {
                if self.has(n, &account, id) {
                    self.stop(n, &account, id, StopReason::Shutdown);
                }
            }
            Event::Ask(_)
            | Event::Commit(..)
            | Event::Confirm(..)
            | Event::Fault(..)
            | Event::Snapshot => unreachable!("taken apart above"),
        }
    }

    fn confirm(&mut self, n: usize, account: &AccountId, id: u64, ask: u32) {
        let engine = self.nodes[n].engines.get(account);
        let engine = engine.filter(|engine| engine.id == id);
        let device = self.fleet(n).and_then(|fleet| fleet.account(account));
        let term = engine
            .map(|engine| engine.lease.term)
            .or(device.and_then(device::Device::term));
        let flying = engine.and_then(|engine| engine.flying);
        if let Some(term) = term {
            let verdict = match self.db.commit(account, term, flying, id) {
                Outcome::Committed => Verdict::Ours,
                Outcome::Fenced(_) => Verdict::Fenced,
                Outcome::Unsealed => Verdict::Unsealed,
            };
            self.reply(n, Event::Confirmed(account.clone(), id, ask, verdict));
        }
    }

    fn connected(&mut self, n: usize, account: &AccountId, id: u64, works: bool) {
        if !self.has(n, account, id) {
            return;
        }
        if !works || self.nodes[n].dark {
            self.tell(n, account, device::Input::Down);
            self.after(500 * MS, 1_500 * MS, n, Event::Loaded(account.clone(), id));
            return;
        }
        if let Some((old, engine)) = self.connections.insert(account.clone(), (n, id)) {
            self.replaced += 1;
            self.after(MS, 50 * MS, old, Event::Replaced(account.clone(), engine));
        }
        self.engine(n, account, id).up = true;
        self.tell(n, account, device::Input::Up);
        self.after(0, 100 * MS, n, Event::Work(account.clone(), id));
    }

    fn work(&mut self, n: usize, account: &AccountId, id: u64) {
        if !self.has(n, account, id) || !self.engine(n, account, id).up {
            return;
        }
        let now = self.clock(n);
        let fleet = self.nodes[n].fleet.as_ref().expect("its fleet");
        let new = fleet.may_act(account, Gate::Open, now);
        let old = fleet.may_act(account, Gate::Committed, now);
        let sent = self.now;
        let engine = self.engine(n, account, id);
        if old && engine.committed {
            self.externalise(n, account);
        }
        let engine = self.engine(n, account, id);
        if new && engine.flying.is_none() && !engine.stopping {
            let seq = engine.next;
            engine.flying = Some(seq);
            engine.sent = sent;
            let term = engine.lease.term;
            self.at(
                self.now + 1_000 * MS,
                n,
                Event::NoCommit(account.clone(), id, seq),
            );
            self.send(n, false, Event::Commit(account.clone(), id, seq, term));
        }
        self.after(20 * MS, 300 * MS, n, Event::Work(account.clone(), id));
    }

    fn committed(&mut self, n: usize, account: &AccountId, id: u64, seq: Seq, outcome: Outcome) {
        if !self.has(n, account, id) || self.engine(n, account, id).flying != Some(seq) {
            return;
        }
        match outcome {
            Outcome::Committed => {
                let engine = self.engine(n, account, id);
                engine.flying = None;
                engine.next = seq.next();
                engine.committed = true;
                let now = self.clock(n);
                let fleet = self.nodes[n].fleet.as_ref().expect("its fleet");
                if fleet.may_act(account, Gate::Committed, now) {
                    self.externalise(n, account);
                }
            }
            Outcome::Fenced(by) => self.stop(n, account, id, StopReason::Fenced(by)),
            Outcome::Unsealed => self.tell(n, account, device::Input::Unsealed),
        }
    }

    /// Something leaves the process and takes its time.
    fn externalise(&mut self, n: usize, account: &AccountId) {
        self.acts += 1;
        let engine = &self.nodes[n].engines[account];
        let fleet = self.nodes[n].fleet.as_ref().expect("its fleet");
        if engine.gate == Gate::Shut {
            self.broken = Some(format!("{account}: acts behind a shut gate"));
        }
        if engine.lease.term.holder != fleet.host().who() {
            self.broken = Some(format!("{account}: acts as somebody it is not any more"));
        }
        if self.setup.strict {
            let who = fleet.host().who();
            if !self.db.is_live(who) {
                self.broken = Some(format!("{account}: {who:?} acts although declared dead"));
            }
            if let Some((other, until)) = self.acting.get(account)
                && *other != n
                && self.now < *until
            {
                self.broken = Some(format!(
                    "{account}: hosts {other} and {n} act at once, {} µs",
                    until - self.now
                ));
            }
        }
        // As long as a step may take on this host's clock.
        let step = self.setup.timing.step.0 * 99 / 100;
        let until = self.now + self.rng.below(step + 1);
        let acting = self.acting.entry(account.clone()).or_insert((n, until));
        *acting = (
            n,
            if acting.0 == n {
                acting.1.max(until)
            } else {
                until
            },
        );
    }

    /// News, for those who watch.
    fn notify(&mut self) {
        if std::mem::take(&mut self.db.changed) && self.setup.presence {
            for n in 0..self.nodes.len() {
                let reachable = !self.db_down && !self.nodes[n].cut_back;
                if self.nodes[n].watching.is_some() && reachable {
                    self.nodes[n].watching = None;
                    self.after(300, 3 * MS, n, Event::Changed(Change::Ownership));
                }
            }
        }
    }

    fn fault(&mut self, i: usize, begins: bool) {
        let planned = self.plan[i];
        let n = planned.node;
        let over = (planned.at + planned.lasts) * MS;
        let asleep = self.nodes[n].asleep_until;
        let is_asleep = self.now < asleep;
        if is_asleep && !begins && matches!(planned.fault, Fault::Leave | Fault::Drain) {
            self.at(asleep + 1, n, Event::Fault(i, false));
            return;
        }
        match planned.fault {
            Fault::Freeze => {
                if begins && self.nodes[n].fleet.is_some() {
                    self.nodes[n].asleep_until = asleep.max(over);
                }
            }
            Fault::Suspend => {
                // One at a time: a machine that does not run cannot be suspended again.
                if begins && !is_asleep && self.nodes[n].fleet.is_some() {
                    let before = self.clock(n).0;
                    self.nodes[n].asleep_until = over;
                    self.nodes[n].clock = before;
                    self.nodes[n].clock_at = over;
                    self.at(over, n, Event::Jump(over - self.now));
                }
            }
            Fault::Crash => {
                if begins {
                    if let Some(fleet) = &self.nodes[n].fleet
                        && !is_asleep
                    {
                        let who = fleet.host().who();
                        self.end(n);
                        if self.setup.presence && !self.db_down {
                            self.db.declare_dead(who);
                            self.notify();
                        }
                    }
                } else if self.nodes[n].fleet.is_none() {
                    self.start(n);
                }
            }
            Fault::Cut { out, back } => {
                self.nodes[n].cut_out = begins && out;
                self.nodes[n].cut_back = begins && back;
            }
            Fault::Flaky => self.nodes[n].flaky = begins,
            Fault::Egress => {
                self.nodes[n].dark = begins;
                if begins {
                    let up: Vec<_> = self.nodes[n]
                        .engines
                        .iter()
                        .filter(|(_, engine)| engine.up)
                        .map(|(account, engine)| (account.clone(), engine.id))
                        .collect();
                    for (account, id) in up {
                        self.lose(n, &account, id);
                    }
                }
            }
            Fault::DbDown => self.db_down = begins,
            Fault::Failover => {
                if begins && let Some(old) = self.old.first().cloned() {
                    self.db.fall_back(&old);
                    self.old.clear();
                }
            }
            Fault::Leave => {
                if is_asleep {
                    // Cannot hear it.
                } else if begins {
                    self.host(n, host::Input::Drain { leave: true });
                } else if self.nodes[n].fleet.is_none() {
                    self.start(n);
                } else {
                    // Still not gone: ended by force.
                    self.end(n);
                    self.start(n);
                }
            }
            Fault::Drain => {
                let input = if begins {
                    host::Input::Drain { leave: false }
                } else {
                    host::Input::Undrain
                };
                if !is_asleep {
                    self.host(n, input);
                }
            }
            Fault::EngineCrash => {
                if begins
                    && !is_asleep
                    && let Some((account, engine)) = self.nodes[n].engines.pop_first()
                {
                    self.hang_up(n, &account, engine.id);
                    self.tell(n, &account, device::Input::Crashed);
                }
            }
            Fault::PresenceLost => {
                if begins && let Some(who) = self.fleet(n).map(|fleet| fleet.host().who()) {
                    self.db.declare_dead(who);
                    self.notify();
                }
            }
        }
    }
}

/// All is well for ever from `at` milliseconds on.
pub(super) fn healed(plan: &[Planned]) -> u64 {
    let ends = plan.iter().map(|planned| planned.at + planned.lasts);
    ends.max().unwrap_or(0)
}
