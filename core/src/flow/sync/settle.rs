//! What came of a piece of an answer, written at once: version, hash, value MACs, settings, events; and which changes of
//! ours it settles.

use super::{
    keys::{Keys, Ring},
    round::{Round, SHOWN, Stage, Staged, version_key},
    rows::{mac_key, timestamp},
    settings,
};
use crate::{
    appstate::{Collection, MacChange, Mutation, Operation, Replaced, action::Action},
    flow::{Context, Event, Setting},
    proto::{
        record,
        sync::{SyncActionValue, SyncdPatch},
    },
    state::codec,
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

impl super::Sync {
    /// Everything that came of a piece, at once: version, hash, value MACs, settings, events.
    pub(super) fn settle(&mut self, cx: &mut Context, collection: Collection) {
        let Some(round) = Round::of(&mut self.round, collection) else {
            return;
        };
        let Some(staged) = round.staged.take() else {
            round.stage = Stage::Pieces;
            return;
        };
        let key = version_key(collection);
        let mut row: record::Collection = cx.read(&key).unwrap_or_default();
        let state = match &staged {
            Staged::Patch(applied, ..) => applied.state,
            Staged::Snapshot(replaced, _) => replaced.state,
        };
        match staged {
            Staged::Patch(applied, actions, patch_mac) => {
                let own = resolve(cx, &mut row, state.version, &patch_mac);
                cx.stats.sync.patches += 1;
                cx.stats.sync.mutations += applied.mutations.len() as u64;
                cx.stats.sync.missing_removes += applied.missing as u64;
                write_macs(cx, collection, &applied.macs, &applied.mutations);
                let many = applied.mutations.len() > SHOWN;
                let ring = match &self.keys {
                    Keys::Ready(ring) => Some(ring),
                    _ => None,
                };
                for (mutation, action) in official_order(&applied.mutations).zip(actions) {
                    // What leaves its place under an older key is not gone if it stands under another one.
                    if mutation.operation == Operation::Remove
                        && ring.is_some_and(|ring| stands(cx, collection, ring, &mutation.index))
                    {
                        continue;
                    }
                    cx.stats.sync.unknown_actions +=
                        u64::from(matches!(action, Action::Unknown { .. }));
                    settings::apply(cx, &action);
                    if !many {
                        cx.emit(Event::Setting(Box::new(Setting {
                            collection,
                            action,
                            at: timestamp(mutation.data.clone()),
                            own,
                        })));
                    }
                }
                if many {
                    cx.emit(Event::SettingsReplaced {
                        collection,
                        version: state.version,
                        settings: applied.mutations.len() as u64,
                    });
                }
            }
            Staged::Snapshot(replaced, actions) => {
                cx.stats.sync.snapshots += 1;
                cx.stats.sync.mutations += replaced.mutations.len() as u64;
                let existing = round.existing.take().unwrap_or_default().names;
                resolve_by_snapshot(cx, &mut row, &replaced);
                let mut macs: BTreeMap<[u8; 32], Option<[u8; 32]>> =
                    existing.into_keys().map(|mac| (mac, None)).collect();
                macs.extend(
                    replaced
                        .mutations
                        .iter()
                        .map(|m| (m.index_mac, Some(m.value_mac))),
                );
                let macs: Vec<MacChange> = macs.into_iter().collect();
                write_macs(cx, collection, &macs, &replaced.mutations);
                let settings = actions.len() as u64;
                for action in actions {
                    cx.stats.sync.unknown_actions +=
                        u64::from(matches!(action, Action::Unknown { .. }));
                    settings::apply(cx, &action);
                }
                if settings > 0 {
                    cx.emit(Event::SettingsReplaced {
                        collection,
                        version: state.version,
                        settings,
                    });
                }
            }
        }
        row.version = Some(state.version);
        row.hash = Some(state.hash.to_bytes().to_vec());
        row.fetched = Some(true);
        row.diverged = None;
        cx.put(key, codec::encode(&row));
        if let Some(round) = &mut self.round {
            round.items.pop_front();
            round.stage = Stage::Pieces;
            round.more |= round.announces(&row.pending);
        }
        self.track(collection).version = Some(state.version);
    }
}

/// Removals first: an index that a patch both removes and sets ends with what was set.
pub(super) fn official_order(mutations: &[Mutation]) -> impl Iterator<Item = &Mutation> {
    let of = |operation| mutations.iter().filter(move |m| m.operation == operation);
    of(Operation::Remove).chain(of(Operation::Set))
}

/// Whether a setting is there, under whatever key.
fn stands(cx: &mut Context, collection: Collection, ring: &Ring, index: &[u8]) -> bool {
    ring.names(index)
        .any(|(_, mac)| cx.rows.get(&mac_key(collection, mac)).is_some())
}

fn write_macs(
    cx: &mut Context,
    collection: Collection,
    macs: &[MacChange],
    mutations: &[Mutation],
) {
    let set: BTreeMap<&[u8; 32], &Mutation> = mutations
        .iter()
        .filter(|mutation| mutation.operation == Operation::Set)
        .map(|mutation| (&mutation.index_mac, mutation))
        .collect();
    for (index_mac, value_mac) in macs {
        let key = mac_key(collection, *index_mac);
        let (Some(value_mac), Some(mutation)) = (value_mac, set.get(index_mac)) else {
            cx.delete(key);
            continue;
        };
        let elsewhere = settings::row_of(&Action::of(mutation)).is_some();
        let setting = record::Setting {
            value_mac: Some(value_mac.to_vec()),
            index: Some(mutation.index.to_vec()),
            data: (!elsewhere).then(|| mutation.data.to_vec()),
        };
        cx.put(key, codec::encode(&setting));
    }
}

/// Whether a patch to this version is the one of ours that is on its way. Its MAC says so, whatever became of the rest.
pub(super) fn is_ours(row: &record::Collection, version: u64, patch_mac: &[u8]) -> bool {
    let Some(flight) = &row.in_flight else {
        return false;
    };
    let ours = flight
        .patch
        .as_deref()
        .and_then(|patch| SyncdPatch::decode(patch).ok());
    flight.base().checked_add(1) == Some(version)
        && ours.is_some_and(|ours| ours.patch_mac.as_deref() == Some(patch_mac))
}

/// A patch has come: was it ours? Then its changes wait no longer; if another one took its place, ours is made again on
/// top of it.
pub(super) fn resolve(
    cx: &mut Context,
    row: &mut record::Collection,
    version: u64,
    patch_mac: &[u8],
) -> bool {
    let ours = is_ours(row, version, patch_mac);
    let Some(flight) = row.in_flight.take_if(|flight| flight.base() < version) else {
        return false;
    };
    let changes = (flight.changes() as usize).min(row.pending.len());
    if ours {
        cx.stats.sync.changes_out += changes as u64;
        row.pending.drain(..changes);
    } else {
        cx.stats.sync.conflicts += 1;
    }
    ours
}

/// As [`resolve`], when all there is to go by is what the collection has now: a value of ours is told by its MAC.
fn resolve_by_snapshot(cx: &mut Context, row: &mut record::Collection, replaced: &Replaced) {
    // One of before it was made (a log that begins anew begins with nothing) says nothing about it.
    let before = |flight: &mut record::InFlight| flight.base() < replaced.state.version;
    let Some(flight) = row.in_flight.take_if(before) else {
        return;
    };
    let now: BTreeMap<&[u8], &[u8]> = replaced
        .mutations
        .iter()
        .map(|m| (m.index_mac.as_slice(), m.value_mac.as_slice()))
        .collect();
    let patch = flight
        .patch
        .as_deref()
        .and_then(|patch| SyncdPatch::decode(patch).ok());
    // A value has a MAC that no other has, so one of ours says that the patch was taken, whoever has changed the rest of
    // it since. Without any it says nothing, and a patch that only removes is known by what is gone.
    let (mut known, mut sets, mut gone) = (false, false, true);
    for mutation in patch.iter().flat_map(|patch| &patch.mutations) {
        let record = mutation.record.as_ref();
        let index = record.and_then(|r| r.index.as_ref()?.blob.as_deref());
        let value = record.and_then(|r| r.value.as_ref()?.blob.as_deref()?.last_chunk::<32>());
        let (Some(index), Some(value)) = (index, value) else {
            continue;
        };
        if mutation.operation.unwrap_or(0) == 0 {
            sets = true;
            known |= now.get(index).copied() == Some(value.as_slice());
        } else {
            gone &= !now.contains_key(index);
        }
    }
    let taken = known || (!sets && gone && patch.is_some());
    let changes = (flight.changes() as usize).min(row.pending.len());
    if taken {
        cx.stats.sync.changes_out += changes as u64;
        row.pending.drain(..changes);
        return;
    }
    cx.stats.sync.conflicts += 1;
    // Taken or not: a change whose place has one that was made later is not announced again, it would undo that one.
    let mut waiting = row.pending.split_off(changes);
    let made: BTreeMap<&[u8], i64> = row
        .pending
        .iter()
        .filter_map(|change| {
            let value = SyncActionValue::decode(change.value.as_deref()?).ok()?;
            Some((change.index.as_deref()?, value.timestamp()))
        })
        .collect();
    let later = replaced.mutations.iter().filter(|m| {
        let at = made.get(&*m.index);
        at.is_some_and(|at| timestamp(m.data.clone()) > *at)
    });
    let later: BTreeSet<&[u8]> = later.map(|m| &*m.index).collect();
    row.pending
        .retain(|change| !later.contains(change.index.as_deref().unwrap_or_default()));
    cx.stats.sync.changes_overtaken += (changes - row.pending.len()) as u64;
    row.pending.append(&mut waiting);
}
