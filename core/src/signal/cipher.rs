//! Encrypting and decrypting between two devices (chapters 05.6 to 05.9).
//!
//! Decryption works in two halves. [`open`] looks at a session without touching it and returns the plaintext together
//! with everything that would have to change; [`commit`] changes it. A forged message therefore cannot move a ratchet,
//! and nothing is copied to undo a failure: of forty archived sessions, thirty-nine are only read.

use super::message::{Envelope, Header, ParseError, SignalMessage, seal};
use super::ratchet::{ChainKey, KeySource, MessageKeys, Secret, root_step};
use super::record::{MAX_SKIP, SessionRecord};
use super::state::{MAX_SKIPPED_KEYS, ReceiverChain, SenderChain, Skipped, State};
use super::{Ciphertext, CiphertextKind, Limits, LocalIdentity, PreKeyMessage, x3dh};
use crate::crypto::{KeyError, KeyPair, PublicKey, Rng, aes_cbc_decrypt};

/// Why nothing was encrypted. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncryptError {
    /// There is no session (or own sender key): fetch a bundle and [`initiate`](super::initiate) one.
    #[error("there is no session to encrypt with")]
    NoSession,
    /// The session was made with another identity of ours, before this device was paired anew. Initiate a new one.
    #[error("the session belongs to another identity of this device")]
    StaleIdentity,
    /// All 2^32 counters of the chain are used. Initiate a new session.
    #[error("the sending chain is used up")]
    ChainExhausted,
    /// The chain stands further back than it may have been, by more than recipients follow. Initiate a new session.
    #[error("the sending chain is {0} keys behind")]
    Burnt(u32),
}

/// Why a message did not decrypt. The record is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Its key has been used: it decrypted before, or its sender used one key for two messages. Who knows the messages
    /// by their ids can tell the two apart; without that, acknowledge and drop it.
    #[error("the key of the message is used up")]
    Duplicate,
    /// There is no session, or no such sender key, for this sender.
    #[error("there is no session for the message")]
    NoSession,
    /// A key in it cannot be agreed with or is none.
    #[error("the message holds a bad key")]
    InvalidKey(#[from] KeyError),
    /// It needs a pre-key of ours that we do not have (any more).
    #[error("the message needs a pre-key that is not there")]
    InvalidKeyId,
    /// It is malformed, or no session could make anything of it.
    #[error("the message is not one of this session")]
    InvalidMessage,
    /// The sender's signature on a group message is wrong.
    #[error("the signature of the message is wrong")]
    InvalidSignature,
    /// It claims to be further ahead than a real sender gets.
    #[error("the message is too far ahead")]
    TooFarAhead,
    /// The session is known, the MAC is wrong: the message was changed, or the two sides have diverged.
    #[error("the MAC of the message is wrong")]
    BadMac,
    /// The only sessions there are were made with another identity of ours.
    #[error("the session belongs to another identity of this device")]
    InvalidSession,
}

impl DecryptError {
    /// The code for `<retry error=…>` (chapter 05.15). `None`: do not ask for a retry.
    pub const fn retry_reason(&self) -> Option<u8> {
        match self {
            Self::Duplicate => None,
            Self::NoSession => Some(1),
            Self::InvalidKey(_) => Some(2),
            Self::InvalidKeyId => Some(3),
            Self::InvalidMessage => Some(4),
            Self::InvalidSignature => Some(5),
            Self::TooFarAhead => Some(6),
            Self::BadMac => Some(7),
            Self::InvalidSession => Some(8),
        }
    }
}

impl From<ParseError> for DecryptError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Key(error) => Self::InvalidKey(error),
            _ => Self::InvalidMessage,
        }
    }
}

/// Encrypts a (padded) plaintext on the current session and moves its sending chain on, past what the account has
/// [burnt](SessionRecord::at_burn) since the chain was used last.
///
/// The record must be durable before the bytes leave; see [`SessionRecord`].
pub fn encrypt(
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    plaintext: &[u8],
) -> Result<Ciphertext, EncryptError> {
    let burn = record.burn;
    let state = record.current.as_mut().ok_or(EncryptError::NoSession)?;
    if state.local_identity != local.key_pair.public {
        return Err(EncryptError::StaleIdentity);
    }
    let sender = state.sender.as_mut().ok_or(EncryptError::NoSession)?;
    let skipped = match burn.saturating_sub(sender.burn) {
        0 => None,
        behind if behind > MAX_SKIP => return Err(EncryptError::Burnt(behind)),
        behind => Some(skip(&sender.chain, behind).ok_or(EncryptError::ChainExhausted)?),
    };
    let chain = skipped.as_ref().unwrap_or(&sender.chain);
    let (seed, next) = chain.step().ok_or(EncryptError::ChainExhausted)?;
    let header = Header {
        sender: &state.local_identity,
        receiver: &state.remote_identity,
        ratchet_key: &sender.ratchet.public,
        counter: chain.index,
        previous_counter: state.previous_counter,
    };
    let envelope = state.pending.as_ref().map(|pending| Envelope {
        registration_id: local.registration_id,
        pre_key_id: pending.pre_key_id,
        signed_pre_key_id: pending.signed_pre_key_id,
        base_key: pending.base_key,
    });
    let bytes = seal(
        &header,
        &MessageKeys::derive(&seed),
        envelope.as_ref(),
        plaintext,
    );
    sender.chain = next;
    sender.burn = sender.burn.max(burn);
    let kind = if envelope.is_some() {
        CiphertextKind::PreKey
    } else {
        CiphertextKind::Message
    };
    Ok(Ciphertext { kind, bytes })
}

fn skip(chain: &ChainKey, keys: u32) -> Option<ChainKey> {
    chain.skip_to(chain.index.checked_add(keys)?)
}

/// Whether the record has the session a `pkmsg` with this base key belongs to; then it needs none of our pre-keys.
pub fn knows_base_key(record: &SessionRecord, base: &PublicKey) -> bool {
    place_of(record, base).is_some()
}

/// Decrypts a `pkmsg`, building its session first if it is new.
///
/// The pre-keys are those the message names. They are needed only when its base key is new ([`knows_base_key`]);
/// passing `None` then is [`DecryptError::InvalidKeyId`]. The caller has decided to trust the identity in the message,
/// and deletes the one-time key once the record is durable, not before.
pub fn decrypt_pre_key(
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    message: &PreKeyMessage,
    signed_pre_key: Option<&KeyPair>,
    one_time: Option<&KeyPair>,
    rng: &mut Rng,
) -> Result<Vec<u8>, DecryptError> {
    decrypt_pre_key_with(
        record,
        local,
        message,
        signed_pre_key,
        one_time,
        Limits::PEER,
        rng,
    )
}

/// [`decrypt_pre_key`] with other limits, for devices of our own account.
pub fn decrypt_pre_key_within(
    limits: Limits,
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    message: &PreKeyMessage,
    signed_pre_key: Option<&KeyPair>,
    one_time: Option<&KeyPair>,
    rng: &mut Rng,
) -> Result<Vec<u8>, DecryptError> {
    decrypt_pre_key_with(
        record,
        local,
        message,
        signed_pre_key,
        one_time,
        limits,
        rng,
    )
}

/// Decrypts a `msg` with whichever session of the record can, and makes that session the current one.
pub fn decrypt(
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    message: &[u8],
    rng: &mut Rng,
) -> Result<Vec<u8>, DecryptError> {
    decrypt_with(record, local, message, Limits::PEER, rng)
}

/// [`decrypt`] with other limits, for devices of our own account.
pub fn decrypt_within(
    limits: Limits,
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    message: &[u8],
    rng: &mut Rng,
) -> Result<Vec<u8>, DecryptError> {
    decrypt_with(record, local, message, limits, rng)
}

/// Where in a record a session is.
#[derive(Clone, Copy)]
enum Place {
    Current,
    Archived(usize),
}

pub(super) fn decrypt_pre_key_with(
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    message: &PreKeyMessage,
    signed_pre_key: Option<&KeyPair>,
    one_time: Option<&KeyPair>,
    limits: Limits,
    keys: &mut impl KeySource,
) -> Result<Vec<u8>, DecryptError> {
    let inner = SignalMessage::parse(&message.message)?;
    let burn = record.burn;
    if let Some(place) = place_of(record, &message.base_key) {
        let state = state_mut(record, place).ok_or(DecryptError::NoSession)?;
        // Without this, a `pkmsg` caught under way could be sent on under another identity, which the caller would
        // then take for the sender's.
        if state.remote_identity != message.identity_key {
            return Err(DecryptError::InvalidMessage);
        }
        let plaintext = open_and_commit(state, local, &inner, limits, burn, keys)?;
        make_current(record, place);
        return Ok(plaintext);
    }

    let signed_pre_key = signed_pre_key.ok_or(DecryptError::InvalidKeyId)?;
    let one_time = match message.pre_key_id {
        Some(_) => Some(one_time.ok_or(DecryptError::InvalidKeyId)?),
        None => None,
    };
    let mut state = Box::new(x3dh::respond(local, message, signed_pre_key, one_time)?);
    let plaintext = open_and_commit(&mut state, local, &inner, limits, burn, keys)?;
    record.install(state);
    Ok(plaintext)
}

pub(super) fn decrypt_with(
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    message: &[u8],
    limits: Limits,
    keys: &mut impl KeySource,
) -> Result<Vec<u8>, DecryptError> {
    let message = SignalMessage::parse(message)?;
    // A ratchet key belongs to one session. When some session has met this one before, no other needs to be asked;
    // asking would cost an agreement each, forty of them for every duplicate.
    let known = places(record).any(|(_, state)| state.knows_ratchet(&message.ratchet_key));
    let mut worst = None;
    let mut found = None;
    for (place, state) in places(record) {
        if known && !state.knows_ratchet(&message.ratchet_key) {
            continue;
        }
        match open(state, local, &message, limits) {
            Ok(opened) => {
                found = Some((place, opened));
                break;
            }
            Err(error) => worst = Some(worse(worst, error)),
        }
    }
    let Some((place, opened)) = found else {
        return Err(worst.unwrap_or(DecryptError::NoSession));
    };
    let burn = record.burn;
    let state = state_mut(record, place).ok_or(DecryptError::NoSession)?;
    let plaintext = commit(state, &message, opened, burn, keys)?;
    make_current(record, place);
    Ok(plaintext)
}

/// Of what several sessions said, what says most about the message.
fn worse(one: Option<DecryptError>, other: DecryptError) -> DecryptError {
    let weight = |error: &DecryptError| match error {
        DecryptError::Duplicate => 5,
        DecryptError::TooFarAhead => 4,
        DecryptError::BadMac => 3,
        DecryptError::InvalidKey(_) => 2,
        DecryptError::InvalidSession => 0,
        _ => 1,
    };
    one.filter(|one| weight(one) >= weight(&other))
        .unwrap_or(other)
}

/// All sessions in the order they are asked: the current one, then the archived ones, newest first.
fn places(record: &SessionRecord) -> impl Iterator<Item = (Place, &State)> {
    let archived = record.archived.iter().enumerate();
    let current = record
        .current
        .iter()
        .map(|state| (Place::Current, &**state));
    current.chain(archived.map(|(at, state)| (Place::Archived(at), &**state)))
}

fn place_of(record: &SessionRecord, base: &PublicKey) -> Option<Place> {
    places(record)
        .find(|(_, state)| state.base_key.as_ref() == Some(base))
        .map(|(place, _)| place)
}

fn state_mut(record: &mut SessionRecord, place: Place) -> Option<&mut State> {
    match place {
        Place::Current => record.current.as_deref_mut(),
        Place::Archived(at) => record.archived.get_mut(at).map(|state| &mut **state),
    }
}

fn make_current(record: &mut SessionRecord, place: Place) {
    if let Place::Archived(at) = place {
        record.promote(at);
    }
}

fn open_and_commit(
    state: &mut State,
    local: &LocalIdentity<'_>,
    message: &SignalMessage<'_>,
    limits: Limits,
    burn: u32,
    keys: &mut impl KeySource,
) -> Result<Vec<u8>, DecryptError> {
    let opened = open(state, local, message, limits)?;
    commit(state, message, opened, burn, keys)
}

/// A message that decrypted, and what that changes in its session.
struct Opened {
    plaintext: Vec<u8>,
    /// The root key after the receiving half of a ratchet turn, when the message starts a chain.
    turned: Option<Secret>,
    used: Used,
}

/// Where the message's key came from.
enum Used {
    /// The list of skipped keys.
    Stored,
    /// The chain, which is now here, past keys of other messages.
    Chain(ChainKey, Vec<Skipped>),
}

/// Decrypts without changing anything.
fn open(
    state: &State,
    local: &LocalIdentity<'_>,
    message: &SignalMessage<'_>,
    limits: Limits,
) -> Result<Opened, DecryptError> {
    if state.local_identity != local.key_pair.public {
        return Err(DecryptError::InvalidSession);
    }
    let (turned, keys, used) = match state
        .receivers
        .iter()
        .find(|chain| chain.ratchet == message.ratchet_key)
    {
        Some(receiver) => match receiver.find_skipped(message.counter) {
            Some(skipped) => (None, skipped.message_keys(), Used::Stored),
            None => {
                // A chain closed by another implementation has only the keys it stored.
                let chain = receiver
                    .chain
                    .as_ref()
                    .ok_or(DecryptError::InvalidMessage)?;
                let (keys, used) = walk(chain, message.counter, limits)?;
                (None, keys, used)
            }
        },
        None => {
            let sender = state.sender.as_ref().ok_or(DecryptError::InvalidMessage)?;
            let (root, chain) =
                root_step(&state.root, &sender.ratchet.private, &message.ratchet_key)?;
            let (keys, used) = walk(&chain, message.counter, limits)?;
            (Some(root), keys, used)
        }
    };
    if !message.is_authentic(&keys.mac, &state.remote_identity, &state.local_identity) {
        return Err(DecryptError::BadMac);
    }
    let plaintext = aes_cbc_decrypt(&keys.cipher, &keys.iv, message.ciphertext);
    Ok(Opened {
        plaintext: plaintext.map_err(|_| DecryptError::InvalidMessage)?,
        turned,
        used,
    })
}

/// The keys of message `counter`, and the chain after it.
fn walk(
    chain: &ChainKey,
    counter: u32,
    limits: Limits,
) -> Result<(MessageKeys, Used), DecryptError> {
    let ahead = counter
        .checked_sub(chain.index)
        .ok_or(DecryptError::Duplicate)?;
    if ahead > limits.forward_jump {
        return Err(DecryptError::TooFarAhead);
    }
    // Keys further back than the list is long would only be dropped again.
    let kept = (ahead as usize).min(MAX_SKIPPED_KEYS) as u32;
    let mut chain = chain
        .skip_to(counter - kept)
        .ok_or(DecryptError::TooFarAhead)?;
    let mut skipped = Vec::with_capacity(kept as usize);
    loop {
        let (seed, next) = chain.step().ok_or(DecryptError::TooFarAhead)?;
        if chain.index == counter {
            return Ok((MessageKeys::derive(&seed), Used::Chain(next, skipped)));
        }
        skipped.push(Skipped::new(chain.index, seed));
        chain = next;
    }
}

/// Does what [`open`] found out. Everything that can fail comes before the first change.
fn commit(
    state: &mut State,
    message: &SignalMessage<'_>,
    opened: Opened,
    burn: u32,
    keys: &mut impl KeySource,
) -> Result<Vec<u8>, DecryptError> {
    if let Some(root) = opened.turned {
        let ratchet = keys.next_pair();
        let (root, chain) = root_step(&root, &ratchet.private, &message.ratchet_key)?;
        state.root = root;
        let replaced = state.sender.replace(SenderChain {
            ratchet,
            chain,
            burn,
        });
        // Saturated: an unused chain has no last counter, and others send 2^32-1 for it, which is no number to trust.
        state.previous_counter = replaced.map_or(0, |sender| sender.chain.index.saturating_sub(1));
        state.add_receiver(ReceiverChain {
            ratchet: message.ratchet_key,
            chain: None,
            skipped: Vec::new(),
        });
    }
    if let Some(receiver) = state
        .receivers
        .iter_mut()
        .find(|chain| chain.ratchet == message.ratchet_key)
    {
        match opened.used {
            Used::Stored => receiver.forget_skipped(message.counter),
            Used::Chain(next, skipped) => receiver.advance(next, skipped),
        }
    }
    state.pending = None;
    Ok(opened.plaintext)
}

#[cfg(test)]
mod tests {
    use super::super::properties::{Move, Parts, World};
    use super::*;
    use crate::crypto::KeyError;

    /// What is asked for in a retry receipt is decided by this: the answer of the session that got furthest with the
    /// message, however many others there are.
    #[test]
    fn of_several_sessions_the_one_that_says_most_is_heard() {
        let most_first = [
            DecryptError::Duplicate,
            DecryptError::TooFarAhead,
            DecryptError::BadMac,
            DecryptError::InvalidKey(KeyError::LowOrder),
            DecryptError::InvalidMessage,
            DecryptError::InvalidSession,
        ];
        for (at, says_more) in most_first.into_iter().enumerate() {
            assert_eq!(worse(None, says_more), says_more);
            for says_less in most_first.into_iter().skip(at) {
                assert_eq!(worse(Some(says_more), says_less), says_more);
                assert_eq!(worse(Some(says_less), says_more), says_more);
            }
        }
        // Of two that say as much, the newer session was asked first.
        let equal = [DecryptError::NoSession, DecryptError::InvalidMessage];
        assert_eq!(worse(Some(equal[0]), equal[1]), equal[0]);
    }

    /// The codes of chapter 05.15.
    #[test]
    fn reasons_for_a_retry() {
        let reasons = [
            DecryptError::NoSession,
            DecryptError::InvalidKey(KeyError::LowOrder),
            DecryptError::InvalidKeyId,
            DecryptError::InvalidMessage,
            DecryptError::InvalidSignature,
            DecryptError::TooFarAhead,
            DecryptError::BadMac,
            DecryptError::InvalidSession,
        ]
        .map(|error| error.retry_reason());
        assert_eq!(reasons, [1, 2, 3, 4, 5, 6, 7, 8].map(Some));
        assert_eq!(DecryptError::Duplicate.retry_reason(), None);
    }

    #[test]
    fn a_key_that_is_none_is_called_so() {
        let mut world = World::new([10; 32]);
        world.converge();
        world.play(Move::Send(0));
        let mut message = world.network.pop().unwrap().sent.bytes;
        // Version, field 1, 33 bytes, and the type of the ratchet key.
        assert_eq!(message[..4], [0x33, 0x0a, 33, 5]);
        message[3] = 6;
        let Parts {
            record, local, rng, ..
        } = world.devices[1].parts();
        let error = decrypt(record, &local, &message, rng).unwrap_err();
        assert!(matches!(error, DecryptError::InvalidKey(_)), "{error:?}");
    }
}
