//! Noise: three handshakes that end in one encrypted transport (chapters 01.4 to 01.9).
//!
//! A device that knows nothing of the service runs XX: three messages, in which both sides show their static keys and
//! the service a certificate for its own. A device that has seen the certificate before runs IK and saves half a round
//! trip, because its first message already carries the encrypted login. The service may have changed its key since;
//! then it answers that message in the form of XXfallback, which is XX with the device's first message taken for its
//! ephemeral only, and the device follows.
//!
//! ```text
//! device                                    service
//! ClientHandshake::start       -- hello ->  ServerHandshake::client_hello
//! ClientHandshake::server_hello <- reply -  ServerReply::{AwaitFinish, Resumed}
//! Established::reply, if any   - finish ->  ServerFinish::client_finish
//! Transport                     <------->   Transport
//! ```
//!
//! Messages are `HandshakeMessage` protobufs without the frame's length; the caller frames them
//! ([`write_frame`](super::frame::write_frame)). Each step consumes the one before, so none can be repeated or
//! skipped, and every error ends the attempt. A device that had tried to resume then forgets the [`ServerIdentity`] it
//! tried with.
//!
//! The symmetric state is our own and not a Noise library's, because WhatsApp's XX is not the specification's; the
//! reasons stand in `docs/protocol-notes.md`. A library is the oracle of the tests instead.

mod certificate;
mod client;
mod server;
mod symmetric;
mod transport;

pub use certificate::{
    Certificate, CertificateError, ServerIdentity, Trust, Validity, WHATSAPP_ROOT,
    certificate_chain, verify_chain,
};
pub use client::{ClientHandshake, Established};
pub use server::{ServerFinish, ServerHandshake, ServerReply};
pub use transport::Transport;

/// Why a handshake or a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoiseError {
    /// The message is no `HandshakeMessage`, or this part of it is absent or has a wrong length.
    #[error("the handshake message has no well-formed {0}")]
    Malformed(&'static str),
    /// The peer's public key is a point of low order, with which anybody could know the shared secret.
    #[error("the peer's public key has low order")]
    LowOrder,
    /// This part does not decrypt: changed on the way, or made with other keys.
    #[error("the {0} does not decrypt")]
    Sealed(Part),
    /// The service does not prove that its key is the service's.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The plaintext is longer than a frame can be.
    #[error("a plaintext of {0} bytes does not fit in a frame")]
    TooLong(usize),
    /// The direction has used all of its 2^32 nonces; only a new connection helps.
    #[error("the connection has no nonces left")]
    Exhausted,
}

/// What was encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The service's static key.
    ServerStatic,
    /// The service's certificate chain.
    CertificateChain,
    /// The device's static key.
    ClientStatic,
    /// The device's `ClientPayload`.
    ClientPayload,
    /// A frame of the transport.
    Frame,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ServerStatic => "service's static key",
            Self::CertificateChain => "certificate chain",
            Self::ClientStatic => "device's static key",
            Self::ClientPayload => "client payload",
            Self::Frame => "frame",
        })
    }
}

#[cfg(test)]
mod tests;
