//! Limits that a conversation does not reach by itself, tried at themselves and beside them.

use super::properties::{Move, Parts, World};
use super::ratchet::{ChainKey, Secret};
use super::state::{ReceiverChain, Skipped};
use super::*;
use crate::{
    crypto::Rng,
    limits::{ARCHIVED_SESSIONS, COUNTER_LEASE, FORWARD_JUMP, FORWARD_JUMP_OWN, SKIPPED_KEYS},
};

/// A record that leases sending counters up to `ceiling`.
fn leased(record: &SessionRecord, ceiling: u32) -> Result<SessionRecord, RecordError> {
    let mut bytes = record.encode();
    bytes.extend_from_slice(&[0xa0, 0x06]);
    prost::encoding::encode_varint(ceiling.into(), &mut bytes);
    SessionRecord::decode(&bytes)
}

/// Two devices that have written to each other; what the first sends next begins a chain.
fn acquainted() -> World {
    let mut world = World::new([9; 32]);
    world.converge();
    world
}

#[test]
fn a_lease_of_counters_ends_at_its_limit() {
    let world = acquainted();
    let record = &world.devices[0].record;
    for ceiling in [COUNTER_LEASE - 1, COUNTER_LEASE] {
        assert!(leased(record, ceiling).is_ok(), "{ceiling}");
    }
    let beyond = COUNTER_LEASE + 1;
    assert_eq!(
        leased(record, beyond).unwrap_err(),
        RecordError::Lease(beyond)
    );
    // It is counted from where the chain stands.
    let record = leased(record, 1).unwrap();
    assert!(leased(&record, beyond).is_ok());
    assert!(leased(&record, beyond + 1).is_err());
}

#[test]
fn the_jump_of_an_own_device_ends_at_its_limit() {
    for (ahead, read) in [
        (FORWARD_JUMP_OWN - 1, true),
        (FORWARD_JUMP_OWN, true),
        (FORWARD_JUMP_OWN + 1, false),
    ] {
        let mut world = acquainted();
        let record = leased(&world.devices[0].record, 1).unwrap();
        world.devices[0].record = leased(&record, ahead).unwrap();
        world.play(Move::Send(0));
        let sent = world.network.pop().unwrap().sent;
        assert_eq!(peek_counter(sent.kind, &sent.bytes).unwrap().1, ahead);
        let Parts {
            record, local, rng, ..
        } = world.devices[1].parts();
        let before = record.encode();
        let far = decrypt(record, &local, &sent.bytes, rng);
        assert_eq!(far, Err(DecryptError::TooFarAhead), "for anybody else");
        assert!(ahead > FORWARD_JUMP);
        let result = decrypt_within(Limits::OWN_DEVICE, record, &local, &sent.bytes, rng);
        if read {
            assert!(result.is_ok(), "{ahead}");
        } else {
            assert_eq!(result, Err(DecryptError::TooFarAhead));
            assert_eq!(record.encode(), before);
        }
    }
}

#[test]
fn skipped_keys_of_several_jumps_end_at_their_limit() {
    let key = |n: u32| Skipped::new(n, Secret::new([7; 32]));
    let next = || ChainKey::first(Secret::new([8; 32]));
    let mut chain = ReceiverChain {
        ratchet: KeyPair::generate(&mut Rng::from_seed([1; 32])).public,
        chain: None,
        skipped: Vec::new(),
    };
    let most = SKIPPED_KEYS as u32;
    chain.advance(next(), (0..most - 1).map(key).collect());
    assert_eq!(chain.skipped.len(), SKIPPED_KEYS - 1);
    chain.advance(next(), vec![key(most)]);
    assert_eq!(chain.skipped.len(), SKIPPED_KEYS);
    assert!(chain.find_skipped(0).is_some());
    // The oldest makes room.
    chain.advance(next(), vec![key(most + 1)]);
    assert_eq!(chain.skipped.len(), SKIPPED_KEYS);
    assert!(chain.find_skipped(0).is_none() && chain.find_skipped(1).is_some());
    assert!(chain.find_skipped(most + 1).is_some());
}

/// Whoever wrote the row.
#[test]
fn archived_sessions_in_a_row_end_at_their_limit() {
    let mut one = acquainted().devices[0].record.clone();
    one.archived.clear();
    let mut state = one.encode();
    assert_eq!(state[0], 0x0a, "the current session");
    state[0] = 0x12;
    for count in [
        ARCHIVED_SESSIONS - 1,
        ARCHIVED_SESSIONS,
        ARCHIVED_SESSIONS + 1,
    ] {
        let record = SessionRecord::decode(&state.repeat(count)).unwrap();
        assert_eq!(record.archived(), count.min(ARCHIVED_SESSIONS));
    }
}
