//! The simulated WhatsApp service: a state machine that real clients can pair with and talk through.
//!
//! Connections come in by [`Service::connect`], their bytes by [`Service::receive`]; what the service wants sent or
//! closed comes out of [`Service::poll`]. It owns no socket, clock, thread or randomness of the system: the same seed
//! and the same inputs at the same times give the same bytes, in a process of its own as in a simulation.
//!
//! ```text
//! connect/receive/disconnect/tick ──► Service ──► poll: Send(conn, one frame) | Close(conn)
//!                scan/phone_send ──►    │
//!                                     books
//! ```
//!
//! | file | subject |
//! |---|---|
//! | [`connection`](self) | handshake, frames, one connection per device, farewells |
//! | `login`, `pairing` | who may come in, and how a device becomes part of an account |
//! | `accounts`, `keys`, `usync` | who there is, their keys, how others find them |
//! | `messages`, `receipts`, `queue` | who gets what, in which order, until when |
//! | `iq`, `presence` | everything else that must be answered |
//! | `ciphers` | the service's own AES, HMAC and HKDF, which share no line with the engine's |
//! | `phone` | device 0 of each account, played by the service, with real keys |
//! | [`settings`], `syncd` | what devices of an account share, and the phone's check of it |
//! | [`history`], `handover`, `files` | the past that a phone hands over, and where it is fetched |
//! | [`books`], [`faults`] | evidence, and trouble to order |
//!
//! What it does is chapter 10 of the protocol notes; deviations are said where they are.

mod accounts;
pub mod books;
mod ciphers;
mod connection;
pub mod faults;
mod files;
mod handover;
pub mod history;
mod iq;
mod keys;
mod login;
mod messages;
mod pairing;
mod persist;
mod phone;
mod presence;
mod queue;
mod receipts;
pub mod settings;
mod syncd;
pub(crate) mod tap;
mod usync;

pub use accounts::{BadPhoneNumber, DeviceId};
pub use files::{Broken, Download, NoFile, UPLOAD_BYTES};
pub use pairing::{ScanError, Scanned};
pub use persist::RestoreError;
pub use phone::PhoneSendError;

use accounts::Accounts;
use baton_core::crypto::{KeyPair, PublicKey, Rng};
use baton_core::jid::Jid;
use baton_core::state::{Micros, UnixMillis};
use baton_core::wire::node::Node;
use baton_core::wire::noise;
use books::Books;
use bytes::Bytes;
use connection::Connection;
use faults::{Fault, Faults};
use messages::Recent;
use std::collections::{BTreeMap, VecDeque};

/// Names one connection for as long as the process lives; the embedder counts them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct ConnId(pub u64);

/// The moment of an input. `mono` never runs backwards; `unix` is only written into stanzas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, from any origin.
    pub mono: Micros,
    /// Wall-clock time.
    pub unix: UnixMillis,
}

impl Now {
    /// Whole unix seconds, as stanzas count them; 0 before 1970.
    #[must_use]
    pub(crate) fn secs(self) -> u64 {
        u64::try_from(self.unix.secs()).unwrap_or(0)
    }
}

/// What the service wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send these bytes as one WebSocket message. They are exactly one frame: a client in the field breaks on frames
    /// split over messages (chapter 01.3).
    Send(ConnId, Bytes),
    /// Close this connection. Nothing more comes for it, and it needs no [`Service::disconnect`].
    Close(ConnId),
}

/// What may differ between two services. All times in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A device whose pool falls below this many one-time keys is told so.
    pub pre_key_threshold: usize,
    /// A connection from which nothing came for this long is closed.
    pub silence: Micros,
    /// How long after its last stanza a connection is closed: clients need the time to read it (chapter 01.11).
    pub farewell: Micros,
    /// Whether a phone sends a new companion an app-state key and an empty history, as real ones do (chapter 10.9).
    pub bootstrap: bool,
    /// Give every client routing information at login; some send it with their next connection (chapter 10.6.3).
    pub edge_routing: bool,
    /// How many companions an account may have.
    pub max_companions: usize,
    /// Each so many patches a collection of settings is put into a snapshot; 0 is never.
    pub snapshot_every: u64,
    /// Patches in one answer.
    pub patches_per_answer: usize,
    /// A patch with more bytes of mutations than this goes into a file.
    pub external_above: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pre_key_threshold: 10,
            silence: Micros::from_secs(90),
            farewell: Micros::from_millis(200),
            bootstrap: true,
            edge_routing: false,
            max_companions: 50,
            snapshot_every: 50,
            patches_per_answer: 20,
            external_above: 32 << 10,
        }
    }
}

/// Sees every stanza that is about to leave, and says what leaves instead: see [`Service::tamper`].
pub type Tamper = Box<dyn FnMut(ConnId, Node) -> Vec<Node> + Send>;

/// The service. See the [module](self).
pub struct Service {
    options: Options,
    rng: Rng,
    certificate: Certificate,
    accounts: Accounts,
    connections: BTreeMap<ConnId, Connection>,
    /// The one connection each device has.
    live: BTreeMap<DeviceId, ConnId>,
    /// Stanzas that wait for the scripted phones to be read.
    inbox: VecDeque<(DeviceId, Node)>,
    timers: BTreeMap<(Micros, u64), Timer>,
    effects: VecDeque<Effect>,
    subscriptions: presence::Subscriptions,
    files: files::Files,
    /// Message ids each device has used.
    recent: BTreeMap<DeviceId, Recent>,
    books: Books,
    faults: Faults,
    tamper: Option<Tamper>,
    overheard: Option<Tamper>,
    /// Of what goes over the connections, if somebody wants to know.
    pub(crate) tap: Option<tap::Tap>,
    /// Counts the ids of own stanzas and the timers.
    counter: u64,
    revision: u64,
}

/// The service's long-lived keys. Clients are given the root key and cache the rest (chapter 01.7).
struct Certificate {
    root: KeyPair,
    server: KeyPair,
    chain: Vec<u8>,
}

/// Something to be done later.
enum Timer {
    Close(ConnId),
    Send(ConnId, Node),
    /// The phone sends a companion keys for settings.
    Keys(DeviceId, Option<Vec<Vec<u8>>>),
}

impl Service {
    /// A service with new keys and nobody in it.
    #[must_use]
    pub fn new(options: Options, seed: [u8; 32], now: Now) -> Self {
        let mut rng = Rng::from_seed(seed);
        let (root, intermediate, server) = (
            KeyPair::generate(&mut rng),
            KeyPair::generate(&mut rng),
            KeyPair::generate(&mut rng),
        );
        // Valid from a day ago, for clients whose clock runs behind, for twenty years.
        const DAY: i64 = 86_400;
        let (from, until) = (now.unix.secs() - DAY, now.unix.secs() + 20 * 365 * DAY);
        let chain = noise::certificate_chain(
            &root,
            &intermediate,
            &server.public,
            from.max(0),
            until.max(0),
            &mut rng,
        );
        Self::with(
            options,
            rng,
            Certificate {
                root,
                server,
                chain,
            },
            Accounts::default(),
        )
    }

    fn with(options: Options, rng: Rng, certificate: Certificate, accounts: Accounts) -> Self {
        Self {
            options,
            rng,
            certificate,
            accounts,
            connections: BTreeMap::new(),
            live: BTreeMap::new(),
            inbox: VecDeque::new(),
            timers: BTreeMap::new(),
            effects: VecDeque::new(),
            subscriptions: BTreeMap::new(),
            files: files::Files::default(),
            recent: BTreeMap::new(),
            books: Books::default(),
            faults: Faults::default(),
            tamper: None,
            overheard: None,
            tap: None,
            counter: 0,
            revision: 0,
        }
    }

    /// The key that signs the certificates: what a client must trust instead of WhatsApp's.
    #[must_use]
    pub fn root_public_key(&self) -> PublicKey {
        self.certificate.root.public
    }

    /// A connection was opened. One by the same name is forgotten.
    pub fn connect(&mut self, conn: ConnId, now: Now) {
        self.forget(conn, "name used again", now);
        self.connections.insert(conn, Connection::new(now));
    }

    /// Bytes came in. They need not end where frames end.
    pub fn receive(&mut self, conn: ConnId, bytes: &[u8], now: Now) {
        self.revision += 1;
        self.read(conn, bytes, now);
        self.settle(now);
    }

    /// The connection is gone, by the client's will or the network's. Unknown ones are ignored: it may have been
    /// closed from here a moment before.
    pub fn disconnect(&mut self, conn: ConnId, now: Now) {
        self.forget(conn, "closed by the client", now);
        self.settle(now);
    }

    /// Time has passed; due at [`Self::next_wake`], harmless at any other time.
    pub fn tick(&mut self, now: Now) {
        while let Some(entry) = self
            .timers
            .first_entry()
            .filter(|entry| entry.key().0 <= now.mono)
        {
            match entry.remove() {
                Timer::Close(conn) => self.cut(conn, "closed after a last word", now),
                Timer::Send(conn, node) => self.send(conn, &node, now),
                Timer::Keys(device, wanted) => self.share_keys(&device, wanted.as_deref(), now),
            }
        }
        let silence = self.options.silence;
        let silent: Vec<ConnId> = self
            .connections
            .iter()
            .filter(|(_, c)| now.mono.since(c.heard) >= silence)
            .map(|(id, _)| *id)
            .collect();
        for conn in silent {
            self.cut(conn, "silent", now);
        }
        self.settle(now);
    }

    /// When [`Self::tick`] is due next; never, if there is neither a connection nor a timer.
    #[must_use]
    pub fn next_wake(&self) -> Option<Micros> {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        let silence = self
            .connections
            .values()
            .map(|c| c.heard.plus(self.options.silence))
            .min();
        timer.into_iter().chain(silence).min()
    }

    /// Whether the scripted phones have something to read: [`Self::tick`] is due at once.
    pub(crate) fn has_post(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// The next thing to do, in order, until there is nothing.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The addresses of a device: by phone number and by LID.
    #[must_use]
    pub fn addresses(&self, device: &DeviceId) -> Vec<Jid> {
        let forms = [accounts::Form::Pn, accounts::Form::Lid];
        forms
            .into_iter()
            .filter_map(|form| self.accounts.jid(device, form))
            .collect()
    }

    /// What waits for a device: class and id.
    #[must_use]
    pub fn waiting(&self, device: &DeviceId) -> Vec<String> {
        let queue = self.accounts.device(device).map(|found| found.queue.iter());
        let entries = queue.into_iter().flatten();
        entries
            .map(|entry| format!("{:?} {}", entry.class, entry.id))
            .collect()
    }

    /// The one-time pre-keys that are left of a device's.
    #[must_use]
    pub fn pool(&self, device: &DeviceId) -> Vec<u32> {
        let pool = self
            .accounts
            .device(device)
            .map(|found| found.vault.pool.iter());
        pool.into_iter().flatten().map(|(id, _)| *id).collect()
    }

    /// Everything that was seen and done.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// What faults did so far.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Lets somebody rewrite what the service says, from now on: a service that lies. The books know what it meant.
    pub fn tamper(&mut self, tamper: Option<Tamper>) {
        self.tamper = tamper;
    }

    /// Lets somebody rewrite what devices say, from now on, before the service hears it: a client with manners of its own.
    pub fn overhear(&mut self, tamper: Option<Tamper>) {
        self.overheard = tamper;
    }

    /// Forgets which message ids devices have used: what comes again is delivered again.
    pub(crate) fn forget_ids(&mut self) {
        self.recent.clear();
    }

    /// Withdraws every fault that has not struck yet.
    pub fn heal(&mut self) {
        self.faults.clear();
    }

    /// Orders trouble. Faults that act at once do so before this returns.
    pub fn fault(&mut self, fault: Fault, now: Now) {
        self.revision += 1;
        use faults::Kind;
        match fault {
            Fault::Corrupt { device, count } => self.faults.arm(device, Kind::Corrupt, count, 0),
            Fault::Drop { device, count } => self.faults.arm(device, Kind::Drop, count, 0),
            Fault::Duplicate { device, count } => {
                self.faults.arm(device, Kind::Duplicate, count, 0)
            }
            Fault::Reorder { device, count } => self.faults.arm(device, Kind::Reorder, count, 0),
            Fault::WithholdAck { device, count } => {
                self.faults.arm(device, Kind::WithholdAck, count, 0)
            }
            Fault::DelayAck {
                device,
                count,
                micros,
            } => self.faults.arm(device, Kind::DelayAck, count, micros),
            Fault::Refuse {
                device,
                count,
                error,
            } => self.faults.arm(device, Kind::Refuse, count, error.into()),
            Fault::FailLogin {
                device,
                reason,
                count,
            } => {
                self.faults
                    .arm(device, Kind::FailLogin, count, reason.into());
            }
            Fault::IgnoreIq { device, count } => self.faults.arm(device, Kind::IgnoreIq, count, 0),
            Fault::Settings {
                device,
                what,
                count,
            } => self.faults.arm(device, Kind::Settings(what), count, 0),
            Fault::File {
                device,
                what,
                count,
            } => {
                let owner = DeviceId::new(&device.phone, 0);
                self.faults.arm(owner, Kind::File(what), count, 0);
            }
            Fault::RotateKey { device } => self.rotate_key(&device.phone, now),
            Fault::ForgetKeys { device } => self.forget_keys(&device.phone),
            Fault::DropPatches { device } => self.drop_patches(&device.phone),
            Fault::Close { device } => {
                if let Some(conn) = self.live.get(&device).copied() {
                    self.faults.count("close");
                    self.cut(conn, "fault: closed", now);
                }
            }
            Fault::StreamError {
                device,
                code,
                conflict,
            } => {
                if let Some(conn) = self.live.get(&device).copied() {
                    self.faults.count("stream_error");
                    let conflict = conflict.map(|kind| Node::new("conflict").attr("type", kind));
                    let node = Node::new("stream:error")
                        .attr_opt("code", code)
                        .children(conflict);
                    self.farewell(conn, &node, "fault: stream error", now);
                }
            }
            Fault::ExpirePreKeys { device, keep } => {
                let left = self.accounts.device_mut(&device).map(|found| {
                    let pool = &mut found.vault.pool;
                    pool.drain(..pool.len().saturating_sub(keep));
                    pool.len()
                });
                if let Some(left) = left {
                    self.faults.count("expire_pre_keys");
                    self.notify_low_pool(&device, left, now);
                }
            }
        }
        self.settle(now);
    }

    /// Changes whenever something changed that [`Self::save`] would keep.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Lets the scripted phones read what came for them, and answer, until all is quiet.
    fn settle(&mut self, now: Now) {
        while let Some((phone, node)) = self.inbox.pop_front() {
            self.phone_reads(&phone, &node, now);
        }
    }

    /// An id for a stanza of our own. The prefix is one that no client generates (chapter 04.2).
    fn next_id(&mut self) -> String {
        self.counter += 1;
        format!("srv-{}", self.counter)
    }

    fn later(&mut self, at: Micros, timer: Timer) {
        self.counter += 1;
        self.timers.insert((at, self.counter), timer);
    }

    /// One stanza as it came from a device.
    fn hear(&mut self, conn: ConnId, from: &DeviceId, node: Node, now: Now) {
        let Some(mut tamper) = self.overheard.take() else {
            return self.stanza(from, &node, now);
        };
        for node in tamper(conn, node) {
            self.stanza(from, &node, now);
        }
        self.overheard = Some(tamper);
    }

    /// One stanza of a device, whichever way it came.
    fn stanza(&mut self, from: &DeviceId, node: &Node, now: Now) {
        match node.tag() {
            "message" => self.on_message(from, node, now),
            "receipt" => self.on_receipt(from, node, now),
            "ack" => self.on_ack(from, node, now),
            "iq" => self.on_iq(from, node, now),
            "presence" => self.on_presence(from, node, now),
            "chatstate" => self.on_chatstate(from, node, now),
            "call" => self.on_call(from, node, now),
            // unified_session, offline_batch: nothing to answer, and the offline phase sends everything by itself.
            "ib" => {}
            tag => {
                let what = format!("stanza with unknown tag {tag:?}");
                self.books
                    .anomaly(self.live.get(from).copied(), Some(from), what, now);
            }
        }
    }

    /// Books a broken rule of the protocol.
    fn anomaly(&mut self, device: &DeviceId, what: impl Into<String>, now: Now) {
        self.books.anomaly(
            self.live.get(device).copied(),
            Some(device),
            what.into(),
            now,
        );
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("accounts", &self.accounts)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}
