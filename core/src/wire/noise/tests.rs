//! Whole handshakes between our two sides: the recorded ones byte for byte, the three patterns, and everything that
//! must make them fail. `tests/noise_oracle.rs` sets a Noise library on either side.

use proptest::prelude::*;
use prost::Message as _;
use serde_json::Value;

use super::client::Answer;
use super::symmetric::{Pattern, Symmetric};
use super::*;
use crate::crypto::testing::{bytes, hex, key_pair};
use crate::crypto::{KeyPair, PrivateKey, PublicKey, Rng};
use crate::proto::handshake::{ClientHello, HandshakeMessage, ServerHello};
use crate::wire::frame;

const NOW: i64 = 1_800_000_000;
const PAYLOAD: &[u8] = b"who I am";

/// A device and a service with everything they need, all from one seed.
struct World {
    device: KeyPair,
    service: KeyPair,
    chain: Vec<u8>,
    trust: Trust,
    rng: Rng,
}

impl World {
    fn new(seed: u8) -> Self {
        let mut rng = Rng::from_seed([seed; 32]);
        let [device, service, root, intermediate] =
            std::array::from_fn(|_| KeyPair::generate(&mut rng));
        let (from, until) = (NOW - 1000, NOW + 1000);
        let chain = certificate_chain(&root, &intermediate, &service.public, from, until, &mut rng);
        let trust = Trust {
            root: root.public,
            now_unix_secs: NOW,
        };
        Self {
            device,
            service,
            chain,
            trust,
            rng,
        }
    }

    fn identity(&self) -> ServerIdentity {
        verify_chain(&self.chain, &self.service.public, &self.trust).unwrap()
    }

    fn start(&mut self, resume: Option<&ServerIdentity>) -> (ClientHandshake, Vec<u8>) {
        ClientHandshake::start(&self.device, resume, PAYLOAD, &mut self.rng)
    }

    fn answer(&mut self, hello: &[u8]) -> Result<ServerReply, NoiseError> {
        ServerHandshake::client_hello(&self.service, &self.chain, hello, &mut self.rng)
    }

    /// An XX or XXfallback up to where the device has the service's answer in hand.
    fn await_finish(
        &mut self,
        resume: Option<&ServerIdentity>,
    ) -> (ClientHandshake, Vec<u8>, ServerFinish) {
        let (device, hello) = self.start(resume);
        let ServerReply::AwaitFinish { reply, state } = self.answer(&hello).unwrap() else {
            panic!("resumed");
        };
        (device, reply, state)
    }

    fn resume(&mut self) -> (ClientHandshake, Vec<u8>, Transport) {
        let identity = self.identity();
        let (device, hello) = self.start(Some(&identity));
        let ServerReply::Resumed {
            reply,
            transport,
            client_static,
            payload,
        } = self.answer(&hello).unwrap()
        else {
            panic!("refused");
        };
        assert_eq!(
            (client_static, payload.as_slice()),
            (self.device.public, PAYLOAD)
        );
        (device, reply, transport)
    }
}

/// Both directions, twice.
fn assert_connected(device: &mut Transport, service: &mut Transport) {
    for text in [b"first".as_slice(), b"second"] {
        let mut out = Vec::new();
        device.seal(text, &mut out).unwrap();
        assert_eq!(service.open(&out[3..]).unwrap(), text);
        out.clear();
        service.seal(text, &mut out).unwrap();
        assert_eq!(device.open(&out[3..]).unwrap(), text);
    }
}

fn pair(byte: u8) -> KeyPair {
    KeyPair::from_private(PrivateKey::from_bytes([byte; 32]))
}

fn server_hello(message: &[u8]) -> ServerHello {
    HandshakeMessage::decode(message)
        .unwrap()
        .server_hello
        .unwrap()
}

/// Chapter 01.6.1, from the first byte on the wire to the first frames.
#[test]
fn xx_of_chapter_01() {
    let (ce, cs, se, ss) = (pair(0x11), pair(0x22), pair(0x33), pair(0x44));
    let (client, hello) =
        ClientHandshake::start_with(ce.clone(), &cs, None, b"CLIENT-PAYLOAD-PLACEHOLDER");
    let mut wire = Vec::new();
    frame::connection_header(None, &mut wire);
    frame::write_frame(&hello, &mut wire).unwrap();
    assert_eq!(
        wire,
        hex(
            "5741060300002412220a207b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"
        )
    );

    let reply =
        ServerHandshake::client_hello_with(se, &ss, b"CERT-CHAIN-PLACEHOLDER", &hello).unwrap();
    let ServerReply::AwaitFinish { reply, state } = reply else {
        panic!("resumed")
    };
    let answer = server_hello(&reply);
    assert_eq!(
        answer.r#static(),
        hex(
            "76c390387466635d58f0323bdcbe69099601a1a274074852c87a5a56adbc2200326ad89abf7d0428235760e33dfb7358"
        )
    );
    assert_eq!(
        answer.payload(),
        hex("61b8c7d4810b8233dcc691c05d04ec15a4f1e06dada99c0e8dfdd6a01f972f4e113b5d08c73c")
    );
    // The placeholder is no chain, and the public way stops there.
    let trust = Trust {
        root: WHATSAPP_ROOT,
        now_unix_secs: NOW,
    };
    let refused = client.server_hello(&reply, &trust).unwrap_err();
    assert_eq!(
        refused,
        NoiseError::Certificate(CertificateError::Undecodable)
    );

    let xx = super::client::after_client_ephemeral(Pattern::Xx, &ce.public);
    let answer = Answer::read(xx, &ce, &answer).unwrap();
    assert_eq!(
        (answer.server_static, answer.chain.as_slice()),
        (ss.public, b"CERT-CHAIN-PLACEHOLDER".as_slice())
    );
    let (mut device, finish) = answer.finish(&cs, b"CLIENT-PAYLOAD-PLACEHOLDER").unwrap();
    let (mut service, who, payload) = state.client_finish(&finish).unwrap();
    assert_eq!(
        (who, payload.as_slice()),
        (cs.public, b"CLIENT-PAYLOAD-PLACEHOLDER".as_slice())
    );

    let mut out = Vec::new();
    device
        .seal(&hex("00f8091908ff0426b183a11657042911fa0003"), &mut out)
        .unwrap();
    assert_eq!(
        out,
        hex("0000231b6087c7900c1b5b38e2863613f4e1f30fe4c03fc96331ab00b2fab111a1a56d8651a5")
    );
    service.open(&out[3..]).unwrap();
    out.clear();
    service.seal(&hex("00f8039d70ff82515f"), &mut out).unwrap();
    assert_eq!(
        out,
        hex("0000197351e6e17571abbd492bf45973f1b4ada5545edbe0ad5ca7a4")
    );
    device.open(&out[3..]).unwrap();
}

/// `noise-xx.json`: another client's messages, and our service at the other end of them.
#[test]
fn recorded_messages() {
    let vector: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/noise-xx.json")).unwrap();
    let key = |name: &str| key_pair(&vector[name]);
    let (ce, cs, se, ss) = (
        key("client_ephemeral"),
        key("client_static"),
        key("server_ephemeral"),
        key("server_static"),
    );
    let (chain, payload) = (
        bytes(&vector["server_payload_plaintext"]),
        bytes(&vector["client_payload_plaintext"]),
    );

    let (_, hello) = ClientHandshake::start_with(ce.clone(), &cs, None, &payload);
    assert_eq!(hello, bytes(&vector["client_hello_handshake_message"]));
    let reply = ServerHandshake::client_hello_with(se, &ss, &chain, &hello).unwrap();
    let ServerReply::AwaitFinish { reply, state } = reply else {
        panic!("resumed")
    };
    let answer = server_hello(&reply);
    assert_eq!(
        answer.ephemeral(),
        bytes(&vector["server_hello"]["ephemeral"])
    );
    assert_eq!(
        answer.r#static(),
        bytes(&vector["server_hello"]["static_ciphertext"])
    );
    assert_eq!(
        answer.payload(),
        bytes(&vector["server_hello"]["payload_ciphertext"])
    );

    let xx = super::client::after_client_ephemeral(Pattern::Xx, &ce.public);
    let (_, finish) = Answer::read(xx, &ce, &answer)
        .unwrap()
        .finish(&cs, &payload)
        .unwrap();
    assert_eq!(finish, bytes(&vector["client_finish_handshake_message"]));
    let (mut service, who, got) = state.client_finish(&finish).unwrap();
    assert_eq!((who, got), (cs.public, payload));
    for recorded in vector["client_frames"].as_array().unwrap() {
        assert_eq!(
            service.open(&bytes(&recorded["ciphertext"])).unwrap(),
            bytes(&recorded["plaintext"])
        );
    }
}

#[test]
fn a_stranger_by_xx_then_a_friend_by_ik() {
    let mut world = World::new(1);
    let (device, reply, state) = world.await_finish(None);
    let mut met = device.server_hello(&reply, &world.trust).unwrap();
    assert!(!met.resumed);
    assert_eq!(met.server, world.identity());
    let (mut service, who, payload) = state.client_finish(&met.reply.unwrap()).unwrap();
    assert_eq!((who, payload.as_slice()), (world.device.public, PAYLOAD));
    assert_connected(&mut met.transport, &mut service);

    let (device, reply, mut service) = world.resume();
    assert!(server_hello(&reply).r#static.is_none());
    let mut again = device.server_hello(&reply, &world.trust).unwrap();
    assert!(again.resumed);
    assert_eq!((again.reply, again.server), (None, met.server));
    assert_connected(&mut again.transport, &mut service);
}

#[test]
fn a_service_with_a_new_key_pivots_to_xxfallback() {
    let mut world = World::new(2);
    let old = ServerIdentity {
        static_key: pair(9).public,
        ..world.identity()
    };
    let (device, reply, state) = world.await_finish(Some(&old));
    assert!(server_hello(&reply).r#static.is_some());
    let mut met = device.server_hello(&reply, &world.trust).unwrap();
    assert!(!met.resumed);
    assert_eq!(met.server, world.identity());
    let (mut service, who, payload) = state.client_finish(&met.reply.unwrap()).unwrap();
    assert_eq!((who, payload.as_slice()), (world.device.public, PAYLOAD));
    assert_connected(&mut met.transport, &mut service);
}

/// Chapter 01.12, trap 8: the name of the protocol is part of the hash.
#[test]
fn plain_xx_is_no_answer_to_ik() {
    let mut world = World::new(3);
    let identity = world.identity();
    let (device, hello) = world.start(Some(&identity));
    let mut only_ephemeral = HandshakeMessage::decode(hello.as_slice()).unwrap();
    let fields = only_ephemeral.client_hello.as_mut().unwrap();
    (fields.r#static, fields.payload) = (None, None);
    let ServerReply::AwaitFinish { reply, .. } =
        world.answer(&only_ephemeral.encode_to_vec()).unwrap()
    else {
        panic!("resumed");
    };
    let error = device.server_hello(&reply, &world.trust).unwrap_err();
    assert_eq!(error, NoiseError::Sealed(Part::ServerStatic));
}

#[test]
fn a_key_that_nobody_vouches_for_is_refused() {
    let mut world = World::new(4);
    let elsewhere = Trust {
        root: WHATSAPP_ROOT,
        ..world.trust
    };
    let (device, reply, _) = world.await_finish(None);
    let error = device.server_hello(&reply, &elsewhere).unwrap_err();
    assert_eq!(
        error,
        NoiseError::Certificate(CertificateError::BadSignature(Certificate::Intermediate))
    );

    // Somebody who replays the service's chain with a key of his own.
    world.service = pair(9);
    let (device, reply, _) = world.await_finish(None);
    let error = device.server_hello(&reply, &world.trust).unwrap_err();
    assert_eq!(
        error,
        NoiseError::Certificate(CertificateError::WrongKey(Certificate::Leaf))
    );
}

#[test]
fn nobody_resumes_with_an_expired_certificate() {
    let mut world = World::new(5);
    let (device, reply, _) = world.resume();
    let late = Trust {
        now_unix_secs: NOW + 1001,
        ..world.trust
    };
    let error = device.server_hello(&reply, &late).unwrap_err();
    assert_eq!(
        error,
        NoiseError::Certificate(CertificateError::Expired(Certificate::Intermediate))
    );
}

/// A cached key of low order cannot come from a service; XX finds out who it is.
#[test]
fn a_useless_identity_falls_back_to_xx() {
    let mut world = World::new(6);
    let useless = ServerIdentity {
        static_key: PublicKey::from_bytes([0; 32]),
        ..world.identity()
    };
    let (device, reply, _) = world.await_finish(Some(&useless));
    assert!(!device.server_hello(&reply, &world.trust).unwrap().resumed);
}

/// The list at the end of chapter 01.6, and the checks recommended for a service.
#[test]
fn ill_formed_messages_are_refused() {
    let mut world = World::new(7);
    let trust = world.trust;
    let mut to_device = |change: &dyn Fn(&mut ServerHello)| {
        let (device, reply, _) = world.await_finish(None);
        let mut message = HandshakeMessage::decode(reply.as_slice()).unwrap();
        change(message.server_hello.as_mut().unwrap());
        device
            .server_hello(&message.encode_to_vec(), &trust)
            .unwrap_err()
    };
    let ephemeral = NoiseError::Malformed("server ephemeral");
    assert_eq!(to_device(&|hello| hello.ephemeral = None), ephemeral);
    assert_eq!(
        to_device(&|hello| hello.ephemeral = Some(vec![5; 31])),
        ephemeral
    );
    assert_eq!(
        to_device(&|hello| hello.ephemeral = Some(vec![0; 32])),
        NoiseError::LowOrder
    );
    assert_eq!(
        to_device(&|hello| hello.r#static = None),
        NoiseError::Malformed("server static")
    );
    assert_eq!(
        to_device(&|hello| hello.r#static = Some(vec![])),
        NoiseError::Sealed(Part::ServerStatic)
    );
    assert_eq!(
        to_device(&|hello| hello.payload = None),
        NoiseError::Malformed("server payload")
    );
    assert_eq!(
        to_device(&|hello| hello.payload = Some(vec![0; 15])),
        NoiseError::Sealed(Part::CertificateChain)
    );
    assert_eq!(
        to_device(&|hello| hello.payload = Some(vec![0; 99])),
        NoiseError::Sealed(Part::CertificateChain)
    );

    let missing = NoiseError::Malformed("server hello");
    assert_eq!(
        world.start(None).0.server_hello(&[], &trust).unwrap_err(),
        missing
    );
    assert_eq!(
        world
            .start(None)
            .0
            .server_hello(&[0xff], &trust)
            .unwrap_err(),
        missing
    );

    let mut to_service = |hello: Option<ClientHello>| {
        let message = HandshakeMessage {
            client_hello: hello,
            ..Default::default()
        };
        world.answer(&message.encode_to_vec()).unwrap_err()
    };
    let hello = |ephemeral: Vec<u8>| ClientHello {
        ephemeral: Some(ephemeral),
        ..Default::default()
    };
    let good = pair(3).public.as_bytes().to_vec();
    assert_eq!(to_service(None), NoiseError::Malformed("client hello"));
    assert_eq!(
        to_service(Some(ClientHello::default())),
        NoiseError::Malformed("client ephemeral")
    );
    assert_eq!(
        to_service(Some(hello(vec![5; 33]))),
        NoiseError::Malformed("client ephemeral")
    );
    assert_eq!(to_service(Some(hello(vec![0; 32]))), NoiseError::LowOrder);
    let without_static = ClientHello {
        payload: Some(vec![0; 32]),
        ..hello(good.clone())
    };
    assert_eq!(
        to_service(Some(without_static)),
        NoiseError::Malformed("client static")
    );
    let without_payload = ClientHello {
        r#static: Some(vec![0; 48]),
        ..hello(good)
    };
    assert_eq!(
        to_service(Some(without_payload)),
        NoiseError::Malformed("client payload")
    );
    let (_, _, state) = world.await_finish(None);
    assert_eq!(
        state.client_finish(&[]).unwrap_err(),
        NoiseError::Malformed("client finish")
    );
}

/// Keys of a wrong length under a good seal: only a service or a device that misbehaves could send them.
#[test]
fn sealed_keys_of_a_wrong_length_are_refused() {
    let world = World::new(8);
    for length in [0, 31, 33] {
        let ephemeral = pair(1);
        let (device, _) =
            ClientHandshake::start_with(ephemeral.clone(), &world.device, None, PAYLOAD);
        let service = pair(2);
        let mut state = super::client::after_client_ephemeral(Pattern::Xx, &ephemeral.public);
        state.mix_hash(service.public.as_bytes());
        state.mix_key(&service.private, &ephemeral.public).unwrap();
        let hello = ServerHello {
            ephemeral: Some(service.public.as_bytes().to_vec()),
            r#static: Some(state.seal(&vec![7; length])),
            payload: Some(vec![0; 40]),
        };
        let message = HandshakeMessage {
            server_hello: Some(hello),
            ..Default::default()
        }
        .encode_to_vec();
        let error = device.server_hello(&message, &world.trust).unwrap_err();
        assert_eq!(error, NoiseError::Malformed("server static"));

        let mut state = Symmetric::new(Pattern::Ik);
        state.mix_hash(world.service.public.as_bytes());
        state.mix_hash(ephemeral.public.as_bytes());
        state
            .mix_key(&ephemeral.private, &world.service.public)
            .unwrap();
        let hello = ClientHello {
            ephemeral: Some(ephemeral.public.as_bytes().to_vec()),
            r#static: Some(state.seal(&vec![7; length])),
            payload: Some(vec![0; 40]),
        };
        let message = HandshakeMessage {
            client_hello: Some(hello),
            ..Default::default()
        }
        .encode_to_vec();
        let error =
            ServerHandshake::client_hello_with(service, &world.service, &world.chain, &message)
                .unwrap_err();
        assert_eq!(error, NoiseError::Malformed("client static"));
    }
}

/// Every byte of every message of XX, with a low and a high bit changed.
#[test]
fn xx_notices_every_changed_byte() {
    let every_byte = |message: &[u8]| {
        let message = message.to_vec();
        (0..message.len())
            .flat_map(move |at| [0x01, 0x80].map(|bit| (at, bit)))
            .map(move |(at, bit)| {
                let mut changed = message.clone();
                changed[at] ^= bit;
                (at, changed)
            })
    };
    let play = |meddle: &dyn Fn(usize, &mut Vec<u8>)| {
        let mut world = World::new(9);
        let (device, mut hello) = world.start(None);
        meddle(0, &mut hello);
        let ServerReply::AwaitFinish { mut reply, state } = world.answer(&hello)? else {
            panic!("resumed")
        };
        meddle(1, &mut reply);
        let mut finish = device.server_hello(&reply, &world.trust)?.reply.unwrap();
        meddle(2, &mut finish);
        state.client_finish(&finish)
    };
    let messages = std::cell::RefCell::new(Vec::new());
    play(&|_, message| messages.borrow_mut().push(message.clone())).unwrap();
    for (number, message) in messages.into_inner().iter().enumerate() {
        for (at, changed) in every_byte(message) {
            let result = play(&|n, message| {
                if n == number {
                    message.clone_from(&changed);
                }
            });
            assert!(result.is_err(), "message {number}, byte {at}");
        }
    }
}

/// IK as well, with one exception that is Noise's own: whoever changes the device's sealed key makes the service
/// answer by XXfallback, which is a good handshake, only longer.
#[test]
fn ik_notices_every_changed_byte_or_falls_back() {
    let mut fallbacks = 0;
    let mut world = World::new(10);
    let identity = world.identity();
    let (_, hello) = world.start(Some(&identity));
    for at in 0..hello.len() {
        let (device, mut hello) = world.start(Some(&identity));
        hello[at] ^= 1;
        match world.answer(&hello) {
            Ok(ServerReply::Resumed { .. }) => panic!("byte {at} is not authenticated"),
            Ok(ServerReply::AwaitFinish { reply, state }) => {
                let Ok(mut met) = device.server_hello(&reply, &world.trust) else {
                    continue;
                };
                assert!(!met.resumed);
                let (mut service, who, payload) = state.client_finish(&met.reply.unwrap()).unwrap();
                assert_eq!((who, payload.as_slice()), (world.device.public, PAYLOAD));
                assert_connected(&mut met.transport, &mut service);
                fallbacks += 1;
            }
            Err(_) => {}
        }
    }
    assert_eq!(fallbacks, 48, "the sealed key, and nothing else");

    let (_, reply, _) = world.resume();
    for at in 0..reply.len() {
        for bit in [0x01, 0x80] {
            let (device, mut reply, _) = world.resume();
            reply[at] ^= bit;
            assert!(
                device.server_hello(&reply, &world.trust).is_err(),
                "byte {at}"
            );
        }
    }
}

#[test]
fn debug_shows_no_keys() {
    let mut world = World::new(11);
    let (device, reply, state) = world.await_finish(None);
    let secret = |key: &KeyPair| {
        format!("{:?}", &key.private.to_bytes()[..4])
            .trim_matches(['[', ']'])
            .to_owned()
    };
    let shown = format!("{device:?} {state:?}");
    assert!(
        !shown.contains(&secret(&world.device)) && !shown.contains(&secret(&world.service)),
        "{shown}"
    );
    let met = device.server_hello(&reply, &world.trust).unwrap();
    assert_eq!(
        format!("{:?}", met.transport),
        "Transport { outgoing: Direction { counter: 0, .. }, incoming: Direction { counter: 0, .. } }"
    );
}

fn maybe_bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::of(prop_oneof![
        prop::collection::vec(any::<u8>(), 32),
        prop::collection::vec(any::<u8>(), 48),
        prop::collection::vec(any::<u8>(), 0..200),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_messages_never_panic(message: Vec<u8>) {
        let mut world = World::new(12);
        let identity = world.identity();
        prop_assert!(world.start(None).0.server_hello(&message, &world.trust).is_err());
        prop_assert!(world.start(Some(&identity)).0.server_hello(&message, &world.trust).is_err());
        prop_assert!(world.answer(&message).is_err());
        prop_assert!(world.await_finish(None).2.client_finish(&message).is_err());
    }

    #[test]
    fn arbitrary_fields_never_panic(ephemeral in maybe_bytes(), r#static in maybe_bytes(), payload in maybe_bytes()) {
        let mut world = World::new(13);
        let identity = world.identity();
        let hello = ServerHello { ephemeral: ephemeral.clone(), r#static: r#static.clone(), payload: payload.clone() };
        let message = HandshakeMessage { server_hello: Some(hello), ..Default::default() }.encode_to_vec();
        prop_assert!(world.start(None).0.server_hello(&message, &world.trust).is_err());
        prop_assert!(world.start(Some(&identity)).0.server_hello(&message, &world.trust).is_err());
        // A service answers any good-looking ephemeral, but resumes nobody.
        let hello = ClientHello { ephemeral, r#static, payload };
        let message = HandshakeMessage { client_hello: Some(hello), ..Default::default() }.encode_to_vec();
        let resumed = matches!(world.answer(&message), Ok(ServerReply::Resumed { .. }));
        prop_assert!(!resumed);
    }
}
