//! Somebody wants to change settings: what is accepted waits in the collection's row.

use super::{rows, settings};
use crate::{
    appstate::{Change, Collection, MAX_INDEX_BYTES, Operation, action::Action},
    flow::{CommandError, CommandId, Context, Reply},
    proto::record,
    state::{Key, UnixMillis, codec},
};
use prost::Message as _;
use std::collections::BTreeMap;

/// Changes of ours that may wait in a collection.
const PENDING: usize = 1024;

/// Bytes of values of such changes.
const PENDING_BYTES: usize = 1 << 20;

impl super::Sync {
    /// What is wrong with changes, whatever the state of the account.
    pub(super) fn check(cx: &Context, actions: &[Action]) -> Result<(), CommandError> {
        if !cx.account.is_linked() {
            return Err(CommandError::NotLinked);
        }
        if actions.is_empty() || actions.len() > PENDING {
            return Err(CommandError::Invalid("1 to 1024 changes at once"));
        }
        for action in actions {
            let Some((_, change)) = action.change(0) else {
                return Err(CommandError::Invalid("a setting that we do not understand"));
            };
            let row = settings::row_of(action);
            let named = row.is_none_or(|key| crate::state::rules::key(&key).is_ok());
            let long = change.index.len() > MAX_INDEX_BYTES
                || change.value.encoded_len() > PENDING_BYTES / 4;
            // It has to mean the same to us when it comes back.
            if long || !named || !means_the_same(action, &change) {
                return Err(CommandError::Invalid("a setting with an impossible value"));
            }
        }
        Ok(())
    }

    /// Puts changes into the rows of their collections.
    pub(super) fn change(
        &mut self,
        cx: &mut Context,
        id: CommandId,
        at: UnixMillis,
        actions: &[Action],
    ) {
        let mut rows: BTreeMap<Collection, record::Collection> = BTreeMap::new();
        for action in actions {
            let Some((collection, change)) = action.change(at.0) else {
                continue;
            };
            let row = rows.entry(collection).or_insert_with(|| {
                cx.read(&Key::AppStateVersion(collection.name()))
                    .unwrap_or_default()
            });
            // The patch on its way is what it is; whatever waits behind it can still be replaced.
            let fixed = row
                .in_flight
                .as_ref()
                .map_or(0, |flight| flight.changes() as usize)
                .min(row.pending.len());
            let mut waiting = row.pending.split_off(fixed);
            waiting.retain(|other| other.index.as_ref() != Some(&change.index));
            row.pending.append(&mut waiting);
            row.pending.push(pending_of(&change));
        }
        let bytes = |row: &record::Collection| {
            row.pending
                .iter()
                .map(|change| change.encoded_len())
                .sum::<usize>()
        };
        if rows
            .values()
            .any(|row| row.pending.len() > PENDING || bytes(row) > PENDING_BYTES)
        {
            cx.reply(id, Err(CommandError::Busy));
            return;
        }
        for (collection, row) in rows {
            cx.put(Key::AppStateVersion(collection.name()), codec::encode(&row));
            self.want(collection, None);
        }
        cx.reply(id, Ok(Reply::Done));
    }
}

/// Whether an action that is announced comes back as what it was.
fn means_the_same(action: &Action, change: &Change) -> bool {
    let data = crate::proto::sync::SyncActionData {
        index: Some(change.index.clone()),
        value: Some(change.value.clone()),
        ..Default::default()
    };
    let removed = change.operation == Operation::Remove;
    let setting = rows::setting_of(
        Collection::Regular,
        removed,
        change.index.clone(),
        data.encode_to_vec(),
        true,
    );
    setting.action == *action
}

fn pending_of(change: &Change) -> record::PendingChange {
    record::PendingChange {
        remove: (change.operation == Operation::Remove).then_some(true),
        index: Some(change.index.clone()),
        value: Some(change.value.encode_to_vec()),
        version: Some(change.version),
    }
}
