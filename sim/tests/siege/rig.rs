//! One engine, held in the hand: every input is given by the test, every output looked at. The service, the store and
//! the clocks do what the test wants; left alone they are honest.

use crate::cloud::Files;
use baton_core::{
    crypto::{KeyPair, PublicKey, Rng, Signature},
    engine::{Engine, Grant, Input, LoadId, Now, Output, StopReason},
    flow::{
        Command, CommandError, CommandId, Config, Endpoint, Event, FetchId, Fetched, Limits,
        MediaRequest, Notice, PreKeyPolicy, Profile, Reply, ServiceConfig, Timing,
    },
    jid::Jid,
    proto::{e2e, record},
    signal::{self, Bundle, CiphertextKind, LocalIdentity, SessionRecord},
    state::{
        AccountId, Batch, Claim, Epoch, EventSeq, HostInfo, Incarnation, Key, Lease, Micros,
        Outcome, Record, Row, Scan, Seal, Seq, Store, UnixMillis, codec, memory::MemoryStore,
    },
    wire::{
        frame::{self, FrameReader, HeaderReader},
        node::{self, Node},
        noise::{ServerFinish, ServerHandshake, ServerReply, Transport, certificate_chain},
    },
};
use prost::Message as _;
use sim::world::{Options, World};
use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::pin,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

pub(crate) const SECOND: u64 = 1_000_000;
const BEGINNING: i64 = 1_767_225_700_000;

pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the reference store never waits"),
    }
}

/// The store of an account that was linked in a world and has seen nothing since. Linking costs time, so it is done
/// once.
fn linked() -> &'static (MemoryStore, AccountId) {
    static LINKED: OnceLock<(MemoryStore, AccountId)> = OnceLock::new();
    LINKED.get_or_init(|| {
        let mut world = World::new(Options::default());
        world.link_all();
        world.run(world.now().mono.0 + 10 * SECOND);
        (world.store().clone(), world.accounts()[0].id.clone())
    })
}

/// A store of its own with the linked account in it, whose hosts are gone.
pub(crate) fn store() -> (MemoryStore, AccountId) {
    let (store, account) = linked();
    let store = store.copy(|| Micros(1_000_000 * SECOND));
    bury(&store);
    (store, account.clone())
}

/// Who a service is: the key that devices trust, its own pair, its certificates.
type Identity = (PublicKey, KeyPair, Vec<u8>);

/// One of its own per seed. Made once, because the fuzzer asks for it with every input.
fn identity(seed: u8) -> Identity {
    static MADE: Mutex<BTreeMap<u8, Identity>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        let mut rng = Rng::from_seed([seed; 32]).fork("service");
        let [root, middle, leaf] = [(); 3].map(|()| KeyPair::generate(&mut rng));
        let (from, until) = (BEGINNING / 1000 - 86_400, BEGINNING / 1000 + 3650 * 86_400);
        let chain = certificate_chain(&root, &middle, &leaf.public, from, until, &mut rng);
        (root.public, leaf, chain)
    };
    made.entry(seed).or_insert_with(make).clone()
}

/// All hosts are gone.
pub(crate) fn bury(store: &MemoryStore) {
    for host in ready(store.hosts()).expect("hosts") {
        ready(store.leave(host.who)).expect("left");
    }
}

/// The account, for a host that has just joined.
fn claim(store: &MemoryStore, account: &AccountId, who: Incarnation, ttl: Micros) -> Lease {
    ready(store.join(who, HostInfo::named("rig"), ttl)).expect("a slot");
    match ready(store.claim(who, vec![account.clone()])).as_deref() {
        Ok([Claim::Granted(lease)]) => *lease,
        other => panic!("the account is free: {other:?}"),
    }
}

/// Everything the engine has said since it was looked at last.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Stanzas, decrypted.
    pub(crate) nodes: Vec<Node>,
    /// How many of them only keep the connection alive.
    pub(crate) pings: usize,
    pub(crate) events: Vec<(EventSeq, Event)>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) replies: Vec<(CommandId, Result<Reply, CommandError>)>,
    pub(crate) opens: usize,
    pub(crate) closes: usize,
    pub(crate) loads: usize,
    pub(crate) fetches: Vec<MediaRequest>,
    pub(crate) stopped_fetches: usize,
    pub(crate) batches: Vec<Batch>,
}

impl Said {
    /// Whether nothing has left that somebody outside could see, but that somebody is there.
    pub(crate) fn is_silent(&self) -> bool {
        self.nodes.len() == self.pings && self.is_mute()
    }

    /// As [`is_silent`](Self::is_silent), stanzas apart.
    pub(crate) fn is_mute(&self) -> bool {
        self.events.is_empty() && self.replies.is_empty() && self.opens + self.closes == 0
    }
}

/// Rewrites what the store answers.
pub(crate) type Bend = Box<dyn FnMut(&[Key], &mut Vec<Row>)>;

/// Answers questions about settings, or lets the answer get lost.
pub(crate) type Answers = Box<dyn FnMut(&Node) -> Option<Node>>;

pub(crate) type Pieces = Box<dyn Iterator<Item = Vec<u8>>>;

/// Makes a file, piece by piece.
pub(crate) type Source = Box<dyn Fn() -> Pieces>;

pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) store: MemoryStore,
    pub(crate) account: AccountId,
    pub(crate) grant: Grant,
    pub(crate) now: Now,
    pub(crate) said: Said,
    pub(crate) stopped: Option<StopReason>,
    /// Commits are kept here instead of being carried out.
    pub(crate) hold: bool,
    pub(crate) held: VecDeque<Batch>,
    /// The service answers questions and opens connections.
    pub(crate) honest: bool,
    /// The driver is confused: bytes can end up on the wrong line.
    pub(crate) confused: bool,
    /// Loads and scans are answered.
    pub(crate) answers: bool,
    /// Loads and scans that were not.
    pub(crate) asked: Vec<(LoadId, Vec<Key>, Option<Scan>)>,
    pub(crate) bend: Option<Bend>,
    /// Ids of questions that were not answered.
    pub(crate) unanswered: Vec<String>,
    /// Outputs that the last input brought, follow-ups included; and the most ever.
    pub(crate) outputs: usize,
    pub(crate) most: usize,
    pub(crate) peers: Vec<Peer>,
    /// How many devices each peer has, by the service's word.
    pub(crate) devices: u64,
    line: Option<Line>,
    service: (KeyPair, Vec<u8>),
    /// Files at the media hosts, by path without query.
    pub(crate) files: Files,
    /// Bytes of a chunk.
    pub(crate) chunk: usize,
    fetching: BTreeMap<FetchId, (Vec<u8>, usize)>,
    /// Makes the file of every download, piece by piece.
    pub(crate) source: Option<Source>,
    streams: BTreeMap<FetchId, (Pieces, Vec<u8>)>,
    /// Nothing that is said is kept, and every event is acknowledged: for long runs.
    pub(crate) forget: bool,
    /// Messages of the past that were shown meanwhile.
    pub(crate) past: usize,
    /// What answers questions about settings; without it they get an empty answer.
    pub(crate) cloud: Option<Answers>,
    pub(crate) rng: Rng,
    inputs: VecDeque<Given>,
    commands: u64,
}

enum Given {
    Opened,
    Closed,
    Received(Vec<u8>),
    Loaded(LoadId, Vec<Row>),
    Scanned(LoadId, Vec<(Key, Row)>),
    Committed(Epoch, Seq),
    Fenced(Epoch),
    Unsealed(Seal),
    Refused(String),
    Chunk(FetchId, Vec<u8>),
    FetchEnded(FetchId, bool),
    Acknowledge(EventSeq),
}

struct Line {
    header: HeaderReader,
    frames: FrameReader,
    stage: Option<ServerFinish>,
    transport: Option<Transport>,
}

impl Rig {
    /// An engine for the linked account, that has read its rows and wants a connection.
    pub(crate) fn new(seed: u8) -> Self {
        let (store, account) = store();
        Self::with(store, account, seed, |_| {})
    }

    pub(crate) fn with(
        store: MemoryStore,
        account: AccountId,
        seed: u8,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let (root, leaf, chain) = identity(seed);
        let mut rng = Rng::from_seed([seed; 32]);
        let who = Incarnation(rng.next_u64());
        let ttl = Micros::from_secs(3600);
        let lease = claim(&store, &account, who, ttl);
        let now = Now {
            mono: Micros(SECOND),
            unix: UnixMillis(BEGINNING),
        };
        let grant = Grant {
            lease,
            until: now.mono.plus(ttl),
        };
        let mut config = Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: Endpoint("ws://rig".into()),
                root,
            },
            profile: Profile::default(),
            timing: Timing::default(),
            pre_keys: PreKeyPolicy { low: 5, batch: 20 },
            available: true,
        };
        configure(&mut config);
        let engine = Engine::new(account.clone(), config, grant, rng.bytes(), now);
        Self {
            engine,
            store,
            account,
            grant,
            now,
            said: Said::default(),
            stopped: None,
            hold: false,
            held: VecDeque::new(),
            honest: true,
            confused: false,
            answers: true,
            asked: Vec::new(),
            bend: None,
            unanswered: Vec::new(),
            outputs: 0,
            most: 0,
            peers: Vec::new(),
            devices: 1,
            files: Files::default(),
            chunk: 1000,
            fetching: BTreeMap::new(),
            source: None,
            streams: BTreeMap::new(),
            forget: false,
            past: 0,
            cloud: None,
            line: None,
            service: (leaf, chain),
            rng,
            inputs: VecDeque::new(),
            commands: 0,
        }
    }

    /// As [`new`](Self::new), and brought online by an honest service.
    pub(crate) fn online(seed: u8) -> Self {
        let mut rig = Self::new(seed);
        rig.go_online();
        rig
    }

    pub(crate) fn go_online(&mut self) {
        self.give(Input::Tick);
        assert!(self.is_up(), "not connected: {:?}", self.said);
        assert!(
            self.said
                .notices
                .iter()
                .any(|notice| format!("{notice:?}").contains("Online")),
            "not online: {:?}",
            self.said
        );
        self.look();
    }

    pub(crate) fn is_up(&self) -> bool {
        self.line
            .as_ref()
            .is_some_and(|line| line.transport.is_some())
    }

    /// When the engine next wants to be looked after.
    pub(crate) fn wake(&mut self) -> Option<Micros> {
        match self.engine.poll(&mut Vec::new()) {
            Output::Idle { wake, .. } => wake,
            _ => None,
        }
    }

    /// Everything said since the last look.
    pub(crate) fn look(&mut self) -> Said {
        std::mem::take(&mut self.said)
    }

    /// Gives an input, and everything that follows from it.
    pub(crate) fn give(&mut self, input: Input<'_>) {
        self.outputs = 0;
        self.engine.handle(input, self.now);
        self.drain();
        while let Some(given) = self.inputs.pop_front() {
            let input = match &given {
                Given::Opened => Input::Opened,
                Given::Closed => Input::Closed,
                Given::Received(bytes) => Input::Received(bytes),
                Given::Loaded(id, rows) => Input::Loaded(*id, rows.clone()),
                Given::Scanned(id, rows) => Input::Scanned(*id, rows.clone()),
                Given::Committed(epoch, upto) => Input::Committed {
                    epoch: *epoch,
                    upto: *upto,
                },
                Given::Fenced(by) => Input::Fenced { by: *by },
                Given::Unsealed(history) => Input::Unsealed { history: *history },
                Given::Refused(why) => Input::StoreRefused(why.clone()),
                Given::Acknowledge(seq) => {
                    self.commands += 1;
                    Input::Command(CommandId(self.commands), Command::Acknowledge(*seq))
                }
                Given::Chunk(id, bytes) => Input::Fetched(*id, Fetched::Chunk(bytes)),
                Given::FetchEnded(id, whole) => Input::Fetched(
                    *id,
                    if *whole {
                        Fetched::Done
                    } else {
                        Fetched::Failed { gone: false }
                    },
                ),
            };
            self.engine.handle(input, self.now);
            self.drain();
            if self.forget {
                self.outputs = 0;
                self.said = Said::default();
            }
        }
        self.most = self.most.max(self.outputs);
    }

    pub(crate) fn command(&mut self, command: Command) -> CommandId {
        self.commands += 1;
        let id = CommandId(self.commands);
        self.give(Input::Command(id, command));
        id
    }

    /// Lets time pass, tick by tick, as the engine wants to be woken.
    pub(crate) fn pass(&mut self, micros: u64) {
        let end = self.now.mono.plus(Micros(micros));
        self.now.unix.0 += i64::try_from(micros / 1000).unwrap_or(0);
        for _ in 0..10_000 {
            match self.wake().filter(|wake| *wake <= end) {
                Some(wake) => {
                    self.now.mono = self.now.mono.max(wake);
                    self.give(Input::Tick);
                }
                None => {
                    self.now.mono = end;
                    return self.give(Input::Tick);
                }
            }
        }
        panic!("the engine wants to be woken without end");
    }

    /// The service says something.
    pub(crate) fn say(&mut self, node: &Node) {
        if let Some(bytes) = self.seal(node) {
            self.give(Input::Received(&bytes));
        }
    }

    /// What the service says, as bytes of the connection.
    pub(crate) fn seal(&mut self, node: &Node) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        node::encode(node, &mut plain).ok()?;
        let mut bytes = Vec::new();
        let transport = self.line.as_mut()?.transport.as_mut()?;
        transport.seal(&plain, &mut bytes).ok()?;
        Some(bytes)
    }

    /// The service says all of this in one breath.
    pub(crate) fn say_all<'a>(&mut self, nodes: impl IntoIterator<Item = &'a Node>) {
        let mut all = Vec::new();
        for node in nodes {
            all.extend(self.seal(node).unwrap_or_default());
        }
        self.give(Input::Received(&all));
    }

    /// The connection breaks.
    pub(crate) fn hang_up(&mut self) {
        self.line = None;
        self.give(Input::Closed);
    }

    /// Carries out the commits that were held, up to this many.
    pub(crate) fn commit(&mut self, most: usize) {
        for _ in 0..most {
            let Some(batch) = self.held.pop_front() else {
                return;
            };
            let (epoch, upto) = (batch.term.epoch, batch.seq);
            assert_eq!(
                ready(self.store.commit(vec![batch])),
                Ok(vec![Outcome::Committed])
            );
            self.give(Input::Committed { epoch, upto });
        }
    }

    fn drain(&mut self) {
        let mut wire = Vec::new();
        loop {
            wire.clear();
            let output = self.engine.poll(&mut wire);
            self.outputs += 1;
            assert!(self.outputs < 200_000, "outputs without end");
            match output {
                Output::Commit(mut batch) => {
                    if self.forget {
                        // What a store has to keep for good is not what is looked at.
                        let secret = |key: &Key| matches!(key, Key::MessageSecret { .. });
                        batch.rows.retain(|key, _| !secret(key));
                    } else {
                        self.said.batches.push(batch.clone());
                    }
                    if self.hold {
                        self.held.push_back(batch);
                        continue;
                    }
                    let (epoch, upto) = (batch.term.epoch, batch.seq);
                    let outcome = ready(self.store.commit(vec![batch])).expect("it is there");
                    self.inputs.push_back(match outcome.into_iter().next() {
                        Some(Outcome::Committed) => Given::Committed(epoch, upto),
                        Some(Outcome::Fenced { by }) => Given::Fenced(by),
                        Some(Outcome::Unsealed { history }) => Given::Unsealed(history),
                        other => Given::Refused(format!("{other:?}")),
                    });
                }
                Output::Load(id, keys) => {
                    self.said.loads += 1;
                    if !self.answers {
                        self.asked.push((id, keys, None));
                        continue;
                    }
                    let mut rows =
                        ready(self.store.load(&self.account, keys.clone())).expect("rows");
                    if let Some(bend) = &mut self.bend {
                        bend(&keys, &mut rows);
                    }
                    self.inputs.push_back(Given::Loaded(id, rows));
                }
                Output::Scan(id, scan) => {
                    self.said.loads += 1;
                    if !self.answers {
                        self.asked.push((id, Vec::new(), Some(scan)));
                        continue;
                    }
                    let rows = ready(self.store.scan(&self.account, scan)).expect("rows");
                    self.inputs.push_back(Given::Scanned(id, rows));
                }
                Output::Open(_) => {
                    self.said.opens += 1;
                    if self.honest {
                        self.line = Some(Line {
                            header: HeaderReader::new(),
                            frames: FrameReader::new(frame::MAX_FRAME),
                            stage: None,
                            transport: None,
                        });
                        self.inputs.push_back(Given::Opened);
                    }
                }
                Output::Close => {
                    self.said.closes += 1;
                    self.line = None;
                    self.inputs.push_back(Given::Closed);
                }
                Output::Transmit => self.hear(&wire),
                Output::Fetch(id, request) => self.fetch(id, request),
                Output::FetchMore(id) => self.fetch_more(id),
                Output::StopFetch(id) => {
                    self.said.stopped_fetches += 1;
                    self.fetching.remove(&id);
                    self.streams.remove(&id);
                }
                Output::Event(seq, event) if self.forget => {
                    if let Event::History(part) = event {
                        self.past += part.messages.len();
                    }
                    self.inputs.push_back(Given::Acknowledge(seq));
                }
                Output::KeepAlive => {
                    self.said.pings += 1;
                    self.hear(&wire);
                }
                Output::Event(seq, event) => self.said.events.push((seq, event)),
                Output::Notice(notice) => self.said.notices.push(notice),
                Output::Reply(id, result) => self.said.replies.push((id, result)),
                Output::Idle { .. } => return,
                Output::Stopped(reason) => {
                    self.line = None;
                    self.stopped = Some(reason);
                    return;
                }
            }
        }
    }

    fn fetch(&mut self, id: FetchId, request: MediaRequest) {
        if let Some(source) = &self.source {
            self.streams.insert(id, (source(), Vec::new()));
            return self.fetch_more(id);
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let file = self.files.borrow().get(path).cloned();
        self.said.fetches.push(request);
        match file {
            Some(file) => {
                self.fetching.insert(id, (file, 0));
                self.fetch_more(id);
            }
            None => self.inputs.push_back(Given::FetchEnded(id, false)),
        }
    }

    fn fetch_more(&mut self, id: FetchId) {
        if let Some((pieces, rest)) = self.streams.get_mut(&id) {
            while rest.len() < self.chunk
                && let Some(piece) = pieces.next()
            {
                rest.extend(piece);
            }
            if rest.is_empty() {
                self.streams.remove(&id);
                return self.inputs.push_back(Given::FetchEnded(id, true));
            }
            let chunk = rest.drain(..rest.len().min(self.chunk)).collect();
            return self.inputs.push_back(Given::Chunk(id, chunk));
        }
        let Some((file, at)) = self.fetching.get_mut(&id) else {
            return;
        };
        if *at == file.len() {
            self.fetching.remove(&id);
            return self.inputs.push_back(Given::FetchEnded(id, true));
        }
        let end = file.len().min(*at + self.chunk);
        let chunk = file[*at..end].to_vec();
        *at = end;
        self.inputs.push_back(Given::Chunk(id, chunk));
    }

    // ---- the service ------------------------------------------------------------------------------------------

    fn hear(&mut self, bytes: &[u8]) {
        // What a confused driver puts on a line makes no sense to the other end.
        if let Err(what) = self.try_hear(bytes) {
            assert!(
                self.confused,
                "the engine wrote what nobody can read: {what}"
            );
            self.line = None;
        }
    }

    fn try_hear(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let Some(line) = &mut self.line else {
            return Ok(());
        };
        line.header
            .push(bytes, &mut line.frames)
            .map_err(|_| "header")?;
        loop {
            let Some(line) = &mut self.line else {
                return Ok(());
            };
            let Some(frame) = line.frames.next().map_err(|_| "frame")? else {
                return Ok(());
            };
            if let Some(transport) = &mut line.transport {
                let plain = transport.open(&frame).map_err(|_| "cipher")?;
                let node = node::decode_owned(&plain).map_err(|_| "node")?;
                self.answer(&node);
                self.said.nodes.push(node);
                continue;
            }
            let mut reply = Vec::new();
            let done = match line.stage.take() {
                None => {
                    let (leaf, chain) = &self.service;
                    match ServerHandshake::client_hello(leaf, chain, &frame, &mut self.rng) {
                        Ok(ServerReply::AwaitFinish {
                            reply: bytes,
                            state,
                        }) => {
                            line.stage = Some(state);
                            frame::write_frame(&bytes, &mut reply).expect("short");
                            None
                        }
                        Ok(ServerReply::Resumed {
                            reply: bytes,
                            transport,
                            ..
                        }) => {
                            frame::write_frame(&bytes, &mut reply).expect("short");
                            Some(transport)
                        }
                        Err(_) => return Err("hello"),
                    }
                }
                Some(finish) => Some(finish.client_finish(&frame).map_err(|_| "finish")?.0),
            };
            if !reply.is_empty() {
                self.inputs.push_back(Given::Received(reply));
            }
            if let Some(transport) = done {
                line.transport = Some(transport);
                if self.honest {
                    let device = self.device();
                    if let Some(lid) = device.lid {
                        self.later(
                            &Node::new("success").attr("lid", lid.parse::<Jid>().expect("a LID")),
                        );
                    }
                }
            }
        }
    }

    fn later(&mut self, node: &Node) {
        if let Some(bytes) = self.seal(node) {
            self.inputs.push_back(Given::Received(bytes));
        }
    }

    fn answer(&mut self, node: &Node) {
        let Some(id) = node.get_string("id") else {
            return;
        };
        if node.tag() == "message" && self.honest {
            return self.later(
                &Node::new("ack")
                    .attr("class", "message")
                    .attr("id", id)
                    .attr("t", 1_767_225_701u64),
            );
        }
        if node.tag() != "iq" || !matches!(node.get_str("type"), Some("get" | "set")) {
            return;
        }
        if !self.honest {
            return self.unanswered.push(id);
        }
        if node.get_str("xmlns") == Some("w:sync:app:state") {
            let answer = match &mut self.cloud {
                Some(cloud) => cloud(node),
                None => Some(nothing_new(node)),
            };
            if let Some(answer) = answer {
                self.later(&answer.attr("id", id));
            }
            return;
        }
        let mut result = Node::new("iq").attr("type", "result").attr("id", id);
        if node.find("count").is_some() {
            result = result.child(Node::new("count").attr("value", 100u64));
        } else if let Some(list) = node.path(&["usync", "list"]) {
            let users = list.find_all("user").filter_map(|user| user.get_jid("jid"));
            let users = users.map(|jid| {
                let many = self.peers.iter().any(|peer| peer.jid.same_user(&jid));
                let devices = (0..if many { self.devices } else { 1 })
                    .map(|id| Node::new("device").attr("id", id).attr("key-index", id));
                let list = Node::new("device-list").children(devices);
                Node::new("user")
                    .attr("jid", jid)
                    .child(Node::new("devices").child(list))
            });
            result = result.child(Node::new("usync").child(Node::new("list").children(users)));
        } else if let Some(key) = node.find("key") {
            let users: Vec<Node> = key
                .find_all("user")
                .filter_map(|user| user.get_jid("jid"))
                .map(|jid| self.bundle(&jid))
                .collect();
            result = result.child(Node::new("list").children(users));
        }
        self.later(&result);
        if node.find("active").is_some() {
            self.later(&Node::new("ib").child(Node::new("offline").attr("count", 0u64)));
        }
    }

    fn bundle(&self, jid: &Jid) -> Node {
        let user = Node::new("user").attr("jid", jid);
        match self.peers.iter().find(|peer| peer.jid.same_user(jid)) {
            Some(peer) => user.children(peer.bundle()),
            None => user.child(Node::new("error").attr("code", 404u64)),
        }
    }

    // ---- the store --------------------------------------------------------------------------------------------

    /// The account's own row.
    pub(crate) fn device(&self) -> record::Device {
        match self.row(Key::Device) {
            Row::Present(row) => codec::decode(&row).expect("the device row"),
            other => panic!("the device row is {other:?}"),
        }
    }

    pub(crate) fn row(&self, key: Key) -> Row {
        ready(self.store.load(&self.account, vec![key])).expect("the account")[0].clone()
    }

    /// Writes a row behind the engine's back: it must not be running yet.
    pub(crate) fn write(store: &MemoryStore, account: &AccountId, key: Key, row: Record) {
        Self::write_all(store, account, [(key, Some(row))].into());
    }

    /// As [`write`](Self::write), many rows, or the end of them.
    pub(crate) fn write_all(
        store: &MemoryStore,
        account: &AccountId,
        rows: BTreeMap<Key, Option<Record>>,
    ) {
        // A life of its own: who has left never comes back, though it is listed no more.
        static LIVES: AtomicU64 = AtomicU64::new(1 << 40);
        let who = Incarnation(LIVES.fetch_add(1, Ordering::Relaxed));
        let lease = claim(store, account, who, Micros(1));
        let batch = Batch {
            account: account.clone(),
            term: lease.term,
            seq: lease.applied.next(),
            reseal: false,
            at: UnixMillis(BEGINNING),
            rows,
        };
        assert_eq!(
            ready(store.commit(vec![batch])),
            Ok(vec![Outcome::Committed])
        );
        ready(store.leave(who)).expect("left");
    }

    // ---- peers ------------------------------------------------------------------------------------------------

    /// Somebody who writes to the account.
    pub(crate) fn peer(&mut self, lid: &str) -> usize {
        let peer = Peer::new(lid, &self.device(), &mut self.rng);
        self.peers.push(peer);
        self.peers.len() - 1
    }

    /// A message of a peer.
    pub(crate) fn text(&mut self, peer: usize, id: &str, text: &str) -> Node {
        self.peers[peer].message(id, text, &mut self.rng)
    }
}

/// Every collection is where the engine thinks it is.
fn nothing_new(iq: &Node) -> Node {
    let asked = iq
        .find("sync")
        .into_iter()
        .flat_map(|sync| sync.find_all("collection"));
    let answers = asked.map(|asked| {
        Node::new("collection")
            .attr("name", asked.get_string("name").unwrap_or_default())
            .attr("version", asked.get_u64("version").unwrap_or(0))
    });
    let sync = Node::new("sync").children(answers);
    Node::new("iq").attr("type", "result").child(sync)
}

/// Somebody with a device.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) jid: Jid,
    identity: KeyPair,
    signed: (KeyPair, Signature),
    session: SessionRecord,
}

impl Peer {
    fn new(lid: &str, device: &record::Device, rng: &mut Rng) -> Self {
        let public = |private: &Option<Vec<u8>>| -> PublicKey {
            let bytes: [u8; 32] = private.clone().unwrap().try_into().unwrap();
            baton_core::crypto::PrivateKey::from_bytes(bytes).public_key()
        };
        let signed = &device.signed_pre_keys[0];
        let bundle = Bundle {
            registration_id: device.registration_id.unwrap(),
            identity: public(&device.identity_private),
            signed_pre_key_id: signed.id.unwrap(),
            signed_pre_key: public(&signed.private),
            signature: Signature::from_slice(signed.signature.as_deref().unwrap()).unwrap(),
            pre_key: None,
        };
        let identity = KeyPair::generate(rng);
        let pre_key = KeyPair::generate(rng);
        let signature = identity.private.sign(&[&pre_key.public.serialize()], rng);
        let mut session = SessionRecord::new();
        let local = LocalIdentity {
            key_pair: &identity,
            registration_id: 7,
        };
        signal::initiate(&mut session, &local, &bundle, rng).expect("a sound bundle");
        Self {
            jid: Jid::lid(lid).expect("digits"),
            signed: (pre_key, signature),
            identity,
            session,
        }
    }

    pub(crate) fn ciphertext(&mut self, text: &str, rng: &mut Rng) -> (&'static str, Vec<u8>) {
        let message = e2e::Message {
            conversation: Some(text.into()),
            ..Default::default()
        };
        self.seal(&message, rng)
    }

    pub(crate) fn seal(
        &mut self,
        message: &e2e::Message,
        rng: &mut Rng,
    ) -> (&'static str, Vec<u8>) {
        self.seal_bytes(&message.encode_to_vec(), rng)
    }

    /// As [`seal`](Self::seal), for what need not be a message.
    pub(crate) fn seal_bytes(&mut self, content: &[u8], rng: &mut Rng) -> (&'static str, Vec<u8>) {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: 7,
        };
        let padded = signal::pad(content, rng);
        let sealed = signal::encrypt(&mut self.session, &local, &padded).expect("a session");
        let kind = match sealed.kind {
            CiphertextKind::PreKey => "pkmsg",
            CiphertextKind::Message => "msg",
        };
        (kind, sealed.bytes)
    }

    pub(crate) fn stanza(&self, id: &str, kind: &str, bytes: Vec<u8>) -> Node {
        let enc = Node::new("enc")
            .attr("v", "2")
            .attr("type", kind)
            .bytes(bytes);
        Node::new("message")
            .attr("from", &self.jid)
            .attr("id", id)
            .attr("type", "text")
            .attr("t", 1_767_225_701u64)
            .child(enc)
    }

    fn message(&mut self, id: &str, text: &str, rng: &mut Rng) -> Node {
        let (kind, bytes) = self.ciphertext(text, rng);
        self.stanza(id, kind, bytes)
    }

    /// What is in a message that begins a session with this peer.
    pub(crate) fn open(&self, stanza: &Node, rng: &mut Rng) -> Option<e2e::Message> {
        let enc = stanza.find("enc")?;
        let message = signal::PreKeyMessage::parse(enc.data()?).ok()?;
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: 7,
        };
        let mut session = SessionRecord::new();
        let signed = Some(&self.signed.0);
        let padded =
            signal::decrypt_pre_key(&mut session, &local, &message, signed, None, rng).ok()?;
        e2e::Message::decode(signal::unpad(&padded).ok()?).ok()
    }

    pub(crate) fn bundle(&self) -> Vec<Node> {
        let (signed, signature) = &self.signed;
        let bytes = |tag: &'static str, bytes: &[u8]| Node::new(tag).bytes(bytes.to_vec());
        vec![
            bytes("registration", &7u32.to_be_bytes()),
            bytes("type", &[5]),
            bytes("identity", self.identity.public.as_bytes()),
            Node::new("skey")
                .child(bytes("id", &[0, 0, 1]))
                .child(bytes("value", signed.public.as_bytes()))
                .child(bytes("signature", signature.as_bytes())),
        ]
    }
}
