//! The two ciphertext forms between devices (chapter 05.5), byte for byte.
//!
//! `msg` is a version byte, a protobuf and eight bytes of MAC over both. `pkmsg` wraps a whole `msg` together with
//! what the receiver needs to build the session; an initiator sends it until the first answer.

use super::ratchet::MessageKeys;
use super::wire::{self, Field, Fields, Malformed};
use crate::crypto::{
    KeyError, PublicKey, aes_cbc_encrypt_into, cbc_ciphertext_len, hmac_sha256, verify_mac,
};

/// Message version 3, highest version supported 3: what everybody sends.
pub(super) const VERSION: u8 = 0x33;
const MAC_LEN: usize = 8;

/// Why bytes are not a message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing at all.
    #[error("the message is empty")]
    Empty,
    /// The high half of the version byte is not 3.
    #[error("unknown message version byte {0:#04x}")]
    Version(u8),
    /// The protobuf is broken, or too short for MAC or signature.
    #[error("the message is malformed")]
    Malformed,
    /// A field is missing.
    #[error("the message has no {0}")]
    Missing(&'static str),
    /// A field that should be a public key is none.
    #[error("the message holds a bad key")]
    Key(#[from] KeyError),
}

impl From<Malformed> for ParseError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Which of the two forms a ciphertext has; the `type` of `<enc>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CiphertextKind {
    /// `msg`: the session is known to both sides.
    Message,
    /// `pkmsg`: carries what the receiver needs to build the session.
    PreKey,
}

/// An encrypted message as it goes into `<enc>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ciphertext {
    /// Which form.
    pub kind: CiphertextKind,
    /// The content of the node.
    pub bytes: Vec<u8>,
}

/// A `pkmsg`, parsed and not yet believed: nothing in it is authenticated until it has decrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreKeyMessage {
    /// The sender's registration id.
    pub registration_id: u32,
    /// The one-time key of ours the sender used, if any. Id 0 counts as none, because nobody issues it.
    pub pre_key_id: Option<u32>,
    /// The signed key of ours the sender used.
    pub signed_pre_key_id: u32,
    /// The sender's key that names the session.
    pub base_key: PublicKey,
    /// The sender's identity. Whether to trust it is the caller's decision, to be made before decrypting.
    pub identity_key: PublicKey,
    /// The `msg` inside, known to parse.
    pub message: Vec<u8>,
}

impl PreKeyMessage {
    /// Reads the content of an `<enc type="pkmsg">`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (mut registration_id, mut pre_key_id, mut signed_pre_key_id) = (0, None, None);
        let (mut base_key, mut identity_key, mut message) = (None, None, None);
        for field in Fields::new(after_version(bytes)?) {
            match field? {
                (1, field) => pre_key_id = Some(field.uint32()?).filter(|&id| id != 0),
                (2, field) => base_key = Some(public_key(field)?),
                (3, field) => identity_key = Some(public_key(field)?),
                (4, field) => message = Some(field.bytes()?),
                (5, field) => registration_id = field.uint32()?,
                (6, field) => signed_pre_key_id = Some(field.uint32()?),
                _ => {}
            }
        }
        let message = message.ok_or(ParseError::Missing("message"))?;
        SignalMessage::parse(message)?;
        Ok(Self {
            registration_id,
            pre_key_id,
            signed_pre_key_id: signed_pre_key_id.ok_or(ParseError::Missing("signed pre-key id"))?,
            base_key: base_key.ok_or(ParseError::Missing("base key"))?,
            identity_key: identity_key.ok_or(ParseError::Missing("identity key"))?,
            message: message.to_vec(),
        })
    }
}

/// What an observer without keys can read of a ciphertext: the sender's ratchet key and the message's number in that
/// chain. No pair may ever occur with two plaintexts; judges of a simulation look here.
pub fn peek_counter(kind: CiphertextKind, bytes: &[u8]) -> Result<(PublicKey, u32), ParseError> {
    let outer;
    let inner = match kind {
        CiphertextKind::Message => bytes,
        CiphertextKind::PreKey => {
            outer = PreKeyMessage::parse(bytes)?;
            &outer.message
        }
    };
    let message = SignalMessage::parse(inner)?;
    Ok((message.ratchet_key, message.counter))
}

/// A `msg`, borrowed from its bytes. `previousCounter` is not even read: peers send wrong ones (chapter 05.7).
#[derive(Clone, Copy, Debug)]
pub(super) struct SignalMessage<'a> {
    pub(super) ratchet_key: PublicKey,
    pub(super) counter: u32,
    pub(super) ciphertext: &'a [u8],
    /// Version byte and protobuf as received: what the MAC covers.
    authenticated: &'a [u8],
    mac: &'a [u8],
}

impl<'a> SignalMessage<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        after_version(bytes)?;
        let end = bytes
            .len()
            .checked_sub(MAC_LEN)
            .ok_or(ParseError::Malformed)?;
        let (authenticated, mac) = bytes.split_at_checked(end).ok_or(ParseError::Malformed)?;
        // A message shorter than its MAC and version byte has neither.
        let protobuf = authenticated.get(1..).ok_or(ParseError::Malformed)?;
        let (mut ratchet_key, mut counter, mut ciphertext) = (None, None, None);
        for field in Fields::new(protobuf) {
            match field? {
                (1, field) => ratchet_key = Some(public_key(field)?),
                (2, field) => counter = Some(field.uint32()?),
                (4, field) => ciphertext = Some(field.bytes()?),
                _ => {}
            }
        }
        Ok(Self {
            ratchet_key: ratchet_key.ok_or(ParseError::Missing("ratchet key"))?,
            counter: counter.ok_or(ParseError::Missing("counter"))?,
            ciphertext: ciphertext.ok_or(ParseError::Missing("ciphertext"))?,
            authenticated,
            mac,
        })
    }

    /// Whether the MAC is right, in constant time.
    pub(super) fn is_authentic(
        &self,
        key: &[u8; 32],
        sender: &PublicKey,
        receiver: &PublicKey,
    ) -> bool {
        verify_mac(&mac(key, sender, receiver, self.authenticated), self.mac)
    }
}

/// What a message says besides its ciphertext.
pub(super) struct Header<'a> {
    pub(super) sender: &'a PublicKey,
    pub(super) receiver: &'a PublicKey,
    pub(super) ratchet_key: &'a PublicKey,
    pub(super) counter: u32,
    pub(super) previous_counter: u32,
}

/// What the `pkmsg` around a message says.
pub(super) struct Envelope {
    pub(super) registration_id: u32,
    pub(super) pre_key_id: Option<u32>,
    pub(super) signed_pre_key_id: u32,
    pub(super) base_key: PublicKey,
}

/// Encrypts `plaintext` and writes the whole message, in its envelope if there is one, into one buffer.
pub(super) fn seal(
    header: &Header<'_>,
    keys: &MessageKeys,
    envelope: Option<&Envelope>,
    plaintext: &[u8],
) -> Vec<u8> {
    let ciphertext_len = cbc_ciphertext_len(plaintext.len());
    let message_len = 1
        + wire::bytes_len(33)
        + wire::uint32_len(header.counter)
        + wire::uint32_len(header.previous_counter)
        + wire::bytes_len(ciphertext_len)
        + MAC_LEN;
    // The envelope adds two keys, three numbers, two headers and a version byte: at most 1 + 2*35 + 3*6 + 6.
    let mut out = Vec::with_capacity(message_len + if envelope.is_some() { 95 } else { 0 });
    if let Some(envelope) = envelope {
        out.push(VERSION);
        if let Some(id) = envelope.pre_key_id {
            wire::put_uint32(&mut out, 1, id);
        }
        wire::put_bytes(&mut out, 2, &envelope.base_key.serialize());
        wire::put_bytes(&mut out, 3, &header.sender.serialize());
        wire::put_header(&mut out, 4, message_len);
    }
    let start = out.len();
    out.push(VERSION);
    wire::put_bytes(&mut out, 1, &header.ratchet_key.serialize());
    wire::put_uint32(&mut out, 2, header.counter);
    wire::put_uint32(&mut out, 3, header.previous_counter);
    wire::put_header(&mut out, 4, ciphertext_len);
    aes_cbc_encrypt_into(&keys.cipher, &keys.iv, plaintext, &mut out);
    let mac = mac(&keys.mac, header.sender, header.receiver, &out[start..]);
    out.extend_from_slice(&mac);
    debug_assert_eq!(out.len() - start, message_len);
    if let Some(envelope) = envelope {
        wire::put_uint32(&mut out, 5, envelope.registration_id);
        wire::put_uint32(&mut out, 6, envelope.signed_pre_key_id);
    }
    out
}

fn mac(
    key: &[u8; 32],
    sender: &PublicKey,
    receiver: &PublicKey,
    authenticated: &[u8],
) -> [u8; MAC_LEN] {
    let full = hmac_sha256(
        key,
        &[&sender.serialize(), &receiver.serialize(), authenticated],
    );
    let mut mac = [0; MAC_LEN];
    mac.copy_from_slice(&full[..MAC_LEN]);
    mac
}

/// The bytes behind a version byte we speak.
pub(super) fn after_version(bytes: &[u8]) -> Result<&[u8], ParseError> {
    let (&version, rest) = bytes.split_first().ok_or(ParseError::Empty)?;
    if version >> 4 == VERSION >> 4 {
        Ok(rest)
    } else {
        Err(ParseError::Version(version))
    }
}

pub(super) fn public_key(field: Field<'_>) -> Result<PublicKey, ParseError> {
    Ok(PublicKey::deserialize(field.bytes()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> MessageKeys {
        MessageKeys {
            cipher: [1; 32],
            mac: [2; 32],
            iv: [3; 16],
        }
    }

    fn message(envelope: Option<&Envelope>) -> Vec<u8> {
        let key = |byte| PublicKey::from_bytes([byte; 32]);
        let header = Header {
            sender: &key(4),
            receiver: &key(5),
            ratchet_key: &key(6),
            counter: 300,
            previous_counter: 0,
        };
        seal(&header, &keys(), envelope, b"text")
    }

    fn envelope(pre_key_id: Option<u32>) -> Envelope {
        let base_key = PublicKey::from_bytes([7; 32]);
        Envelope {
            registration_id: u32::MAX,
            pre_key_id,
            signed_pre_key_id: u32::MAX,
            base_key,
        }
    }

    #[test]
    fn what_is_sealed_parses() {
        let bytes = message(None);
        let parsed = SignalMessage::parse(&bytes).unwrap();
        assert_eq!(
            (parsed.ratchet_key.as_bytes(), parsed.counter),
            (&[6; 32], 300)
        );
        let (a, b) = (
            PublicKey::from_bytes([4; 32]),
            PublicKey::from_bytes([5; 32]),
        );
        assert!(parsed.is_authentic(&keys().mac, &a, &b));
        // The direction is part of what is authenticated: a reflected message is no answer.
        assert!(!parsed.is_authentic(&keys().mac, &b, &a));

        let bytes = message(Some(&envelope(Some(u32::MAX))));
        let parsed = PreKeyMessage::parse(&bytes).unwrap();
        assert_eq!(parsed.message, message(None));
        assert_eq!(parsed.pre_key_id, Some(u32::MAX));
        assert_eq!(peek_counter(CiphertextKind::PreKey, &bytes).unwrap().1, 300);
    }

    #[test]
    fn one_time_key_zero_is_none() {
        for id in [None, Some(0)] {
            assert_eq!(
                PreKeyMessage::parse(&message(Some(&envelope(id))))
                    .unwrap()
                    .pre_key_id,
                None
            );
        }
    }

    #[test]
    fn other_versions_are_refused() {
        let mut bytes = message(None);
        for version in [0x23, 0x44, 0x00] {
            bytes[0] = version;
            assert_eq!(
                SignalMessage::parse(&bytes).unwrap_err(),
                ParseError::Version(version)
            );
            assert_eq!(
                PreKeyMessage::parse(&bytes).unwrap_err(),
                ParseError::Version(version)
            );
        }
        assert_eq!(SignalMessage::parse(&[]).unwrap_err(), ParseError::Empty);
        assert_eq!(
            SignalMessage::parse(&[VERSION; 8]).unwrap_err(),
            ParseError::Malformed
        );
    }

    proptest! {
        #[test]
        fn parsers_survive_anything(mut bytes: Vec<u8>, real_version: bool) {
            if let Some(first) = bytes.first_mut().filter(|_| real_version) {
                *first = VERSION;
            }
            let _ = SignalMessage::parse(&bytes);
            let _ = PreKeyMessage::parse(&bytes);
        }

        #[test]
        fn parsers_survive_changed_messages(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut bytes = message(Some(&envelope(None)));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            let _ = PreKeyMessage::parse(&bytes);
            let _ = SignalMessage::parse(&bytes);
        }
    }
}
