//! Patches and a snapshot of another implementation (vectors/appstate.json), byte for byte.

use super::*;
use crate::crypto::testing::{array, bytes};
use crate::proto::sync::{SyncActionData, SyncdPatch, SyncdSnapshot, SyncdVersion};
use prost::Message as _;
use serde_json::Value;
use std::collections::BTreeMap;

const COLLECTION: Collection = Collection::RegularLow;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors/appstate.json")).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap()
}

fn ring(vectors: &Value) -> KeyRing {
    let keys = list(vectors, "keys").iter();
    keys.map(|key| {
        let id = KeyId::new(bytes(&key["key_id"])).unwrap();
        SyncKey::expand(id, &array(&key["key_data"]))
    })
    .collect()
}

#[test]
fn keys_expand_to_the_same_five() {
    let vectors = vectors();
    let ring = ring(&vectors);
    for case in list(&vectors, "keys") {
        let key = ring
            .get(&KeyId::new(bytes(&case["key_id"])).unwrap())
            .unwrap();
        assert_eq!(key.value.as_slice(), bytes(&case["value_encryption_key"]));
        // The others are taken in by their MACs; those of known keys say whether they are the same.
        let mac = |name: &str| crate::crypto::hmac_sha256(&bytes(&case[name]), &[b"x"]);
        assert_eq!(key.index_mac(b"x"), mac("index_key"));
        assert_eq!(key.snapshot_mac.mac(&[b"x"]), mac("snapshot_mac_key"));
        assert_eq!(key.patch_mac.mac(&[b"x"]), mac("patch_mac_key"));
    }
}

#[test]
fn patches_lead_from_state_to_state() {
    let vectors = vectors();
    let ring = ring(&vectors);
    assert_eq!(vectors["collection"], COLLECTION.as_str());
    let mut state = State::default();
    let mut macs: BTreeMap<[u8; 32], [u8; 32]> = BTreeMap::new();
    for case in list(&vectors, "patches") {
        assert_eq!(
            state.hash.to_bytes().as_slice(),
            bytes(&case["lthash_before"])
        );
        let patch = SyncdPatch::decode(&*bytes(&case["syncd_patch_as_delivered"])).unwrap();
        let applied = verify_patch(
            COLLECTION,
            &state,
            &patch,
            &patch.mutations,
            &ring,
            |index| macs.get(index).copied(),
        )
        .unwrap();
        state = applied.state;
        assert_eq!(
            state.hash.to_bytes().as_slice(),
            bytes(&case["lthash_after"])
        );
        assert_eq!(Some(state.version), case["version"].as_u64());
        for (mutation, expected) in applied.mutations.iter().zip(list(case, "mutations")) {
            assert_eq!(mutation.data, bytes(&expected["sync_action_data"]));
            assert_eq!(mutation.index, expected["index_json"].as_str().unwrap());
            assert_eq!(mutation.value_mac.as_slice(), bytes(&expected["value_mac"]));
            assert_eq!(mutation.index_mac.as_slice(), bytes(&expected["index_mac"]));
            let set = expected["operation"] == "SET";
            assert_eq!(mutation.operation == Operation::Set, set);
            assert!(!matches!(
                action::Action::of(mutation),
                action::Action::Unknown { .. }
            ));
        }
        for (index, value) in applied.macs {
            match value {
                Some(value) => macs.insert(index, value),
                None => macs.remove(&index),
            };
        }
    }

    // The snapshot says the same as the patches.
    let case = &vectors["snapshot"];
    let snapshot = SyncdSnapshot::decode(&*bytes(&case["syncd_snapshot"])).unwrap();
    let replaced = verify_snapshot(COLLECTION, &snapshot, &ring).unwrap();
    assert_eq!(replaced.state, state);
    assert_eq!(state.hash.to_bytes().as_slice(), bytes(&case["lthash"]));
    let map = replaced
        .mutations
        .iter()
        .map(|m| (m.index_mac, m.value_mac));
    assert_eq!(map.collect::<BTreeMap<_, _>>(), macs);
    assert_eq!(snapshot_keys(&snapshot).len(), 2);
}

/// With the same iv the same patch comes out, for every patch that is all of one key.
#[test]
fn our_patches_are_theirs() {
    let vectors = vectors();
    let ring = ring(&vectors);
    let mut compared = 0;
    for case in list(&vectors, "patches") {
        let key = ring
            .get(&KeyId::new(bytes(&case["patch_key_id"])).unwrap())
            .unwrap();
        let theirs = SyncdPatch::decode(&*bytes(&case["syncd_patch_as_uploaded"])).unwrap();
        assert_eq!(theirs.version, None);
        for (mutation, theirs) in list(case, "mutations").iter().zip(&theirs.mutations) {
            if mutation["key_id"] != case["patch_key_id"] {
                continue;
            }
            let data = SyncActionData::decode(&*bytes(&mutation["sync_action_data"])).unwrap();
            let change = Change {
                operation: Operation::from_wire(theirs.operation).unwrap(),
                index: data.index.unwrap(),
                value: data.value.unwrap(),
                version: data.version.unwrap(),
            };
            let (ours, _) = mutation::seal(key, &change, array(&mutation["iv"]));
            assert_eq!(&ours, theirs);
            compared += 1;
        }
    }
    assert!(compared >= 3);
}

/// What the sheet says about order: a patch whose number does not follow is not looked at any further.
#[test]
fn versions_follow_each_other() {
    let vectors = vectors();
    let ring = ring(&vectors);
    let mut patch =
        SyncdPatch::decode(&*bytes(&vectors["patches"][0]["syncd_patch_as_delivered"])).unwrap();
    for (have, got) in [(0, 2), (1, 1), (5, 1), (u64::MAX, 0)] {
        patch.version = Some(SyncdVersion { version: Some(got) });
        let state = State {
            version: have,
            ..Default::default()
        };
        assert_eq!(
            verify_patch(COLLECTION, &state, &patch, &patch.mutations, &ring, |_| {
                None
            })
            .err(),
            Some(PatchError::Version { have, got })
        );
    }
}
