//! The group vectors, and what no vector shows: forgeries, limits, rotation, any order.

use super::*;
use crate::crypto::Rng;
use crate::crypto::testing::{array, bytes};
use proptest::prelude::*;
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/sender-keys.json")).unwrap()
}

fn of(file: &Value) -> SenderKeyRecord {
    let signing = KeyPair::from_private(PrivateKey::from_bytes(array(&file["signing_private"])));
    assert_eq!(
        signing.public.serialize(),
        array(&file["signing_public_33"])
    );
    let id = file["key_id"].as_u64().unwrap() as u32;
    SenderKeyRecord::create_from(id, Secret::new(array(&file["chain_key_0"])), signing)
}

fn receiver(distribution: &Value) -> SenderKeyRecord {
    let mut record = SenderKeyRecord::new();
    record.process(&bytes(distribution)).unwrap();
    record
}

fn pair(seed: u8) -> (SenderKeyRecord, SenderKeyRecord, Rng) {
    let mut rng = Rng::from_seed([seed; 32]);
    let sender = SenderKeyRecord::create(&mut rng);
    let mut receiver = SenderKeyRecord::new();
    receiver.process(&sender.distribution().unwrap()).unwrap();
    (sender, receiver, rng)
}

#[test]
fn derived_keys_equal_the_vectors() {
    let file = vectors();
    let mut chain = ChainKey::first(Secret::new(array(&file["chain_key_0"])));
    for step in file["derived"].as_array().unwrap() {
        assert_eq!(u64::from(chain.index), step["iteration"].as_u64().unwrap());
        assert_eq!(chain.key.as_bytes(), &array(&step["chain_key"]));
        let (seed, next) = chain.step().unwrap();
        assert_eq!(seed.as_bytes(), &array(&step["seed"]));
        let keys = CipherKeys::derive(&seed);
        assert_eq!(
            (keys.cipher, keys.iv),
            (array(&step["cipher_key"]), array(&step["iv"]))
        );
        chain = next;
    }
}

#[test]
fn the_sender_writes_what_the_vectors_say() {
    let file = vectors();
    let mut record = of(&file);
    assert_eq!(
        record.distribution().unwrap(),
        bytes(&file["distribution_message_iteration_0"])
    );
    for message in file["messages"].as_array().unwrap() {
        let random = array(&message["signature_random_64"]);
        let sent = record
            .encrypt_with(&bytes(&message["plaintext"]), &random)
            .unwrap();
        assert_eq!(sent, bytes(&message["sender_key_message"]));
        record = SenderKeyRecord::decode(&record.encode()).unwrap();
    }
    assert_eq!(
        record.distribution().unwrap(),
        bytes(&file["distribution_message_iteration_5"])
    );
    assert_eq!(record.encode(), bytes(&file["sender_record_final"]));
}

#[test]
fn a_receiver_follows_the_script_out_of_order() {
    let file = vectors();
    let mut record = receiver(&file["distribution_message_iteration_0"]);
    let untouched = record.encode();
    assert_eq!(
        record.decrypt(&bytes(&file["tampered_message"]["bytes"])),
        Err(DecryptError::InvalidSignature)
    );
    assert_eq!(record.encode(), untouched);
    for step in file["receiver_steps"].as_array().unwrap() {
        let message = &file["messages"][step["decrypt"].as_u64().unwrap() as usize];
        let result = record.decrypt(&bytes(&message["sender_key_message"]));
        match step["result"].as_str().unwrap() {
            "ok" => assert_eq!(result.unwrap(), bytes(&message["plaintext"])),
            "duplicate" => assert_eq!(result, Err(DecryptError::Duplicate)),
            other => panic!("unknown result {other}"),
        }
        record = SenderKeyRecord::decode(&record.encode()).unwrap();
    }
    assert_eq!(record.encode(), bytes(&file["receiver_record_final"]));
}

#[test]
fn a_late_joiner_cannot_read_back() {
    let file = vectors();
    let mut record = receiver(&file["distribution_message_iteration_5"]);
    assert!(
        record
            .decrypt(&bytes(&file["messages"][4]["sender_key_message"]))
            .is_err()
    );
}

/// Baileys skips every second iteration. Each later distribution must do as a start, too.
#[test]
fn gaps_as_baileys_makes_them_are_normal() {
    let file: Value = serde_json::from_str(include_str!(
        "../../../tests/vectors/sender-keys-baileys.json"
    ))
    .unwrap();
    let messages = file["messages"].as_array().unwrap();
    for start in 0..messages.len() {
        let mut record = receiver(&messages[start]["distribution_message_before"]);
        for message in &messages[start..] {
            record
                .process(&bytes(&message["distribution_message_before"]))
                .unwrap();
            let plaintext = record
                .decrypt(&bytes(&message["sender_key_message"]))
                .unwrap();
            assert_eq!(plaintext, bytes(&message["plaintext"]));
        }
        // The first distribution again does not rewind: what was read stays read.
        record
            .process(&bytes(&messages[0]["distribution_message_before"]))
            .unwrap();
        let again = record.decrypt(&bytes(&messages[3]["sender_key_message"]));
        assert_eq!(again, Err(DecryptError::Duplicate));
    }
}

#[test]
fn records_without_a_key_say_so() {
    let (mut sender, mut receiver, mut rng) = pair(1);
    let message = sender.encrypt(b"text", &mut rng).unwrap();
    assert_eq!(
        SenderKeyRecord::new().decrypt(&message),
        Err(DecryptError::NoSession)
    );
    assert_eq!(SenderKeyRecord::new().distribution(), None);
    assert_eq!(
        SenderKeyRecord::new().encrypt(b"text", &mut rng),
        Err(EncryptError::NoSession)
    );
    // A member's key decrypts, it does not encrypt.
    assert_eq!(
        receiver.encrypt(b"text", &mut rng),
        Err(EncryptError::NoSession)
    );
    assert_eq!(receiver.decrypt(&message).unwrap(), b"text");
}

#[test]
fn members_cannot_write_in_each_others_name() {
    let (mut sender, mut receiver, mut rng) = pair(2);
    let mut forger = receiver.clone();
    forger.states[0].signing_private = Some(PrivateKey::generate(&mut rng));
    let forged = forger.encrypt(b"I owe you", &mut rng).unwrap();
    assert_eq!(
        receiver.decrypt(&forged),
        Err(DecryptError::InvalidSignature)
    );
    let genuine = sender.encrypt(b"text", &mut rng).unwrap();
    assert_eq!(receiver.decrypt(&genuine).unwrap(), b"text");
}

#[test]
fn the_jump_ends_at_the_limit() {
    let (mut sender, mut receiver, mut rng) = pair(3);
    let first = sender.encrypt(b"first", &mut rng).unwrap();
    sender.states[0].chain = sender.states[0].chain.skip_to(2_001).unwrap();
    let far = sender.encrypt(b"far", &mut rng).unwrap();
    let before = receiver.encode();
    assert_eq!(receiver.decrypt(&far), Err(DecryptError::TooFarAhead));
    assert_eq!(receiver.encode(), before);
    let mut own = receiver.clone();
    assert_eq!(
        own.decrypt_within(Limits::OWN_DEVICE, &far).unwrap(),
        b"far"
    );
    // 2,000 keys are kept, of 2,001 passed over: the oldest is gone.
    assert_eq!(own.states[0].skipped.len(), 2_000);
    assert_eq!(own.decrypt(&first), Err(DecryptError::Duplicate));
    // After the first the far one is exactly at the limit.
    assert_eq!(receiver.decrypt(&first).unwrap(), b"first");
    assert_eq!(receiver.decrypt(&far).unwrap(), b"far");
}

#[test]
fn a_distribution_beyond_reach_is_followed() {
    let (mut sender, mut receiver, mut rng) = pair(4);
    let early = sender.encrypt(b"early", &mut rng).unwrap();
    let late = sender.encrypt(b"late", &mut rng).unwrap();
    assert_eq!(receiver.decrypt(&late).unwrap(), b"late");
    sender.states[0].chain = sender.states[0].chain.skip_to(10_000).unwrap();
    receiver.process(&sender.distribution().unwrap()).unwrap();
    assert_eq!(
        receiver
            .decrypt(&sender.encrypt(b"now", &mut rng).unwrap())
            .unwrap(),
        b"now"
    );
    assert_eq!(receiver.decrypt(&early).unwrap(), b"early");
}

/// What can be reached by going on is not jumped to: the messages on the way would be lost.
#[test]
fn a_distribution_within_reach_changes_nothing() {
    let (mut sender, mut receiver, mut rng) = pair(5);
    let first = sender.encrypt(b"first", &mut rng).unwrap();
    let reach = Limits::PEER.forward_jump;
    sender.states[0].chain = sender.states[0].chain.skip_to(reach).unwrap();
    receiver.process(&sender.distribution().unwrap()).unwrap();
    assert_eq!(receiver.decrypt(&first).unwrap(), b"first");
}

/// How others write "only the public half".
#[test]
fn an_empty_private_key_is_none() {
    let (sender, ..) = pair(7);
    let mut bytes = Vec::new();
    wire::put_bytes(&mut bytes, 1, &sender.states[0].signing.serialize());
    for private in [None, Some(&[][..])] {
        if let Some(private) = private {
            wire::put_bytes(&mut bytes, 2, private);
        }
        let (public, private) = decode_signing(&bytes).unwrap();
        assert_eq!(public, sender.states[0].signing);
        assert!(private.is_none());
    }
    wire::put_bytes(&mut bytes, 2, &[1; 31]);
    assert!(decode_signing(&bytes).is_err());
}

/// Other implementations keep ids in signed numbers of 32 bits.
#[test]
fn ids_of_keys_are_not_negative_anywhere() {
    let mut rng = Rng::from_seed([6; 32]);
    let ids: Vec<u32> = (0..64)
        .map(|_| SenderKeyRecord::create(&mut rng).states[0].id)
        .collect();
    assert!(ids.iter().all(|id| i32::try_from(*id).is_ok()), "{ids:?}");
    assert!(ids.iter().any(|id| id % 2 == 1), "{ids:?}");
}

#[test]
fn five_keys_are_kept_and_an_id_is_taken_over() {
    let mut rng = Rng::from_seed([5; 32]);
    let mut receiver = SenderKeyRecord::new();
    let mut messages = Vec::new();
    for _ in 0..6 {
        let mut sender = SenderKeyRecord::create(&mut rng);
        receiver.process(&sender.distribution().unwrap()).unwrap();
        messages.push(sender.encrypt(b"text", &mut rng).unwrap());
    }
    let results = messages
        .iter()
        .map(|message| receiver.decrypt(message).is_ok());
    assert_eq!(
        results.collect::<Vec<_>>(),
        [false, true, true, true, true, true]
    );

    let id = receiver.position().unwrap().0;
    let mut other =
        SenderKeyRecord::create_from(id, Secret::new([1; 32]), KeyPair::generate(&mut rng));
    receiver.process(&other.distribution().unwrap()).unwrap();
    assert_eq!(
        receiver
            .states
            .iter()
            .filter(|state| state.id == id)
            .count(),
        1
    );
    assert_eq!(
        receiver
            .decrypt(&other.encrypt(b"new", &mut rng).unwrap())
            .unwrap(),
        b"new"
    );
}

#[test]
fn keys_in_a_row_end_at_their_limit() {
    use crate::limits::SENDER_KEYS;
    let mut rng = Rng::from_seed([6; 32]);
    let one = SenderKeyRecord::create(&mut rng).encode();
    for count in [SENDER_KEYS - 1, SENDER_KEYS, SENDER_KEYS + 1] {
        let record = SenderKeyRecord::decode(&one.repeat(count)).unwrap();
        assert_eq!(record.states.len(), count.min(SENDER_KEYS));
    }
}

#[test]
fn the_jump_of_an_own_device_ends_at_its_limit() {
    use crate::limits::FORWARD_JUMP_OWN;
    for (ahead, expected) in [
        (FORWARD_JUMP_OWN - 1, Ok(b"far".to_vec())),
        (FORWARD_JUMP_OWN, Ok(b"far".to_vec())),
        (FORWARD_JUMP_OWN + 1, Err(DecryptError::TooFarAhead)),
    ] {
        let (mut sender, mut receiver, mut rng) = pair(13);
        sender.states[0].chain = sender.states[0].chain.skip_to(ahead).unwrap();
        let far = sender.encrypt(b"far", &mut rng).unwrap();
        assert_eq!(receiver.decrypt(&far), Err(DecryptError::TooFarAhead));
        let read = receiver.decrypt_within(Limits::OWN_DEVICE, &far);
        assert_eq!(read, expected, "{ahead}");
    }
}

#[test]
fn skipped_keys_of_several_jumps_end_at_their_limit() {
    let (mut sender, mut receiver, mut rng) = pair(14);
    let first = sender.encrypt(b"first", &mut rng).unwrap();
    let second = sender.encrypt(b"second", &mut rng).unwrap();
    // 1,000 keys passed over, then 999, then one, then another.
    for (at, kept) in [
        (1_000, 1_000),
        (2_000, 1_999),
        (2_002, 2_000),
        (2_004, 2_000),
    ] {
        sender.states[0].chain = sender.states[0].chain.skip_to(at).unwrap();
        let next = sender.encrypt(b"next", &mut rng).unwrap();
        if kept == 2_000 && at == 2_004 {
            let mut copy = receiver.clone();
            assert_eq!(copy.decrypt(&first).unwrap(), b"first");
        }
        assert_eq!(receiver.decrypt(&next).unwrap(), b"next");
        assert_eq!(receiver.states[0].skipped.len(), kept, "{at}");
    }
    // The oldest has made room.
    assert_eq!(receiver.decrypt(&first), Err(DecryptError::Duplicate));
    assert_eq!(receiver.decrypt(&second).unwrap(), b"second");
}

#[test]
fn a_lease_moves_the_own_chain() {
    let (mut sender, receiver, mut rng) = pair(6);
    let leased = |record: &SenderKeyRecord, ceiling: u32| {
        let mut bytes = record.encode();
        bytes.extend_from_slice(&[0xa0, 0x06, ceiling as u8]);
        SenderKeyRecord::decode(&bytes)
            .unwrap()
            .position()
            .unwrap()
            .1
    };
    assert_eq!(leased(&sender, 64), 64);
    assert_eq!(leased(&receiver, 64), 0);
    sender.encrypt(b"text", &mut rng).unwrap();
    assert_eq!(leased(&sender, 0), 1);
    let mut bytes = sender.encode();
    bytes.extend_from_slice(&[0xa0, 0x06, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(
        SenderKeyRecord::decode(&bytes).unwrap_err(),
        RecordError::Lease(u32::MAX)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Any order, with losses, repetitions and reloads: each message once, afterwards a duplicate.
    #[test]
    fn every_message_once_in_any_order(order in prop::collection::vec(0usize..20, 0..40)) {
        let (mut sender, mut receiver, mut rng) = pair(7);
        let messages: Vec<_> = (0..20u8).map(|text| sender.encrypt(&[text], &mut rng).unwrap()).collect();
        let mut seen = [false; 20];
        for at in order {
            let expected = if seen[at] { Err(DecryptError::Duplicate) } else { Ok(vec![at as u8]) };
            prop_assert_eq!(receiver.decrypt(&messages[at]), expected);
            seen[at] = true;
            let encoded = receiver.encode();
            receiver = SenderKeyRecord::decode(&encoded).unwrap();
            prop_assert_eq!(receiver.encode(), encoded);
        }
    }

    #[test]
    fn survives_anything(mut bytes: Vec<u8>, real_version: bool) {
        let _ = SenderKeyRecord::decode(&bytes);
        if let Some(first) = bytes.first_mut().filter(|_| real_version) {
            *first = VERSION;
        }
        let (_, mut receiver, _) = pair(8);
        let before = receiver.encode();
        prop_assert!(receiver.decrypt(&bytes).is_err());
        prop_assert_eq!(receiver.encode(), before);
        let _ = receiver.process(&bytes);
    }

    #[test]
    fn survives_changed_records(at: prop::sample::Index, byte: u8) {
        let (_, receiver, _) = pair(9);
        let mut bytes = receiver.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = SenderKeyRecord::decode(&bytes);
        let _ = SenderKeyRecord::new().process(&bytes);
    }
}
