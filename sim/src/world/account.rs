//! One account of a world: what a gateway process is in production, and the consumer of its events.

use super::{
    Crypto, Happening, Options, World,
    bugs::Bug,
    chance::Stream,
    cover::Point,
    fetch::Piece,
    judges::Judge,
    settings::{Asked, Places},
    watch::Watched,
    weather::Kind,
};
use crate::service::{ConnId, settings::Change};
use baton_core::{
    engine::{Engine, Grant, Input, LoadId, Now, Output, StopReason},
    flow::{
        Command, CommandError, CommandId, Config, Connection, Event, FetchId, Limits, Notice,
        Profile, Reply, SendRequest, ServiceConfig, Timing, mailbox_request,
    },
    state::{
        AccountId, Batch, Beat, Beaten, Claim, Epoch, EventSeq, HostInfo, Incarnation, Key, Micros,
        Outcome, Row, Scan, Seal, Seq, Store, StoreError, Table,
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

/// Between two looks into a mailbox with something in it.
const LOOK: Micros = Micros::from_millis(250);

/// How long a driver stays away from an account that another connection has replaced, least and most: hosts do half a
/// minute, which would be most of a small world.
const AWAY: (u64, u64) = (2_000_000, 6_000_000);

/// Between two tries of a consumer to acknowledge something.
const INSISTS: Micros = Micros::from_millis(100);

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
    /// As the other, by a store that has not written anything yet.
    Early {
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
    crypto: Crypto,
    /// Whether `recording` and `outputs` are kept.
    record: bool,
    /// The engine of its present life.
    pub(crate) engine: Option<Engine>,
    /// Counts engines.
    pub(crate) life: u64,
    /// Counts processes: each is a host of its own, which engines that stop by themselves leave behind.
    pub(crate) process: u64,
    pub(crate) conn: Option<ConnId>,
    pub(crate) wake: Option<Micros>,
    pub(crate) committing: bool,
    pub(crate) sealed: Vec<Batch>,
    /// How many it has opened.
    pub(crate) connections: u64,
    pub(crate) watched: Watched,
    /// Until when its engine may act, as far as the engine knows.
    pub(crate) until: Micros,
    /// And as far as the store knows.
    pub(crate) lease: Micros,
    /// Its wall clock is so many milliseconds ahead.
    pub(crate) wall: i64,
    commands: u64,
    /// A look into the mailbox is planned.
    looking: bool,
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
    pub(crate) places: Places,
    /// What engines said about how settings and history are getting on.
    pub progress: Vec<String>,
    pub(crate) acknowledged: EventSeq,
    /// What its engine was told to forget, and has not answered.
    acknowledging: BTreeMap<CommandId, EventSeq>,
    pub(crate) last_shown: Option<EventSeq>,
    /// Inputs of the present life, for the replay.
    pub(crate) recording: Vec<(Recorded, Now)>,
    pub(crate) birth: Option<(Grant, [u8; 32], Now)>,
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
    /// In a line: rows and bytes as hashes.
    pub(super) fn words(&self) -> String {
        let hash = |bytes: &[u8]| {
            let hash = baton_core::crypto::sha256(&[bytes]);
            crate::service::books::hex(&hash[..8])
        };
        match self {
            Self::Received(bytes) => format!("Received({} bytes, {})", bytes.len(), hash(bytes)),
            Self::Loaded(id, rows) => {
                let present = rows.iter().filter(|row| matches!(row, Row::Present(_)));
                format!(
                    "Loaded({}, {} of {} rows)",
                    id.0,
                    present.count(),
                    rows.len()
                )
            }
            Self::Scanned(id, rows) => format!("Scanned({}, {} rows)", id.0, rows.len()),
            Self::Fetched(id, piece) => match piece {
                Piece::Chunk(bytes) => format!("Fetched({id:?}, {} bytes)", bytes.len()),
                other => format!("Fetched({id:?}, {other:?})"),
            },
            other => format!("{other:?}"),
        }
    }

    /// The input, with everything that is in it: nothing is left behind but what is lent.
    fn lend(&mut self) -> Input<'_> {
        use std::mem::take;
        match self {
            Self::Tick => Input::Tick,
            Self::Opened => Input::Opened,
            Self::Received(bytes) => Input::Received(bytes),
            Self::Closed => Input::Closed,
            Self::Loaded(id, rows) => Input::Loaded(*id, take(rows)),
            Self::Scanned(id, rows) => Input::Scanned(*id, take(rows)),
            Self::Fetched(id, piece) => Input::Fetched(*id, piece.fetched()),
            Self::Committed { epoch, upto } => Input::Committed {
                epoch: *epoch,
                upto: *upto,
            },
            Self::Fenced(by) => Input::Fenced { by: *by },
            Self::Unsealed(history) => Input::Unsealed { history: *history },
            Self::Refused(why) => Input::StoreRefused(take(why)),
            Self::Granted(grant) => Input::Granted(*grant),
            Self::Command(id, command) => Input::Command(*id, command.clone()),
        }
    }
}

impl Account {
    pub(crate) fn new(id: AccountId, phone: String, options: &Options) -> Self {
        Self {
            id,
            phone,
            crypto: options.crypto,
            record: options.record,
            engine: None,
            life: 0,
            process: 0,
            conn: None,
            wake: None,
            committing: false,
            sealed: Vec::new(),
            connections: 0,
            watched: Watched::default(),
            until: Micros(0),
            lease: Micros(0),
            wall: 0,
            commands: 0,
            looking: false,
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
            places: Places::default(),
            progress: Vec::new(),
            acknowledged: EventSeq(0),
            acknowledging: BTreeMap::new(),
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

    /// What the engine of its present life has said, as text, if [`Options::record`] is set.
    #[must_use]
    pub fn said(&self) -> &[String] {
        &self.outputs
    }

    /// Whether it was linked in the world, and is.
    pub(crate) fn was_linked(&self) -> bool {
        let mut events = self.events.values().rev();
        let last =
            events.find(|event| matches!(event, Event::Linked { .. } | Event::LoggedOut { .. }));
        matches!(last, Some(Event::Linked { .. }))
    }

    /// Whether a look into the mailbox is planned.
    pub(crate) const fn is_looking(&self) -> bool {
        self.looking
    }

    /// Ends the process; returns its connection, which the operating system closes.
    pub(crate) fn kill(&mut self) -> Option<ConnId> {
        self.engine = None;
        self.life += 1;
        self.wake = None;
        self.online = false;
        self.committing = false;
        self.sealed.clear();
        self.acknowledging.clear();
        // The consumer starts over with the next process: it is shown again what it has not acknowledged.
        self.last_shown = None;
        self.conn.take()
    }

    /// Gives the inputs of the present life, if they were recorded ([`Options::record`]), to a new engine. Returns it as it
    /// is then, and everything it said.
    #[must_use]
    pub fn revive(&self, config: Config) -> Option<(Engine, Vec<String>)> {
        let _scope = self.crypto.scope();
        let (grant, seed, born) = self.birth?;
        let mut engine = Engine::new(self.id.clone(), config, grant, seed, born);
        let mut wire = Vec::new();
        let mut outputs = Vec::new();
        drain(&mut engine, &mut wire, &mut outputs);
        for (input, now) in &self.recording {
            engine.handle(input.clone().lend(), *now);
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

fn line(at: u64, account: usize, words: &str) -> String {
    format!("{}.{:06} {account} {words}", at / 1_000_000, at % 1_000_000)
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
            // Small batches: each key is a row, and the vault runs low soon.
            pre_keys: baton_core::flow::PreKeyPolicy { low: 3, batch: 10 },
            available: true,
        };
        self.options.buggify.apply(&mut config);
        (self.options.configure)(&mut config);
        config
    }

    /// A process takes an account over.
    pub(crate) fn start(&mut self, account: usize) {
        if self.accounts[account].engine.is_some() {
            return;
        }
        // Its former downloads went with the process.
        self.downloads.retain(|(whose, _), _| *whose != account);
        let id = self.accounts[account].id.clone();
        let who = self.join(account);
        let claims = ready(self.store.claim(who, vec![id.clone()]));
        self.cover_claim(claims.as_ref().ok().and_then(|claims| claims.first()));
        let lease = match claims.as_deref() {
            Ok([Claim::Granted(lease)]) => self.bugged_claim(account, *lease),
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
        self.watch_claim(account, &lease);
        self.watch_birth(account, &lease);
        let mut grant = Grant {
            lease,
            until: self.now.plus(LEASE),
        };
        self.accounts[account].lease = grant.until;
        self.bugged_lease(&mut grant.lease);
        if self.has(Bug::LeaseForever) {
            grant.until = Micros(u64::MAX / 2);
        }
        let seed = self.seed_of(account);
        let now = self.local(account);
        let engine = Engine::new(id, self.engine_config(), grant, seed, now);
        let this = &mut self.accounts[account];
        this.engine = Some(engine);
        this.birth = Some((grant, seed, now));
        this.until = grant.until;
        this.recording.clear();
        this.outputs.clear();
        let life = this.life;
        self.note(&[
            b"start",
            &account.to_le_bytes(),
            &lease.term.epoch.0.to_le_bytes(),
        ]);
        self.later(Micros(LEASE.0 / 3), Happening::Renew { account, life });
        self.tell(account, || {
            format!("begins under epoch {}", lease.term.epoch.0)
        });
        let process = self.accounts[account].process;
        self.mark(|recorder| {
            recorder.begins((account, process, life), lease.term.epoch.0, grant.until);
        });
        self.sometimes(account, Point::EngineStarts);
        self.drain(account);
        self.accounts[account].looking = false;
        if self.has(Bug::MailboxForgotten) || self.has(Bug::MailUnreadAtStart) {
            return;
        }
        // Somebody may have left requests while nobody was there, or before the account was linked.
        self.accounts[account].looking = true;
        self.later(LOOK, Happening::Mailbox { account, life });
    }

    /// A look into the mailbox, as drivers have one now and then. The engine hears of it if there is something; while
    /// there is nothing, nobody looks.
    pub(crate) fn look_for_mail(&mut self, account: usize, life: u64) {
        if self.accounts[account].life != life {
            return;
        }
        if let Some(front) = self.weather.strikes(account, Kind::Freeze, self.now) {
            // A process that is frozen does not look.
            self.at(front.until, Happening::Mailbox { account, life });
            return;
        }
        let this = &mut self.accounts[account];
        let first = Scan {
            table: Table::Mailbox,
            after: None,
            limit: 1,
        };
        let empty = matches!(ready(self.store.scan(&this.id, first)).as_deref(), Ok([]));
        this.looking = !empty;
        if this.looking {
            self.later(LOOK, Happening::Mailbox { account, life });
            self.give(account, life, ToEngine::Command(Command::CheckMailbox));
        }
    }

    /// There may be something in the mailbox: somebody looks when the next look is due.
    pub(crate) fn mail_may_have_come(&mut self, account: usize) {
        if self.has(Bug::MailboxForgotten) || self.has(Bug::MailNotNoticed) {
            return;
        }
        let this = &mut self.accounts[account];
        let (Some(_), Some((.., born)), false) = (&this.engine, &this.birth, this.looking) else {
            return;
        };
        this.looking = true;
        let life = this.life;
        let passed = Micros(self.now.since(born.mono).0 % LOOK.0);
        self.later(LOOK.since(passed), Happening::Mailbox { account, life });
    }

    /// The seed of the engine that an account's present life begins with.
    fn seed_of(&self, account: usize) -> [u8; 32] {
        let mut seed = [0; 32];
        for (n, bytes) in (0_u64..).zip(seed.chunks_mut(8)) {
            let life = match self.has(Bug::SeedReused) {
                true => n,
                false => self.accounts[account].life << 2 | n,
            };
            let drawn = self.chance.of(Stream::Engine, account as u64, life);
            bytes.copy_from_slice(&drawn.to_le_bytes());
        }
        seed
    }

    /// The time on an account's host.
    pub(crate) fn local(&self, account: usize) -> Now {
        let mut now = self.now();
        now.unix.0 += self.accounts[account].wall;
        now
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

    /// Somebody else has the account for a moment, if nobody lives who has it.
    pub(crate) fn rival(&mut self, account: usize) {
        // A host of its own each time.
        let rival = Incarnation((1 << 62) + self.now.0);
        let info = HostInfo::named("rival");
        let joined = ready(self.store.join(rival, info, LEASE));
        debug_assert!(joined.is_ok(), "{joined:?}");
        let id = self.accounts[account].id.clone();
        let claims = ready(self.store.claim(rival, vec![id.clone()]));
        if let Ok([Claim::Granted(lease)]) = claims.as_deref() {
            self.cover.hit(Point::RivalClaims);
            self.watch_claim(account, lease);
            let epoch = lease.term.epoch.0;
            self.tell("world", || {
                format!("a rival has account {account} under epoch {epoch}")
            });
            self.mark(|recorder| recorder.rival(account, epoch));
            let released = ready(self.store.release(rival, vec![(id, lease.term.epoch)]));
            debug_assert!(released.is_ok(), "{released:?}");
        }
        let left = ready(self.store.leave(rival));
        debug_assert!(left.is_ok(), "{left:?}");
    }

    /// The watching host's renewal, in which it declares dead whose lease has run out.
    pub(crate) fn watch(&mut self) {
        if !matches!(
            ready(self.store.beat(WATCHER, beat())),
            Ok(Beaten::Renewed(_))
        ) {
            // Not there yet, or the database has forgotten it.
            let joined = ready(self.store.join(WATCHER, HostInfo::named("watcher"), LEASE));
            debug_assert!(joined.is_ok(), "{joined:?}");
            let _ = ready(self.store.beat(WATCHER, beat()));
        }
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
        if let Some(front) = self.weather.strikes(account, Kind::Freeze, self.now) {
            self.at(front.until, Happening::Renew { account, life });
            return;
        }
        self.sometimes(account, Point::RenewalDue);
        self.later(Micros(LEASE.0 / 3), Happening::Renew { account, life });
        // A renewal that is not answered is not repeated before the next is due.
        let lost = [
            Kind::LostRenewal,
            Kind::ReadOnly,
            Kind::Stall,
            Kind::DatabaseRestart,
        ]
        .into_iter()
        .any(|kind| self.weather.strikes(account, kind, self.now).is_some());
        if lost {
            return;
        }
        let who = self.incarnation(account);
        let input = match ready(self.store.beat(who, beat())) {
            Ok(Beaten::Renewed(view))
                if view.history == grant.lease.term.history || self.has(Bug::HistoryIgnored) =>
            {
                grant.until = self.now.plus(LEASE);
                self.accounts[account].lease = grant.until;
                ToEngine::Granted(grant)
            }
            Ok(Beaten::Renewed(view)) => {
                self.cover.hit(Point::RenewalUnsealed);
                ToEngine::Unsealed(view.history)
            }
            // It holds nothing; the account may be somebody else's.
            Ok(Beaten::Dead) => {
                self.cover.hit(Point::RenewalTooLate);
                if self.has(Bug::DeadIgnored) {
                    grant.until = self.now.plus(LEASE);
                    let input = ToEngine::Granted(grant);
                    self.later(
                        Micros(1000),
                        Happening::Engine {
                            account,
                            life,
                            input,
                        },
                    );
                    return;
                }
                ToEngine::Fenced(grant.lease.term.epoch)
            }
            Err(error) => ToEngine::Refused(error.to_string()),
        };
        let mut delay = self.draw(Stream::Renewal, account, self.options.store);
        if self
            .weather
            .strikes(account, Kind::LateRenewal, self.now)
            .is_some()
        {
            // It arrives when the lease before it has half a second more or less to go.
            let around = (LEASE.0 * 2 / 3 - 500_000, LEASE.0 * 2 / 3 + 500_000);
            delay = delay.plus(self.draw(Stream::Weather, account, around));
        }
        self.later(
            delay,
            Happening::Engine {
                account,
                life,
                input,
            },
        );
    }

    pub(crate) fn give(&mut self, account: usize, life: u64, input: ToEngine) {
        if self.accounts[account].life != life {
            return;
        }
        if let Some(front) = self.weather.strikes(account, Kind::Freeze, self.now) {
            // Everything waits in the order in which it came.
            self.at(
                front.until,
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
            return;
        }
        let reads = matches!(input, ToEngine::Loaded(..) | ToEngine::Scanned(..));
        if reads && self.read_fails(account) {
            self.later(
                Micros::from_millis(150),
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
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
        let now = self.local(account);
        let mut recorded = match input {
            ToEngine::Tick => Recorded::Tick,
            ToEngine::Opened(conn) => {
                self.accounts[account].conn = Some(conn);
                self.watch_connection(account);
                Recorded::Opened
            }
            ToEngine::Received(bytes) => Recorded::Received(bytes),
            ToEngine::Closed => {
                self.accounts[account].conn = None;
                self.accounts[account].online = false;
                self.watch_connection(account);
                Recorded::Closed
            }
            ToEngine::Loaded(id, keys) => {
                match ready(self.store.load(&self.accounts[account].id, keys.clone())) {
                    Ok(mut rows) => {
                        self.bugged_rows(account, &keys, &mut rows);
                        Recorded::Loaded(id, rows)
                    }
                    Err(error) => Recorded::Refused(error.to_string()),
                }
            }
            ToEngine::Scanned(id, scan) => {
                match ready(self.store.scan(&self.accounts[account].id, scan.clone())) {
                    Ok(mut rows) => {
                        self.bugged_scan(account, scan.table, &mut rows);
                        Recorded::Scanned(id, rows)
                    }
                    Err(error) => Recorded::Refused(error.to_string()),
                }
            }
            ToEngine::Fetched(id, piece) => Recorded::Fetched(id, piece),
            ToEngine::Committed { epoch, upto } => {
                self.accounts[account].committing = false;
                self.watch_durable(account, epoch, upto);
                Recorded::Committed { epoch, upto }
            }
            ToEngine::Early { epoch, upto } => {
                self.watch_durable(account, epoch, upto);
                Recorded::Committed { epoch, upto }
            }
            ToEngine::Fenced(by) => Recorded::Fenced(by),
            ToEngine::Unsealed(history) => Recorded::Unsealed(history),
            ToEngine::Refused(why) => Recorded::Refused(why),
            ToEngine::Granted(grant) => {
                if self.accounts[account].until < self.now {
                    self.cover.hit(Point::GrantAfterExpiry);
                }
                let until = &mut self.accounts[account].until;
                *until = grant.until.max(*until);
                Recorded::Granted(grant)
            }
            ToEngine::Command(command) => {
                let loses = self.has(Bug::CommandsLost);
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
                let id = CommandId(this.commands);
                if let Command::Acknowledge(seq) = command {
                    this.acknowledging.insert(id, seq);
                }
                self.watch_command(account, id, &command);
                if loses && id.0.is_multiple_of(16) {
                    return;
                }
                Recorded::Command(id, command)
            }
            ToEngine::On(..) => return,
        };
        let now = self.bugged_now(&recorded, now);
        let given = self.second_look(now);
        let this = &mut self.accounts[account];
        if let Some(engine) = &mut this.engine {
            if let Some(listener) = &mut self.listener {
                let at = self.now.0;
                listener(&line(at, account, &format!("< {}", recorded.words())));
            }
            if let Some(recorder) = &mut self.recorder {
                recorder.given(self.now, account, this.conn, &recorded);
            }
            if this.record {
                this.recording.push((recorded.clone(), now));
            }
            engine.handle(recorded.lend(), given);
            self.drain(account);
        }
    }

    /// Does what the engine says until it has nothing more to say.
    fn drain(&mut self, account: usize) {
        let mut wire = std::mem::take(&mut self.wire);
        let mut outputs = 0;
        loop {
            wire.clear();
            outputs += 1;
            // The judge of outputs has said something long before.
            if outputs > 50_000 {
                break;
            }
            let life = self.accounts[account].life;
            let this = &mut self.accounts[account];
            let Some(engine) = &mut this.engine else {
                return;
            };
            let output = engine.poll(&mut wire);
            if this.record || self.listener.is_some() {
                let said = describe(&output, &wire);
                if let Some(listener) = &mut self.listener {
                    listener(&line(self.now.0, account, &format!("> {said}")));
                }
                if this.record {
                    this.outputs.push(said);
                }
            }
            self.mark(|recorder| recorder.said(account, &output));
            self.cover_output(account, &output);
            self.watch_output(account, &output, outputs);
            let this = &mut self.accounts[account];
            let Some(engine) = &mut this.engine else {
                return;
            };
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
                    let delay = self.draw(Stream::Dial, account, self.options.network);
                    let refused = self.weather.strikes(account, Kind::RefuseConnect, self.now);
                    if refused.is_some() {
                        let input = ToEngine::Closed;
                        self.later(
                            delay,
                            Happening::Engine {
                                account,
                                life,
                                input,
                            },
                        );
                        continue;
                    }
                    if self
                        .weather
                        .strikes(account, Kind::HangConnect, self.now)
                        .is_some()
                    {
                        continue;
                    }
                    let conn = self.connect(account, life);
                    if self
                        .weather
                        .strikes(account, Kind::AcceptClose, self.now)
                        .is_some()
                    {
                        self.hang_up(conn);
                        let input = ToEngine::On(conn, Box::new(ToEngine::Closed));
                        let soon = delay.plus(Micros(1));
                        self.later(
                            soon,
                            Happening::Engine {
                                account,
                                life,
                                input,
                            },
                        );
                    }
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
                    if let Some(conn) = conn
                        && !self.has(Bug::ConnectionLeaked)
                    {
                        self.hang_up(conn);
                    }
                    let delay = self.draw(Stream::Dial, account, self.options.network);
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
                        for bytes in self.bugged_write(Bytes::copy_from_slice(&wire)) {
                            self.send_to_service(conn, bytes);
                        }
                    }
                }
                Output::Fetch(id, request) => self.fetch(account, life, id, Some(request.path)),
                Output::FetchMore(id) => self.fetch(account, life, id, None),
                Output::StopFetch(id) => {
                    self.downloads.remove(&(account, id));
                }
                Output::Event(seq, event) => {
                    if self.hides(account, &event) {
                        continue;
                    }
                    if self.has(Bug::ShownTwice) && seq.0.is_multiple_of(16) {
                        self.show(account, seq, event.clone());
                    }
                    if self.has(Bug::EventsMixed) && seq.0.is_multiple_of(4) {
                        self.mix(account, seq, &event);
                    }
                    self.show(account, seq, event);
                }
                Output::Notice(notice) => self.notice(account, notice),
                Output::Reply(id, result) => {
                    let seq = this.acknowledging.remove(&id);
                    // As drivers do it: an acknowledgement is given until it is taken.
                    if let (Some(seq), Err(CommandError::Busy | CommandError::Unknown)) =
                        (seq, &result)
                    {
                        let input = ToEngine::Command(Command::Acknowledge(seq));
                        self.later(
                            INSISTS,
                            Happening::Engine {
                                account,
                                life,
                                input,
                            },
                        );
                    }
                    let this = &mut self.accounts[account];
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
                    // One that was told to stop makes room for another process, however long it took over it.
                    let again = reason.is_retryable()
                        || matches!(reason, StopReason::Fenced(_) | StopReason::Shutdown);
                    let replaced = reason == StopReason::Replaced;
                    this.stops.push(reason);
                    self.cover.life(engine.stats());
                    let conn = this.kill();
                    if let Some(conn) = conn {
                        self.hang_up(conn);
                    }
                    // Nobody else has the term, so drivers come back by themselves, whenever and whyever it was said: by a
                    // former connection of the account's own, too, if its last bytes arrive late.
                    let pause = match (again, replaced) {
                        (true, _) => (1_000, 300_000),
                        (false, true) => AWAY,
                        (false, false) => return,
                    };
                    let pause = self.draw(Stream::Pause, account, pause);
                    self.later(pause, Happening::Start { account });
                    return;
                }
            }
        }
        self.wire = wire;
        let this = &mut self.accounts[account];
        if !this.committing && !this.sealed.is_empty() {
            this.committing = true;
            let batches = std::mem::take(&mut this.sealed);
            let life = this.life;
            self.cover_commit(account, &batches);
            self.mark(|recorder| recorder.commits(account, life, &batches));
            let mut delay = self.store_delay(account);
            if self.answers_early(&batches)
                && let Some(last) = batches.last()
            {
                let (epoch, upto) = (last.term.epoch, last.seq);
                let input = ToEngine::Early { epoch, upto };
                self.later(
                    Micros(1),
                    Happening::Engine {
                        account,
                        life,
                        input,
                    },
                );
                // It is in no hurry.
                delay = delay.plus(Micros::from_millis(200));
            }
            if self
                .weather
                .strikes(account, Kind::LateCommit, self.now)
                .is_some()
            {
                delay = delay.plus(Micros(LEASE.0 + LEASE.0 / 2));
            }
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
        let mut slow = self.accounts[account].slow;
        if self
            .weather
            .strikes(account, Kind::Slow, self.now)
            .is_some()
        {
            slow += self.draw(Stream::Weather, account, (0, 1_000_000)).0;
        }
        if let Some(front) = self.weather.strikes(account, Kind::Stall, self.now) {
            slow += front.until.since(self.now).0;
        }
        self.draw(Stream::Store, account, self.options.store)
            .plus(Micros(slow))
    }

    /// Whether a read has to be tried again.
    fn read_fails(&mut self, account: usize) -> bool {
        let mut kinds = [Kind::ReadError, Kind::DatabaseRestart].into_iter();
        kinds.any(|kind| self.weather.strikes(account, kind, self.now).is_some())
    }

    /// Whether a commit has to be tried again, after how long, and whether it is carried out all the same.
    fn commit_fails(&mut self, account: usize) -> Option<(u64, bool)> {
        [
            (Kind::CommitError, 100_000, false),
            (Kind::Serialization, 2_000, false),
            (Kind::ReadOnly, 200_000, false),
            (Kind::FullDisk, 200_000, false),
            (Kind::DatabaseRestart, 300_000, false),
            (Kind::AnswerLost, 1_000_000, true),
        ]
        .into_iter()
        .find(|(kind, ..)| self.weather.strikes(account, *kind, self.now).is_some())
        .map(|(_, pause, applied)| (pause, applied))
    }

    /// A commit reaches the store; the answer needs a while to get back.
    pub(crate) fn commit(&mut self, account: usize, life: u64, batches: Vec<Batch>) {
        let Some(last) = batches.last() else { return };
        let (epoch, upto) = (last.term.epoch, last.seq);
        let alive = self.accounts[account].life == life;
        self.mark(|recorder| recorder.commit_reaches(account, life, &batches));
        // What was answered before it was written is gone with the process.
        if !alive && self.answers_early(&batches) {
            return;
        }
        if let Some((pause, applied)) = self.commit_fails(account) {
            if applied {
                self.apply(account, alive, &batches);
            } else {
                self.tell("store", || {
                    format!(
                        "fails the commit of account {account} up to batch {}",
                        upto.0
                    )
                });
                self.mark(|recorder| recorder.fails(account, &batches));
                if self.has(Bug::ErrorSwallowed) {
                    let input = ToEngine::Committed { epoch, upto };
                    self.later(
                        Micros(1000),
                        Happening::Engine {
                            account,
                            life,
                            input,
                        },
                    );
                    return;
                }
            }
            let mut batches = batches;
            if applied && self.has(Bug::RetriedAsNew) {
                let count = batches.len() as u64;
                batches.iter_mut().for_each(|batch| batch.seq.0 += count);
            }
            // Nobody sends it again for a process that is dead.
            if alive {
                self.later(
                    Micros(pause),
                    Happening::Store {
                        account,
                        life,
                        batches,
                    },
                );
            }
            return;
        }
        let answer = self.apply(account, alive, &batches);
        if self.repeats(account, life, &batches) {
            return;
        }
        let answer = answer.unwrap_or(ToEngine::Committed { epoch, upto });
        self.sometimes(account, Point::CommitLands);
        let delay = self.draw(Stream::Store, account, self.options.store);
        self.later(
            delay,
            Happening::Engine {
                account,
                life,
                input: answer,
            },
        );
    }

    /// The store carries a commit out; what is wrong with it, if anything.
    fn apply(&mut self, account: usize, alive: bool, asked: &[Batch]) -> Option<ToEngine> {
        let batches = &*self.bugged_batches(account, alive, asked);
        let outcomes = match ready(self.store.commit(batches.to_vec())) {
            Ok(outcomes) => outcomes,
            Err(error) => return Some(ToEngine::Refused(error.to_string())),
        };
        let mut answer = None;
        for ((outcome, batch), asked) in outcomes.into_iter().zip(batches).zip(asked) {
            self.tell("store", || {
                format!(
                    "batch {} of account {account} under epoch {}, {} rows: {outcome:?}",
                    batch.seq.0,
                    batch.term.epoch.0,
                    batch.rows.len()
                )
            });
            self.mark(|recorder| recorder.wrote(account, batch, &outcome));
            self.note_batch(batch);
            // A batch that is sent again is answered again, and nothing is written: what came after it still stands.
            let fresh = self.watch_outcome(account, batch, &outcome);
            self.cover.batch(batch);
            let bad = match outcome {
                Outcome::Committed => {
                    if !alive {
                        self.cover.hit(Point::CommitOfDead);
                    }
                    self.watch_written(account, asked);
                    if fresh {
                        self.enter(account, batch);
                    }
                    continue;
                }
                Outcome::Fenced { by } => {
                    self.cover.hit(Point::CommitFenced);
                    if self.has(Bug::FencedIgnored) {
                        continue;
                    }
                    ToEngine::Fenced(by)
                }
                Outcome::Unsealed { history } => {
                    self.cover.hit(Point::CommitUnsealed);
                    if self.has(Bug::UnsealedIgnored) {
                        continue;
                    }
                    ToEngine::Unsealed(history)
                }
                Outcome::Rejected(why) => ToEngine::Refused(why),
            };
            answer = answer.or(Some(bad));
        }
        answer
    }

    /// What is written is part of what happened.
    fn note_batch(&mut self, batch: &Batch) {
        let keys: Vec<Vec<u8>> = batch.rows.keys().map(Key::to_bytes).collect();
        let seq = batch.seq.0.to_le_bytes();
        let mut parts: Vec<&[u8]> = vec![b"batch", &seq];
        for (key, row) in keys.iter().zip(batch.rows.values()) {
            parts.push(key);
            parts.push(row.as_ref().map_or(&[], |row| &row.0));
        }
        self.note(&parts);
    }

    pub(crate) fn enqueue(&mut self, account: usize, request: SendRequest) {
        let Some(id) = request.id.clone() else { return };
        let row = mailbox_request(&request, self.now.0);
        let at = self.now().unix;
        let account_id = self.accounts[account].id.clone();
        match ready(self.store.enqueue(&account_id, id.clone(), row, at)) {
            Ok(_) => {
                self.ledger.requested(account, &id);
                self.asks_again(account, &request);
                self.mail_may_have_come(account);
            }
            Err(error) => self.accounts[account]
                .complaints
                .push(format!("enqueue: {error}")),
        }
    }

    /// The consumer sees an event, and acknowledges now and then.
    fn show(&mut self, account: usize, seq: EventSeq, event: Event) {
        self.note(&[b"event", &account.to_le_bytes(), &seq.0.to_le_bytes()]);
        self.mark(|recorder| recorder.shows(account, seq, &event));
        let draw = self.chance.of(Stream::Consumer, account as u64, seq.0) % 4;
        let this = &mut self.accounts[account];
        // Before a gap the last event has to be exactly the one that the gap says is the last; a consumer that has seen
        // more, in what was lost, has seen that too.
        let mut wrong = None;
        let gap = match &event {
            Event::HistoryLost { after, .. } => Some(*after),
            _ => None,
        };
        if let Some(last) = this.last_shown {
            if seq != last.next() && gap != Some(last) {
                let words = format!("event {} was shown after {}", seq.0, last.0);
                wrong = Some((Judge::EventOrder, words));
            }
        } else if seq > this.acknowledged.next() && gap.is_none_or(|gap| gap > this.acknowledged) {
            let words = format!(
                "event {} was shown first; acknowledged up to {}",
                seq.0, this.acknowledged.0
            );
            wrong = Some((Judge::EventOrder, words));
        }
        this.last_shown = Some(seq);
        if this.events.contains_key(&seq) {
            self.cover.hit(Point::EventAgain);
        }
        match this.events.get(&seq) {
            Some(known) if *known != event => {
                wrong = Some((Judge::EventOnce, format!("event {} has changed", seq.0)));
            }
            Some(_) => {}
            None => {
                this.events.insert(seq, event);
            }
        }
        self.judged.saw(Judge::EventOrder, 1);
        self.judged.saw(Judge::EventOnce, 1);
        if let Some((judge, words)) = wrong {
            self.finds(account, judge, words);
        }
        let this = &mut self.accounts[account];
        // Nobody shows it more than this before it has acknowledged something.
        let full = seq.0.saturating_sub(this.acknowledged.0) >= u64::from(self.bounds.1);
        // What it has acknowledged before is acknowledged again: that may have been lost with a process.
        if draw == 0 || full || seq <= this.acknowledged {
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
