//! Patches and snapshots against a plain map.

use super::*;
use crate::crypto::Rng;
use crate::proto::sync::{
    PinAction, SyncActionValue, SyncdMutation, SyncdPatch, SyncdSnapshot, SyncdVersion,
};
use proptest::prelude::*;
use prost::Message as _;
use std::collections::BTreeMap;

const COLLECTION: Collection = Collection::RegularLow;

fn key(n: u8) -> SyncKey {
    SyncKey::expand(KeyId::new(vec![0, 0, 0, 0, 0, n]).unwrap(), &[n; 32])
}

fn ring() -> KeyRing {
    (0..3).map(key).collect()
}

fn change(name: u8, value: u8, operation: Operation) -> Change {
    Change {
        operation,
        index: action::write_index(&["pin_v1", &name.to_string()]),
        value: SyncActionValue {
            timestamp: Some(value.into()),
            pin_action: Some(PinAction { pinned: Some(true) }),
            ..Default::default()
        },
        version: 5,
    }
}

/// A device: what it keeps of a collection.
#[derive(Clone, Default)]
struct Replica {
    state: State,
    macs: BTreeMap<[u8; 32], [u8; 32]>,
    /// name → value, as decrypted.
    values: BTreeMap<Vec<u8>, i64>,
}

impl Replica {
    fn keep(&mut self, state: State, macs: &[MacChange]) {
        self.state = state;
        for (index, value) in macs {
            match value {
                Some(value) => self.macs.insert(*index, *value),
                None => self.macs.remove(index),
            };
        }
    }

    fn see(&mut self, mutations: &[Mutation]) {
        // Removals first: an index that is both removed and set ends with the value.
        let mut mutations: Vec<&Mutation> = mutations.iter().collect();
        mutations.sort_by_key(|mutation| std::cmp::Reverse(mutation.operation));
        for mutation in mutations {
            let data = crate::proto::sync::SyncActionData::decode(mutation.data.clone()).unwrap();
            match mutation.operation {
                Operation::Set => self.values.insert(
                    mutation.index.to_vec(),
                    data.value.unwrap().timestamp.unwrap(),
                ),
                Operation::Remove => self.values.remove(mutation.index.as_ref()),
            };
        }
    }

    fn apply(&mut self, patch: &SyncdPatch) -> Result<Applied, PatchError> {
        let applied = verify_patch(
            COLLECTION,
            &self.state,
            patch,
            &patch.mutations,
            &ring(),
            |index| self.macs.get(index).copied(),
        )?;
        self.keep(applied.state, &applied.macs);
        self.see(&applied.mutations);
        Ok(applied)
    }
}

fn delivered(mut patch: SyncdPatch, version: u64) -> SyncdPatch {
    patch.version = Some(SyncdVersion {
        version: Some(version),
    });
    patch
}

/// (name, value, remove)
type Step = Vec<(u8, u8, bool)>;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = proptest::collection::vec((0..8u8, any::<u8>(), any::<bool>()), 1..6);
    proptest::collection::vec(step, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever builds and whoever follows agree, patch by patch, on hash, map and values; a snapshot of the end says
    /// the same again.
    #[test]
    fn builder_and_follower_agree(steps in steps(), seed in any::<u8>()) {
        let mut rng = Rng::from_seed([seed; 32]);
        let (mut ours, mut theirs) = (Replica::default(), Replica::default());
        for step in steps {
            // One key for the whole history of an index: under another one it would have another name.
            let key = key(0);
            let mut changes: BTreeMap<u8, Change> = BTreeMap::new();
            for (name, value, remove) in step {
                let there = ours.macs.contains_key(&key.index_mac(&change(name, 0, Operation::Set).index));
                let operation = if remove && there { Operation::Remove } else { Operation::Set };
                changes.insert(name, change(name, value, operation));
            }
            let changes: Vec<Change> = changes.into_values().collect();
            let macs = ours.macs.clone();
            let built = build_patch(COLLECTION, &ours.state, &key, &changes, |index| macs.get(index).copied(), &mut rng).unwrap();
            prop_assert_eq!(built.state.version, ours.state.version + 1);
            let patch = delivered(built.patch, built.state.version);
            // Through bytes, as it travels.
            let patch = SyncdPatch::decode(patch.encode_to_vec().as_slice()).unwrap();
            let applied = theirs.apply(&patch).unwrap();
            ours.keep(built.state, &built.macs);
            ours.see(&applied.mutations);
            prop_assert_eq!(applied.missing, 0);
            prop_assert_eq!(applied.state, built.state);
            prop_assert_eq!(&ours.macs, &theirs.macs);
            prop_assert_eq!(&ours.values, &theirs.values);
        }
        // The hash is that of what is there, however it came about.
        let mut hash = LtHash::default();
        hash.update([], theirs.macs.values());
        prop_assert_eq!(hash, theirs.state.hash);
    }

    /// Bytes of any kind are answered.
    #[test]
    fn anything_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(patch) = SyncdPatch::decode(bytes.as_slice()) {
            prop_assert!(verify_patch(COLLECTION, &State::default(), &patch, &patch.mutations, &ring(), |_| None).is_err());
        }
        if let Ok(snapshot) = SyncdSnapshot::decode(bytes.as_slice()) {
            prop_assert!(verify_snapshot(COLLECTION, &snapshot, &ring()).is_err());
        }
    }
}

/// Each part of a patch, changed by hand: the error names it.
#[test]
fn each_kind_of_damage_has_its_name() {
    let mut rng = Rng::from_seed([1; 32]);
    let changes = [change(1, 1, Operation::Set), change(2, 2, Operation::Set)];
    let built = build_patch(
        COLLECTION,
        &State::default(),
        &key(1),
        &changes,
        |_| None,
        &mut rng,
    )
    .unwrap();
    let sound = delivered(built.patch, 1);
    let verify = |patch: &SyncdPatch, ring: &KeyRing, collection| {
        verify_patch(
            collection,
            &State::default(),
            patch,
            &patch.mutations,
            ring,
            |_| None,
        )
    };
    let with = |damage: &dyn Fn(&mut SyncdPatch)| {
        let mut patch = sound.clone();
        damage(&mut patch);
        verify(&patch, &ring(), COLLECTION).err()
    };
    assert!(verify(&sound, &ring(), COLLECTION).is_ok());
    // Another collection is another MAC.
    assert_eq!(
        verify(&sound, &ring(), Collection::Regular).err(),
        Some(PatchError::PatchMac)
    );
    assert_eq!(
        verify(&sound, &KeyRing::default(), COLLECTION).err(),
        Some(PatchError::MissingKey(key(1).id().clone()))
    );
    // The same id, another key.
    let wrong: KeyRing = [SyncKey::expand(key(1).id().clone(), &[9; 32])]
        .into_iter()
        .collect();
    assert_eq!(
        verify(&sound, &wrong, COLLECTION).err(),
        Some(PatchError::PatchMac)
    );

    let flip = |bytes: &mut bytes::Bytes, at: usize| {
        let mut copy = bytes.to_vec();
        copy[at] ^= 1;
        *bytes = copy.into();
    };
    assert_eq!(
        with(&|patch| patch.patch_mac = None),
        Some(PatchError::PatchMac)
    );
    assert_eq!(
        with(&|patch| patch.snapshot_mac = None),
        Some(PatchError::PatchMac)
    );
    assert_eq!(
        with(&|patch| {
            patch.mutations.pop();
        }),
        Some(PatchError::PatchMac)
    );
    assert_eq!(
        with(&|patch| patch.mutations.swap(0, 1)),
        Some(PatchError::PatchMac)
    );
    assert_eq!(
        with(&|patch| patch.version = None),
        Some(PatchError::Malformed("no version"))
    );
    assert_eq!(
        with(&|patch| patch.key_id = None),
        Some(PatchError::Malformed("the id of its key"))
    );

    fn record(patch: &mut SyncdPatch) -> &mut crate::proto::sync::SyncdRecord {
        patch.mutations[0].record.as_mut().unwrap()
    }
    fn value(patch: &mut SyncdPatch) -> &mut bytes::Bytes {
        record(patch).value.as_mut().unwrap().blob.as_mut().unwrap()
    }
    let mutation = |error| Some(PatchError::Mutation(error));
    assert_eq!(
        with(&|patch| {
            let end = value(patch).len() - 1;
            flip(value(patch), end);
        }),
        Some(PatchError::PatchMac)
    );
    assert_eq!(
        with(&|patch| flip(value(patch), 20)),
        mutation(MutationError::ValueMac)
    );
    assert_eq!(
        with(&|patch| flip(
            record(patch).index.as_mut().unwrap().blob.as_mut().unwrap(),
            0
        )),
        mutation(MutationError::IndexMac)
    );
    // A removal of what was never there adds nothing: the hash is not the one that was signed.
    assert_eq!(
        with(&|patch| patch.mutations[0].operation = Some(1)),
        Some(PatchError::SnapshotMac)
    );
    assert_eq!(
        with(&|patch| patch.mutations[0].operation = Some(2)),
        mutation(MutationError::Malformed("an unknown operation"))
    );
    assert_eq!(
        with(&|patch| patch.mutations[0].record = None),
        mutation(MutationError::Malformed("no record"))
    );
    assert!(matches!(
        with(&|patch| record(patch).value = None),
        Some(PatchError::Mutation(MutationError::Malformed(_)))
    ));
    assert_eq!(
        with(&|patch| patch.mutations[1] = patch.mutations[0].clone()),
        Some(PatchError::PatchMac)
    );
}

/// A removal of something that is not there is allowed when everybody agrees on the hash; it is counted.
#[test]
fn a_removal_of_nothing_is_counted() {
    let mut rng = Rng::from_seed([1; 32]);
    // Their map has the value of another history: same hash as an empty one for us, so the removal takes out nothing.
    let remove = [change(7, 1, Operation::Remove)];
    let previous = |_: &[u8; 32]| Some([4; 32]);
    let mut state = State::default();
    state.hash.add(&[4; 32]);
    let built = build_patch(COLLECTION, &state, &key(1), &remove, previous, &mut rng).unwrap();
    let patch = delivered(built.patch, 1);
    let applied = verify_patch(
        COLLECTION,
        &State::default(),
        &patch,
        &patch.mutations,
        &ring(),
        |_| None,
    )
    .unwrap();
    assert_eq!((applied.missing, applied.state), (1, built.state));
    assert_eq!(applied.macs, [(key(1).index_mac(&remove[0].index), None)]);
    // Ours say so before they leave.
    let ours = build_patch(COLLECTION, &state, &key(1), &remove, |_| None, &mut rng);
    assert_eq!(ours.err(), Some(BuildError::NotThere));
}

/// The official rule for an index that one patch both sets and removes, in either order: what was there before goes,
/// what is set stays. And the same operation twice is an error.
#[test]
fn set_and_removed_in_one_patch() {
    let mut rng = Rng::from_seed([1; 32]);
    let signer = key(1);
    let old = [4; 32];
    let mut state = State {
        version: 3,
        ..Default::default()
    };
    state.hash.add(&old);
    let set = mutation::seal(&signer, &change(1, 9, Operation::Set), rng.bytes());
    let removed = mutation::seal(&signer, &change(1, 8, Operation::Remove), rng.bytes());
    let mut next = State {
        version: 4,
        hash: state.hash,
    };
    next.hash.update(&[old], &[set.1]);
    let sign = |order: &[&(SyncdMutation, [u8; 32])], state: &State| {
        let mutations: Vec<SyncdMutation> =
            order.iter().map(|(mutation, _)| mutation.clone()).collect();
        let snapshot_mac = state
            .hash
            .snapshot_mac(&signer.snapshot_mac, 4, COLLECTION.as_str());
        let mut parts: Vec<&[u8]> = vec![&snapshot_mac];
        parts.extend(order.iter().map(|(_, mac)| mac.as_slice()));
        let version = 4u64.to_be_bytes();
        parts.extend([&version[..], COLLECTION.as_str().as_bytes()]);
        let patch_mac = signer.patch_mac.mac(&parts);
        SyncdPatch {
            version: Some(SyncdVersion { version: Some(4) }),
            mutations,
            snapshot_mac: Some(snapshot_mac.to_vec()),
            patch_mac: Some(patch_mac.to_vec()),
            key_id: Some(mutation::key_id(&signer)),
            ..Default::default()
        }
    };
    for order in [[&set, &removed], [&removed, &set]] {
        let patch = sign(&order, &next);
        let applied = verify_patch(
            COLLECTION,
            &state,
            &patch,
            &patch.mutations,
            &ring(),
            |_| Some(old),
        )
        .unwrap();
        assert_eq!((applied.state, applied.missing), (next, 0));
        assert_eq!(applied.macs.len(), 1);
        assert_eq!(applied.macs[0].1, Some(set.1));
    }
    let twice = sign(&[&set, &set], &next);
    assert_eq!(
        verify_patch(
            COLLECTION,
            &state,
            &twice,
            &twice.mutations,
            &ring(),
            |_| Some(old)
        )
        .err(),
        Some(PatchError::Mutation(MutationError::Malformed(
            "an index that is changed twice"
        )))
    );
}

#[test]
fn a_snapshot_has_every_name_once() {
    let mut rng = Rng::from_seed([1; 32]);
    let settings = [change(1, 1, Operation::Set), change(2, 2, Operation::Set)];
    let (mut snapshot, state) =
        build_snapshot(COLLECTION, 9, &key(1), &settings, &mut rng).unwrap();
    assert_eq!(
        verify_snapshot(Collection::Regular, &snapshot, &ring()).err(),
        Some(SnapshotError::SnapshotMac)
    );
    assert_eq!(
        verify_snapshot(COLLECTION, &snapshot, &KeyRing::default()).err(),
        Some(SnapshotError::MissingKey(key(1).id().clone()))
    );
    let (twin, mac) = mutation::seal(&key(1), &settings[0], rng.bytes());
    snapshot.records.extend(twin.record);
    assert_eq!(
        verify_snapshot(COLLECTION, &snapshot, &ring()).err(),
        Some(SnapshotError::SnapshotMac)
    );
    let mut hash = state.hash;
    hash.add(&mac);
    snapshot.mac = Some(
        hash.snapshot_mac(&key(1).snapshot_mac, 9, COLLECTION.as_str())
            .to_vec(),
    );
    assert_eq!(
        verify_snapshot(COLLECTION, &snapshot, &ring()).err(),
        Some(SnapshotError::Malformed("an index that stands twice"))
    );
    assert_eq!(
        build_snapshot(
            COLLECTION,
            9,
            &key(1),
            &[settings[0].clone(), settings[0].clone()],
            &mut rng
        )
        .err(),
        Some(BuildError::Repeated)
    );
}

#[test]
fn what_cannot_be_built_is_said() {
    let mut rng = Rng::from_seed([1; 32]);
    let mut build = |state: &State, changes: &[Change]| {
        build_patch(COLLECTION, state, &key(1), changes, |_| None, &mut rng).err()
    };
    let fresh = State::default();
    assert_eq!(build(&fresh, &[]), Some(BuildError::Empty));
    let one = change(1, 1, Operation::Set);
    assert_eq!(
        build(&fresh, &[one.clone(), one.clone()]),
        Some(BuildError::Repeated)
    );
    let last = State {
        version: u64::MAX,
        ..Default::default()
    };
    assert_eq!(
        build(&last, std::slice::from_ref(&one)),
        Some(BuildError::Version)
    );
    let long = Change {
        index: vec![b'x'; MAX_INDEX_BYTES + 1],
        ..one
    };
    assert_eq!(build(&fresh, &[long]), Some(BuildError::TooLong));
}

/// Every copy of `bytes` in which one bit is another.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    (0..bytes.len() * 8).map(|at| {
        let mut other = bytes.to_vec();
        other[at / 8] ^= 1 << (at % 8);
        (format!("bit {} of byte {}", at % 8, at / 8), other)
    })
}

/// A flipped bit anywhere in a patch is found, or was in what nobody reads.
#[test]
fn a_flipped_bit_in_a_patch_is_found() {
    let mut rng = Rng::from_seed([5; 32]);
    let mut replica = Replica::default();
    let first = [change(1, 1, Operation::Set), change(2, 2, Operation::Set)];
    let built = build_patch(
        COLLECTION,
        &replica.state,
        &key(1),
        &first,
        |_| None,
        &mut rng,
    )
    .unwrap();
    replica.apply(&delivered(built.patch, 1)).unwrap();
    let macs = replica.macs.clone();
    let second = [
        change(1, 3, Operation::Set),
        change(2, 4, Operation::Remove),
        change(3, 5, Operation::Set),
    ];
    let built = build_patch(
        COLLECTION,
        &replica.state,
        &key(1),
        &second,
        |index| macs.get(index).copied(),
        &mut rng,
    )
    .unwrap();
    let sound = delivered(built.patch, 2);
    let wished = replica.clone().apply(&sound).unwrap();
    for (at, bytes) in flipped(&sound.encode_to_vec()) {
        let Ok(patch) = SyncdPatch::decode(bytes.as_slice()) else {
            continue;
        };
        match replica.clone().apply(&patch) {
            // Not that the patch is the same: an operation that is not named is the one that it named.
            Ok(applied) => assert_eq!(applied, wished, "{at}"),
            // Named as what it is; the next test says which damage has which name.
            Err(error) => assert!(
                !matches!(error, PatchError::Mutation(MutationError::MissingKey(_))),
                "{at}: {error}"
            ),
        }
    }
}

/// The same for a snapshot.
#[test]
fn a_flipped_bit_in_a_snapshot_is_found() {
    let mut rng = Rng::from_seed([6; 32]);
    let settings: Vec<Change> = (0..4).map(|n| change(n, n, Operation::Set)).collect();
    let (sound, state) = build_snapshot(COLLECTION, 9, &key(1), &settings, &mut rng).unwrap();
    let replaced = verify_snapshot(COLLECTION, &sound, &ring()).unwrap();
    assert_eq!(replaced.state, state);
    for (at, bytes) in flipped(&sound.encode_to_vec()) {
        if let Ok(snapshot) = SyncdSnapshot::decode(bytes.as_slice())
            && let Ok(other) = verify_snapshot(COLLECTION, &snapshot, &ring())
        {
            assert_eq!(other, replaced, "{at}");
        }
    }
}
