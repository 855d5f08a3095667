//! Patches: one step of a collection, from the service or to it (fact sheets 08.5, 08.6, 08.9).

use super::{
    Collection, KeyId, KeyRing, MacChange, State, SyncKey,
    keys::NoKey,
    mutation::{
        self, Change, MAX_INDEX_BYTES, MAX_VALUE_BYTES, Mutation, MutationError, Operation, Sealed,
    },
};
use crate::{
    crypto::{Rng, verify_mac},
    proto::sync::{SyncdMutation, SyncdPatch},
};
use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;

/// Most mutations in one patch. The service cuts earlier.
pub const MAX_MUTATIONS: usize = crate::limits::PATCH_MUTATIONS;

/// Why a patch is refused. The state it was tried on is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Not of the form that patches have.
    #[error("a patch is malformed: {0}")]
    Malformed(&'static str),
    /// It does not follow: had already (`got` is not above `have`), or one in between is missing.
    #[error("a patch to version {got} does not follow version {have}")]
    Version {
        /// Where the collection stands.
        have: u64,
        /// Where the patch leads.
        got: u64,
    },
    /// Ask the phone for this key, then try again.
    #[error("the key {0:?} is missing")]
    MissingKey(KeyId),
    /// It was not made by a device of the account, or was changed on the way.
    #[error("the MAC of a patch is wrong")]
    PatchMac,
    /// A sound patch on a state that is not ours: the collection has diverged. Fetch a snapshot.
    #[error("the MAC of the collection is wrong after a patch")]
    SnapshotMac,
    /// One of its mutations is refused.
    #[error(transparent)]
    Mutation(MutationError),
}

impl From<NoKey> for PatchError {
    fn from(error: NoKey) -> Self {
        match error {
            NoKey::Malformed => Self::Malformed("the id of its key"),
            NoKey::Missing(id) => Self::MissingKey(id),
        }
    }
}

impl From<MutationError> for PatchError {
    fn from(error: MutationError) -> Self {
        match error {
            MutationError::MissingKey(id) => Self::MissingKey(id),
            other => Self::Mutation(other),
        }
    }
}

/// What a patch amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Where the collection stands now.
    pub state: State,
    /// What it did, in its order.
    pub mutations: Vec<Mutation>,
    /// What is to be changed in the map of value MACs, together with `state`.
    pub macs: Vec<MacChange>,
    /// Removed settings that were not there. Allowed: the MACs hold.
    pub missing: usize,
}

/// The ids of all keys that a patch with these mutations was made with, those that are malformed left out.
#[must_use]
pub fn patch_keys(patch: &SyncdPatch, mutations: &[SyncdMutation]) -> Vec<KeyId> {
    let records = mutations
        .iter()
        .filter_map(|mutation| mutation.record.as_ref());
    let ids = records.map(|record| record.key_id.as_ref());
    super::snapshot::distinct(ids.chain([patch.key_id.as_ref()]))
}

/// The index MACs that a patch with these mutations touches: whose previous value MACs [`verify_patch`] asks for.
#[must_use]
pub fn patch_touches(mutations: &[SyncdMutation]) -> Vec<[u8; 32]> {
    let records = mutations
        .iter()
        .filter_map(|mutation| mutation.record.as_ref());
    let blobs = records.filter_map(|record| record.index.as_ref()?.blob.as_deref());
    blobs.filter_map(|blob| blob.try_into().ok()).collect()
}

/// Takes a collection one version further. `mutations` are the patch's own, or those it refers to as an external blob;
/// `previous` is the map of value MACs.
///
/// The patch MAC is judged first: whatever else is wrong with a patch that nobody of ours made is of no interest. Then
/// comes the MAC of the collection, then each mutation.
pub fn verify_patch(
    collection: Collection,
    state: &State,
    patch: &SyncdPatch,
    mutations: &[SyncdMutation],
    ring: &KeyRing,
    mut previous: impl FnMut(&[u8; 32]) -> Option<[u8; 32]>,
) -> Result<Applied, PatchError> {
    let version = patch.version.as_ref().and_then(|version| version.version);
    let version = version.ok_or(PatchError::Malformed("no version"))?;
    if state.version.checked_add(1) != Some(version) {
        return Err(PatchError::Version {
            have: state.version,
            got: version,
        });
    }
    if mutations.len() > MAX_MUTATIONS {
        return Err(PatchError::Malformed("too many mutations"));
    }
    let key = ring.named(patch.key_id.as_ref())?;
    let sealed = mutations
        .iter()
        .map(Sealed::of_mutation)
        .collect::<Result<Vec<_>, _>>()?;

    let snapshot_mac = patch.snapshot_mac.as_deref().unwrap_or_default();
    let values = sealed.iter().map(|sealed| &sealed.value_mac);
    let patch_mac = patch_mac(key, collection, version, snapshot_mac, values);
    if !verify_mac(&patch_mac, patch.patch_mac.as_deref().unwrap_or_default()) {
        return Err(PatchError::PatchMac);
    }

    let mut next = State {
        version,
        hash: state.hash,
    };
    let effect = Effect::of(&sealed, &mut previous)?;
    next.hash.update(&effect.removed, &effect.added);
    let mac = next
        .hash
        .snapshot_mac(&key.snapshot_mac, version, collection.as_str());
    if !verify_mac(&mac, snapshot_mac) {
        return Err(PatchError::SnapshotMac);
    }

    let mutations = sealed
        .iter()
        .map(|sealed| sealed.open(ring))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Applied {
        state: next,
        mutations,
        macs: effect.macs,
        missing: effect.missing,
    })
}

/// What a list of mutations does to hash and map.
struct Effect {
    removed: Vec<[u8; 32]>,
    added: Vec<[u8; 32]>,
    macs: Vec<MacChange>,
    missing: usize,
}

impl Effect {
    /// The official rule: removals come first, and always take out what was there before the patch; a value that is set
    /// takes out what was there unless a removal in the same patch has done so. So an index that is both set and removed
    /// ends with the value that was set.
    fn of(
        sealed: &[Sealed<'_>],
        previous: &mut impl FnMut(&[u8; 32]) -> Option<[u8; 32]>,
    ) -> Result<Self, MutationError> {
        // (removed, set to)
        let mut touched: BTreeMap<[u8; 32], (bool, Option<[u8; 32]>)> = BTreeMap::new();
        for item in sealed {
            let (removed, set) = touched.entry(item.index_mac).or_default();
            let repeated = match item.operation {
                Operation::Remove => std::mem::replace(removed, true),
                Operation::Set => set.replace(item.value_mac).is_some(),
            };
            if repeated {
                return Err(MutationError::Malformed("an index that is changed twice"));
            }
        }
        let mut effect = Self {
            removed: Vec::new(),
            added: Vec::new(),
            macs: Vec::with_capacity(touched.len()),
            missing: 0,
        };
        for (index_mac, (removed, set)) in touched {
            let old = previous(&index_mac);
            if removed && old.is_none() {
                effect.missing += 1;
            }
            effect.removed.extend(old);
            effect.added.extend(set);
            effect.macs.push((index_mac, set));
        }
        Ok(effect)
    }
}

/// Over the MAC of the collection, all values in their order, version and name (fact sheet 08.6).
fn patch_mac<'a>(
    key: &SyncKey,
    collection: Collection,
    version: u64,
    snapshot_mac: &[u8],
    values: impl Iterator<Item = &'a [u8; 32]>,
) -> [u8; 32] {
    let values: Vec<u8> = values.flatten().copied().collect();
    key.patch_mac.mac(&[
        snapshot_mac,
        &values,
        &version.to_be_bytes(),
        collection.as_str().as_bytes(),
    ])
}

/// Why no patch can be built from these changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// There is nothing to announce.
    #[error("no changes")]
    Empty,
    /// Announce them in several patches.
    #[error("too many changes for one patch")]
    TooMany,
    /// One index twice: other clients disagree about what that means.
    #[error("an index is changed twice")]
    Repeated,
    /// What is to be removed is not there.
    #[error("a setting to be removed is not there")]
    NotThere,
    /// Name or value are longer than anybody takes.
    #[error("a change is too long")]
    TooLong,
    /// Versions have come to their end.
    #[error("the collection has no further version")]
    Version,
}

/// A patch of ours, and what it will amount to once the service has taken it.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// What to upload: without version, as all clients do.
    pub patch: SyncdPatch,
    /// Where the collection stands then.
    pub state: State,
    /// What is to be changed in the map of value MACs then.
    pub macs: Vec<MacChange>,
}

/// Makes the patch that announces `changes` on top of `state`. `previous` is the map of value MACs.
pub fn build_patch(
    collection: Collection,
    state: &State,
    key: &SyncKey,
    changes: &[Change],
    previous: impl FnMut(&[u8; 32]) -> Option<[u8; 32]>,
    rng: &mut Rng,
) -> Result<Built, BuildError> {
    build_patch_over(collection, state, key, &[], changes, previous, rng)
}

/// As [`build_patch`], for settings that partly stand under older keys. The name that a setting is filed under depends on
/// the key, so one that is set again under a new key does not take the place of the old one: `old` says what leaves with
/// this patch, each under the key that it was made with. That stands in front, for readers who go by the order.
pub fn build_patch_over(
    collection: Collection,
    state: &State,
    key: &SyncKey,
    old: &[(&SyncKey, Change)],
    changes: &[Change],
    mut previous: impl FnMut(&[u8; 32]) -> Option<[u8; 32]>,
    rng: &mut Rng,
) -> Result<Built, BuildError> {
    let count = old.len() + changes.len();
    if count == 0 {
        return Err(BuildError::Empty);
    }
    if count > MAX_MUTATIONS {
        return Err(BuildError::TooMany);
    }
    let version = state.version.checked_add(1).ok_or(BuildError::Version)?;
    let mut mutations = Vec::with_capacity(count);
    let mut values = Vec::with_capacity(count);
    let mut macs: BTreeMap<[u8; 32], Option<[u8; 32]>> = BTreeMap::new();
    let mut removed = Vec::new();
    let mut added = Vec::new();
    let old = old.iter().map(|(key, change)| (*key, change));
    for (key, change) in old.chain(changes.iter().map(|change| (key, change))) {
        let long = change.index.len() > MAX_INDEX_BYTES
            || change.value.encoded_len() + change.index.len() > MAX_VALUE_BYTES / 2;
        if long || change.index.is_empty() {
            return Err(BuildError::TooLong);
        }
        let index_mac = key.index_mac(&change.index);
        let old = previous(&index_mac);
        if change.operation == Operation::Remove && old.is_none() {
            return Err(BuildError::NotThere);
        }
        let (mutation, value_mac) = mutation::seal(key, change, rng.bytes());
        let new = (change.operation == Operation::Set).then_some(value_mac);
        if macs.insert(index_mac, new).is_some() {
            return Err(BuildError::Repeated);
        }
        removed.extend(old);
        added.extend(new);
        mutations.push(mutation);
        values.push(value_mac);
    }
    let mut next = State {
        version,
        hash: state.hash,
    };
    next.hash.update(&removed, &added);
    let snapshot_mac = next
        .hash
        .snapshot_mac(&key.snapshot_mac, version, collection.as_str());
    let patch_mac = patch_mac(key, collection, version, &snapshot_mac, values.iter());
    Ok(Built {
        patch: SyncdPatch {
            mutations,
            snapshot_mac: Some(snapshot_mac.to_vec()),
            patch_mac: Some(patch_mac.to_vec()),
            key_id: Some(crate::proto::sync::KeyId {
                id: Some(Bytes::clone(key.id().as_bytes())),
            }),
            ..Default::default()
        },
        state: next,
        macs: macs.into_iter().collect(),
    })
}
