//! Keys of settings: the phone makes and shares them, and is asked for those that are missing (fact sheet 08.2).

use super::{DAY_MS, FromPhone, SyncState};
use crate::{
    appstate::{Collection, KeyId, KeyRing, SyncKey},
    flow::{Context, Notice},
    proto::e2e,
    state::{Key, Record, Row, codec},
};
use prost::Message as _;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Older keys under which a setting is looked for. A key is replaced when a device leaves.
const OLD_KEYS: usize = 8;

/// Most keys that are kept in memory while settings are worked on.
const KEYS: usize = 1024;

/// A key as the phone shares it.
pub(crate) struct SharedKey {
    pub(crate) id: KeyId,
    pub(crate) data: Zeroizing<[u8; 32]>,
    /// Unix milliseconds; the newest is the one to use.
    pub(crate) at: i64,
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedKey({:?})", self.id)
    }
}

/// The keys of the account, while they are needed.
#[derive(Debug, Default)]
pub(super) enum Keys {
    #[default]
    Unloaded,
    Loading(Ring),
    Ready(Ring),
}

#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) ring: KeyRing,
    /// When and what the newest is.
    newest: Option<(i64, KeyId)>,
    /// When the phone was asked for a key, unix milliseconds.
    pub(super) asked: BTreeMap<KeyId, i64>,
}

impl Ring {
    pub(super) fn insert(&mut self, id: KeyId, data: &[u8; 32], at: i64) {
        if self.ring.len() >= KEYS && !self.ring.has(&id) {
            return;
        }
        self.asked.remove(&id);
        let this = Some((at, id.clone()));
        if this > self.newest {
            self.newest = this;
        }
        self.ring.insert(SyncKey::expand(id, data));
    }

    pub(super) fn newest(&self) -> Option<&SyncKey> {
        self.newest.as_ref().and_then(|(_, id)| self.ring.get(id))
    }

    /// What a setting may be filed under: by the newest key, and by some older ones. Somebody who sets it again after the
    /// key was changed may leave it standing under the old one.
    pub(super) fn names<'a>(
        &'a self,
        index: &[u8],
    ) -> impl Iterator<Item = (&'a SyncKey, [u8; 32])> {
        let newest = self.newest();
        let older = self.ring.iter().rev();
        let older = older.filter(move |key| newest.is_none_or(|newest| newest.id() != key.id()));
        newest
            .into_iter()
            .chain(older.take(OLD_KEYS))
            .map(move |key| (key, key.index_mac(index)))
    }
}

impl super::Sync {
    /// The service has acknowledged a message of ours, perhaps one to the phone.
    pub(crate) fn acknowledged(&mut self, cx: &mut Context, id: &str, refused: bool) {
        let keys = self.phone.acknowledged(id, refused);
        let at = cx.now.unix.0;
        for id in keys {
            if let Keys::Ready(ring) | Keys::Loading(ring) = &mut self.keys {
                ring.asked.insert(id.clone(), at);
            }
            // Until the phone answers, the row says when it was asked: not again within a day, by whatever owner.
            let row = e2e::AppStateSyncKey {
                key_id: Some(e2e::AppStateSyncKeyId {
                    key_id: Some(id.as_bytes().to_vec()),
                }),
                key_data: Some(e2e::AppStateSyncKeyData {
                    timestamp: Some(at),
                    ..Default::default()
                }),
            };
            let has = match &self.keys {
                Keys::Ready(ring) | Keys::Loading(ring) => ring.ring.has(&id),
                // Shared meanwhile, perhaps: the row of a key must not be overwritten.
                Keys::Unloaded => true,
            };
            if !has {
                cx.put(
                    Key::AppStateSyncKey(id.as_bytes().clone()),
                    codec::wrap(&row.encode_to_vec()),
                );
            }
        }
    }

    /// Keys are missing: the phone is asked for them, and the collection waits.
    pub(super) fn wait_for_keys(
        &mut self,
        cx: &mut Context,
        collection: Collection,
        missing: Vec<KeyId>,
    ) {
        self.end_round(cx);
        cx.stats.sync.missing_keys += 1;
        let now = cx.now.unix.0;
        let asked = match &self.keys {
            Keys::Ready(ring) | Keys::Loading(ring) => &ring.asked,
            Keys::Unloaded => &BTreeMap::new(),
        };
        let recently = |id: &KeyId| {
            asked
                .get(id)
                .is_some_and(|at| now.saturating_sub(*at) < DAY_MS)
        };
        self.phone
            .ask_keys(missing.iter().filter(|id| !recently(id)).cloned());
        let track = self.track(collection);
        track.wanted = true;
        track.waiting = missing.into_iter().take(KEYS).collect();
        let keys = track.waiting.len();
        cx.notice(Notice::Sync(collection, SyncState::WaitingForKeys { keys }));
    }
}

pub(super) fn read_key(cx: &mut Context, ring: &mut Ring, key: Key, row: &Row) {
    let read = |record: &Record| {
        let shared = e2e::AppStateSyncKey::decode(codec::payload(record).ok()?).ok()?;
        let id = KeyId::new(shared.key_id?.key_id?)?;
        let data = shared.key_data.unwrap_or_default();
        Some((
            id,
            data.key_data.map(Zeroizing::new),
            data.timestamp.unwrap_or(0),
        ))
    };
    let Row::Present(record) = row else {
        return cx.corrupt(key);
    };
    match read(record) {
        Some((id, None, at)) => {
            ring.asked.insert(id, at);
        }
        Some((id, Some(data), at)) => match <&[u8; 32]>::try_from(data.as_slice()) {
            Ok(data) => ring.insert(id, data, at),
            Err(_) => cx.corrupt(key),
        },
        None => cx.corrupt(key),
    }
}

/// What the own phone shares. Called where its message is taken in: the rows join the batch of the message.
pub(crate) fn keys_shared(cx: &mut Context, share: &e2e::AppStateSyncKeyShare) {
    for key in &share.keys {
        let id = key.key_id.as_ref().and_then(|id| id.key_id.clone());
        let Some(id) = id.and_then(KeyId::new) else {
            continue;
        };
        // An item without data: the phone does not have that one.
        let Some(data) = &key.key_data else { continue };
        let bytes = data.key_data.as_deref().unwrap_or_default();
        let Ok(bytes) = <[u8; 32]>::try_from(bytes) else {
            if data.key_data.is_some() {
                cx.protocol_error("an app state key of other than 32 bytes");
            }
            continue;
        };
        cx.put(
            Key::AppStateSyncKey(id.as_bytes().clone()),
            codec::wrap(&key.encode_to_vec()),
        );
        cx.from_phone.push_back(FromPhone::Key(SharedKey {
            id,
            data: Zeroizing::new(bytes),
            at: data.timestamp.unwrap_or(0),
        }));
    }
}
