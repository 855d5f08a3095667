//! Judging an answer piece by piece: what is sound is staged, what is not leads to evidence and a snapshot (fact sheets
//! 08.3 to 08.6).

use super::{
    SyncWork,
    answer::CONFLICTS,
    keys::Keys,
    round::{Item, Round, Stage, Staged, version_key},
    rows::{mac_key, state_of, timestamp},
    settle::{is_ours, official_order, resolve},
};
use crate::{
    appstate::{
        Collection, KeyRing, Mutation, MutationError, Operation, PatchError, Replaced,
        SnapshotError, State, action::Action, patch_keys, recovery_keys, snapshot_keys,
        verify_patch, verify_recovery, verify_snapshot,
    },
    crypto::sha256,
    flow::Context,
    proto::record,
    state::codec,
};
use bytes::Bytes;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

impl super::Sync {
    pub(super) fn judge(&mut self, cx: &mut Context, collection: Collection) -> Option<SyncWork> {
        let round = Round::of(&mut self.round, collection)?;
        let Keys::Ready(keys) = &self.keys else {
            // They were let go: the round begins again when they are here.
            self.end_round(cx);
            self.track(collection).wanted = true;
            return None;
        };
        let row: record::Collection = cx.read(&version_key(collection)).unwrap_or_default();
        match round.items.front() {
            Some(Item::Snapshot(reference, Some(snapshot))) => {
                // One that came from the service has a key; what has none is the place that a short log begins at.
                let verdict = if reference.media_key.is_some() {
                    verify_snapshot(collection, snapshot, &keys.ring)
                } else if let Err(error) = begins(collection, round.items.get(1), &keys.ring) {
                    count_patch(cx, &error);
                    let digest = sha256(&[error.to_string().as_bytes()]);
                    self.diverged(cx, collection, &error.to_string(), digest);
                    return None;
                } else {
                    Ok(Replaced {
                        state: State::default(),
                        mutations: Vec::new(),
                    })
                };
                match verdict {
                    Ok(replaced) => {
                        round.stage_replacement(replaced);
                        return Some(SyncWork::Settle(collection));
                    }
                    Err(SnapshotError::MissingKey(_)) => {
                        let mut missing = snapshot_keys(snapshot);
                        missing.retain(|id| !keys.ring.has(id));
                        self.wait_for_keys(cx, collection, missing);
                    }
                    Err(error) => {
                        let digest = sha256(&[&snapshot.encode_to_vec()]);
                        count_snapshot(cx, &error);
                        self.diverged(cx, collection, &error.to_string(), digest);
                    }
                }
            }
            Some(Item::Patch(patch, Some(mutations))) => {
                let Some(state) = state_of(&row).filter(|_| !row.diverged() && row.fetched())
                else {
                    // A patch on top of nothing: only a snapshot helps.
                    cx.stats.sync.version_gaps += 1;
                    self.diverged(cx, collection, "a patch came before a snapshot", [0; 32]);
                    return None;
                };
                let name = collection;
                let previous = |mac: &[u8; 32]| {
                    let row: record::Setting = cx.read(&mac_key(name, *mac))?;
                    row.value_mac?.try_into().ok()
                };
                match verify_patch(collection, &state, patch, mutations, &keys.ring, previous) {
                    Ok(applied) => {
                        let actions = official_order(&applied.mutations).map(Action::of).collect();
                        let mac = patch.patch_mac.clone().unwrap_or_default();
                        round.staged = Some(Staged::Patch(applied, actions, mac));
                        return Some(SyncWork::Settle(collection));
                    }
                    Err(PatchError::MissingKey(_)) => {
                        let mut missing = patch_keys(patch, mutations);
                        missing.retain(|id| !keys.ring.has(id));
                        self.wait_for_keys(cx, collection, missing);
                    }
                    Err(PatchError::Version { have, got }) if got <= have => {
                        cx.stats.sync.stale_patches += 1;
                        round.items.pop_front();
                        round.stage = Stage::Pieces;
                        // An answer that ends without anything new must not be the last word while changes of ours wait;
                        // a service that answers so for ever must not keep us asking either.
                        if round.items.is_empty() && round.announces(&row.pending) {
                            round.more = true;
                            round.conflicts += 1;
                            if round.conflicts > CONFLICTS {
                                let why = "only patches that we have come, and changes wait";
                                self.failed(cx, collection, why);
                            }
                        }
                    }
                    Err(PatchError::Version { .. }) if round.gaps == 0 => {
                        // Asked once more from where we stand: the answer may have been made for somebody else.
                        cx.stats.sync.version_gaps += 1;
                        round.gaps += 1;
                        round.items.clear();
                        round.more = true;
                        round.only_read = true;
                        round.stage = Stage::Pieces;
                    }
                    Err(error) => {
                        count_patch(cx, &error);
                        // Damaged on its way to us, ours has been taken all the same: the snapshot need not show that.
                        let version = patch.version.as_ref().and_then(|v| v.version);
                        let mac = patch.patch_mac.as_deref().unwrap_or_default();
                        let mut row = row;
                        if let Some(version) = version.filter(|v| is_ours(&row, *v, mac)) {
                            resolve(cx, &mut row, version, mac);
                            cx.put(version_key(collection), codec::encode(&row));
                        }
                        let digest = sha256(&[&patch.encode_to_vec()]);
                        self.diverged(cx, collection, &error.to_string(), digest);
                    }
                }
            }
            Some(Item::Recovery(recovery)) => {
                let version = recovery.version.as_ref().and_then(|v| v.version);
                if !row.diverged() || version < row.version {
                    // Mended meanwhile, or the phone is behind: nothing that would help.
                    round.items.pop_front();
                    round.stage = Stage::Pieces;
                    return None;
                }
                match verify_recovery(collection, recovery, &keys.ring) {
                    Ok(replaced) => {
                        cx.stats.sync.recoveries += 1;
                        round.stage_replacement(replaced);
                        return Some(SyncWork::Settle(collection));
                    }
                    Err(SnapshotError::MissingKey(_)) => {
                        let mut missing = recovery_keys(recovery);
                        missing.retain(|id| !keys.ring.has(id));
                        self.wait_for_keys(cx, collection, missing);
                    }
                    Err(error) => {
                        count_snapshot(cx, &error);
                        // There is nobody else to ask.
                        self.give_up(cx, collection, &format!("what the phone tells: {error}"));
                    }
                }
            }
            _ => round.stage = Stage::Pieces,
        }
        None
    }
}

impl Round {
    /// A whole collection was found sound: what it says, in the order in which it is carried out.
    fn stage_replacement(&mut self, replaced: Replaced) {
        let mut actions: Vec<Action> = Vec::new();
        // What is not in it any more is removed, before what is in it is set.
        let kept: BTreeSet<[u8; 32]> = replaced.mutations.iter().map(|m| m.index_mac).collect();
        let gone = self.existing.iter().flat_map(|existing| &existing.names);
        for (index_mac, index) in gone.filter(|(mac, _)| !kept.contains(*mac)) {
            actions.push(Action::of(&Mutation {
                operation: Operation::Remove,
                index_mac: *index_mac,
                value_mac: [0; 32],
                index: index.clone().into(),
                data: Bytes::new(),
            }));
        }
        // One that stands under two keys: what was said last counts.
        let mut last: BTreeMap<&[u8], usize> = BTreeMap::new();
        for (n, mutation) in replaced.mutations.iter().enumerate() {
            let before = last
                .get(&*mutation.index)
                .and_then(|n| replaced.mutations.get(*n));
            if before.is_none_or(|before| {
                timestamp(before.data.clone()) <= timestamp(mutation.data.clone())
            }) {
                last.insert(&mutation.index, n);
            }
        }
        let said = replaced.mutations.iter().enumerate();
        let said = said.filter(|(n, mutation)| last.get(&*mutation.index) == Some(n));
        actions.extend(said.map(|(_, mutation)| Action::of(mutation)));
        self.staged = Some(Staged::Snapshot(replaced, actions));
    }
}

/// Whether a log that takes the place of a snapshot has a sound beginning: what we have is not given up for less. One that
/// comes as a file is looked at when it is here.
fn begins(collection: Collection, first: Option<&Item>, ring: &KeyRing) -> Result<(), PatchError> {
    let Some(Item::Patch(patch, Some(mutations))) = first else {
        return Ok(());
    };
    let state = State::default();
    match verify_patch(collection, &state, patch, mutations, ring, |_| None) {
        Ok(_) | Err(PatchError::MissingKey(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn count_patch(cx: &mut Context, error: &PatchError) {
    match error {
        PatchError::PatchMac => cx.stats.sync.bad_patch_macs += 1,
        PatchError::SnapshotMac => cx.stats.sync.bad_snapshot_macs += 1,
        PatchError::Version { .. } => cx.stats.sync.version_gaps += 1,
        PatchError::Mutation(inner) => count(cx, inner),
        _ => cx.stats.sync.malformed += 1,
    }
}

fn count_snapshot(cx: &mut Context, error: &SnapshotError) {
    match error {
        SnapshotError::SnapshotMac => cx.stats.sync.bad_snapshot_macs += 1,
        SnapshotError::Record(inner) => count(cx, inner),
        _ => cx.stats.sync.malformed += 1,
    }
}

fn count(cx: &mut Context, error: &MutationError) {
    match error {
        MutationError::ValueMac | MutationError::IndexMac => cx.stats.sync.bad_mutations += 1,
        MutationError::Malformed(_) | MutationError::MissingKey(_) => cx.stats.sync.malformed += 1,
    }
}
