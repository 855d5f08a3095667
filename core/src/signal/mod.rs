//! Signal sessions in the variant WhatsApp uses (chapter 05): X3DH, Double Ratchet, sender keys. Pure functions over
//! plain records: no storage, no trust decisions, no clock.
//!
//! Between two devices there is a [`SessionRecord`]. [`initiate`] starts a session from the [`Bundle`] the service
//! hands out, or the peer's first message starts one ([`decrypt_pre_key`]); from then on [`encrypt`] and [`decrypt`]
//! move it along. In groups every sender has one [`SenderKeyRecord`], whose secret it distributes through those
//! sessions.
//!
//! The caller's part:
//!
//! - Load, call, store; one caller per record at a time. Store before the ciphertext leaves.
//! - Compare identities with those it knows. Every operation here takes the identity it is given.
//! - Look up pre-keys, and delete a one-time key when the session made with it is durable.
//! - [`pad`] before and [`unpad`] after.
//!
//! An operation that fails has changed nothing.

mod cipher;
mod message;
mod padding;
mod ratchet;
mod record;
mod sender_key;
mod state;
mod wire;
mod x3dh;

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod burnt;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod vectors;

pub use cipher::{
    DecryptError, EncryptError, decrypt, decrypt_pre_key, decrypt_pre_key_within, decrypt_within,
    encrypt, knows_base_key,
};
pub use message::{Ciphertext, CiphertextKind, ParseError, PreKeyMessage, peek_counter};
pub use padding::{PaddingError, pad, unpad};
pub use record::{MAX_SKIP, RecordError, SessionRecord};
pub use sender_key::SenderKeyRecord;
pub use x3dh::{Bundle, InitiateError, initiate};

use crate::crypto::KeyPair;

/// Who we are in a session.
#[derive(Clone, Copy, Debug)]
pub struct LocalIdentity<'a> {
    /// This device's identity key.
    pub key_pair: &'a KeyPair,
    /// This device's registration id.
    pub registration_id: u32,
}

/// How much work a message may cause before its MAC has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages of one chain that may be missing before this one. Each costs an HMAC and a stored key; of the keys,
    /// the last 2,000 are kept.
    pub forward_jump: u32,
}

impl Limits {
    /// For everybody: what the current official client allows (chapter 05.8).
    pub const PEER: Self = Self {
        forward_jump: crate::limits::FORWARD_JUMP,
    };
    /// For the other devices of our own account, which do not attack us and may have been away for long.
    pub const OWN_DEVICE: Self = Self {
        forward_jump: crate::limits::FORWARD_JUMP_OWN,
    };
}
