//! One account of a world: what a gateway process is in production, and the consumer of its events.

use super::{
    Happening, World,
    fetch::Piece,
    settings::{Asked, Place},
};
use crate::service::{ConnId, settings::Change};
use baton_core::{
    engine::{Engine, Grant, Input, LoadId, Output, StopReason},
    flow::{
        Command, CommandError, CommandId, Config, Connection, Event, FetchId, Limits, Notice,
        Profile, Reply, SendRequest, ServiceConfig, Timing, mailbox_request,
    },
    state::{
        AccountId, Batch, Beat, Beaten, Claim, Epoch, EventSeq, HostInfo, Incarnation, Key, Micros,
        Outcome, Row, Scan, Seal, Seq, Store, StoreError,
    },
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

/// How long a host's lease holds in these worlds.
const LEASE: Micros = Micros::from_secs(6);

/// Between two looks of the host that watches.
const WATCH: Micros = Micros::from_secs(1);

/// Whose only work it is to notice that others have died.
const WATCHER: Incarnation = Incarnation(u64::MAX);

/// The value of a future that never waits.
///
/// # Panics
///
/// If it does: the reference store's are ready at once.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the store of a simulated world has nothing to wait for"),
    }
}

/// An input on its way.
#[derive(Debug)]
pub(crate) enum ToEngine {
    Tick,
    Opened(ConnId),
    Received(Bytes),
    Closed,
    /// For this connection only: nothing if the engine has another one by now.
    On(ConnId, Box<ToEngine>),
    Loaded(LoadId, Vec<Key>),
    Scanned(LoadId, Scan),
    Fetched(FetchId, Piece),
    Committed {
        epoch: Epoch,
        upto: Seq,
    },
    Fenced(Epoch),
    Unsealed(Seal),
    Refused(String),
    Granted(Grant),
    Command(Command),
}

/// See the module documentation.
#[derive(Debug)]
pub struct Account {
    /// Its number in the store.
    pub id: AccountId,
    /// Its phone's number.
    pub phone: String,
    /// The engine of its present life.
    pub(crate) engine: Option<Engine>,
    /// Counts engines.
    pub(crate) life: u64,
    /// Counts processes: each is a host of its own, which engines that stop by themselves leave behind.
    pub(crate) process: u64,
    pub(crate) conn: Option<ConnId>,
    pub(crate) wake: Option<Micros>,
    committing: bool,
    sealed: Vec<Batch>,
    commands: u64,
    /// Store calls take this much longer.
    pub(crate) slow: u64,
    /// Online at this moment.
    pub online: bool,
    /// Every event it was ever shown, by number. The consumer's book: it survives the process.
    pub events: BTreeMap<EventSeq, Event>,
    /// What is wrong with what it was shown.
    pub complaints: Vec<String>,
    /// Why engines of earlier lives stopped by themselves.
    pub stops: Vec<StopReason>,
    /// Everything that any engine said was out of order in protocol or store.
    pub notices: Vec<String>,
    /// The number of the device that it is.
    pub device: u16,
    /// What somebody is about to ask its engine to change.
    pub(crate) about_to_ask: Option<Vec<Change>>,
    /// What was asked so far.
    pub(crate) asked_changes: Vec<Asked>,
    /// Answers to other commands.
    pub replies: Vec<(CommandId, Result<Reply, CommandError>)>,
    /// Where the store has its collections.
    pub(crate) places: BTreeMap<&'static str, Place>,
    /// What engines said about how settings and history are getting on.
    pub progress: Vec<String>,
    acknowledged: EventSeq,
    last_shown: Option<EventSeq>,
    /// Inputs of the present life, for the replay.
    pub(crate) recording: Vec<(Recorded, baton_core::engine::Now)>,
    pub(crate) birth: Option<(Grant, [u8; 32], baton_core::engine::Now)>,
    /// Outputs of the present life, as text.
    pub(crate) outputs: Vec<String>,
    /// The most outputs that one input has brought, and the most bytes of rows that were in memory after one.
    pub most: (usize, usize),
}

/// An input as it was given.
#[derive(Clone, Debug)]
pub(crate) enum Recorded {
    Tick,
    Opened,
    Received(Bytes),
    Closed,
    Loaded(LoadId, Vec<Row>),
    Scanned(LoadId, Vec<(Key, Row)>),
    Fetched(FetchId, Piece),
    Committed { epoch: Epoch, upto: Seq },
    Fenced(Epoch),
    Unsealed(Seal),
    Refused(String),
    Granted(Grant),
    Command(CommandId, Command),
}

impl Recorded {
    fn input(&self) -> Input<'_> {
        match self.clone() {
            Self::Tick => Input::Tick,
            Self::Opened => Input::Opened,
            Self::Received(_) => match self {
                Self::Received(bytes) => Input::Received(bytes),
                _ => Input::Tick,
            },
            Self::Closed => Input::Closed,
            Self::Loaded(id, rows) => Input::Loaded(id, rows),
            Self::Scanned(id, rows) => Input::Scanned(id, rows),
            Self::Fetched(..) => match self {
                Self::Fetched(id, piece) => Input::Fetched(*id, piece.fetched()),
                _ => Input::Tick,
            },
            Self::Committed { epoch, upto } => Input::Committed { epoch, upto },
            Self::Fenced(by) => Input::Fenced { by },
            Self::Unsealed(history) => Input::Unsealed { history },
            Self::Refused(why) => Input::StoreRefused(why),
            Self::Granted(grant) => Input::Granted(grant),
            Self::Command(id, command) => Input::Command(id, command),
        }
    }
}

impl Account {
    pub(crate) fn new(id: AccountId, phone: String) -> Self {
        Self {
            id,
            phone,
            engine: None,
            life: 0,
            process: 0,
            conn: None,
            wake: None,
            committing: false,
            sealed: Vec::new(),
            commands: 0,
            slow: 0,
            online: false,
            events: BTreeMap::new(),
            complaints: Vec::new(),
            stops: Vec::new(),
            notices: Vec::new(),
            device: 1,
            about_to_ask: None,
            asked_changes: Vec::new(),
            replies: Vec::new(),
            places: BTreeMap::new(),
            progress: Vec::new(),
            acknowledged: EventSeq(0),
            last_shown: None,
            recording: Vec::new(),
            birth: None,
            outputs: Vec::new(),
            most: (0, 0),
        }
    }

    /// The engine of its present life, if it has one.
    #[must_use]
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// What the engine of its present life has said, as text.
    #[must_use]
    pub fn said(&self) -> &[String] {
        &self.outputs
    }

    /// Ends the process; returns its connection, which the operating system closes.
    pub(crate) fn kill(&mut self) -> Option<ConnId> {
        self.engine = None;
        self.life += 1;
        self.wake = None;
        self.online = false;
        self.committing = false;
        self.sealed.clear();
        // The consumer starts over with the next process: it is shown again what it has not acknowledged.
        self.last_shown = None;
        self.conn.take()
    }

    /// Gives the recorded inputs of the present life to a new engine. Returns it as it is then, and everything it said.
    #[must_use]
    pub fn revive(&self, config: Config) -> Option<(Engine, Vec<String>)> {
        let (grant, seed, born) = self.birth?;
        let mut engine = Engine::new(self.id.clone(), config, grant, seed, born);
        let mut wire = Vec::new();
        let mut outputs = Vec::new();
        drain(&mut engine, &mut wire, &mut outputs);
        for (input, now) in &self.recording {
            engine.handle(input.input(), *now);
            drain(&mut engine, &mut wire, &mut outputs);
        }
        Some((engine, outputs))
    }

    /// Compares what the engine of the present life has said with what a new one says to the same inputs. Returns how
    /// much that was.
    ///
    /// # Errors
    ///
    /// The first difference.
    pub fn replay(&self, config: Config) -> Result<usize, String> {
        let Some((_, outputs)) = self.revive(config) else {
            return Err("there is no engine to replay".into());
        };
        match self.outputs.iter().zip(&outputs).position(|(a, b)| a != b) {
            Some(at) => Err(format!(
                "output {at} was {}, is {}",
                self.outputs[at], outputs[at]
            )),
            None if outputs.len() != self.outputs.len() => Err(format!(
                "{} outputs, were {}",
                outputs.len(),
                self.outputs.len()
            )),
            None => Ok(outputs.len()),
        }
    }
}

const fn beat() -> Beat {
    Beat {
        draining: false,
        accounts: 1,
        live: 0,
        ttl: LEASE,
    }
}

fn drain(engine: &mut Engine, wire: &mut Vec<u8>, outputs: &mut Vec<String>) {
    loop {
        wire.clear();
        let output = engine.poll(wire);
        let end = matches!(output, Output::Idle { .. } | Output::Stopped(_));
        outputs.push(describe(&output, wire));
        if end {
            return;
        }
    }
}

/// Everything that an output holds, as text: rows and bytes as hashes.
fn describe(output: &Output, wire: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{output:?}");
    let mut hash = baton_core::crypto::sha256(&[wire]);
    if let Output::Commit(batch) = output {
        for (key, row) in &batch.rows {
            let row = row.as_ref().map_or(&[][..], |row| &row.0);
            hash = baton_core::crypto::sha256(&[&hash, format!("{key:?}").as_bytes(), row]);
        }
    }
    if let Output::Event(_, event) = output {
        let _ = write!(text, "{event:?}");
        if let Event::Message(message) = event {
            hash = baton_core::crypto::sha256(&[&hash, &message.content]);
        }
    }
    for byte in &hash[..8] {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl World {
    /// How engines of this world are set up.
    #[must_use]
    pub fn config(&self) -> Config {
        let mut config = Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: baton_core::flow::Endpoint("ws://service/ws/chat".into()),
                root: self.service.root_public_key(),
            },
            profile: Profile {
                push_name: Some("Baton".into()),
                ..Profile::default()
            },
            timing: Timing::default(),
            // Small batches, so that the vault runs low in every run.
            pre_keys: baton_core::flow::PreKeyPolicy { low: 5, batch: 20 },
            available: true,
        };
        (self.options.configure)(&mut config);
        config
    }

    /// A process takes an account over.
    pub(crate) fn start(&mut self, account: usize) {
        if self.accounts[account].engine.is_some() {
            return;
        }
        let id = self.accounts[account].id.clone();
        let who = self.join(account);
        let claims = ready(self.store.claim(who, vec![id.clone()]));
        let lease = match claims.as_deref() {
            Ok([Claim::Granted(lease)]) => *lease,
            Ok([Claim::Held { .. }]) => {
                // A polite claimant waits until the holder's lease has run out and somebody has noticed.
                self.later(WATCH, Happening::Start { account });
                return;
            }
            other => {
                let complaint = format!("claim: {other:?}");
                self.accounts[account].complaints.push(complaint);
                return;
            }
        };
        let grant = Grant {
            lease,
            until: self.now.plus(LEASE),
        };
        let seed = self.rng.bytes();
        let now = self.now();
        let engine = Engine::new(id, self.config(), grant, seed, now);
        let this = &mut self.accounts[account];
        this.engine = Some(engine);
        this.birth = Some((grant, seed, now));
        this.recording.clear();
        this.outputs.clear();
        let life = this.life;
        self.note(&[
            b"start",
            &account.to_le_bytes(),
            &lease.term.epoch.0.to_le_bytes(),
        ]);
        self.later(Micros(LEASE.0 / 3), Happening::Renew { account, life });
        self.drain(account);
        // Somebody may have left requests while nobody was there, or before the account was linked.
        self.later(
            Micros::from_millis(250),
            Happening::Engine {
                account,
                life,
                input: ToEngine::Command(Command::CheckMailbox),
            },
        );
    }

    fn incarnation(&self, account: usize) -> Incarnation {
        let process = self.accounts[account].process;
        Incarnation((u64::try_from(account).unwrap_or(0) << 32) + process)
    }

    /// The process joins the roster, if it is not in it; as another one, if it was declared dead.
    fn join(&mut self, account: usize) -> Incarnation {
        loop {
            let who = self.incarnation(account);
            let info = HostInfo::named(&format!("account-{account}"));
            match ready(self.store.join(who, info, LEASE)) {
                Ok(_) => return who,
                Err(StoreError::NotMember) => self.accounts[account].process += 1,
                Err(error) => panic!("a reference store refuses a host: {error}"),
            }
        }
    }

    /// The watching host's renewal, in which it declares dead whose lease has run out.
    pub(crate) fn watch(&mut self) {
        // Joined anew each time: the database may have forgotten it.
        let joined = ready(self.store.join(WATCHER, HostInfo::named("watcher"), LEASE));
        debug_assert!(joined.is_ok(), "{joined:?}");
        let _ = ready(self.store.beat(WATCHER, beat()));
        self.later(WATCH, Happening::Watch);
    }

    pub(crate) fn renew(&mut self, account: usize, life: u64) {
        let this = &self.accounts[account];
        if this.life != life || this.engine.is_none() {
            return;
        }
        let Some((mut grant, ..)) = this.birth else {
            return;
        };
        let who = self.incarnation(account);
        let input = match ready(self.store.beat(who, beat())) {
            Ok(Beaten::Renewed(view)) if view.history == grant.lease.term.history => {
                grant.until = self.now.plus(LEASE);
                ToEngine::Granted(grant)
            }
            Ok(Beaten::Renewed(view)) => ToEngine::Unsealed(view.history),
            // It holds nothing; the account may be somebody else's.
            Ok(Beaten::Dead) => ToEngine::Fenced(grant.lease.term.epoch),
            Err(error) => ToEngine::Refused(error.to_string()),
        };
        let delay = self.draw(self.options.store);
        self.later(
            delay,
            Happening::Engine {
                account,
                life,
                input,
            },
        );
        self.later(Micros(LEASE.0 / 3), Happening::Renew { account, life });
    }

    pub(crate) fn give(&mut self, account: usize, life: u64, input: ToEngine) {
        if self.accounts[account].life != life {
            return;
        }
        let input = match input {
            ToEngine::On(conn, input) => {
                if self.accounts[account].conn != Some(conn) {
                    return;
                }
                *input
            }
            other => other,
        };
        let now = self.now();
        let recorded = match input {
            ToEngine::Tick => Recorded::Tick,
            ToEngine::Opened(conn) => {
                self.accounts[account].conn = Some(conn);
                Recorded::Opened
            }
            ToEngine::Received(bytes) => Recorded::Received(bytes),
            ToEngine::Closed => {
                self.accounts[account].conn = None;
                self.accounts[account].online = false;
                Recorded::Closed
            }
            ToEngine::Loaded(id, keys) => {
                match ready(self.store.load(&self.accounts[account].id, keys)) {
                    Ok(rows) => Recorded::Loaded(id, rows),
                    Err(error) => Recorded::Refused(error.to_string()),
                }
            }
            ToEngine::Scanned(id, scan) => {
                match ready(self.store.scan(&self.accounts[account].id, scan)) {
                    Ok(rows) => Recorded::Scanned(id, rows),
                    Err(error) => Recorded::Refused(error.to_string()),
                }
            }
            ToEngine::Fetched(id, piece) => Recorded::Fetched(id, piece),
            ToEngine::Committed { epoch, upto } => {
                self.accounts[account].committing = false;
                Recorded::Committed { epoch, upto }
            }
            ToEngine::Fenced(by) => Recorded::Fenced(by),
            ToEngine::Unsealed(history) => Recorded::Unsealed(history),
            ToEngine::Refused(why) => Recorded::Refused(why),
            ToEngine::Granted(grant) => Recorded::Granted(grant),
            ToEngine::Command(command) => {
                if command == Command::CheckMailbox {
                    let again = ToEngine::Command(Command::CheckMailbox);
                    self.later(
                        Micros::from_millis(250),
                        Happening::Engine {
                            account,
                            life,
                            input: again,
                        },
                    );
                }
                let this = &mut self.accounts[account];
                this.commands += 1;
                if let Some(changes) = this.about_to_ask.take() {
                    this.asked_changes.push(Asked {
                        life,
                        id: CommandId(this.commands),
                        at: now.unix.0,
                        changes,
                        result: None,
                    });
                }
                Recorded::Command(CommandId(this.commands), command)
            }
            ToEngine::On(..) => return,
        };
        let this = &mut self.accounts[account];
        if let Some(engine) = &mut this.engine {
            engine.handle(recorded.input(), now);
            this.recording.push((recorded, now));
            self.drain(account);
        }
    }

    /// Does what the engine says until it has nothing more to say.
    fn drain(&mut self, account: usize) {
        let mut wire = Vec::new();
        let mut outputs = 0;
        loop {
            wire.clear();
            outputs += 1;
            let life = self.accounts[account].life;
            let this = &mut self.accounts[account];
            let Some(engine) = &mut this.engine else {
                return;
            };
            let output = engine.poll(&mut wire);
            this.outputs.push(describe(&output, &wire));
            match output {
                Output::Commit(batch) => this.sealed.push(batch),
                Output::Load(id, keys) => {
                    let delay = self.store_delay(account);
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Loaded(id, keys),
                        },
                    );
                }
                Output::Scan(id, scan) => {
                    let delay = self.store_delay(account);
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Scanned(id, scan),
                        },
                    );
                }
                Output::Open(_) => {
                    let conn = self.connect(account, life);
                    let delay = self.draw(self.options.network);
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Opened(conn),
                        },
                    );
                }
                Output::Close => {
                    let conn = this.conn.take();
                    this.online = false;
                    if let Some(conn) = conn {
                        self.hang_up(conn);
                    }
                    let delay = self.draw(self.options.network);
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Closed,
                        },
                    );
                }
                Output::Transmit | Output::KeepAlive => {
                    if let Some(conn) = this.conn {
                        self.send_to_service(conn, Bytes::copy_from_slice(&wire));
                    }
                }
                Output::Fetch(id, request) => self.fetch(account, life, id, Some(request.path)),
                Output::FetchMore(id) => self.fetch(account, life, id, None),
                Output::StopFetch(id) => {
                    self.downloads.remove(&(account, id));
                }
                Output::Event(seq, event) => self.show(account, seq, event),
                Output::Notice(notice) => self.notice(account, notice),
                Output::Reply(id, result) => {
                    let mut asked = this.asked_changes.iter_mut();
                    match asked.find(|asked| asked.life == life && asked.id == id) {
                        Some(asked) => asked.result = Some(result),
                        None => this.replies.push((id, result)),
                    }
                }
                Output::Idle { wake, .. } => {
                    this.wake = wake;
                    let bytes = engine.cached_bytes();
                    this.most = (this.most.0.max(outputs), this.most.1.max(bytes));
                    break;
                }
                Output::Stopped(reason) => {
                    // What comes after is for people to decide, unless it is plain that the account has to go on.
                    let again = reason.is_retryable() || matches!(reason, StopReason::Fenced(_));
                    this.stops.push(reason);
                    let conn = this.kill();
                    if let Some(conn) = conn {
                        self.hang_up(conn);
                    }
                    if again {
                        let pause = self.draw((1_000, 300_000));
                        self.later(pause, Happening::Start { account });
                    }
                    return;
                }
            }
        }
        let this = &mut self.accounts[account];
        if !this.committing && !this.sealed.is_empty() {
            this.committing = true;
            let batches = std::mem::take(&mut this.sealed);
            let life = this.life;
            let delay = self.store_delay(account);
            self.later(
                delay,
                Happening::Store {
                    account,
                    life,
                    batches,
                },
            );
        }
    }

    fn store_delay(&mut self, account: usize) -> Micros {
        let slow = self.accounts[account].slow;
        self.draw(self.options.store).plus(Micros(slow))
    }

    /// A commit reaches the store; the answer needs a while to get back.
    pub(crate) fn commit(&mut self, account: usize, life: u64, batches: Vec<Batch>) {
        let Some(last) = batches.last() else { return };
        let (epoch, upto) = (last.term.epoch, last.seq);
        let answer = match ready(self.store.commit(batches.clone())) {
            Ok(outcomes) => outcomes
                .into_iter()
                .zip(&batches)
                .find_map(|(outcome, batch)| match outcome {
                    Outcome::Committed => {
                        self.enter(account, batch);
                        None
                    }
                    Outcome::Fenced { by } => Some(ToEngine::Fenced(by)),
                    Outcome::Unsealed { history } => Some(ToEngine::Unsealed(history)),
                    Outcome::Rejected(why) => Some(ToEngine::Refused(why)),
                })
                .unwrap_or(ToEngine::Committed { epoch, upto }),
            Err(error) => ToEngine::Refused(error.to_string()),
        };
        let delay = self.draw(self.options.store);
        self.later(
            delay,
            Happening::Engine {
                account,
                life,
                input: answer,
            },
        );
    }

    pub(crate) fn enqueue(&mut self, account: usize, request: SendRequest) {
        let Some(id) = request.id.clone() else { return };
        let row = mailbox_request(&request, self.now.0);
        let at = self.now().unix;
        let account_id = self.accounts[account].id.clone();
        match ready(self.store.enqueue(&account_id, id.clone(), row, at)) {
            Ok(_) => self.ledger.requested(account, &id),
            Err(error) => self.accounts[account]
                .complaints
                .push(format!("enqueue: {error}")),
        }
    }

    /// The consumer sees an event, and acknowledges now and then.
    fn show(&mut self, account: usize, seq: EventSeq, event: Event) {
        self.note(&[b"event", &account.to_le_bytes(), &seq.0.to_le_bytes()]);
        let draw = self.rng.below(4);
        let this = &mut self.accounts[account];
        // Before a gap the last event has to be exactly the one that the gap says is the last; a consumer that has seen
        // more, in what was lost, has seen that too.
        let gap = match &event {
            Event::HistoryLost { after, .. } => Some(*after),
            _ => None,
        };
        if let Some(last) = this.last_shown {
            if seq != last.next() && gap != Some(last) {
                this.complaints
                    .push(format!("event {} was shown after {}", seq.0, last.0));
            }
        } else if seq > this.acknowledged.next() && gap.is_none_or(|gap| gap > this.acknowledged) {
            this.complaints.push(format!(
                "event {} was shown first; acknowledged up to {}",
                seq.0, this.acknowledged.0
            ));
        }
        this.last_shown = Some(seq);
        match this.events.get(&seq) {
            Some(known) if *known != event => {
                this.complaints.push(format!("event {} has changed", seq.0))
            }
            Some(_) => {}
            None => {
                this.events.insert(seq, event);
            }
        }
        if draw == 0 {
            // Durable at the consumer: only from here on may it be forgotten. A crash before this shows it again.
            this.acknowledged = this.acknowledged.max(seq);
            let life = this.life;
            let input = ToEngine::Command(Command::Acknowledge(seq));
            self.later(
                Micros(50),
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
        }
    }

    fn notice(&mut self, account: usize, notice: Notice) {
        match notice {
            Notice::Qr { text, .. } => {
                let phone = self.accounts[account].phone.clone();
                let now = self.service_now();
                match self.service.scan(&text, Some(&phone), now) {
                    Ok(scanned) => self.accounts[account].device = scanned.jid.device(),
                    Err(error) => {
                        self.accounts[account]
                            .complaints
                            .push(format!("scan: {error}"));
                    }
                }
            }
            Notice::Connection(state) => {
                self.accounts[account].online = state == Connection::Online
            }
            Notice::Sync(..) | Notice::History { .. } => {
                self.accounts[account].progress.push(format!("{notice:?}"));
            }
            other => self.accounts[account].notices.push(format!("{other:?}")),
        }
    }
}
