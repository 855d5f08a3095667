//! Worlds of the second tier: the real drivers of `baton-tokio`, unchanged, on simulated machines.
//!
//! ```text
//!  a, b, c …  gateway hosts: baton_tokio::Host, all accounts, their consumers      one task each
//!      │ │
//!      │ └── ws://service:80   the simulated service behind real WebSocket framing; its files on port 81
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
//! | `world`, `disasters` | one world: stepping, reading, ending it; what can go wrong by hand |
//! | `gateway`, `service`, `database` | the processes on the hosts |
//! | `consumer` | who takes the events of accounts, on gateway hosts |
//! | `net`, `remote`, `clock` | what they have of network, store and time |
//! | `backend`, `postgres` | the stores |
//! | `plan`, `run` | trouble drawn from a seed; running it; saying what happened |
//! | `diff` | one seed on several stores, up to the first difference |
//! | `judge`, `bugs` | what must hold; mistakes that break it, to see that the judges can tell |

mod backend;
mod bugs;
mod clock;
mod consumer;
mod database;
mod diff;
mod disasters;
mod gateway;
mod judge;
mod net;
mod plan;
mod postgres;
mod remote;
mod run;
mod service;
mod trace;
mod world;

pub use backend::Kind;
pub use bugs::Bug;
pub use consumer::Book;
pub use diff::{Difference, diff, diff_plans};
pub use plan::{By, Plan, Trouble};
pub use run::{Report, run, run_with};
pub use trace::Trace;
pub use world::World;

use crate::{
    serve::hub::Hub,
    service::{faults::Fault, settings::Change},
    world::{Asked, Crypto},
};
use baton_core::crypto::PublicKey;
use net::Network;
use remote::Mail;
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// What engines and service encrypt with.
    pub crypto: Crypto,
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
            crypto: Crypto::Real,
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
    /// The owner of an account's phone changes settings.
    Settings {
        account: usize,
        changes: Vec<Change>,
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
    /// Which settings engines were asked to change, of which account, in order.
    pub(crate) changes: Vec<(usize, Asked)>,
    pub(crate) complaints: Vec<String>,
}

/// What all processes of a world can reach without the network: books, orders, the trace. Clones are the same.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) seed: u64,
    pub(crate) gateways: usize,
    pub(crate) bug: Option<Bug>,
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

/// What [`World::backup`] makes, and [`World::fail_over`] and [`World::restore`] go back to.
#[derive(Debug)]
pub struct Backup {
    backend: backend::Image,
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
