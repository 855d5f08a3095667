//! One account of a world: what a gateway process is in production, and the consumer of its events.
//!
//! Here: what an account is. [`life`]: how an owner comes and goes; [`driver`]: inputs and outputs; [`commits`]: the store;
//! [`consumer`]: what is asked for and seen.

mod commits;
mod consumer;
mod driver;
mod life;

use crate::{
    service::{ConnId, settings::Change},
    world::{
        Crypto, Options,
        fetch::Piece,
        settings::{Asked, Places},
        watch::Watched,
    },
};
use baton_core::{
    engine::{Engine, Grant, Input, LoadId, Now, Output, StopReason},
    flow::{Command, CommandError, CommandId, Config, Event, FetchId, Reply},
    state::{AccountId, Batch, Epoch, EventSeq, Key, Micros, Row, Scan, Seal, Seq},
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
