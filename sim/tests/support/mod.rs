//! A companion device for tests, made of the core's floors and nothing of the service's: if it can talk, the service
//! speaks the protocol. The tests come first; this is only what they need.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file uses its own part"
)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use baton_core::crypto::{KeyPair, PublicKey, Rng, Signature, hmac_sha256};
use baton_core::jid::Jid;
use baton_core::proto::{adv, e2e, payload};
use baton_core::signal::{self, CiphertextKind, LocalIdentity, PreKeyMessage, SessionRecord};
use baton_core::state::{Micros, UnixMillis};
use baton_core::wire::frame::{self, FrameReader};
use baton_core::wire::node::{self, Node};
use baton_core::wire::noise::{ClientHandshake, ServerIdentity, Transport, Trust};
use bytes::Bytes;
use prost::Message as _;
use sim::service::{ConnId, DeviceId, Effect, Now, Options, Service};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A service and the wires to it.
pub struct World {
    pub service: Service,
    pub now: Now,
    pub closed: BTreeSet<ConnId>,
    wires: BTreeMap<ConnId, VecDeque<Bytes>>,
    last_conn: u64,
}

impl World {
    pub fn new() -> Self {
        Self::with(Options {
            bootstrap: false,
            ..Options::default()
        })
    }

    pub fn with(options: Options) -> Self {
        let now = Now {
            mono: Micros::from_secs(10),
            unix: UnixMillis(1_795_224_800_000),
        };
        Self::of(Service::new(options, [7; 32], now), now)
    }

    pub fn of(service: Service, now: Now) -> Self {
        Self {
            service,
            now,
            closed: BTreeSet::new(),
            wires: BTreeMap::new(),
            last_conn: 0,
        }
    }

    /// Lets time pass, ticking whenever the service asked to be woken.
    pub fn pass(&mut self, span: Micros) {
        let end = self.now.mono.plus(span);
        while let Some(wake) = self.service.next_wake().filter(|wake| *wake <= end) {
            self.jump(wake);
            self.service.tick(self.now);
            self.pump();
        }
        self.jump(end);
        self.pump();
    }

    fn jump(&mut self, to: Micros) {
        self.now.unix.0 += to.since(self.now.mono).0 as i64 / 1000;
        self.now.mono = self.now.mono.max(to);
    }

    pub fn pump(&mut self) {
        while let Some(effect) = self.service.poll() {
            match effect {
                Effect::Send(conn, bytes) => {
                    assert!(
                        !self.closed.contains(&conn),
                        "nothing may come after a close"
                    );
                    if let Some(wire) = self.wires.get_mut(&conn) {
                        wire.push_back(bytes);
                    }
                }
                Effect::Close(conn) => {
                    self.closed.insert(conn);
                }
            }
        }
    }
}

/// What a client needs of the world: wires to a service, and somebody with a phone.
pub trait Net {
    fn open(&mut self) -> ConnId;
    fn give(&mut self, conn: ConnId, bytes: &[u8]);
    /// The WebSocket messages that have arrived.
    fn messages(&mut self, conn: ConnId) -> Vec<Bytes>;
    fn close(&mut self, conn: ConnId);
    fn expect_close(&mut self, conn: ConnId);
    fn scan(&mut self, code: &str, phone: &str) -> (Jid, Jid);
    fn trust(&self) -> Trust;
    /// How often to look for something that has not arrived yet.
    fn patience(&self) -> usize;

    fn frames(&mut self, conn: ConnId) -> Vec<Bytes> {
        let messages = self.messages(conn).into_iter();
        messages
            .map(|bytes| {
                let mut reader = FrameReader::new(frame::MAX_FRAME);
                reader.push(&bytes);
                let frame = reader.next().expect("a good frame").expect("a whole frame");
                assert_eq!(reader.buffered(), 0, "one message is one frame");
                frame
            })
            .collect()
    }
}

impl Net for World {
    fn open(&mut self) -> ConnId {
        self.last_conn += 1;
        let conn = ConnId(self.last_conn);
        self.service.connect(conn, self.now);
        self.wires.insert(conn, VecDeque::new());
        conn
    }

    fn give(&mut self, conn: ConnId, bytes: &[u8]) {
        self.service.receive(conn, bytes, self.now);
        self.pump();
    }

    fn messages(&mut self, conn: ConnId) -> Vec<Bytes> {
        self.wires
            .get_mut(&conn)
            .expect("an open wire")
            .drain(..)
            .collect()
    }

    fn close(&mut self, conn: ConnId) {
        self.service.disconnect(conn, self.now);
        self.pump();
    }

    fn expect_close(&mut self, conn: ConnId) {
        self.pass(Micros::from_secs(1));
        assert!(self.closed.contains(&conn));
    }

    fn scan(&mut self, code: &str, phone: &str) -> (Jid, Jid) {
        let scanned = self
            .service
            .scan(code, Some(phone), self.now)
            .expect("scanned");
        self.pump();
        (scanned.jid, scanned.lid)
    }

    fn trust(&self) -> Trust {
        Trust {
            root: self.service.root_public_key(),
            now_unix_secs: self.now.unix.secs(),
        }
    }

    fn patience(&self) -> usize {
        1
    }
}

/// One companion.
pub struct Client {
    pub rng: Rng,
    pub noise: KeyPair,
    pub identity: KeyPair,
    pub signed: (u32, KeyPair, Signature),
    pub registration: u32,
    pub secret: [u8; 32],
    pub jid: Option<Jid>,
    pub lid: Option<Jid>,
    /// The account identity with both signatures.
    pub proof: Vec<u8>,
    pub one_time: BTreeMap<u32, KeyPair>,
    pub sessions: BTreeMap<(String, u16), SessionRecord>,
    pub lids: BTreeMap<String, String>,
    pub server: Option<ServerIdentity>,
    pub conn: Option<ConnId>,
    pub resumed: bool,
    pub inbox: VecDeque<Node>,
    transport: Option<Transport>,
    last_id: u64,
}

impl Client {
    pub fn new(seed: u8) -> Self {
        let mut rng = Rng::from_seed([seed; 32]);
        let (noise, identity, signed) = (
            KeyPair::generate(&mut rng),
            KeyPair::generate(&mut rng),
            KeyPair::generate(&mut rng),
        );
        let signature = identity
            .private
            .sign(&[&signed.public.serialize()], &mut rng);
        Self {
            noise,
            identity,
            signed: (1, signed, signature),
            registration: 0x8000_0000 | u32::from(seed),
            secret: rng.bytes(),
            jid: None,
            lid: None,
            proof: Vec::new(),
            one_time: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lids: BTreeMap::new(),
            server: None,
            conn: None,
            resumed: false,
            inbox: VecDeque::new(),
            transport: None,
            last_id: 0,
            rng,
        }
    }

    /// The same device after it was switched off and on: what it knows of the account and of the service, no sessions.
    pub fn restarted(&self, rng: Rng) -> Self {
        Self {
            rng,
            noise: self.noise.clone(),
            identity: self.identity.clone(),
            signed: self.signed.clone(),
            registration: self.registration,
            secret: self.secret,
            jid: self.jid.clone(),
            lid: self.lid.clone(),
            proof: self.proof.clone(),
            one_time: self.one_time.clone(),
            sessions: BTreeMap::new(),
            lids: BTreeMap::new(),
            server: self.server,
            conn: None,
            resumed: false,
            inbox: VecDeque::new(),
            transport: None,
            last_id: 0,
        }
    }

    /// Paired, logged in, keys uploaded, past the offline phase.
    pub fn online(world: &mut impl Net, seed: u8, phone: &str) -> Self {
        let mut client = Self::new(seed);
        client.pair(world, phone);
        client.login(world);
        client.upload(world, 1..=20);
        client.activate(world);
        client
    }

    pub fn id(&self) -> DeviceId {
        let jid = self.jid.as_ref().expect("paired");
        DeviceId::new(jid.user(), jid.device())
    }

    pub fn user(&self) -> Jid {
        self.jid.as_ref().expect("paired").bare()
    }

    pub fn lid_user(&self) -> Jid {
        self.lid.as_ref().expect("paired").bare()
    }

    // --- connection ---

    /// Connects and shakes hands with `payload`; IK if a server identity is known.
    pub fn connect(&mut self, world: &mut impl Net, payload: &payload::ClientPayload) {
        let conn = world.open();
        let mut bytes = Vec::new();
        frame::connection_header(None, &mut bytes);
        let (handshake, hello) = ClientHandshake::start(
            &self.noise,
            self.server.as_ref(),
            &payload.encode_to_vec(),
            &mut self.rng,
        );
        frame::write_frame(&hello, &mut bytes).expect("short");
        // In two pieces, as a network might.
        let (head, tail) = bytes.split_at(3);
        world.give(conn, head);
        world.give(conn, tail);
        let mut frames = (0..world.patience())
            .map(|_| world.frames(conn))
            .find(|f| !f.is_empty());
        let mut frames = frames.take().unwrap_or_default().into_iter();
        let reply = frames.next().expect("a server hello");
        let done = handshake
            .server_hello(&reply, &world.trust())
            .expect("a good server hello");
        self.resumed = done.resumed;
        self.server = Some(done.server);
        self.transport = Some(done.transport);
        self.conn = Some(conn);
        self.inbox.clear();
        for frame in frames {
            self.take(&frame);
        }
        if let Some(reply) = done.reply {
            let mut bytes = Vec::new();
            frame::write_frame(&reply, &mut bytes).expect("short");
            world.give(conn, &bytes);
        }
        self.read(world);
    }

    fn take(&mut self, frame: &[u8]) {
        let plain = self
            .transport
            .as_mut()
            .expect("connected")
            .open(frame)
            .expect("a frame that opens");
        self.inbox
            .push_back(node::decode_owned(&plain).expect("a good node"));
    }

    /// Everything that has arrived and was not looked for.
    pub fn read(&mut self, world: &mut impl Net) -> &mut VecDeque<Node> {
        let conn = self.conn.expect("connected");
        for frame in world.frames(conn) {
            self.take(&frame);
        }
        &mut self.inbox
    }

    /// The first stanza that is wanted, taken out.
    pub fn find(
        &mut self,
        world: &mut impl Net,
        what: &str,
        wanted: impl Fn(&Node) -> bool,
    ) -> Node {
        for _ in 0..world.patience() {
            self.read(world);
            if let Some(at) = self.inbox.iter().position(&wanted) {
                return self.inbox.remove(at).expect("just found");
            }
        }
        panic!("no {what} among {:?}", self.inbox)
    }

    /// The first stanza with this tag, taken out.
    pub fn expect(&mut self, world: &mut impl Net, tag: &str) -> Node {
        self.find(world, tag, |node| node.tag() == tag)
    }

    /// The ack of what was just sent, taken out.
    pub fn expect_ack(&mut self, world: &mut impl Net, class: &str, id: &str) -> Node {
        self.find(world, "ack", |node| {
            node.tag() == "ack"
                && node.get_str("class") == Some(class)
                && node.get_str("id") == Some(id)
        })
    }

    /// All stanzas with this tag, taken out.
    pub fn all(&mut self, world: &mut impl Net, tag: &str) -> Vec<Node> {
        let nodes = std::mem::take(self.read(world));
        let (found, rest): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.tag() == tag);
        self.inbox = rest.into();
        found
    }

    pub fn send(&mut self, world: &mut impl Net, node: &Node) {
        let mut plain = Vec::new();
        node::encode(node, &mut plain).expect("writable");
        self.send_plain(world, &plain);
    }

    pub fn send_plain(&mut self, world: &mut impl Net, plain: &[u8]) {
        let mut bytes = Vec::new();
        self.transport
            .as_mut()
            .expect("connected")
            .seal(plain, &mut bytes)
            .expect("sealed");
        world.give(self.conn.expect("connected"), &bytes);
    }

    pub fn hang_up(&mut self, world: &mut impl Net) {
        if let Some(conn) = self.conn.take() {
            world.close(conn);
        }
    }

    /// Sends an IQ and returns its answer.
    pub fn iq(
        &mut self,
        world: &mut impl Net,
        kind: &str,
        xmlns: &str,
        children: impl IntoIterator<Item = Node>,
    ) -> Node {
        let id = self.next_id();
        let iq = Node::new("iq")
            .attr("id", id.as_str())
            .attr("type", kind)
            .attr("xmlns", xmlns)
            .attr("to", Jid::service())
            .children(children);
        self.send(world, &iq);
        self.find(world, "answer", |node| {
            node.tag() == "iq" && node.get_str("id") == Some(&id)
        })
    }

    pub fn next_id(&mut self) -> String {
        self.last_id += 1;
        format!("1.2-{}", self.last_id)
    }

    // --- pairing and login ---

    pub fn registration(&self) -> payload::ClientPayload {
        let (id, pair, signature) = &self.signed;
        payload::ClientPayload {
            passive: Some(false),
            pull: Some(false),
            device_pairing_data: Some(payload::DevicePairingRegistrationData {
                e_regid: Some(self.registration.to_be_bytes().to_vec()),
                e_keytype: Some(vec![5]),
                e_ident: Some(self.identity.public.as_bytes().to_vec()),
                e_skey_id: Some(id.to_be_bytes()[1..].to_vec()),
                e_skey_val: Some(pair.public.as_bytes().to_vec()),
                e_skey_sig: Some(signature.as_bytes().to_vec()),
                build_hash: None,
                device_props: None,
            }),
            ..Default::default()
        }
    }

    pub fn login_payload(&self) -> payload::ClientPayload {
        let jid = self.jid.as_ref().expect("paired");
        payload::ClientPayload {
            username: Some(jid.user().parse().expect("digits")),
            device: Some(jid.device().into()),
            passive: Some(true),
            pull: Some(true),
            ..Default::default()
        }
    }

    /// Connects for pairing and returns the codes it would show.
    pub fn show_codes(&mut self, world: &mut impl Net) -> Vec<String> {
        self.server = None;
        let payload = self.registration();
        self.connect(world, &payload);
        let iq = self.expect(world, "iq");
        let refs = iq.find("pair-device").expect("pair-device");
        let keys = [
            self.noise.public.as_bytes(),
            self.identity.public.as_bytes(),
            &self.secret,
        ];
        let keys = keys.map(|key| STANDARD.encode(key)).join(",");
        let codes = refs
            .find_all("ref")
            .map(|node| {
                format!(
                    "{},{keys},1",
                    std::str::from_utf8(node.data().expect("bytes")).expect("text")
                )
            })
            .collect();
        let answer = Node::new("iq")
            .attr("to", Jid::service())
            .attr("type", "result")
            .attr("id", iq.get_str("id").expect("id"));
        self.send(world, &answer);
        codes
    }

    /// The device's half of pairing: checks the offer, signs it, and returns the answer.
    pub fn sign_offer(&mut self, iq: &Node, keep_account_key: bool) -> Node {
        let success = iq.find("pair-success").expect("pair-success");
        let device = success.find("device").expect("device");
        self.jid = device.get_jid("jid");
        self.lid = device.get_jid("lid");
        let container = success
            .find("device-identity")
            .and_then(Node::data)
            .expect("identity");
        let container = adv::AdvSignedDeviceIdentityHmac::decode(container).expect("protobuf");
        let details = container.details.expect("details");
        assert_eq!(
            container.hmac.expect("hmac"),
            hmac_sha256(&self.secret, &[&details])
        );
        let mut identity = adv::AdvSignedDeviceIdentity::decode(&*details).expect("protobuf");
        let (d, a) = (
            identity.details.clone().expect("details"),
            identity.account_signature_key.clone().expect("key"),
        );
        let signature =
            Signature::from_slice(identity.account_signature.as_deref().expect("signature"))
                .expect("64");
        let mine = self.identity.public.as_bytes();
        PublicKey::from_slice(&a)
            .expect("32")
            .verify(&[b"\x06\x00", &d, mine], &signature)
            .expect("account signature");
        let signature = self
            .identity
            .private
            .sign(&[b"\x06\x01", &d, mine, &a], &mut self.rng);
        identity.device_signature = Some(signature.as_bytes().to_vec());
        self.proof = identity.encode_to_vec();
        if !keep_account_key {
            identity.account_signature_key = None;
        }
        let details = adv::AdvDeviceIdentity::decode(&*d).expect("protobuf");
        let identity = Node::new("device-identity")
            .attr("key-index", details.key_index.expect("index"))
            .bytes(identity.encode_to_vec());
        Node::new("iq")
            .attr("to", Jid::service())
            .attr("type", "result")
            .attr("id", iq.get_str("id").expect("id"))
            .child(Node::new("pair-device-sign").child(identity))
    }

    pub fn pair(&mut self, world: &mut impl Net, phone: &str) {
        let code = self.show_codes(world).remove(3);
        let (jid, lid) = world.scan(&code, phone);
        let offer = self.expect(world, "iq");
        let answer = self.sign_offer(&offer, phone.ends_with(['1', '3', '5', '7', '9']));
        assert_eq!(self.jid, Some(jid));
        assert_eq!(self.lid, Some(lid));
        self.send(world, &answer);
        assert_eq!(
            self.expect(world, "stream:error").get_str("code"),
            Some("515")
        );
        let conn = self.conn.take().expect("connected");
        world.expect_close(conn);
    }

    pub fn login(&mut self, world: &mut impl Net) -> Node {
        let payload = self.login_payload();
        self.connect(world, &payload);
        let success = self.expect(world, "success");
        assert_eq!(success.get_jid("lid"), self.lid);
        success
    }

    /// Says `active` and returns what came in the offline phase.
    pub fn activate(&mut self, world: &mut impl Net) -> Vec<Node> {
        let answer = self.iq(world, "set", "passive", [Node::new("active")]);
        assert_eq!(answer.get_str("type"), Some("result"));
        let is_end = |node: &Node| node.tag() == "ib" && node.find("offline").is_some();
        for _ in 0..world.patience() {
            if self.read(world).iter().any(is_end) {
                break;
            }
        }
        let end = self
            .inbox
            .iter()
            .position(is_end)
            .expect("the end of the offline phase");
        let mut phase: Vec<Node> = self.inbox.drain(..=end).collect();
        let preview = phase.remove(0);
        let count = preview
            .find("offline_preview")
            .and_then(|node| node.get_u64("count"))
            .expect("count");
        let end = phase.pop().expect("end");
        assert_eq!(
            end.find("offline").and_then(|node| node.get_u64("count")),
            Some(count)
        );
        assert_eq!(phase.len() as u64, count);
        assert!(phase.iter().all(|node| node.get("offline").is_some()));
        phase
    }

    pub fn relogin(&mut self, world: &mut impl Net) -> Vec<Node> {
        self.login(world);
        self.activate(world)
    }

    // --- keys ---

    pub fn upload(&mut self, world: &mut impl Net, ids: impl IntoIterator<Item = u32>) -> Node {
        for id in ids {
            let pair = KeyPair::generate(&mut self.rng);
            self.one_time.insert(id, pair);
        }
        let iq = self.upload_nodes();
        let answer = self.iq(world, "set", "encrypt", iq);
        assert_eq!(answer.get_str("type"), Some("result"), "{answer:?}");
        answer
    }

    pub fn upload_nodes(&self) -> Vec<Node> {
        let keys = self
            .one_time
            .iter()
            .map(|(id, pair)| key_node("key", *id, &pair.public));
        let (id, pair, signature) = &self.signed;
        let skey = key_node("skey", *id, &pair.public);
        vec![
            Node::new("registration").bytes(self.registration.to_be_bytes().to_vec()),
            Node::new("type").bytes(vec![5]),
            Node::new("identity").bytes(self.identity.public.as_bytes().to_vec()),
            Node::new("list").children(keys.collect::<Vec<_>>()),
            skey.child(Node::new("signature").bytes(signature.as_bytes().to_vec())),
        ]
    }

    /// The devices of users, by usync: (JID as asked, its devices). Learns LIDs.
    pub fn devices_of(&mut self, world: &mut impl Net, users: &[Jid]) -> Vec<Jid> {
        let query = Node::new("query")
            .child(Node::new("devices").attr("version", "2"))
            .child(Node::new("lid"));
        let list =
            Node::new("list").children(users.iter().map(|jid| Node::new("user").attr("jid", jid)));
        let usync = Node::new("usync")
            .attr("sid", "s")
            .attr("mode", "query")
            .attr("last", "true")
            .attr("index", "0")
            .attr("context", "message")
            .child(query)
            .child(list);
        let answer = self.iq(world, "get", "usync", [usync]);
        let mut devices = Vec::new();
        for user in answer
            .path(&["usync", "list"])
            .expect("list")
            .find_all("user")
        {
            let jid = user.get_jid("jid").expect("jid");
            assert!(users.contains(&jid), "echoed as asked");
            let found = user.find("devices").expect("devices");
            for device in found.find("device-list").expect("list").find_all("device") {
                let number = device.get_u64("id").expect("id") as u16;
                assert_eq!(device.get("key-index").is_some(), number > 0);
                devices.push(jid.clone().with_device(number));
            }
            if let Some(lid) = user.find("lid").and_then(|node| node.get_jid("val")) {
                assert!(found.find("key-index-list").and_then(Node::data).is_some());
                self.lids.insert(jid.user().into(), lid.user().into());
            }
        }
        devices
    }

    pub fn bundle(&mut self, world: &mut impl Net, of: &Jid) -> signal::Bundle {
        let user = Node::new("user").attr("jid", of).attr("reason", "identity");
        let answer = self.iq(world, "get", "encrypt", [Node::new("key").child(user)]);
        let user = answer.path(&["list", "user"]).expect("user");
        assert_eq!(user.get_jid("jid").as_ref(), Some(of));
        read_bundle(user, user.find("registration").expect("registration"))
    }

    // --- messages ---

    pub fn address(&self, jid: &Jid) -> (String, u16) {
        let user = self
            .lids
            .get(jid.user())
            .cloned()
            .unwrap_or_else(|| jid.user().to_owned());
        (user, jid.device())
    }

    pub fn encrypt(&mut self, world: &mut impl Net, to: &Jid, message: &[u8]) -> Node {
        let address = self.address(to);
        if !self
            .sessions
            .get(&address)
            .is_some_and(SessionRecord::is_usable)
        {
            let bundle = self.bundle(world, to);
            self.start(&address, &bundle);
        }
        self.seal(&address, message)
    }

    pub fn start(&mut self, address: &(String, u16), bundle: &signal::Bundle) {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: self.registration,
        };
        let record = self.sessions.entry(address.clone()).or_default();
        signal::initiate(record, &local, bundle, &mut self.rng).expect("a good bundle");
    }

    pub fn seal(&mut self, address: &(String, u16), message: &[u8]) -> Node {
        let padded = signal::pad(message, &mut self.rng);
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: self.registration,
        };
        let record = self.sessions.get_mut(address).expect("a session");
        let ciphertext = signal::encrypt(record, &local, &padded).expect("encrypted");
        let kind = if ciphertext.kind == CiphertextKind::PreKey {
            "pkmsg"
        } else {
            "msg"
        };
        Node::new("enc")
            .attr("v", "2")
            .attr("type", kind)
            .bytes(ciphertext.bytes)
    }

    /// The stanza for a text to a user, own copies included.
    pub fn text_stanza(&mut self, world: &mut impl Net, to: &Jid, id: &str, text: &str) -> Node {
        let own = if to.is_lid() {
            self.lid.clone()
        } else {
            self.jid.clone()
        }
        .expect("paired");
        let mut users = vec![to.bare()];
        if own.bare() != to.bare() {
            users.push(own.bare());
        }
        let devices = self.devices_of(world, &users);
        let message = e2e::Message {
            conversation: Some(text.into()),
            ..Default::default()
        }
        .encode_to_vec();
        let copy = e2e::DeviceSentMessage {
            destination_jid: Some(to.to_string()),
            message: Some(message.clone()),
            phash: None,
        };
        let copy = e2e::Message {
            device_sent_message: Some(copy),
            ..Default::default()
        }
        .encode_to_vec();
        let mut participants = Vec::new();
        for device in devices.into_iter().filter(|device| *device != own) {
            let content = if device.same_user(&own) {
                &copy
            } else {
                &message
            };
            let enc = self.encrypt(world, &device, content);
            participants.push(Node::new("to").attr("jid", device).child(enc));
        }
        Node::new("message")
            .attr("to", to)
            .attr("id", id)
            .attr("type", "text")
            .child(Node::new("participants").children(participants))
            .child(Node::new("device-identity").bytes(self.proof.clone()))
    }

    /// Sends a text and returns the ack.
    pub fn text(&mut self, world: &mut impl Net, to: &Jid, id: &str, text: &str) -> Node {
        let stanza = self.text_stanza(world, to, id, text);
        self.send(world, &stanza);
        let ack = self.expect_ack(world, "message", id);
        assert_eq!(ack.get_jid("from").as_ref(), Some(to));
        ack
    }

    /// Decrypts a delivered message and returns its text: of the message itself or of the copy in it.
    pub fn open(&mut self, message: &Node) -> Result<String, signal::DecryptError> {
        let message = self.decrypt(message)?;
        Ok(match message.device_sent_message {
            Some(copy) => {
                e2e::Message::decode(&*copy.message.expect("message"))
                    .expect("protobuf")
                    .conversation
            }
            None => message.conversation,
        }
        .unwrap_or_default())
    }

    /// Decrypts a delivered message.
    pub fn decrypt(&mut self, message: &Node) -> Result<e2e::Message, signal::DecryptError> {
        let from = message.get_jid("from").expect("from");
        if let Some(lid) = message.get_jid("sender_lid") {
            self.lids.insert(from.user().into(), lid.user().into());
        }
        let address = self.address(&from);
        let enc = message.find("enc").expect("enc");
        let bytes = enc.data().expect("bytes");
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: self.registration,
        };
        let record = self.sessions.entry(address).or_default();
        let plain = if enc.get_str("type") == Some("pkmsg") {
            let message = PreKeyMessage::parse(bytes)?;
            let signed = (message.signed_pre_key_id == self.signed.0).then_some(&self.signed.1);
            let one_time = message.pre_key_id.and_then(|id| self.one_time.get(&id));
            signal::decrypt_pre_key(record, &local, &message, signed, one_time, &mut self.rng)?
        } else {
            signal::decrypt(record, &local, bytes, &mut self.rng)?
        };
        let content = signal::unpad(&plain).expect("padding");
        Ok(e2e::Message::decode(content).expect("protobuf"))
    }

    pub fn receipt(&mut self, world: &mut impl Net, message: &Node, kind: Option<&str>) {
        let receipt = Node::new("receipt")
            .attr("id", message.get_str("id").expect("id"))
            .attr("to", message.get_jid("from").expect("from"))
            .attr_opt("recipient", message.get("recipient").cloned())
            .attr_opt("type", kind);
        self.send(world, &receipt);
        self.expect_ack(world, "receipt", message.get_str("id").expect("id"));
    }

    pub fn ack(&mut self, world: &mut impl Net, stanza: &Node) {
        let ack = Node::new("ack")
            .attr("class", stanza.tag())
            .attr("id", stanza.get_str("id").expect("id"))
            .attr("to", stanza.get_jid("from").expect("from"))
            .attr_opt("type", stanza.get("type").cloned());
        self.send(world, &ack);
    }
}

pub fn key_node(tag: &'static str, id: u32, key: &PublicKey) -> Node {
    Node::new(tag)
        .child(Node::new("id").bytes(id.to_be_bytes()[1..].to_vec()))
        .child(Node::new("value").bytes(key.as_bytes().to_vec()))
}

/// Reads the keys of `<user>` or `<keys>`.
pub fn read_bundle(keys: &Node, registration: &Node) -> signal::Bundle {
    let number = |node: &Node| {
        node.data()
            .expect("bytes")
            .iter()
            .fold(0, |n, byte| n << 8 | u32::from(*byte))
    };
    let key = |node: &Node| PublicKey::from_slice(node.data().expect("bytes")).expect("32 bytes");
    let (skey, one_time) = (keys.find("skey").expect("skey"), keys.find("key"));
    signal::Bundle {
        registration_id: number(registration),
        identity: key(keys.find("identity").expect("identity")),
        signed_pre_key_id: number(skey.find("id").expect("id")),
        signed_pre_key: key(skey.find("value").expect("value")),
        signature: Signature::from_slice(
            skey.find("signature")
                .and_then(Node::data)
                .expect("signature"),
        )
        .expect("64"),
        pre_key: one_time.map(|k| {
            (
                number(k.find("id").expect("id")),
                key(k.find("value").expect("value")),
            )
        }),
    }
}
