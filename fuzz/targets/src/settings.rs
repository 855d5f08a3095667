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
use std::{collections::BTreeMap, sync::OnceLock};

pub(crate) const COLLECTION: Collection = Collection::RegularLow;

fn expand(n: u8) -> SyncKey {
    let id = KeyId::new(vec![0, 0, 0, 0, 0, n]).expect("six bytes");
    SyncKey::expand(id, &[n; 32])
}

/// One of four keys; the ring holds the first three.
pub(crate) fn key(n: u8) -> &'static SyncKey {
    static KEYS: OnceLock<[SyncKey; 4]> = OnceLock::new();
    &KEYS.get_or_init(|| std::array::from_fn(|n| expand(n as u8)))[usize::from(n)]
}

pub(crate) fn ring() -> &'static KeyRing {
    static RING: OnceLock<KeyRing> = OnceLock::new();
    RING.get_or_init(|| (0..3).map(expand).collect())
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
pub(crate) fn collection() -> &'static (State, Macs, SyncdPatch) {
    static ONCE: OnceLock<(State, Macs, SyncdPatch)> = OnceLock::new();
    ONCE.get_or_init(first_patch)
}

fn first_patch() -> (State, Macs, SyncdPatch) {
    let mut rng = Rng::from_seed([4; 32]);
    let mut take = Take::new(&[0, 1, 1, 2, 2, 3, 3, 4]);
    let changes: Vec<Change> = (0..4).map(|_| change(&mut take, Operation::Set)).collect();
    let built = build_patch(
        COLLECTION,
        &State::default(),
        key(0),
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
    build_snapshot(COLLECTION, 7, key(1), &settings, &mut rng)
        .expect("good settings")
        .0
}
