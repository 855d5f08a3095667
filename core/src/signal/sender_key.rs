//! Sender keys: one message for a whole group (chapter 05.11), in the old format with a 32-bit key id.
//!
//! A sender makes one chain and one signing key, gives both to every member through the pairwise sessions, and then
//! encrypts each message once. The chain only gives forward secrecy; that nobody else of the group (all of whom know
//! the chain) can write in the sender's name is what the signature is for.

use super::Limits;
use super::cipher::{DecryptError, EncryptError};
use super::message::{ParseError, VERSION, after_version, public_key};
use super::ratchet::{ChainKey, Secret};
use super::record::{
    RecordError, chain_key_len, decode_chain_key, encode_chain_key, honour_lease, secret,
};
use super::state::MAX_SKIPPED_KEYS;
use super::wire::{self, Field, Fields};
use crate::crypto::{
    KeyPair, PrivateKey, PublicKey, Rng, Signature, aes_cbc_decrypt, aes_cbc_encrypt_into,
    cbc_ciphertext_len, hkdf_sha256,
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Keys of one sender kept in one group, newest first: a sender that rotates leaves messages under way.
const MAX_STATES: usize = crate::limits::SENDER_KEYS;
const SIGNATURE_LEN: usize = 64;

/// The sender keys of one device in one group: our own to encrypt with, or a member's to decrypt with.
///
/// Our own record must be durable before a ciphertext leaves, for the reason given at [`SessionRecord`].
///
/// [`SessionRecord`]: super::SessionRecord
#[derive(Clone, Default)]
pub struct SenderKeyRecord {
    /// Newest first.
    #[expect(
        clippy::vec_box,
        reason = "reordering must not leave copies of secrets behind"
    )]
    states: Vec<Box<State>>,
}

#[derive(Clone)]
struct State {
    id: u32,
    chain: ChainKey,
    signing: PublicKey,
    /// Only in our own record.
    signing_private: Option<PrivateKey>,
    /// By ascending iteration.
    skipped: Vec<(u32, Box<Secret>)>,
}

impl SenderKeyRecord {
    /// A record without keys, to [`process`](Self::process) a member's distribution into.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fresh own key; to rotate, replace the old record by it and distribute it to everybody again.
    pub fn create(rng: &mut Rng) -> Self {
        Self::create_from(
            rng.next_u32() >> 1,
            Secret::new(rng.bytes()),
            KeyPair::generate(rng),
        )
    }

    fn create_from(id: u32, seed: Secret, signing: KeyPair) -> Self {
        let chain = ChainKey::first(seed);
        let signing_private = Some(signing.private);
        Self {
            states: vec![Box::new(State {
                id,
                chain,
                signing: signing.public,
                signing_private,
                skipped: Vec::new(),
            })],
        }
    }

    /// What members need to read our messages from now on: the content of `axolotlSenderKeyDistributionMessage`, to be
    /// sent through the pairwise sessions. `None` if the record holds no key.
    pub fn distribution(&self) -> Option<Vec<u8>> {
        let state = self.states.first()?;
        let mut out = Vec::with_capacity(1 + 2 * 6 + wire::bytes_len(32) + wire::bytes_len(33));
        out.push(VERSION);
        wire::put_uint32(&mut out, 1, state.id);
        wire::put_uint32(&mut out, 2, state.chain.index);
        wire::put_bytes(&mut out, 3, state.chain.key.as_bytes());
        wire::put_bytes(&mut out, 4, &state.signing.serialize());
        Some(out)
    }

    /// Takes in a member's distribution message. It must have come through the pairwise session of that member:
    /// nothing in it says whose it is.
    ///
    /// A key we have is not rewound, so that a distribution sent again does not make messages readable twice. If it
    /// is so far ahead that our chain could not reach it any more, the chain continues there.
    pub fn process(&mut self, distribution: &[u8]) -> Result<(), ParseError> {
        let (mut id, mut iteration, mut key, mut signing) = (None, None, None, None);
        for field in Fields::new(after_version(distribution)?) {
            match field? {
                (1, field) => id = Some(field.uint32()?),
                (2, field) => iteration = Some(field.uint32()?),
                (3, field) => key = Some(secret(field).map_err(|_| ParseError::Malformed)?),
                (4, field) => signing = Some(public_key(field)?),
                _ => {}
            }
        }
        let id = id.ok_or(ParseError::Missing("key id"))?;
        let index = iteration.ok_or(ParseError::Missing("iteration"))?;
        let chain = ChainKey {
            index,
            key: key.ok_or(ParseError::Missing("chain key"))?,
        };
        let signing = signing.ok_or(ParseError::Missing("signing key"))?;

        let known = self
            .states
            .iter()
            .position(|state| state.id == id)
            .map(|at| self.states.remove(at));
        let state = match known {
            Some(mut state) if state.signing == signing => {
                if chain.index.saturating_sub(state.chain.index) > Limits::PEER.forward_jump {
                    state.chain = chain;
                }
                state
            }
            // Unknown, or another key under the same id, which then is the one in use.
            _ => Box::new(State {
                id,
                chain,
                signing,
                signing_private: None,
                skipped: Vec::new(),
            }),
        };
        self.states.insert(0, state);
        self.states.truncate(MAX_STATES);
        Ok(())
    }

    /// Encrypts a (padded) plaintext with our own key and moves its chain on: the content of `<enc type="skmsg">`.
    ///
    /// [`EncryptError::NoSession`] if the record holds no key, or only a member's.
    pub fn encrypt(&mut self, plaintext: &[u8], rng: &mut Rng) -> Result<Vec<u8>, EncryptError> {
        let mut random = Zeroizing::new([0; 64]);
        rng.fill(random.as_mut_slice());
        self.encrypt_with(plaintext, &random)
    }

    fn encrypt_with(
        &mut self,
        plaintext: &[u8],
        random: &[u8; 64],
    ) -> Result<Vec<u8>, EncryptError> {
        let state = self.states.first_mut().ok_or(EncryptError::NoSession)?;
        let signing = state
            .signing_private
            .as_ref()
            .ok_or(EncryptError::NoSession)?;
        let (seed, next) = state.chain.step().ok_or(EncryptError::ChainExhausted)?;
        let keys = CipherKeys::derive(&seed);
        let ciphertext_len = cbc_ciphertext_len(plaintext.len());
        let mut out =
            Vec::with_capacity(1 + 2 * 6 + wire::bytes_len(ciphertext_len) + SIGNATURE_LEN);
        out.push(VERSION);
        wire::put_uint32(&mut out, 1, state.id);
        wire::put_uint32(&mut out, 2, state.chain.index);
        wire::put_header(&mut out, 3, ciphertext_len);
        aes_cbc_encrypt_into(&keys.cipher, &keys.iv, plaintext, &mut out);
        let signature = signing.sign_with(&[&out], random);
        out.extend_from_slice(signature.as_bytes());
        state.chain = next;
        Ok(out)
    }

    /// Decrypts a member's message. The record is as it was on error.
    ///
    /// A message from before the distribution we have is reported as [`DecryptError::Duplicate`] too: a chain does not
    /// tell what was before it.
    pub fn decrypt(&mut self, message: &[u8]) -> Result<Vec<u8>, DecryptError> {
        self.decrypt_within(Limits::PEER, message)
    }

    /// [`decrypt`](Self::decrypt) with other limits, for devices of our own account.
    pub fn decrypt_within(
        &mut self,
        limits: Limits,
        message: &[u8],
    ) -> Result<Vec<u8>, DecryptError> {
        let message = SenderKeyMessage::parse(message)?;
        let state = self
            .states
            .iter_mut()
            .find(|state| state.id == message.id)
            .ok_or(DecryptError::NoSession)?;
        state
            .signing
            .verify(&[message.signed], &message.signature)
            .map_err(|_| DecryptError::InvalidSignature)?;
        let decrypt = |seed: &Secret| {
            let keys = CipherKeys::derive(seed);
            aes_cbc_decrypt(&keys.cipher, &keys.iv, message.ciphertext)
                .map_err(|_| DecryptError::InvalidMessage)
        };

        let Some(ahead) = message.iteration.checked_sub(state.chain.index) else {
            let at = state
                .skipped
                .binary_search_by_key(&message.iteration, |(iteration, _)| *iteration)
                .map_err(|_| DecryptError::Duplicate)?;
            let (_, seed) = state.skipped.get(at).ok_or(DecryptError::Duplicate)?;
            let plaintext = decrypt(seed)?;
            state.skipped.remove(at);
            return Ok(plaintext);
        };
        if ahead > limits.forward_jump {
            return Err(DecryptError::TooFarAhead);
        }
        let kept = (ahead as usize).min(MAX_SKIPPED_KEYS) as u32;
        let mut chain = state
            .chain
            .skip_to(message.iteration - kept)
            .ok_or(DecryptError::TooFarAhead)?;
        let mut skipped = Vec::with_capacity(kept as usize);
        let (seed, next) = loop {
            let (seed, next) = chain.step().ok_or(DecryptError::TooFarAhead)?;
            if chain.index == message.iteration {
                break (seed, next);
            }
            skipped.push((chain.index, Box::new(seed)));
            chain = next;
        };
        let plaintext = decrypt(&seed)?;
        state.chain = next;
        state.skipped.append(&mut skipped);
        let excess = state.skipped.len().saturating_sub(MAX_SKIPPED_KEYS);
        state.skipped.drain(..excess);
        Ok(plaintext)
    }

    /// The id and next iteration of the newest key, to see when to rotate.
    pub fn position(&self) -> Option<(u32, u32)> {
        self.states
            .first()
            .map(|state| (state.id, state.chain.index))
    }

    /// Reads a stored record: libsignal's `SenderKeyRecordStructure` (chapter 05.13), ours or another's. A lease of
    /// iterations in it is honoured as in [`SessionRecord::decode`](super::SessionRecord::decode).
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = Self::new();
        let mut ceiling = 0;
        for field in Fields::new(bytes) {
            match field? {
                (1, field) if record.states.len() < MAX_STATES => {
                    record.states.push(Box::new(State::decode(field.bytes()?)?));
                }
                (100, field) => ceiling = field.uint32()?,
                _ => {}
            }
        }
        // The lease is on what is sent, so a member's chain is none of its business.
        if let Some(own) = record
            .states
            .first_mut()
            .filter(|state| state.signing_private.is_some())
        {
            own.chain = honour_lease(&own.chain, ceiling)?;
        }
        Ok(record)
    }

    /// The record as bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            self.states
                .iter()
                .map(|state| wire::bytes_len(state.len()))
                .sum(),
        );
        for state in &self.states {
            wire::put_header(&mut out, 1, state.len());
            state.encode(&mut out);
        }
        out
    }
}

impl std::fmt::Debug for SenderKeyRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SenderKeyRecord")
            .field("position", &self.position())
            .field("states", &self.states.len())
            .finish_non_exhaustive()
    }
}

impl State {
    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (mut id, mut chain, mut signing, mut skipped) = (0, None, None, Vec::new());
        for field in Fields::new(bytes) {
            match field? {
                (1, field) => id = field.uint32()?,
                (2, field) => chain = decode_chain_key(field.bytes()?)?,
                (3, field) => signing = Some(decode_signing(field.bytes()?)?),
                (4, field) => {
                    let skip = decode_chain_key(field.bytes()?)?.ok_or(RecordError::Key)?;
                    skipped.push((skip.index, Box::new(skip.key)));
                }
                _ => {}
            }
        }
        skipped.sort_by_key(|(iteration, _)| *iteration);
        let (signing, signing_private) = signing.ok_or(RecordError::Key)?;
        Ok(Self {
            id,
            chain: chain.ok_or(RecordError::Key)?,
            signing,
            signing_private,
            skipped,
        })
    }

    fn signing_len(&self) -> usize {
        wire::bytes_len(33)
            + self
                .signing_private
                .as_ref()
                .map_or(0, |_| wire::bytes_len(32))
    }

    fn len(&self) -> usize {
        let skipped = |(iteration, _): &(u32, _)| {
            wire::bytes_len(wire::uint32_len(*iteration) + wire::bytes_len(32))
        };
        wire::uint32_len(self.id)
            + wire::bytes_len(chain_key_len(&self.chain))
            + wire::bytes_len(self.signing_len())
            + self.skipped.iter().map(skipped).sum::<usize>()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        wire::put_uint32(out, 1, self.id);
        encode_chain_key(&self.chain, 2, out);
        wire::put_header(out, 3, self.signing_len());
        wire::put_bytes(out, 1, &self.signing.serialize());
        if let Some(private) = &self.signing_private {
            wire::put_bytes(out, 2, private.to_bytes().as_slice());
        }
        for (iteration, seed) in &self.skipped {
            wire::put_header(out, 4, wire::uint32_len(*iteration) + wire::bytes_len(32));
            wire::put_uint32(out, 1, *iteration);
            wire::put_bytes(out, 2, seed.as_bytes());
        }
    }
}

/// The signing key; the private half is absent or empty in a member's record.
fn decode_signing(bytes: &[u8]) -> Result<(PublicKey, Option<PrivateKey>), RecordError> {
    let (mut public, mut private) = (None, None);
    for field in Fields::new(bytes) {
        match field? {
            (1, field) => public = Some(public_key(field).map_err(|_| RecordError::Key)?),
            (2, Field::Bytes([])) => private = None,
            (2, field) => private = Some(PrivateKey::from_slice(field.bytes()?)?),
            _ => {}
        }
    }
    Ok((public.ok_or(RecordError::Key)?, private))
}

/// A `skmsg`, borrowed from its bytes.
struct SenderKeyMessage<'a> {
    id: u32,
    iteration: u32,
    ciphertext: &'a [u8],
    /// Version byte and protobuf as received.
    signed: &'a [u8],
    signature: Signature,
}

impl<'a> SenderKeyMessage<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        after_version(bytes)?;
        let end = bytes
            .len()
            .checked_sub(SIGNATURE_LEN)
            .ok_or(ParseError::Malformed)?;
        let (signed, signature) = bytes.split_at_checked(end).ok_or(ParseError::Malformed)?;
        let protobuf = signed.get(1..).ok_or(ParseError::Malformed)?;
        let (mut id, mut iteration, mut ciphertext) = (None, None, None);
        for field in Fields::new(protobuf) {
            match field? {
                (1, field) => id = Some(field.uint32()?),
                (2, field) => iteration = Some(field.uint32()?),
                (3, field) => ciphertext = Some(field.bytes()?),
                _ => {}
            }
        }
        Ok(Self {
            id: id.ok_or(ParseError::Missing("key id"))?,
            iteration: iteration.ok_or(ParseError::Missing("iteration"))?,
            ciphertext: ciphertext.ok_or(ParseError::Missing("ciphertext"))?,
            signed,
            signature: Signature::from_slice(signature)?,
        })
    }
}

/// The keys of one group message.
#[derive(Zeroize, ZeroizeOnDrop)]
struct CipherKeys {
    cipher: [u8; 32],
    iv: [u8; 16],
}

impl CipherKeys {
    fn derive(seed: &Secret) -> Self {
        let bytes = hkdf_sha256::<48>(&[], seed.as_bytes(), b"WhisperGroup");
        let mut keys = Self {
            cipher: [0; 32],
            iv: [0; 16],
        };
        // The IV comes first here, unlike between two devices.
        keys.iv.copy_from_slice(&bytes[..16]);
        keys.cipher.copy_from_slice(&bytes[16..]);
        keys
    }
}

#[cfg(test)]
mod tests;
