//! One account: routes inputs to flows, collects effects, holds the durability gate.
//!
//! **The contract, in six sentences.**
//!
//! 1. *Release.* An effect leaves [`Engine::poll`] only when every batch it depends on is durable in this epoch, the
//!    grant has not run out, and all effects before it have left. (Handshakes depend on no batch and pass beside the
//!    queue, so that a slow database does not cost the connection; pings and their answers pass without a grant, too,
//!    so that a database that is away does not, for as long as [`Timing::hold`](crate::flow::Timing) says.)
//! 2. *Identity.* A batch is (account, epoch, seq); the store applies a seq once, so a commit whose outcome is unknown
//!    is simply sent again.
//! 3. *Group commit.* `poll` hands out the open batch while fewer than `batches_in_flight` are out; beyond that,
//!    further work joins the open batch.
//! 4. *Laziness.* Queued work states the rows it needs; they are loaded together; execution is strictly in order of
//!    acceptance. A row with an unfinished write stays in memory, so a load cannot read around our own commit.
//! 5. *Bounds.* Nothing grows beyond [`Limits`](crate::flow::Limits). A command too many is answered `Busy`; bytes are
//!    not asked for while [`Appetite::bytes`] is false.
//! 6. *Order.* Outputs come as: `Stopped`, else `Commit`, else `Load` and `Scan`, else the head of the queue of
//!    effects, else `Idle`. Frames are sealed when they leave, so Noise counters follow the wire.
//!
//! | file | subject |
//! |---|---|
//! | `api` | inputs and outputs |
//! | `reading` | what the store answers, and the start |
//! | `commands` | what the host asks for |
//! | `stanzas` | what the service says, and the end of a connection |
//! | `work` | what needs rows, in order |
//! | `gate` | what may leave, and when |
//!
//! The driver's part: feed inputs, drain `poll` until `Idle`, do as told. `examples/blocking.rs` does it with threads.

mod api;
mod commands;
mod gate;
mod reading;
mod stanzas;
mod work;

pub use crate::flow::{Stats, StopReason};
pub use crate::state::Now;
pub use api::{Appetite, Grant, Input, LoadId, Output};

use crate::{
    crypto::Rng,
    flow::{
        Account, Command, CommandError, CommandId, Config, Context,
        context::Gate,
        inbox::{self, Inbox},
        link::{Again, Link},
        login::{self, Login},
        pairing::Pairing,
        pre_keys,
        query::{Answer, Queries},
        retry::{Asked, Retries},
        send::Sends,
        sync::{Sync, SyncScan},
    },
    proto::record::Counters,
    state::{AccountId, Key, Micros, Scan, Table, WorkingSet, rules},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use work::{Machines, Work, WorkQueue};

/// How long a stopping engine waits for its last batches.
const LAST_WORDS: Micros = Micros::from_secs(5);

/// What a load or scan is for.
#[derive(Debug)]
enum Reading {
    Rows(Vec<Key>),
    Account,
    /// The rows behind this one.
    Outbox(Option<Key>),
    InboxAtStart,
    Inbox,
    Mailbox,
    Sync(SyncScan),
    MailboxAtStart,
}

/// Where the engine's life stands.
#[derive(Debug)]
enum Phase {
    /// Reading what previous owners left.
    Starting,
    Running,
    /// Writing and saying the last things, for so long at most.
    Stopping(StopReason, Micros),
    Stopped(StopReason),
}

/// One account, on one host, for one epoch.
pub struct Engine {
    cx: Context,
    grant: Grant,
    phase: Phase,
    link: Link,
    login: Login,
    pairing: Pairing,
    sends: Sends,
    retries: Retries,
    sync: Sync,
    work: WorkQueue,
    reading: BTreeMap<LoadId, Reading>,
    next_load: u64,
    scans: VecDeque<(LoadId, Scan)>,
    loads: VecDeque<(LoadId, Vec<Key>)>,
    /// Commands that came before the account was read.
    early: VecDeque<(CommandId, Command)>,
    unlinking: Option<CommandId>,
    checking_mailbox: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("account", &self.cx.id)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Equal (account, config, grant, seed, inputs) give equal outputs, byte for byte.
    #[must_use]
    pub fn new(account: AccountId, config: Config, grant: Grant, seed: [u8; 32], now: Now) -> Self {
        let mut rng = Rng::from_seed(seed);
        let lease = grant.lease;
        let cache = usize::try_from(config.limits.cache_bytes.get()).unwrap_or(usize::MAX);
        let cx = Context {
            id: account,
            queries: Queries::new(&mut rng),
            // For the case that the account is new; else the row replaces them.
            account: Account::create(&mut rng, now.unix.secs()),
            rng,
            now,
            rows: WorkingSet::new(lease.applied, lease.sealed != lease.term.history, cache),
            counters: Counters::default(),
            gate: Gate::default(),
            inbox: Inbox::default(),
            connection: None,
            available: false,
            wanted: BTreeSet::new(),
            scans: VecDeque::new(),
            from_phone: VecDeque::new(),
            stats: Stats::default(),
            config,
        };
        let mut engine = Self {
            cx,
            grant,
            phase: Phase::Starting,
            link: Link::new(),
            login: Login::default(),
            pairing: Pairing::default(),
            sends: Sends::default(),
            retries: Retries::default(),
            sync: Sync::default(),
            work: WorkQueue::default(),
            reading: BTreeMap::new(),
            next_load: 1,
            scans: VecDeque::new(),
            loads: VecDeque::new(),
            early: VecDeque::new(),
            unlinking: None,
            checking_mailbox: false,
        };
        if lease.applied.0 >= rules::MAX_NUMBER {
            engine.halt(StopReason::Store("the write history is full".into()));
        }
        engine.load(vec![Key::Device, Key::Counters], Reading::Account);
        engine
    }

    /// Takes one input. Cannot fail: what a peer, a store or a caller does wrong is an output.
    pub fn handle(&mut self, input: Input<'_>, now: Now) {
        // A driver whose clock steps back must not make time-outs run backwards.
        self.cx.now = Now {
            mono: self.cx.now.mono.max(now.mono),
            unix: now.unix,
        };
        if matches!(self.phase, Phase::Stopped(_)) {
            return;
        }
        if let Input::Granted(grant) = input {
            self.granted(grant);
        }
        // Long enough without a grant. A process that was frozen finds out here, before it does anything else.
        if self.cx.now.mono >= self.held_until() {
            self.halt(StopReason::LeaseExpired);
            return;
        }
        self.take(input);
        self.tick();
        self.pump();
        while self.read() {
            self.pump();
        }
    }

    /// The next effect, in one total order. Draining is needed for progress, never for correctness.
    pub fn poll(&mut self, wire: &mut Vec<u8>) -> Output {
        if let Phase::Stopped(reason) = &self.phase {
            return Output::Stopped(reason.clone());
        }
        loop {
            let output = self.next_output(wire);
            // There may be room now for what came while there was none.
            if matches!(output, Output::Idle { .. }) && self.read() {
                self.pump();
                continue;
            }
            return output;
        }
    }

    fn next_output(&mut self, wire: &mut Vec<u8>) -> Output {
        let limits = &self.cx.config.limits;
        if self.cx.rows.in_flight() < u64::from(limits.batches_in_flight.get())
            && let Some(batch) =
                self.cx
                    .rows
                    .seal(&self.cx.id, self.grant.lease.term, self.cx.now.unix)
        {
            self.cx.stats.batches += 1;
            return Output::Commit(batch);
        }
        if let Some((id, keys)) = self.loads.pop_front() {
            return Output::Load(id, keys);
        }
        if let Some((id, scan)) = self.scans.pop_front() {
            return Output::Scan(id, scan);
        }
        while let Some(effect) = if self.may_act() {
            self.cx.gate.pop(&self.cx.rows)
        } else {
            self.cx.gate.pop_idle()
        } {
            if let Some(output) = self.release(effect, wire) {
                return output;
            }
        }
        if let Phase::Stopping(reason, _) = &self.phase {
            let said = self.cx.gate.is_empty()
                && !self.cx.rows.has_open_batch()
                && self.cx.rows.in_flight() == 0;
            if said {
                let reason = reason.clone();
                self.phase = Phase::Stopped(reason.clone());
                return Output::Stopped(reason);
            }
        }
        Output::Idle {
            wake: self.wake(),
            why: self.why(),
        }
    }

    /// What there is room for. A driver that offers no more keeps the engine inside its limits.
    #[must_use]
    pub fn appetite(&self) -> Appetite {
        let limits = &self.cx.config.limits;
        let running = matches!(self.phase, Phase::Running | Phase::Starting);
        let queued = self.sends.len() + self.early.len() + self.work.len();
        Appetite {
            bytes: self.has_room(),
            commands: if running {
                limits
                    .outbox
                    .get()
                    .saturating_sub(u32::try_from(queued).unwrap_or(u32::MAX))
            } else {
                0
            },
        }
    }

    /// Whether another stanza may be taken in.
    fn has_room(&self) -> bool {
        let limits = &self.cx.config.limits;
        let fits =
            |used: usize, most: u32| u64::try_from(used).is_ok_and(|used| used < u64::from(most));
        fits(self.work.len(), limits.work_queued.get())
            && fits(
                self.work.bytes() + self.cx.gate.bytes(),
                limits.gate_bytes.get(),
            )
    }

    /// What happened since the engine was built.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.cx.stats
    }

    /// Bytes of rows in memory.
    #[must_use]
    pub const fn cached_bytes(&self) -> usize {
        self.cx.rows.bytes()
    }

    // ---- inputs -----------------------------------------------------------------------------------------------

    fn take(&mut self, input: Input<'_>) {
        match input {
            Input::Opened => {
                let payload = login::client_payload(&self.cx);
                self.link.opened(&mut self.cx, &payload);
            }
            Input::Received(bytes) => self.received(bytes),
            Input::Closed => self.closed(),
            Input::Loaded(id, rows) => self.loaded(id, rows),
            Input::Scanned(id, rows) => self.scanned(id, rows),
            Input::Committed { epoch, upto } => {
                if epoch == self.grant.lease.term.epoch {
                    self.cx.rows.committed(upto);
                }
            }
            Input::Unsealed { history } => self.halt(StopReason::HistoryChanged(history)),
            Input::Fenced { by } => self.halt(StopReason::Fenced(by)),
            Input::StoreRefused(why) => self.halt(StopReason::Store(why)),
            Input::Command(id, command) => match self.phase {
                // It makes room and needs none: refused, it would be what the next one waits for.
                Phase::Starting if self.was_shown(&command) => self.command(id, command),
                Phase::Starting | Phase::Running if self.is_too_many(&command) => {
                    self.cx.reply(id, Err(CommandError::Busy));
                }
                Phase::Starting => self.early.push_back((id, command)),
                Phase::Running => self.command(id, command),
                Phase::Stopping(..) | Phase::Stopped(_) => {
                    self.cx.reply(id, Err(CommandError::Unknown))
                }
            },
            Input::Fetched(id, what) => {
                if matches!(self.phase, Phase::Running) {
                    self.sync.fetched(&mut self.cx, id, what);
                }
            }
            Input::Reseed(seed) => self.cx.rng.reseed(seed),
            Input::Granted(_) | Input::Tick => {}
        }
    }

    /// Whether events are acknowledged that this engine has shown, perhaps before it has read the rest.
    fn was_shown(&self, command: &Command) -> bool {
        matches!(command, Command::Acknowledge(upto) if self.cx.inbox.has_shown(*upto))
    }

    /// What would be queued is refused beyond the limit; while nothing is read yet, everything is queued.
    fn is_too_many(&self, command: &Command) -> bool {
        let works = matches!(command, Command::Send(_) | Command::Change(_));
        let queued = matches!(self.phase, Phase::Starting) || works;
        queued && self.appetite().commands == 0
    }

    fn granted(&mut self, grant: Grant) {
        if grant.lease.term == self.grant.lease.term {
            self.grant.until = self.grant.until.max(grant.until);
        }
        // A grant of another term is another engine's: ours ends when it ends.
    }

    // ---- work -------------------------------------------------------------------------------------------------

    fn enqueue(&mut self, work: Work) {
        let machines = Machines {
            sends: &self.sends,
            retries: &self.retries,
            sync: &self.sync,
        };
        self.work.push(&mut self.cx, work, machines);
    }

    /// Executes what can be executed, asks for what is missing.
    fn pump(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        loop {
            // Logged in until the connection is known to be gone; what was closed has nobody to ask before that.
            let online = self.login.is_online() && self.cx.connection.is_some();
            while let Some(work) = self.sync.advance(&mut self.cx, online) {
                self.enqueue(Work::Sync(work));
            }
            let machines = Machines {
                sends: &self.sends,
                retries: &self.retries,
                sync: &self.sync,
            };
            if self.login.is_online() {
                for id in self.sends.ready(&self.cx) {
                    self.work.push_send(&mut self.cx, id, machines);
                }
            }
            let Some(work) = self.work.next(&mut self.cx, machines) else {
                break;
            };
            self.execute(work);
            self.cx.rows.evict();
            if !matches!(self.phase, Phase::Running) {
                break;
            }
        }
        if inbox::advance(&mut self.cx) {
            let after = inbox::scan_from(&mut self.cx);
            let window = self.cx.config.limits.events_in_flight.get();
            self.scan(Table::Inbox, after, window, Reading::Inbox);
        }
        while let Some((after, _)) = self.cx.scans.front() {
            if !self.cx.rows.is_durable(*after) {
                break;
            }
            let Some((_, scan)) = self.cx.scans.pop_front() else {
                break;
            };
            let Scan {
                table,
                after,
                limit,
            } = scan.scan();
            self.scan(table, after, limit, Reading::Sync(scan));
        }
        let wanted: Vec<Key> = std::mem::take(&mut self.cx.wanted)
            .into_iter()
            .filter(|key| !self.cx.rows.knows(key) && !self.cx.rows.is_loading(key))
            .collect();
        if !wanted.is_empty() {
            self.cx.rows.load_started(&wanted);
            self.load(wanted.clone(), Reading::Rows(wanted));
        }
        if self.work.is_empty() {
            self.cx.rows.evict();
        }
    }

    fn execute(&mut self, work: Work) {
        let cx = &mut self.cx;
        match work {
            Work::Message(stanza) => crate::flow::receive::message(cx, &mut self.retries, &stanza),
            Work::Receipt(stanza, from) => {
                if let Some(next) = self.sends.receipt(cx, &stanza, from) {
                    self.work.push_front(Work::Receipt(stanza, next));
                }
            }
            Work::Retry { stanza, asked } => self.retries.answer(cx, &self.sends, &stanza, asked),
            Work::Accept(command, request) => self.sends.accept(cx, command, request),
            Work::Send(id) => self.sends.step(cx, &id),
            Work::UploadPreKeys => pre_keys::upload(cx),
            Work::Sync(work) => {
                if let Some(next) = self.sync.execute(cx, work) {
                    self.work.push_front(Work::Sync(next));
                }
            }
            Work::DevicesAnswered(users, answer) => {
                let complete = match &answer {
                    Answer::Result(stanza) => {
                        crate::flow::devices::devices_answered(cx, &users, stanza)
                    }
                    _ => true,
                };
                // An answer that leaves somebody out is no better than an error: asked again, a few times.
                let answer = if complete { answer } else { Answer::Error(0) };
                self.sends.devices_answered(cx, &answer, &users);
                for stanza in self.retries.devices_answered(&answer, &users) {
                    self.enqueue(Work::Retry {
                        stanza,
                        asked: Asked::Devices,
                    });
                }
            }
            Work::BundlesAnswered(devices, answer) => {
                let reached = match &answer {
                    Answer::Result(stanza) => {
                        crate::flow::devices::bundles_answered(cx, &devices, stanza)
                    }
                    _ => Vec::new(),
                };
                let missing: Vec<_> = devices
                    .iter()
                    .filter(|device| !reached.contains(device))
                    .cloned()
                    .collect();
                self.sends.bundles_answered(cx, &answer, &missing);
                self.sync.bundles_answered();
                for stanza in self.retries.bundles_answered(&answer, &devices) {
                    self.enqueue(Work::Retry {
                        stanza,
                        asked: Asked::Bundle,
                    });
                }
            }
        }
    }

    fn load(&mut self, keys: Vec<Key>, reading: Reading) {
        let id = self.reading_id(reading);
        self.loads.push_back((id, keys));
    }

    fn scan(&mut self, table: Table, after: Option<Key>, limit: u32, reading: Reading) {
        let id = self.reading_id(reading);
        self.scans.push_back((
            id,
            Scan {
                table,
                after,
                limit,
            },
        ));
    }

    fn reading_id(&mut self, reading: Reading) -> LoadId {
        let id = LoadId(self.next_load);
        self.next_load += 1;
        self.reading.insert(id, reading);
        id
    }

    // ---- time -------------------------------------------------------------------------------------------------

    fn tick(&mut self) {
        if let Phase::Stopping(reason, until) = &self.phase {
            if self.cx.now.mono >= *until {
                self.phase = Phase::Stopped(reason.clone());
            }
            return;
        }
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        self.link.tick(&mut self.cx);
        self.pairing.tick(&mut self.cx, &mut self.link);
        if self.login.tick(&mut self.cx, &mut self.link) {
            self.sends.resume(&mut self.cx);
            self.sync.online(&mut self.cx);
        }
        // Without a grant the last copy has not left: another would stand behind it.
        if self.may_act() {
            self.sync.tick(&mut self.cx);
            self.sends.tick(&mut self.cx, &self.link);
        }
        for query in self.cx.queries.expired(self.cx.now.mono) {
            self.answered(query, Answer::TimedOut);
        }
    }

    fn wake(&self) -> Option<Micros> {
        let wakes = match &self.phase {
            Phase::Running => [
                self.link.wake(),
                self.pairing.wake(),
                self.login.wake(&self.cx),
                self.sends.wake().filter(|_| self.may_act()),
                self.sync.wake().filter(|_| self.may_act()),
                self.cx.queries.deadline(),
            ],
            Phase::Stopping(_, until) => [Some(*until), None, None, None, None, None],
            Phase::Starting | Phase::Stopped(_) => [None; 6],
        };
        let held = self.held_until();
        Some(wakes.into_iter().flatten().fold(held, Micros::min))
    }

    fn why(&self) -> &'static str {
        if !self.may_act() {
            "held: no grant"
        } else if !self.cx.gate.is_empty() && self.cx.rows.in_flight() > 0 {
            "waiting for a commit"
        } else if !self.reading.is_empty() {
            "waiting for rows"
        } else if matches!(self.phase, Phase::Stopping(..)) {
            "stopping"
        } else if self.login.is_online() {
            "online"
        } else if self.link.is_wanted() {
            "connecting"
        } else {
            "not connected"
        }
    }

    // ---- the end ----------------------------------------------------------------------------------------------

    /// Stops after the last words: batches become durable, effects leave, the connection is closed.
    fn stop(&mut self, reason: StopReason) {
        if matches!(self.phase, Phase::Stopping(..) | Phase::Stopped(_)) {
            return;
        }
        // Every command gets its answer, these that somebody else may know better.
        let abandoned = self.work.abandon();
        let early = self.early.drain(..).map(|(id, _)| id);
        let unlinking = self.unlinking.take();
        let pages = self.sync.abandon();
        for id in abandoned
            .into_iter()
            .chain(early)
            .chain(unlinking)
            .chain(pages)
        {
            self.cx.reply(id, Err(CommandError::Unknown));
        }
        self.pairing.fail(&mut self.cx, &CommandError::Unknown);
        if !self.link.is_down() {
            self.link.end(&mut self.cx, Again::Never, "stopping");
        }
        self.phase = Phase::Stopping(reason, self.cx.now.mono.plus(LAST_WORDS));
    }

    /// Stops at once: nothing more is written, nothing more is said.
    fn halt(&mut self, reason: StopReason) {
        self.phase = Phase::Stopped(reason);
    }
}
