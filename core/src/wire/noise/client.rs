//! The device's side of the handshake: XX, or IK with what an earlier XX proved, or XXfallback when the service does
//! not know itself any more (chapters 01.6 and 01.8).

use prost::Message as _;

use super::certificate::{ServerIdentity, Trust, verify_chain};
use super::symmetric::{Pattern, Symmetric};
use super::transport::Transport;
use super::{NoiseError, Part};
use crate::crypto::{KeyPair, PublicKey, Rng};
use crate::proto::handshake::{ClientFinish, ClientHello, HandshakeMessage, ServerHello};

/// A handshake that waits for the service's answer.
#[derive(Debug)]
pub struct ClientHandshake {
    static_key: KeyPair,
    ephemeral: KeyPair,
    payload: Vec<u8>,
    attempt: Attempt,
}

/// A connection, and what is to be done first with it.
#[derive(Debug)]
pub struct Established {
    /// For every frame after `reply`.
    pub transport: Transport,
    /// The last handshake message, to be framed and sent in clear before anything else; there is none after IK.
    pub reply: Option<Vec<u8>>,
    /// Who answered. Worth keeping for the next [`ClientHandshake::start`].
    pub server: ServerIdentity,
    /// Whether IK succeeded, so that `server` is nothing new.
    pub resumed: bool,
}

#[derive(Debug)]
enum Attempt {
    Xx(Symmetric),
    Ik(Symmetric, ServerIdentity),
}

impl ClientHandshake {
    /// Begins: the bytes are the first message, to be framed behind the connection's header.
    ///
    /// `static_key` is the device's Noise key and `client_payload` a `ClientPayload` protobuf. `resume` takes the
    /// short way by IK; the caller gives only an identity that [is valid now](ServerIdentity::is_valid_at), and none
    /// for a device that is not registered.
    pub fn start(
        static_key: &KeyPair,
        resume: Option<&ServerIdentity>,
        client_payload: &[u8],
        rng: &mut Rng,
    ) -> (Self, Vec<u8>) {
        Self::start_with(KeyPair::generate(rng), static_key, resume, client_payload)
    }

    pub(super) fn start_with(
        ephemeral: KeyPair,
        static_key: &KeyPair,
        resume: Option<&ServerIdentity>,
        client_payload: &[u8],
    ) -> (Self, Vec<u8>) {
        // Resuming can fail here only with a key of low order, which no service has; XX will find out who it is.
        let ik = resume
            .and_then(|server| resume_hello(&ephemeral, static_key, server, client_payload).ok());
        let (attempt, hello) = ik.unwrap_or_else(|| {
            let hello = ClientHello {
                ephemeral: Some(ephemeral.public.as_bytes().to_vec()),
                ..Default::default()
            };
            (
                Attempt::Xx(after_client_ephemeral(Pattern::Xx, &ephemeral.public)),
                hello,
            )
        });
        let message = HandshakeMessage {
            client_hello: Some(hello),
            ..Default::default()
        }
        .encode_to_vec();
        let state = Self {
            static_key: static_key.clone(),
            ephemeral,
            payload: client_payload.to_vec(),
            attempt,
        };
        (state, message)
    }

    /// Takes the service's answer, an unframed message, and decides whether it is the service.
    ///
    /// Any error ends the attempt: close the connection, and if it had tried to resume, forget that identity.
    pub fn server_hello(self, message: &[u8], trust: &Trust) -> Result<Established, NoiseError> {
        let Self {
            static_key,
            ephemeral,
            payload,
            attempt,
        } = self;
        let hello = HandshakeMessage::decode(message)
            .ok()
            .and_then(|message| message.server_hello)
            .ok_or(NoiseError::Malformed("server hello"))?;
        let state = match attempt {
            Attempt::Ik(state, server) if hello.r#static.is_none() => {
                server.check(trust.now_unix_secs)?;
                let transport = resumed(state, &ephemeral, &static_key, &hello)?;
                return Ok(Established {
                    transport,
                    reply: None,
                    server,
                    resumed: true,
                });
            }
            // Refused: the service took our ephemeral for the first message of an XX.
            Attempt::Ik(..) => after_client_ephemeral(Pattern::XxFallback, &ephemeral.public),
            Attempt::Xx(state) => state,
        };
        let answer = Answer::read(state, &ephemeral, &hello)?;
        let server = verify_chain(&answer.chain, &answer.server_static, trust)?;
        let (transport, reply) = answer.finish(&static_key, &payload)?;
        Ok(Established {
            transport,
            reply: Some(reply),
            server,
            resumed: false,
        })
    }
}

/// Where XX and XXfallback stand after the first message. The specification would mix in an empty payload here for
/// XX; WhatsApp does not (01.5).
pub(super) fn after_client_ephemeral(pattern: Pattern, ephemeral: &PublicKey) -> Symmetric {
    let mut state = Symmetric::new(pattern);
    state.mix_hash(ephemeral.as_bytes());
    state
}

fn resume_hello(
    ephemeral: &KeyPair,
    static_key: &KeyPair,
    server: &ServerIdentity,
    payload: &[u8],
) -> Result<(Attempt, ClientHello), NoiseError> {
    let mut state = Symmetric::new(Pattern::Ik);
    state.mix_hash(server.static_key.as_bytes());
    state.mix_hash(ephemeral.public.as_bytes());
    state.mix_key(&ephemeral.private, &server.static_key)?;
    let sealed_static = state.seal(static_key.public.as_bytes());
    state.mix_key(&static_key.private, &server.static_key)?;
    let sealed_payload = state.seal(payload);
    let hello = ClientHello {
        ephemeral: Some(ephemeral.public.as_bytes().to_vec()),
        r#static: Some(sealed_static),
        payload: Some(sealed_payload),
    };
    Ok((Attempt::Ik(state, *server), hello))
}

/// IK's second message. The chain inside proves nothing that the keys do not; that it decrypts, does.
fn resumed(
    mut state: Symmetric,
    ephemeral: &KeyPair,
    static_key: &KeyPair,
    hello: &ServerHello,
) -> Result<Transport, NoiseError> {
    let server_ephemeral = server_ephemeral(hello)?;
    let sealed_chain = hello
        .payload
        .as_deref()
        .ok_or(NoiseError::Malformed("server payload"))?;
    state.mix_hash(server_ephemeral.as_bytes());
    state.mix_key(&ephemeral.private, &server_ephemeral)?;
    state.mix_key(&static_key.private, &server_ephemeral)?;
    state.open(Part::CertificateChain, sealed_chain)?;
    Ok(transport(state))
}

fn server_ephemeral(hello: &ServerHello) -> Result<PublicKey, NoiseError> {
    PublicKey::from_slice(hello.ephemeral()).map_err(|_| NoiseError::Malformed("server ephemeral"))
}

/// The initiator writes with the first key.
fn transport(state: Symmetric) -> Transport {
    let (first, second) = state.split();
    Transport::new(&first, &second)
}

/// A server hello of XX or XXfallback, decrypted. Nobody vouches for the static key yet.
pub(super) struct Answer {
    state: Symmetric,
    server_ephemeral: PublicKey,
    pub(super) server_static: PublicKey,
    pub(super) chain: Vec<u8>,
}

impl Answer {
    pub(super) fn read(
        mut state: Symmetric,
        ephemeral: &KeyPair,
        hello: &ServerHello,
    ) -> Result<Self, NoiseError> {
        let server_ephemeral = server_ephemeral(hello)?;
        let sealed_static = hello
            .r#static
            .as_deref()
            .ok_or(NoiseError::Malformed("server static"))?;
        let sealed_chain = hello
            .payload
            .as_deref()
            .ok_or(NoiseError::Malformed("server payload"))?;
        state.mix_hash(server_ephemeral.as_bytes());
        state.mix_key(&ephemeral.private, &server_ephemeral)?;
        let server_static = state.open(Part::ServerStatic, sealed_static)?;
        let server_static = PublicKey::from_slice(&server_static)
            .map_err(|_| NoiseError::Malformed("server static"))?;
        state.mix_key(&ephemeral.private, &server_static)?;
        let chain = state.open(Part::CertificateChain, sealed_chain)?;
        Ok(Self {
            state,
            server_ephemeral,
            server_static,
            chain,
        })
    }

    pub(super) fn finish(
        self,
        static_key: &KeyPair,
        payload: &[u8],
    ) -> Result<(Transport, Vec<u8>), NoiseError> {
        let Self {
            mut state,
            server_ephemeral,
            ..
        } = self;
        // Still under the key that sealed the chain, so this is its nonce 1.
        let sealed_static = state.seal(static_key.public.as_bytes());
        state.mix_key(&static_key.private, &server_ephemeral)?;
        let sealed_payload = state.seal(payload);
        let finish = ClientFinish {
            r#static: Some(sealed_static),
            payload: Some(sealed_payload),
        };
        let message = HandshakeMessage {
            client_finish: Some(finish),
            ..Default::default()
        };
        Ok((transport(state), message.encode_to_vec()))
    }
}
