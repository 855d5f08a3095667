//! All sessions with one device: the current one and those it replaced (chapter 05.9), and their stored form, which is
//! libsignal's `RecordStructure` (chapter 05.13).
//!
//! Why keep replaced sessions at all? Both sides may start one at the same moment; then each has what the other
//! considers second, and only a side that still has its own can read the answer to it.

use super::message::public_key;
use super::ratchet::{ChainKey, MessageKeys, Secret};
use super::state::{PendingPreKey, ReceiverChain, SenderChain, Skipped, SkippedKeys, State};
use super::wire::{self, Field, Fields, Malformed};
use crate::crypto::{KeyError, KeyPair, PrivateKey, PublicKey};

/// Sessions kept behind the current one.
const MAX_ARCHIVED: usize = crate::limits::ARCHIVED_SESSIONS;
/// The protocol version in a state. Version 4 has post-quantum keys, which WhatsApp does not speak.
const VERSION: u32 = 3;
/// Furthest a record's lease of sending counters may reach past its chain. Leases are of 64; a larger number means a
/// damaged record, and walking there would take minutes.
const MAX_LEASE: u32 = crate::limits::COUNTER_LEASE;
/// Furthest that a sending chain is skipped ahead to make up for keys that may have been used and forgotten. Recipients
/// refuse a jump of more than 2,000 messages, most of them (chapter 05.8); this leaves as much again for what they have
/// not received. A chain that is further behind is not used for sending any more: a new session is.
pub const MAX_SKIP: u32 = crate::limits::BURN;

/// Why bytes are not a session record, or a sender key record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The protobuf is broken.
    #[error("the record is malformed")]
    Malformed,
    /// A key is missing or has a wrong length.
    #[error("the record holds a bad key")]
    Key,
    /// A session of another protocol version.
    #[error("the record holds a session of version {0}")]
    Version(u32),
    /// The lease of sending counters reaches absurdly far.
    #[error("the record leases counters up to {0}")]
    Lease(u32),
}

impl From<Malformed> for RecordError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<KeyError> for RecordError {
    fn from(_: KeyError) -> Self {
        Self::Key
    }
}

/// Everything kept about the sessions with one device. Plain data: load, pass to the functions of this module, store.
///
/// Whoever encrypts must store the record before, or atomically with, handing the ciphertext out: a counter used
/// twice encrypts two messages with one key.
#[derive(Clone, Default)]
pub struct SessionRecord {
    pub(super) current: Option<Box<State>>,
    /// Newest first.
    #[expect(
        clippy::vec_box,
        reason = "reordering must not leave copies of secrets behind"
    )]
    pub(super) archived: Vec<Box<State>>,
    /// See [`at_burn`](Self::at_burn). Of the account, so not stored here.
    pub(super) burn: u32,
}

impl SessionRecord {
    /// A record without sessions.
    pub fn new() -> Self {
        Self::default()
    }

    /// This record in an account that has burnt so many message keys in all: one whose store has lost commits, so that
    /// its chains may stand further back than they have been. A chain that was made under a lower burn is skipped ahead
    /// by the difference when it is used for sending, and not used if that is more than [`MAX_SKIP`].
    #[must_use]
    pub const fn at_burn(mut self, burn: u32) -> Self {
        self.burn = burn;
        self
    }

    /// Whether there is a session to encrypt with.
    pub fn is_usable(&self) -> bool {
        self.current
            .as_ref()
            .and_then(|state| state.sender.as_ref())
            .is_some_and(|sender| self.burn.saturating_sub(sender.burn) <= MAX_SKIP)
    }

    /// Whether messages can be encrypted under this identity of ours: the current session was made with it. After the
    /// device was linked anew the sessions of its former life are still there, and of no use.
    pub fn is_usable_by(&self, identity: &PublicKey) -> bool {
        let ours = self.current.as_ref().map(|state| state.local_identity);
        self.is_usable() && ours == Some(*identity)
    }

    /// The peer's identity in the current session.
    pub fn remote_identity(&self) -> Option<PublicKey> {
        self.current.as_ref().map(|state| state.remote_identity)
    }

    /// The peer's registration id in the current session.
    pub fn remote_registration_id(&self) -> Option<u32> {
        self.current
            .as_ref()
            .map(|state| state.remote_registration_id)
    }

    /// The initiator's base key, which names the current session.
    pub fn base_key(&self) -> Option<PublicKey> {
        self.current.as_ref().and_then(|state| state.base_key)
    }

    /// How many replaced sessions are kept; at most 40.
    pub fn archived(&self) -> usize {
        self.archived.len()
    }

    /// Reads a stored record, ours or another implementation's.
    ///
    /// A lease of sending counters in it (field 100, written by one implementation) is honoured: the chain is moved
    /// past every counter that may have been used after the record was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = Self::new();
        let mut ceiling = 0;
        for field in Fields::new(bytes) {
            match field? {
                (1, field) => record.current = decode_state(field.bytes()?)?.map(Box::new),
                (2, field) if record.archived.len() < MAX_ARCHIVED => {
                    record
                        .archived
                        .extend(decode_state(field.bytes()?)?.map(Box::new));
                }
                (100, field) => ceiling = field.uint32()?,
                _ => {}
            }
        }
        if let Some(sender) = record
            .current
            .as_mut()
            .and_then(|state| state.sender.as_mut())
        {
            sender.chain = honour_lease(&sender.chain, ceiling)?;
        }
        Ok(record)
    }

    /// The record as bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let states = || {
            self.current
                .iter()
                .map(|state| (1, state))
                .chain(self.archived.iter().map(|state| (2, state)))
        };
        let len = states()
            .map(|(_, state)| wire::bytes_len(state_len(state)))
            .sum();
        let mut out = Vec::with_capacity(len);
        for (number, state) in states() {
            wire::put_header(&mut out, number, state_len(state));
            encode_state(state, &mut out);
        }
        debug_assert_eq!(out.len(), len);
        out
    }

    /// Makes `state` the current session, archiving the one that was.
    pub(super) fn install(&mut self, state: Box<State>) {
        if let Some(mut replaced) = self.current.replace(state) {
            // An archived session is never sent on, so nothing of it awaits an answer.
            replaced.pending = None;
            self.archived.insert(0, replaced);
            self.archived.truncate(MAX_ARCHIVED);
        }
    }

    /// Makes the archived session at `at` the current one.
    pub(super) fn promote(&mut self, at: usize) {
        if at < self.archived.len() {
            let state = self.archived.remove(at);
            self.install(state);
        }
    }
}

impl std::fmt::Debug for SessionRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionRecord")
            .field("base_key", &self.base_key())
            .field("archived", &self.archived.len())
            .finish_non_exhaustive()
    }
}

/// The chain moved to the first counter the lease does not cover.
pub(super) fn honour_lease(chain: &ChainKey, ceiling: u32) -> Result<ChainKey, RecordError> {
    if ceiling.saturating_sub(chain.index) > MAX_LEASE {
        return Err(RecordError::Lease(ceiling));
    }
    chain
        .skip_to(ceiling.max(chain.index))
        .ok_or(RecordError::Malformed)
}

// The layout, both ways. Numbers are fields of SessionStructure and what it holds. One is ours: the burn of a sending
// chain, which others skip.
const BURN: u8 = 15;

/// `None` for an empty structure, by which some implementations mean "no session".
fn decode_state(bytes: &[u8]) -> Result<Option<State>, RecordError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut version, mut previous_counter) = (0, 0);
    let (mut local_registration_id, mut remote_registration_id) = (0, 0);
    let (mut local_identity, mut remote_identity, mut base_key) = (None, None, None);
    let (mut root, mut sender, mut pending) = (None, None, None);
    let mut receivers = Vec::new();
    for field in Fields::new(bytes) {
        match field? {
            (1, field) => version = field.uint32()?,
            (2, field) => local_identity = Some(key(field)?),
            (3, field) => remote_identity = Some(key(field)?),
            (4, field) => root = Some(secret(field)?),
            (5, field) => previous_counter = field.uint32()?,
            (6, field) => sender = decode_sender_chain(field.bytes()?)?,
            (7, field) => receivers.push(decode_receiver_chain(field.bytes()?)?),
            (9, field) => pending = Some(decode_pending(field.bytes()?)?),
            (10, field) => remote_registration_id = field.uint32()?,
            (11, field) => local_registration_id = field.uint32()?,
            (13, field) => base_key = Some(field.bytes()?).filter(|key| !key.is_empty()),
            _ => {}
        }
    }
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    Ok(Some(State {
        local_identity: local_identity.ok_or(RecordError::Key)?,
        remote_identity: remote_identity.ok_or(RecordError::Key)?,
        local_registration_id,
        remote_registration_id,
        base_key: base_key.map(PublicKey::deserialize).transpose()?,
        root: root.ok_or(RecordError::Key)?,
        sender,
        // One library counts an unused chain as -1 (chapter 05.7).
        previous_counter: if previous_counter == u32::MAX {
            0
        } else {
            previous_counter
        },
        receivers,
        pending,
    }))
}

fn state_len(state: &State) -> usize {
    let chain = |chain: &ReceiverChain| wire::bytes_len(receiver_chain_len(chain));
    wire::uint32_len(VERSION)
        + 2 * wire::bytes_len(33)
        + wire::bytes_len(32)
        + wire::uint32_len(state.previous_counter)
        + state
            .sender
            .as_ref()
            .map_or(0, |sender| wire::bytes_len(sender_chain_len(sender)))
        + state.receivers.iter().map(chain).sum::<usize>()
        + state
            .pending
            .as_ref()
            .map_or(0, |pending| wire::bytes_len(pending_len(pending)))
        + wire::uint32_len(state.remote_registration_id)
        + wire::uint32_len(state.local_registration_id)
        + state.base_key.map_or(0, |_| wire::bytes_len(33))
}

fn encode_state(state: &State, out: &mut Vec<u8>) {
    wire::put_uint32(out, 1, VERSION);
    wire::put_bytes(out, 2, &state.local_identity.serialize());
    wire::put_bytes(out, 3, &state.remote_identity.serialize());
    wire::put_bytes(out, 4, state.root.as_bytes());
    wire::put_uint32(out, 5, state.previous_counter);
    if let Some(sender) = &state.sender {
        wire::put_header(out, 6, sender_chain_len(sender));
        wire::put_bytes(out, 1, &sender.ratchet.public.serialize());
        wire::put_bytes(out, 2, sender.ratchet.private.to_bytes().as_slice());
        encode_chain_key(&sender.chain, 3, out);
        if sender.burn != 0 {
            wire::put_uint32(out, BURN, sender.burn);
        }
    }
    for chain in &state.receivers {
        wire::put_header(out, 7, receiver_chain_len(chain));
        encode_receiver_chain(chain, out);
    }
    if let Some(pending) = &state.pending {
        wire::put_header(out, 9, pending_len(pending));
        if let Some(id) = pending.pre_key_id {
            wire::put_uint32(out, 1, id);
        }
        wire::put_bytes(out, 2, &pending.base_key.serialize());
        wire::put_uint32(out, 3, pending.signed_pre_key_id);
    }
    wire::put_uint32(out, 10, state.remote_registration_id);
    wire::put_uint32(out, 11, state.local_registration_id);
    if let Some(key) = &state.base_key {
        wire::put_bytes(out, 13, &key.serialize());
    }
}

/// `None` for an empty structure: a session that can only read.
fn decode_sender_chain(bytes: &[u8]) -> Result<Option<SenderChain>, RecordError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut public, mut private, mut chain, mut burn) = (None, None, None, 0);
    for field in Fields::new(bytes) {
        match field? {
            (1, field) => public = Some(key(field)?),
            (2, field) => private = Some(PrivateKey::from_slice(field.bytes()?)?),
            (3, field) => chain = decode_chain_key(field.bytes()?)?,
            (number, field) if number == u32::from(BURN) => burn = field.uint32()?,
            _ => {}
        }
    }
    let (Some(public), Some(private), Some(chain)) = (public, private, chain) else {
        return Err(RecordError::Key);
    };
    // The stored public half is believed here: the store is ours, nothing is signed with ratchet keys, and computing
    // it would cost twenty times the rest of the record.
    Ok(Some(SenderChain {
        ratchet: KeyPair { private, public },
        chain,
        burn,
    }))
}

fn sender_chain_len(sender: &SenderChain) -> usize {
    let burn = match sender.burn {
        0 => 0,
        burn => wire::uint32_len(burn),
    };
    wire::bytes_len(33) + wire::bytes_len(32) + wire::bytes_len(chain_key_len(&sender.chain)) + burn
}

fn decode_receiver_chain(bytes: &[u8]) -> Result<ReceiverChain, RecordError> {
    let (mut ratchet, mut chain, mut skipped) = (None, None, Vec::new());
    for field in Fields::new(bytes) {
        match field? {
            (1, field) => ratchet = Some(key(field)?),
            (3, field) => chain = decode_chain_key(field.bytes()?)?,
            (4, field) => skipped.push(decode_skipped(field.bytes()?)?),
            _ => {}
        }
    }
    // Others store them in other orders; ours is what look-ups rely on. Sorted input costs nothing.
    skipped.sort_by_key(|skipped: &Skipped| skipped.index);
    Ok(ReceiverChain {
        ratchet: ratchet.ok_or(RecordError::Key)?,
        chain,
        skipped,
    })
}

fn receiver_chain_len(chain: &ReceiverChain) -> usize {
    wire::bytes_len(33)
        + wire::bytes_len(0)
        + chain
            .chain
            .as_ref()
            .map_or(0, |chain| wire::bytes_len(chain_key_len(chain)))
        + chain
            .skipped
            .iter()
            .map(|skipped| wire::bytes_len(skipped_len(skipped)))
            .sum::<usize>()
}

fn encode_receiver_chain(chain: &ReceiverChain, out: &mut Vec<u8>) {
    wire::put_bytes(out, 1, &chain.ratchet.serialize());
    // The private half nobody has, written empty as every other implementation does.
    wire::put_bytes(out, 2, &[]);
    if let Some(chain) = &chain.chain {
        encode_chain_key(chain, 3, out);
    }
    for skipped in &chain.skipped {
        wire::put_header(out, 4, skipped_len(skipped));
        wire::put_uint32(out, 1, skipped.index);
        match &skipped.keys {
            SkippedKeys::Seed(seed) => wire::put_bytes(out, 5, seed.as_bytes()),
            SkippedKeys::Expanded(keys) => {
                wire::put_bytes(out, 2, &keys.cipher);
                wire::put_bytes(out, 3, &keys.mac);
                wire::put_bytes(out, 4, &keys.iv);
            }
        }
    }
}

fn decode_skipped(bytes: &[u8]) -> Result<Skipped, RecordError> {
    let mut index = 0;
    let (mut cipher, mut mac, mut iv, mut seed): (&[u8], &[u8], &[u8], &[u8]) =
        (&[], &[], &[], &[]);
    for field in Fields::new(bytes) {
        match field? {
            (1, field) => index = field.uint32()?,
            (2, field) => cipher = field.bytes()?,
            (3, field) => mac = field.bytes()?,
            (4, field) => iv = field.bytes()?,
            // 5 is libsignal's number for it; 100 that of the library which also leases counters.
            (5 | 100, field) => seed = field.bytes()?,
            _ => {}
        }
    }
    if !seed.is_empty() {
        return Ok(Skipped::new(index, Secret::new(exactly(seed)?)));
    }
    let keys = MessageKeys {
        cipher: exactly(cipher)?,
        mac: exactly(mac)?,
        iv: exactly(iv)?,
    };
    Ok(Skipped {
        index,
        keys: SkippedKeys::Expanded(Box::new(keys)),
    })
}

fn skipped_len(skipped: &Skipped) -> usize {
    let keys = match skipped.keys {
        SkippedKeys::Seed(_) => wire::bytes_len(32),
        SkippedKeys::Expanded(_) => 2 * wire::bytes_len(32) + wire::bytes_len(16),
    };
    wire::uint32_len(skipped.index) + keys
}

/// `None` for a closed chain, whose key is absent or empty. Sender keys store their chain in the same shape.
pub(super) fn decode_chain_key(bytes: &[u8]) -> Result<Option<ChainKey>, RecordError> {
    let (mut index, mut chain_key) = (0, None);
    for field in Fields::new(bytes) {
        match field? {
            (1, field) => index = field.uint32()?,
            (2, Field::Bytes([])) => chain_key = None,
            (2, field) => chain_key = Some(secret(field)?),
            _ => {}
        }
    }
    Ok(chain_key.map(|key| ChainKey { index, key }))
}

pub(super) fn chain_key_len(chain: &ChainKey) -> usize {
    wire::uint32_len(chain.index) + wire::bytes_len(32)
}

pub(super) fn encode_chain_key(chain: &ChainKey, number: u8, out: &mut Vec<u8>) {
    wire::put_header(out, number, chain_key_len(chain));
    wire::put_uint32(out, 1, chain.index);
    wire::put_bytes(out, 2, chain.key.as_bytes());
}

fn decode_pending(bytes: &[u8]) -> Result<PendingPreKey, RecordError> {
    let (mut pre_key_id, mut signed_pre_key_id, mut base_key) = (None, 0, None);
    for field in Fields::new(bytes) {
        match field? {
            (1, field) => pre_key_id = Some(field.uint32()?),
            (2, field) => base_key = Some(key(field)?),
            (3, field) => signed_pre_key_id = field.uint32()?,
            _ => {}
        }
    }
    Ok(PendingPreKey {
        pre_key_id,
        signed_pre_key_id,
        base_key: base_key.ok_or(RecordError::Key)?,
    })
}

fn pending_len(pending: &PendingPreKey) -> usize {
    pending.pre_key_id.map_or(0, wire::uint32_len)
        + wire::bytes_len(33)
        + wire::uint32_len(pending.signed_pre_key_id)
}

fn key(field: Field<'_>) -> Result<PublicKey, RecordError> {
    public_key(field).map_err(|_| RecordError::Key)
}

pub(super) fn secret(field: Field<'_>) -> Result<Secret, RecordError> {
    exactly(field.bytes()?).map(Secret::new)
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], RecordError> {
    bytes.try_into().map_err(|_| RecordError::Key)
}

#[cfg(test)]
mod tests {
    use super::super::properties::World;
    use super::*;

    /// A later version may write fields that this one does not know; they mean nothing to it.
    #[test]
    fn fields_that_nobody_knows_mean_nothing() {
        let mut world = World::new([11; 32]);
        world.converge();
        let record = &world.devices[0].record;
        let sender = record.current.as_ref().unwrap().sender.as_ref().unwrap();
        let mut bytes = Vec::new();
        wire::put_bytes(&mut bytes, 1, &sender.ratchet.public.serialize());
        wire::put_bytes(&mut bytes, 2, sender.ratchet.private.to_bytes().as_slice());
        encode_chain_key(&sender.chain, 3, &mut bytes);
        wire::put_uint32(&mut bytes, BURN - 1, 77);
        let read = decode_sender_chain(&bytes).unwrap().unwrap();
        assert_eq!(read.burn, 0);
        assert_eq!(read.chain.index, sender.chain.index);
    }

    #[test]
    fn a_chain_without_a_key_is_closed() {
        for bytes in [&[][..], &[0x08, 7], &[0x08, 7, 0x12, 0]] {
            assert!(decode_chain_key(bytes).unwrap().is_none(), "{bytes:?}");
        }
        assert!(decode_chain_key(&[0x12, 1, 9]).is_err(), "too short");
    }

    #[test]
    fn a_session_that_is_not_in_the_archive_does_not_come_out_of_it() {
        let mut world = World::new([12; 32]);
        world.converge();
        let record = &mut world.devices[0].record;
        let before = record.encode();
        record.promote(record.archived.len());
        assert_eq!(record.encode(), before);
    }
}
