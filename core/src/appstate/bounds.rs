//! Limits of settings, tried at themselves and beside them.

use super::*;
use crate::{
    crypto::Rng,
    limits::{COLLECTION_RECORDS, PATCH_MUTATIONS, SETTING_INDEX, SETTING_VALUE, SYNC_KEY_ID},
    proto::sync::{
        ContactAction, SyncActionData, SyncActionValue, SyncdIndex, SyncdMutation, SyncdPatch,
        SyncdRecord, SyncdSnapshot, SyncdValue, SyncdVersion,
    },
};
use mutation::Sealed;
use prost::Message as _;

const COLLECTION: Collection = Collection::RegularLow;

fn key() -> SyncKey {
    SyncKey::expand(KeyId::new(vec![1]).unwrap(), &[7; 32])
}

fn change(index: usize, value: SyncActionValue) -> Change {
    Change {
        operation: Operation::Set,
        index: vec![b'x'; index],
        value,
        version: 5,
    }
}

fn build(changes: &[Change]) -> Option<BuildError> {
    let mut rng = Rng::from_seed([1; 32]);
    let state = State::default();
    build_patch(COLLECTION, &state, &key(), changes, |_| None, &mut rng).err()
}

#[test]
fn the_name_of_a_setting_ends_at_its_limit() {
    let read = |length: usize| {
        let data = SyncActionData {
            index: Some(vec![b'x'; length]),
            ..Default::default()
        };
        mutation::index_of(&data.encode_to_vec().into()).map(|index| index.len())
    };
    for length in [1, SETTING_INDEX - 1, SETTING_INDEX] {
        assert_eq!(read(length), Ok(length));
        assert_eq!(build(&[change(length, Default::default())]), None);
    }
    for length in [0, SETTING_INDEX + 1] {
        assert!(read(length).is_err(), "{length}");
        let built = build(&[change(length, Default::default())]);
        assert_eq!(built, Some(BuildError::TooLong));
    }
}

#[test]
fn an_encrypted_setting_ends_at_its_limit() {
    // Ciphertext comes in blocks of 16 bytes.
    for (length, taken) in [
        (SETTING_VALUE - 16, true),
        (SETTING_VALUE, true),
        (SETTING_VALUE + 16, false),
    ] {
        let record = SyncdRecord {
            index: Some(SyncdIndex {
                blob: Some(vec![1; 32].into()),
            }),
            value: Some(SyncdValue {
                blob: Some(vec![2; length].into()),
            }),
            key_id: None,
        };
        let sealed = Sealed::of_record(Operation::Set, &record).map(|_| ());
        let refused = MutationError::Malformed("a value that is too long");
        assert_eq!(sealed, if taken { Ok(()) } else { Err(refused) });
    }
    // Ours have half of it, name included, and so are never refused by another device like this one.
    let value = |letters: usize| SyncActionValue {
        contact_action: Some(ContactAction {
            full_name: Some("x".repeat(letters)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let around = value(1 << 18).encoded_len() - (1 << 18) + 10;
    for (length, error) in [
        (SETTING_VALUE / 2 - 1, None),
        (SETTING_VALUE / 2, None),
        (SETTING_VALUE / 2 + 1, Some(BuildError::TooLong)),
    ] {
        let change = change(10, value(length - around));
        assert_eq!(change.value.encoded_len() + change.index.len(), length);
        assert_eq!(build(&[change]), error);
    }
}

#[test]
fn the_id_of_a_key_ends_at_its_limit() {
    let of = |length: usize| KeyId::new(vec![7; length]).is_some();
    assert!(of(1) && of(SYNC_KEY_ID - 1) && of(SYNC_KEY_ID));
    assert!(!of(0) && !of(SYNC_KEY_ID + 1));
}

#[test]
fn a_patch_ends_at_its_number_of_mutations() {
    let patch = SyncdPatch {
        version: Some(SyncdVersion { version: Some(1) }),
        ..Default::default()
    };
    let one = change(3, Default::default());
    for (count, read, built) in [
        (
            PATCH_MUTATIONS - 1,
            "the id of its key",
            BuildError::Repeated,
        ),
        (PATCH_MUTATIONS, "the id of its key", BuildError::Repeated),
        (
            PATCH_MUTATIONS + 1,
            "too many mutations",
            BuildError::TooMany,
        ),
    ] {
        let mutations = vec![SyncdMutation::default(); count];
        let (state, ring) = (State::default(), KeyRing::default());
        let result = verify_patch(COLLECTION, &state, &patch, &mutations, &ring, |_| None);
        assert_eq!(result.err(), Some(PatchError::Malformed(read)), "{count}");
        assert_eq!(build(&vec![one.clone(); count]), Some(built), "{count}");
    }
}

#[test]
fn a_snapshot_ends_at_its_number_of_records() {
    for (count, why) in [
        (COLLECTION_RECORDS - 1, "the id of its key"),
        (COLLECTION_RECORDS, "the id of its key"),
        (COLLECTION_RECORDS + 1, "too many records"),
    ] {
        let snapshot = SyncdSnapshot {
            version: Some(SyncdVersion { version: Some(1) }),
            records: vec![SyncdRecord::default(); count],
            ..Default::default()
        };
        let result = verify_snapshot(COLLECTION, &snapshot, &KeyRing::default());
        assert_eq!(result.err(), Some(SnapshotError::Malformed(why)), "{count}");
    }
}
