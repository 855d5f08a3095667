//! The service's side of the handshake, for the simulated service (chapters 01.6 and 01.8).

use prost::Message as _;

use super::client::after_client_ephemeral;
use super::symmetric::{Pattern, Symmetric};
use super::transport::Transport;
use super::{NoiseError, Part};
use crate::crypto::{KeyPair, PublicKey, Rng};
use crate::proto::handshake::{ClientHello, HandshakeMessage, ServerHello};

/// The service's side. It has nothing to remember before the first message, so this is only a name.
#[derive(Clone, Copy, Debug)]
pub struct ServerHandshake;

/// The answer to a device's first message.
#[derive(Debug)]
pub enum ServerReply {
    /// XX or XXfallback: the device has yet to say who it is.
    AwaitFinish {
        /// To be framed and sent.
        reply: Vec<u8>,
        /// For the device's next message.
        state: ServerFinish,
    },
    /// IK: all is said.
    Resumed {
        /// To be framed and sent, by itself: some devices begin a new frame reader after it (01.12).
        reply: Vec<u8>,
        /// For every frame after `reply`.
        transport: Transport,
        /// The device's Noise key. That it is the one registered for the payload's account is for the caller to check.
        client_static: PublicKey,
        /// A `ClientPayload` protobuf.
        payload: Vec<u8>,
    },
}

/// A handshake that waits for the device's last message.
#[derive(Debug)]
pub struct ServerFinish {
    state: Symmetric,
    ephemeral: KeyPair,
}

impl ServerHandshake {
    /// Answers a device's first message, given without frame and header. `chain` is the `CertChain` protobuf for
    /// `static_key`.
    ///
    /// A device that tries to resume with a key that is not (or no longer) `static_key` is answered by XXfallback.
    pub fn client_hello(
        static_key: &KeyPair,
        chain: &[u8],
        message: &[u8],
        rng: &mut Rng,
    ) -> Result<ServerReply, NoiseError> {
        Self::client_hello_with(KeyPair::generate(rng), static_key, chain, message)
    }

    pub(super) fn client_hello_with(
        ephemeral: KeyPair,
        static_key: &KeyPair,
        chain: &[u8],
        message: &[u8],
    ) -> Result<ServerReply, NoiseError> {
        let hello = HandshakeMessage::decode(message)
            .ok()
            .and_then(|message| message.client_hello)
            .ok_or(NoiseError::Malformed("client hello"))?;
        let ClientHello {
            ephemeral: theirs,
            r#static,
            payload,
        } = hello;
        let theirs = PublicKey::from_slice(&theirs.unwrap_or_default())
            .map_err(|_| NoiseError::Malformed("client ephemeral"))?;
        let pattern = match (r#static, payload) {
            (None, None) => Pattern::Xx,
            (None, Some(_)) => return Err(NoiseError::Malformed("client static")),
            (Some(_), None) => return Err(NoiseError::Malformed("client payload")),
            (Some(sealed_static), Some(sealed_payload)) => {
                match Resuming::read(static_key, &theirs, &sealed_static)? {
                    Some(resuming) => {
                        return resuming.accept(
                            static_key,
                            ephemeral,
                            &theirs,
                            &sealed_payload,
                            chain,
                        );
                    }
                    None => Pattern::XxFallback,
                }
            }
        };

        let mut state = after_client_ephemeral(pattern, &theirs);
        state.mix_hash(ephemeral.public.as_bytes());
        state.mix_key(&ephemeral.private, &theirs)?;
        let sealed_static = state.seal(static_key.public.as_bytes());
        state.mix_key(&static_key.private, &theirs)?;
        let sealed_chain = state.seal(chain);
        let reply = hello_message(&ephemeral.public, Some(sealed_static), sealed_chain);
        Ok(ServerReply::AwaitFinish {
            reply,
            state: ServerFinish { state, ephemeral },
        })
    }
}

impl ServerFinish {
    /// Takes the device's last message: (transport, the device's Noise key, a `ClientPayload` protobuf). That the key
    /// is the one registered for the payload's account is for the caller to check.
    pub fn client_finish(
        self,
        message: &[u8],
    ) -> Result<(Transport, PublicKey, Vec<u8>), NoiseError> {
        let Self {
            mut state,
            ephemeral,
        } = self;
        let finish = HandshakeMessage::decode(message)
            .ok()
            .and_then(|message| message.client_finish)
            .ok_or(NoiseError::Malformed("client finish"))?;
        let sealed_static = finish
            .r#static
            .ok_or(NoiseError::Malformed("client static"))?;
        let sealed_payload = finish
            .payload
            .ok_or(NoiseError::Malformed("client payload"))?;
        let client_static = open_static(&mut state, &sealed_static)?;
        state.mix_key(&ephemeral.private, &client_static)?;
        let payload = state.open(Part::ClientPayload, &sealed_payload)?;
        Ok((transport(state), client_static, payload))
    }
}

/// An IK hello whose static key decrypted, so the device knows ours.
struct Resuming {
    state: Symmetric,
    client_static: PublicKey,
}

impl Resuming {
    /// `None` when the device meant another key than ours. What it sealed is then of no use to anybody.
    fn read(
        static_key: &KeyPair,
        theirs: &PublicKey,
        sealed_static: &[u8],
    ) -> Result<Option<Self>, NoiseError> {
        let mut state = Symmetric::new(Pattern::Ik);
        state.mix_hash(static_key.public.as_bytes());
        state.mix_hash(theirs.as_bytes());
        state.mix_key(&static_key.private, theirs)?;
        match open_static(&mut state, sealed_static) {
            Ok(client_static) => Ok(Some(Self {
                state,
                client_static,
            })),
            Err(NoiseError::Sealed(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn accept(
        self,
        static_key: &KeyPair,
        ephemeral: KeyPair,
        theirs: &PublicKey,
        sealed_payload: &[u8],
        chain: &[u8],
    ) -> Result<ServerReply, NoiseError> {
        let Self {
            mut state,
            client_static,
        } = self;
        state.mix_key(&static_key.private, &client_static)?;
        let payload = state.open(Part::ClientPayload, sealed_payload)?;
        state.mix_hash(ephemeral.public.as_bytes());
        state.mix_key(&ephemeral.private, theirs)?;
        state.mix_key(&ephemeral.private, &client_static)?;
        let sealed_chain = state.seal(chain);
        let reply = hello_message(&ephemeral.public, None, sealed_chain);
        Ok(ServerReply::Resumed {
            reply,
            transport: transport(state),
            client_static,
            payload,
        })
    }
}

fn open_static(state: &mut Symmetric, sealed: &[u8]) -> Result<PublicKey, NoiseError> {
    let opened = state.open(Part::ClientStatic, sealed)?;
    PublicKey::from_slice(&opened).map_err(|_| NoiseError::Malformed("client static"))
}

fn hello_message(
    ephemeral: &PublicKey,
    sealed_static: Option<Vec<u8>>,
    sealed_chain: Vec<u8>,
) -> Vec<u8> {
    let hello = ServerHello {
        ephemeral: Some(ephemeral.as_bytes().to_vec()),
        r#static: sealed_static,
        payload: Some(sealed_chain),
    };
    HandshakeMessage {
        server_hello: Some(hello),
        ..Default::default()
    }
    .encode_to_vec()
}

/// The responder writes with the second key.
fn transport(state: Symmetric) -> Transport {
    let (first, second) = state.split();
    Transport::new(&second, &first)
}
