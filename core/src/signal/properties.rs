//! Two devices over a network that loses, repeats and reorders, in every interleaving proptest thinks of.

use super::*;
use crate::crypto::{PublicKey, Rng};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever the order: every message that arrives decrypts once, to its plaintext; every repetition is called
    /// one; no key is used twice; nothing depends on records staying in memory.
    #[test]
    fn a_conversation_over_a_bad_network(moves in prop::collection::vec(any_move(), 1..80), seed: [u8; 32]) {
        let mut world = World::new(seed);
        for one in moves {
            world.play(one);
        }
        world.deliver_everything();
        world.converge();
    }
}

proptest! {
    #[test]
    fn parsers_survive_anything(mut bytes: Vec<u8>, real_version: bool) {
        let _ = SessionRecord::decode(&bytes);
        if let Some(first) = bytes.first_mut().filter(|_| real_version) {
            *first = 0x33;
        }
        let _ = PreKeyMessage::parse(&bytes);
        let _ = peek_counter(CiphertextKind::Message, &bytes);
        let _ = peek_counter(CiphertextKind::PreKey, &bytes);

        let mut world = World::new([1; 32]);
        world.play(Move::Send(0));
        world.deliver_everything();
        let Parts { record, local, rng, .. } = world.devices[1].parts();
        let before = record.encode();
        prop_assert!(decrypt(record, &local, &bytes, rng).is_err());
        prop_assert_eq!(record.encode(), before);
    }

    /// A damaged record is refused or is some record; and using what was accepted does not panic either.
    #[test]
    fn damaged_records_do_no_harm(at: prop::sample::Index, byte: u8, cut: prop::sample::Index, seed: [u8; 32]) {
        let mut world = World::new(seed);
        [0, 0, 1].into_iter().for_each(|by| world.play(Move::Send(by)));
        world.deliver_everything();
        world.play(Move::Send(0));
        let mut bytes = world.devices[1].record.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len() * 4).min(bytes.len()));
        if let Ok(mut record) = SessionRecord::decode(&bytes) {
            let Parts { local, rng, .. } = world.devices[1].parts();
            let _ = decrypt(&mut record, &local, &world.network[0].sent.bytes, rng);
            let _ = encrypt(&mut record, &local, b"text");
            prop_assert!(SessionRecord::decode(&record.encode()).is_ok());
        }
    }
}

/// A device that has lost its session starts another at any moment; forty of them are remembered.
#[test]
fn the_archive_keeps_forty_sessions() {
    let mut world = World::new([2; 32]);
    for _ in 0..42 {
        world.play(Move::Initiate(0));
        world.play(Move::Send(0));
    }
    // Only the first message of each session arrives, so the receiver has 42 of them.
    world.deliver_everything();
    assert_eq!(world.devices[1].record.archived(), 40);
    // The sender's archived sessions are answered on, too: the answer belongs to the newest.
    world.play(Move::Send(1));
    world.deliver_everything();
    world.converge();
}

#[test]
fn the_jump_ends_at_the_limit() {
    let mut world = World::new([3; 32]);
    for _ in 0..2_002 {
        world.play(Move::Send(0));
    }
    let far = world.network.pop().unwrap();
    let last = world.network.pop().unwrap();
    let receiver = &mut world.devices[1];
    let before = receiver.record.encode();
    assert_eq!(receiver.decrypt(&far.sent), Err(DecryptError::TooFarAhead));
    assert_eq!(receiver.record.encode(), before);
    assert_eq!(receiver.decrypt(&last.sent).unwrap(), last.plaintext);
    assert_eq!(
        receiver.record.current.as_ref().unwrap().receivers[0]
            .skipped
            .len(),
        2_000
    );
    assert_eq!(receiver.decrypt(&far.sent).unwrap(), far.plaintext);
    // The list of skipped keys is full, and every one of them works.
    for message in world.network.drain(..) {
        assert_eq!(receiver.decrypt(&message.sent).unwrap(), message.plaintext);
    }
    assert!(
        receiver.record.current.as_ref().unwrap().receivers[0]
            .skipped
            .is_empty()
    );
}

#[test]
fn devices_of_our_own_may_be_further_ahead() {
    let mut world = World::new([4; 32]);
    for _ in 0..3_000 {
        world.play(Move::Send(0));
    }
    let far = world.network.pop().unwrap();
    let message = PreKeyMessage::parse(&far.sent.bytes).unwrap();
    let Parts {
        record,
        local,
        signed_pre_key,
        one_time,
        rng,
    } = world.devices[1].parts();
    let key = message.pre_key_id.and_then(|id| one_time.get(&id));
    let plaintext = decrypt_pre_key_within(
        Limits::OWN_DEVICE,
        record,
        &local,
        &message,
        Some(signed_pre_key),
        key,
        rng,
    );
    assert_eq!(plaintext.unwrap(), far.plaintext);
    // The keys of the last 2,000 before it are there, the older ones are not.
    let results: Vec<bool> = world
        .network
        .drain(..)
        .map(|message| world.devices[1].decrypt(&message.sent).is_ok())
        .collect();
    assert_eq!(results.iter().position(|&ok| ok), Some(999));
    assert!(results[999..].iter().all(|&ok| ok));
}

#[test]
fn five_chains_are_kept() {
    let mut world = World::new([5; 32]);
    world.play(Move::Send(0));
    world.deliver_everything();
    // The straggler waits while the conversation turns its ratchet.
    world.play(Move::Send(0));
    let straggler = world.network.pop().unwrap();
    for turn in 1..=5 {
        for by in [1, 0] {
            world.play(Move::Send(by));
            world.deliver_everything();
        }
        let mut copy = world.devices[1].record.clone();
        let Parts { local, rng, .. } = world.devices[1].parts();
        let result = match straggler.sent.kind {
            CiphertextKind::Message => decrypt(&mut copy, &local, &straggler.sent.bytes, rng),
            CiphertextKind::PreKey => {
                let message = PreKeyMessage::parse(&straggler.sent.bytes).unwrap();
                decrypt_pre_key(&mut copy, &local, &message, None, None, rng)
            }
        };
        assert_eq!(result.is_ok(), turn < 5, "{turn}");
    }
}

/// What is known is asked of one session alone, which is what makes repetitions cheap.
#[test]
fn a_session_knows_the_ratchet_keys_that_it_has_met() {
    let mut world = World::new([13; 32]);
    world.converge();
    world.play(Move::Send(0));
    let ratchet = |world: &World| {
        let (key, _) =
            peek_counter(world.network[0].sent.kind, &world.network[0].sent.bytes).unwrap();
        key
    };
    let knows = |world: &World, key| {
        let state = world.devices[1].record.current.as_ref().unwrap();
        state.knows_ratchet(&key)
    };
    let new = ratchet(&world);
    assert!(!knows(&world, new));
    world.deliver_everything();
    assert!(knows(&world, new));
    assert!(!knows(&world, world.devices[1].identity.public));
}

#[test]
fn a_pre_key_that_is_not_there_is_named() {
    let mut world = World::new([6; 32]);
    world.play(Move::Send(0));
    let message = world.network.pop().unwrap();
    let parsed = PreKeyMessage::parse(&message.sent.bytes).unwrap();
    let Parts {
        record,
        local,
        signed_pre_key,
        one_time,
        rng,
    } = world.devices[1].parts();
    let one_time = &one_time[&parsed.pre_key_id.unwrap()];
    let missing = [
        (None, None),
        (None, Some(one_time)),
        (Some(signed_pre_key), None),
    ];
    for (signed, one_time) in missing {
        let result = decrypt_pre_key(record, &local, &parsed, signed, one_time, rng);
        assert_eq!(result, Err(DecryptError::InvalidKeyId));
        assert!(!record.is_usable());
    }
    let plaintext = decrypt_pre_key(
        record,
        &local,
        &parsed,
        Some(signed_pre_key),
        Some(one_time),
        rng,
    );
    assert_eq!(plaintext.unwrap(), message.plaintext);
}

/// Somebody between replaces the identity in a repeated `pkmsg`; the caller must not learn it as the sender's.
#[test]
fn a_known_session_cannot_change_its_identity() {
    let mut world = World::new([7; 32]);
    world.play(Move::Send(0));
    world.deliver_everything();
    world.play(Move::Send(0));
    let message = world.network.pop().unwrap();
    let mut parsed = PreKeyMessage::parse(&message.sent.bytes).unwrap();
    let genuine = parsed.identity_key;
    let Parts {
        record, local, rng, ..
    } = world.devices[1].parts();
    parsed.identity_key = KeyPair::generate(rng).public;
    assert_eq!(
        decrypt_pre_key(record, &local, &parsed, None, None, rng),
        Err(DecryptError::InvalidMessage)
    );
    parsed.identity_key = genuine;
    assert_eq!(
        decrypt_pre_key(record, &local, &parsed, None, None, rng).unwrap(),
        message.plaintext
    );
}

#[test]
fn a_new_identity_of_ours_makes_sessions_unusable() {
    let mut world = World::new([8; 32]);
    world.play(Move::Send(0));
    world.deliver_everything();
    world.play(Move::Send(1));
    let message = world.network.pop().unwrap();
    let device = &mut world.devices[0];
    assert!(device.record.is_usable_by(&device.identity.public));
    device.identity = KeyPair::generate(&mut device.rng);
    assert!(device.record.is_usable() && !device.record.is_usable_by(&device.identity.public));
    let local = LocalIdentity {
        key_pair: &device.identity,
        registration_id: 1,
    };
    assert_eq!(
        encrypt(&mut device.record, &local, b"text"),
        Err(EncryptError::StaleIdentity)
    );
    assert_eq!(
        device.decrypt(&message.sent),
        Err(DecryptError::InvalidSession)
    );
    device.record = SessionRecord::new();
    assert_eq!(device.decrypt(&message.sent), Err(DecryptError::NoSession));
}

// The world: two devices, a bag of messages under way, and what must be true.

#[derive(Clone, Debug)]
pub(super) enum Move {
    /// Write a message, starting a session first if there is none.
    Send(usize),
    /// Start a session although there may be one.
    Initiate(usize),
    /// Some message under way arrives.
    Deliver(prop::sample::Index),
    /// Some message under way arrives, and will arrive again.
    Repeat(prop::sample::Index),
    /// A changed copy of some message arrives.
    Tamper(prop::sample::Index, prop::sample::Index, u8),
    Lose(prop::sample::Index),
}

pub(super) fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => (0..2usize).prop_map(Move::Send),
        1 => (0..2usize).prop_map(Move::Initiate),
        6 => any::<prop::sample::Index>().prop_map(Move::Deliver),
        2 => any::<prop::sample::Index>().prop_map(Move::Repeat),
        1 => any::<(prop::sample::Index, prop::sample::Index, u8)>().prop_map(|(a, b, c)| Move::Tamper(a, b, c)),
        1 => any::<prop::sample::Index>().prop_map(Move::Lose),
    ]
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) identity: KeyPair,
    signed_pre_key: KeyPair,
    one_time: BTreeMap<u32, KeyPair>,
    pub(super) record: SessionRecord,
    /// The account's.
    pub(super) burn: u32,
    pub(super) rng: Rng,
    /// Ratchet turns so far: a message overtaken by five may be lost for good.
    turns: usize,
}

/// A device taken apart, as the functions of this module take it.
pub(super) struct Parts<'a> {
    pub(super) record: &'a mut SessionRecord,
    pub(super) local: LocalIdentity<'a>,
    signed_pre_key: &'a KeyPair,
    one_time: &'a BTreeMap<u32, KeyPair>,
    pub(super) rng: &'a mut Rng,
}

#[derive(Clone, Debug)]
pub(super) struct Underway {
    pub(super) to: usize,
    pub(super) sent: Ciphertext,
    plaintext: Vec<u8>,
    /// The receiver's turns when it was sent.
    turns: usize,
    arrived: bool,
}

pub(super) struct World {
    pub(super) devices: [Device; 2],
    pub(super) network: Vec<Underway>,
    pub(super) used: BTreeSet<(PublicKey, u32)>,
    written: u32,
    /// Somebody's records have gone back: what was read can be read again, or not at all.
    pub(super) forgetful: bool,
}

impl World {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        let mut rng = Rng::from_seed(seed);
        let mut device = |label| Device {
            identity: KeyPair::generate(&mut rng),
            signed_pre_key: KeyPair::generate(&mut rng),
            one_time: BTreeMap::new(),
            record: SessionRecord::new(),
            burn: 0,
            rng: rng.fork(label),
            turns: 0,
        };
        Self {
            devices: [device("left"), device("right")],
            network: Vec::new(),
            used: BTreeSet::new(),
            written: 0,
            forgetful: false,
        }
    }

    pub(super) fn play(&mut self, one: Move) {
        match one {
            Move::Send(by) => self.send(by),
            Move::Initiate(by) => self.initiate(by),
            Move::Deliver(at) if !self.network.is_empty() => {
                let message = self.network.swap_remove(at.index(self.network.len()));
                self.arrive(message);
            }
            Move::Repeat(at) if !self.network.is_empty() => {
                let at = at.index(self.network.len());
                self.network[at].arrived |= self.arrive(self.network[at].clone());
            }
            Move::Tamper(at, byte, change) if !self.network.is_empty() => {
                let at = at.index(self.network.len());
                self.tamper(at, byte, change);
            }
            Move::Lose(at) if !self.network.is_empty() => {
                self.network.swap_remove(at.index(self.network.len()));
            }
            _ => {}
        }
        for device in &mut self.devices {
            let encoded = device.record.encode();
            device.record = SessionRecord::decode(&encoded)
                .unwrap()
                .at_burn(device.burn);
            assert_eq!(device.record.encode(), encoded);
            // Only the session we send on can be waiting for an answer.
            assert!(
                device
                    .record
                    .archived
                    .iter()
                    .all(|state| state.pending.is_none())
            );
        }
    }

    fn initiate(&mut self, by: usize) {
        let peer = &mut self.devices[1 - by];
        let Device {
            identity,
            signed_pre_key,
            one_time,
            rng,
            ..
        } = peer;
        // Sometimes the peer has run out of one-time keys.
        let id = one_time.last_key_value().map_or(1, |(id, _)| id + 1);
        let key = (rng.below(3) > 0).then(|| KeyPair::generate(rng));
        let bundle = Bundle {
            registration_id: 7,
            identity: identity.public,
            signed_pre_key_id: 1,
            signed_pre_key: signed_pre_key.public,
            signature: identity
                .private
                .sign(&[&signed_pre_key.public.serialize()], rng),
            pre_key: key.as_ref().map(|key| (id, key.public)),
        };
        one_time.extend(key.map(|key| (id, key)));
        let Parts {
            record, local, rng, ..
        } = self.devices[by].parts();
        initiate(record, &local, &bundle, rng).unwrap();
    }

    fn send(&mut self, by: usize) {
        if !self.devices[by].record.is_usable() {
            self.initiate(by);
        }
        self.written += 1;
        let plaintext = format!("message {}", self.written).into_bytes();
        let turns = self.devices[1 - by].turns;
        let Parts { record, local, .. } = self.devices[by].parts();
        let sent = encrypt(record, &local, &plaintext).unwrap();
        let pair = peek_counter(sent.kind, &sent.bytes).unwrap();
        assert!(self.used.insert(pair), "a key was used for two plaintexts");
        self.network.push(Underway {
            to: 1 - by,
            sent,
            plaintext,
            turns,
            arrived: false,
        });
    }

    /// Whether it has now been read.
    fn arrive(&mut self, message: Underway) -> bool {
        let device = &mut self.devices[message.to];
        let before = device.record.encode();
        let result = device.decrypt(&message.sent);
        if result.is_err() {
            assert_eq!(device.record.encode(), before);
        }
        let overtaken = device.turns - message.turns >= 5;
        match result {
            Ok(plaintext) => {
                assert!(
                    !message.arrived || self.forgetful,
                    "a message was read twice"
                );
                assert_eq!(plaintext, message.plaintext);
                true
            }
            Err(DecryptError::Duplicate) if message.arrived => true,
            Err(_) if overtaken || self.forgetful => message.arrived,
            Err(error) => panic!("{error:?} for {message:?}"),
        }
    }

    fn tamper(&mut self, at: usize, byte: prop::sample::Index, change: u8) {
        let message = &self.network[at];
        let mut changed = message.sent.clone();
        let byte = byte.index(changed.bytes.len());
        if change == 0 {
            return;
        }
        changed.bytes[byte] ^= change;
        let device = &mut self.devices[message.to];
        let before = device.record.encode();
        match device.decrypt(&changed) {
            Err(_) => assert_eq!(device.record.encode(), before),
            // Not all of the envelope of a `pkmsg` is authenticated; what is inside it is.
            Ok(plaintext) => {
                assert_eq!(changed.kind, CiphertextKind::PreKey);
                assert!(!message.arrived || self.forgetful);
                assert_eq!(plaintext, message.plaintext);
                self.network[at].arrived = true;
            }
        }
    }

    pub(super) fn deliver_everything(&mut self) {
        for message in std::mem::take(&mut self.network) {
            self.arrive(message);
        }
    }

    /// After the storm, four alternating messages get both sides onto one session, without envelopes.
    pub(super) fn converge(&mut self) {
        for by in [0, 1, 0, 1] {
            self.send(by);
            self.deliver_everything();
        }
        let [left, right] = &self.devices;
        assert_eq!(left.record.base_key(), right.record.base_key());
        for by in [0, 1] {
            self.send(by);
            assert_eq!(self.network[0].sent.kind, CiphertextKind::Message);
            self.deliver_everything();
        }
    }
}

impl Device {
    pub(super) fn parts(&mut self) -> Parts<'_> {
        Parts {
            record: &mut self.record,
            local: LocalIdentity {
                key_pair: &self.identity,
                registration_id: 9,
            },
            signed_pre_key: &self.signed_pre_key,
            one_time: &self.one_time,
            rng: &mut self.rng,
        }
    }

    /// As an engine does it: parse, look up, decrypt, delete the one-time key.
    pub(super) fn decrypt(&mut self, sent: &Ciphertext) -> Result<Vec<u8>, DecryptError> {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: 9,
        };
        let ratchet = |record: &SessionRecord| {
            let sender = record
                .current
                .as_ref()
                .and_then(|state| state.sender.as_ref());
            sender.map(|sender| sender.ratchet.public)
        };
        let before = ratchet(&self.record);
        let plaintext = match sent.kind {
            CiphertextKind::Message => {
                decrypt(&mut self.record, &local, &sent.bytes, &mut self.rng)?
            }
            CiphertextKind::PreKey => {
                let message = PreKeyMessage::parse(&sent.bytes)?;
                let signed = (message.signed_pre_key_id == 1).then_some(&self.signed_pre_key);
                let known = knows_base_key(&self.record, &message.base_key);
                let one_time = message.pre_key_id.filter(|_| !known);
                let key = one_time.and_then(|id| self.one_time.get(&id));
                let rng = &mut self.rng;
                let plaintext =
                    decrypt_pre_key(&mut self.record, &local, &message, signed, key, rng)?;
                if let Some(id) = one_time {
                    self.one_time.remove(&id);
                }
                plaintext
            }
        };
        self.turns += usize::from(ratchet(&self.record) != before);
        Ok(plaintext)
    }
}
