//! One world: what is in it, how it is stepped, what can be read, and how it ends.

use super::{
    Ask, Book, Books, Order, Room, Setup, Trace,
    backend::{Backend, StoreClock},
    clock::{self, generator},
    database::Database,
    gateway::{self, Seat, Wish},
    host_name, judge, locked,
    net::Network,
    remote::{DATABASE, Mail},
    service::{self, SERVICE},
};
use crate::{
    serve::hub::Hub,
    service::{DeviceId, Service, books::DeviceLog, settings::Change},
    world::{Places, Verdict, action_of, every_row},
};
use baton_core::{
    crypto::Rng,
    flow::{Event, message_id},
    state::{BusinessId, Epoch, Store as _},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// A world of the second tier. See the [module](super).
pub struct World {
    pub(super) sim: turmoil::Sim<'static>,
    pub(super) room: Room,
    pub(super) setup: Setup,
    pub(super) seats: Vec<Seat>,
    pub(super) database: Database,
    pub(super) stalled: Arc<AtomicBool>,
    pub(super) store_clock: StoreClock,
    ids: Rng,
    /// What the faults really met, beside those that network and database count.
    pub(super) effects: BTreeMap<&'static str, u64>,
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
        let _scope = setup.crypto.scope();
        let seed = setup.seed;
        let trace = Trace::default();
        let network = Network::new(seed, setup.chunks);
        let mail = Mail::default();
        let store_clock = StoreClock::default();
        let backend = Backend::open(setup.backend, &store_clock);
        let start = service::now(&AtomicU64::new(0));
        // Small pages and few patches to a snapshot, so that every run has all there is.
        let options = crate::service::Options {
            snapshot_every: 6,
            patches_per_answer: 3,
            external_above: 700,
            ..crate::service::Options::default()
        };
        let mut state = Service::new(options, generator(seed, "service").bytes(), start);
        state.set_media_host(&format!("{}:{}", SERVICE.0, service::MEDIA));
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
            let made = backend.run(|store| async move {
                let business = BusinessId::default();
                store.create_account(&business, &name).await
            });
            let id = made.expect("a fresh name in a fresh store");
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
            bug: setup.bug,
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
        // turmoil polls all hosts on this thread.
        let _scope = self.setup.crypto.scope();
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

    /// Whether every account can be linked.
    pub(super) fn try_link(&mut self) -> bool {
        self.run_until(60_000, |world| {
            (0..world.setup.accounts).all(|account| world.is_online(account))
        })
    }

    /// Links every account: the phones scan the codes as they are shown.
    ///
    /// # Panics
    ///
    /// If linking does not work at all: then no scenario makes sense.
    pub fn link_all(&mut self) {
        let linked = self.try_link();
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

    pub(super) fn note(&mut self, words: fmt::Arguments<'_>) {
        let now = clock::micros(self.sim.elapsed());
        self.room.trace.note(now, "world", words);
    }

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

    /// Somebody changes settings of an account through the process that has it, or had it last. What cannot be asked
    /// for is left out.
    pub fn change(&mut self, account: usize, changes: Vec<Change>) {
        let mut changes = changes;
        changes.retain(|change| action_of(change).is_some());
        let owner = self.books(|books| books[account].owners.last().map(|last| last.1.clone()));
        if let Some(owner) = owner.filter(|_| !changes.is_empty()) {
            self.note(format_args!(
                "{owner} is asked for {} changes of account {account}",
                changes.len()
            ));
            self.seat(&owner).wish(Wish { account, changes });
        }
    }

    /// The owner of an account's phone changes settings.
    pub fn phone_change(&mut self, account: usize, changes: Vec<Change>) {
        self.room.order(Order::Settings { account, changes });
    }

    /// Whether a patch of settings of the account's own may be on its way: it is in the database, and what became of it
    /// is not.
    #[must_use]
    pub fn announces(&self, account: usize) -> bool {
        let id = self.books(|books| books[account].id.clone());
        self.database
            .ledger(|ledger| ledger.places(&id).is_some_and(Places::announces))
    }

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
        let _scope = self.setup.crypto.scope();
        let books = self.room.books();
        let service = self.room.hub.lock();
        self.database
            .ledger(|ledger| judge::unfinished(&books, ledger, &service))
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
        let _scope = self.setup.crypto.scope();
        let mut ledger = self.database.ledger(|ledger| ledger.clone());
        let books = self.room.books();
        let service = self.room.hub.lock();
        let mut verdict = judge::judge(&books, &ledger, &service);
        judge::settings(
            &books,
            &mut ledger,
            &service,
            |account, table| {
                every_row(table, |scan| {
                    let account = account.clone();
                    let rows = self
                        .database
                        .backend
                        .run(|store| async move { store.scan(&account, scan).await });
                    rows.unwrap_or_default()
                })
            },
            &mut verdict,
        );
        verdict.complaints.truncate(50);
        verdict
    }
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
