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
//! The driver's part: feed inputs, drain `poll` until `Idle`, do as told. `examples/blocking.rs` does it with threads.

mod api;
mod work;

pub use crate::flow::{Stats, StopReason};
pub use crate::state::Now;
pub use api::{Appetite, Grant, Input, LoadId, Output};

use crate::{
    crypto::Rng,
    flow::{
        Account, Command, CommandError, CommandId, Config, Context, Event, LinkState, Reply,
        context::{Effect, Gate},
        inbox::{self, Inbox},
        link::{Again, Link, Received},
        login::{self, Login, Verdict},
        notify::{self, Wish},
        pairing::{self, Pairing},
        pre_keys,
        query::{Answer, Queries, Query, iq},
        reseal,
        retry::{Asked, Retries},
        send::Sends,
        sync::{Sync, SyncScan, SyncWork},
    },
    proto::record::Counters,
    state::{AccountId, Key, Micros, Row, Scan, Table, WorkingSet, codec, rules},
    wire::node::{self, Node},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use work::{Machines, Work, WorkQueue};

/// Rows per scan while starting.
const SCAN_ROWS: u32 = 256;

/// Requests taken from the mailbox at once.
const MAILBOX_ROWS: u32 = 1024;

/// How long a stopping engine waits for its last batches.
const LAST_WORDS: Micros = Micros::from_secs(5);

/// Whether counters can be counted on from where they stand: what comes out of them has to fit the tables.
fn plausible(counters: &Counters) -> bool {
    let pre_key = |id: Option<u32>| id.unwrap_or(1) <= rules::MAX_PRE_KEY_ID;
    counters.next_event.unwrap_or(1) < rules::MAX_NUMBER
        && counters.next_order.unwrap_or(1) < rules::MAX_NUMBER
        && pre_key(counters.next_pre_key)
        && pre_key(counters.first_unconfirmed_pre_key)
        && pre_key(counters.next_signed_pre_key)
        && counters.burn.unwrap_or(0) < u32::MAX
}

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

    fn loaded(&mut self, id: LoadId, rows: Vec<Row>) {
        let reading = match self.reading.get(&id) {
            Some(Reading::Account | Reading::Rows(_)) => self.reading.remove(&id),
            _ => None,
        };
        match reading {
            Some(Reading::Account) => self.account_read(rows),
            Some(Reading::Rows(keys)) => {
                for key in self.cx.rows.load_finished(keys, rows) {
                    self.cx.corrupt(key);
                }
            }
            // Not asked for, or asked for as a scan: the driver has mixed something up. Nothing depends on it.
            _ => self.cx.protocol_error("rows that were not asked for"),
        }
    }

    fn account_read(&mut self, rows: Vec<Row>) {
        let mut rows = rows.into_iter();
        match rows.next() {
            Some(Row::Absent) => self.cx.save_account(),
            Some(Row::Present(record)) => match Account::from_record(&record) {
                Ok(account) => self.cx.account = account,
                Err(error) => {
                    return self.halt(StopReason::Store(format!(
                        "row {}: {error}",
                        Table::Device.name()
                    )));
                }
            },
            _ => {
                return self.halt(StopReason::Store(format!(
                    "row {} cannot be read",
                    Table::Device.name()
                )));
            }
        }
        match rows.next() {
            Some(Row::Absent) => self.cx.save_counters(),
            Some(Row::Present(record)) => match codec::decode(&record) {
                Ok(counters) if !plausible(&counters) => {
                    return self.halt(StopReason::Store(format!(
                        "row {}: numbers out of range",
                        Table::Counters.name()
                    )));
                }
                Ok(counters) => self.cx.counters = counters,
                // Guessing these would bind ids twice.
                Err(error) => {
                    return self.halt(StopReason::Store(format!(
                        "row {}: {error}",
                        Table::Counters.name()
                    )));
                }
            },
            _ => {
                return self.halt(StopReason::Store(format!(
                    "row {} cannot be read",
                    Table::Counters.name()
                )));
            }
        }
        // Before anything else is written: this has to be in the first batch.
        let (sealed, history) = (self.grant.lease.sealed, self.grant.lease.term.history);
        if sealed != history {
            reseal::reseal(&mut self.cx, sealed, history);
            if !plausible(&self.cx.counters) {
                return self.halt(StopReason::Store("the numbers are used up".into()));
            }
        }
        self.scan(Table::Outbox, None, SCAN_ROWS, Reading::Outbox(None));
    }

    fn scanned(&mut self, id: LoadId, rows: Vec<(Key, Row)>) {
        let reading = match self.reading.get(&id) {
            None | Some(Reading::Account | Reading::Rows(_)) => None,
            Some(_) => self.reading.remove(&id),
        };
        match reading {
            Some(Reading::Outbox(before)) => {
                let last = rows.last().map(|(key, _)| key.clone());
                let full = rows.len() >= SCAN_ROWS as usize;
                // A store that gives the same rows again and again would keep us here for ever.
                let advances =
                    last > before && last.as_ref().is_none_or(|key| key.table() == Table::Outbox);
                if full && !advances {
                    return self.halt(StopReason::Store(format!(
                        "a scan of table {} does not advance",
                        Table::Outbox.name()
                    )));
                }
                self.sends.start(&mut self.cx, rows);
                if full {
                    self.scan(
                        Table::Outbox,
                        last.clone(),
                        SCAN_ROWS,
                        Reading::Outbox(last),
                    );
                } else {
                    let window = self.cx.config.limits.events_in_flight.get();
                    self.scan(Table::Inbox, None, window, Reading::InboxAtStart);
                }
            }
            Some(Reading::InboxAtStart) => {
                inbox::start(&mut self.cx, rows);
                // After a loss a request can be back in the mailbox that has been sent, and somebody may ask for it
                // again: it has to be known before the service can speak.
                if self.cx.stats.losses > 0 && self.cx.account.is_linked() {
                    self.scan(Table::Mailbox, None, MAILBOX_ROWS, Reading::MailboxAtStart);
                } else {
                    self.started();
                }
            }
            Some(Reading::MailboxAtStart) => {
                self.work.mailbox(&mut self.cx, rows);
                self.started();
            }
            Some(Reading::Inbox) => inbox::scanned(&mut self.cx, rows),
            Some(Reading::Sync(scan)) => self.sync.scanned(&mut self.cx, scan, rows),
            Some(Reading::Mailbox) => {
                self.checking_mailbox = false;
                self.sends.mailbox_read();
                self.work.mailbox(&mut self.cx, rows);
            }
            _ => self.cx.protocol_error("rows that were not asked for"),
        }
    }

    fn started(&mut self) {
        if let LinkState::LoggedOut(code) = self.cx.account.state {
            // Linking anew is a decision of people: a command for it may have come already.
            if self.early.is_empty() {
                self.stop(StopReason::LoggedOut(code));
                return;
            }
        }
        self.phase = Phase::Running;
        if self.cx.account.is_linked() {
            self.link.open(&mut self.cx);
        }
        while let Some((id, command)) = self.early.pop_front() {
            self.command(id, command);
        }
    }

    // ---- commands ---------------------------------------------------------------------------------------------

    fn command(&mut self, id: CommandId, command: Command) {
        match command {
            Command::Link => {
                if let LinkState::LoggedOut(_) = self.cx.account.state {
                    // New keys: the old ones belong to a device that the service has forgotten.
                    self.cx.account = Account::create(&mut self.cx.rng, self.cx.now.unix.secs());
                    self.cx.save_account();
                }
                self.pairing.link(&mut self.cx, &mut self.link, id);
            }
            // Checked before its row is asked for: not every id is the name of a row.
            Command::Send(request) => match Sends::check(&request) {
                Ok(()) => self.enqueue(Work::Accept(Some(id), request)),
                Err(error) => self.cx.reply(id, Err(error)),
            },
            Command::Acknowledge(upto) => {
                let result = inbox::acknowledge(&mut self.cx, upto).map(|()| Reply::Done);
                self.cx.reply(id, result);
            }
            Command::MarkRead { chat, sender, ids } => {
                let result = if ids.len() > 256 {
                    Err(CommandError::Invalid("at most 256 ids at once"))
                } else if !self.login.is_logged_in() {
                    Err(CommandError::Busy)
                } else {
                    notify::mark_read(&mut self.cx, &chat, sender.as_ref(), &ids);
                    Ok(Reply::Done)
                };
                self.cx.reply(id, result);
            }
            Command::Presence { available, name } => {
                if let Some(name) = name {
                    self.cx.account.push_name = Some(name);
                    self.cx.save_account();
                }
                self.cx.config.available = available;
                if self.login.is_logged_in() {
                    login::announce(&mut self.cx, available);
                }
                self.cx.reply(id, Ok(Reply::Done));
            }
            Command::CheckMailbox => {
                let waiting = self.checking_mailbox || self.work.has_mail();
                if !waiting && self.cx.account.is_linked() {
                    self.checking_mailbox = true;
                    self.scan(Table::Mailbox, None, MAILBOX_ROWS, Reading::Mailbox);
                }
                self.cx.reply(id, Ok(Reply::Done));
            }
            Command::Change(_)
            | Command::Sync(_)
            | Command::Contacts { .. }
            | Command::Chats { .. }
            | Command::Settings { .. } => {
                if let Some(work) = self.sync.command(&mut self.cx, id, command) {
                    self.enqueue(Work::Sync(work));
                }
            }
            Command::Logout => self.log_out(id),
            Command::Shutdown => {
                self.cx.reply(id, Ok(Reply::Done));
                self.stop(StopReason::Shutdown);
            }
        }
    }

    fn log_out(&mut self, id: CommandId) {
        let Some(own) = self
            .cx
            .account
            .jid
            .clone()
            .filter(|_| self.cx.account.is_linked())
        else {
            self.cx.reply(id, Err(CommandError::NotLinked));
            return;
        };
        if !self.login.is_logged_in() || self.unlinking.is_some() {
            self.cx.reply(id, Err(CommandError::Busy));
            return;
        }
        let remove = Node::new("remove-companion-device")
            .attr("jid", own)
            .attr("reason", "user_initiated");
        self.unlinking = Some(id);
        self.cx
            .ask(iq("md", "set").child(remove), Query::Logout(id));
    }

    fn logged_out(&mut self, code: u16) {
        if self.cx.account.is_linked() {
            self.cx.account.state = LinkState::LoggedOut(code);
            self.cx.save_account();
            self.cx.emit(Event::LoggedOut { code });
        }
        if let Some(id) = self.unlinking.take() {
            self.cx.reply(id, Ok(Reply::Done));
        }
        self.stop(StopReason::LoggedOut(code));
    }

    // ---- the connection ---------------------------------------------------------------------------------------

    fn received(&mut self, bytes: &[u8]) {
        // What still comes while the engine stops is not answered; it comes again for the next owner.
        if matches!(self.phase, Phase::Running) {
            self.link.push(&self.cx, bytes);
            self.read();
        }
    }

    /// Takes in what has come, as long as there is room. Returns whether there was anything.
    fn read(&mut self) -> bool {
        let mut any = false;
        while matches!(self.phase, Phase::Running) && self.has_room() {
            match self.link.next(&mut self.cx) {
                Received::Nothing => return any,
                Received::Up => self.login.up(&mut self.cx),
                Received::Frame(payload) => match node::decode_owned(&payload) {
                    Ok(stanza) => self.stanza(stanza),
                    Err(error) => self
                        .cx
                        .protocol_error(format!("a stanza does not decode: {error}")),
                },
                Received::Broken(why) => {
                    self.link.cut(&mut self.cx, Again::Later, why);
                }
            }
            any = true;
        }
        any
    }

    fn closed(&mut self) {
        if !self.link.closed(&mut self.cx) {
            return;
        }
        self.login.reset();
        let confirmed = self.pairing.closed();
        self.retries.closed();
        self.sync.closed();
        for query in self.cx.queries.drain() {
            self.answered(query, Answer::Lost);
        }
        if matches!(self.phase, Phase::Stopping(..)) {
            return;
        }
        if confirmed && self.cx.account.is_linked() {
            self.link.open(&mut self.cx);
        }
    }

    fn stanza(&mut self, stanza: Node) {
        match stanza.tag() {
            "iq" => self.iq(&stanza),
            "success" => self.login.success(&mut self.cx, &mut self.link, &stanza),
            "failure" => {
                let verdict = login::failure(&stanza);
                self.refused(verdict);
            }
            "stream:error" => {
                let verdict = login::stream_error(&stanza);
                self.refused(verdict);
            }
            "xmlstreamend" => {
                self.link
                    .end(&mut self.cx, Again::Later, "the service ended the stream")
            }
            "ib" => {
                let wish = notify::information(&mut self.cx, &self.login, &stanza);
                self.grant_wish(wish);
            }
            "ack" => match stanza.get_string("class").as_deref() {
                Some("message") => {
                    self.sends.acknowledged(&mut self.cx, &stanza);
                    if let Some(id) = stanza.get_string("id") {
                        let refused = stanza.get_u64("error").unwrap_or(0) != 0;
                        self.sync.acknowledged(&mut self.cx, &id, refused);
                    }
                }
                // An announcement of history has two receipts, and one id. The answer to the other one says nothing.
                Some("receipt") if stanza.get_string("type").as_deref() == Some("hist_sync") => {
                    if let Some(id) = stanza.get_string("id") {
                        self.sync.history_receipt_acknowledged(&mut self.cx, &id);
                    }
                }
                _ => {}
            },
            "message" => self.enqueue(Work::Message(stanza)),
            "receipt" => {
                let retry = stanza.get_string("type").as_deref() == Some("retry");
                let phone = self.sync.phone_retry(&self.cx, &stanza).filter(|_| retry);
                self.enqueue(if let Some(work) = phone {
                    Work::Sync(work)
                } else if retry {
                    Work::Retry {
                        stanza,
                        asked: Asked::Nothing,
                    }
                } else {
                    Work::Receipt(stanza, 0)
                });
            }
            "notification" => {
                let wish = notify::notification(&mut self.cx, &stanza);
                if wish == Wish::File {
                    if let Some(work) = self.sync.media_retry(&stanza) {
                        self.enqueue(Work::Sync(work));
                    }
                } else {
                    self.grant_wish(wish);
                }
            }
            "call" | "status" => self.cx.acknowledge(&stanza, None),
            // Nothing to do, and nobody waits for an answer.
            "presence" | "chatstate" | "error" => {}
            _ => self.cx.acknowledge(&stanza, Some(488)),
        }
    }

    fn grant_wish(&mut self, wish: Wish) {
        match wish {
            Wish::Nothing | Wish::File => {}
            Wish::PreKeys => self.enqueue(Work::UploadPreKeys),
            Wish::Online => {
                if self.login.offline_done(&mut self.cx) {
                    self.sends.resume(&mut self.cx);
                    self.sync.online(&mut self.cx);
                }
            }
            Wish::Settings(collections) => self.sync.heard(&collections),
        }
    }

    fn refused(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Reconnect(again, why) => self.link.end(&mut self.cx, again, why),
            Verdict::LoggedOut(code) if self.cx.account.is_linked() => self.logged_out(code),
            // There is no link that could have ended.
            Verdict::LoggedOut(code) => self.stop(StopReason::Refused(code)),
            Verdict::Stop(reason) => self.stop(reason),
        }
    }

    fn iq(&mut self, stanza: &Node) {
        match stanza.get_string("type").as_deref() {
            Some("result" | "error") => {
                if let Some((query, answer)) = self.cx.queries.close(stanza) {
                    self.answered(query, answer);
                }
            }
            Some("set") if stanza.find("pair-device").is_some() => {
                self.pairing
                    .pair_device(&mut self.cx, &mut self.link, stanza);
            }
            Some("set") if stanza.find("pair-success").is_some() => {
                self.pairing
                    .pair_success(&mut self.cx, &mut self.link, stanza);
            }
            Some("get")
                if stanza.get_string("xmlns").as_deref() == Some("urn:xmpp:ping")
                    || stanza.find("ping").is_some() =>
            {
                self.cx.keep_alive(&pairing::reply_to(stanza, "result"));
            }
            _ => pairing::decline(&mut self.cx, stanza),
        }
    }

    fn answered(&mut self, query: Query, answer: Answer) {
        match query {
            Query::PreKeyCount => {
                if self.login.pre_keys_counted(&mut self.cx, &answer) {
                    self.enqueue(Work::UploadPreKeys);
                }
            }
            Query::PreKeyUpload { upto } => pre_keys::uploaded(&mut self.cx, upto, &answer),
            Query::Rotate => pre_keys::rotated(&mut self.cx, &answer),
            Query::Active => self.login.active(&mut self.cx, &answer),
            Query::Devices(users) => self.enqueue(Work::DevicesAnswered(users, answer)),
            Query::Bundles(devices) => self.enqueue(Work::BundlesAnswered(devices, answer)),
            Query::Logout(id) => match answer {
                Answer::Result(_) => self.logged_out(401),
                Answer::Error(code) => {
                    self.unlinking = None;
                    self.cx.reply(id, Err(CommandError::Refused(code)));
                }
                Answer::TimedOut | Answer::Lost => {
                    self.unlinking = None;
                    self.cx.reply(id, Err(CommandError::Unknown));
                }
            },
            Query::Sync(collection, upload) => {
                self.enqueue(Work::Sync(SyncWork::Answered(collection, upload, answer)));
            }
            Query::MediaHosts => self.sync.hosts_answered(&mut self.cx, &answer),
            Query::Ping | Query::Formality => {}
        }
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

    // ---- the gate ---------------------------------------------------------------------------------------------

    /// Whether effects may leave: the grant holds with a margin for what the driver may still have in hand.
    fn may_act(&self) -> bool {
        self.cx.now.mono.plus(self.cx.config.timing.grant_margin) < self.grant.until
    }

    /// When to stop for want of a grant. A connection is worth waiting for: the service would have us log in again.
    fn held_until(&self) -> Micros {
        let hold = self.cx.config.timing.hold;
        let until = self.grant.until;
        if self.link.is_up() {
            until.plus(hold)
        } else {
            until
        }
    }

    fn release(&mut self, effect: Effect, wire: &mut Vec<u8>) -> Option<Output> {
        Some(match effect {
            Effect::Open(generation) => {
                // Given up while it waited.
                if !self.link.is_opening(generation) {
                    return None;
                }
                Output::Open(self.cx.config.service.endpoint.clone())
            }
            Effect::Close(generation) => {
                if !self.link.tell_close(generation) {
                    return None;
                }
                self.link.closing(&mut self.cx);
                Output::Close
            }
            Effect::Raw(generation, bytes) => {
                if !self.link.is_current(generation) {
                    return None;
                }
                wire.extend_from_slice(&bytes);
                Output::Transmit
            }
            Effect::Stanza(generation, payload) => {
                self.seal(generation, &payload, wire)?;
                Output::Transmit
            }
            Effect::KeepAlive(generation, payload) => {
                self.seal(generation, &payload, wire)?;
                Output::KeepAlive
            }
            Effect::Event(seq, event) => Output::Event(seq, event),
            Effect::Notice(notice) => Output::Notice(notice),
            Effect::Reply(id, result) => Output::Reply(id, result),
            Effect::Fetch(id, request) => Output::Fetch(id, request),
            Effect::FetchMore(id) => Output::FetchMore(id),
            Effect::StopFetch(id) => Output::StopFetch(id),
        })
    }

    /// A frame for the wire; `None` if its connection is gone.
    fn seal(&mut self, generation: u64, payload: &[u8], wire: &mut Vec<u8>) -> Option<()> {
        match self.link.seal(generation, payload, wire) {
            Ok(true) => {
                self.cx.stats.frames_out += 1;
                Some(())
            }
            Ok(false) => None,
            Err(why) => {
                self.link.cut(&mut self.cx, Again::Later, why);
                None
            }
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
