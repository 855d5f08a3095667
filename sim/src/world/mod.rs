//! A whole world on one thread: engines, the simulated service, a store, consumers, and the time between them.
//!
//! Events lie on a heap ordered by time and arrival; every delay and every fault is drawn from one seed. Nothing here
//! is asynchronous, so a run of a minute of simulated time takes milliseconds, and the same seed gives the same trace.
//!
//! Each [`Account`] is what a gateway process is in production: an engine, its connection, its unfinished store calls,
//! and a consumer that keeps a book of the events it was shown. [`World::crash`] takes everything but the store and the
//! book away, in the middle of whatever was going on.

mod account;
mod agenda;
pub mod bugs;
mod chance;
pub mod chaos;
pub mod cover;
mod crypto;
mod fetch;
mod judge;
pub mod judges;
mod losses;
pub mod plan;
mod record;
pub mod report;
mod rest;
mod settings;
pub mod shrink;
mod subject;
mod trace;
mod watch;
pub mod weather;

pub use account::Account;
pub use crypto::Crypto;
#[cfg(feature = "tier-b")]
pub(crate) use judge::{Evidence, Witness, weigh};
pub use judge::{Verdict, judge};
#[cfg(feature = "tier-b")]
pub(crate) use losses::Ledger as Losses;
pub use settings::action_of;
#[cfg(feature = "tier-b")]
pub(crate) use settings::{Asked, Case, Places, every_row, weigh as weigh_settings};
pub use subject::Subject;
use weather::Kind;

use crate::service::{self, ConnId, DeviceId, Service, history::History, settings::Change};
use account::ToEngine;
use baton_core::{
    crypto::Rng,
    engine::Now,
    flow::{Command, Content, FetchId, SendRequest, message_id},
    jid::Jid,
    state::{AccountId, Batch, BusinessId, Micros, UnixMillis, memory::MemoryStore},
};
use bytes::Bytes;
use chance::{Chance, Stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The date on which every world begins: 2026-01-01.
const BEGINNING: i64 = 1_767_225_600_000;

/// More happenings than this in one go are a loop; a run of four minutes has some ten thousand.
const MOST_STEPS: u64 = 2_000_000;

/// What a world looks like. Everything else follows from it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seeds every generator.
    pub seed: u64,
    /// Accounts that are linked.
    pub accounts: usize,
    /// Delay of the network in one direction, least and most, in microseconds.
    pub network: (u64, u64),
    /// Duration of a commit or load, least and most, in microseconds.
    pub store: (u64, u64),
    /// How the service behaves. Small pages and few patches to a snapshot, so that every run has all there is.
    pub service: service::Options,
    /// Changes the engines' configuration.
    pub configure: fn(&mut baton_core::flow::Config),
    /// Unusual limits.
    pub buggify: plan::Buggify,
    /// A mistake of old.
    pub bug: Option<bugs::Bug>,
    /// And a layer of defence that is off.
    pub second_bug: Option<bugs::Bug>,
    /// Real, or cheap stand-ins.
    pub crypto: Crypto,
    /// Keep what engines are given and say, for [`Account::replay`] and [`Account::said`]. Costs time and memory.
    pub record: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            accounts: 2,
            network: (500, 40_000),
            store: (100, 5_000),
            service: service::Options {
                pre_key_threshold: 5,
                snapshot_every: 6,
                patches_per_answer: 3,
                external_above: 700,
                ..service::Options::default()
            },
            configure: |_| {},
            buggify: plan::Buggify::default(),
            bug: None,
            second_bug: None,
            crypto: Crypto::Real,
            record: false,
        }
    }
}

/// What lies on the heap.
#[derive(Debug)]
pub(crate) enum Happening {
    /// For an engine, if it still is of this life.
    Engine {
        account: usize,
        life: u64,
        input: ToEngine,
    },
    /// Bytes for the service.
    Service { conn: ConnId, bytes: Bytes },
    /// A request for a file, or for the next piece of it, reaches the media host.
    Fetch {
        account: usize,
        life: u64,
        id: FetchId,
        path: Option<String>,
    },
    /// A connection that the client closed.
    Hangup { conn: ConnId },
    /// A commit reaches the store. It does even if whoever sent it is gone by then.
    Store {
        account: usize,
        life: u64,
        batches: Vec<Batch>,
    },
    /// A new engine for an account.
    Start { account: usize },
    /// A request is left in the mailbox once more.
    Request {
        account: usize,
        request: SendRequest,
    },
    /// A look into the mailbox.
    Mailbox { account: usize, life: u64 },
    /// The renewal of a lease.
    Renew { account: usize, life: u64 },
    /// The host that only watches over the others renews its own.
    Watch,
    /// Something planned.
    Plan(Step),
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// The first account sends a text to the second, through its engine if it has one, else through the mailbox.
    Send {
        from: usize,
        to: usize,
        id: String,
        text: String,
    },
    /// The process dies; another takes the account over after so many microseconds.
    Crash { account: usize, pause: u64 },
    /// The connection breaks without a word.
    Cut { account: usize },
    /// The service is told to misbehave.
    Fault(service::faults::Fault),
    /// The owner of the phone changes settings.
    Phone {
        account: usize,
        changes: Vec<Change>,
    },
    /// Somebody changes settings through the engine.
    Change {
        account: usize,
        changes: Vec<Change>,
    },
    /// The phone hands a part of its past over.
    History { account: usize, history: History },
    /// The phone announces the last part again.
    HistoryAgain { account: usize },
    /// Somebody wants the account to be linked.
    Link { account: usize },
    /// The service behaves again.
    Heal,
    /// Store calls of this account take this much longer, from now on.
    Slow { account: usize, by: u64 },
    /// The standby, or the backup, is now as far as the database.
    Copy,
    /// The database fails over to the last copy: everything since is lost, and a new timeline begins.
    FailOver,
    /// The last copy is restored: everything since is lost, and a new generation begins.
    Restore,
    /// Another host claims the account, if it can, and gives it back.
    Rival { account: usize },
    /// The time of a fault of the plan has come.
    Strike { fault: usize },
    /// The moment that a fault has waited for has come.
    Now { fault: usize },
}

impl Step {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Send { from, to, id, .. } => format!("account {from} sends {id} to account {to}"),
            Self::Phone { account, changes } => {
                format!("the phone of account {account} changes {changes:?}")
            }
            Self::Change { account, changes } => {
                format!("account {account} is asked to change {changes:?}")
            }
            Self::History { account, history } => {
                format!("the phone of account {account} hands over {history:?}")
            }
            other => format!("{other:?}"),
        }
    }
}

/// Shown each line of a trace.
type Listener = Box<dyn FnMut(&str) + Send>;

/// See the module documentation.
pub struct World {
    pub(crate) options: Options,
    pub(crate) chance: Chance,
    pub(crate) weather: weather::Weather,
    pub(crate) cover: cover::Cover,
    pub(crate) judged: judges::Judged,
    pub(crate) memory: bugs::Memory,
    /// Of every engine: batches under way, events with the consumer, the margin of grants.
    pub(crate) bounds: (u32, u32, Micros),
    /// Connections of which neither side hears anything any more.
    pub(crate) dead: BTreeSet<ConnId>,
    listener: Option<Listener>,
    recorder: Option<Box<record::Recorder>>,
    pub(crate) now: Micros,
    pub(crate) service: Service,
    pub(crate) store: MemoryStore,
    clock: Arc<AtomicU64>,
    pub(crate) accounts: Vec<Account>,
    agenda: agenda::Agenda<Happening>,
    /// Which account a connection belongs to, and to which life of it.
    conns: BTreeMap<ConnId, (usize, u64)>,
    pub(crate) downloads: BTreeMap<(usize, FetchId), service::Download>,
    /// When the last bytes of a direction of a connection arrive: nothing overtakes them.
    arrivals: BTreeMap<(ConnId, bool), Micros>,
    /// What was asked to be sent: (from, id) → (to, text), in the order of asking per pair.
    pub(crate) asked: Vec<(usize, usize, String, String)>,
    pub(crate) ledger: losses::Ledger,
    trace: trace::Trace,
    story: trace::Trace,
    ids: Rng,
    /// Where engines write frames; kept for its memory.
    wire: Vec<u8>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("seed", &self.options.seed)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl World {
    /// A world at its beginning: nobody is linked yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let _scope = options.crypto.scope();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&options.seed.to_le_bytes());
        let mut rng = Rng::from_seed(seed);
        let clock = Arc::new(AtomicU64::new(0));
        let store_clock = Arc::clone(&clock);
        let store = MemoryStore::new(move || Micros(store_clock.load(Ordering::Relaxed)));
        let now = service::Now {
            mono: Micros(0),
            unix: UnixMillis(BEGINNING),
        };
        let service = Service::new(options.service, rng.bytes(), now);
        let mut world = Self {
            ids: rng.fork("ids"),
            chance: Chance::new(options.seed),
            weather: weather::Weather::default(),
            cover: cover::Cover::default(),
            judged: judges::Judged::default(),
            memory: bugs::Memory::default(),
            bounds: (0, 0, Micros(0)),
            dead: BTreeSet::new(),
            listener: None,
            recorder: None,
            now: Micros(0),
            service,
            store,
            clock,
            accounts: Vec::new(),
            agenda: agenda::Agenda::new(),
            conns: BTreeMap::new(),
            downloads: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            asked: Vec::new(),
            ledger: losses::Ledger::new(),
            trace: trace::Trace::new(),
            story: trace::Trace::new(),
            wire: Vec::new(),
            options,
        };
        world.installs();
        let config = world.config();
        world.bounds = (
            config.limits.batches_in_flight.get(),
            config.limits.events_in_flight.get(),
            config.timing.grant_margin,
        );
        for index in 0..world.options.accounts {
            let id = world.create(&format!("account-{index}"));
            let phone = format!("1555000{index:04}");
            world.accounts.push(Account::new(id, phone, &world.options));
            world.later(Micros(0), Happening::Start { account: index });
        }
        world.later(Micros(0), Happening::Watch);
        world
    }

    fn create(&self, name: &str) -> AccountId {
        use baton_core::state::Store as _;
        account::ready(self.store.create_account(&BusinessId::default(), name))
            .expect("a fresh name in a fresh store")
    }

    /// The time on both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let millis = i64::try_from(self.now.0 / 1000).unwrap_or(i64::MAX);
        Now {
            mono: self.now,
            unix: UnixMillis(BEGINNING + millis),
        }
    }

    pub(crate) fn service_now(&self) -> service::Now {
        let Now { mono, unix } = self.now();
        service::Now { mono, unix }
    }

    /// The service, to look at its books.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The store, to look into it or to damage it.
    #[must_use]
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// What the database has lost so far.
    #[must_use]
    pub fn ledger(&self) -> &losses::Ledger {
        &self.ledger
    }

    /// Lets somebody rewrite what the service says, from now on.
    pub fn tamper(&mut self, tamper: Option<service::Tamper>) {
        self.service.tamper(tamper);
    }

    /// The accounts.
    #[must_use]
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// A hash over everything that happened, in order.
    #[must_use]
    pub fn trace(&self) -> [u8; 32] {
        self.trace.hash()
    }

    pub(crate) fn note(&mut self, parts: &[&[u8]]) {
        self.trace.note(self.now, parts);
        let length = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        self.story.note(self.now, &[&length.to_le_bytes()]);
    }

    /// As [`trace`](Self::trace), of when something happened and how many bytes it had, not which: what happens without
    /// regard to keys and ciphertexts.
    #[must_use]
    pub fn story(&self) -> [u8; 32] {
        self.story.hash()
    }

    /// Puts something on the heap, so many microseconds from now.
    pub(crate) fn later(&mut self, delay: Micros, happening: Happening) {
        self.at(self.now.plus(delay), happening);
    }

    pub(crate) fn at(&mut self, at: Micros, happening: Happening) {
        self.agenda.push(at, happening);
    }

    /// Plans a step, so many microseconds from now.
    pub fn plan(&mut self, delay: u64, step: Step) {
        self.later(Micros(delay), Happening::Plan(step));
    }

    /// Plans a text with an id of its own; returns the id.
    pub fn plan_text(&mut self, delay: u64, from: usize, to: usize, text: &str) -> String {
        let id = message_id("", i64::try_from(delay).unwrap_or(0), &self.ids.bytes()).to_string();
        self.plan(
            delay,
            Step::Send {
                from,
                to,
                id: id.clone(),
                text: text.to_owned(),
            },
        );
        id
    }

    /// The next time of a stream of an account's.
    pub(crate) fn draw(&mut self, stream: Stream, account: usize, range: (u64, u64)) -> Micros {
        Micros(self.chance.between(stream, account as u64, range))
    }

    /// Shows each line of the trace, from now on: when, who, what.
    pub fn listen(&mut self, listener: impl FnMut(&str) + Send + 'static) {
        self.listener = Some(Box::new(listener));
    }

    /// A line of the trace, if anybody listens.
    pub(crate) fn tell(&mut self, who: impl std::fmt::Display, what: impl FnOnce() -> String) {
        if let Some(listener) = &mut self.listener {
            let at = self.now.0;
            listener(&format!(
                "{}.{:06} {who} {}",
                at / 1_000_000,
                at % 1_000_000,
                what()
            ));
        }
    }

    /// When so many bytes that are sent now arrive; never before what was sent earlier in that direction.
    fn arrival(&mut self, conn: ConnId, to_service: bool, bytes: usize) -> Micros {
        let whose = conn.0 << 1 | u64::from(to_service);
        let delay = self
            .chance
            .between(Stream::Network, whose, self.options.network);
        let (late, not_before) = self.headwind(cover::owner_of(conn), to_service, bytes);
        let at = self.now.plus(Micros(delay + late)).max(not_before);
        let last = self.arrivals.entry((conn, to_service)).or_default();
        *last = (*last).max(at);
        let at = *last;
        self.mark(|recorder| recorder.flies(conn, to_service, bytes, at));
        at
    }

    /// Runs until nothing is left to happen before `until` (microseconds of simulated time).
    pub fn run(&mut self, until: u64) {
        let _scope = self.options.crypto.scope();
        let mut steps = 0_u64;
        let mut wake = self.service.next_wake();
        while let Some((at, happening)) = self.pop(until, wake) {
            steps += 1;
            if steps > MOST_STEPS {
                self.finds(
                    0,
                    judges::Judge::NoSpin,
                    "the world does not come to rest".to_owned(),
                );
                break;
            }
            self.now = self.now.max(at);
            self.clock.store(self.now.0, Ordering::Relaxed);
            self.happen(happening);
            wake = self.service.next_wake();
            if self.service.has_post() || wake.is_some_and(|wake| wake <= self.now) {
                self.service.tick(self.service_now());
                wake = self.service.next_wake();
            }
            self.drain_service();
        }
        self.now = self.now.max(Micros(until));
        self.clock.store(self.now.0, Ordering::Relaxed);
        self.service.tick(self.service_now());
        self.drain_service();
    }

    /// What is next. `service`: when the service is due.
    fn pop(&mut self, until: u64, service: Option<Micros>) -> Option<(Micros, Happening)> {
        // Engines and the service have timers of their own: they are due before what lies later on the heap.
        let next = self.agenda.next();
        let wakes = self
            .accounts
            .iter()
            .enumerate()
            .filter_map(|(index, account)| Some((account.wake?, index)));
        let wake = wakes.min();
        let soonest = [next, wake.map(|(at, _)| at), service]
            .into_iter()
            .flatten()
            .min()?;
        if soonest.0 > until {
            return None;
        }
        if let Some((at, index)) = wake.filter(|(at, _)| *at == soonest) {
            let life = self.accounts[index].life;
            self.accounts[index].wake = None;
            return Some((
                at,
                Happening::Engine {
                    account: index,
                    life,
                    input: ToEngine::Tick,
                },
            ));
        }
        if next == Some(soonest) {
            return self.agenda.pop();
        }
        // The service's timers are run by the tick that follows everything that happens.
        self.now = self.now.max(soonest);
        self.service.tick(self.service_now());
        self.drain_service();
        let service = self.service.next_wake();
        self.pop(until, service)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Engine {
                account,
                life,
                input,
            } => self.give(account, life, input),
            Happening::Service { conn, bytes } => {
                self.note(&[b"service", &bytes]);
                self.tell("service", || {
                    let (account, which) = (cover::owner_of(conn), conn.0 & 0xffff_ffff);
                    let bytes = bytes.len();
                    format!("takes in {bytes} bytes of account {account}, connection {which}")
                });
                self.service.receive(conn, &bytes, self.service_now());
                if let Some(recorder) = &mut self.recorder {
                    recorder.reaches(self.now, conn, self.service.tap.as_mut());
                }
            }
            Happening::Fetch {
                account,
                life,
                id,
                path,
            } => self.serve_file(account, life, id, path),
            Happening::Hangup { conn } => {
                self.tell("service", || {
                    let (account, which) = (cover::owner_of(conn), conn.0 & 0xffff_ffff);
                    format!("loses account {account}, connection {which}")
                });
                self.mark(|recorder| recorder.hangs_up(conn));
                self.note(&[b"hangs up", &conn.0.to_le_bytes()]);
                self.service.disconnect(conn, self.service_now());
            }
            Happening::Store {
                account,
                life,
                batches,
            } => self.commit(account, life, batches),
            Happening::Start { account } => self.start(account),
            Happening::Request { account, request } => self.enqueue(account, request),
            Happening::Mailbox { account, life } => self.look_for_mail(account, life),
            Happening::Renew { account, life } => self.renew(account, life),
            Happening::Watch => self.watch(),
            Happening::Plan(step) => self.step(step),
        }
    }

    /// Connects an engine to the service.
    pub(crate) fn connect(&mut self, account: usize, life: u64) -> ConnId {
        // Numbered per account, so that one more connection of somebody does not rename the others.
        self.accounts[account].connections += 1;
        let conn = ConnId(((account as u64) << 32) + self.accounts[account].connections);
        self.conns.insert(conn, (account, life));
        self.service.connect(conn, self.service_now());
        conn
    }

    pub(crate) fn send_to_service(&mut self, conn: ConnId, bytes: Bytes) {
        if self.dead.contains(&conn) {
            return;
        }
        let (account, now) = (cover::owner_of(conn), self.now);
        if self.weather.strikes(account, Kind::BreakOut, now).is_some() {
            let half = bytes.slice(..bytes.len() / 2);
            let at = self.arrival(conn, true, half.len());
            self.at(at, Happening::Service { conn, bytes: half });
            self.breaks(conn);
            return;
        }
        for bytes in self.pieces(account, bytes) {
            let at = self.arrival(conn, true, bytes.len());
            self.at(at, Happening::Service { conn, bytes });
        }
    }

    /// As one message, or as several.
    fn pieces(&mut self, account: usize, bytes: Bytes) -> Vec<Bytes> {
        if bytes.len() < 2
            || self
                .weather
                .strikes(account, Kind::Pieces, self.now)
                .is_none()
        {
            return vec![bytes];
        }
        let most = bytes.len() as u64 - 1;
        let at = self.draw(Stream::Weather, account, (1, most)).0;
        let at = usize::try_from(at).unwrap_or(1);
        vec![bytes.slice(..at), bytes.slice(at..)]
    }

    /// A connection breaks: both sides hear of it.
    fn breaks(&mut self, conn: ConnId) {
        let owner = self.conns.get(&conn).copied();
        self.hang_up(conn);
        if let Some((account, life)) = owner {
            let at = self.arrival(conn, false, 0);
            let input = ToEngine::On(conn, Box::new(ToEngine::Closed));
            self.at(
                at,
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
        }
    }

    pub(crate) fn hang_up(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
        if self.dead.contains(&conn) {
            return;
        }
        let at = self.arrival(conn, true, 0);
        self.at(at, Happening::Hangup { conn });
    }

    pub(crate) fn drain_service(&mut self) {
        while let Some(effect) = self.service.poll() {
            let (conn, bytes) = match effect {
                service::Effect::Send(conn, bytes) => {
                    if let Some(recorder) = &mut self.recorder {
                        recorder.says(self.service.tap.as_mut());
                    }
                    self.note(&[b"client", &bytes]);
                    (conn, Some(bytes))
                }
                service::Effect::Close(conn) => (conn, None),
            };
            let Some((account, life)) = self.conns.get(&conn).copied() else {
                continue;
            };
            if bytes.is_none() {
                self.conns.remove(&conn);
            }
            if self.dead.contains(&conn) {
                continue;
            }
            let send = |world: &mut Self, length: usize, input: ToEngine| {
                let at = world.arrival(conn, false, length);
                let input = ToEngine::On(conn, Box::new(input));
                world.at(
                    at,
                    Happening::Engine {
                        account,
                        life,
                        input,
                    },
                );
            };
            let Some(bytes) = bytes else {
                send(self, 0, ToEngine::Closed);
                continue;
            };
            let bytes = match self.has(bugs::Bug::ShortBuffer) && bytes.len() > 1024 {
                true => bytes.slice(..1024),
                false => bytes,
            };
            if self
                .weather
                .strikes(account, Kind::BreakIn, self.now)
                .is_some()
            {
                let half = bytes.slice(..bytes.len() / 2);
                send(self, half.len(), ToEngine::Received(half));
                self.breaks(conn);
                continue;
            }
            for bytes in self.pieces(account, bytes) {
                send(self, bytes.len(), ToEngine::Received(bytes));
            }
        }
    }

    fn step(&mut self, step: Step) {
        if !matches!(step, Step::Strike { .. } | Step::Now { .. }) {
            self.tell("plan", || step.words());
        }
        self.mark(|recorder| recorder.step(&step));
        match step {
            Step::Rival { account } => self.rival(account),
            Step::Strike { fault } => self.come(fault),
            Step::Now { fault } => self.strike(fault),
            Step::Send { from, to, id, text } => self.ask(from, to, id, text),
            Step::Crash { account, pause } => self.crash(account, pause),
            Step::Cut { account } => self.cut(account),
            Step::Fault(fault) => self.service.fault(fault, self.service_now()),
            Step::Link { account } => self.command(account, Command::Link),
            Step::Heal => self.heal(),
            Step::Phone { account, changes } => self.phone_changes(account, &changes),
            Step::Change { account, changes } => self.change(account, changes),
            Step::History { account, history } => {
                let device = self.companion(account);
                self.service
                    .phone_history(&device, &history, self.service_now());
            }
            Step::HistoryAgain { account } => {
                let device = self.companion(account);
                self.service.repeat_history(&device, self.service_now());
            }
            Step::Slow { account, by } => self.accounts[account].slow = by,
            Step::Copy => self.copy(),
            Step::FailOver => self.fail_over(),
            Step::Restore => self.restore(),
        }
    }

    /// The service behaves again, and the phones tell their companions all keys, as phones do now and then.
    fn heal(&mut self) {
        self.service.heal();
        self.fair_weather();
        if self.has(bugs::Bug::KeysToldOnce) {
            return;
        }
        for account in 0..self.accounts.len() {
            let device = self.companion(account);
            self.service.share_keys(&device, None, self.service_now());
        }
    }

    /// The device that an account's engine is.
    #[must_use]
    pub fn companion(&self, account: usize) -> DeviceId {
        DeviceId::new(&self.accounts[account].phone, self.accounts[account].device)
    }

    fn phone_changes(&mut self, account: usize, changes: &[Change]) {
        let phone = self.accounts[account].phone.clone();
        if let Err(error) = self
            .service
            .phone_change(&phone, changes, self.service_now())
        {
            self.accounts[account]
                .complaints
                .push(format!("the phone: {error}"));
        }
    }

    /// The phone is there before anybody links it.
    pub fn add_phone(&mut self, account: usize) {
        let _scope = self.options.crypto.scope();
        let phone = self.accounts[account].phone.clone();
        if let Err(error) = self.service.add_phone(&phone, None, self.service_now()) {
            self.accounts[account]
                .complaints
                .push(format!("the phone: {error}"));
        }
    }

    /// Somebody changes settings through an account's engine, if it has one.
    pub fn change(&mut self, account: usize, changes: Vec<Change>) {
        let mut changes = changes;
        changes.retain(|change| action_of(change).is_some());
        if changes.is_empty() {
            return;
        }
        let actions = changes.iter().filter_map(action_of).collect();
        self.accounts[account].about_to_ask = Some(changes);
        self.command(account, Command::Change(actions));
        self.accounts[account].about_to_ask = None;
    }

    fn ask(&mut self, from: usize, to: usize, id: String, text: String) {
        let Ok(recipient) = Jid::pn(&self.accounts[to].phone) else {
            return;
        };
        self.asked.push((from, to, id.clone(), text.clone()));
        let request = SendRequest {
            id: Some(id.into()),
            to: recipient,
            content: Content::Text(text),
        };
        self.enqueue(from, request);
    }

    /// Kills the process that owns an account, wherever it is, and lets another one take it over after a pause.
    pub fn crash(&mut self, account: usize, pause: u64) {
        self.note(&[b"crash", &account.to_le_bytes()]);
        self.cover_death(account);
        self.accounts[account].process += 1;
        self.mark(|recorder| recorder.dies(account));
        if let Some(conn) = self.accounts[account].kill() {
            self.hang_up(conn);
        }
        self.later(Micros(pause), Happening::Start { account });
    }

    fn cut(&mut self, account: usize) {
        let life = self.accounts[account].life;
        if let Some(conn) = self.accounts[account].conn.take() {
            self.hang_up(conn);
            self.give(account, life, ToEngine::Closed);
        }
    }

    /// Whether nothing is left to be done: no judge has anything to wait for. A world that has lost something may have
    /// to wait for what nobody can see, so it is never said of one.
    pub(crate) fn is_calm(&self) -> bool {
        let most = self.config().limits.outbox.get();
        let calm = |(index, account): (usize, &Account)| {
            let Some(engine) = &account.engine else {
                return false;
            };
            let appetite = engine.appetite();
            account.online
                && !account.committing
                && account.sealed.is_empty()
                && !account.is_looking()
                && account.watched.unanswered() == 0
                && appetite.bytes
                && appetite.commands == most
                && self.service.waiting(&self.companion(index)).is_empty()
                && (account
                    .places
                    .unfinished(&self.service, &account.phone)
                    .next())
                .is_none()
        };
        let mut histories = self.service.books().histories().iter();
        self.ledger.losses() == 0
            && self.downloads.is_empty()
            && self.accounts.iter().enumerate().all(calm)
            && histories.all(|log| log.received)
            && self.missing().is_empty()
    }

    /// Gives a command to an account's engine, if it has one.
    pub fn command(&mut self, account: usize, command: Command) {
        let _scope = self.options.crypto.scope();
        let life = self.accounts[account].life;
        self.give(account, life, ToEngine::Command(command));
    }

    /// The owner of an account's phone removes its companion.
    pub fn unlink(&mut self, account: usize, device: u16) {
        let _scope = self.options.crypto.scope();
        let now = self.service_now();
        let phone = self.accounts[account].phone.clone();
        self.service.unlink(&phone, device, now);
        self.drain_service();
    }

    /// As [`restart`](Self::restart), by somebody who wants to link the account: the command is there before the
    /// engine has read anything.
    pub fn restart_to_link(&mut self, account: usize) {
        self.later(Micros(0), Happening::Start { account });
        self.later(Micros(1), Happening::Plan(Step::Link { account }));
        self.run(self.now.0 + 2);
    }

    /// Starts a process for an account that has none, as an operator would.
    pub fn restart(&mut self, account: usize) {
        self.later(Micros(0), Happening::Start { account });
        self.run(self.now.0 + 1);
    }

    /// Links every account: the phones scan the codes as they are shown. Takes a few simulated seconds.
    ///
    /// # Panics
    ///
    /// If linking does not work at all: then no scenario makes sense.
    pub fn link_all(&mut self) {
        self.run(self.now.0 + 1);
        for account in 0..self.accounts.len() {
            self.command(account, Command::Link);
        }
        let patience = self.now.plus(Micros::from_secs(120));
        while self.now < patience && !self.accounts.iter().all(|account| account.online) {
            self.run(self.now.0 + 100_000);
        }
        for account in &self.accounts {
            let said = account
                .outputs
                .iter()
                .rev()
                .take(12)
                .rev()
                .cloned()
                .collect::<Vec<_>>()
                .join("\n");
            assert!(
                account.online,
                "{} is not online; its last words:\n{said}\n{:?}",
                account.phone, account.complaints
            );
        }
    }
}
