//! Our handshakes against a Noise library: snow on one side, ours on the other, in both roles of every pattern.
//!
//! IK is the specification's, so snow speaks it as it is. For XX and XXfallback WhatsApp leaves out the MixHash of
//! message 1's empty payload; here snow is made to leave it out as well, by a hash function for which hashing nothing
//! into a state gives the state back. What the patterns mean, in which order and under which keys, stays snow's word
//! against ours. The primitives are not on trial here: they have vectors of their own.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use baton_core::crypto::{KeyPair, PublicKey, Rng};
use baton_core::proto::handshake::{ClientFinish, ClientHello, HandshakeMessage, ServerHello};
use baton_core::wire::frame::PROLOGUE;
use baton_core::wire::noise::{
    ClientHandshake, NoiseError, Part, ServerHandshake, ServerIdentity, ServerReply, Transport,
    Trust, certificate_chain, verify_chain,
};
use prost::Message as _;
use sha2::{Digest, Sha256};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, TransportState};

const NOW: i64 = 1_800_000_000;
const PAYLOAD: &[u8] = b"who I am";

#[test]
fn our_device_resumes_with_snow() {
    let mut world = World::new(1);
    let identity = world.identity();
    let (device, hello) =
        ClientHandshake::start(&world.device, Some(&identity), PAYLOAD, &mut world.rng);
    let hello = client_hello(&hello);

    let mut service = world
        .snow("IK", Dialect::Specification)
        .service(&world.service);
    let message = [hello.ephemeral(), hello.r#static(), hello.payload()].concat();
    assert_eq!(read(&mut service, &message), PAYLOAD);
    assert_eq!(
        service.get_remote_static(),
        Some(world.device.public.as_bytes().as_slice())
    );
    let (ephemeral, chain) = write_cut(&mut service, &world.chain, 32);
    let reply = ServerHello {
        ephemeral: Some(ephemeral),
        r#static: None,
        payload: Some(chain),
    };

    let mut met = device
        .server_hello(&server_message(reply), &world.trust)
        .unwrap();
    assert!(met.resumed && met.reply.is_none());
    assert_connected(&mut met.transport, service.into_transport_mode().unwrap());
}

#[test]
fn snow_resumes_with_our_service() {
    let mut world = World::new(2);
    let mut device = world
        .snow("IK", Dialect::Specification)
        .device(&world.device, Some(&world.service.public));
    let message = write(&mut device, PAYLOAD);
    let (ephemeral, rest) = message.split_at(32);
    let (sealed_static, payload) = rest.split_at(48);
    let hello = hello_message(ephemeral, Some((sealed_static, payload)));
    let ServerReply::Resumed {
        reply,
        mut transport,
        client_static,
        payload,
    } = ServerHandshake::client_hello(&world.service, &world.chain, &hello, &mut world.rng)
        .unwrap()
    else {
        panic!("refused");
    };
    assert_eq!(
        (client_static, payload.as_slice()),
        (world.device.public, PAYLOAD)
    );

    let reply = server_hello(&reply);
    assert!(reply.r#static.is_none());
    assert_eq!(
        read(&mut device, &[reply.ephemeral(), reply.payload()].concat()),
        world.chain
    );
    assert_connected(&mut transport, device.into_transport_mode().unwrap());
}

#[test]
fn our_device_meets_snow_by_xx() {
    let mut world = World::new(3);
    let (device, hello) = ClientHandshake::start(&world.device, None, PAYLOAD, &mut world.rng);
    let service = world.snow("XX", Dialect::WhatsApp).service(&world.service);
    finish_with_snow_service(&world, device, &hello, service);
}

#[test]
fn snow_meets_our_service_by_xx() {
    let mut world = World::new(4);
    let mut device = world
        .snow("XX", Dialect::WhatsApp)
        .device(&world.device, None);
    let hello = hello_message(&write(&mut device, &[]), None);
    finish_with_snow_device(&mut world, device, &hello);
}

#[test]
fn our_device_falls_back_with_snow() {
    let mut world = World::new(5);
    let stale = ServerIdentity {
        static_key: KeyPair::generate(&mut world.rng).public,
        ..world.identity()
    };
    let (device, hello) =
        ClientHandshake::start(&world.device, Some(&stale), PAYLOAD, &mut world.rng);

    // The service's key is another now.
    let mut service = world
        .snow("IK", Dialect::Specification)
        .service(&world.service);
    let fields = client_hello(&hello);
    let message = [fields.ephemeral(), fields.r#static(), fields.payload()].concat();
    assert_eq!(
        service.read_message(&message, &mut [0; 1024]),
        Err(snow::Error::Decrypt)
    );

    let service = world
        .snow("XXfallback", Dialect::WhatsApp)
        .service(&world.service);
    finish_with_snow_service(&world, device, &hello, service);
}

#[test]
fn snow_falls_back_with_our_service() {
    let mut world = World::new(6);
    let stale = KeyPair::generate(&mut world.rng).public;
    // One ephemeral for the attempt and for the fallback.
    let ephemeral = KeyPair::generate(&mut world.rng).private.to_bytes();
    let mut attempt = world.snow("IK", Dialect::Specification).device_with(
        &world.device,
        Some(&stale),
        Some(&*ephemeral),
    );
    let message = write(&mut attempt, PAYLOAD);
    let (public, rest) = message.split_at(32);
    let hello = hello_message(public, Some(rest.split_at(48)));

    let mut device = world.snow("XXfallback", Dialect::WhatsApp).device_with(
        &world.device,
        None,
        Some(&*ephemeral),
    );
    assert_eq!(write(&mut device, &[]), public);
    finish_with_snow_device(&mut world, device, &hello);
}

/// Why snow needs that hash function: as it is, it cannot talk to WhatsApp (01.5).
#[test]
fn the_specifications_xx_is_not_whatsapps() {
    let mut world = World::new(7);
    let (device, hello) = ClientHandshake::start(&world.device, None, PAYLOAD, &mut world.rng);
    let mut service = world
        .snow("XX", Dialect::Specification)
        .service(&world.service);
    assert_eq!(read(&mut service, client_hello(&hello).ephemeral()), []);
    let reply = snow_server_hello(&mut service, &world.chain);
    let error = device.server_hello(&reply, &world.trust).unwrap_err();
    assert_eq!(error, NoiseError::Sealed(Part::ServerStatic));
}

/// XX and XXfallback from the device's first message on, snow being the service.
fn finish_with_snow_service(
    world: &World,
    device: ClientHandshake,
    hello: &[u8],
    mut service: HandshakeState,
) {
    assert_eq!(read(&mut service, client_hello(hello).ephemeral()), []);
    let reply = snow_server_hello(&mut service, &world.chain);
    let mut met = device.server_hello(&reply, &world.trust).unwrap();
    assert!(!met.resumed);
    assert_eq!(met.server, world.identity());

    let finish = HandshakeMessage::decode(met.reply.unwrap().as_slice())
        .unwrap()
        .client_finish
        .unwrap();
    assert_eq!(
        read(
            &mut service,
            &[finish.r#static(), finish.payload()].concat()
        ),
        PAYLOAD
    );
    assert_eq!(
        service.get_remote_static(),
        Some(world.device.public.as_bytes().as_slice())
    );
    assert_connected(&mut met.transport, service.into_transport_mode().unwrap());
}

/// XX and XXfallback from the device's first message on, snow being the device.
fn finish_with_snow_device(world: &mut World, mut device: HandshakeState, hello: &[u8]) {
    let ServerReply::AwaitFinish { reply, state } =
        ServerHandshake::client_hello(&world.service, &world.chain, hello, &mut world.rng).unwrap()
    else {
        panic!("resumed");
    };
    let reply = server_hello(&reply);
    let message = [reply.ephemeral(), reply.r#static(), reply.payload()].concat();
    assert_eq!(read(&mut device, &message), world.chain);
    assert_eq!(
        device.get_remote_static(),
        Some(world.service.public.as_bytes().as_slice())
    );

    let (sealed_static, payload) = write_cut(&mut device, PAYLOAD, 48);
    let finish = ClientFinish {
        r#static: Some(sealed_static),
        payload: Some(payload),
    };
    let message = HandshakeMessage {
        client_finish: Some(finish),
        ..Default::default()
    }
    .encode_to_vec();
    let (mut transport, who, payload) = state.client_finish(&message).unwrap();
    assert_eq!((who, payload.as_slice()), (world.device.public, PAYLOAD));
    assert_connected(&mut transport, device.into_transport_mode().unwrap());
}

fn assert_connected(ours: &mut Transport, mut snow: TransportState) {
    let mut buffer = [0; 1024];
    for text in [b"first".as_slice(), b"second"] {
        let mut frame = Vec::new();
        ours.seal(text, &mut frame).unwrap();
        let length = snow.read_message(&frame[3..], &mut buffer).unwrap();
        assert_eq!(&buffer[..length], text);
        let length = snow.write_message(text, &mut buffer).unwrap();
        assert_eq!(ours.open(&buffer[..length]).unwrap(), text);
    }
}

// Messages: Noise's are one string, WhatsApp's are protobufs of the same parts.

fn client_hello(message: &[u8]) -> ClientHello {
    HandshakeMessage::decode(message)
        .unwrap()
        .client_hello
        .unwrap()
}

fn server_hello(message: &[u8]) -> ServerHello {
    HandshakeMessage::decode(message)
        .unwrap()
        .server_hello
        .unwrap()
}

fn server_message(hello: ServerHello) -> Vec<u8> {
    HandshakeMessage {
        server_hello: Some(hello),
        ..Default::default()
    }
    .encode_to_vec()
}

fn hello_message(ephemeral: &[u8], sealed: Option<(&[u8], &[u8])>) -> Vec<u8> {
    let hello = ClientHello {
        ephemeral: Some(ephemeral.to_vec()),
        r#static: sealed.map(|(r#static, _)| r#static.to_vec()),
        payload: sealed.map(|(_, payload)| payload.to_vec()),
    };
    HandshakeMessage {
        client_hello: Some(hello),
        ..Default::default()
    }
    .encode_to_vec()
}

fn snow_server_hello(service: &mut HandshakeState, chain: &[u8]) -> Vec<u8> {
    let (ephemeral, rest) = write_cut(service, chain, 32);
    let (sealed_static, payload) = rest.split_at(48);
    server_message(ServerHello {
        ephemeral: Some(ephemeral),
        r#static: Some(sealed_static.to_vec()),
        payload: Some(payload.to_vec()),
    })
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; 1024];
    let length = state.read_message(message, &mut payload).unwrap();
    payload.truncate(length);
    payload
}

fn write(state: &mut HandshakeState, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 1024];
    let length = state.write_message(payload, &mut message).unwrap();
    message.truncate(length);
    message
}

fn write_cut(state: &mut HandshakeState, payload: &[u8], at: usize) -> (Vec<u8>, Vec<u8>) {
    let mut message = write(state, payload);
    let rest = message.split_off(at);
    (message, rest)
}

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
        let chain = certificate_chain(&root, &intermediate, &service.public, NOW, NOW, &mut rng);
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

    fn snow(&mut self, name: &str, dialect: Dialect) -> Snow {
        // snow refuses the name XXfallback, but takes a name and a pattern that are strangers to each other.
        let pattern = if name == "IK" { "IK" } else { "XX" };
        let mut params: NoiseParams = format!("Noise_{pattern}_25519_AESGCM_SHA256")
            .parse()
            .unwrap();
        params.name = format!("Noise_{name}_25519_AESGCM_SHA256");
        Snow {
            params,
            resolver: Resolver {
                dialect,
                seed: self.rng.bytes(),
            },
        }
    }
}

/// A handshake of snow's, still without a role.
struct Snow {
    params: NoiseParams,
    resolver: Resolver,
}

impl Snow {
    fn device(self, key: &KeyPair, service: Option<&PublicKey>) -> HandshakeState {
        self.device_with(key, service, None)
    }

    fn device_with(
        self,
        key: &KeyPair,
        service: Option<&PublicKey>,
        ephemeral: Option<&[u8; 32]>,
    ) -> HandshakeState {
        let private = key.private.to_bytes();
        let mut builder = Builder::with_resolver(self.params, Box::new(self.resolver))
            .prologue(&PROLOGUE)
            .and_then(|builder| builder.local_private_key(&*private))
            .unwrap();
        if let Some(service) = service {
            builder = builder.remote_public_key(service.as_bytes()).unwrap();
        }
        if let Some(ephemeral) = ephemeral {
            builder = builder.fixed_ephemeral_key_for_testing_only(ephemeral);
        }
        builder.build_initiator().unwrap()
    }

    fn service(self, key: &KeyPair) -> HandshakeState {
        let private = key.private.to_bytes();
        Builder::with_resolver(self.params, Box::new(self.resolver))
            .prologue(&PROLOGUE)
            .and_then(|builder| builder.local_private_key(&*private))
            .and_then(Builder::build_responder)
            .unwrap()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    Specification,
    WhatsApp,
}

/// The primitives for snow, straight from their crates.
struct Resolver {
    dialect: Dialect,
    seed: [u8; 32],
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Seeded(Rng::from_seed(self.seed))))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(X25519 {
            private: [0; 32],
            public: [0; 32],
        }))
    }

    fn resolve_hash(&self, _: &HashChoice) -> Option<Box<dyn Hash>> {
        Some(Box::new(Sha {
            dialect: self.dialect,
            inputs: Vec::new(),
        }))
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::new(Gcm([0; 32])))
    }
}

struct Seeded(Rng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill(dest);
        Ok(())
    }
}

struct X25519 {
    private: [u8; 32],
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        self.private.copy_from_slice(privkey);
        self.public = x25519_dalek::x25519(self.private, x25519_dalek::X25519_BASEPOINT_BYTES);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = [0; 32];
        rng.try_fill_bytes(&mut private)?;
        self.set(&private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public = pubkey[..32].try_into().unwrap();
        out[..32].copy_from_slice(&x25519_dalek::x25519(self.private, public));
        Ok(())
    }
}

struct Gcm([u8; 32]);

impl Gcm {
    fn nonce(counter: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        nonce
    }
}

impl Cipher for Gcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = *key;
    }

    fn encrypt(&self, nonce: u64, aad: &[u8], msg: &[u8], out: &mut [u8]) -> usize {
        let sealed = Aes256Gcm::new(&self.0.into())
            .encrypt(&Self::nonce(nonce).into(), Payload { msg, aad })
            .unwrap();
        out[..sealed.len()].copy_from_slice(&sealed);
        sealed.len()
    }

    fn decrypt(
        &self,
        nonce: u64,
        aad: &[u8],
        msg: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let opened = Aes256Gcm::new(&self.0.into())
            .decrypt(&Self::nonce(nonce).into(), Payload { msg, aad })
            .map_err(|_| snow::Error::Decrypt)?;
        out[..opened.len()].copy_from_slice(&opened);
        Ok(opened.len())
    }
}

struct Sha {
    dialect: Dialect,
    inputs: Vec<Vec<u8>>,
}

impl Hash for Sha {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.inputs.clear();
    }

    fn input(&mut self, data: &[u8]) {
        self.inputs.push(data.to_vec());
    }

    fn result(&mut self, out: &mut [u8]) {
        // A MixHash is a state of 32 bytes and then the data; an HMAC begins with a block of 64.
        let hash: [u8; 32] = match self.inputs.as_slice() {
            [state, nothing]
                if self.dialect == Dialect::WhatsApp && state.len() == 32 && nothing.is_empty() =>
            {
                state.as_slice().try_into().unwrap()
            }
            inputs => Sha256::digest(inputs.concat()).into(),
        };
        out[..32].copy_from_slice(&hash);
    }
}
