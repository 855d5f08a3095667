//! Worlds of the second tier: the real drivers of `baton-tokio`, unchanged, on simulated machines.
//!
//! ```text
//!  a, b, c …  gateway hosts: baton_tokio::Host, all accounts, their consumers      one task each
//!      │ │
//!      │ └── ws://service:80   the simulated service behind real WebSocket framing
//!      └──── db:5432           the database host: one call at a time, on a swappable store
//!  api        leaves requests in mailboxes
//! ```
//!
//! turmoil gives each host a clock and a network from one seed; [`net`](self) puts back what its TCP lacks. A
//! [`World`] is stepped by hand; what goes wrong, and when, is said by a scenario or by a [`Plan`] that is drawn before
//! the first step. Everything that happens is a line of the [`Trace`]; one seed gives one trace, whatever the store.
//!
//! | file | subject |
//! |---|---|
//! | `gateway`, `service`, `database` | the processes on the hosts |
//! | `net`, `remote`, `clock` | what they have of network, store and time |
//! | `backend` | the stores |
//! | `plan`, `run` | trouble drawn from a seed; running it; saying what happened |
//! | `judge` | what must hold |

mod backend;
mod clock;
mod database;
mod gateway;
mod judge;
mod net;
mod plan;
mod remote;
mod run;
mod service;
mod trace;

pub use backend::Kind;
pub use database::Bug;
pub use gateway::Book;
pub use plan::{Plan, Trouble};
pub use run::{Report, run, run_with};
pub use trace::Trace;

use crate::{
    serve::hub::Hub,
    service::{DeviceId, Service, books::DeviceLog, faults::Fault},
    world::Verdict,
};
use backend::{Backend, StoreClock};
use baton_core::{
    crypto::{PublicKey, Rng},
    flow::{Event, message_id},
    state::{BusinessId, Epoch, Store as _},
};
use clock::generator;
use database::Database;
use gateway::Seat;
use net::{Network, Power};
use remote::{DATABASE, Mail};
use service::SERVICE;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// What a world looks like. Everything else follows from it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Seeds every generator.
    pub seed: u64,
    /// Gateway hosts, named `a`, `b`, `c` …
    pub hosts: usize,
    /// Accounts; every host runs those whose lease it wins.
    pub accounts: usize,
    /// Phones of people that write to accounts and read what they are sent.
    pub phones: usize,
    /// What the database keeps its rows in.
    pub backend: Kind,
    /// The quantum of delivery, in milliseconds: 1, 5 or 10.
    pub tick: u64,
    /// Latency of the network, least and most, in milliseconds.
    pub latency: (u64, u64),
    /// Longest time that a store call takes, in microseconds.
    pub slow: u64,
    /// Whether streams are cut into small pieces now and then.
    pub chunks: bool,
    /// Whether hosts run in another order in each tick.
    pub shuffle: bool,
    /// An old mistake, put back.
    pub bug: Option<Bug>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 1,
            hosts: 2,
            accounts: 2,
            phones: 1,
            backend: Kind::Memory,
            tick: 5,
            latency: (1, 20),
            slow: 4_000,
            chunks: true,
            shuffle: true,
            bug: None,
        }
    }
}

/// A request to send: from and to are accounts, or phones behind the accounts.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) id: String,
    pub(crate) text: String,
}

/// What the service host is told to do.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Scan {
        text: String,
        phone: String,
    },
    Phone {
        from: usize,
        to: usize,
        text: String,
    },
    Fault(Fault),
    Heal,
}

/// Books that belong to no process.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) accounts: Vec<Book>,
    /// Numbers of the phones.
    pub(crate) phones: Vec<String>,
    /// What was asked to be sent and accepted, in order.
    pub(crate) asked: Vec<Ask>,
    pub(crate) complaints: Vec<String>,
}

/// What all processes of a world can reach without the network: books, orders, the trace. Clones are the same.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) seed: u64,
    pub(crate) gateways: usize,
    pub(crate) root: PublicKey,
    pub(crate) network: Network,
    pub(crate) mail: Mail,
    pub(crate) hub: Arc<Hub>,
    pub(crate) trace: Trace,
    books: Arc<Mutex<Books>>,
    orders: Arc<Mutex<VecDeque<Order>>>,
    asks: Arc<Mutex<VecDeque<Ask>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        locked(&self.books)
    }

    pub(crate) fn note(&self, host: &str, words: fmt::Arguments<'_>) {
        self.trace.note(clock::now(), host, words);
    }

    pub(crate) fn order(&self, order: Order) {
        locked(&self.orders).push_back(order);
    }

    pub(crate) fn next_order(&self) -> Option<Order> {
        locked(&self.orders).pop_front()
    }

    pub(crate) fn next_ask(&self) -> Option<Ask> {
        locked(&self.asks).pop_front()
    }
}

/// See the module documentation.
pub struct World {
    sim: turmoil::Sim<'static>,
    room: Room,
    setup: Setup,
    seats: Vec<Seat>,
    database: Database,
    stalled: Arc<AtomicBool>,
    store_clock: StoreClock,
    ids: Rng,
    /// What the faults really met, beside those that network and database count.
    effects: BTreeMap<&'static str, u64>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("setup", &self.setup)
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

impl World {
    /// A world at its beginning: nobody is linked yet.
    ///
    /// # Panics
    ///
    /// If the store cannot even be opened: then no scenario makes sense.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let seed = setup.seed;
        let trace = Trace::default();
        let network = Network::new(seed, setup.chunks);
        let mail = Mail::default();
        let store_clock = StoreClock::default();
        let backend = Backend::open(setup.backend, &store_clock);
        let start = service::now(&AtomicU64::new(0));
        let state = Service::new(
            crate::service::Options::default(),
            generator(seed, "service").bytes(),
            start,
        );
        let root = state.root_public_key();
        let last = AtomicU64::new(0);
        let observer = trace.clone();
        let hub = Hub::observed(
            state,
            move || service::now(&last),
            move |seen| service::observe(&observer, seen),
        );
        let mut books = Books::default();
        for index in 0..setup.accounts {
            let name = format!("account-{index}");
            let business = BusinessId::default();
            let id = Backend::run(backend.create_account(&business, &name))
                .expect("a fresh name in a fresh store");
            books
                .accounts
                .push(Book::new(id, format!("1555000{index:04}")));
        }
        books.phones = (0..setup.phones)
            .map(|index| format!("1666000{index:04}"))
            .collect();
        let room = Room {
            seed,
            gateways: setup.hosts,
            root,
            network: network.clone(),
            mail: mail.clone(),
            hub: Arc::new(hub),
            trace: trace.clone(),
            books: Arc::new(Mutex::new(books)),
            orders: Arc::default(),
            asks: Arc::default(),
        };
        let database = Database::new(
            backend,
            store_clock.clone(),
            network,
            mail,
            trace,
            (seed, setup.slow, setup.bug),
        );
        let mut world = Self {
            sim: turmoil(&setup),
            room,
            seats: Vec::new(),
            database,
            stalled: Arc::default(),
            store_clock,
            ids: generator(seed, "ids"),
            effects: BTreeMap::new(),
            setup,
        };
        for phone in world.room.books().phones.clone() {
            // Known to the service before anybody writes to them.
            let added = world
                .room
                .hub
                .act(|service, now| service.add_phone(&phone, None, now));
            added.expect("a phone number of digits");
        }
        world.populate();
        world
    }

    fn populate(&mut self) {
        let (database, stalled) = (self.database.clone(), Arc::clone(&self.stalled));
        self.sim.host(DATABASE.0, move || {
            let (database, stalled) = (database.clone(), Arc::clone(&stalled));
            async move { gateway::gated(&stalled, database.serve()).await }
        });
        let room = self.room.clone();
        self.sim
            .host(SERVICE.0, move || service::serve(room.clone()));
        let room = self.room.clone();
        self.sim
            .host("api", move || service::mailboxes(room.clone()));
        for index in 0..self.setup.hosts {
            let name = host_name(index);
            let seat = Seat::new(&name, index);
            let (room, sitting) = (self.room.clone(), seat.clone());
            self.sim.host(name.as_str(), move || {
                gateway::process(room.clone(), sitting.clone())
            });
            self.seats.push(seat);
        }
    }

    /// Virtual milliseconds since the beginning.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Everything that happened, in order.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.room.trace
    }

    /// Runs for so many virtual milliseconds.
    ///
    /// # Panics
    ///
    /// If a process of a host fails, which is a bug of the simulation.
    pub fn run(&mut self, millis: u64) {
        let until = self.now() + millis;
        while self.now() < until {
            self.sim.step().expect("processes of a world do not fail");
        }
    }

    /// Runs until `done`, at most so many virtual milliseconds; whether it came to that.
    pub fn run_until(&mut self, millis: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let until = self.now() + millis;
        while self.now() < until {
            if done(self) {
                return true;
            }
            self.run(self.setup.tick.max(20));
        }
        done(self)
    }

    /// Links every account: the phones scan the codes as they are shown.
    ///
    /// # Panics
    ///
    /// If linking does not work at all: then no scenario makes sense.
    pub fn link_all(&mut self) {
        let linked = self.run_until(60_000, |world| {
            (0..world.setup.accounts).all(|account| world.is_online(account))
        });
        assert!(
            linked,
            "not everybody is online: {:#?}",
            self.books(|books| {
                let states = books
                    .iter()
                    .map(|book| (book.phone.clone(), book.stops.clone(), book.notices.clone()));
                states.collect::<Vec<_>>()
            })
        );
    }

    /// Reads the books of the consumers.
    pub fn books<T>(&self, read: impl FnOnce(&[Book]) -> T) -> T {
        read(&self.room.books().accounts)
    }

    /// Reads the service and its books.
    pub fn service<T>(&self, read: impl FnOnce(&Service) -> T) -> T {
        read(&self.room.hub.lock())
    }

    /// Whether the account is online somewhere.
    #[must_use]
    pub fn is_online(&self, account: usize) -> bool {
        self.books(|books| books[account].online.is_some())
    }

    /// The host on which the account is online.
    #[must_use]
    pub fn owner(&self, account: usize) -> Option<String> {
        self.books(|books| books[account].online.as_ref().map(|(host, _)| host.clone()))
    }

    /// When, and under which epochs, the account was given to hosts.
    #[must_use]
    pub fn grants(&self, account: usize) -> Vec<(u64, Epoch)> {
        let id = self.books(|books| books[account].id.clone());
        let grants = self.database.ledger(|ledger| ledger.grants(&id));
        grants
            .into_iter()
            .map(|(at, epoch, _)| (at / 1000, epoch))
            .collect()
    }

    fn device_log<T: Default>(&self, account: usize, read: impl FnOnce(&DeviceLog) -> T) -> T {
        let phone = self.books(|books| books[account].phone.clone());
        let device = DeviceId::new(&phone, 1);
        self.service(|service| {
            service
                .books()
                .device(&device)
                .map(read)
                .unwrap_or_default()
        })
    }

    /// How often the account has logged in at the service.
    #[must_use]
    pub fn logins(&self, account: usize) -> usize {
        self.device_log(account, |log| log.connections.len())
    }

    /// How often one connection of the account has replaced another at the service.
    #[must_use]
    pub fn replaced(&self, account: usize) -> usize {
        self.device_log(account, |log| log.live_twice.len())
    }

    /// Which of the last so many texts between accounts, or from phones to accounts, nobody was shown.
    #[must_use]
    pub fn missing_of_last(&self, texts: usize) -> Vec<String> {
        let books = self.room.books();
        let to_accounts = |ask: &&Ask| ask.to < books.accounts.len();
        let missing = |ask: &Ask| {
            let mut events = books.accounts[ask.to].events.values();
            !events.any(|event| matches!(event, Event::Message(message) if message.id == ask.id))
        };
        let last = books.asked.iter().rev().filter(to_accounts).take(texts);
        last.filter(|ask| missing(ask))
            .map(|ask| format!("{} from {} to {}", ask.id, ask.from, ask.to))
            .collect()
    }

    /// How many batches the database has refused because their epoch was over.
    #[must_use]
    pub fn fenced(&self) -> u64 {
        self.database.ledger(|ledger| ledger.fenced)
    }

    /// What trouble really met: how many streams were reset, answers lost and so on. A fault that met nothing is not
    /// in it, and proves nothing.
    #[must_use]
    pub fn effects(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.effects.clone();
        for (name, count) in self.room.network.effects() {
            *all.entry(name).or_default() += count;
        }
        for (name, count) in self.database.effects() {
            *all.entry(name).or_default() += count;
        }
        for (name, count) in self.service(|service| service.faults().acted().clone()) {
            *all.entry(name).or_default() += count;
        }
        all
    }

    fn note(&mut self, words: fmt::Arguments<'_>) {
        let now = clock::micros(self.sim.elapsed());
        self.room.trace.note(now, "world", words);
    }

    // ---- what people do ----

    /// An application asks for a text from one account to another, or to a phone (numbered behind the accounts), by the
    /// mailbox; returns its message id.
    pub fn text(&mut self, from: usize, to: usize, text: &str) -> String {
        let id = message_id("", 0, &self.ids.bytes()).to_string();
        locked(&self.room.asks).push_back(Ask {
            from,
            to,
            id: id.clone(),
            text: text.to_owned(),
        });
        id
    }

    /// A person writes to an account from a phone. If the text begins with `echo `, the account's consumer answers.
    pub fn phone_text(&mut self, phone: usize, account: usize, text: &str) {
        self.room.order(Order::Phone {
            from: phone,
            to: account,
            text: text.to_owned(),
        });
    }

    /// The service misbehaves.
    pub fn fault(&mut self, fault: Fault) {
        self.room.order(Order::Fault(fault));
    }

    // ---- disasters ----

    fn seat(&self, host: &str) -> &Seat {
        let found = self.seats.iter().find(|seat| &*seat.name == host);
        found.expect("a host of this world")
    }

    fn peers(&self, host: &str) -> Vec<String> {
        let fixed = [DATABASE.0, SERVICE.0, "api"].map(str::to_owned);
        let all = fixed
            .into_iter()
            .chain((0..self.setup.hosts).map(host_name));
        all.filter(|peer| peer != host).collect()
    }

    /// The process on a host is killed: its machine closes its connections.
    pub fn kill(&mut self, host: &str) {
        self.note(format_args!("{host} is killed"));
        self.room.network.power(host, Power::NoProcess);
        self.sim.crash(host);
        self.gone(host);
    }

    /// A machine loses its power: nobody is told anything, and what it had sent but a moment ago is lost.
    pub fn power_loss(&mut self, host: &str) {
        self.note(format_args!("{host} loses its power"));
        self.room.network.power(host, Power::Off);
        for peer in self.peers(host) {
            self.sim.partition(host, peer.as_str());
        }
        self.sim.crash(host);
        for peer in self.peers(host) {
            self.sim.repair(host, peer.as_str());
            if self.room.network.is_cut(host, &peer) {
                self.sim.hold(host, peer.as_str());
            }
        }
        self.gone(host);
    }

    fn gone(&mut self, host: &str) {
        *self.effects.entry("process ended").or_default() += 1;
        if let Some(seat) = self.seats.iter().find(|seat| &*seat.name == host) {
            seat.frozen.store(false, Ordering::Relaxed);
        }
        for book in &mut self.room.books().accounts {
            if book.online.as_ref().is_some_and(|(at, _)| at == host) {
                book.online = None;
            }
        }
    }

    /// A process is started on a host that has none.
    pub fn start(&mut self, host: &str) {
        self.note(format_args!("{host} is started"));
        self.room.network.power(host, Power::On);
        self.sim.bounce(host);
    }

    /// Whether there is a process on the host.
    pub fn is_running(&mut self, host: &str) -> bool {
        self.sim.is_host_running(host)
    }

    /// The process is asked to finish and go.
    pub fn stop(&mut self, host: &str) {
        self.note(format_args!("{host} is asked to go"));
        self.seat(host).stop.send_replace(true);
    }

    /// The next process on this host is of another version.
    pub fn upgrade(&mut self, host: &str) {
        self.seat(host).version.fetch_add(1, Ordering::Relaxed);
    }

    /// A machine stands still: nothing is polled, while time passes and sockets fill.
    pub fn freeze(&mut self, host: &str) {
        self.note(format_args!("{host} freezes"));
        self.seat(host).frozen.store(true, Ordering::Relaxed);
        *self.effects.entry("frozen").or_default() += 1;
    }

    /// It goes on, where it was.
    pub fn thaw(&mut self, host: &str) {
        self.note(format_args!("{host} thaws"));
        self.seat(host).frozen.store(false, Ordering::Relaxed);
    }

    /// Nothing passes between two hosts, until it is healed as often as it was cut.
    pub fn cut(&mut self, a: &str, b: &str) {
        self.note(format_args!("{a} and {b} are cut off from each other"));
        if self.room.network.cut(a, b) {
            self.sim.hold(a, b);
        }
        *self.effects.entry("cut").or_default() += 1;
    }

    /// What was on the way arrives now.
    pub fn heal(&mut self, a: &str, b: &str) {
        self.note(format_args!("{a} and {b} reach each other again"));
        if self.room.network.heal(a, b) {
            self.sim.release(a, b);
        }
    }

    /// All connections between two hosts break, and both ends know.
    pub fn reset(&mut self, a: &str, b: &str) -> u64 {
        self.note(format_args!("connections between {a} and {b} are reset"));
        self.room.network.reset(a, b)
    }

    /// All connections between two hosts die, and neither end is told: half-open on both sides.
    pub fn silence(&mut self, a: &str, b: &str) -> u64 {
        self.note(format_args!("connections between {a} and {b} fall silent"));
        self.room.network.silence(a, b)
    }

    /// The database takes calls and does nothing about them, until it goes on.
    pub fn stall_database(&mut self, stalled: bool) {
        self.note(format_args!("the database stalls: {stalled}"));
        self.stalled.store(stalled, Ordering::Relaxed);
        if stalled {
            *self.effects.entry("database stalled").or_default() += 1;
        }
    }

    /// The next so many calls are carried out, and their connections break before the answer.
    pub fn lose_answers(&mut self, count: u32) {
        self.note(format_args!("{count} answers will be lost"));
        self.database.lose_answers(count);
    }

    /// The connection breaks before the next so many calls are carried out.
    pub fn drop_requests(&mut self, count: u32) {
        self.note(format_args!("{count} requests will be lost"));
        self.database.drop_requests(count);
    }

    /// The wall clock of a machine is set, by so many milliseconds.
    pub fn jump(&mut self, host: &str, millis: i64) {
        self.note(format_args!(
            "the wall clock of {host} jumps by {millis} ms"
        ));
        self.seat(host).wall.fetch_add(millis, Ordering::Relaxed);
        *self.effects.entry("clock jump").or_default() += 1;
    }

    /// A standby that is behind, or a backup: what the database holds now.
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup {
            backend: self.database.backend.copy(&self.store_clock),
            ledger: self.database.ledger(|ledger| ledger.clone()),
        }
    }

    /// The database fails over to it: everything since is lost. The process on the database host is another one then.
    pub fn fail_over(&mut self, backup: &Backup) {
        self.note(format_args!("the database fails over; commits are lost"));
        self.database.backend.fail_over_to(&backup.backend);
        self.database
            .ledger(|ledger| ledger.went_back(&backup.ledger));
        for book in &mut self.room.books().accounts {
            book.forgive();
        }
        *self.effects.entry("failover").or_default() += 1;
        self.kill(DATABASE.0);
        self.start(DATABASE.0);
    }

    // ---- the end ----

    /// Everything heals: links, clocks, power, service, database.
    pub fn heal_all(&mut self) {
        self.note(format_args!("everything heals"));
        self.stalled.store(false, Ordering::Relaxed);
        self.database.heal();
        self.room.order(Order::Heal);
        let names: Vec<String> = self
            .seats
            .iter()
            .map(|seat| seat.name.to_string())
            .collect();
        let mut all = vec![
            DATABASE.0.to_owned(),
            SERVICE.0.to_owned(),
            "api".to_owned(),
        ];
        all.extend(names.iter().cloned());
        for (index, a) in all.iter().enumerate() {
            for b in &all[index + 1..] {
                while self.room.network.is_cut(a, b) {
                    self.heal(a, b);
                }
            }
        }
        for name in &names {
            self.seat(name).frozen.store(false, Ordering::Relaxed);
        }
        for name in all {
            if !self.sim.is_host_running(name.as_str()) {
                self.start(&name);
            }
        }
    }

    /// What is still to come: texts that nobody has read, accounts that are not online.
    #[must_use]
    pub fn unfinished(&self) -> Vec<String> {
        let books = self.room.books();
        let service = self.room.hub.lock();
        judge::unfinished(&books, service.books())
    }

    /// Lets everything heal, demands progress within so many virtual milliseconds, waits a little for late duplicates,
    /// and judges.
    pub fn rest(&mut self, within: u64) -> Verdict {
        self.heal_all();
        self.settle(within)
    }

    /// As [`rest`](Self::rest), without healing anything: for worlds that must get along with what is broken.
    pub fn settle(&mut self, within: u64) -> Verdict {
        let asked = |world: &Self| {
            locked(&world.room.asks).is_empty() && locked(&world.room.orders).is_empty()
        };
        let done = self.run_until(within, |world| {
            asked(world) && world.unfinished().is_empty()
        });
        self.run(3_000);
        let mut verdict = self.judge();
        if !done {
            let open = self.unfinished();
            let first: Vec<_> = open.iter().take(8).cloned().collect();
            verdict
                .complaints
                .insert(0, format!("no progress within {within} ms: {first:?}"));
        }
        verdict
    }

    /// Judges what has happened so far.
    #[must_use]
    pub fn judge(&self) -> Verdict {
        let ledger = self.database.ledger(|ledger| ledger.clone());
        let books = self.room.books();
        let service = self.room.hub.lock();
        judge::judge(&books, &ledger, service.books())
    }
}

/// See [`World::backup`].
#[derive(Debug)]
pub struct Backup {
    backend: Backend,
    ledger: judge::Ledger,
}

/// `a`, `b`, `c` …
fn host_name(index: usize) -> String {
    let letters = b'a'..=b'z';
    letters
        .map(char::from)
        .nth(index)
        .map_or_else(|| format!("host-{index}"), String::from)
}

fn turmoil(setup: &Setup) -> turmoil::Sim<'static> {
    let start = u64::try_from(clock::BEGINNING).unwrap_or(0);
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(generator(setup.seed, "turmoil").next_u64())
        // The default is the real date.
        .epoch(SystemTime::UNIX_EPOCH + Duration::from_millis(start))
        // A world ends when we stop stepping it.
        .simulation_duration(Duration::from_secs(1 << 30))
        .tick_duration(Duration::from_millis(setup.tick))
        // The default panics at the 65th SYN that waits.
        .tcp_capacity(4096)
        .min_message_latency(Duration::from_millis(setup.latency.0))
        .max_message_latency(Duration::from_millis(setup.latency.1));
    if setup.shuffle {
        builder.enable_random_order();
    }
    builder.build()
}
