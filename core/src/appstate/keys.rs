//! Keys of app state: 32 bytes from the phone, five keys out of them (fact sheet 08.2).

use crate::crypto::{HmacKey, HmacSha512Key, hkdf_sha256};
use bytes::Bytes;
use std::{collections::BTreeMap, fmt};
use zeroize::Zeroizing;

/// Longest id of a key; in practice they have 6 bytes.
pub const MAX_KEY_ID: usize = crate::limits::SYNC_KEY_ID;

/// What the five keys are derived for.
const INFO: &[u8] = b"WhatsApp Mutation Keys";

/// The name of a key: opaque, 1 to 64 bytes, not secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Bytes);

impl KeyId {
    /// `None` if it is empty or too long.
    #[must_use]
    pub fn new(id: impl Into<Bytes>) -> Option<Self> {
        let id = id.into();
        (1..=MAX_KEY_ID).contains(&id.len()).then_some(Self(id))
    }

    /// As it stands in records and rows.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a key expands to. Wiped on drop.
pub struct SyncKey {
    pub(super) id: KeyId,
    pub(super) index: HmacKey,
    pub(super) value: Zeroizing<[u8; 32]>,
    pub(super) value_mac: HmacSha512Key,
    pub(super) snapshot_mac: HmacKey,
    pub(super) patch_mac: HmacKey,
}

impl SyncKey {
    /// Expands the 32 bytes that the phone shares.
    #[must_use]
    pub fn expand(id: KeyId, data: &[u8; 32]) -> Self {
        let all = hkdf_sha256::<160>(&[], data, INFO);
        let [index, value, value_mac, snapshot_mac, patch_mac] =
            std::array::from_fn(|n| part(&all, n));
        Self {
            id,
            index: HmacKey::new(&*index),
            value,
            value_mac: HmacSha512Key::new(&value_mac),
            snapshot_mac: HmacKey::new(&*snapshot_mac),
            patch_mac: HmacKey::new(&*patch_mac),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> &KeyId {
        &self.id
    }

    /// The name of an index under this key: what a value is filed under.
    #[must_use]
    pub fn index_mac(&self, index: &[u8]) -> [u8; 32] {
        self.index.mac(&[index])
    }
}

fn part(all: &[u8; 160], n: usize) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    if let Some(from) = all.chunks_exact(32).nth(n) {
        key.copy_from_slice(from);
    }
    key
}

impl fmt::Debug for SyncKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SyncKey({:?})", self.id)
    }
}

/// Expanded keys by name.
#[derive(Debug, Default)]
pub struct KeyRing(BTreeMap<KeyId, SyncKey>);

impl KeyRing {
    /// Takes a key in; one of the same name is replaced.
    pub fn insert(&mut self, key: SyncKey) {
        self.0.insert(key.id.clone(), key);
    }

    /// The key of that name.
    #[must_use]
    pub fn get(&self, id: &KeyId) -> Option<&SyncKey> {
        self.0.get(id)
    }

    /// Whether it is there.
    #[must_use]
    pub fn has(&self, id: &KeyId) -> bool {
        self.0.contains_key(id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order of their names: within one device's keys the newest is the last.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &SyncKey> {
        self.0.values()
    }

    pub(super) fn named(&self, id: Option<&crate::proto::sync::KeyId>) -> Result<&SyncKey, NoKey> {
        let id = id.and_then(|id| id.id.clone()).and_then(KeyId::new);
        let id = id.ok_or(NoKey::Malformed)?;
        self.get(&id).ok_or(NoKey::Missing(id))
    }
}

impl FromIterator<SyncKey> for KeyRing {
    fn from_iter<I: IntoIterator<Item = SyncKey>>(keys: I) -> Self {
        let mut ring = Self::default();
        keys.into_iter().for_each(|key| ring.insert(key));
        ring
    }
}

/// Why there is no key.
pub(super) enum NoKey {
    Malformed,
    Missing(KeyId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_shown() {
        let id = KeyId::new(vec![0, 1, 0, 0, 0, 1]).unwrap();
        let key = SyncKey::expand(id, &[0xab; 32]);
        assert_eq!(format!("{key:?}"), "SyncKey(000100000001)");
        assert!(KeyId::new(vec![]).is_none() && KeyId::new(vec![0; MAX_KEY_ID + 1]).is_none());
    }
}
