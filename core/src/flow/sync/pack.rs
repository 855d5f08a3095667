//! Changes of ours, on their way into a patch.

use super::{keys::Ring, rows::mac_key};
use crate::{
    appstate::{BuildError, Change, Collection, Operation, State, SyncKey, build_patch_over},
    flow::Context,
    proto::{record, sync::SyncActionValue},
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// Makes the patch that announces what is pending, and notes it in the row. Changes that cannot be announced are
/// dropped: something to be removed that somebody else has removed already.
///
/// A setting that still stands under an older key leaves that place with the same patch.
pub(super) fn pack(
    cx: &mut Context,
    collection: Collection,
    state: &State,
    key: &SyncKey,
    ring: &Ring,
    row: &mut record::Collection,
) {
    // Of two changes of one setting the later one counts.
    let mut seen = BTreeSet::new();
    let mut pending: Vec<record::PendingChange> = Vec::new();
    for change in row.pending.drain(..).rev() {
        if seen.insert(change.index.clone()) {
            pending.push(change);
        }
    }
    pending.reverse();
    loop {
        let changes: Vec<Option<Change>> = pending.iter().map(change_of).collect();
        let there = |cx: &mut Context, mac: &[u8; 32]| -> Option<[u8; 32]> {
            let row: record::Setting = cx.read(&mac_key(collection, *mac))?;
            row.value_mac?.try_into().ok()
        };
        let before = pending.len();
        let mut kept = Vec::with_capacity(before);
        let mut good = Vec::with_capacity(before);
        let mut old: Vec<(&SyncKey, Change)> = Vec::new();
        let mut macs: BTreeMap<[u8; 32], [u8; 32]> = BTreeMap::new();
        for (waiting, change) in pending.into_iter().zip(changes) {
            let Some(change) = change else { continue };
            let mut stands = false;
            for (older, mac) in ring
                .names(&change.index)
                .filter(|(k, _)| k.id() != key.id())
            {
                let Some(value_mac) = there(cx, &mac) else {
                    continue;
                };
                stands = true;
                macs.insert(mac, value_mac);
                let removal = Change {
                    operation: Operation::Remove,
                    ..change.clone()
                };
                old.push((older, removal));
            }
            let mac = key.index_mac(&change.index);
            let here = there(cx, &mac);
            macs.extend(here.map(|value_mac| (mac, value_mac)));
            if change.operation == Operation::Set || here.is_some() {
                good.push(change);
                kept.push(waiting);
            } else if stands {
                kept.push(waiting);
            }
        }
        cx.stats.sync.changes_refused += (before - kept.len()) as u64;
        pending = kept;
        let mut rng = cx.rng.fork("app state");
        let built = build_patch_over(
            collection,
            state,
            key,
            &old,
            &good,
            |mac| macs.get(mac).copied(),
            &mut rng,
        );
        match built {
            Ok(built) => {
                row.in_flight = Some(record::InFlight {
                    patch: Some(built.patch.encode_to_vec()),
                    changes: u32::try_from(pending.len()).ok(),
                    base: Some(state.version),
                });
                break;
            }
            Err(BuildError::Empty) => break,
            Err(_) => {
                // Checked when they were accepted; a row that says otherwise is not worth more than the collection.
                cx.stats.sync.changes_refused += 1;
                pending.remove(0);
            }
        }
    }
    row.pending = pending;
}

fn change_of(pending: &record::PendingChange) -> Option<Change> {
    Some(Change {
        operation: if pending.remove() {
            Operation::Remove
        } else {
            Operation::Set
        },
        index: pending.index.clone()?,
        value: SyncActionValue::decode(pending.value.as_deref()?).ok()?,
        version: pending.version.unwrap_or(0),
    })
}
