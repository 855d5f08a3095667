//! Snapshots: a whole collection at once (fact sheets 08.6, 08.7).

use super::{
    BuildError, Collection, KeyId, KeyRing, LtHash, State, SyncKey,
    keys::NoKey,
    mutation::{self, Change, Mutation, MutationError, Operation, Sealed},
};
use crate::{
    crypto::{Rng, verify_mac},
    proto::sync::{self, SyncdRecord, SyncdSnapshot, SyncdVersion},
};
use std::collections::BTreeSet;

/// Most settings in one collection. An address book of fifty thousand people fits four times.
pub const MAX_RECORDS: usize = crate::limits::COLLECTION_RECORDS;

/// Why a snapshot is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Not of the form that snapshots have.
    #[error("a snapshot is malformed: {0}")]
    Malformed(&'static str),
    /// Ask the phone for this key, then try again.
    #[error("the key {0:?} is missing")]
    MissingKey(KeyId),
    /// It was not made from what a device of the account has seen, or was changed on the way.
    #[error("the MAC of a snapshot is wrong")]
    SnapshotMac,
    /// One of its records is refused.
    #[error(transparent)]
    Record(MutationError),
}

impl From<NoKey> for SnapshotError {
    fn from(error: NoKey) -> Self {
        match error {
            NoKey::Malformed => Self::Malformed("the id of its key"),
            NoKey::Missing(id) => Self::MissingKey(id),
        }
    }
}

impl From<MutationError> for SnapshotError {
    fn from(error: MutationError) -> Self {
        match error {
            MutationError::MissingKey(id) => Self::MissingKey(id),
            other => Self::Record(other),
        }
    }
}

/// What a snapshot amounts to: these settings and no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Where the collection stands now.
    pub state: State,
    /// Everything in it. Their index and value MACs are the whole map.
    pub mutations: Vec<Mutation>,
}

/// The ids of all keys that a snapshot was made with, those that are malformed left out.
#[must_use]
pub fn snapshot_keys(snapshot: &SyncdSnapshot) -> Vec<KeyId> {
    let ids = snapshot.records.iter().map(|record| record.key_id.as_ref());
    distinct(ids.chain([snapshot.key_id.as_ref()]))
}

pub(super) fn distinct<'a>(ids: impl Iterator<Item = Option<&'a sync::KeyId>>) -> Vec<KeyId> {
    let ids: BTreeSet<&bytes::Bytes> = ids.flatten().filter_map(|id| id.id.as_ref()).collect();
    ids.into_iter().cloned().filter_map(KeyId::new).collect()
}

/// Replaces a collection, whatever it was.
pub fn verify_snapshot(
    collection: Collection,
    snapshot: &SyncdSnapshot,
    ring: &KeyRing,
) -> Result<Replaced, SnapshotError> {
    let version = snapshot
        .version
        .as_ref()
        .and_then(|version| version.version);
    let version = version.ok_or(SnapshotError::Malformed("no version"))?;
    if snapshot.records.len() > MAX_RECORDS {
        return Err(SnapshotError::Malformed("too many records"));
    }
    let key = ring.named(snapshot.key_id.as_ref())?;
    let sealed = snapshot
        .records
        .iter()
        .map(|record| Sealed::of_record(Operation::Set, record))
        .collect::<Result<Vec<_>, _>>()?;
    let mut hash = LtHash::default();
    hash.update([], sealed.iter().map(|sealed| &sealed.value_mac));
    let mac = hash.snapshot_mac(&key.snapshot_mac, version, collection.as_str());
    if !verify_mac(&mac, snapshot.mac.as_deref().unwrap_or_default()) {
        return Err(SnapshotError::SnapshotMac);
    }
    // Two values for one name: the map could keep only one of them, and the hash would not follow it.
    let names: BTreeSet<&[u8; 32]> = sealed.iter().map(|sealed| &sealed.index_mac).collect();
    if names.len() != sealed.len() {
        return Err(SnapshotError::Malformed("an index that stands twice"));
    }
    let mutations = sealed
        .iter()
        .map(|sealed| sealed.open(ring))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Replaced {
        state: State { version, hash },
        mutations,
    })
}

/// Makes a snapshot of a collection at `version`: what a phone does when it begins a collection anew. A service, which
/// has no keys, puts records and the `snapshot_mac` of the last patch together instead; the two are the same MAC.
pub fn build_snapshot(
    collection: Collection,
    version: u64,
    key: &SyncKey,
    settings: &[Change],
    rng: &mut Rng,
) -> Result<(SyncdSnapshot, State), BuildError> {
    if settings.len() > MAX_RECORDS {
        return Err(BuildError::TooMany);
    }
    let mut hash = LtHash::default();
    let mut names = BTreeSet::new();
    let mut records: Vec<SyncdRecord> = Vec::with_capacity(settings.len());
    for setting in settings {
        if !names.insert(&setting.index) {
            return Err(BuildError::Repeated);
        }
        let (sealed, value_mac) = mutation::seal(key, setting, rng.bytes());
        hash.add(&value_mac);
        records.extend(sealed.record);
    }
    let mac = hash.snapshot_mac(&key.snapshot_mac, version, collection.as_str());
    let snapshot = SyncdSnapshot {
        version: Some(SyncdVersion {
            version: Some(version),
        }),
        records,
        mac: Some(mac.to_vec()),
        key_id: Some(mutation::key_id(key)),
    };
    Ok((snapshot, State { version, hash }))
}
