//! Handshakes with fixed keys, so that what is genuine is always the same bytes.

use baton_core::{
    crypto::{KeyPair, PrivateKey, Rng},
    wire::noise::{
        ClientHandshake, ServerFinish, ServerHandshake, ServerIdentity, ServerReply, Trust,
        certificate_chain, verify_chain,
    },
};
use std::sync::OnceLock;

pub(crate) const PAYLOAD: &[u8] = b"a client payload";
const NOW: i64 = 1_767_225_700;

/// Everybody's keys, and every message of every pattern.
pub(crate) struct Handshakes {
    pub(crate) device: KeyPair,
    pub(crate) service: KeyPair,
    pub(crate) chain: Vec<u8>,
    pub(crate) trust: Trust,
    pub(crate) identity: ServerIdentity,
    /// Of a service that has another key now.
    pub(crate) stale: ServerIdentity,
    /// First messages: XX, IK, IK to a service that has another key.
    pub(crate) hellos: [Vec<u8>; 3],
    /// The answers.
    pub(crate) replies: [Vec<u8>; 3],
    /// Last messages of XX and XXfallback.
    pub(crate) finishes: [Vec<u8>; 2],
}

fn pair(byte: u8) -> KeyPair {
    KeyPair::from_private(PrivateKey::from_bytes([byte; 32]))
}

impl Handshakes {
    pub(crate) fn get() -> &'static Self {
        static ALL: OnceLock<Handshakes> = OnceLock::new();
        ALL.get_or_init(Self::new)
    }

    fn new() -> Self {
        let [root, middle, service, device] = [1, 2, 3, 4].map(pair);
        let mut rng = Rng::from_seed([9; 32]);
        let chain = certificate_chain(
            &root,
            &middle,
            &service.public,
            NOW - 100,
            NOW + 100,
            &mut rng,
        );
        let trust = Trust {
            root: root.public,
            now_unix_secs: NOW,
        };
        let identity = verify_chain(&chain, &service.public, &trust).expect("a good chain");
        let stale = ServerIdentity {
            static_key: pair(5).public,
            ..identity
        };
        let mut all = Self {
            device,
            service,
            chain,
            trust,
            identity,
            stale,
            hellos: Default::default(),
            replies: Default::default(),
            finishes: Default::default(),
        };
        for kind in 0..3 {
            let (client, hello) = all.start(kind);
            let (reply, _) = all.answer(&hello).expect("a good hello");
            let done = client
                .server_hello(&reply, &all.trust)
                .expect("a good reply");
            if let Some(finish) = done.reply {
                all.finishes[usize::from(kind == 2)] = finish;
            }
            all.hellos[kind] = hello;
            all.replies[kind] = reply;
        }
        all
    }

    /// The device's side at its beginning: XX, IK, IK with a stale key.
    pub(crate) fn start(&self, kind: usize) -> (ClientHandshake, Vec<u8>) {
        let resume = [None, Some(&self.identity), Some(&self.stale)][kind % 3];
        ClientHandshake::start(&self.device, resume, PAYLOAD, &mut Rng::from_seed([7; 32]))
    }

    /// The service's answer, and what it waits for behind it.
    pub(crate) fn answer(&self, hello: &[u8]) -> Option<(Vec<u8>, Option<ServerFinish>)> {
        let mut rng = Rng::from_seed([8; 32]);
        match ServerHandshake::client_hello(&self.service, &self.chain, hello, &mut rng).ok()? {
            ServerReply::AwaitFinish { reply, state } => Some((reply, Some(state))),
            ServerReply::Resumed {
                reply,
                client_static,
                payload,
                ..
            } => {
                assert_eq!(client_static, self.device.public, "nobody else can resume");
                assert_eq!(payload, PAYLOAD);
                Some((reply, None))
            }
        }
    }
}
