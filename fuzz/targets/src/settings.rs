//! A collection of settings with fixed keys: what changes it, and what it is afterwards.

use crate::input::Take;
use baton_core::{
    appstate::{
        Change, Collection, KeyId, KeyRing, Operation, State, SyncKey, action, build_patch,
        build_snapshot,
    },
    crypto::Rng,
    proto::sync::{PinAction, SyncActionValue, SyncdPatch, SyncdSnapshot},
};
use std::collections::BTreeMap;

pub(crate) const COLLECTION: Collection = Collection::RegularLow;

pub(crate) fn key(n: u8) -> SyncKey {
    let id = KeyId::new(vec![0, 0, 0, 0, 0, n]).expect("six bytes");
    SyncKey::expand(id, &[n; 32])
}

pub(crate) fn ring() -> KeyRing {
    let mut ring = KeyRing::default();
    (0..3).for_each(|n| ring.insert(key(n)));
    ring
}

pub(crate) fn change(take: &mut Take<'_>, operation: Operation) -> Change {
    let name = take.u8() % 12;
    Change {
        operation,
        index: action::write_index(&["pin_v1", &name.to_string()]),
        value: SyncActionValue {
            timestamp: Some(take.u8().into()),
            pin_action: Some(PinAction {
                pinned: Some(name.is_multiple_of(2)),
            }),
            ..Default::default()
        },
        version: 5,
    }
}

/// The value MACs of a collection.
pub(crate) type Macs = BTreeMap<[u8; 32], [u8; 32]>;

/// A collection with one patch in it: the state, the map, and the patch that came.
pub(crate) fn collection() -> (State, Macs, SyncdPatch) {
    let mut rng = Rng::from_seed([4; 32]);
    let mut take = Take::new(&[0, 1, 1, 2, 2, 3, 3, 4]);
    let changes: Vec<Change> = (0..4).map(|_| change(&mut take, Operation::Set)).collect();
    let built = build_patch(
        COLLECTION,
        &State::default(),
        &key(0),
        &changes,
        |_| None,
        &mut rng,
    )
    .expect("good changes");
    let mut macs = Macs::new();
    for (index, value) in &built.macs {
        if let Some(value) = value {
            macs.insert(*index, *value);
        }
    }
    (built.state, macs, built.patch)
}

pub(crate) fn snapshot() -> SyncdSnapshot {
    let mut rng = Rng::from_seed([4; 32]);
    let mut take = Take::new(&[0, 1, 1, 2, 2, 3, 3, 4]);
    let settings: Vec<Change> = (0..4).map(|_| change(&mut take, Operation::Set)).collect();
    build_snapshot(COLLECTION, 7, &key(1), &settings, &mut rng)
        .expect("good settings")
        .0
}
